//! `[[sinks]]`: the keys that every sink has, and reading one.

use std::time::Duration;

use serde_json::Value;

use super::definition::{Key, SinkType};
use super::{Breaker, Fault, Order, Rate, Retry, SinkConfig, SinkOptions, Size, Span, Start, Table};
use crate::contract::Commit;
use crate::names;
use crate::render::Program;

/// Keys every sink has, beside those of its type.
pub static COMMON_KEYS: &[Key] = &[
    Key::required(
        "name",
        "\"audit\"",
        "What rules, commands and metrics call it: up to 64 letters, digits, '-', '_' and '.'",
    ),
    Key::required(
        "type",
        "\"file\"",
        "What kind of sink it is: `closehook sinks types` lists what there is",
    ),
    Key::with_default(
        "start",
        "\"now\"",
        "Where a sink begins that was never seen before: \"now\", \"beginning\", or a time (\"2024-02-15T12:00:00Z\", \"2024-02-15\", \"7d\")",
    ),
    Key::optional(
        "concurrency",
        "16",
        "Deliveries at a time; default by type: http 16 (4 with batch), sqs, sns and eventbridge 8, pubsub and kafka 4, exec and nats 2; where the order \
         is kept, and for all others, one",
    ),
    Key::optional(
        "rate",
        "\"50/s\"",
        "At most so many deliveries: \"50/s\", \"300/m\", \"1000/h\"",
    ),
    Key::with_default("timeout", "\"30s\"", "How long one delivery may take"),
    Key::with_default(
        "order",
        "\"none\"",
        "What waits for a failed event: \"none\" nothing, \"lead\" later events of its lead, \"strict\" all later events",
    ),
    Key::table(
        "retry",
        &[
            Key::with_default("initial", "\"1s\"", "The first delay is somewhere below it"),
            Key::with_default("factor", "2", "What the bound of each further delay is multiplied by"),
            Key::with_default("max_delay", "\"15m\"", "The largest bound"),
            Key::with_default("max_age", "\"72h\"", "How long it is tried"),
        ],
        "Full jitter below initial, initial * factor, ... up to max_delay; a dead letter when max_age has passed since the first try, \
         or since the event was first held up because nobody answered. What had passed when closehook stopped counts on when it runs \
         again; the time in between counts as far as it is known for sure (see log.retention)",
    ),
    Key::table(
        "breaker",
        &[
            Key::with_default("failures", "10", "Failures in a row that open it"),
            Key::with_default("refusals", "5", "Permanent refusals in a row that open it"),
            Key::with_default("probe", "\"30s\"", "How often one delivery is tried while it is open"),
        ],
        "After so many failures (or permanent refusals) in a row only one delivery is tried every `probe`, until one succeeds",
    ),
    Key::with_default(
        "dead_max",
        "\"256 MiB\"",
        "Dead letters are kept up to this size on disk, and those of all sinks up to a quarter of log.max_size; beyond, the oldest go, \
         counted and logged, and `closehook events show` says of their events that they are lost",
    ),
    Key::optional(
        "dead_to",
        "\"trouble\"",
        "The sink that gets what would become a dead letter here, with the reason; it gets nothing else unless a rule names it. What fails \
         there becomes its own dead letter, or goes on to its dead_to; what it has not had yet counts as its dead letters do for dead_max",
    ),
    Key::optional(
        "node",
        "\"closehook-1\"",
        "The only node that drives it, where several share the log (log.engine = \"jetstream\"): what writes to one machine needs it",
    ),
    Key::optional(
        "settle",
        "\"30s\"",
        "Only the newest event of an object_id is delivered, once it has been the newest for so long, but no later than ten times that after \
         the object's first change; older ones end as superseded. Newest is what has the latest date_updated, and of equal ones what came \
         last: an older one that comes meanwhile does not go, and is not waited for. At a time 2,048 objects are waited for: where more change at once, what has settled \
         is looked for in the rest of the log before it goes. Events without object_id do not wait. Replays and dead letters that are tried again do not either",
    ),
    Key::optional(
        "delay",
        "\"10m\"",
        "How long after an event was received it is tried first: it stays in the log until then, and counts in the lag. Replays and dead \
         letters that are tried again do not wait",
    ),
    Key::optional(
        "template",
        "\"{{ object_type }} {{ data.name }}\"",
        "What is delivered instead of the event: Jinja text (a rule's wins over the sink's). It sees the event's fields \
         (`data`, `previous_data`, `object_type`, ...), the whole `event`, and `meta` (seq, received_at, source, rules, \
         subscription_id, attempt, key, sink). Filters beside Jinja's: `named` gives an object's custom fields their names of \
         now in Close (`(data | named)[\"Industry\"]`; of equal names the first in Close's order keeps it, others have their id \
         behind it; where Close can not be asked at all ids stay); `lead_url`; `money(currency)` of whole cents; `\"status_label\" | \
         was`, what it was in previous_data; `ago`; `tojson`. Numbers print as Close wrote them, and are compared, sorted and found by their exact value; what is calculated (+, sum, \
         round) is an integer or a double, as Jinja has it. What is undefined is an error",
    )
    .template(),
    Key::optional(
        "transform",
        "\"@crm.js\"",
        "The same as a JavaScript function: `export default function (event, meta) { ... }`, or \"@FILE\" beside this file. What it returns is \
         the payload: an object, an array or a string; or { payload, headers, key, subject }, for a sink that has headers or attributes, a key or \
         group, a subject or topic; null delivers nothing. JavaScript's numbers are doubles: it returns 1.50 as 1.5, and what has more than \
         15 digits may be rounded; in templates, and without a transform, numbers stay as Close wrote them",
    ),
];

