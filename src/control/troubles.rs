//! What asks for somebody's attention, the most urgent first, each with what to do about it. A pure function of the status, so that
//! every line of it can be tried without bringing the trouble about.

use jiff::{SignedDuration, Timestamp};

use super::status::{Next, Status, Trouble};
use crate::close::{Condition, FieldsStatus, FoundSubscription};
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
    close(status, &mut found);
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

fn close(status: &Status, found: &mut Found) {
    let close = &status.close;
    for one in &close.damaged {
        found.say(one.what.as_str(), one.remedy.as_str());
    }
    if !close.configured {
        return;
    }
    if status.daemon.running && !status.nodes.is_empty() && close.looked_after_by.is_none() {
        found.say(
            "no node looks after Close's side now: its subscriptions are not seen to, and nothing is compared",
            "one that lives takes it over by itself, if node.roles lets it (\"close\")",
        );
    }
    if let Some(trouble) = &close.trouble {
        let again = close.tried_again_at;
        let again = again.map_or_else(
            || "it is tried again by itself".to_owned(),
            |at| format!("it is tried again at {at:.0}"),
        );
        found.say(
            format!("Close's API can't be used: {trouble}"),
            format!("`closehook check --probe` tries it; {again}; until then nothing is compared and no subscription is looked after"),
        );
    }
    if let Some(seconds) = close.overdue_seconds {
        found.say(
            format!(
                "Close's side was last looked at {} ago, several times close.health.interval: what was begun then does not end",
                Span::secs(seconds)
            ),
            "the log says what it waits for (`journalctl -u closehook`), `closehook check --probe` tries Close; if neither helps, restart \
             closehook. Until then no subscription is looked after and nothing is compared",
        );
    }
    if let Some(why) = &close.token_unsaved {
        found.say(
            format!("the newest OAuth refresh token can't be written where it belongs: {why}"),
            "put that right before closehook stops, or the app may have to be authorized again; it is tried again by itself",
        );
    }
    if let Some(silence) = close.silence {
        let since = silence
            .last_delivery
            .map_or_else(|| "so far".to_owned(), |at| format!("since {at:.0}"));
        found.say(
            format!(
                "Close has delivered nothing {since}, although there was an event at {:.0}",
                silence.newest_event
            ),
            "check that Close can reach `public_url`; meanwhile events are fetched",
        );
    }
    for one in &close.subscriptions {
        subscription(one, found);
    }
    if let Some(fields) = &close.custom_fields {
        names(fields, found);
    }
    if let Some(trouble) = close.backfill.as_ref().and_then(|job| job.job.trouble.as_ref()) {
        found.say(
            format!("the backfill does not get on: {trouble}"),
            "it is tried again by itself; `closehook backfill --resume` watches it",
        );
    }
    if let Some(held) = close
        .held
        .as_ref()
        .filter(|held| held.events > 0 && !held.are_dispatched)
    {
        let least = if held.is_counted { "" } else { "at least " };
        let oldest = held
            .oldest
            .map_or_else(String::new, |oldest| format!(", from {oldest:.0} on"));
        found.say(
            format!(
                "{least}{} held{oldest}: Close withholds their data from this key",
                several(held.events, "event is", "events are"),
            ),
            "use the API key of an administrator and `closehook reload`, or send them as they are with close.partial = \"dispatch\"",
        );
    }
}

/// What custom fields are called.
fn names(fields: &FieldsStatus, found: &mut Found) {
    let remedy = "`closehook check --probe` tries it; it is fetched again by itself";
    match (fields.fetched_at, &fields.trouble) {
        (None, Some(trouble)) => found.say(
            format!("the names of custom fields are not known, and sinks whose templates use `named` wait for them: {trouble}"),
            remedy,
        ),
        (Some(at), trouble) if fields.is_old => {
            let why = trouble.as_ref();
            let why = why.map_or_else(|| "no daemon has fetched them since".to_owned(), ToString::to_string);
            found.say(format!("custom fields are called as they were at {at:.0}: {why}"), remedy);
        }
        _ => {}
    }
    if let Some(lacking) = &fields.lacking {
        found.say(
            format!("the names of some custom fields can't be fetched: {lacking}"),
            "where a template wants one of these (`named`) its sink waits; it is fetched again by itself",
        );
    }
}

fn subscription(one: &FoundSubscription, found: &mut Found) {
    let id = one.id.as_str();
    let resume = format!("`closehook subscription resume {id}`");
    match one.state {
        Condition::Paused => {
            let reason = one.pause_reason.as_deref().unwrap_or("it does not say why");
            let again = one.trouble.as_ref();
            let again = again.map_or_else(String::new, |trouble| {
                format!(", and it can't be made active again: {trouble}")
            });
            found.say(
                format!("Close has paused the subscription {id} ({reason}){again}"),
                format!("put right what it names, then {resume}; what was missed is fetched"),
            );
        }
        Condition::PausedByHand => {
            let next = Next::ResumeSubscription { of: id.to_owned() };
            found.say_with(next, format!("the subscription {id} is paused, as somebody wanted"), resume);
        }
        Condition::PausedBySomebody => found.say(
            format!("somebody has paused the subscription {id} at Close"),
            format!("ask who, or {resume}; meanwhile events are only fetched"),
        ),
        Condition::Missing => found.say(
            format!("Close does not have the subscription {id} any more"),
            "`closehook subscription apply` makes it anew, or takes its key out of use where another one delivers here",
        ),
        Condition::Gone => found.say(
            format!(
                "[[close.subscriptions]] names the subscription {id}, which Close does not have any more, and another one delivers here"
            ),
            "remove it from the configuration, then `closehook reload`",
        ),
        Condition::Elsewhere => found.say(
            format!(
                "the subscription {id} delivers elsewhere: {}",
                one.url.as_deref().unwrap_or_default()
            ),
            "`closehook subscription plan` shows the difference",
        ),
        Condition::Keyless => found.say(
            format!("the subscription {id} delivers here, and its key is not known: its deliveries are refused"),
            format!(
                "name its key in [[close.subscriptions]], or, if nobody needs it, `closehook subscription delete {id}`; where Close has no \
                 two that ask for the same, `closehook subscription apply` replaces it"
            ),
        ),
        Condition::Active | Condition::BeingReplaced => {}
    }
    if one.state == Condition::Active
        && let Some(error) = &one.latest_error
    {
        found.say(
            format!("Close says that deliveries of {id} fail: {error}"),
            "check that it can reach `public_url` (`closehook check --probe`, the proxy's log); it tries again for three days",
        );
    }
    if one.verify_ssl == Some(false) {
        found.say(
            format!("the subscription {id} has verify_ssl off: Close does not check whose certificate it sees"),
            format!(
                "if Close can check the certificate: `closehook subscription delete {id}`, then `closehook subscription apply` makes one that does"
            ),
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
