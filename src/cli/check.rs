//! `closehook check`

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use clap::Args;
use futures::StreamExt as _;
use rustix::fs::{Access, access};
use serde_json::json;

use super::connect::asking_close;
use super::{Failure, Global, Outcome, print_line};
use crate::admin::tokens::Tokens;
use crate::app;
use crate::close::Setbacks;
use crate::config::{Config, Credentials, Engine, Fault, Layers, ReadConfig, SinkConfig};
use crate::listener::{acme, tls};
use crate::log::{self, Log};
use crate::retention;

/// Sinks that are contacted at a time.
const PROBES: usize = 8;

/// Validate configuration, rules and data directory, naming every fault with its place
#[derive(Debug, Args)]
#[command(
    after_help = "Faults (exit 2) keep the daemon, or the sink they are about, from running. Warnings do not: damage in the data directory is put in order
when it starts, and sinks that can't be reached are tried again. With --probe the exit code is 1 if a sink or Close's API does
not answer, and a clock that differs from Close's by more than a minute is a warning with both times.

Examples:
  closehook check
  closehook check --probe
  closehook check --create     with log.engine = \"jetstream\": once, on any node"
)]
pub(super) struct Check {
    /// Contact each sink, delivering nothing, Close's API, and the servers that keep the log
    #[arg(long)]
    probe: bool,

    /// Make the streams that the log is kept in, where they are missing
    #[arg(long)]
    create: bool,
}

impl Check {
    /// The data directory, where it is written to: the newest refresh token is kept there. What is wrong with the configuration is
    /// said later.
    pub(super) fn changes(&self, global: &Global) -> Option<PathBuf> {
        let config = self.probe.then(|| Config::load(&global.layers()).ok()).flatten()?;
        uses_tokens(&config).then_some(config.log.dir)
    }

    pub(super) async fn run(self, global: &Global) -> Outcome {
        let config = valid(&global.layers()).or_else(|faults| refuse(global, faults))?;
        let faults = faults(&config);
        let mut warnings = warnings(&config, &faults).await;
        let made = if self.create && faults.is_empty() {
            create(&config).await?
        } else {
            Vec::new()
        };
        let mut probes = Vec::new();
        if self.probe && faults.is_empty() {
            warnings.extend(probe_log(&config, &mut probes).await);
            warnings.extend(probe_all(global, &config, &mut probes).await);
        }
        let failed = probes.iter().filter(|probe| probe.answer.is_err()).count();
        if global.json {
            let probes: Vec<_> = probes.iter().map(Probe::json).collect();
            let value = json!({ "ok": faults.is_empty() && failed == 0, "faults": list(&faults), "warnings": warnings, "probes": probes, "made": made });
            print_line(&value.to_string())?;
        } else {
            made.iter()
                .try_for_each(|name| print_line(&format!("made the stream {name}")))?;
            for warning in &warnings {
                print_line(&format!("warning: {warning}"))?;
            }
            probes.iter().try_for_each(|probe| print_line(&probe.line()))?;
        }
        if !faults.is_empty() {
            return Err(Failure::Faults(faults));
        }
        if failed > 0 {
            return Err(Failure::Work(format!(
                "{failed} of {} can't be reached; the daemon would try again and again",
                probes.len()
            )));
        }
        if global.json {
            return Ok(());
        }
        print_line(&format!(
            "{} is valid: {} sink(s), {} rule(s)",
            global.config.display(),
            config.sinks.len(),
            config.rules.len()
        ))?;
        Ok(())
    }
}

/// What is to be known about a configuration in which nothing is wrong that is not among its faults.
async fn warnings(config: &Config, faults: &[Fault]) -> Vec<String> {
    let mut warnings = config.warnings(crate::close::has_live_key(&config.log.dir));
    warnings.retain(|warning| !faults.iter().any(|fault| fault.message == *warning));
    warnings.extend(Tokens::warnings(&config.admin));
    warnings.extend(unwritable(&config.log.dir));
    warnings.extend(data_directory(config).await);
    let damaged = crate::close::damaged_on_disk(&config.log.dir);
    warnings.extend(damaged.into_iter().map(|one| one.what));
    warnings
}

