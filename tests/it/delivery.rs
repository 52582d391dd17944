//! Contract, section 4: deliveries, and what happens when they fail.

use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};

use crate::harness::{Daemon, Receiver, body, ids_in, until};

fn http(name: &str, url: &str, more: &str) -> String {
    format!(
        "[[sinks]]\nname = \"{name}\"\ntype = \"http\"\nurl = \"{url}\"\nallow_private = true\nstart = \"beginning\"\n\
         breaker = {{ probe = \"100ms\", refusals = 3 }}\n{more}\n"
    )
}

const FAST: &str = "retry = { initial = \"10ms\", max_delay = \"50ms\" }";
const FILE: &str = "[[sinks]]\nname = \"file\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\nstart = \"beginning\"\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_sink_does_not_delay_a_live_one() {
    let dead = Receiver::start(503).await;
    let daemon = Daemon::start(&[FILE, &http("dead", &dead.url, FAST)].concat()).await;
    daemon.store(1..=300).await;
    until("the live sink has everything", async || {
        ids_in(&daemon.path("events.jsonl")).len() == 300
    })
    .await;
    assert_eq!(dead.count(), 0);
    let sink = daemon.sink("dead");
    assert_eq!(
        (sink["cursor"].as_u64(), sink["dead"].as_u64()),
        (Some(0), Some(0)),
        "{sink}"
    );
    assert!(sink["last_error"].as_str().unwrap().contains("503"));
    dead.answer_with(200);
    until("the dead one has caught up", async || {
        dead.count() >= 300 && daemon.sink("dead")["cursor"] == 300
    })
    .await;
    assert_eq!(daemon.sink("dead")["breaker"], "closed");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_a_dead_letter_and_an_expired_token_is_not_a_day_of_them() {
    let receiver = Receiver::start(422).await;
    let daemon = Daemon::start(&http("crm", &receiver.url, "concurrency = 1")).await;
    daemon.store(1..=2).await;
    until("both are dead", async || daemon.sink("crm")["dead"] == 2).await;
    let letters = daemon.lines(&["dead", "list"]);
    assert_eq!(
        (letters[0]["id"].as_str(), letters[0]["attempts"].as_u64()),
        (Some("ev_1"), Some(1))
    );
    assert!(letters[0]["reason"].as_str().unwrap().contains("422"));
    receiver.answer_with(401);
    daemon.store(3..=40).await;
    until("the breaker is open", async || {
        daemon.sink("crm")["breaker"] != "closed"
    })
    .await;
    receiver.answer_with(200);
    until("the rest is delivered", async || receiver.count() >= 38).await;
    until("nothing is left", async || daemon.sink("crm")["cursor"] == 40).await;
    assert_eq!(
        daemon.sink("crm")["dead"],
        2,
        "no event is to blame for an expired token"
    );
    assert_eq!(
        daemon.run_command(&["dead", "retry"]).status.code(),
        Some(2),
        "one has to say which"
    );
    assert!(daemon.ok(&["dead", "retry", "--all"]).contains("2 delivered"));
    assert_eq!(daemon.lines(&["dead", "list"]).len(), 0);
    until("each event arrived", async || receiver.count() == 40).await;
    let shown = &daemon.lines(&["events", "show", "ev_7"])[0];
    assert_eq!(shown["sinks"]["crm"]["state"], "delivered");
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_end_as_dead_letters_after_max_age() {
    let receiver = Receiver::start(500).await;
    let retry = "retry = { initial = \"10ms\", max_delay = \"20ms\", max_age = \"300ms\" }";
    let daemon = Daemon::start(&http("crm", &receiver.url, retry)).await;
    daemon.store(1..=1).await;
    until("it is given up", async || daemon.sink("crm")["dead"] == 1).await;
    assert!(daemon.lines(&["dead", "list"])[0]["attempts"].as_u64().unwrap() > 1);
    assert!(daemon.ok(&["dead", "drop", "--all", "--yes"]).contains("1 dropped"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_body_is_forwarded_byte_for_byte_with_both_signatures() {
    let receiver = Receiver::start(204).await;
    let daemon = Daemon::start(&http(
        "crm",
        &receiver.url,
        "secret = \"hush\"\nforward_signature = true",
    ))
    .await;
    daemon.store(5..=5).await;
    until("it has arrived", async || receiver.count() == 1).await;
    let (headers, text) = receiver.received.lock().unwrap()[0].clone();
    assert_eq!(text, body(5));
    assert_eq!(headers["webhook-id"], "ev_5:2024-02-15T12:48:23_395000");
    assert_eq!(headers["idempotency-key"], "ev_5:2024-02-15T12:48:23.395000");
    assert!(headers["webhook-signature"].to_str().unwrap().starts_with("v1,"));
    let key = closehook::ingress::verify::Key::from_hex(None, crate::harness::KEY).unwrap();
    let text_of = |name: &str| headers[name].to_str().unwrap().to_owned();
    let forwarded = closehook::event::SignatureHeaders {
        timestamp: text_of("close-sig-timestamp"),
        hash: text_of("close-sig-hash"),
    };
    assert!(key.signed(&forwarded, text.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn order_holds_back_what_it_says() {
    let receiver = Receiver::start(500).await;
    let more = format!("order = \"strict\"\n{FAST}");
    let daemon = Daemon::start(&http("crm", &receiver.url, &more)).await;
    daemon.store(1..=20).await;
    until("the first one failed", async || {
        !daemon.sink("crm")["last_error"].is_null()
    })
    .await;
    receiver.answer_with(200);
    until("all have arrived", async || receiver.count() == 20).await;
    assert_eq!(receiver.bodies(), (1..=20).map(body).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_survive_pause_restart_and_reload() {
    let mut daemon = Daemon::start(FILE).await;
    daemon.store(1..=5).await;
    until("five are there", async || {
        ids_in(&daemon.path("events.jsonl")).len() == 5
    })
    .await;
    daemon.ok(&["sinks", "pause", "file"]);
    daemon.store(6..=8).await;
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(daemon.sink("file")["paused"], true);
    assert_eq!(ids_in(&daemon.path("events.jsonl")).len(), 5);
    // A bad configuration changes nothing.
    let receiver = Receiver::start(200).await;
    daemon.configure(&[FILE, "[[sinks]]\nname = \"new\"\ntype = \"htp\"\n"].concat());
    assert!(!daemon.reload().await);
    assert!(daemon.stderr().contains("there is no sink type"));
    daemon.configure(FILE);
    assert_eq!(
        daemon.lines(&["sinks", "list"]).len(),
        1,
        "the daemon has its old sinks"
    );
    daemon.configure(&[FILE, &http("new", &receiver.url, "")].concat());
    assert!(daemon.reload().await);
    until("the new sink has begun at the beginning", async || {
        receiver.count() == 8
    })
    .await;
    daemon.ok(&["sinks", "resume", "file"]);
    until("the paused one has gone on", async || {
        ids_in(&daemon.path("events.jsonl")).len() == 8
    })
    .await;
    // Gone and back: it goes on where it was.
    daemon.configure(FILE);
    assert!(daemon.reload().await);
    daemon.store(9..=9).await;
    daemon.configure(&[FILE, &http("new", &receiver.url, "timeout = \"5s\"")].concat());
    assert!(daemon.reload().await);
    until("it has what it missed", async || receiver.count() == 9).await;
    let ids: Vec<String> = (1..=9).map(|id| format!("ev_{id}")).collect();
    until("the file has everything once", async || {
        ids_in(&daemon.path("events.jsonl")) == ids
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_decide_and_the_rules_of_now_judge_a_backlog() {
    let rules = "[[rules]]\nname = \"sevens\"\nevents = [\"lead.*\"]\nsinks = [\"file\"]\n\
        filter = { type = \"field_accessor\", field = \"lead_id\", filter = { type = \"equals\", value = \"lead_0\" } }\n";
    let daemon = Daemon::start(&[FILE, rules].concat()).await;
    daemon.store(1..=21).await;
    until("the matching ones are there", async || {
        ids_in(&daemon.path("events.jsonl")) == ["ev_7", "ev_14", "ev_21"]
    })
    .await;
    let line = std::fs::read_to_string(daemon.path("events.jsonl")).unwrap();
    let line = line.lines().next().unwrap();
    assert!(
        line.contains(r#""rules":["sevens"],"subscription_id":"whsub_1","event":{"id":"ev_7""#),
        "{line}"
    );
    assert!(
        line.contains(r#""data":{"n":1.50,"text":"\u00e9 \/"}"#),
        "every token as Close wrote it: {line}"
    );
    let explained = daemon.ok(&["rules", "explain", "--id", "ev_8"]);
    assert!(
        explained.contains("does not match: decided by filter.filter"),
        "{explained}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn programs_get_events_and_their_exit_status_counts() {
    let script = "read line; echo \"$CLOSEHOOK_EVENT_ID\" >> DIR/seen; case $CLOSEHOOK_SEQ in 2) exit 3;; esac";
    let config = format!(
        "[[sinks]]\nname = \"run\"\ntype = \"exec\"\ncommand = [\"/bin/sh\", \"-c\", '''{script}''']\nconcurrency = 1\n"
    );
    let daemon = Daemon::start(&config).await;
    daemon.store(1..=3).await;
    until("all ran", async || daemon.sink("run")["cursor"] == 3).await;
    assert_eq!(
        std::fs::read_to_string(daemon.path("seen")).unwrap(),
        "ev_1\nev_2\nev_3\n"
    );
    assert!(
        daemon.lines(&["dead", "list"])[0]["reason"]
            .as_str()
            .unwrap()
            .contains("exit status 3")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_sends_again_counts_first_and_can_be_resumed() {
    let receiver = Receiver::start(200).await;
    let mut daemon = Daemon::start(&http("crm", &receiver.url, FAST)).await;
    daemon.store(1..=150).await;
    until("all have arrived", async || receiver.count() == 150).await;
    let plan = &daemon.lines(&["replay", "--dry-run", "--lead", "lead_0"])[0];
    assert_eq!(plan["planned"]["crm"], 21);
    assert!(daemon.ok(&["replay", "--lead", "lead_0"]).contains("21 delivered"));
    assert_eq!(receiver.count(), 171);
    let refused = daemon.run_command(&["replay", "--sink", "crm"]);
    assert_eq!(refused.status.code(), Some(2), "more than 100 and nobody to ask");
    assert_eq!(receiver.count(), 171);
    assert_eq!(
        daemon
            .run_command(&["replay", "--sink", "nobody", "--yes"])
            .status
            .code(),
        Some(1)
    );
    // Interrupted by a restart of the daemon: the job goes on by itself.
    let mut command = daemon.command();
    let mut child = command
        .args(["replay", "--sink", "crm", "--rate", "200/s", "--yes"])
        .spawn()
        .unwrap();
    until("some were sent", async || receiver.count() > 180).await;
    daemon.kill();
    assert!(!child.wait().unwrap().success());
    daemon.run().await;
    until("the rest was sent", async || {
        daemon.lines(&["replay", "list"]).last().unwrap()["state"] == "done"
    })
    .await;
    assert!(receiver.count() >= 321);
    daemon.stop().await;
    // And without a daemon.
    let before = receiver.count();
    assert!(daemon.ok(&["replay", "--id", "ev_3"]).contains("1 delivered"));
    assert_eq!(receiver.count(), before + 1);
    // There nobody resumes a sink while a command waits for it.
    daemon.ok(&["sinks", "pause", "crm"]);
    let why = daemon.fails(1, &["replay", "--id", "ev_3", "--yes"]);
    assert!(why.contains("\"crm\" is paused: `closehook sinks resume crm`"), "{why}");
    let job = daemon.lines(&["replay", "list"]).last().unwrap()["id"]
        .as_str()
        .unwrap()
        .to_owned();
    assert!(why.contains(&format!("closehook replay --resume {job}")), "{why}");
    daemon.ok(&["sinks", "resume", "crm"]);
    assert!(daemon.ok(&["replay", "--resume", &job]).contains("1 delivered"));
    assert_eq!(receiver.count(), before + 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_says_why_letters_are_still_dead_and_a_forgotten_sink_takes_its_letters_along() {
    let receiver = Receiver::start(422).await;
    let daemon = Daemon::start(&http("crm", &receiver.url, "")).await;
    daemon.store(1..=3).await;
    until("they are dead", async || daemon.sink("crm")["dead"] == 3).await;
    let tried = daemon.run_command(&["dead", "retry", "--all"]);
    assert_eq!(tried.status.code(), Some(1));
    let said = String::from_utf8_lossy(&tried.stdout).into_owned();
    assert!(
        said.contains("3 tried: 0 delivered, 3 still dead: ") && said.contains("422"),
        "{said}"
    );
    daemon.fails(1, &["sinks", "forget", "crm"]);
    daemon.configure(&[FILE, "[[rules]]\nname = \"all\"\nsinks = [\"file\"]\n"].concat());
    assert!(daemon.reload().await);
    assert!(daemon.data().join("dead/crm").exists());
    assert!(
        daemon
            .ok(&["sinks", "forget", "crm"])
            .contains("and its 3 dead letters with it")
    );
    assert!(!daemon.data().join("dead/crm").exists());
    assert!(daemon.lines(&["dead", "list"]).is_empty());
    daemon.fails(1, &["sinks", "forget", "crm"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_can_not_be_opened_does_not_keep_the_daemon_from_receiving() {
    let mut daemon = Daemon::new(&FILE.replace("DIR/", "DIR/later/"));
    // Something that is no directory stands in the way.
    std::fs::write(daemon.path("later"), "").unwrap();
    daemon.run().await;
    daemon.store(1..=3).await;
    until("the sink says why it waits", async || {
        let sink = daemon.sink("file");
        sink["last_error"]
            .as_str()
            .is_some_and(|error| error.contains("opened"))
    })
    .await;
    std::fs::remove_file(daemon.path("later")).unwrap();
    until("the file is there, complete", async || {
        let mut ids = ids_in(&daemon.path("later/events.jsonl"));
        ids.sort();
        ids == ["ev_1", "ev_2", "ev_3"]
    })
    .await;
    daemon.kill();
    daemon.run().await;
    daemon.store(4..=4).await;
    until("the rest is there", async || {
        ids_in(&daemon.path("later/events.jsonl")).len() == 4
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_somebody_deletes_is_begun_again_without_losing_an_event() {
    let daemon = Daemon::start(&[FILE, FAST].concat()).await;
    daemon.store(1..=1).await;
    until("it is written and saved", async || daemon.sink("file")["cursor"] == 1).await;
    std::fs::remove_file(daemon.path("events.jsonl")).unwrap();
    daemon.store(2..=2).await;
    until("it is in the new file", async || {
        // What was not checkpointed when the file was deleted is written once more.
        let ids = ids_in(&daemon.path("events.jsonl"));
        ids.last().is_some_and(|id| id == "ev_2")
    })
    .await;
    assert!(ids_in(&daemon.path("events.jsonl")).len() <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_happen_to_a_sink_is_counted_from_zero() {
    let daemon = Daemon::start(FILE).await;
    let metrics = daemon.ask_admin("/metrics").await;
    assert!(metrics.headers().contains_key("x-request-id"));
    let text = metrics.text().await.unwrap();
    for name in ["delivered", "retried", "dead", "lost"] {
        assert!(
            text.contains(&format!("closehook_sink_{name}_total{{sink=\"file\"}} 0\n")),
            "{name}: {text}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_a_reload_adds_is_judged_by_the_rules_that_know_it() {
    let rule = |sink: &str| format!("[[rules]]\nname = \"to {sink}\"\nsinks = [\"{sink}\"]\n");
    let mut config = [FILE, &rule("file")].concat();
    let daemon = Daemon::start(&config).await;
    daemon.store(1..=50).await;
    for round in 0..8 {
        let receiver = Receiver::start(200).await;
        let name = format!("added{round}");
        config = [&http(&name, &receiver.url, ""), &config, &*rule(&name)].concat();
        daemon.configure(&config);
        assert!(daemon.reload().await);
        until("the new sink is done", async || daemon.sink(&name)["cursor"] == 50).await;
        assert_eq!(receiver.count(), 50, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_of_a_paused_sink_are_not_waited_for() {
    let receiver = Receiver::start(422).await;
    let daemon = Daemon::start(&http("crm", &receiver.url, "")).await;
    daemon.store(1..=1).await;
    until("it is dead", async || daemon.sink("crm")["dead"] == 1).await;
    daemon.ok(&["sinks", "pause", "crm"]);
    let refused = daemon.run_command(&["dead", "retry", "--all"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("closehook sinks resume crm"));
    assert_eq!(daemon.sink("crm")["dead"], 1);
}

/// How a receiver treats a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    Answers,
    /// Takes the request and says nothing.
    Hangs,
    /// Takes the request and resets the connection.
    Resets,
    /// Begins an answer and says no more.
    StopsInTheHead,
    /// Closes after half a head.
    EndsInTheHead,
    /// What it says is no HTTP.
    Babbles,
}

/// A receiver with bad manners, which can change.
struct Rude {
    url: String,
    manner: Arc<Mutex<Manner>>,
    received: Arc<Mutex<Vec<String>>>,
    /// Until it listens, connections are refused.
    socket: Option<TcpSocket>,
}

impl Rude {
    fn new() -> Rude {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
        Rude {
            url: format!("http://{}/hook", socket.local_addr().unwrap()),
            manner: Arc::new(Mutex::new(Manner::Hangs)),
            received: Arc::default(),
            socket: Some(socket),
        }
    }

    fn listen(&mut self) {
        let listener = self.socket.take().unwrap().listen(64).unwrap();
        tokio::spawn(Rude::accept(listener, self.manner.clone(), self.received.clone()));
    }

    async fn accept(listener: TcpListener, manner: Arc<Mutex<Manner>>, received: Arc<Mutex<Vec<String>>>) {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let manner = *manner.lock().unwrap();
            let received = received.clone();
            tokio::spawn(async move {
                // Whoever talks to it may hang up on it.
                let _ = Rude::treat(stream, manner, &received).await;
            });
        }
    }

    async fn treat(mut stream: TcpStream, manner: Manner, received: &Mutex<Vec<String>>) -> std::io::Result<()> {
        let mut request = Vec::new();
        let body_at = loop {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
            if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
                break end + 4;
            }
        };
        let head = String::from_utf8_lossy(&request[..body_at]).to_ascii_lowercase();
        let len: usize = head
            .lines()
            .find_map(|line| line.strip_prefix("content-length: ")?.parse().ok())
            .unwrap();
        while request.len() < body_at + len {
            if stream.read_buf(&mut request).await? == 0 {
                return Ok(());
            }
        }
        match manner {
            Manner::Answers => {
                let body = String::from_utf8(request[body_at..].to_vec()).unwrap();
                received.lock().unwrap().push(body);
                stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
                    .await?;
            }
            Manner::Hangs => std::future::pending::<()>().await,
            Manner::Resets => stream.set_zero_linger()?,
            Manner::StopsInTheHead => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nconte").await?;
                std::future::pending::<()>().await;
            }
            Manner::EndsInTheHead => stream.write_all(b"HTTP/1.1 200 OK\r\nconte").await?,
            Manner::Babbles => stream.write_all(b"come back later\r\n\r\n").await?,
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_receiver_with_bad_manners_holds_up_nobody_and_gets_everything_in_the_end() {
    let mut rude = Rude::new();
    let more = format!("{FAST}\ntimeout = \"300ms\"");
    let daemon = Daemon::start(&[FILE, &http("rude", &rude.url, &more)].concat()).await;
    let mut id = 0;
    // Before it listens, it refuses.
    for manner in [
        None,
        Some(Manner::Hangs),
        Some(Manner::Resets),
        Some(Manner::StopsInTheHead),
        Some(Manner::EndsInTheHead),
        Some(Manner::Babbles),
    ] {
        if let Some(manner) = manner {
            *rude.manner.lock().unwrap() = manner;
        }
        daemon.store(id + 1..=id + 30).await;
        id += 30;
        until("the other sink has everything", async || {
            ids_in(&daemon.path("events.jsonl")).len() as u64 == id
        })
        .await;
        until("it was tried", async || {
            let sink = daemon.sink("rude");
            // Without a connection no event is to blame: the whole sink waits.
            let waits = sink["breaker"] != "closed" || sink["retrying"].as_u64() > Some(0);
            waits && !sink["last_error"].is_null()
        })
        .await;
        let before = rude.received.lock().unwrap().len() as u64;
        assert_eq!(before, id - 30, "{manner:?}: nothing arrived that way");
        *rude.manner.lock().unwrap() = Manner::Answers;
        if manner.is_none() {
            rude.listen();
        }
        until("it has everything", async || daemon.sink("rude")["cursor"] == id).await;
    }
    let mut received = rude.received.lock().unwrap().clone();
    received.sort();
    let mut sent: Vec<String> = (1..=id).map(body).collect();
    sent.sort();
    assert_eq!(received, sent);
    assert_eq!(daemon.sink("rude")["dead"], 0);
}

/// Half of an answer's body is an answer: what the receiver has said counts, and waiting for the rest is bounded.
#[tokio::test(flavor = "multi_thread")]
async fn an_answer_whose_body_never_ends_counts_by_its_status() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    tokio::spawn(async move {
        let mut open = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let half = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000000\r\n\r\nhalf";
            let _ = stream.write_all(half).await;
            open.push(stream);
        }
    });
    let daemon = Daemon::start(&http("half", &url, &format!("{FAST}\ntimeout = \"2s\""))).await;
    daemon.store(1..=10).await;
    until("all are delivered", async || daemon.sink("half")["cursor"] == 10).await;
    assert_eq!(daemon.sink("half")["dead"], 0);
}

/// A receiver whose answers wait at a gate. It keeps the ids of what came, whatever it answers: one status for a lead, 200 else.
struct Gated {
    url: String,
    came: Arc<Mutex<Vec<String>>>,
    open: tokio::sync::watch::Sender<bool>,
    refused: Arc<Mutex<(String, u16)>>,
}

impl Gated {
    async fn start() -> Gated {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let gated = Gated {
            url: format!("http://{}/hook", listener.local_addr().unwrap()),
            came: Arc::default(),
            open: tokio::sync::watch::Sender::new(false),
            refused: Arc::default(),
        };
        let (came, refused, open) = (gated.came.clone(), gated.refused.clone(), gated.open.clone());
        let answer = move |body: String| async move {
            let event = crate::harness::parsed(&body)["event"].clone();
            came.lock().unwrap().push(event["id"].as_str().unwrap().to_owned());
            let _ = open.subscribe().wait_for(|open| *open).await;
            let (lead, status) = refused.lock().unwrap().clone();
            let status = if event["lead_id"] == lead { status } else { 200 };
            let status = axum::http::StatusCode::from_u16(status).unwrap();
            (status, [("retry-after", "3600")])
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
        gated
    }

    fn refuse(&self, lead: &str, status: u16) {
        *self.refused.lock().unwrap() = (lead.to_owned(), status);
    }

    /// What came of a lead, from the `from`th on.
    fn came_of(&self, lead: u64, from: usize) -> Vec<String> {
        let is_of = |id: &&String| {
            id.trim_start_matches("ev_")
                .parse::<u64>()
                .is_ok_and(|id| id % 7 == lead)
        };
        let came = self.came.lock().unwrap();
        came[from..].iter().filter(is_of).cloned().collect()
    }
}

/// What the worker has read ahead is as erased as what lies in the log; of what is on the wire no letter is made.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_erased_is_not_delivered_any_more_and_leaves_no_letter() {
    let receiver = Gated::start().await;
    let daemon = Daemon::start(&http("crm", &receiver.url, "concurrency = 2")).await;
    let under_way = async |count: usize| {
        until("two are under way", async || {
            receiver.came.lock().unwrap().len() == count
        })
        .await;
        // Between two questions the worker reads ahead.
        daemon.ok(&["events", "show", "140"]);
        daemon.ok(&["events", "show", "140"]);
    };
    daemon.store(1..=140).await;
    under_way(2).await;
    assert_eq!((receiver.came_of(1, 0).len(), receiver.came_of(2, 0).len()), (1, 1));
    receiver.refuse("lead_1", 422);
    let said = daemon.ok(&["log", "erase", "--lead", "lead_1", "--yes"]);
    assert!(said.contains("20 events erased"), "{said}");
    let meanwhile = daemon.lines(&["events", "show", "1"]).remove(0);
    receiver.open.send_replace(true);
    // Where servers keep the log, what says that something is erased has a Seq of its own.
    until("the rest was delivered", async || {
        daemon.sink("crm")["cursor"].as_u64() >= Some(140)
    })
    .await;
    assert_eq!(
        receiver.came_of(1, 0),
        ["ev_1"],
        "it was on its way, and nothing else is"
    );
    assert_eq!(receiver.came.lock().unwrap().len(), 121);
    assert_eq!(daemon.lines(&["dead", "list"]), Vec::<serde_json::Value>::new());
    assert_eq!(meanwhile["sinks"]["crm"]["state"], "in-flight", "{meanwhile}");
    let shown = &daemon.lines(&["events", "show", "8"])[0];
    assert_eq!(shown["sinks"]["crm"]["state"], "erased", "{shown}");

    // A replay reads ahead as well.
    receiver.open.send_replace(false);
    let mut child = daemon.command();
    let mut child = child.args(["replay", "--sink", "crm", "--yes"]).spawn().unwrap();
    under_way(123).await;
    receiver.refuse("lead_2", 422);
    daemon.ok(&["log", "erase", "--lead", "lead_2", "--yes"]);
    receiver.open.send_replace(true);
    until("it is done", async || {
        daemon.lines(&["replay", "list"])[0]["state"] == "done"
    })
    .await;
    assert!(child.wait().unwrap().success());
    assert_eq!(receiver.came_of(2, 121), ["ev_2"]);
    assert_eq!(daemon.lines(&["dead", "list"]), Vec::<serde_json::Value>::new());
}

/// A sink that hangs says so, and one that is to be left alone says until when.
#[tokio::test(flavor = "multi_thread")]
async fn why_a_sink_waits_is_said_while_a_call_hangs_and_while_its_receiver_wants_none() {
    let receiver = Gated::start().await;
    let config = http("crm", &receiver.url, "concurrency = 1\ntimeout = \"10m\"");
    let daemon = Daemon::start(&config).await;
    daemon.store(1..=2).await;
    let why = || daemon.sink("crm")["waits_for"].as_str().unwrap_or_default().to_owned();
    until("it says that it waits for the answer", async || {
        why().starts_with("it waits for the receiver's answer since 2")
    })
    .await;
    receiver.refuse("lead_1", 429);
    receiver.open.send_replace(true);
    until("it says until when", async || {
        why().contains("429") && why().contains("; it is tried again at 2")
    })
    .await;
    let status = daemon.ok(&["status"]);
    assert_eq!(status.matches("answered 429").count(), 1, "once is enough: {status}");
}

/// Nobody waits in silence for a sink that somebody has paused.
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_to_a_paused_sink_says_so_and_goes_on_when_it_is_resumed() {
    let receiver = Receiver::start(200).await;
    let daemon = Daemon::start(&http("crm", &receiver.url, FAST)).await;
    daemon.store(1..=3).await;
    until("all have arrived", async || receiver.count() == 3).await;
    daemon.ok(&["sinks", "pause", "crm"]);
    let said = std::fs::File::create(daemon.path("said")).unwrap();
    let mut command = daemon.command();
    let mut child = command
        .args(["replay", "--id", "ev_3", "--yes"])
        .stderr(said)
        .spawn()
        .unwrap();
    let says = || std::fs::read_to_string(daemon.path("said")).unwrap();
    let why = "sink \"crm\" is paused: `closehook sinks resume crm`";
    until("it says what it waits for", async || says().contains(why)).await;
    let listed = daemon.lines(&["replay", "list"]).remove(0);
    assert_eq!(listed["waits_for"], why);
    let said = daemon.ok(&["status"]);
    assert!(said.contains("`closehook sinks resume crm`"), "{said}");
    daemon.ok(&["sinks", "resume", "crm"]);
    assert!(child.wait().unwrap().success());
    assert_eq!(says().matches("is paused").count(), 1, "once is enough: {}", says());
    assert_eq!(receiver.count(), 4);
}

/// Dead letters of one sink that can't be read keep nobody's data from being erased, and are named.
#[tokio::test(flavor = "multi_thread")]
async fn an_erasure_goes_on_past_letters_that_can_not_be_read_and_names_them() {
    let receiver = Receiver::start(422).await;
    let daemon = Daemon::start(
        &http("crm", &receiver.url, "breaker = { refusals = 1000 }")
            .replace("breaker = { probe = \"100ms\", refusals = 3 }\n", ""),
    )
    .await;
    daemon.store(1..=7).await;
    until("all are dead", async || daemon.sink("crm")["dead"] == 7).await;
    // As a newer closehook would write it, for a sink that has gone.
    let mut newer = std::fs::read(daemon.data().join("dead/crm")).unwrap()[..32].to_vec();
    newer[8..12].copy_from_slice(&9_u32.to_le_bytes());
    let crc = crc32c::crc32c(&newer[..28]).to_le_bytes();
    newer[28..].copy_from_slice(&crc);
    std::fs::write(daemon.data().join("dead/gone"), newer).unwrap();
    let said = daemon.run_command(&["log", "erase", "--lead", "lead_1", "--yes"]);
    assert_eq!(said.status.code(), Some(1), "something is left");
    let text = String::from_utf8_lossy(&[said.stdout, said.stderr].concat()).into_owned();
    assert!(
        text.contains("1 event") && text.contains("dead/gone") && text.contains("newer version"),
        "{text}"
    );
    assert_eq!(daemon.sink("crm")["dead"], 6);
    let error = daemon.fails(1, &["dead", "list"]);
    assert!(error.contains("sink \"gone\" can't be read"), "{error}");
    assert_eq!(daemon.lines(&["dead", "list", "--sink", "crm"]).len(), 6);
}
