//! Whether servers and streams keep what is promised of them, and making the streams.
//!
//! Of the servers themselves, `durability` sees to that.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::api::{self, Failure, Info};
use super::durability::{self, Homes, too_old};
use super::key;
use super::link::Link;
use super::message::random_text;
use super::settings::Options;

pub use super::found::Found;

/// All of a check takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// A stream of more events than this needs a gigabyte of each server's memory.
const KEYS_MAX: u64 = 3_000_000;

/// What stands in the stream's metadata.
pub(super) const ID: &str = "closehook.id";
pub(super) const EPOCH: &str = "closehook.epoch";

/// Stands there instead while another log is copied into it: which log that is.
pub(super) const COPY: &str = "closehook.copy";

/// Stands there once the log was copied to somewhere else: where that is.
pub(super) const MOVED: &str = "closehook.moved";

/// What stands in a stream's metadata under a name.
pub(super) fn metadata(info: &Info, name: &str) -> Option<String> {
    info.config["metadata"][name].as_str().map(str::to_owned)
}

/// Id and epoch of a stream that holds a log; `None`: nothing of closehook's made it, or nobody is to serve it (any more, or yet).
pub(super) fn identity(info: &Info) -> Option<(String, String)> {
    let may_serve = [COPY, MOVED].iter().all(|name| metadata(info, name).is_none());
    Some((metadata(info, ID)?, metadata(info, EPOCH)?)).filter(|_| may_serve)
}

/// Why nobody is to serve it, one sentence.
fn judge_identity(name: &str, info: &Info) -> Option<String> {
    if metadata(info, COPY).is_some() {
        return Some(format!(
            "the stream {name} does not hold all of the log yet that is copied into it: run `closehook log copy --to jetstream` again, it goes on where it was"
        ));
    }
    if let Some(place) = metadata(info, MOVED) {
        return Some(format!(
            "the log of the stream {name} was copied to {place}, and goes on there: set log.engine = \"local\" on that machine, or run `closehook log reopen` to have it served here again"
        ));
    }
    let is_ours = identity(info).is_some();
    (!is_ours).then(|| {
        format!("the stream {name} was not made by closehook: its metadata lack closehook.id and closehook.epoch")
    })
}

fn stream_config(options: &Options, metadata: &Value) -> Value {
    let stream = &options.stream;
    json!({
        "name": stream, "subjects": [key::events(stream), key::erasures(stream)], "description": "closehook: events",
        "storage": "file", "retention": "limits", "num_replicas": options.replicas,
        "discard": "new", "discard_new_per_subject": true, "max_msgs_per_subject": 1,
        "max_msgs": -1, "max_bytes": options.max_bytes.map_or(-1, |bytes| bytes as i64), "max_age": 0, "max_msg_size": -1,
        "max_consumers": -1, "allow_direct": true, "allow_atomic": true,
        "metadata": metadata,
    })
}

fn parts_config(options: &Options) -> Value {
    let stream = key::parts_stream(&options.stream);
    json!({
        "name": stream, "subjects": [format!("{stream}.>")], "description": "closehook: pieces of long bodies",
        "storage": "file", "retention": "limits", "num_replicas": options.replicas, "discard": "new",
        "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "max_consumers": -1, "allow_direct": true,
    })
}

fn dead_config(options: &Options, log_id: Option<&str>) -> Value {
    let stream = key::dead_stream(&options.stream);
    json!({
        "name": stream, "subjects": [format!("{stream}.>")], "description": "closehook: dead letters",
        "storage": "file", "retention": "limits", "num_replicas": options.replicas, "discard": "new",
        "max_msgs_per_subject": -1, "max_msgs": -1, "max_bytes": -1, "max_age": 0, "max_msg_size": -1, "max_consumers": -1,
        "allow_direct": true, "allow_atomic": true,
        "metadata": log_id.map_or_else(|| json!({}), |id| json!({ ID: id })),
    })
}

/// Whose log a stream holds, or is to hold once all of it is there.
fn log_id(info: &Info) -> Option<String> {
    #[derive(Deserialize)]
    struct Copied {
        id: String,
    }
    let copied = || serde_json::from_slice(metadata(info, COPY)?.as_bytes()).ok();
    metadata(info, ID).or_else(|| copied().map(|copied: Copied| copied.id))
}

/// Letters of another log have its Seqs: what is at those here are other events.
fn judge_letters(options: &Options, main: &Info, dead: &Info) -> Option<String> {
    let (name, stream) = (key::dead_stream(&options.stream), &options.stream);
    let (ours, of) = (log_id(main)?, metadata(dead, ID)?);
    (ours != of).then(|| {
        format!(
            "the stream {name} holds dead letters of another log than {stream}: name another stream (log.jetstream.stream), or, where nobody needs them any more, remove {name} and make it anew with `closehook check --create`"
        )
    })
}

/// A link for a look, which hears of nothing.
pub(super) fn link(options: &Options) -> Link {
    Link::new(options.way.clone(), key::head(&options.stream), mpsc::channel(1).0)
}

