//! The log on three servers of NATS that sync each message, beside plain publishing by as many clients to a stream with the same replicas
//! and the same sync; and reading it beside a plain ordered consumer. Everything runs on the same cores.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_nats::jetstream;
use bytes::Bytes;
use closehook::event::{Seq, Source};
use closehook::log::jetstream::{JetStreamLog, Options, check};
use closehook::log::{Appended, Incoming, Log, Take};
use closehook::net::nats::{Server, Way};
use futures::StreamExt;
use serde_json::json;

use crate::jetstream_cluster::Cluster;
use crate::load::Bodies;
use crate::{CONNECTIONS, Must, Report};

/// How often both take turns.
const ROUNDS: u64 = 3;

/// Messages of one round.
const MESSAGES: u64 = 10_000;

pub async fn engine(report: &mut Report) {
    let Some(cluster) = Cluster::start().await else { return };
    let options = options(&cluster);
    check::create(&options).await.unwrap();
    let plain = json!({ "name": "PLAIN", "subjects": ["plain.>"], "num_replicas": 3, "storage": "file" });
    cluster.api(0, "STREAM.CREATE.PLAIN", &plain).await;
    let bodies = Arc::new(Bodies::new(11));
    let log = JetStreamLog::open(options).await.unwrap();
    let client = cluster.client(0).await;
    let (mut stored, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let ours = appended(&log, &bodies).await;
        let theirs = published(&client, &bodies).await;
        stored.push((ours, theirs));
        ratios.push(ours / theirs);
    }
    let (ours, theirs) = median(&stored);
    let what = format!("{ours:.0}/s");
    report.line(
        "log on jetstream",
        &what,
        &format!("plain publishing {theirs:.0}/s"),
        middle(ratios),
        Must::BeAtLeast(0.5),
    );

    let (mut read, mut ratios) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (ours, theirs) = (read_all(&log).await, consumed(&client).await);
        read.push((ours, theirs));
        ratios.push(ours / theirs);
    }
    let (ours, theirs) = median(&read);
    let what = format!("{ours:.0}/s");
    report.line(
        "reading it",
        &what,
        &format!("ordered consumer {theirs:.0}/s"),
        middle(ratios),
        Must::BeAtLeast(0.4),
    );
}

fn options(cluster: &Cluster) -> Options {
    let servers = cluster.urls().iter().map(|url| Server::parse(url).unwrap()).collect();
    Options::usual(Way::plain(servers, "bench"), cluster.monitors())
}

/// Events a second by as many senders, each waiting for its answer.
async fn appended(log: &JetStreamLog, bodies: &Arc<Bodies>) -> f64 {
    let left = Arc::new(AtomicU64::new(MESSAGES));
    let mut senders = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let (log, bodies, left) = (log.clone(), bodies.clone(), left.clone());
        senders.spawn(async move {
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                let incoming = Incoming::new(bodies.fresh().into(), jiff::Timestamp::now(), Source::Webhook, None);
                assert!(matches!(log.append(incoming).await, Ok(Appended::Stored(_))));
            }
        });
    }
    while let Some(done) = senders.join_next().await {
        done.unwrap();
    }
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

/// The same by hand, each to a subject of its own.
async fn published(client: &async_nats::Client, bodies: &Arc<Bodies>) -> f64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let context = jetstream::new(client.clone());
    let left = Arc::new(AtomicU64::new(MESSAGES));
    let mut senders = tokio::task::JoinSet::new();
    let began = Instant::now();
    for _ in 0..CONNECTIONS {
        let (context, bodies, left) = (context.clone(), bodies.clone(), left.clone());
        senders.spawn(async move {
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                let body: Bytes = bodies.fresh().into();
                let subject = format!("plain.{}", NEXT.fetch_add(1, Ordering::Relaxed));
                context.publish(subject, body).await.unwrap().await.unwrap();
            }
        });
    }
    while let Some(done) = senders.join_next().await {
        done.unwrap();
    }
    MESSAGES as f64 / began.elapsed().as_secs_f64()
}

async fn read_all(log: &JetStreamLog) -> f64 {
    let take = Take {
        events: 1000,
        bytes: 8 << 20,
        narrow: None,
    };
    let (began, mut from, mut count) = (Instant::now(), Seq(1), 0);
    while from <= *log.head().borrow() {
        let batch = log.read(from, take).await.unwrap();
        count += batch.events.len();
        from = batch.next;
    }
    assert_eq!(count as u64, ROUNDS * MESSAGES);
    count as f64 / began.elapsed().as_secs_f64()
}

async fn consumed(client: &async_nats::Client) -> f64 {
    let context = jetstream::new(client.clone());
    let stream = context.get_stream("PLAIN").await.unwrap();
    let config = jetstream::consumer::pull::OrderedConfig::default();
    let began = Instant::now();
    let mut messages = stream.create_consumer(config).await.unwrap().messages().await.unwrap();
    for _ in 0..ROUNDS * MESSAGES {
        messages.next().await.unwrap().unwrap();
    }
    (ROUNDS * MESSAGES) as f64 / began.elapsed().as_secs_f64()
}

fn middle(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

fn median(rounds: &[(f64, f64)]) -> (f64, f64) {
    let of = |side: fn(&(f64, f64)) -> f64| middle(rounds.iter().map(side).collect());
    (of(|round| round.0), of(|round| round.1))
}
