//! `closehook listen`: what Close sends, on the screen and at the program one is writing.
//!
//! The parts are the daemon's: its listener and checks, its log (in a temporary directory), its http sink. What is left out is
//! what development has no use for: no rules, no retries, nothing kept.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Args;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::interrupt::Stop;
use super::{Failure, Global, Outcome, print_line, report, term};
use crate::app;
use crate::config::{Config, Fault, SinkOptions, Size};
use crate::event::{Delivery, Event, Kind, Origin, Seq, View};
use crate::framefile;
use crate::ingress::verify::{Key, Verifier};
use crate::log::{Log, Take};
use crate::plain;
use crate::sinks::{self, Batch, Mark, Outcome as Delivered, Sink};

/// How long the program that is being written may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// Small, so that what has been shown can go soon.
const SEGMENT: Size = Size(8 << 20);

/// Receive for development: show each event and forward it to a program
#[derive(Debug, Args)]
#[command(
    after_help = "Listens where the configuration says, checks signatures as the daemon does, shows each event in a line, and forwards it as it came,
with Close's signature headers. What the program answers is shown; nothing is tried again, rules and sinks are left alone, and
nothing is kept: the events are in a temporary directory that goes at Ctrl-C.

A key is made for the time it runs, so that `closehook trigger` can send samples; it says how. It works without a configuration.

Examples:
  closehook listen --forward-to http://localhost:3000/hook
  closehook listen --json | jq .type"
)]
pub(super) struct Listen {
    /// Where each event is sent on, byte for byte; default: nowhere
    #[arg(long, value_name = "URL")]
    forward_to: Option<String>,
}

impl Listen {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let options = self.forward_to.as_deref().map(sink_options).transpose()?;
        // From the first line on: who stops it wants the directory gone.
        let mut stop = Stop::listen()?;
        let config = Config::load(&global.layers_that_are_there()).map_err(Failure::Faults)?;
        let dir = tempfile::Builder::new().prefix("closehook-listen-").tempdir()?;
        let (keys, key_file) = keys(&config, dir.path(), global.json)?;
        let receiver = app::Receiver::start(&within(config, dir.path()), keys).await?;
        let outcome = tokio::select! {
            () = stop.told() => Ok(()),
            () = term::unread() => Err(Failure::Unread),
            outcome = self.watch(options, &receiver, &key_file, global) => outcome,
        };
        receiver.stop().await;
        let removed = dir.close();
        outcome?;
        removed.map_err(Failure::from)
    }

    async fn watch(
        &self,
        options: Option<SinkOptions>,
        receiver: &app::Receiver,
        key_file: &Path,
        global: &Global,
    ) -> Outcome {
        self.announce(receiver, key_file, global)?;
        let forward = match options {
            Some(options) => Some(Forward::open(&options, &*receiver.log).await?),
            None => None,
        };
        let mut head = receiver.log.head();
        let mut next = Seq(1);
        loop {
            let take = Take {
                events: 64,
                bytes: 8 << 20,
                narrow: None,
            };
            let batch = receiver.log.read(next, take).await;
            let batch = batch.map_err(|error| Failure::Work(error.to_string()))?;
            next = batch.next;
            for event in &batch.events {
                show(event, global)?;
                if let Some(forward) = &forward
                    && event.kind == Kind::Event
                {
                    forward.send(event.clone()).await.print(event, global)?;
                }
            }
            if !batch.events.is_empty() {
                // What has been shown is in nobody's way, and can wait for the next time.
                let _ = receiver.log.drop_before(next).await;
                continue;
            }
            if head.changed().await.is_err() {
                return Ok(());
            }
        }
    }

    fn announce(&self, receiver: &app::Receiver, key_file: &Path, global: &Global) -> Outcome {
        let sample = format!(
            "closehook trigger lead.created --url {} --key @{}",
            receiver.url,
            key_file.display()
        );
        if global.json {
            let to = &self.forward_to;
            return print_line(&json!({ "listens": receiver.url, "forwards_to": to, "sample": sample }).to_string());
        }
        let forwards = match &self.forward_to {
            Some(url) => format!("and forwards to {url}"),
            None => "and forwards nothing: say where to with --forward-to URL".to_owned(),
        };
        print_line(&format!("listens on {} {forwards}", receiver.url))?;
        print_line(&format!("send a sample: {sample}\nCtrl-C ends it"))
    }
}

/// What `--forward-to` means: an http sink with its promises, for a receiver that may well be on this machine.
fn sink_options(url: &str) -> Result<SinkOptions, Failure> {
    let mut faults: Vec<Fault> = Vec::new();
    let table = json!({ "url": url, "forward_signature": true, "allow_private": true });
    let http = sinks::REGISTRY.iter().find(|kind| kind.name == "http");
    let options = http.and_then(|http| http.options_of("", table, &mut faults));
    let fault = faults.first().map(|fault| fault.message.clone());
    match (options, fault) {
        (Some(options), None) => Ok(options),
        (_, fault) => Err(Failure::Usage(format!("--forward-to: {}", fault.unwrap_or_default()))),
    }
}

