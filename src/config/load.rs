//! Putting the layers together: built-in defaults < file < environment < flags.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::admin::read_admin;
use super::close::read_close;
use super::definition::SinkType;
use super::jetstream::read_engine;
use super::listed::{self, Listed};
use super::node::{self, read_node};
use super::own;
use super::server::read_server;
use super::table::{FromValue, Table};
use super::text::with_filters_as_text;
use super::{Config, Engine, Fault, Log, Role, RuleConfig, SinkConfig, Size, Span};
use crate::sorted;

/// Every fault of rules, given the names of the sinks there are. Filters are a language of their own, which the configuration
/// does not know.
pub type JudgeRules = fn(&[RuleConfig], &[&str]) -> Vec<Fault>;

/// Where the configuration comes from, and what may be in it.
#[derive(Debug, Clone)]
pub struct Layers {
    /// The types of sinks there are.
    pub sinks: &'static [&'static SinkType],
    /// Who knows what rules may say.
    pub rules: JudgeRules,
    /// The file; `None`: defaults and environment alone.
    pub file: Option<PathBuf>,
    /// `CLOSEHOOK__...` variables; others are not looked at, whatever is in them.
    pub environment: HashMap<OsString, OsString>,
    /// From flags: dotted key and value.
    pub overrides: Vec<(String, String)>,
}

impl Layers {
    /// The defaults alone, for who knows these types of sinks and what rules may say.
    pub fn new(sinks: &'static [&'static SinkType], rules: JudgeRules) -> Layers {
        Layers {
            sinks,
            rules,
            file: None,
            environment: HashMap::new(),
            overrides: Vec::new(),
        }
    }

    /// The file's text; empty where there is no file.
    pub fn text(&self) -> Result<String, Vec<Fault>> {
        let Some(path) = &self.file else {
            return Ok(String::new());
        };
        crate::files::read_text(path).map_err(|error| {
            let remedy = match error.kind() {
                ErrorKind::PermissionDenied => "run this as a user who may read it",
                _ => "name the right file with -c FILE",
            };
            single(path, format!("the configuration can't be read ({error}): {remedy}"))
        })
    }

    /// The names of the environment's variables that count, in order.
    pub fn variables(&self) -> Vec<String> {
        let own = self.environment.keys().filter(|name| is_own(name));
        let mut names: Vec<String> = own.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort_unstable();
        names
    }
}

/// So long an event is known at least, so that what Close repeats is stored once.
pub const KEYS_WINDOW: Span = Span::secs(31 * 86_400);

const ENVIRONMENT_PREFIX: &str = "CLOSEHOOK";

/// The variables that are meant for closehook, as text. Of the others only the names are compared: they are none of our business, and
/// need not even be text.
fn own_variables(environment: &HashMap<OsString, OsString>, faults: &mut Vec<Fault>) -> HashMap<String, String> {
    let (mut variables, mut found) = (HashMap::new(), Vec::new());
    for (name, value) in environment.iter().filter(|(name, _)| is_own(name)) {
        let fault = match (name.to_str(), value.to_str()) {
            (Some(name), Some(value)) => {
                variables.insert(name.to_owned(), value.to_owned());
                continue;
            }
            (None, _) => "this environment variable's name is not UTF-8 text: unset it, or write the key's name",
            (_, None) => "the value of this environment variable is not UTF-8 text: set it to text, or unset it",
        };
        found.push(Fault {
            place: name.to_string_lossy().into_owned(),
            message: fault.to_owned(),
        });
    }
    // An environment has no order, and two runs should say the same.
    sorted::sort_by(&mut found, |one, other| one.place.cmp(&other.place));
    faults.append(&mut found);
    variables
}

/// Whether a variable's name begins with `CLOSEHOOK__`, in whatever case: so does the layer that reads them.
fn is_own(name: &OsStr) -> bool {
    let prefix = format!("{ENVIRONMENT_PREFIX}__");
    let beginning = name.as_encoded_bytes().get(..prefix.len());
    beginning.is_some_and(|beginning| beginning.eq_ignore_ascii_case(prefix.as_bytes()))
}

