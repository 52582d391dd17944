//! `closehook init`: from an installed package to verified events, and from something that broke back to them.
//!
//! ```text
//! flags, configuration, a person ──► answers ──► edited text ──► checks ──► files
//!                                                                            │
//!       a delivery through the public URL ◄── subscription ◄── certificate ◄── daemon
//! ```
//!
//! Each step looks at how things are, does what is missing, and says in a line which of the two it was; so running it again
//! repairs, and an interruption costs nothing. Nothing is written before the answers are complete, the key is known to Close,
//! the edited configuration is valid, and name and port can be had.
//!
//! `site` is how things are and are to be, `run` the steps. Pure: `document` (the text), `answers` (what it has to say), the judgements of `delivery`, `service` and `checks`. Edges:
//! `term`, `files`, and the parts of the others that talk to systemd, the daemon and the network.

mod answers;
mod checks;
mod daemon;
mod delivery;
mod document;
mod edit;
mod files;
mod report;
mod run;
mod service;
mod site;

use std::path::PathBuf;

use clap::Args;
use secrecy::SecretString;
use tokio::signal::unix::{SignalKind, signal};

use self::answers::{Asked, Known, Way};
use self::files::KeyPlace;
use self::report::{Done, Report};
use self::run::Run;
use self::site::{Account, Key, Origin, Site, with_key};
use super::pick::secret_argument;
use super::{Failure, Global, Outcome, term};
use crate::close;
use crate::config::{Credentials, Listen, acme_directory};

/// So often a person may mistype the API key.
const KEYS_MAX: usize = 5;

/// Set up receiving from Close and prove it; run again, it repairs
#[derive(Debug, Args)]
#[command(
    after_help = "It asks for what it does not know, shows what it would change, and says of each step whether it was
in order, is now, or is not. Run it again after something broke: what is good stays as it is. For
scripts there are --yes with the answers as flags, and --json, which makes each step one line.

The API key is kept beside the configuration, readable by the daemon only. The test is a signed
delivery with no event in it: it is kept in quarantine (`closehook events list --quarantined`) and
delivered to nobody.

Examples:
  closehook init
  closehook init --yes --url hooks.example.com --https acme --api-key @key.txt
  closehook init --yes --url hooks.example.com --https proxy \\
    --api-key - < key.txt
  closehook init --dry-run            # what would change; nothing is written

Exit codes: 0 every step is in order; 1 one failed; 2 bad usage, like --yes without a needed flag."
)]
pub(super) struct Init {
    #[command(flatten)]
    flags: Flags,
}

/// Answers given beforehand.
#[derive(Debug, Clone, Default, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Flags {
    /// Public URL that Close shall deliver to, or the public name of this host
    #[arg(long, value_name = "URL|HOST")]
    url: Option<String>,
    /// API key of an administrator at Close: @FILE, or - for standard input
    #[arg(long, value_name = "@FILE|-")]
    api_key: Option<String>,
    /// How HTTPS comes about
    #[arg(long, value_enum, value_name = "HOW")]
    https: Option<Way>,
    /// With --https acme: where the certificate's issuer writes to when something is wrong
    #[arg(long, value_name = "ADDRESS")]
    email: Option<String>,
    /// With --https acme: production or staging (Let's Encrypt's), or the URL of another directory
    #[arg(long, value_name = "DIRECTORY", value_parser = directory)]
    acme_directory: Option<String>,
    /// With --https files: PEM file with the certificate and its chain
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// With --https files: PEM file with its private key
    #[arg(long, value_name = "FILE")]
    cert_key: Option<PathBuf>,
    /// With --https proxy: networks of the proxies, with commas between them; default: this machine
    #[arg(long, value_name = "NETWORKS")]
    trusted_proxies: Option<String>,
    /// Where the daemon listens, like `127.0.0.1:8480` or `unix:/path`
    #[arg(long, value_name = "ADDRESS")]
    listen: Option<Listen>,
    /// Data directory of a new configuration
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Ask nothing: flags and configuration have every answer
    #[arg(short, long)]
    yes: bool,
    /// Show what would change, and write nothing
    #[arg(long)]
    dry_run: bool,
    /// Leave systemd alone
    #[arg(long)]
    no_service: bool,
    /// Send no test delivery
    #[arg(long)]
    no_test: bool,
}

fn directory(text: &str) -> Result<String, String> {
    acme_directory(text).map(|_| text.to_owned())
}

impl Init {
    pub(super) async fn run(self, global: &Global) -> Outcome {
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let interrupted = || {
            Err(Failure::Work(
                "interrupted: what was done stays, and running it again goes on from there".into(),
            ))
        };
        tokio::select! {
            outcome = self.work(global) => outcome,
            _ = interrupt.recv() => interrupted(),
            _ = terminate.recv() => interrupted(),
        }
    }