/// Makes the streams that are missing; gives their names. One that is there stays as it is. An error is one sentence.
pub async fn create(options: &Options) -> Result<Vec<String>, String> {
    let link = link(options);
    let made = make(&link, options, &json!({ ID: random_text(), EPOCH: random_text() })).await;
    link.close().await;
    made.map_err(|failure| failure.to_string())
}

/// The same by an open link, with what is to stand in a new stream's metadata.
pub(super) async fn make(link: &Link, options: &Options, metadata: &Value) -> Result<Vec<String>, Failure> {
    let until = Instant::now() + PATIENCE;
    let mut made = Vec::new();
    for config in [stream_config(options, metadata), parts_config(options)] {
        made.extend(make_one(link, &config, until).await?);
    }
    // Another node may have been faster with the log's.
    let main = api::info(link, &options.stream, None, until).await?;
    let dead = dead_config(options, log_id(&main).as_deref());
    made.extend(make_one(link, &dead, until).await?);
    Ok(made)
}

/// Makes a stream if it is missing; gives its name then.
async fn make_one(link: &Link, config: &Value, until: Instant) -> Result<Option<String>, Failure> {
    let name = config["name"].as_str().unwrap_or_default().to_owned();
    match api::info(link, &name, None, until).await {
        Ok(_) => return Ok(None),
        Err(Failure::Refused(refusal)) if refusal.is_absence() => {}
        Err(failure) => return Err(failure),
    }
    match api::ask(link, &format!("STREAM.CREATE.{name}"), config, until).await {
        Ok(_) => Ok(Some(name)),
        // Another node was faster.
        Err(Failure::Refused(refusal)) if refusal.is_of(&[10058]) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Looks at everything; an error says why nothing can be seen.
pub async fn look(options: &Options) -> Result<Found, String> {
    let link = link(options);
    let found = look_by(&link, options).await;
    link.close().await;
    found
        .map(|(found, _)| found.into_said())
        .map_err(|failure| failure.to_string())
}

/// The same by an open link; with the stream as it is, if it is there.
pub(super) async fn look_by(link: &Link, options: &Options) -> Result<(Found, Option<Info>), Failure> {
    let Seen {
        mut found,
        main,
        letters,
    } = look_whoever_serves(link, options).await?;
    let of = main.as_ref().and_then(|info| judge_identity(&options.stream, info));
    let both = main.as_ref().zip(letters.as_ref());
    let letters = both.and_then(|(main, letters)| judge_letters(options, main, letters));
    found.faults.extend(of.into_iter().chain(letters));
    Ok((found, main))
}

/// What was found, and the streams that are there.
pub(super) struct Seen {
    pub found: Found,
    pub main: Option<Info>,
    /// That of dead letters.
    pub letters: Option<Info>,
}

/// The same, whether or not the stream is to be served.
pub(super) async fn look_whoever_serves(link: &Link, options: &Options) -> Result<Seen, Failure> {
    let until = Instant::now() + PATIENCE;
    let mut found = Found::default();
    let version = link.line(until).await.map_err(Failure::Unanswered)?.version();
    found.faults.extend(too_old("the server", &version));
    let (mut main, mut letters, mut homes) = (None, None, Homes::default());
    let (parts, dead) = (key::parts_stream(&options.stream), key::dead_stream(&options.stream));
    let streams = [
        (options.stream.as_str(), Part::Events),
        (parts.as_str(), Part::Pieces),
        (dead.as_str(), Part::Dead),
    ];
    for (name, part) in streams {
        match api::info(link, name, None, until).await {
            Ok(info) => {
                judge_stream(name, part, &info, options, &mut found);
                homes.add(&info);
                match part {
                    Part::Events => main = Some(info),
                    Part::Dead => letters = Some(info),
                    Part::Pieces => {}
                }
            }
            Err(Failure::Refused(refusal)) if refusal.is_absence() => found.faults.push(format!(
                "there is no stream {name}: make it with `closehook check --create`"
            )),
            Err(failure) => return Err(failure),
        }
    }
    if main.is_some() {
        homes.add_buckets(link, options, until).await?;
        durability::judge(&homes, options, &mut found).await;
    }
    Ok(Seen { found, main, letters })
}

/// Why a stream that was opened as this log is not to be used as it any more, one sentence.
pub(super) fn judge_again(options: &Options, info: &Info, id: &str, epoch: &str) -> Option<String> {
    let name = &options.stream;
    if metadata(info, MOVED).is_none()
        && metadata(info, COPY).is_none()
        && let (Some(found), Some(life)) = (metadata(info, ID), metadata(info, EPOCH))
    {
        if found != id {
            return Some(format!(
                "the stream {name} is another log than it was when this node began: restart this node, if that is meant"
            ));
        }
        return (life != epoch).then(|| {
            format!(
                "the log of the stream {name} has begun another life since this node began: restart this node, if that is meant"
            )
        });
    }
    judge_identity(name, info)
}

/// Which settings of the stream of events weaken what is promised, a sentence each.
pub(super) fn weaknesses(options: &Options, info: &Info) -> Vec<String> {
    let mut found = Found::default();
    judge_stream(&options.stream, Part::Events, info, options, &mut found);
    found.faults
}

/// What a stream is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Part {
    Events,
    Pieces,
    Dead,
}

/// Every setting of a stream that weakens what is promised.
fn judge_stream(name: &str, part: Part, info: &Info, options: &Options, found: &mut Found) {
    let replicas = info.config["num_replicas"].as_i64().unwrap_or_default();
    let mut wrong: Vec<String> = Vec::new();
    if replicas < options.replicas as i64 {
        let wanted = options.replicas;
        wrong.push(format!(
            "is on {replicas} server(s), and has to be on {wanted}: nats stream edit {name} --replicas {wanted}"
        ));
    }
    let mut rules = of_any_stream(&info.config).to_vec();
    rules.extend(match part {
        Part::Events => of_events(&info.config).to_vec(),
        Part::Dead => of_dead_letters(&info.config).to_vec(),
        Part::Pieces => Vec::new(),
    });
    let broken = rules.into_iter().filter(|(holds, _)| !holds);
    wrong.extend(broken.map(|(_, what)| what.to_owned()));
    let wanted = match part {
        Part::Events if metadata(info, MOVED).is_some() => Vec::new(),
        Part::Events => vec![key::events(name), key::erasures(name)],
        Part::Pieces | Part::Dead => vec![format!("{name}.>")],
    };
    let has = |subject: &String| {
        let all = info.config["subjects"].as_array();
        all.is_some_and(|all| all.iter().any(|one| one == subject))
    };
    if !wanted.iter().all(has) {
        wrong.push(format!("lacks a subject: set subjects to {}", wanted.join(" and ")));
    }
    let faults = wrong.into_iter().map(|what| format!("the stream {name} {what}"));
    found.faults.extend(faults);
    let keys = info.state.messages;
    if part == Part::Events && keys > KEYS_MAX / 4 * 3 {
        found.warnings.push(format!(
            "the stream {name} holds {keys} events: more than {KEYS_MAX} take a gigabyte of each server's memory; keep them for a shorter time"
        ));
    }
}

/// What must hold, and what the stream does where it does not.
type Rule = (bool, &'static str);

/// A number that a stream's configuration may leave out.
fn number(config: &Value, key: &str) -> i64 {
    config[key].as_i64().unwrap_or_default()
}

fn of_any_stream(config: &Value) -> [Rule; 13] {
    let persists = config["persist_mode"].as_str();
    [
        (
            config["storage"] == "file",
            "is kept in memory: it has to be made anew with storage = file",
        ),
        (
            config["retention"] == "limits",
            "gives events up when somebody has read them: it has to be made anew with retention = limits",
        ),
        (
            config["discard"] == "new",
            "drops old events for new ones at its limits: set discard = new",
        ),
        (
            number(config, "max_age") == 0,
            "drops events by their age (max_age): set it to 0, closehook drops them when every sink is done",
        ),
        (
            number(config, "max_msgs") <= 0,
            "holds a fixed number of events (max_msgs): set it to -1",
        ),
        (
            number(config, "max_msg_size") <= 0,
            "refuses long events (max_msg_size): set it to -1",
        ),
        (
            config["no_ack"] != true,
            "acknowledges nothing (no_ack): set it to false",
        ),
        (config["sealed"] != true, "is sealed: it takes nothing any more"),
        (
            config["deny_delete"] != true && config["deny_purge"] != true,
            "lets nothing be removed (deny_delete, deny_purge): it has to be made anew",
        ),
        (
            config["allow_direct"] == true,
            "lets only its leader be read: set allow_direct = true",
        ),
        (
            persists.is_none_or(|mode| mode == "default"),
            "acknowledges before it has written (persist_mode): it has to be made anew",
        ),
        (
            config["mirror"].is_null() && config["sources"].is_null(),
            "takes events from other streams (mirror, sources): it has to be made anew",
        ),
        (
            config["subject_transform"].is_null(),
            "changes subjects (subject_transform): take that away",
        ),
    ]
}

/// A batch of events is one that is taken whole.
const TAKES_NO_BATCHES: &str = "takes no batches: set allow_atomic = true";

fn of_events(config: &Value) -> [Rule; 2] {
    [
        (
            number(config, "max_msgs_per_subject") == 1 && config["discard_new_per_subject"] == true,
            "may take an event twice, or drop the first: set max_msgs_per_subject = 1 and discard_new_per_subject = true",
        ),
        (config["allow_atomic"] == true, TAKES_NO_BATCHES),
    ]
}

fn of_dead_letters(config: &Value) -> [Rule; 2] {
    [
        (
            number(config, "max_msgs_per_subject") <= 0,
            "drops what is known of a dead letter (max_msgs_per_subject): set it to -1",
        ),
        (config["allow_atomic"] == true, TAKES_NO_BATCHES),
    ]
}
