//! A Close of one's own, as a program: `cargo run -p fake-close -- ARGS`.

use std::error::Error;
use std::io::Write;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Parser;
use fake_close::{Fake, HISTORY, Moment, Options, Pace, Settings, Span};
use serde_json::json;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::filter::LevelFilter;

/// Run a Close of your own: its API and webhooks, with a made-up organization
#[derive(Debug, Parser)]
#[command(
    name = "fake-close",
    max_term_width = 100,
    after_help = "It speaks Close's API for webhooks and events with its documented rules and sends signed webhooks.
What happens in its organization is made up from --seed. `curl URL/fake/` lists the calls that drive
it: make events, move the clock, order faults, see what was delivered.

Examples, from a checkout of closehook:
  cargo run -p fake-close -- --rate 2/s
  cargo run -p fake-close -- --seed 7 --rate 2/s --history 5000 --api-key-file fake.key
  cargo run -p fake-close -- --rate 1/m --speed 600      # a day in two and a half minutes
  cargo run -p fake-close -- --virtual --history 100000
  curl -d '{\"advance\":\"4d\"}' 127.0.0.1:8490/fake/clock"
)]
#[expect(clippy::struct_excessive_bools, reason = "flags, independent of each other")]
struct Arguments {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:8490")]
    listen: SocketAddr,
    /// Everything made up follows from it
    #[arg(long, default_value_t = 7)]
    seed: u64,
    /// Events that happen by themselves, like 2/s or 30/m
    #[arg(long, value_name = "N/UNIT", value_parser = rate)]
    rate: Option<f64>,
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
    #[arg(long, value_name = "TIME", value_parser = time)]
    start: Option<Moment>,
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
    /// Machine-readable output: one JSON object
    #[arg(long)]
    json: bool,
    /// Log more (twice: everything)
    #[arg(short, long, action = clap::ArgAction::Count)]
    verbose: u8,
}

/// How it ends where it can't go on.
type Failure = Box<dyn Error>;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    let level = match arguments.verbose {
        0 => LevelFilter::WARN,
        1 => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(std::io::stderr)
        .init();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let ended = runtime
        .map_err(Failure::from)
        .and_then(|runtime| runtime.block_on(run(arguments)));
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            // Nobody to tell is nobody to tell.
            let _ = writeln!(std::io::stderr(), "fake-close: {failure}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: Arguments) -> Result<(), Failure> {
    if !arguments.listen.ip().is_loopback() {
        tracing::warn!("the fake listens beyond this machine: whoever has its key can use it");
    }
    let options = Options {
        seed: arguments.seed,
        listen: arguments.listen,
        pace: if arguments.is_virtual {
            Pace::Virtual
        } else {
            Pace::Real { speed: arguments.speed }
        },
        start: Some(arguments.start.unwrap_or_else(Moment::wall)),
        api_key: arguments.api_key_file.as_deref().map(key_in).transpose()?,
        settings: Settings {
            events_per_second: arguments.rate.unwrap_or(0.0),
            allow_loopback: !arguments.https_only,
            deliver_anywhere: arguments.deliver_anywhere,
            deliver_to: arguments.deliver_to.into_iter().collect(),
            rate_limit: arguments.rate_limit,
            ..Settings::default()
        },
    };
    // Before anything is printed: whoever reads it may stop us at once.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let fake = Fake::start(options).await?;
    let now = fake.world().now();
    fake.world().generate(arguments.history, now.minus(HISTORY), HISTORY)?;
    let text = if arguments.json {
        let (base_url, root) = (fake.base_url(), fake.root_url());
        json!({ "base_url": base_url, "api_key": fake.api_key(), "control": format!("{root}/fake/") }).to_string()
    } else {
        how_to_go_on(&fake)
    };
    match writeln!(std::io::stdout(), "{text}") {
        // Whoever read our output has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(()),
        written => written?,
    }
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

fn how_to_go_on(fake: &Fake) -> String {
    let (base_url, api_key, root) = (fake.base_url(), fake.api_key(), fake.root_url());
    format!(
        "A fake Close answers at {base_url}, API key {api_key}
In closehook's configuration:

[close]
base_url = \"{base_url}\"
api_key = \"{api_key}\"

Subscribe by hand (the answer has the signature key), then see what drives it:

curl -u {api_key}: -H 'content-type: application/json' {base_url}/webhook/ \\
  -d '{{\"url\":\"http://127.0.0.1:8480/webhooks/close\",\"events\":[{{\"object_type\":\"lead\",\"action\":\"updated\"}}]}}'
curl {root}/fake/"
    )
}

/// Events a second.
fn rate(text: &str) -> Result<f64, String> {
    let read = || {
        let (number, unit) = text.split_once('/')?;
        let number: f64 = number.trim().parse().ok()?;
        let seconds = match unit.trim() {
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        (0.0..=1e6).contains(&number).then_some(number / seconds)
    };
    read().ok_or_else(|| "write 2/s, 30/m or 1000/h".into())
}

/// RFC 3339, a date, or a span back from now.
fn time(text: &str) -> Result<Moment, String> {
    let back = || text.parse::<Span>().ok().map(|span| Moment::wall().minus(span.0));
    Moment::parse(text)
        .or_else(back)
        .ok_or_else(|| "write 2024-02-15T12:00:00Z, 2024-02-15, or a span back from now like 36h".into())
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

/// The key in the file, which is made where it is missing.
fn key_in(path: &Path) -> Result<String, Failure> {
    let wrong = |what: &str, error: &dyn std::fmt::Display| {
        Failure::from(format!("{} can't be {what}: {error}", path.display()))
    };
    match std::fs::read_to_string(path) {
        Ok(text) if !text.trim().is_empty() && !text.contains(':') => Ok(text.trim().to_owned()),
        Ok(_) => Err(wrong("used", &"an API key is one word without a colon")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            let mut random = [0; 20];
            getrandom::fill(&mut random).map_err(|error| Failure::from(error.to_string()))?;
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
