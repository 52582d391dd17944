//! Whether servers and streams keep what is promised of them, and making the streams.
//!
//! An acknowledgement counts only where it stands on the disks of a majority: three replicas, on servers that sync each message
//! (`sync_interval: always`). Every server that has a replica is asked, at its monitoring address or with the system account's login; one
//! that can't be asked counts as one that does not.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::api::{self, Failure, Info};
use super::key;
use super::link::{Link, Unanswered};
use super::message::random_text;
use super::settings::Options;
use crate::config::Durability;
use crate::net::http;

/// All of a check takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers are waited for so long that may have no more to say.
const ROLL_CALL: Duration = Duration::from_secs(2);

/// The oldest server that has what is needed: atomic batches, and Raft groups that sync together.
const OLDEST: (u64, u64) = (2, 12);

/// A stream of more events than this needs a gigabyte of each server's memory.
const KEYS_MAX: u64 = 3_000_000;

/// What stands in the stream's metadata.
pub(super) const ID: &str = "closehook.id";
pub(super) const EPOCH: &str = "closehook.epoch";

/// Stands there instead while another log is copied into it: which log that is.
pub(super) const COPY: &str = "closehook.copy";

/// Stands there once the log was copied to somewhere else: where that is.
pub(super) const MOVED: &str = "closehook.moved";

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// What keeps closehook from serving, a sentence each.
    pub faults: Vec<String>,
    /// What weakens a promise that the user has let go, or will be too much one day; a sentence each.
    pub warnings: Vec<String>,
    /// What has to be known before anything is served, can't be seen now, and will be in a moment: of a server that has just gone its
    /// cluster has not noticed so yet. A sentence each.
    pub unseen: Vec<String>,
}

impl Found {
    /// As a person is told it, who does not wait.
    pub(super) fn into_said(mut self) -> Found {
        self.warnings.append(&mut self.unseen);
        self
    }
}

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
    let copied = || serde_json::from_str(&metadata(info, COPY)?).ok();
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
    let (mut main, mut letters) = (None, None);
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
    if let Some(info) = &main {
        judge_durability(info, options, &mut found).await;
    }
    Ok(Seen { found, main, letters })
}

fn too_old(who: &str, version: &str) -> Option<String> {
    let mut numbers = version
        .split(['.', '-'])
        .map(|number| number.parse::<u64>().unwrap_or_default());
    let version_is = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
    (version_is < OLDEST).then(|| {
        format!(
            "{who} is nats-server {version}, and {}.{} or newer is needed: upgrade it",
            OLDEST.0, OLDEST.1
        )
    })
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

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    version: String,
    syncs_always: bool,
}

/// Whether each server that has a replica syncs each message.
async fn judge_durability(info: &Info, options: &Options, found: &mut Found) {
    let mut names: Vec<String> = Vec::new();
    if let Some(peers) = &info.cluster {
        names.extend(Some(peers.leader.clone()).filter(|name| !name.is_empty()));
        names.extend(peers.replicas.iter().map(|peer| peer.name.clone()));
    }
    let (servers, silent) = ask_servers(options).await;
    // Its cluster says within seconds that it is away, if it is.
    let may_have_gone = silent.is_some() && servers.len() * 2 > names.len();
    let away = info.cluster.as_ref().map(api::Peers::away).unwrap_or_default();
    let mut doubts = Vec::new();
    // A server that is alone says no name of its own in what it says of the stream.
    let asked: Vec<(&str, Option<&Server>)> = if names.len() > 1 {
        names.iter().map(|name| (name.as_str(), servers.get(name))).collect()
    } else {
        let alone = servers.iter().next();
        vec![alone.map_or(("the server", None), |(name, server)| (name.as_str(), Some(server)))]
    };
    for (name, server) in asked {
        match server {
            // It acknowledges nothing now: the others are a majority without it.
            None if away.contains(&name) => found.warnings.push(format!(
                "the server {name} is not running; whether it syncs each message is looked at when it is back"
            )),
            None if may_have_gone => found.unseen.push(format!(
                "whether {name} syncs each message can't be seen now{}: it is waited for, or for the word that it is away",
                silent.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
            )),
            None => doubts.push(format!(
                "whether {name} syncs each message can't be seen{}: name its monitoring address in log.jetstream.monitor, or a login of the system account in log.jetstream.system",
                silent.as_ref().map(|why| format!(" ({why})")).unwrap_or_default()
            )),
            Some(server) => {
                found.faults.extend(too_old(name, &server.version));
                doubts.extend(lazy(name, server));
            }
        }
    }
    if options.replicas == 1 {
        found.warnings.push(
            "log.jetstream.replicas is 1: one server holds everything, and there is no other when it is lost; that is for trying out, engine = \"local\" is ten times faster and safer".into(),
        );
    }
    match options.durability {
        Durability::Checked => found.faults.extend(doubts),
        Durability::Unchecked => {
            found.warnings.append(&mut found.unseen);
            found.warnings.extend(doubts);
        }
    }
}

