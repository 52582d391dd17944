//! What every sink does alike: it is exchanged for another one in the middle of what comes, and a receiver that takes its time has as many
//! calls at once as `concurrency` says, holds up nobody else, and gets each event once.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::aws_server::{Moody, REGION, Stack};
use crate::campaign;
use crate::harness::{Daemon, Receiver, lines_in, until};
use crate::sinks_aws_queues::{Queues, SINKS, key};
use crate::web::{Answer, Web};
use crate::{
    kafka_server, postgres_server, rabbit_server, sinks_amqp, sinks_aws, sinks_email, sinks_kafka, sinks_nats,
    sinks_pubsub, sinks_slack, sinks_sql, smtp_server,
};

/// Stands between the daemon and a server: what the server says stays here while it holds.
struct Held {
    port: u16,
    holds: watch::Sender<bool>,
}

impl Held {
    async fn start(server: u16) -> Held {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (holds, held) = watch::channel(false);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(Held::carry(near, server, held.clone()));
            }
        });
        Held { port, holds }
    }

    async fn carry(near: TcpStream, server: u16, mut held: watch::Receiver<bool>) -> std::io::Result<()> {
        use tokio::io::AsyncReadExt as _;
        let far = TcpStream::connect(("127.0.0.1", server)).await?;
        let (mut near_in, mut near_out) = near.into_split();
        let (mut far_in, mut far_out) = far.into_split();
        let back = tokio::spawn(async move {
            let mut buffer = vec![0; 64 << 10];
            loop {
                let len = far_in.read(&mut buffer).await?;
                let is_over = held.wait_for(|holds| !holds).await.is_err();
                if len == 0 || is_over {
                    return std::io::Result::Ok(());
                }
                near_out.write_all(&buffer[..len]).await?;
            }
        });
        tokio::io::copy(&mut near_in, &mut far_out).await?;
        back.abort();
        Ok(())
    }

    fn hold(&self, holds: bool) {
        self.holds.send_replace(holds);
    }
}

/// So that there are as many calls as events on their way.
const FEW: &str = "batch = { events = 1 }\n";

/// So many events are stored while a receiver takes its time.
const EVENTS: RangeInclusive<u64> = 2..=150;

/// A receiver takes its time: `most` events are on their way to each of the sinks, and no more, while all go to another sink. Then each
/// of them is done.
async fn takes_its_time(daemon: &mut Daemon, config: &str, sinks: &[(&str, u64)], hold: impl Fn(bool)) {
    let file = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/all.jsonl\"\nstart = \"beginning\"\n";
    // Whoever gives up is another matter.
    let patient = config
        .replace("timeout = \"4s\"", "timeout = \"60s\"")
        .replace("timeout = \"5s\"", "timeout = \"60s\"")
        .replace("timeout = \"10s\"", "timeout = \"60s\"");
    daemon.configure(&format!("{patient}{file}"));
    daemon.run().await;
    daemon.store(1..=1).await;
    for (sink, _) in sinks {
        daemon.done(sink).await;
    }
    hold(true);
    daemon.store(EVENTS).await;
    until("the others go on", async || {
        lines_in(&daemon.path("all.jsonl")).len() as u64 == *EVENTS.end()
    })
    .await;
    for (sink, most) in sinks {
        until(&format!("{most} are on their way to {sink}"), async || {
            daemon.sink(sink)["in_flight"] == *most
        })
        .await;
        let shown = daemon.sink(sink);
        assert_eq!((&shown["delivered"], &shown["dead"]), (&json!(1), &json!(0)), "{shown}");
    }
    hold(false);
    for (sink, _) in sinks {
        daemon.done(sink).await;
        let shown = daemon.sink(sink);
        assert_eq!((&shown["dead"], &shown["retrying"]), (&json!(0), &json!(0)), "{shown}");
    }
}

/// What came, by the Seq or id of each: all of them, and each once.
fn assert_each_once<K: Ord + std::fmt::Debug>(came: impl IntoIterator<Item = K>, all: impl IntoIterator<Item = K>) {
    let mut times: BTreeMap<K, usize> = BTreeMap::new();
    for one in came {
        *times.entry(one).or_default() += 1;
    }
    let twice: Vec<_> = times.iter().filter(|(_, times)| **times > 1).collect();
    assert_eq!(twice, [], "none twice");
    let all: BTreeSet<K> = all.into_iter().collect();
    assert_eq!(times.into_keys().collect::<BTreeSet<K>>(), all, "each");
}

fn seqs(by_seq: &BTreeMap<u64, u64>) -> impl Iterator<Item = u64> {
    by_seq.keys().copied()
}