    async fn work(&self, global: &Global) -> Outcome {
        let flags = &self.flags;
        let is_attended = !flags.yes && term::is_attended();
        let mut asked = if is_attended {
            Asked::Person
        } else {
            Asked::Nobody(Vec::new())
        };
        let mut report = Report::new(global.json);
        let site = Site::find(global).await?;
        if let Some(unit) = &site.unit
            && !files::is_root()
            && !flags.no_service
        {
            return Err(Failure::Work(format!(
                "{} runs this configuration: run this as root, or with --no-service",
                unit.name
            )));
        }
        let known = Known {
            config: &site.config,
            file: &site.file,
            is_new: site.is_new,
        };
        let answers = answers::gather(flags, &known, &mut asked).await?;
        let account = self.account(&site, &mut asked, &mut report).await?;
        if let Asked::Nobody(missing) = &asked
            && (!missing.is_empty() || !flags.yes && !flags.dry_run)
        {
            return Err(Failure::Usage(nobody(flags.yes || flags.dry_run, missing)));
        }
        let (Some(answers), Some(account)) = (answers, account) else {
            return Err(Failure::Usage("not every question was answered".into()));
        };
        let draft = site.draft(&answers, &account)?;
        let mut run = Run {
            flags,
            site,
            answers,
            account,
            draft,
            is_attended,
            report,
            has_new_credential: false,
            own: None,
        };
        if flags.dry_run {
            return run.rehearse().await;
        }
        run.carry_out().await
    }

    /// Whose API key it is: given, kept, or asked for; tried at Close. `None`: nobody gave one.
    async fn account(&self, site: &Site, asked: &mut Asked, report: &mut Report) -> Result<Option<Account>, Failure> {
        let given = self.flags.api_key.as_deref();
        let given = given.map(|from| secret_argument("--api-key", from)).transpose();
        let given = given.map_err(Failure::Usage)?;
        if given.is_none() && matches!(site.config.close.credentials, Some(Credentials::OAuth(_))) {
            return Ok(Some(Account::OAuth));
        }
        let place = KeyPlace::of(&site.config, &site.file, site.unit.is_some());
        let mut candidate = match given {
            Some(key) => Some((key, Origin::New)),
            None => site.kept_key(&place),
        };
        for _ in 0..KEYS_MAX {
            let Some((key, origin)) = candidate.take() else {
                match asked {
                    Asked::Nobody(missing) => {
                        missing.push("--api-key");
                        return Ok(None);
                    }
                    Asked::Person => {
                        let key = term::secret("API key of an administrator (Close: Settings, Developer, API keys)");
                        let key = key.await?;
                        if !key.is_empty() {
                            candidate = Some((SecretString::from(key), Origin::New));
                        }
                        continue;
                    }
                }
            };
            let answer = close::probe(&with_key(&site.config, &key)).await;
            let kept = |says, is_tried| {
                Ok(Some(Account::Key(Key {
                    secret: key.clone(),
                    place: place.clone(),
                    origin,
                    says,
                    is_tried,
                })))
            };
            let fault = match answer {
                Ok(says) => return kept(says, true),
                Err(close::Error::WrongKey) if matches!(asked, Asked::Person) => {
                    eprintln!("  Close does not know this API key: copy it as a whole, from the right organization");
                    continue;
                }
                Err(error @ close::Error::WrongKey) => format!("{error}; give another one with --api-key @FILE"),
                // A key that worked before is not to blame, and other things may be put right meanwhile.
                Err(error) if origin != Origin::New => return kept(error.to_string(), false),
                Err(error) => format!("it can't be tried: {error}"),
            };
            report.step(Done::Failed, "api-key", &fault)?;
            break;
        }
        Err(Failure::Work(
            "without an API key that Close knows nothing was changed".into(),
        ))
    }
}

/// What a script is told that has nobody to ask.
fn nobody(is_agreed: bool, missing: &[&str]) -> String {
    let flags: Vec<&str> = missing
        .iter()
        .map(|flag| match *flag {
            "--url" => "--url URL",
            "--https" => "--https acme|proxy|files",
            "--api-key" => "--api-key @FILE",
            "--cert" => "--cert FILE",
            "--cert-key" => "--cert-key FILE",
            "--trusted-proxies" => "--trusted-proxies NETWORKS",
            other => other,
        })
        .collect();
    let flags = flags.join(", ");
    match (is_agreed, missing.is_empty()) {
        (true, _) => format!("--yes asks nothing, and these are needed: {flags}"),
        (false, true) => "there is nobody to ask, as this is no terminal: say --yes if every change is meant".into(),
        (false, false) => format!("there is nobody to ask, as this is no terminal: say --yes, and {flags}"),
    }
}