fn single(place: &Path, message: String) -> Vec<Fault> {
    vec![Fault {
        place: place.display().to_string(),
        message,
    }]
}

impl Config {
    /// Reads every layer and checks everything in them. All faults are reported, not only the first.
    pub fn load(layers: &Layers) -> Result<Config, Vec<Fault>> {
        Config::of_text(layers, &layers.text()?)
    }

    /// The same as if the file had this text.
    pub fn of_text(layers: &Layers, text: &str) -> Result<Config, Vec<Fault>> {
        let read = ReadConfig::of_text(layers, text)?;
        if read.faults.is_empty() {
            Ok(read.config)
        } else {
            Err(read.faults)
        }
    }
}

/// A configuration as far as it could be read: to find out what else is wrong with it, and for nothing else.
#[derive(Debug)]
pub struct ReadConfig {
    /// What is faulty in it has its default, or is missing.
    pub config: Config,
    /// Every fault.
    pub faults: Vec<Fault>,
    listed: Vec<Listed>,
}

impl ReadConfig {
    /// Reads every layer; an error where nothing of them can be read.
    pub fn load(layers: &Layers) -> Result<ReadConfig, Vec<Fault>> {
        ReadConfig::of_text(layers, &layers.text()?)
    }

    /// The sinks that could be read, each with its place.
    pub fn sinks(&self) -> impl Iterator<Item = (&str, &SinkConfig)> {
        listed::placed(&self.listed, &self.config)
    }

    fn of_text(layers: &Layers, text: &str) -> Result<ReadConfig, Vec<Fault>> {
        let mut builder = config::Config::builder();
        let mut faults = Vec::new();
        if let Some(path) = &layers.file {
            let text = with_filters_as_text(path, text, &mut faults)?;
            builder = builder.add_source(config::File::from_str(&text, config::FileFormat::Toml));
        }
        let environment = config::Environment::with_prefix(ENVIRONMENT_PREFIX)
            .prefix_separator("__")
            .separator("__")
            // Text is all an environment has; what wants a number or a truth reads it out of the text. Guessing would make a
            // directory "007" into "7".
            .try_parsing(false)
            .source(Some(own_variables(&layers.environment, &mut faults)));
        builder = builder.add_source(environment);
        let place = layers.file.clone().unwrap_or_else(|| "environment".into());
        for (key, value) in &layers.overrides {
            builder = builder
                .set_override(key, value.as_str())
                .map_err(|error| single(Path::new(key), error.to_string()))?;
        }
        let tree: Value = builder
            .build()
            .and_then(config::Config::try_deserialize)
            .map_err(|error| single(&place, error.to_string()))?;
        let (config, listed) = read_config(tree.clone(), layers.sinks, &mut faults);
        config.check(&listed, layers.rules, &mut faults);
        own::faults(&config, &listed, &tree, layers.file.as_deref(), &mut faults);
        Ok(ReadConfig { config, faults, listed })
    }
}

fn read_config(tree: Value, types: &[&SinkType], faults: &mut Vec<Fault>) -> (Config, Vec<Listed>) {
    let mut root = Table::new("", tree, faults);
    let (sinks, listed) = listed::read(&mut root, types);
    let config = Config {
        server: root.table("server", read_server),
        admin: root.table("admin", read_admin),
        close: root.table("close", read_close),
        log: root.table("log", read_log),
        sinks,
        rules: root
            .list("rules")
            .into_iter()
            .map(|(place, value)| read_rule(place, value, root.faults()))
            .collect(),
        node: root.table("node", read_node),
    };
    root.finish();
    (config, listed)
}

