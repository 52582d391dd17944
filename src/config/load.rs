//! Putting the layers together: built-in defaults < file < environment < flags.

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::close::read_close;
use super::own;
use super::server::read_server;
use super::table::{FromValue, Table};
use super::text::with_filters_as_text;
use super::{Admin, Breaker, Config, Fault, Log, Order, Retry, RuleConfig, SinkConfig, Size, Span, Start};
use crate::names;
use crate::sinks;

/// Where the configuration comes from.
#[derive(Debug, Clone, Default)]
pub struct Layers {
    /// The file; `None`: defaults and environment alone.
    pub file: Option<PathBuf>,
    /// `CLOSEHOOK__...` variables; others are not looked at, whatever is in them.
    pub environment: HashMap<OsString, OsString>,
    /// From flags: dotted key and value.
    pub overrides: Vec<(String, String)>,
}

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
    found.sort_by(|one, other| one.place.cmp(&other.place));
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
        let text = match &layers.file {
            None => String::new(),
            Some(path) => crate::files::read_text(path).map_err(|error| {
                single(
                    path,
                    format!("the configuration can't be read ({error}): name the right file with -c FILE"),
                )
            })?,
        };
        Config::of_text(layers, &text)
    }

    /// The same as if the file had this text.
    pub fn of_text(layers: &Layers, text: &str) -> Result<Config, Vec<Fault>> {
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
        let config = read_config(tree.clone(), &mut faults);
        config.check(&mut faults);
        own::faults(&config, &tree, layers.file.as_deref(), &mut faults);
        if faults.is_empty() { Ok(config) } else { Err(faults) }
    }
}

fn read_config(tree: Value, faults: &mut Vec<Fault>) -> Config {
    let mut root = Table::new("", tree, faults);
    let config = Config {
        server: root.table("server", read_server),
        admin: root.table("admin", |table| Admin {
            listen: table.or("listen", ([127, 0, 0, 1], 8481).into()),
        }),
        close: root.table("close", read_close),
        log: root.table("log", read_log),
        sinks: root
            .list("sinks")
            .into_iter()
            .filter_map(|(place, value)| read_sink(&place, value, root.faults()))
            .collect(),
        rules: root
            .list("rules")
            .into_iter()
            .map(|(place, value)| read_rule(place, value, root.faults()))
            .collect(),
    };
    root.finish();
    config
}

fn read_log(table: &mut Table<'_>) -> Log {
    Log {
        dir: table.or("dir", "/var/lib/closehook".into()),
        retention: table.or("retention", Span::secs(30 * 86_400)),
        max_size: table.optional("max_size"),
        segment_size: table.within("segment_size", Size(256 << 20), Size(64 << 10), Size(1 << 30)),
        segment_age: table.or("segment_age", Span::secs(86_400)),
        reserve: table.optional("reserve"),
    }
}

/// Keys every sink has, beside those of its type.
const COMMON_KEYS: [&str; 10] = [
    "name",
    "type",
    "start",
    "concurrency",
    "rate",
    "timeout",
    "retry",
    "order",
    "breaker",
    "dead_max",
];