/// The configuration with everything in this directory, and no more of it than receiving takes.
fn within(mut config: Config, dir: &Path) -> Config {
    if let Some(acme) = &mut config.server.acme
        && acme.cache.is_none()
    {
        // The certificate that the daemon has ordered; none is ordered here.
        acme.cache = Some(config.log.dir.join("acme"));
    }
    config.log.dir = dir.join("log");
    config.log.max_size = None;
    config.log.segment_size = SEGMENT;
    config.close.credentials = None;
    config.sinks = Vec::new();
    config.rules = Vec::new();
    config
}

/// The configured keys, and one made for now, in a file that only its owner can read.
fn keys(config: &Config, dir: &Path, is_json: bool) -> Result<(Verifier, std::path::PathBuf), Failure> {
    let (mut keys, faults) = app::readable_keys(config, false);
    // Who develops often may not read the daemon's secrets.
    for fault in faults {
        report::notice(is_json, &format!("{fault}; what it has signed is refused"));
    }
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| Failure::Work(error.to_string()))?;
    let (text, file) = (hex::encode(random), dir.join("signature_key"));
    framefile::replace_file(&file, text.as_bytes())?;
    keys.keys.push(Key::from_hex(None, &text).map_err(Failure::Work)?);
    Ok((keys, file))
}

/// An event in a line.
fn show(event: &Event, global: &Global) -> Outcome {
    let view = event.view();
    let type_action = view.and_then(View::type_action);
    let id = view.map(|view| view.id.as_str()).unwrap_or_default();
    let lead = view.and_then(|view| view.lead_id.as_deref()).unwrap_or_default();
    if global.json {
        let value = json!({
            "seq": event.seq, "received_at": event.received_at, "kind": event.kind, "type": type_action,
            "id": id, "lead_id": view.and_then(|view| view.lead_id.as_deref()),
        });
        return print_line(&value.to_string());
    }
    let what = match (event.kind, &type_action) {
        (Kind::Quarantined, _) => "(not readable as a delivery: the daemon would keep it in quarantine)",
        (_, Some(type_action)) => type_action,
        (_, None) => "(no type)",
    };
    let time = event.received_at.strftime("%H:%M:%SZ");
    print_line(plain::line(&format!("{time}  {what}  {id}  {lead}")).trim_end())
}

/// The program that is being written.
struct Forward {
    sink: Box<dyn Sink>,
    answers: tokio::sync::Mutex<mpsc::UnboundedReceiver<String>>,
}

impl Forward {
    async fn open(options: &SinkOptions, log: &dyn Log) -> Result<Forward, Failure> {
        let (said, answers) = mpsc::unbounded_channel();
        let context = sinks::Context {
            name: "listen".into(),
            timeout: PATIENCE,
            log_id: log.id().to_owned(),
            epoch: log.epoch().to_owned(),
            answers: Some(said),
            ..sinks::Context::default()
        };
        let opened = options.open(context).await;
        let opened = opened.map_err(|unavailable| Failure::Work(unavailable.to_string()))?;
        Ok(Forward {
            sink: opened.sink,
            answers: tokio::sync::Mutex::new(answers),
        })
    }

    /// Once, whatever comes of it.
    async fn send(&self, event: Arc<Event>) -> Answered {
        let deliveries = [Delivery {
            origin: Origin::Live,
            event,
            rules: Arc::default(),
            attempt: 1,
            rendered: None,
        }];
        let no_mark = |_: &[Delivered]| Mark {
            epoch: String::new(),
            seq: Seq::ZERO,
            text: String::new(),
        };
        let mut answers = self.answers.lock().await;
        while answers.try_recv().is_ok() {}
        let began = Instant::now();
        let outcome = self.sink.deliver(&Batch::new(&deliveries, &no_mark)).await;
        let (outcome, reason) = match outcome.map(|mut outcomes| outcomes.pop()) {
            Ok(Some(Delivered::Delivered)) => ("delivered", None),
            Ok(Some(Delivered::Skipped)) => ("skipped", None),
            Ok(Some(Delivered::Retry { reason, .. } | Delivered::Untried { reason })) => ("retry", Some(reason.text)),
            Ok(Some(Delivered::Reject { reason })) => ("refused", Some(reason.text)),
            Ok(None) => ("retry", Some("nothing was answered".to_owned())),
            Ok(Some(Delivered::Waits(unavailable))) | Err(unavailable) => ("unavailable", Some(unavailable.reason)),
        };
        Answered {
            status: answers.try_recv().ok(),
            outcome,
            reason,
            took: began.elapsed(),
        }
    }
}

/// What the program answered.
struct Answered {
    /// `204 No Content`; `None`: there was no answer.
    status: Option<String>,
    /// What a sink would make of it.
    outcome: &'static str,
    reason: Option<String>,
    took: Duration,
}

impl Answered {
    fn print(&self, event: &Event, global: &Global) -> Outcome {
        let ms = self.took.as_millis() as u64;
        if global.json {
            let (status, outcome, reason) = (&self.status, self.outcome, &self.reason);
            let value: Value =
                json!({ "seq": event.seq, "status": status, "outcome": outcome, "reason": reason, "ms": ms });
            return print_line(&value.to_string());
        }
        let said = match (&self.status, &self.reason) {
            // What is about a status names it.
            (_, Some(reason)) => reason.as_str(),
            (Some(status), None) => status,
            (None, None) => self.outcome,
        };
        print_line(&plain::line(&format!("           -> {said} ({ms} ms)")))
    }
}
