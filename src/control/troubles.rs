//! What asks for somebody's attention, the most urgent first, each with what to do about it. A pure function of the status, so that
//! every line of it can be tried without bringing the trouble about.

mod close;

use jiff::{SignedDuration, Timestamp};

use super::status::{Next, Status, Trouble};
use crate::config::{Size, Span};
use crate::deliver::SinkStatus;

/// A certificate that others renew is looked for so long before it expires.
const CERTIFICATE_SOON: SignedDuration = SignedDuration::from_hours(7 * 24);

/// A clock that is further off than this is worth setting.
const CLOCK_OFF_SECONDS: i64 = 60;

/// A sink that waits and has not failed, for an answer say, is looked at when the oldest of its events is so old.
const WAITS_LONG_SECONDS: f64 = 60.0;

/// Less free space than this share of a file system, and than this much, is little.
const LITTLE_SHARE: u64 = 20;
const LITTLE_BYTES: u64 = 1 << 30;

/// What asks for attention.
pub(super) fn of(status: &Status, now: Timestamp) -> Vec<Trouble> {
    let mut found = Found::default();
    daemon(status, &mut found);
    if status.daemon.running {
        certificate(status, now, &mut found);
        refused(status, &mut found);
    }
    close::of(status, &mut found);
    kept(status, &mut found);
    for one in &status.sinks {
        sink(&one.sink, &mut found);
    }
    removed(status, &mut found);
    stranded(status, &mut found);
    found.0
}

#[derive(Debug, Default)]
struct Found(Vec<Trouble>);

impl Found {
    fn say(&mut self, what: impl Into<String>, remedy: impl Into<String>) {
        self.say_with(None, what, remedy);
    }

    fn say_with(&mut self, next: impl Into<Option<Next>>, what: impl Into<String>, remedy: impl Into<String>) {
        self.0.push(Trouble {
            what: what.into(),
            remedy: remedy.into(),
            next: next.into(),
        });
    }
}

fn daemon(status: &Status, found: &mut Found) {
    if let Some(pid) = status.daemon.unreachable {
        let dir = status.daemon.dir.display();
        found.say(
            format!(
                "the daemon runs (process {pid} has {dir}) and can't be asked: {dir}/closehook.sock is missing, and it does not make it \
                 again. What is shown is what lies on disk"
            ),
            format!(
                "look at the process (`systemctl status closehook`, its log): it may be starting still, or be stopped; else restart it. \
                 See that nothing cleans up in {dir}"
            ),
        );
        return;
    }
    if !status.daemon.running {
        found.say(
            "no daemon is running: Close's deliveries are not answered",
            "start `closehook serve`, or `systemctl start closehook`",
        );
        return;
    }
    if !status.ready {
        let why = status.not_ready_because.as_deref().unwrap_or("it does not say why");
        let what_to_do = if why.contains("log.max_size") {
            "raise log.max_size, or see to the sinks that keep events (`closehook sinks list`)".to_owned()
        } else if status.stream.is_some() {
            "see to the servers of NATS that log.jetstream names, and to the way there".to_owned()
        } else if !status.nodes.is_empty() {
            "see that a majority of the servers in log.jetstream.servers runs, that they reach one another, and that their disks have room \
             (`closehook check --probe`)"
                .to_owned()
        } else {
            let dir = status.daemon.dir.display();
            format!("make room on the file system of {dir}, or see what is wrong with it")
        };
        found.say(
            format!("events can't be stored, and Close is told to send them again: {why}"),
            format!("{what_to_do}; it goes on by itself"),
        );
    }
    if let Some(why) = &status.log.keys_doubted {
        found.say(
            format!("deliveries that may be here already are answered 503: {why}"),
            format!(
                "it ends by itself, and Close sends them again; if it lasts, see that the disk of {} can be read and has room: the log says \
                 what keeps it (`journalctl -u closehook`)",
                status.daemon.dir.display()
            ),
        );
    }
    servers(status, found);
    if status.keys == 0 {
        found.say(
            "no signature key is known: every delivery is refused",
            "`closehook subscription apply` makes a subscription with a key, or name a key in [[close.subscriptions]]",
        );
    }
}

/// Servers of the log that are not there, although it goes on without them.
fn servers(status: &Status, found: &mut Found) {
    let Some(stream) = &status.stream else { return };
    let away: Vec<&str> = stream
        .servers
        .iter()
        .filter(|server| !server.alive)
        .map(|server| server.name.as_str())
        .collect();
    if status.ready && !away.is_empty() {
        found.say(
            format!(
                "of the log's servers {} can't be seen: what comes is on the others alone",
                away.join(", ")
            ),
            "see to the nats-server there before another one goes",
        );
    }
}