fn read_sink(place: &str, value: Value, faults: &mut Vec<Fault>) -> Option<SinkConfig> {
    let mut table = Table::new(place, value, faults);
    let name: Option<String> = table.required("name", "\"audit\"");
    let kind: Option<String> = table.required("type", "\"file\"");
    let start = table.or("start", Start::Now);
    let concurrency = table.optional("concurrency");
    let rate = table.optional("rate");
    let timeout = table.within(
        "timeout",
        Span::secs(30),
        Span(std::time::Duration::from_millis(1)),
        Span::secs(3600),
    );
    let order = table.or("order", Order::None);
    let retry = table.table("retry", read_retry);
    let breaker = table.table("breaker", |table| Breaker {
        failures: table.within("failures", 10, 1, 1_000_000),
        refusals: table.within("refusals", 5, 1, 1_000_000),
        probe: table.or("probe", Span::secs(30)),
    });
    let dead_max = table.or("dead_max", Size(256 << 20));
    if let Some(name) = &name
        && (name.is_empty()
            || name.len() > 64
            || name.starts_with('.')
            || !name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)))
    {
        table.fault(
            "name",
            format!("\"{name}\" is no name: up to 64 letters, digits, '-', '_' and '.'"),
        );
    }
    let rest = table.rest();
    let kind = kind?;
    let Some(sink_type) = sinks::REGISTRY.iter().find(|candidate| candidate.name == kind) else {
        let known = sinks::REGISTRY.iter().map(|candidate| candidate.name);
        let fault = names::unknown(format!("there is no sink type \"{kind}\""), &kind, known);
        table.fault("type", fault);
        return None;
    };
    let mut options_table = Table::new(place, rest, faults);
    let options = (sink_type.parse)(&mut options_table);
    options_table.report_unknown(&COMMON_KEYS.map(str::to_owned));
    let options = options?;
    if options.drive().commit != sinks::Commit::Acknowledge && concurrency.is_some_and(|concurrency| concurrency != 1) {
        let message = format!("a sink of type \"{kind}\" writes one batch at a time: leave concurrency out");
        faults.push(Fault {
            place: format!("{place}.concurrency"),
            message,
        });
    }
    if concurrency.is_some_and(|concurrency| !(1..=1024).contains(&concurrency)) {
        faults.push(Fault {
            place: format!("{place}.concurrency"),
            message: "must be between 1 and 1024".into(),
        });
    }
    Some(SinkConfig {
        name: name?,
        kind,
        start,
        concurrency,
        rate,
        timeout,
        retry,
        order,
        breaker,
        dead_max,
        options,
    })
}

fn read_retry(table: &mut Table<'_>) -> Retry {
    let retry = Retry {
        initial: table.or("initial", Span::secs(1)),
        factor: table.within("factor", 2, 1, 100),
        max_delay: table.or("max_delay", Span::secs(900)),
        max_age: table.or("max_age", Span::secs(72 * 3600)),
    };
    if retry.initial > retry.max_delay {
        table.fault(
            "initial",
            format!("must not be longer than max_delay ({})", retry.max_delay),
        );
    }
    retry
}

fn read_rule(place: String, value: Value, faults: &mut Vec<Fault>) -> RuleConfig {
    let mut table = Table::new(place, value, faults);
    let rule = RuleConfig {
        name: table.required("name", "\"unsubscribes\"").unwrap_or_default(),
        events: table.or("events", Vec::new()),
        filter: table
            .raw("filter")
            .map(|filter| String::from_value(filter).unwrap_or_default()),
        sinks: table.or("sinks", Vec::new()),
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
        ..Layers::default()
    })
}

impl Config {
    /// What only the whole shows: names that stand twice, rules that name no sink, files two sinks would write.
    fn check(&self, faults: &mut Vec<Fault>) {
        let mut fault = |place: String, message: String| faults.push(Fault { place, message });
        for (index, sink) in self.sinks.iter().enumerate() {
            let earlier = &self.sinks[..index];
            if earlier.iter().any(|other| other.name == sink.name) {
                fault(
                    format!("sinks[{index}].name"),
                    format!("two sinks are called \"{}\"", sink.name),
                );
            }
            if let Some(exclusive) = sink.options.exclusive()
                && let Some(other) = earlier
                    .iter()
                    .find(|other| other.options.exclusive().as_ref() == Some(&exclusive))
            {
                let message = format!("\"{}\" and \"{}\" would both write {exclusive}", other.name, sink.name);
                fault(format!("sinks[{index}]"), message);
            }
        }
        if self.log.retention.0.is_zero() {
            fault("log.retention".into(), "can't be zero: nothing would be kept".into());
        }
        let names: Vec<&str> = self.sinks.iter().map(|sink| sink.name.as_str()).collect();
        if let Err(found) = crate::rules::RuleSet::compile(&self.rules, &names) {
            // A name that is missing was reported when the rule was read.
            faults.extend(
                found
                    .into_iter()
                    .filter(|fault| !fault.message.contains("a rule needs a name")),
            );
        }
    }
}