/// Ends with faults, beside which nothing else is looked at.
fn refuse<T>(global: &Global, faults: Vec<Fault>) -> Result<T, Failure> {
    if global.json {
        let value = json!({ "ok": false, "faults": list(&faults), "warnings": [], "probes": [], "made": [] });
        print_line(&value.to_string())?;
    }
    Err(Failure::Faults(faults))
}

/// What somebody answered who was contacted.
struct Probe {
    /// `sink`, `api` or `log`.
    kind: &'static str,
    name: String,
    answer: Result<String, String>,
}

impl Probe {
    fn json(&self) -> serde_json::Value {
        match &self.answer {
            Ok(says) => json!({ self.kind: self.name, "ok": true, "says": says }),
            Err(error) => json!({ self.kind: self.name, "ok": false, "says": error }),
        }
    }

    fn line(&self) -> String {
        let Probe { kind, name, answer } = self;
        match answer {
            Ok(says) => format!("{kind} {name}: {says}"),
            Err(error) => format!("{kind} {name}: FAILED: {error}"),
        }
    }
}

/// Makes the streams that are missing; gives their names.
#[cfg_attr(
    not(feature = "engine-jetstream"),
    expect(clippy::unused_async, reason = "as where there are streams")
)]
async fn create(config: &Config) -> Result<Vec<String>, Failure> {
    match config.log.engine {
        Engine::Local => Err(Failure::Usage(
            "--create makes the streams of log.engine = \"jetstream\", and it is \"local\": there is nothing to make"
                .into(),
        )),
        #[cfg(feature = "engine-jetstream")]
        Engine::JetStream => {
            let made = app::create_buckets(config).await;
            made.map_err(|error| Failure::Work(error.to_string()))
        }
        // A fault of the configuration.
        #[cfg(not(feature = "engine-jetstream"))]
        Engine::JetStream => Ok(Vec::new()),
    }
}

/// Asks the servers that keep the log whether they keep what is promised; gives what weakens it.
#[cfg(feature = "engine-jetstream")]
async fn probe_log(config: &Config, probes: &mut Vec<Probe>) -> Vec<String> {
    if config.log.engine != Engine::JetStream {
        return Vec::new();
    }
    let looked = match log::jetstream::Options::from_config(config) {
        Ok(options) => log::jetstream::check::look(&options).await,
        Err(why) => Err(why),
    };
    let looked = match (looked, app::faults_of_buckets(config).await) {
        (Ok(mut found), Ok(faults)) => {
            found.faults.extend(faults);
            Ok(found)
        }
        (Ok(_), Err(error)) => Err(error.to_string()),
        (Err(why), _) => Err(why),
    };
    let (answer, warnings) = match looked {
        Ok(found) if found.faults.is_empty() => (Ok("its servers keep what they acknowledge".into()), found.warnings),
        Ok(found) => (Err(found.faults.join("; ")), found.warnings),
        Err(why) => (Err(why), Vec::new()),
    };
    probes.push(Probe {
        kind: "log",
        name: config
            .log
            .jetstream
            .as_ref()
            .map_or_else(String::new, |jetstream| jetstream.stream.clone()),
        answer,
    });
    warnings
}

#[cfg(not(feature = "engine-jetstream"))]
#[expect(clippy::unused_async, reason = "as where there are streams")]
async fn probe_log(_config: &Config, _probes: &mut Vec<Probe>) -> Vec<String> {
    Vec::new()
}

/// Contacts every sink, and Close's API where it is used; gives a warning where Close's clock is another.
async fn probe_all(global: &Global, config: &Config, probes: &mut Vec<Probe>) -> Option<String> {
    let sinks = futures::stream::iter(&config.sinks).map(async |sink| Probe {
        kind: "sink",
        name: sink.name.clone(),
        answer: crate::deliver::probe(sink).await.map_err(|error| error.to_string()),
    });
    let (sinks, (close, clock)) = tokio::join!(sinks.buffered(PROBES).collect::<Vec<_>>(), probe_close(global, config));
    probes.extend(sinks);
    probes.extend(close);
    clock
}