fn lazy(name: &str, server: &Server) -> Option<String> {
    (!server.syncs_always).then(|| {
        format!(
            "{name} acknowledges events that a power cut takes, and with them the whole stream: set sync_interval: always in its jetstream block"
        )
    })
}

/// Which of the stream's servers say that they do not sync each message, a sentence each. One that says nothing now was asked before, or
/// will be.
pub(super) async fn lazy_servers(info: &Info, options: &Options) -> Vec<String> {
    if options.durability == Durability::Unchecked {
        return Vec::new();
    }
    let Some(peers) = &info.cluster else {
        return Vec::new();
    };
    let (servers, _) = ask_servers(options).await;
    let of_stream = servers.iter().filter(|(name, _)| peers.have(name));
    of_stream.filter_map(|(name, server)| lazy(name, server)).collect()
}

/// What servers say of themselves, by name; and why one says nothing.
async fn ask_servers(options: &Options) -> (BTreeMap<String, Server>, Option<String>) {
    let (mut servers, mut silent) = (BTreeMap::new(), None);
    for address in &options.monitor {
        match ask_monitor(address).await {
            Ok((name, server)) => drop(servers.insert(name, server)),
            Err(why) => silent = Some(format!("{address}: {why}")),
        }
    }
    if let Some(way) = &options.system {
        let link = Link::new(way.clone(), key::head(&options.stream), mpsc::channel(1).0);
        match roll_call(&link).await {
            Ok(found) => servers.extend(found),
            Err(why) => silent = Some(format!("as the system account: {why}")),
        }
        link.close().await;
    }
    (servers, silent)
}

#[derive(Deserialize)]
struct Varz {
    server_name: String,
    version: String,
    #[serde(default)]
    jetstream: Value,
}

/// By its monitoring address.
async fn ask_monitor(address: &str) -> Result<(String, Server), String> {
    let text = |error: reqwest::Error| http::root_cause(&error);
    let client = http::builder(Duration::from_secs(5)).build().map_err(text)?;
    let url = format!("{}/varz", address.trim_end_matches('/'));
    let answer = client.get(url).send().await.map_err(text)?;
    let body = http_body(answer).await?;
    let varz: Varz =
        serde_json::from_slice(&body).map_err(|_| "that is no nats-server's monitoring address".to_owned())?;
    let server = Server {
        syncs_always: varz.jetstream["config"]["sync_always"] == true,
        version: varz.version,
    };
    Ok((varz.server_name, server))
}

/// No server says more of itself.
const BODY_MAX: usize = 1 << 20;

async fn http_body(mut answer: reqwest::Response) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    while let Some(piece) = answer.chunk().await.map_err(|error| http::root_cause(&error))? {
        body.extend_from_slice(&piece);
        if body.len() > BODY_MAX {
            return Err("it says too much".into());
        }
    }
    Ok(body)
}

/// With the system account's login all servers answer one question.
async fn roll_call(link: &Link) -> Result<BTreeMap<String, Server>, String> {
    let asked = link.line(Instant::now() + PATIENCE).await;
    let asked = asked.map_err(|why| why.to_string())?;
    let mut servers = BTreeMap::new();
    let mut take = |message: async_nats::Message| {
        if let Ok(answer) = serde_json::from_slice::<Value>(&message.payload)
            && let (Some(name), Some(version)) = (answer["server"]["name"].as_str(), answer["server"]["ver"].as_str())
        {
            let found = Server {
                version: version.to_owned(),
                syncs_always: answer["data"]["config"]["sync_always"] == true,
            };
            servers.insert(name.to_owned(), found);
        }
        false
    };
    // How many there are nobody says.
    let until = Instant::now() + ROLL_CALL;
    match asked
        .ask_many(
            "$SYS.REQ.SERVER.PING.JSZ",
            "{}".into(),
            BODY_MAX as u64,
            until,
            &mut take,
        )
        .await
    {
        Ok(()) | Err(Unanswered::Late) => Ok(servers),
        Err(why) => Err(why.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_too_old_by_its_numbers() {
        for (version, is_old) in [
            ("2.12.0", false),
            ("2.12.1-RC.3", false),
            ("2.15.1", false),
            ("3.0.0", false),
            ("2.11.9", true),
            ("2.9.25", true),
            ("", true),
        ] {
            assert_eq!(too_old("it", version).is_some(), is_old, "{version}");
        }
    }
}