fn read_log(table: &mut Table<'_>) -> Log {
    let (engine, jetstream) = read_engine(table);
    Log {
        dir: table.or("dir", "/var/lib/closehook".into()),
        retention: match engine {
            Engine::Local => table.or("retention", Span::secs(30 * 86_400)),
            Engine::JetStream => table.or("retention", KEYS_WINDOW),
        },
        max_size: table.optional("max_size"),
        segment_size: table.within("segment_size", Size(256 << 20), Size(64 << 10), Size(1 << 30)),
        segment_age: table.or("segment_age", Span::secs(86_400)),
        reserve: table.optional("reserve"),
        engine,
        jetstream,
    }
}

pub(super) fn read_rule(place: String, value: Value, faults: &mut Vec<Fault>) -> RuleConfig {
    let mut table = Table::new(place, value, faults);
    let rule = RuleConfig {
        name: table.required("name", "\"unsubscribes\"").unwrap_or_default(),
        events: table.or("events", Vec::new()),
        filter: table
            .raw("filter")
            .map(|filter| String::from_value(filter).unwrap_or_default()),
        sinks: table.or("sinks", Vec::new()),
        program: table.program(),
    };
    table.finish();
    rule
}

/// The configuration that has nothing but the data directory of this one, however bad the rest of it is: to find the daemon that
/// runs there. Where the file can't be read or is no TOML, that is the environment's or the default one.
pub fn data_dir_only(layers: &Layers) -> Result<Config, Vec<Fault>> {
    let text = layers.file.as_ref().and_then(|path| crate::files::read_text(path).ok());
    let file = text
        .as_deref()
        .and_then(|text| text.parse::<toml_edit::DocumentMut>().ok());
    let in_file = file.as_ref().and_then(|file| file.get("log")?.get("dir")?.as_str());
    let variable = format!("{ENVIRONMENT_PREFIX}__LOG__DIR");
    let mut dir = in_file.map(ToOwned::to_owned);
    let named = layers.environment.get(std::ffi::OsStr::new(&variable));
    if let Some(named) = named.and_then(|named| named.to_str()) {
        dir = Some(named.to_owned());
    }
    if let Some((_, named)) = layers.overrides.iter().find(|(key, _)| key == "log.dir") {
        dir = Some(named.clone());
    }
    Config::load(&Layers {
        overrides: dir.map(|dir| ("log.dir".to_owned(), dir)).into_iter().collect(),
        ..Layers::new(layers.sinks, layers.rules)
    })
}

impl Config {
    /// What only the whole shows: sinks that do not go together, rules that name no sink.
    fn check(&self, listed: &[Listed], judge_rules: JudgeRules, faults: &mut Vec<Fault>) {
        listed::faults(self, listed, faults);
        let mut fault = |place: String, message: String| faults.push(Fault { place, message });
        if self.node.roles.contains(&Role::Ingress) && self.server.listen.overlaps(self.admin.listen) {
            let message = format!(
                "{} and server.listen ({}) are one port of one address: give one of them another port",
                self.admin.listen, self.server.listen
            );
            fault("admin.listen".into(), message);
        }
        if self.log.retention.0.is_zero() {
            fault("log.retention".into(), "can't be zero: nothing would be kept".into());
        }
        if self.log.engine == Engine::JetStream {
            node::faults_of_sinks(self, listed, faults);
        }
        let mut fault = |place: String, message: String| faults.push(Fault { place, message });
        // What the servers know an event by is the event itself.
        if self.log.engine == Engine::JetStream && self.log.retention < KEYS_WINDOW {
            fault(
                "log.retention".into(),
                format!(
                    "is {}, and with engine = \"jetstream\" nothing may leave before {KEYS_WINDOW}: what has left is stored again if Close repeats it",
                    self.log.retention
                ),
            );
        }
        let names: Vec<&str> = listed::names(listed).collect();
        // A name that is missing was reported when the rule was read.
        faults.extend(
            judge_rules(&self.rules, &names)
                .into_iter()
                .filter(|fault| !fault.message.contains("a rule needs a name")),
        );
    }

    /// The sinks that get what others would make dead letters of, and else only what a rule sends them.
    pub fn dead_to(&self) -> impl Iterator<Item = &str> {
        self.sinks.iter().filter_map(|sink| sink.dead_to.as_deref())
    }
}