/// Contacts Close's API where it is used; gives a warning where its clock is another.
async fn probe_close(global: &Global, config: &Config) -> (Vec<Probe>, Option<String>) {
    let mut probes = Vec::new();
    if config.close.credentials.is_none() {
        return (probes, None);
    }
    let dir = &config.log.dir;
    let (answer, clock, fields) = if uses_tokens(config) && !dir.exists() {
        let why = format!(
            "it was not asked: that uses up the refresh token, and the next one would be kept in {}, which is not there yet; start the daemon first",
            dir.display()
        );
        (Err(why), None, None)
    } else {
        match app::shared_close(config).await {
            Ok(shared) => {
                let setbacks = Setbacks::default();
                let probing = crate::close::probe_all(config, shared, &setbacks);
                let says = asking_close(global, config, async || Ok(setbacks.newest()), probing).await;
                (says.who.map_err(|error| error.to_string()), says.clock, says.fields)
            }
            Err(error) => (Err(error.to_string()), None, None),
        }
    };
    probes.push(Probe {
        kind: "api",
        name: config.close.base_url.to_string(),
        answer,
    });
    probes.extend(fields.map(|answer| Probe {
        kind: "api",
        name: format!("{}custom_field_schema/", config.close.base_url),
        answer: answer.map_err(|error| error.to_string()),
    }));
    (probes, clock)
}

/// Whether asking Close uses up a refresh token, so that the next one has to be kept.
fn uses_tokens(config: &Config) -> bool {
    matches!(config.close.credentials, Some(Credentials::OAuth(_)))
}

fn list(faults: &[Fault]) -> Vec<serde_json::Value> {
    faults
        .iter()
        .map(|fault| json!({ "place": fault.place, "message": fault.message }))
        .collect()
}

/// The configuration where it is valid; else every fault in it that can be found now.
pub(super) fn valid(layers: &Layers) -> Result<Config, Vec<Fault>> {
    let read = ReadConfig::load(layers)?;
    if read.faults.is_empty() {
        Ok(read.config)
    } else {
        Err(all_faults(&read))
    }
}

/// The faults of a configuration that is not valid, and what else it names that can't be used: whoever mends the one mends the other with
/// it.
fn all_faults(read: &ReadConfig) -> Vec<Fault> {
    let mut faults = read.faults.clone();
    let has_fault_at = |place: &str| read.faults.iter().any(|fault| fault.place.starts_with(place));
    let sinks = read.sinks().map(|(place, sink)| (place.to_owned(), sink));
    for fault in unusable(&read.config, sinks) {
        // Of what is faulty the default stands there, of which nobody has said anything.
        let is_of_default = match fault.place.as_str() {
            "log.dir" | "close.local_key" => has_fault_at("log.dir"),
            "log.jetstream" => has_fault_at("log."),
            _ => false,
        };
        let is_told = |known: &Fault| known.place.starts_with(&fault.place) && fault.message.contains(&known.message);
        if !is_of_default && !read.faults.iter().any(is_told) {
            faults.push(fault);
        }
    }
    faults
}

/// What a valid configuration names that can't be used.
pub(super) fn faults(config: &Config) -> Vec<Fault> {
    let sinks = config.sinks.iter().enumerate();
    unusable(config, sinks.map(|(index, sink)| (format!("sinks[{index}]"), sink)))
}

/// What a configuration names that can't be used; of its sinks these, each with its place.
fn unusable<'c>(config: &Config, sinks: impl Iterator<Item = (String, &'c SinkConfig)>) -> Vec<Fault> {
    let mut faults = startup_faults(config);
    faults.extend(fault_of_data_dir(&config.log.dir).map(|message| Fault {
        place: "log.dir".into(),
        message,
    }));
    faults.extend(Tokens::faults(&config.admin));
    faults.extend(sinks.filter_map(|(place, sink)| {
        let message = sink.options.fault()?;
        Some(Fault { place, message })
    }));
    faults
}

/// Why no data directory can ever be there; what can't be looked at is no fault. Writes nothing.
fn fault_of_data_dir(dir: &Path) -> Option<String> {
    for above in dir.ancestors().filter(|above| !above.as_os_str().is_empty()) {
        let why = match std::fs::metadata(above) {
            Ok(found) if found.is_dir() => return None,
            Ok(_) => "is no directory",
            Err(error) if error.kind() == ErrorKind::NotFound && above.is_symlink() => "is a link that leads nowhere",
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => continue,
            Err(_) => return None,
        };
        return Some(if above == dir {
            format!(
                "{} {why}: name a directory, or a place where one can be made",
                dir.display()
            )
        } else {
            format!("{} can't be made: {} {why}", dir.display(), above.display())
        });
    }
    None
}