fn certificate(status: &Status, now: Timestamp, found: &mut Found) {
    let Some(certificate) = &status.certificate else { return };
    let failed = certificate.last_error.as_ref();
    let is_ordered = certificate.next_renewal.is_some();
    let what_failed = if is_ordered {
        "the last order failed"
    } else {
        "what its files hold now can't be used"
    };
    let failed = failed.map_or_else(String::new, |error| format!(": {what_failed}: {error}"));
    let remedy = if is_ordered {
        "see that the names lead here and port 443 can be reached; it is ordered again by itself, at once after `closehook reload`"
    } else {
        "renew the files that [server.tls] names; they are taken over by themselves"
    };
    match certificate.not_after {
        None => found.say(format!("there is no certificate yet{failed}"), remedy),
        Some(not_after) if not_after <= now => {
            found.say(format!("the certificate expired at {not_after:.0}{failed}"), remedy);
        }
        Some(not_after) if not_after.duration_since(now) < CERTIFICATE_SOON || !failed.is_empty() => {
            found.say(format!("the certificate expires at {not_after:.0}{failed}"), remedy);
        }
        Some(_) => {}
    }
}

/// What was refused that may well have been Close's.
fn refused(status: &Status, found: &mut Found) {
    let Some(received) = &status.received else { return };
    let count = |reason: &str| received.refused.get(reason).copied().unwrap_or_default();
    let lately = "in the last hour";
    let (stale, future) = (count("stale"), count("future"));
    if stale + future > 0 {
        let newest = received.clocks.last;
        let newest = newest.map_or_else(String::new, |newest| format!("; of the newest: {newest}"));
        found.say(
            format!(
                "{} refused {lately} for the time of signing alone, {stale} as too old and {future} as from the future{newest}",
                several(stale + future, "authentic delivery was", "authentic deliveries were")
            ),
            "set this machine's clock (`timedatectl`); what was refused comes again, or is fetched with `closehook backfill`",
        );
    } else if let Some(seconds) = status.clock_offset_seconds
        && seconds.abs() > CLOCK_OFF_SECONDS
    {
        found.say(
            format!("Close's clock is {} this machine's time", off(seconds)),
            "set this machine's clock (`timedatectl`): deliveries are refused when it is too far off",
        );
    }
    if count("wrong_subscription") > 0 {
        found.say(
            format!(
                "{} refused {lately}: signed with the key of another subscription",
                several(count("wrong_subscription"), "delivery was", "deliveries were")
            ),
            "`closehook subscription list` shows which there are; see `id` in [[close.subscriptions]]",
        );
    }
    if count("bad_signature") > 0 {
        found.say(
            format!(
                "{} refused {lately}: no known key signed {}",
                several(count("bad_signature"), "request was", "requests were"),
                if count("bad_signature") == 1 { "it" } else { "them" }
            ),
            "if they are Close's, a key is missing: `closehook subscription list` shows which subscriptions deliver here",
        );
    }
    let unavailable: u64 = received.unavailable.values().sum();
    if unavailable > 0 {
        found.say(
            format!(
                "{} answered 503 {lately}: they could not be stored just then",
                several(unavailable, "delivery was", "deliveries were")
            ),
            "Close sends them again; the log says why (`journalctl -u closehook`)",
        );
    }
    if received.quarantined > 0 {
        found.say_with(
            Next::Quarantined,
            format!(
                "{} put into quarantine {lately}: signed by Close, and no delivery that can be read",
                several(received.quarantined, "body was", "bodies were")
            ),
            "`closehook events list --quarantined` shows them",
        );
    }
}

/// The log and the disk.
fn kept(status: &Status, found: &mut Found) {
    for gap in status.log.gaps.iter().filter(|gap| !gap.skipped) {
        found.say_with(
            Next::Backfill,
            format!("{} are lost: {}", gap.told(), gap.reason),
            "`closehook backfill` fetches what Close still has, and sinks are given it again, whether or not they had it; then `closehook events verify`",
        );
    }
    if let Some(waits_for) = status
        .retention
        .as_ref()
        .and_then(|standing| standing.waits_for.as_ref())
    {
        found.say(
            format!("old events are kept longer than configured: {waits_for}"),
            "`closehook sinks list` shows which sink is behind; `closehook sinks forget` lets go of one that is removed",
        );
    }
    if let Some(waits_for) = status
        .retention
        .as_ref()
        .and_then(|standing| standing.waits_for_clock.as_ref())
    {
        found.say(
            format!("old events are kept until the time is known for sure: {waits_for}"),
            "look whether the time here is right (`timedatectl`); the next delivery, or answer of Close's API, tells it",
        );
    }
    if let Some(disk) = status.disk
        && disk.free_bytes < LITTLE_BYTES.min(disk.total_bytes / LITTLE_SHARE)
    {
        found.say(
            format!(
                "only {} of {} are free where the data directory is",
                Size(disk.free_bytes),
                Size(disk.total_bytes)
            ),
            format!(
                "make room beside {}, or set log.max_size or log.retention lower",
                status.daemon.dir.display()
            ),
        );
    }
}

