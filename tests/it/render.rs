//! Templates and transforms on the built program: limits that hold against hostile programs and hostile events, and the commands.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use closehook::render::{Escape, Guard, Job, Made, Program, Template};
use serde_json::{Value, json};

use crate::harness::{Daemon, binary, until};

/// Whatever it is, it has ended after so long. It takes a tenth of a second of the processor twice, and a child's start; the machine
/// may be busy with other tests.
const BOUND: Duration = Duration::from_secs(20);

fn guard() -> Guard {
    Guard::new(Arc::default()).starting(PathBuf::from(binary()))
}

/// Programs of the sort under test, as a daemon would hold them: their syntax is not this test's.
fn program(kind: &str, source: &str) -> Program {
    match kind {
        "template" => Program::Template(Template::unchecked(source, Escape::None)),
        _ => Program::Transform(closehook::render::Transform::unchecked(source)),
    }
}

fn job(program: &Program, event: &str) -> Job {
    Job {
        payload: Some(program.clone()),
        texts: Arc::from([]),
        event: event.to_owned(),
        meta: "{\"seq\":1}".to_owned(),
    }
}

fn large_event(unit: &str, len: usize) -> String {
    let count = len / unit.len();
    let list = vec![unit; count].join(",");
    format!("{{\"id\":\"ev_1\",\"data\":[{list}]}}")
}

/// A kind of program, the program, and what it is to be stopped for, where that is always the same.
type Case = (&'static str, &'static str, &'static str);

const TEMPLATES: &[Case] = &[
    // Templates: endless, or as good as.
    (
        "template",
        "{% for a in range(99999) %}{% for b in range(99999) %}{{ a }}{% endfor %}{% endfor %}",
        "",
    ),
    (
        "template",
        "{% macro f(n) %}{{ f(n + 1) }}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "",
    ),
    (
        "template",
        "{{ range(99999) | map('string') | join('x' * 100000) }}",
        "",
    ),
    (
        "template",
        "{% for a in range(99999) %}{{ (range(99999) | list | sort | length) }}{% endfor %}",
        "",
    ),
    // Templates: memory.
    (
        "template",
        "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
        "",
    ),
    ("template", "{{ 'x' * 10**10 }}", ""),
    ("template", "{{ 'x' * 90000000 }}", "16 MiB"),
    ("template", "{{ ('x' * 1000) | replace('x', 'y' * 100000) }}", ""),
    (
        "template",
        "{% set x %}{% for i in range(90000) %}{{ 'y' * 1000 }}{% endfor %}{% endset %}{{ x }}",
        "",
    ),
    ("template", "{{ 'x\\n' * 1000000 | indent(100000) }}", ""),
    ("template", "{{ ('x\\n' * 1000000) | indent(100000) }}", ""),
    ("template", "{{ [[0] * 100000] * 100000 }}", ""),
    (
        "template",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x }}",
        "",
    ),
    (
        "template",
        "{% set ns = namespace(x=[]) %}{% for i in range(90000) %}{% set ns.x = [ns.x] %}{% endfor %}{{ ns.x | tojson }}",
        "",
    ),
    (
        "template",
        "{{ '%99999999s' | format('x') }}{{ range(99999) | batch(1, 'x' * 99999) | list }}",
        "",
    ),
    (
        "template",
        "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(x='xxxx') %}{% for i in range(40) %}{% set ns.x = d(ns.x) %}{% endfor %}{{ ns.x }}",
        "",
    ),
];