/// A warning where the data directory can't be written to, or made, by whoever asks: the daemon may be somebody else.
fn unwritable(dir: &Path) -> Option<String> {
    let above = dir.ancestors().find(|above| above.is_dir())?;
    let error = access(above, Access::WRITE_OK | Access::EXEC_OK).err()?;
    let error = std::io::Error::from(error);
    Some(format!(
        "log.dir: this user can't write to {} ({error}): the daemon keeps its events in {} only if it runs as a user who can",
        above.display(),
        dir.display()
    ))
}

/// Those without which it can't receive, so that the daemon does not start. What a sink lacks keeps that sink waiting and nothing else
/// (decision 2): to receive matters more.
pub(super) fn startup_faults(config: &Config) -> Vec<Fault> {
    let mut faults = app::verifier(config, false).err().unwrap_or_default();
    #[cfg(feature = "engine-jetstream")]
    if config.log.engine == Engine::JetStream
        && let Err(message) = log::jetstream::Options::from_config(config)
    {
        faults.push(Fault {
            place: "log.jetstream".into(),
            message,
        });
    }
    if let Some(files) = &config.server.tls
        && let Err(message) = tls::load(files)
    {
        faults.push(Fault {
            place: "server.tls".into(),
            message,
        });
    }
    if let Some(settings) = &config.server.acme
        && let Err(message) = acme::client_config(settings)
    {
        faults.push(Fault {
            place: "server.acme.ca".into(),
            message,
        });
    }
    faults
}

/// What is wrong with the data directory; none of it keeps the daemon from starting.
async fn data_directory(config: &Config) -> Vec<String> {
    let dir = &config.log.dir;
    // Nothing of the log is in it where others keep it.
    if !dir.exists() || config.log.engine != Engine::Local {
        return Vec::new();
    }
    let options = log::Options {
        read_only: true,
        ..log::Options::from_config(config)
    };
    match log::LocalLog::open(options) {
        Ok(log) => {
            // What its sinks have seen may tell of more than the log does.
            let (gaps, unseen) = match app::open_read(config).await {
                Ok(looked) => (looked.log.stats().gaps, None),
                Err(error) => {
                    let why = format!("whether the end of the log is missing can't be seen: {error}");
                    (log.stats().gaps, Some(why))
                }
            };
            let lost = |gap: &log::Gap| format!("{} are lost: {}", gap.told(), gap.reason);
            let mut warnings: Vec<String> = gaps.iter().map(lost).chain(unseen).collect();
            warnings.extend(log.damaged_keys());
            warnings.extend(crowded(config, &log));
            warnings
        }
        Err(log::OpenError::Missing(_)) => Vec::new(),
        Err(error) => vec![format!("data directory: {error}")],
    }
}

/// Whether what is no event leaves the events too little of `log.max_size`.
fn crowded(config: &Config, log: &dyn Log) -> Option<String> {
    let dir = &config.log.dir;
    let cap = retention::cap(dir, config.log.max_size.map(|size| size.0)).ok()?;
    let (events, _) = log.disk_bytes();
    retention::crowded(cap, retention::used(dir).ok()?.saturating_sub(events))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_data_directory_that_can_never_be_made_is_a_fault() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        std::fs::write(&file, "").unwrap();
        std::os::unix::fs::symlink(dir.path().join("nowhere"), &link).unwrap();
        for (bad, part) in [
            (file.clone(), "is no directory: name"),
            (file.join("x"), "can't be made: "),
            (file.join("x/y"), "file is no directory"),
            (link.clone(), "is a link that leads nowhere"),
            (link.join("x"), "can't be made: "),
        ] {
            let said = fault_of_data_dir(&bad).unwrap();
            assert!(said.contains(part), "{}: {said}", bad.display());
        }
        for good in [
            dir.path().to_owned(),
            dir.path().join("a/b"),
            "relative".into(),
            "/".into(),
        ] {
            assert_eq!(fault_of_data_dir(&good), None, "{}", good.display());
        }
    }
}