/// What [`COMMON_KEYS`] say, but for name and type.
struct Common {
    start: Start,
    concurrency: Option<usize>,
    rate: Option<Rate>,
    timeout: Span,
    order: Order,
    retry: Retry,
    breaker: Breaker,
    dead_max: Size,
    settle: Option<Span>,
    dead_to: Option<String>,
    node: Option<String>,
    delay: Option<Span>,
    program: Option<Program>,
}

impl Common {
    fn read(table: &mut Table<'_>) -> Common {
        let shortest = Span(Duration::from_millis(1));
        Common {
            start: table.or("start", Start::Now),
            concurrency: table.optional("concurrency"),
            rate: table.optional("rate"),
            timeout: table.within("timeout", Span::secs(30), shortest, Span::secs(3600)),
            order: table.or("order", Order::None),
            retry: table.table("retry", read_retry),
            breaker: table.table("breaker", read_breaker),
            dead_max: table.or("dead_max", Size(256 << 20)),
            dead_to: table.optional("dead_to"),
            node: table.optional("node"),
            settle: read_wait(table, "settle", SETTLE_MAX),
            delay: read_wait(table, "delay", DELAY_MAX),
            program: table.program(),
        }
    }
}

/// Reads one sink of a type that is among `types`.
pub(super) fn read_sink(place: &str, value: Value, types: &[&SinkType], faults: &mut Vec<Fault>) -> Option<SinkConfig> {
    let mut table = Table::new(place, value, faults);
    table.define(COMMON_KEYS);
    let name = read_name(&mut table);
    let kind: Option<String> = table.needed("type");
    let common = Common::read(&mut table);
    let kind = kind?;
    let Some(sink_type) = types.iter().find(|candidate| candidate.name == kind) else {
        let known = types.iter().map(|candidate| candidate.name);
        let fault = names::unknown(format!("there is no sink type \"{kind}\""), &kind, known);
        table.fault("type", fault);
        return None;
    };
    let options = sink_type.options(&mut table)?;
    check_concurrency(&mut table, common.concurrency, &kind, &options);
    Some(SinkConfig {
        name: name?,
        kind,
        start: common.start,
        concurrency: common.concurrency,
        rate: common.rate,
        timeout: common.timeout,
        retry: common.retry,
        order: common.order,
        breaker: common.breaker,
        dead_max: common.dead_max,
        settle: common.settle,
        dead_to: common.dead_to,
        node: common.node,
        delay: common.delay,
        program: common.program,
        options,
    })
}

fn read_name(table: &mut Table<'_>) -> Option<String> {
    let name: String = table.needed("name")?;
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.bytes().all(is_fine) {
        table.fault(
            "name",
            format!("\"{name}\" is no name: up to 64 letters, digits, '-', '_' and '.'"),
        );
    }
    Some(name)
}

/// Longer would wait for what the log has dropped by then.
const DELAY_MAX: Span = Span::secs(90 * 24 * 3600);

/// An object that never settles is delivered after ten times as long.
const SETTLE_MAX: Span = Span::secs(9 * 24 * 3600);

fn read_wait(table: &mut Table<'_>, key: &str, max: Span) -> Option<Span> {
    let wait: Span = table.optional(key)?;
    if wait > max {
        table.fault(key, format!("must be at most {max}"));
    }
    Some(wait).filter(|wait| !wait.0.is_zero())
}

fn check_concurrency(table: &mut Table<'_>, concurrency: Option<usize>, kind: &str, options: &SinkOptions) {
    let Some(concurrency) = concurrency else { return };
    if options.drive().commit != Commit::Acknowledge && concurrency != 1 {
        table.fault(
            "concurrency",
            format!("a sink of type \"{kind}\" writes one batch at a time: leave concurrency out"),
        );
    }
    if !(1..=1024).contains(&concurrency) {
        table.fault("concurrency", "must be between 1 and 1024");
    }
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

fn read_breaker(table: &mut Table<'_>) -> Breaker {
    Breaker {
        failures: table.within("failures", 10, 1, 1_000_000),
        refusals: table.within("refusals", 5, 1, 1_000_000),
        probe: table.or("probe", Span::secs(30)),
    }
}