fn sink(sink: &SinkStatus, found: &mut Found) {
    let name = sink.name.as_str();
    let resume = || Next::ResumeSink { of: name.to_owned() };
    if sink.paused {
        let waiting = match sink.lag_events {
            0 => String::new(),
            waiting => format!(", and {} for it", several(waiting, "event waits", "events wait")),
        };
        // Who has it go on says that they have seen this as well.
        let seen = sink.last_error.as_ref().filter(|_| sink.needs_person);
        let seen = seen.map_or_else(String::new, |error| format!("; {error}"));
        found.say_with(
            resume(),
            format!("sink {name} is paused{waiting}{seen}"),
            format!("`closehook sinks resume {name}`"),
        );
    } else if let Some(error) = sink.last_error.as_ref().filter(|_| is_troubled(sink)) {
        let at = sink
            .last_error_at
            .map_or_else(String::new, |at| format!(" (at {at:.0})"));
        let waits = sink.waits_for.as_ref().filter(|waits| !waits.contains(error.as_str()));
        let waits = waits.map_or_else(String::new, |waits| format!("; {waits}"));
        let error = sink
            .waits_for
            .as_ref()
            .filter(|waits| waits.contains(error.as_str()))
            .unwrap_or(error);
        let again = match sink.lag_events {
            0 => "it is tried again by itself".to_owned(),
            waiting => format!("{} tried again by itself", several(waiting, "event is", "events are")),
        };
        let remedy = if is_to_be_seen(sink) {
            format!("`closehook sinks resume {name}` says that somebody has seen to it")
        } else if is_about_room(error) {
            format!("make room on that file system (of this machine's, `df -h` shows the full one); {again}")
        } else if is_about_a_program(error) {
            format!(
                "correct it (`closehook render {name} --id EVENT` shows what it makes), then `closehook reload`; {again}"
            )
        } else {
            format!("put its receiver right (`closehook check --probe` tries it); {again}")
        };
        let next = is_to_be_seen(sink).then(resume);
        found.say_with(next, format!("sink {name}: {error}{at}{waits}"), remedy);
    } else if let Some(waits_for) = sink
        .waits_for
        .as_ref()
        .filter(|_| sink.late_seconds >= WAITS_LONG_SECONDS)
    {
        found.say(
            format!("sink {name} waits: {waits_for}"),
            "it goes on by itself; `closehook sinks list` shows how far it is",
        );
    }
    if let Some(trouble) = &sink.dead_trouble {
        found.say(
            format!("sink {name}: dead letters: {trouble}"),
            format!(
                "`closehook events show` says of which events it is not known any more whether they were delivered; \
                 `closehook replay --sink {name} --since TIME` sends them again"
            ),
        );
    }
    if sink.dead > 0 {
        found.say_with(
            Next::DeadLetters { of: name.to_owned() },
            format!("sink {name} has {}", several(sink.dead, "dead letter", "dead letters")),
            format!(
                "`closehook dead list --sink {name}` says why; then `closehook dead retry --sink {name} --all`, or dead drop"
            ),
        );
    }
}

/// Whether the newest failure is one that lasts: something waits, or somebody has to see to it. What failed and is over is a dead letter;
/// a breaker that is open then keeps nothing from going.
fn is_troubled(sink: &SinkStatus) -> bool {
    sink.lag_events > 0 || sink.waits_for.is_some() || sink.needs_person
}

/// Whether what is said of a sink asks somebody to see to it, and keeps it from nothing.
fn is_to_be_seen(sink: &SinkStatus) -> bool {
    sink.needs_person && sink.waits_for.is_none()
}

/// Whether an error is about a template or a transform of the configuration, as rendering words it.
fn is_about_a_program(error: &str) -> bool {
    let words = [
        "its template",
        "its transform",
        "the template of rule",
        "the transform of rule",
        "one of its templates",
    ];
    words.iter().any(|words| error.starts_with(words))
}

/// What is wrong with the dead letters of sinks that are not there any more.
fn removed(status: &Status, found: &mut Found) {
    for (sink, trouble) in &status.removed_sinks_damaged {
        found.say(
            format!("sink {sink}, which is not configured: dead letters: {trouble}"),
            format!(
                "if {sink} is to come back, configure it again: `closehook events show` then says of which events it is not known any more \
                 whether they were delivered; else `closehook sinks forget {sink}` lets go of it and of its dead letters"
            ),
        );
    }
}

/// What other sinks gave up for one that is not there any more.
fn stranded(status: &Status, found: &mut Found) {
    for (sink, count) in &status.stranded {
        found.say(
            format!(
                "{} for sink {sink}, which is not configured: other sinks gave up what it was to have",
                several(*count, "event waits", "events wait")
            ),
            format!(
                "configure {sink} again, and it gets them; or send them elsewhere: `closehook dead list --sink {sink}` says which they are, \
                 `closehook replay` sends them; `closehook sinks forget {sink}` drops them"
            ),
        );
    }
}

/// Whether an error is what this machine says of a full disk (ENOSPC, EDQUOT), or SQLite of it.
fn is_about_room(error: &str) -> bool {
    [
        "(os error 28)",
        "(os error 122)",
        "database or disk is full",
        "the disk is full",
    ]
    .iter()
    .any(|words| error.contains(words))
}

/// `1 event is`, `2 events are`.
fn several(count: u64, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// `20m ahead of`, `3h behind`.
fn off(seconds: i64) -> String {
    let span = Span::secs(seconds.unsigned_abs());
    if seconds > 0 {
        format!("{span} ahead of")
    } else {
        format!("{span} behind")
    }
}

#[cfg(test)]
mod tests;