/// With other batches each round.
fn other(config: &str, round: usize) -> String {
    let events = [500, 7, 100, 1, 50, 9][round];
    format!("{config}batch = {{ events = {events} }}\n")
}

/// With another timeout each round.
fn otherwise(config: &str, round: usize) -> String {
    config.replace("timeout = \"4s\"", &format!("timeout = \"{}s\"", 4 + round))
}

fn web_seqs(web: &Web) -> Vec<u64> {
    let asked = web.asked();
    asked
        .iter()
        .map(|asked| asked.header("closehook-seq").parse().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn postgres_and_sqlite_have_each_event_once_though_their_sinks_are_exchanged() {
    let Some(server) = postgres_server::Server::start("").await else {
        return;
    };
    server.sql(sinks_sql::TAKEN).await;
    let url = server.url();
    let mut daemon = Daemon::new("");
    let by_seq = campaign::reloads(&mut daemon, "db", |round| otherwise(&sinks_sql::postgres(&url), round)).await;
    sinks_sql::assert_once(&sinks_sql::postgres_rows(&server).await, &by_seq);
    daemon.stop().await;
    let mut daemon = Daemon::new("");
    let path = daemon.path("events.db");
    let by_seq = campaign::reloads(&mut daemon, "db", |round| otherwise(&sinks_sql::sqlite(&path), round)).await;
    daemon.stop().await;
    sinks_sql::assert_once(&sinks_sql::sqlite_rows(&path), &by_seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn s3_has_each_event_once_though_its_sink_is_exchanged() {
    let Some(stack) = Stack::start().await else { return };
    let config =
        |round: usize| sinks_aws::s3(&stack.url()).replace("events = 300", &format!("events = {}", 20 + 30 * round));
    let mut daemon = Daemon::new("");
    let by_seq = campaign::reloads(&mut daemon, "archive", config).await;
    daemon.stop().await;
    sinks_aws::assert_once(&stack.lines(), &by_seq);
}

#[tokio::test(flavor = "multi_thread")]
async fn kafka_has_each_event_once_though_its_sink_is_exchanged() {
    for more in ["", sinks_kafka::EXACT] {
        let Some((broker, mut daemon)) = sinks_kafka::start(more).await else {
            return;
        };
        let config = |round| other(&sinks_kafka::sink(&broker, more), round);
        let by_seq = campaign::reloads(&mut daemon, "stream", config).await;
        sinks_kafka::assert_once(&broker.committed("close").await, &by_seq);
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_email_and_pubsub_have_each_event_once_though_their_sinks_are_exchanged() {
    let receiver = Receiver::start(200).await;
    let mut daemon = Daemon::new("");
    let by_seq = campaign::reloads(&mut daemon, "web", |round| {
        web(&receiver.url, &format!("concurrency = {}\n", round + 1))
    })
    .await;
    daemon.stop().await;
    let came: Vec<u64> = {
        let received = receiver.received.lock().unwrap();
        let seq = |headers: &reqwest::header::HeaderMap| headers["closehook-seq"].to_str().unwrap().parse().unwrap();
        received.iter().map(|(headers, _)| seq(headers)).collect()
    };
    assert_each_once(came.into_iter(), seqs(&by_seq));

    if let Some((web, _moods, mut daemon)) = sinks_pubsub::start("").await {
        let by_seq = campaign::reloads(&mut daemon, "queue", |round| {
            other(&sinks_pubsub::sink(&web.url, ""), round)
        })
        .await;
        let came = sinks_pubsub::taken(&web);
        let came = came
            .iter()
            .map(|(attributes, ..)| attributes["closehook-seq"].as_str().unwrap().parse().unwrap());
        assert_each_once(came, seqs(&by_seq));
        daemon.stop().await;
    }

    if let Some(server) = smtp_server::Server::start(json!({ "tls": "none" })) {
        let config = |round: usize| {
            sinks_email::sink(
                &server,
                "smtp",
                &format!("insecure = true\nconcurrency = {}\n", round + 1),
            )
        };
        let mut daemon = Daemon::new("");
        let by_seq = campaign::reloads(&mut daemon, "mail", config).await;
        let came = server.mails();
        assert_each_once(
            came.iter().map(|mail| mail.header("closehook-seq").parse().unwrap()),
            seqs(&by_seq),
        );
        daemon.stop().await;
    }
}

fn web(url: &str, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"web\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\nstart = \"beginning\"\ntimeout = \"4s\"\n\
         retry = {{ initial = \"10ms\", max_delay = \"100ms\" }}\nbreaker = {{ probe = \"100ms\" }}\n{more}"
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_of_aws_have_each_event_once_though_their_sinks_are_exchanged() {
    let Some(queues) = Queues::start().await else { return };
    let url = queues.stack.url();
    let mut daemon = Daemon::new("");
    let by_seq = campaign::reloads(&mut daemon, "sqs", |round| {
        queues.config(|_| url.clone(), &format!("concurrency = {}\n", round + 1))
    })
    .await;
    for name in SINKS {
        daemon.done(name).await;
        assert_eq!(daemon.sink(name)["dead"], 0, "{name}");
    }
    for (name, keys) in queues.keys().await {
        eprintln!("{name}: {} of {}", keys.len(), by_seq.len());
        assert_each_once(keys, by_seq.values().map(|id| key(*id)));
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_queues_of_aws_may_take_their_time() {
    let Some(queues) = Queues::start().await else { return };
    let line = Held::start(queues.stack.port).await;
    let mut daemon = Daemon::new("");
    let config = queues.config(
        |_| format!("http://127.0.0.1:{}", line.port),
        "concurrency = 3\nbatch = { events = 1 }\n",
    );
    let sinks = [("sqs", 3), ("sns", 3), ("bus", 3)];
    takes_its_time(&mut daemon, &config, &sinks, |holds| line.hold(holds)).await;
    for name in SINKS {
        daemon.done(name).await;
    }
    for keys in queues.keys().await.into_values() {
        assert_each_once(keys, (1..=*EVENTS.end()).map(key));
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn http_and_slack_and_pubsub_and_email_may_take_their_time() {
    let all = || 1..=*EVENTS.end();
    let receiver = Receiver::start(200).await;
    let slack = Web::start(sinks_slack::webhook).await;
    let port = |url: &str| url.split(['/', ':']).nth(4).unwrap().parse::<u16>().unwrap();
    let (line, other_line) = (
        Held::start(port(&receiver.url)).await,
        Held::start(port(&slack.url)).await,
    );
    let held = |url: &str, line: &Held| url.replace(&port(url).to_string(), &line.port.to_string());
    let config = web(&held(&receiver.url, &line), "concurrency = 3\n")
        + &held(
            &sinks_slack::on_webhook(&slack, &format!("{}concurrency = 2\n", sinks_slack::FAST)),
            &other_line,
        );
    let mut daemon = Daemon::new("");
    takes_its_time(&mut daemon, &config, &[("web", 3), ("chat", 2)], |holds| {
        line.hold(holds);
        other_line.hold(holds);
    })
    .await;
    let came = receiver.received.lock().unwrap().clone();
    let came = came
        .iter()
        .map(|(headers, _)| headers["closehook-seq"].to_str().unwrap().parse().unwrap());
    assert_each_once(came, all());
    assert_each_once(web_seqs(&slack), all());
    daemon.stop().await;

    if let Some((web, _moods, mut daemon)) = sinks_pubsub::start("").await {
        let line = Held::start(port(&web.url)).await;
        let config = sinks_pubsub::sink(&held(&web.url, &line), "concurrency = 3\nbatch = { events = 1 }\n");
        takes_its_time(&mut daemon, &config, &[("queue", 3)], |holds| line.hold(holds)).await;
        let came = sinks_pubsub::taken(&web);
        let came = came
            .iter()
            .map(|(attributes, ..)| attributes["closehook-seq"].as_str().unwrap().parse().unwrap());
        assert_each_once(came, all());
        daemon.stop().await;
    }

    if let Some(server) = smtp_server::Server::start(json!({ "tls": "none" })) {
        let line = Held::start(server.port).await;
        let config = sinks_email::sink(&server, "smtp", "insecure = true\nconcurrency = 3\n");
        let mut daemon = Daemon::new("");
        let config = config.replace(&server.port.to_string(), &line.port.to_string());
        takes_its_time(&mut daemon, &config, &[("mail", 3)], |holds| line.hold(holds)).await;
        let came = server.mails();
        assert_each_once(
            came.iter().map(|mail| mail.header("closehook-seq").parse().unwrap()),
            all(),
        );
        daemon.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nats_and_rabbitmq_and_kafka_may_take_their_time() {
    let same = (1..=*EVENTS.end()).map(|id| (id, id)).collect();
    if let Some(server) = sinks_nats::with_stream("").await {
        let line = Held::start(server.port).await;
        let mut daemon = Daemon::new("");
        let config = sinks_nats::constant(&format!("nats://127.0.0.1:{}", line.port)) + FEW + "concurrency = 3\n";
        takes_its_time(&mut daemon, &config, &[("bus", 3)], |holds| line.hold(holds)).await;
        sinks_nats::assert_once(&server.messages("CLOSE").await, &same);
        daemon.stop().await;
    }
    if let Some(server) = rabbit_server::Server::start("", &[]).await {
        server.queue("%2F", "all", json!({})).await;
        let line = Held::start(server.port).await;
        let mut daemon = Daemon::new("");
        let config =
            sinks_amqp::to_queue(&format!("amqp://guest:guest@127.0.0.1:{}", line.port)) + FEW + "concurrency = 3\n";
        takes_its_time(&mut daemon, &config, &[("rabbit", 3)], |holds| line.hold(holds)).await;
        let got = sinks_amqp::taken(&server, "%2F", "all").await;
        sinks_amqp::assert_all(&got, &same);
        assert_eq!(got.len(), same.len());
        daemon.stop().await;
    }
    let started: Option<(kafka_server::Broker, Daemon)> = sinks_kafka::start("").await;
    if let Some((broker, mut daemon)) = started {
        let config = sinks_kafka::sink(&broker, &format!("{FEW}concurrency = 3\n"));
        takes_its_time(&mut daemon, &config, &[("stream", 3)], |holds| {
            broker.line.set(|moods| moods.holds = holds);
        })
        .await;
        sinks_kafka::assert_once(&broker.committed("close").await, &same);
        daemon.stop().await;
    }
}

/// Neither is the event. The others are tried beside what else is wrong with the way to their servers.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_whose_authority_nobody_knows_is_told_nothing_by_any_of_them() {
    let (moody, certificate) = Moody::start_tls();
    let Some((web, _moods, mut daemon)) = sinks_pubsub::start("").await else {
        return;
    };
    let arn = |kind: &str, name: &str| format!("arn:aws:{kind}:{REGION}:000000000000:{name}");
    let own = [
        ("sqs", "sqs", format!("queue = \"{}\"", arn("sqs", "events"))),
        ("sns", "sns", format!("topic = \"{}\"", arn("sns", "events"))),
        ("bus", "eventbridge", "bus = \"crm\"".into()),
        ("stream", "kinesis", "stream = \"events\"".into()),
    ];
    let queues = own.map(|(name, kind, own)| sinks_aws::sink(name, kind, &moody.url, &own));
    let chat = sinks_slack::on_webhook(&web, sinks_slack::FAST).replace(&web.url, &moody.url);
    daemon.configure(&(queues.concat() + &chat + &sinks_pubsub::sink(&moody.url, "")));
    daemon.run().await;
    daemon.store(1..=3).await;
    for name in ["sqs", "sns", "bus", "stream", "chat", "queue"] {
        daemon.says(name, "set ca to the authority").await;
        let shown = daemon.sink(name);
        assert_eq!((&shown["dead"], &shown["retrying"]), (&json!(0), &json!(0)), "{shown}");
    }
    assert_eq!(moody.taken.lock().unwrap().len(), 0);
    // Once it is known, what waited goes.
    std::fs::write(daemon.path("ca.pem"), certificate).unwrap();
    daemon.configure(&format!("{chat}ca = \"DIR/ca.pem\"\n"));
    assert!(daemon.reload().await);
    until("the messages are there", async || {
        moody.taken.lock().unwrap().len() == 3
    })
    .await;
    daemon.stop().await;
}

/// `CLOSEHOOK_TEST_KILLS` asks for more than CI's 2.
#[tokio::test(flavor = "multi_thread")]
async fn http_misses_nothing_after_kills_and_lost_answers_and_a_repeat_carries_the_same_key() {
    let turns = AtomicUsize::new(0);
    // Now and then the request is taken and the answer is lost.
    let receiver = Web::start(move |_| {
        let is_lost = turns.fetch_add(1, Ordering::Relaxed) % 97 == 7;
        Answer::new(200, "").filter(|_| !is_lost)
    })
    .await;
    let mut daemon = Daemon::new(&web(&format!("{}/hook", receiver.url), ""));
    let by_seq = campaign::kills(&mut daemon, None, "web").await;
    let mut keys: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    let mut ids: BTreeMap<u64, BTreeSet<String>> = BTreeMap::new();
    for asked in receiver.asked() {
        let seq = asked.header("closehook-seq").parse().unwrap();
        assert_eq!(asked.header("idempotency-key"), asked.header("closehook-key"));
        keys.entry(seq)
            .or_default()
            .insert(asked.header("closehook-key").to_owned());
        ids.entry(seq)
            .or_default()
            .insert(asked.header("webhook-id").to_owned());
    }
    assert_eq!(keys, campaign::keys(&by_seq));
    assert!(ids.values().all(|ids| ids.len() == 1), "{ids:?}");
    daemon.stop().await;
}
