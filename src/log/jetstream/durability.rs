//! Whether an acknowledgement stands on a disk.
//!
//! It counts only where it stands on the disks of a majority: three replicas, on servers that sync each message (`sync_interval: always`).
//! Every server that keeps anything of the log is asked, at its monitoring address or with the system account's login; one that can't be
//! asked counts as one that does not.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::api::{self, Failure, Info};
use super::found::Found;
use super::key;
use super::link::{Link, Unanswered};
use super::settings::{BUCKETS, Options};
use crate::config::Durability;

/// The oldest server that has what is needed: atomic batches, and Raft groups that sync together.
const OLDEST: (u64, u64) = (2, 12);
use crate::net::http;

/// One server's answer takes no longer.
const PATIENCE: Duration = Duration::from_secs(20);

/// Servers are waited for so long that may have no more to say.
const ROLL_CALL: Duration = Duration::from_secs(2);

/// Who keeps what is asked no longer, while the log runs.
const ASK_WITHIN: Duration = Duration::from_secs(3);

/// What a server says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Server {
    version: String,
    syncs_always: bool,
}

/// The servers that keep anything of a log: each of its streams and buckets may be on others.
#[derive(Debug, Default)]
pub(super) struct Homes {
    names: BTreeSet<String>,
    /// Those of which a leader has not heard lately.
    away: BTreeSet<String>,
}

impl Homes {
    /// Those of one stream. A server that is alone says no name of its own there.
    pub fn add(&mut self, info: &Info) {
        let Some(peers) = &info.cluster else { return };
        let leader = Some(peers.leader.clone()).filter(|name| !name.is_empty());
        let others = peers.replicas.iter().map(|peer| peer.name.clone());
        self.names.extend(leader.into_iter().chain(others));
        self.away.extend(peers.away().into_iter().map(str::to_owned));
    }

    /// Those of the buckets that are there.
    pub async fn add_buckets(&mut self, link: &Link, options: &Options, until: Instant) -> Result<(), Failure> {
        for of in BUCKETS {
            let name = format!("KV_{}_{of}", options.stream);
            match api::info(link, &name, None, until).await {
                Ok(info) => self.add(&info),
                Err(Failure::Refused(refusal)) if refusal.is_absence() => {}
                Err(failure) => return Err(failure),
            }
        }
        Ok(())
    }
}

/// What is to be said of a server that is too old.
pub(super) fn too_old(who: &str, version: &str) -> Option<String> {
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

/// Whether each server that keeps anything syncs each message.
pub(super) async fn judge(homes: &Homes, options: &Options, found: &mut Found) {
    let Homes { names, away } = homes;
    let (servers, silent) = ask_servers(options).await;
    // Its cluster says within seconds that it is away, if it is.
    let may_have_gone = silent.is_some() && servers.len() * 2 > names.len();
    let mut doubts = Vec::new();
    let asked: Vec<(&str, Option<&Server>)> = if names.is_empty() {
        let alone = servers.iter().next();
        vec![alone.map_or(("the server", None), |(name, server)| (name.as_str(), Some(server)))]
    } else {
        names.iter().map(|name| (name.as_str(), servers.get(name))).collect()
    };
    for (name, server) in asked {
        match server {
            // It acknowledges nothing now: the others are a majority without it.
            None if away.contains(name) => found.warnings.push(format!(
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

/// Which of the servers that keep anything say that they do not sync each message, a sentence each; `None`: none does of those that can be
/// seen, and there are others now. One that says nothing now was asked before, or will be.
pub(super) async fn lazy_servers(link: &Link, options: &Options) -> Option<Vec<String>> {
    if options.durability == Durability::Unchecked {
        return Some(Vec::new());
    }
    let (mut homes, until) = (Homes::default(), Instant::now() + ASK_WITHIN);
    let (mut is_seen, mut are_all) = (false, true);
    let stream = &options.stream;
    for name in [stream.clone(), key::parts_stream(stream), key::dead_stream(stream)] {
        // What can't be seen now is seen with the next look.
        match api::info(link, &name, None, until).await {
            Ok(info) => {
                homes.add(&info);
                is_seen = true;
            }
            Err(failure) => are_all &= matches!(&failure, Failure::Refused(refusal) if refusal.is_absence()),
        }
    }
    if !is_seen {
        return None;
    }
    are_all &= homes.add_buckets(link, options, until).await.is_ok();
    let (servers, _) = ask_servers(options).await;
    judge_lazy(&homes, are_all, &servers)
}

/// What is seen is enough to say that one does not sync, and not that all do, unless `are_all` that keep anything, and each of them has
/// answered or is away: else a trouble would be over because nobody could look.
fn judge_lazy(homes: &Homes, are_all: bool, servers: &BTreeMap<String, Server>) -> Option<Vec<String>> {
    let Homes { names, away } = homes;
    // One that is alone says no name of its own.
    let is_one = |name: &String| names.is_empty() || names.contains(name);
    let keep_it = servers.iter().filter(|(name, _)| is_one(name));
    let lazy: Vec<String> = keep_it.filter_map(|(name, server)| lazy(name, server)).collect();
    let have_answered = if names.is_empty() {
        !servers.is_empty()
    } else {
        names
            .iter()
            .all(|name| servers.contains_key(name) || away.contains(name))
    };
    (!lazy.is_empty() || are_all && have_answered).then_some(lazy)
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
    fn that_none_is_lazy_is_said_only_where_all_are_seen() {
        let set = |names: &[&str]| {
            names
                .iter()
                .map(|name| (*name).to_owned())
                .collect::<BTreeSet<String>>()
        };
        let judged = |homes: &[&str], away: &[&str], are_all: bool, servers: &[(&str, bool)]| {
            let homes = Homes {
                names: set(homes),
                away: set(away),
            };
            let server = |(name, syncs_always): &(&str, bool)| {
                let version = "2.12.0".to_owned();
                let syncs_always = *syncs_always;
                ((*name).to_owned(), Server { version, syncs_always })
            };
            judge_lazy(&homes, are_all, &servers.iter().map(server).collect()).map(|lazy| lazy.len())
        };
        let all = ["a", "b", "c"];
        assert_eq!(
            judged(&all, &[], true, &[("a", true), ("b", true), ("c", true)]),
            Some(0)
        );
        assert_eq!(
            judged(&all, &[], true, &[("a", true), ("b", false), ("c", true)]),
            Some(1)
        );
        // A bucket may be on a fourth one.
        assert_eq!(judged(&all, &[], false, &[("a", true), ("b", true), ("c", true)]), None);
        assert_eq!(
            judged(&all, &[], false, &[("a", true), ("b", false), ("c", true)]),
            Some(1)
        );
        // The lazy one may be the one that does not answer; one that is away acknowledges nothing.
        assert_eq!(judged(&all, &[], true, &[("a", true), ("c", true)]), None);
        assert_eq!(judged(&all, &["b"], true, &[("a", true), ("c", true)]), Some(0));
        // What is on others is not this log's.
        assert_eq!(judged(&["a"], &[], true, &[("a", true), ("d", false)]), Some(0));
        // One that is alone.
        assert_eq!(judged(&[], &[], true, &[("a", false)]), Some(1));
        assert_eq!(judged(&[], &[], true, &[]), None);
    }

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