const TRANSFORMS: &[Case] = &[
    // Transforms: endless.
    ("transform", "export default () => { for (;;); }", "100 ms"),
    (
        "transform",
        "export default () => { for (;;) { try { for (;;); } catch {} finally { for (;;); } } }",
        "100 ms",
    ),
    (
        "transform",
        "export default () => { let s = 'a'.repeat(40); return { m: /^(a+)+$/.test(s + 'b') } }",
        "100 ms",
    ),
    (
        "transform",
        "export default () => ({ m: /(x+x+)+y/.test('x'.repeat(50)) })",
        "100 ms",
    ),
    (
        "transform",
        "export default () => ({ toJSON() { for (;;); } })",
        "100 ms",
    ),
    (
        "transform",
        "export default () => ({ get payload() { for (;;); } })",
        "100 ms",
    ),
    (
        "transform",
        "export default () => new Proxy({}, { ownKeys() { for (;;); } })",
        "100 ms",
    ),
    (
        "transform",
        "export default () => { throw { get message() { for (;;); }, toString() { for (;;); } } }",
        "",
    ),
    (
        "transform",
        "export default () => { class E extends Error { get message() { for (;;); } } throw new E() }",
        "",
    ),
    (
        "transform",
        "export default () => { const a = Array.from({ length: 3e5 }, (_, i) => `${i}`); for (;;) a.sort(); }",
        "",
    ),
    ("transform", "for (;;);\nexport default () => null", "100 ms"),
    (
        "transform",
        "export default async function () { for (;;) await 1; }",
        "async",
    ),
    (
        "transform",
        "export default () => ({ n: 'x'.repeat(1e6).replaceAll('x', 'y'.repeat(1e6)).length })",
        "",
    ),
    ("transform", "export default () => { Date.now = 1; }", ""),
    // Transforms: memory.
    (
        "transform",
        "export default () => { const a = []; for (;;) a.push(new Array(1000).fill(7)); }",
        "16 MiB",
    ),
    // There is none left for an error either.
    ("transform", "export default () => 'x'.repeat(5e6).split('')", "16 MiB"),
    (
        "transform",
        "export default () => 'x'.repeat(1e6).replace(/x/g, () => 'y'.repeat(1000))",
        "16 MiB",
    ),
    (
        "transform",
        "export default () => { let s = 'x'; for (;;) s += s; }",
        "",
    ),
    (
        "transform",
        "export default () => { let s = 'x'; for (;;) try { s += s } catch {} }",
        "",
    ),
    ("transform", "export default () => new ArrayBuffer(1e9)", ""),
    ("transform", "export default () => 'x'.repeat(5e8)", ""),
    (
        "transform",
        "export default () => [].concat(...Array(1e5).fill(Array(1e4).fill(1)))",
        "",
    ),
    ("transform", "export default () => JSON.parse('['.repeat(1e6))", ""),
    (
        "transform",
        "export default () => { let a = {}; for (let i = 0; i < 1e6; i++) a = { a }; return a }",
        "",
    ),
    ("transform", "export default () => 2n ** (2n ** 40n)", ""),
    (
        "transform",
        "export default () => ({ s: new Array(1e9).join('x') })",
        "",
    ),
    // Recursion.
    (
        "transform",
        "export default () => { const f = () => f() + 1; return f() }",
        "stack",
    ),
    (
        "transform",
        "export default () => { const a = []; a[0] = a; return a }",
        "circular",
    ),
    (
        "transform",
        "export default () => { let r = '('.repeat(1e5); return { m: new RegExp(r + ')'.repeat(1e5)).test('') } }",
        "",
    ),
    (
        "transform",
        "export default () => { const o = { toString() { return `${this}` } }; return `${o}` }",
        "",
    ),
    // What is not there.
    ("transform", "export default () => import('/etc/passwd')", ""),
    ("transform", "export default () => ({ f: require('fs') })", "require"),
    (
        "transform",
        "export default () => ({ f: fetch('http://127.0.0.1') })",
        "fetch",
    ),
    (
        "transform",
        "export default () => ({ f: std.open('/etc/passwd', 'r') })",
        "std",
    ),
];

