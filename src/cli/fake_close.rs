//! `closehook fake-close`

use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::Args;
use jiff::Timestamp;
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Global, Outcome, print_line};
use crate::config::{Rate, Span};
use crate::fake::{Fake, Moment, Options, Pace, Settings};

/// Run a Close of your own: its API and webhooks, with a made-up organization
#[derive(Debug, Args)]
#[command(
    after_help = "It speaks Close's API for webhooks and events with its documented rules and sends signed webhooks.
What happens in its organization is made up from --seed. `curl URL/fake/` lists the calls that drive
it: make events, move the clock, order faults, see what was delivered.

Examples:
  closehook fake-close --rate 2/s
  closehook fake-close --seed 7 --rate 2/s --history 5000 --api-key-file fake.key
  closehook fake-close --rate 1/m --speed 600      # a day in two and a half minutes
  closehook fake-close --virtual --history 100000
  curl -d '{\"advance\":\"4d\"}' 127.0.0.1:8490/fake/clock"
)]
pub(super) struct FakeClose {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8490")]
    listen: SocketAddr,
    /// Everything made up follows from it
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Events that happen by themselves, like 2/s or 30/m
    #[arg(long, value_name = "N/UNIT")]
    rate: Option<Rate>,
    /// Events that have happened already, over the last 30 days
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    history: u64,
    /// Holds the API key; made, readable by you only, where it is missing
    #[arg(long, value_name = "FILE")]
    api_key_file: Option<PathBuf>,
    /// Time stands still, but for POST /fake/clock
    #[arg(long = "virtual", conflicts_with = "speed")]
    is_virtual: bool,
    /// Let time go so many times as fast
    #[arg(long, default_value_t = 1.0, value_parser = speed)]
    speed: f64,
    /// When the simulated time begins: RFC 3339, a date, or a span back from now; default now
    #[arg(long, value_name = "TIME", value_parser = crate::config::time::argument)]
    start: Option<Timestamp>,
    /// Take only https URLs, as Close does, and not http to this machine
    #[arg(long)]
    https_only: bool,
    /// Deliver also to other hosts than this machine
    #[arg(long)]
    deliver_anywhere: bool,
    /// Deliver to URLs that begin with FROM at TO instead, like `https://hooks.example.com=http://127.0.0.1:8480`
    #[arg(long, value_name = "FROM=TO", value_parser = from_to)]
    deliver_to: Vec<(String, String)>,
    /// Requests a key has in five seconds
    #[arg(long, value_name = "N", default_value_t = Settings::default().rate_limit)]
    rate_limit: u32,
}

fn speed(text: &str) -> Result<f64, String> {
    let speed: f64 = text.parse().map_err(|_| "a number like 60")?;
    (speed > 0.0 && speed <= 1e6)
        .then_some(speed)
        .ok_or_else(|| "more than 0, and at most 1000000".into())
}

fn from_to(text: &str) -> Result<(String, String), String> {
    let (from, to) = text.split_once('=').ok_or("write FROM=TO")?;
    Ok((from.to_owned(), to.to_owned()))
}

impl FakeClose {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        if !self.listen.ip().is_loopback() {
            tracing::warn!("the fake listens beyond this machine: whoever has its key can use it");
        }
        let settings = Settings {
            events_per_second: self.rate.map_or(0.0, |rate| rate.0),
            allow_loopback: !self.https_only,
            deliver_anywhere: self.deliver_anywhere,
            deliver_to: self.deliver_to.into_iter().collect(),
            rate_limit: self.rate_limit,
            ..Settings::default()
        };
        let options = Options {
            seed: self.seed,
            listen: self.listen,
            pace: if self.is_virtual {
                Pace::Virtual
            } else {
                Pace::Real { speed: self.speed }
            },
            start: Some(self.start.unwrap_or_else(Timestamp::now).into()),
            api_key: self.api_key_file.as_deref().map(key_in).transpose()?,
            settings,
        };
        // Before anything is printed: whoever reads it may stop us at once.
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let fake = Fake::start(options).await?;
        let span = Span::secs(30 * 86_400).0;
        let now: Moment = fake.world().now();
        fake.world()
            .generate(self.history, now.minus(span), span)
            .map_err(|full| Failure::Usage(full.to_string()))?;
        let (base_url, api_key, root) = (fake.base_url(), fake.api_key(), fake.root_url());
        if global.json {
            print_line(
                &json!({ "base_url": base_url, "api_key": api_key, "control": format!("{root}/fake/") }).to_string(),
            )?;
        } else {
            print_line(&format!("A fake Close answers at {base_url}, API key {api_key}"))?;
            print_line("In closehook's configuration:\n")?;
            print_line(&format!(
                "[close]\nbase_url = \"{base_url}\"\napi_key = \"{api_key}\"\n"
            ))?;
            print_line("Subscribe by hand (the answer has the signature key), then see what drives it:\n")?;
            print_line(&format!(
                "curl -u {api_key}: -H 'content-type: application/json' {base_url}/webhook/ \\\n  -d '{{\"url\":\"http://127.0.0.1:8480/webhooks/close\",\"events\":[{{\"object_type\":\"lead\",\"action\":\"updated\"}}]}}'\ncurl {root}/fake/"
            ))?;
        }
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        Ok(())
    }
}

/// The key in the file, which is made where it is missing.
fn key_in(path: &Path) -> Result<String, Failure> {
    let wrong = |what: &str, error: &dyn std::fmt::Display| {
        Failure::Usage(format!("{} can't be {what}: {error}", path.display()))
    };
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() && !text.contains(':') => Ok(text.trim().to_owned()),
        Ok(_) => Err(wrong("used", &"an API key is one word without a colon")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut random = [0; 20];
            getrandom::fill(&mut random).map_err(|error| Failure::Work(error.to_string()))?;
            let key = format!("api_fake.{}", hex::encode(random));
            let mut options = std::fs::OpenOptions::new();
            std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
            let mut file = options
                .write(true)
                .create_new(true)
                .open(path)
                .map_err(|error| wrong("made", &error))?;
            writeln!(file, "{key}").map_err(|error| wrong("written", &error))?;
            Ok(key)
        }
        Err(error) => Err(wrong("read", &error)),
    }
}