#[tokio::test(flavor = "multi_thread")]
async fn no_hostile_program_gets_anything_but_an_error_and_none_of_its_neighbours_notices() {
    let guard = guard();
    let good = program("template", "{{ data.n }}");
    for (kind, source, said) in TEMPLATES.iter().chain(TRANSFORMS) {
        let bad = program(kind, source);
        let began = Instant::now();
        let jobs = vec![
            job(&good, r#"{"data":{"n":1.50}}"#),
            job(&bad, r#"{"id":"ev_1","data":{"n":1}}"#),
            job(&good, r#"{"data":{"n":2}}"#),
        ];
        let made = tokio::time::timeout(BOUND, guard.render(jobs)).await;
        let made = made.unwrap_or_else(|_| panic!("{source}: it goes on")).unwrap();
        let payload = |index: usize| match &made[index] {
            Made::Rendered(rendered) => rendered.payload.as_ref().map(|payload| payload.bytes().to_vec()),
            other => panic!("{source}: its neighbour is {other:?}"),
        };
        assert_eq!(
            (payload(0), payload(2)),
            (Some(b"1.50".to_vec()), Some(b"2".to_vec())),
            "{source}"
        );
        match &made[1] {
            Made::Fault(fault) => {
                let all = format!("{} {}", fault.text, fault.detail.clone().unwrap_or_default());
                // Of two limits the one comes first or the other, as fast as the machine is just now.
                let is_said = all.contains(*said) || *said == "16 MiB" && all.contains("100 ms of the processor");
                assert!(is_said && !fault.text.contains("defect"), "{source}: {fault:?}");
                println!("{:>5} ms  {source:.60}: {}", began.elapsed().as_millis(), fault.words());
            }
            other => panic!("{source}: {other:?}"),
        }
    }
}

/// A sink of many columns: which of them it is that is too much.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_is_ended_for_what_it_takes_is_named() {
    let template = |source: &str| match program("template", source) {
        Program::Template(template) => template,
        Program::Transform(_) => unreachable!(),
    };
    let (good, large) = (template("{{ data }}"), template("a\n{{ 'x' * 90000000 }}"));
    for (payload, texts, culprit) in [
        (Some(&good), vec![&good, &large, &good], 2),
        (Some(&large), vec![&good], 0),
        (None, vec![&large], 1),
        (None, vec![&good, &large], 2),
    ] {
        let texts: Vec<_> = texts.into_iter().map(|text| ("key".to_owned(), text.clone())).collect();
        let job = Job {
            payload: payload.map(|template| Program::Template(template.clone())),
            texts: texts.into(),
            event: r#"{"data":1}"#.into(),
            meta: "{}".into(),
        };
        match guard().render(vec![job]).await.unwrap().remove(0) {
            Made::Fault(fault) => {
                assert!(fault.text.contains("16 MiB"), "{fault:?}");
                assert_eq!(fault.program, Some(culprit), "{fault:?}");
            }
            made => panic!("{made:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn large_events_are_rendered_or_end_as_errors() {
    let guard = guard();
    let events = |len: usize| {
        let long = format!("{{\"id\":\"ev_1\",\"data\":\"{}\"}}", "x".repeat(len));
        let deep = format!("{{\"id\":\"ev_1\",\"data\":{}1{}}}", "[".repeat(250), "]".repeat(250));
        let units = ["1", "{\"a\":[]}", "\"\\u00e9\\n\""];
        [long, deep]
            .into_iter()
            .chain(units.map(|unit| large_event(unit, len)))
            .collect::<Vec<_>>()
    };
    // What it does not look at costs a template next to nothing. Without an optimizer a tenth of a second is not long.
    for event in &events(if cfg!(debug_assertions) { 256 << 10 } else { 4 << 20 }) {
        for source in ["{{ event.id }}", "{{ data | tojson | length }}"] {
            let made = guard
                .render(vec![job(&program("template", source), event)])
                .await
                .unwrap();
            let is_fine = matches!(made[0], Made::Rendered(_));
            assert!(is_fine, "{source} on {event:.40}...: {made:?}");
        }
    }
    for event in &events(4 << 20) {
        for (kind, source) in [
            ("template", "{% for x in data %}{{ x }},{% endfor %}"),
            (
                "template",
                "{{ data | list | reverse | list | length }}{{ data == data }}{{ data | unique | list }}",
            ),
            ("transform", "export default e => ({ d: e.data })"),
            ("transform", "export default e => JSON.stringify(e.data).length + ''"),
        ] {
            let made = tokio::time::timeout(BOUND, guard.render(vec![job(&program(kind, source), event)])).await;
            assert_eq!(made.unwrap().unwrap().len(), 1, "{source}");
        }
    }
}

/// What sorts and groups is paid for by what there is to sort, and whatever it still takes ends with the event's share of the processor.
#[tokio::test(flavor = "multi_thread")]
async fn sorting_and_grouping_a_hostile_event_ends_in_time_and_holds_up_no_other() {
    let guard = guard();
    let len = 4 << 20;
    let count = len / 16;
    let numbers: Vec<String> = (0..count)
        .map(|at| format!("{{\"p\":{}.{:03}0}}", at * 7919 % count, at % 1000))
        .collect();
    let names: Vec<String> = (0..count)
        .map(|at| format!("\"k{}\":{}e1", at * 7919 % count, at))
        .collect();
    // Each comparison looks at all of it but its end.
    let alike = vec!["1"; 8000].join(",");
    let alike: Vec<String> = (0..len / 16_010).map(|at| format!("[{alike},{at}.50]")).collect();
    // A number of a million digits, many times over.
    let long: Vec<String> = (0..4).map(|at| format!("1{}.{at}0", "0".repeat(1 << 20))).collect();
    let deep = |end: usize| format!("{}{end}{}", "[".repeat(250), "]".repeat(250));
    let deep: Vec<String> = (0..len / 506).map(deep).collect();
    let list = |of: &[String]| format!("{{\"id\":\"ev_1\",\"data\":[{}]}}", of.join(","));
    let events = [
        list(&numbers),
        format!("{{\"id\":\"ev_1\",\"data\":{{{}}}}}", names.join(",")),
        list(&alike),
        list(&long),
        list(&deep),
        large_event("1.50", len),
        large_event("{\"p\":[]}", len),
    ];
    let small = job(&program("template", "{{ event.id }}"), "{\"id\":\"ev_2\"}");
    for event in &events {
        for source in [
            "{{ data | sort | length }}",
            "{{ data | sort(attribute='p') | length }}",
            "{{ data | sort(attribute='p.q, p', reverse=true) | length }}",
            "{{ data | groupby('p') | length }}",
            "{{ data | groupby('p', default=data) | length }}",
            "{{ data | unique | list | length }}",
            "{{ data | max | string | length }}{{ data | min(attribute='p') | string | length }}",
            "{{ data | dictsort | length }}",
            "{{ data | dictsort(by='value') | length }}",
            "{% for a in range(99999) %}{{ data | dictsort(by='value') | length }}{{ data | groupby('p') | length }}{% endfor %}",
        ] {
            let began = Instant::now();
            let hostile = job(&program("template", source), event);
            let jobs = vec![hostile, small.clone()];
            let mut made = tokio::time::timeout(BOUND, guard.render(jobs)).await.unwrap().unwrap();
            if made.len() < 2 {
                made.extend(
                    tokio::time::timeout(BOUND, guard.render(vec![small.clone()]))
                        .await
                        .unwrap()
                        .unwrap(),
                );
            }
            if let Made::Fault(fault) = &made[0] {
                assert!(
                    !fault.text.contains("panic") && !fault.text.contains("crash"),
                    "{source}: {fault:?}"
                );
            }
            println!(
                "{:>6} ms {source} on {event:.30}: {:.120}",
                began.elapsed().as_millis(),
                format!("{:?}", made[0])
            );
            assert!(matches!(made[1], Made::Rendered(_)), "{source}: {:?}", made[1]);
        }
    }
}

/// The processes that render for a daemon.
fn children(daemon: &Daemon) -> Vec<u32> {
    let listed = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", daemon.pid())).unwrap_or_default();
    let mut all: Vec<u32> = listed.split_whitespace().filter_map(|pid| pid.parse().ok()).collect();
    // They are the children of the threads that started them.
    for task in std::fs::read_dir(format!("/proc/{}/task", daemon.pid()))
        .unwrap()
        .flatten()
    {
        let listed = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
        all.extend(listed.split_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
    }
    all.sort_unstable();
    all.dedup();
    all
}

const CONFIG: &str = r#"
[[sinks]]
name = "made"
type = "file"
path = "DIR/made.jsonl"
start = "beginning"
transform = "export default (event, meta) => event.lead_id === 'skip' ? null : event.lead_id === 'loop' ? (() => { for (;;); })() : { id: event.id }"

[[sinks]]
name = "plain"
type = "file"
path = "DIR/plain.jsonl"
start = "beginning"
"#;

fn body(id: &str, lead: &str) -> String {
    json!({ "event": { "id": id, "object_type": "lead", "action": "updated", "lead_id": lead,
        "date_updated": "2024-02-15T12:48:23.395000" } })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_child_has_nothing_it_could_do_harm_with_and_does_not_outlive_the_daemon() {
    let mut daemon = Daemon::start(CONFIG).await;
    daemon.send(body("ev_1", "lead_1")).await.unwrap();
    until("it is delivered", async || daemon.sink("made")["cursor"] == 1).await;
    // The one that has checked the configuration goes.
    until("one child is left, for the one sink that has a transform", async || {
        children(&daemon).len() == 1
    })
    .await;
    let child = children(&daemon);
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", child[0])).unwrap();
    let limits = proc("limits");
    for wanted in [
        "Max file size             0",
        "Max core file size        0",
        "Max processes             0",
    ] {
        assert!(limits.contains(wanted), "{wanted}: {limits}");
    }
    assert!(proc("status").contains("NoNewPrivs:\t1"));
    // What a list of processes shows.
    assert_eq!(proc("comm"), "closehook\n");
    assert!(proc("cmdline").starts_with("closehook\0"), "{}", proc("cmdline"));
    let data = limits.lines().find(|line| line.starts_with("Max data size")).unwrap();
    let data: u64 = data.split_whitespace().nth(3).unwrap().parse().unwrap();
    assert!(data < 400 << 20, "{data} bytes");
    if rustix::process::geteuid().is_root() {
        let open = std::fs::read_dir(format!("/proc/{}/fd", child[0])).unwrap();
        let open: Vec<String> = open
            .flatten()
            .map(|entry| {
                std::fs::read_link(entry.path())
                    .unwrap_or_default()
                    .display()
                    .to_string()
            })
            .collect();
        // What this test was itself started with and the daemon got from it.
        let inherited = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        let inherited: Vec<String> = inherited
            .filter_map(|entry| Some(std::fs::read_link(entry.path()).ok()?.display().to_string()))
            .collect();
        let open: Vec<String> = open
            .into_iter()
            .filter(|name| name == "/dev/null" || !inherited.contains(name))
            .collect();
        let is_known = |name: &String| {
            name.starts_with("socket:") || name.starts_with("pipe:") || name == "/dev/null" || name.ends_with("/statm")
        };
        assert!(open.len() <= 8 && open.iter().all(is_known), "{open:?}");
        let environment = std::fs::read(format!("/proc/{}/environ", child[0])).unwrap();
        assert!(
            !String::from_utf8_lossy(&environment).contains("PATH="),
            "the environment stays at home"
        );
    }
    daemon.kill();
    until("it is gone", async || {
        std::fs::read_to_string(format!("/proc/{}/stat", child[0])).map_or(true, |stat| stat.contains(") Z"))
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_is_too_much_for_its_transform_is_dead_and_others_go_on() {
    let mut daemon = Daemon::start(CONFIG).await;
    for (id, lead) in [
        ("ev_1", "lead_1"),
        ("ev_2", "loop"),
        ("ev_3", "skip"),
        ("ev_4", "lead_1"),
    ] {
        daemon.send(body(id, lead)).await.unwrap();
    }
    until("all are finished", async || daemon.sink("made")["cursor"] == 4).await;
    until("the other too", async || daemon.sink("plain")["cursor"] == 4).await;
    let text = std::fs::read_to_string(daemon.path("made.jsonl")).unwrap();
    assert_eq!(text, "{\"id\":\"ev_1\"}\n{\"id\":\"ev_4\"}\n");
    assert_eq!(
        std::fs::read_to_string(daemon.path("plain.jsonl"))
            .unwrap()
            .lines()
            .count(),
        4
    );
    let shown = &daemon.lines(&["events", "show", "ev_3"])[0];
    assert_eq!(shown["sinks"]["made"]["state"], "skipped", "{shown}");
    let shown = &daemon.lines(&["events", "show", "ev_2"])[0];
    assert_eq!(shown["sinks"]["made"]["state"], "dead", "{shown}");
    let reason = shown["sinks"]["made"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("its transform failed") && reason.contains("it took more than 100 ms of the processor"),
        "{reason}"
    );
    assert!(
        daemon
            .metrics()
            .await
            .contains("closehook_sink_skipped_total{sink=\"made\"} 1")
    );
    assert_eq!(daemon.sink("made")["skipped"], 1);
    // Somebody ends the child: nothing is lost, and no event is blamed.
    for child in children(&daemon) {
        let pid = rustix::process::Pid::from_raw(child.cast_signed()).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    daemon.send(body("ev_5", "lead_1")).await.unwrap();
    until("it is delivered", async || daemon.sink("made")["cursor"] == 5).await;
    assert_eq!(daemon.sink("made")["dead"], 1);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn check_names_what_is_wrong_with_a_program_with_its_place() {
    let daemon = Daemon::new(
        r#"
        [[sinks]]
        name = "a"
        type = "stdout"
        transform = "export default () => {\n  return { a: }\n}"
        [[sinks]]
        name = "b"
        type = "stdout"
        template = "one\n{% if x %}"
        [[sinks]]
        name = "c"
        type = "stdout"
        template = "x"
        transform = "@there-is-none.js"
        [[rules]]
        name = "r"
        sinks = ["a"]
        transform = "@deep.js"
        "#,
    );
    // No compiler's stack is deep enough for this one: it ends a child and nothing else.
    let deep = format!("export default () => {}1{}", "(".repeat(300_000), ")".repeat(300_000));
    std::fs::write(daemon.path("deep.js"), deep).unwrap();
    let said = daemon.fails(2, &["check"]);
    for wanted in [
        "sinks[0].transform: not a transform in line 2, column",
        "sinks[1].template: not a template in line 2, column",
        "sinks[2].transform: the transform in there-is-none.js can't be read",
        "sinks[2].transform: stands beside template: keep one of them",
        "rules[0].transform: ",
    ] {
        assert!(said.contains(wanted), "{wanted}: {said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn check_waits_for_no_pipe_and_warns_of_what_may_stand_there_twice() {
    let daemon = Daemon::new(
        r#"
        [[sinks]]
        name = "a"
        type = "stdout"
        transform = "@pipe"
        "#,
    );
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        daemon.path("pipe"),
        rustix::fs::FileType::Fifo,
        mode,
        0,
    )
    .unwrap();
    let said = daemon.fails(2, &["check"]);
    assert!(
        said.contains("sinks[0].transform: the transform in pipe can't be read: it is a pipe"),
        "{said}"
    );
    for (of_sink, of_rule, warned) in [
        ("", "", false),
        ("template = \"x\"", "", true),
        ("", "template = \"x\"", true),
    ] {
        let daemon = Daemon::new(&format!(
            "[[sinks]]\nname = \"f\"\ntype = \"file\"\npath = \"DIR/f.jsonl\"\n{of_sink}\n[[rules]]\nname = \"r\"\nsinks = [\"f\"]\n{of_rule}\n"
        ));
        let said = String::from_utf8_lossy(&daemon.run_command(&["--json", "check"]).stdout).into_owned();
        assert_eq!(said.contains("may stand there twice"), warned, "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn render_prints_what_would_be_sent_and_sends_nothing() {
    let mut daemon = Daemon::new(
        r#"
        [[sinks]]
        name = "made"
        type = "file"
        path = "DIR/made.jsonl"
        [[sinks]]
        name = "routed"
        type = "sns"
        topic = "arn:aws:sns:eu-central-1:123456789012:t.fifo"
        transform = "@routed.js"
        [[rules]]
        name = "won"
        events = ["lead.updated"]
        sinks = ["made"]
        template = "won: {{ event.id }}, {{ data.n }}"
        "#,
    );
    std::fs::write(
        daemon.path("routed.js"),
        "export default (e, m) => e.id === 'ev_s' ? null : { payload: [m.seq, m.sink], headers: { a: 'b' }, key: 'k', subject: 's' }",
    )
    .unwrap();
    let event = r#"{"id":"ev_9","object_type":"lead","action":"updated","data":{"n":1.50}}"#;
    std::fs::write(
        daemon.path("e.json"),
        format!("{event}\n{}\n", event.replace("ev_9", "ev_s")),
    )
    .unwrap();
    let file = daemon.path("e.json");
    let file = file.to_str().unwrap();
    let lines = daemon.lines(&["render", "made", file]);
    assert_eq!(
        lines[0],
        json!({ "event_id": "ev_9", "sink": "made", "rule": "won", "body": "won: ev_9, 1.50" })
    );
    let lines = daemon.lines(&["render", "routed", file]);
    let headers = lines[0]["headers"].clone();
    assert_eq!(
        (&headers["a"], &headers["closehook-event-id"]),
        (&json!("b"), &json!("ev_9"))
    );
    assert_eq!(
        lines[0],
        json!({ "event_id": "ev_9", "sink": "routed", "headers": headers, "body": "[1,\"routed\"]", "key": "k", "subject": "s" })
    );
    assert_eq!(
        lines[1],
        json!({ "event_id": "ev_s", "sink": "routed", "skipped": true })
    );
    let text = daemon.ok(&["render", "made", file]);
    assert!(text.contains("won: ev_9, 1.50"), "{text}");
    let said = daemon.fails(1, &["render", "mad", file]);
    assert!(
        said.contains("there is no sink \"mad\": did you mean \"made\"?"),
        "{said}"
    );
    assert!(!daemon.path("made.jsonl").exists(), "nothing was sent");
    // An event of the log, with the daemon and without.
    daemon.run().await;
    daemon.send(event_body()).await.unwrap();
    let check = |daemon: &Daemon| {
        let lines: Vec<Value> = daemon.lines(&["render", "made", "--id", "ev_9"]);
        assert_eq!(
            (&lines[0]["seq"], &lines[0]["body"]),
            (&json!(1), &json!("won: ev_9, 2"))
        );
    };
    check(&daemon);
    daemon.stop().await;
    check(&daemon);
}

fn event_body() -> &'static str {
    r#"{"event":{"id":"ev_9","object_type":"lead","action":"updated","date_updated":"2024-02-15T12:48:23","data":{"n":2}}}"#
}

#[tokio::test(flavor = "multi_thread")]
async fn rules_test_expects_what_templates_make() {
    let daemon = Daemon::new(
        r#"
        [[sinks]]
        name = "a"
        type = "stdout"
        template = "{{ data.name }}!"
        [[sinks]]
        name = "b"
        type = "stdout"
        [[rules]]
        name = "text"
        sinks = ["a"]
        [[rules]]
        name = "json"
        sinks = ["b"]
        transform = "export default e => e.data.name === 'nobody' ? null : { name: e.data.name, list: [1] }"
        "#,
    );
    let cases = |text: &str, json: &str| {
        format!(
            "[[cases]]\nname = \"made\"\nevent = '{{\"data\":{{\"name\":\"Bo\"}}}}'\npayload = {{ \"text -> a\" = \"{text}\", \"json -> b\" = {json} }}\n"
        )
    };
    let path = daemon.path("rules.test.toml");
    std::fs::write(&path, cases("Bo!", "{ list = [1.0], name = \"Bo\" }")).unwrap();
    daemon.ok(&["rules", "test", path.to_str().unwrap()]);
    std::fs::write(&path, cases("Bo", "{ list = [1], name = \"Bo\" }")).unwrap();
    let run = daemon.run_command(&["rules", "test", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(
        said.contains("the payload of \"text -> a\" is Bo!, expected Bo"),
        "{said}"
    );
    let failing = "[[cases]]\nname = \"no name\"\nevent = '{\"data\":{}}'\npayload = \"\"\n";
    std::fs::write(&path, failing).unwrap();
    let run = daemon.run_command(&["rules", "test", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(
        said.contains("nothing can be made for \"text -> a\": its template failed in line 1, column 4"),
        "{said}"
    );
    let skipped = "[[cases]]\nname = \"skipped\"\nevent = '{\"data\":{\"name\":\"nobody\"}}'\npayload = { \"json -> b\" = \"x\" }\n";
    std::fs::write(&path, skipped).unwrap();
    let run = daemon.run_command(&["rules", "test", path.to_str().unwrap()]);
    let said = String::from_utf8_lossy(&run.stdout).into_owned();
    assert!(
        said.contains("has no payload for \"json -> b\": its transform, or the sink, skips it"),
        "{said}"
    );
}
