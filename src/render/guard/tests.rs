//! What templates and transforms make of events. Here the child is a thread; its limits are tried in `tests/it/render.rs`, on the program.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::super::{Escape, Names, Payload, Transform};
use super::*;

mod numbers;

const EVENT: &str = r#"{"id":"ev_1","object_type":"opportunity","action":"updated","lead_id":"lead_1","changed_fields":["value"],
 "data":{"name":"A & <B> \"C\"","value":150000,"currency":"USD","amount":1.50,"big":12345678901234567890123,"exp":1e3,"half":0.5,
  "list":[1, 2.0,{"x":null}],"status":"Won","custom.cf_1":"Paint","custom.cf_2":"Blue","custom.cf_9":7,"nothing":null,"no":-0,"zero":0.00,"none":0e5,"some":-0.10,
  "since":"2024-02-15T10:00:00","odd":"a\ud800b\ud83d\ude00"},
 "previous_data":{"value":100,"status":"Open","in":{"deep":5}}}"#;

fn job(payload: Option<Program>, texts: Vec<(String, Template)>) -> Job {
    Job {
        payload,
        texts: texts.into(),
        event: EVENT.into(),
        meta: r#"{"seq":7,"sink":"s","rules":["r"],"key":"ev_1:x"}"#.into(),
    }
}

fn template(source: &str, escape: Escape) -> Template {
    Template::unchecked(source, escape)
}

fn guard() -> Guard {
    Guard::new(Arc::default())
}

async fn one(guard: &Guard, program: Program) -> Made {
    let mut made = guard.render(vec![job(Some(program), vec![])]).await.unwrap();
    assert_eq!(made.len(), 1);
    made.remove(0)
}

async fn filled(source: &str) -> Result<String, Fault> {
    match one(&guard(), Program::Template(template(source, Escape::None))).await {
        Made::Rendered(Rendered {
            payload: Some(Payload::Text(text)),
            ..
        }) => Ok(String::from_utf8(text.to_vec()).unwrap()),
        Made::Fault(fault) => Err(fault),
        other => panic!("{source}: {other:?}"),
    }
}

async fn transformed(source: &str) -> Made {
    one(&guard(), Program::Transform(Transform::unchecked(source))).await
}

#[tokio::test]
async fn templates_print_what_close_wrote() {
    for (source, expected) in [
        (
            "{{ data.amount }} {{ data.big }} {{ data.exp }} {{ data.half }}",
            "1.50 12345678901234567890123 1e3 0.5",
        ),
        ("{{ data.list }}", r#"[1,2.0,{"x":null}]"#),
        ("{{ data.list | tojson }}", r#"[1,2.0,{"x":null}]"#),
        (
            "{{ [data.amount, data.list, 'é\"', none, true] | tojson }}",
            r#"[1.50,[1,2.0,{"x":null}],"é\"",null,true]"#,
        ),
        ("{{ {'b': data.exp, 'a': 1} | tojson }}", r#"{"a":1,"b":1e3}"#),
        (
            "{{ data.amount | float * 2 }} {{ data.exp | int + 1 }} {{ data.value // 100 }}",
            "3.0 1001 1500",
        ),
        (
            "{{ object_type }}.{{ event.action }} {{ meta.seq }} {{ meta.rules[0] }} {{ meta.sink }}",
            "opportunity.updated 7 r s",
        ),
        (
            "{% for k, v in data.list[2] | items %}{{ k }}={{ v }}{% endfor %}",
            "x=None",
        ),
        (
            "{% for n in data.list %}{{ loop.index }}:{{ n }} {% endfor %}",
            "1:1 2:2.0 3:{\"x\":null} ",
        ),
        (
            "{{ data.missing is defined }} {{ data.missing | default('none given') }}",
            "False none given",
        ),
        (
            "{{ 'status' | was }} -> {{ data.status }}, {{ 'in.deep' | was }}, {{ 'no' | was | default('-') }}",
            "Open -> Won, 5, -",
        ),
        (
            "{{ data.value | money(data.currency) }} {{ 5 | money }} {{ -123456789 | money('EUR') }} {{ data.big | money }}",
            "1,500.00 USD 0.05 -1,234,567.89 EUR 123,456,789,012,345,678,901.23",
        ),
        (
            "{{ lead_id | lead_url }} {{ event | lead_url }}",
            "https://app.close.com/lead/lead_1/ https://app.close.com/lead/lead_1/",
        ),
        ("{{ 'a/b' | lead_url }}", "https://app.close.com/lead/a%2Fb/"),
        ("{{ data.odd }}", "a\u{fffd}b\u{1f600}"),
        ("{{ data.name }}", "A & <B> \"C\""),
        (
            "{{ data['custom.cf_1'] }} {{ 'value' in changed_fields }} {{ data == event.data }}",
            "Paint True True",
        ),
        ("{{ (data | named)['custom.cf_9'] }}", "7"),
        ("{% if data.value > 1000 %}big{% endif %}", "big"),
        (
            "{% for n in [data.no, data.zero, data.none, data.some, data.exp, data.amount] %}{{ n }} {{ 'yes' if n else 'no' }}, {% endfor %}",
            "-0 no, 0.00 no, 0e5 no, -0.10 yes, 1e3 yes, 1.50 yes, ",
        ),
    ] {
        assert_eq!(filled(source).await.as_deref(), Ok(expected), "{source}");
    }
    assert!(filled("{{ data.since | ago }}").await.unwrap().ends_with(" years ago"));
}

#[tokio::test]
async fn what_is_wrong_with_a_template_has_its_place_and_quotes_no_event() {
    for (source, place, said) in [
        ("{{ data.missing }}", (1, 4), "there is no such value (data.missing)"),
        ("one\n  {{ data.name | money }}", (2, 6), "money"),
        ("{{ data.name | nofilter }}", (1, 4), "unknown filter"),
        ("{{ nobody.name }}", (1, 4), "no such value"),
        (
            "{{ data.missing | tojson }}",
            (1, 4),
            "there is no such value (data.missing)",
        ),
        (
            "{% if 1 > 0 %}{{ data['missing'] | tojson | tojson }}{% endif %}",
            (1, 18),
            "there is no such value (data['missing'])",
        ),
        (
            "{{ data.name ~ (data.missing|lead_url) }}",
            (1, 17),
            "there is no such value (data.missing)",
        ),
        ("{{ 'no' | was }}", (1, 4), "no such value"),
        (
            "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}",
            (1, 1),
            "steps",
        ),
    ] {
        let fault = filled(source).await.unwrap_err();
        assert_eq!(fault.place.map(|(line, _)| line), Some(place.0), "{source}: {fault:?}");
        assert!(
            fault.text.contains(said) && !fault.text.contains("A &"),
            "{source}: {fault:?}"
        );
        assert_eq!(fault.program, Some(0));
    }
    assert_eq!(filled("ab{{ data.missing }}").await.unwrap_err().place, Some((1, 6)));
}

#[tokio::test]
async fn values_are_escaped_as_the_key_wants_it() {
    let texts = vec![
        (
            "html".to_owned(),
            template("<p>{{ data.name }}</p>{{ data.name | safe }}", Escape::Html),
        ),
        (
            "slack".to_owned(),
            template("<x> {{ data.name }} {{ data.name | tojson }}", Escape::Slack),
        ),
        ("plain".to_owned(), template("{{ data.name }}", Escape::None)),
    ];
    let made = guard().render(vec![job(None, texts)]).await.unwrap();
    let Made::Rendered(rendered) = &made[0] else {
        panic!("{made:?}")
    };
    assert_eq!(rendered.payload, None);
    assert_eq!(
        rendered.texts["html"],
        "<p>A &amp; &lt;B&gt; &quot;C&quot;</p>A & <B> \"C\""
    );
    assert_eq!(
        rendered.texts["slack"],
        r#"<x> A &amp; &lt;B&gt; "C" "A &amp; &lt;B&gt; \"C\"""#
    );
    assert_eq!(rendered.texts["plain"], "A & <B> \"C\"");
}

#[tokio::test]
async fn custom_fields_have_their_names_of_now() {
    let names = Arc::new(NameBook::default());
    let guard = Guard::new(names.clone());
    let program = Program::Template(template("{{ (data | named) | tojson }}", Escape::None));
    assert!(payload(&one(&guard, program.clone()).await).contains(r#""custom.cf_1":"Paint""#));
    names.set(schema(
        "opportunity",
        &[("cf_1", "Industry"), ("cf_2", "Industry"), ("cf_9", "status")],
    ));
    let renamed = one(&guard, program).await;
    assert!(
        payload(&renamed).contains(r#""Industry":"Paint","Industry (cf_2)":"Blue","status (cf_9)":7"#),
        "{renamed:?}"
    );
}

fn schema(of: &str, fields: &[(&str, &str)]) -> Names {
    let fields = fields.iter().map(|(id, name)| ((*id).to_owned(), (*name).to_owned()));
    Names::new([(of.to_owned(), fields.collect::<Vec<_>>())])
}

fn naming(source: &str, event: &str) -> Job {
    Job {
        payload: Some(Program::Template(template(source, Escape::None))),
        texts: Arc::from([]),
        event: event.to_owned(),
        meta: "{}".to_owned(),
    }
}

/// Two rules may have the same template, each its own.
#[tokio::test]
async fn programs_of_the_same_text_are_told_from_none() {
    let event = r#"{"data":{"name":"A"}}"#;
    let made = guard()
        .render(vec![naming("{{ data.name }}", event), naming("{{ data.name }}", event)])
        .await
        .unwrap();
    assert_eq!([payload(&made[0]), payload(&made[1])], ["A", "A"]);
}

#[tokio::test]
async fn a_name_means_the_same_field_whatever_else_an_object_has() {
    let names = Arc::new(NameBook::default());
    let guard = Guard::new(names.clone());
    let mut all = BTreeMap::new();
    all.insert(
        "lead",
        vec![
            ("cf_b", "Industry"),
            ("cf_a", "Industry"),
            ("lcf_1", "Score"),
            ("cf_n", "name"),
        ],
    );
    all.insert("contact", vec![("cf_c", "Industry")]);
    all.insert("activity/actitype_1", vec![("cf_v", "Industry"), ("cf_a", "Shared")]);
    let owned = |fields: Vec<(&str, &str)>| -> Vec<(String, String)> {
        fields
            .into_iter()
            .map(|(id, name)| (id.to_owned(), name.to_owned()))
            .collect()
    };
    names.set(Names::new(
        all.into_iter().map(|(of, fields)| (of.to_owned(), owned(fields))),
    ));
    for (source, event, made) in [
        // The second of two equal names alone, and an id of the old sort.
        (
            "{{ data | named }}",
            r#"{"object_type":"lead","data":{"custom.cf_a":1,"custom.lcf_1":2.50}}"#,
            r#"{"Industry (cf_a)":1,"Score":2.50}"#,
        ),
        (
            "{{ data | named }}",
            r#"{"object_type":"contact","data":{"custom.cf_c":1}}"#,
            r#"{"Industry":1}"#,
        ),
        // By its type, also where only the other side says which that is; a field may be shared.
        (
            "{{ data | named }}{{ previous_data | named }}",
            r#"{"object_type":"activity.custom_activity","data":{"custom_activity_type_id":"actitype_1","custom.cf_v":1,"custom.cf_a":2},"previous_data":{"custom.cf_v":0,"custom.cf_a":3}}"#,
            r#"{"custom_activity_type_id":"actitype_1","Industry":1,"Shared":2}{"Industry":0,"Shared":3}"#,
        ),
        // Close's own field keeps its name, on both sides.
        (
            "{{ data | named }}{{ previous_data | named }}",
            r#"{"object_type":"lead","data":{"name":"A","custom.cf_n":1},"previous_data":{"custom.cf_n":0}}"#,
            r#"{"name":"A","name (cf_n)":1}{"name (cf_n)":0}"#,
        ),
        // An object within another, by its id; one that says nothing, by its fields.
        (
            "{{ data.contacts[0] | named }}{{ data.x | named }}",
            r#"{"object_type":"lead","data":{"contacts":[{"id":"cont_1","custom.cf_c":1}],"x":{"custom.cf_b":1,"custom.cf_a":2}}}"#,
            r#"{"id":"cont_1","Industry":1}{"Industry":1,"Industry (cf_a)":2}"#,
        ),
        // What is unknown stays, and keeps its place.
        (
            "{{ data | named }}",
            r#"{"object_type":"lead","data":{"custom.cf_x":1,"custom.cf_b":[1],"custom":{},"custom.":0}}"#,
            r#"{"custom.cf_x":1,"Industry":[1],"custom":{},"custom.":0}"#,
        ),
    ] {
        let found = guard.render(vec![naming(source, event)]).await.unwrap();
        assert_eq!(payload(&found[0]), made, "{event}");
    }
}

#[tokio::test]
async fn whoever_wants_names_that_are_not_there_waits_and_nobody_else() {
    let names = Arc::new(NameBook::with(Names {
        lacking: Some("nobody has fetched them".into()),
        is_followed: true,
        ..Names::default()
    }));
    let guard = Guard::new(names.clone());
    let source = "{{ data | named }}";
    let with = r#"{"object_type":"lead","data":{"custom.cf_1":1}}"#;
    let without = r#"{"object_type":"lead","data":{"name":"A"}}"#;
    let jobs = vec![
        naming("{{ data }}", with),
        naming(source, without),
        naming(source, with),
        naming(source, without),
    ];
    let made = guard.render(jobs).await.unwrap();
    assert_eq!(made.len(), 2, "what is in front of it goes: {made:?}");
    let stuck = guard.render(vec![naming(source, with)]).await.unwrap_err();
    assert_eq!(stuck, Stuck("nobody has fetched them".into()));
    names.asked().await;
    assert_eq!(names.take_asked(), ["cf_1".to_owned()].into());

    // Of a field that the schema did not have when it was fetched, it is asked once.
    let known = Names {
        is_followed: true,
        ..schema("lead", &[("cf_2", "Industry")])
    };
    names.set(known.clone());
    let stuck = guard.render(vec![naming(source, with)]).await.unwrap_err();
    assert!(stuck.0.contains("fetched again"), "{stuck}");
    let mut known = known;
    known.estrange(names.take_asked());
    names.set(known);
    let made = guard.render(vec![naming(source, with)]).await.unwrap();
    assert_eq!(payload(&made[0]), r#"{"custom.cf_1":1}"#);
}

fn payload(made: &Made) -> &str {
    match made {
        Made::Rendered(rendered) => std::str::from_utf8(rendered.payload.as_ref().unwrap().bytes()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn transforms_return_payloads_routing_or_nothing() {
    for (source, expected) in [
        (
            "export default function (event, meta) { return { n: event.data.name.length, seq: meta.seq } }",
            r#"{"n":11,"seq":7}"#,
        ),
        (
            "export default (event) => [event.action, undefined]",
            r#"["updated",null]"#,
        ),
        ("export default event => `${event.action}!\\n`", "updated!\n"),
        (
            "const late = () => helper;\nexport default function f(e) { return { x: late() } }\nconst helper = 3;",
            r#"{"x":3}"#,
        ),
        (
            "// export default nothing\nexport default function () { return 'export default' }",
            "export default",
        ),
        (
            "export default () => ({ payload: 1, other: 2 })",
            r#"{"payload":1,"other":2}"#,
        ),
        ("export default () => ({ key: 'k' })", r#"{"key":"k"}"#),
        ("export default () => '\\ud800x'", "\u{fffd}x"),
        (
            "export default e => ({ __proto__: null, d: e.data.list })",
            r#"{"d":[1,2,{"x":null}]}"#,
        ),
        (
            "class A { static n = 0 }\nexport default () => ({ n: ++A.n })",
            r#"{"n":1}"#,
        ),
    ] {
        assert_eq!(payload(&transformed(source).await), expected, "{source}");
    }
    let routed =
        "export default () => ({ payload: { a: 1 }, headers: { 'X-N': 5, no: null, b: 'c' }, key: 9, subject: 's' })";
    let made = transformed(routed).await;
    assert_eq!(payload(&made), r#"{"a":1}"#);
    let Made::Rendered(rendered) = made else { panic!() };
    assert_eq!(
        (rendered.key.as_deref(), rendered.subject.as_deref()),
        (Some("9"), Some("s"))
    );
    let headers: Vec<_> = rendered
        .headers
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    assert_eq!(headers, ["X-N=5", "b=c"]);
    assert_eq!(transformed("export default () => null").await, Made::Skipped);
}

#[tokio::test]
async fn what_a_transform_does_wrong_is_said_with_its_place() {
    for (source, place, said) in [
        (
            "export default function (event) {\n  return event.data.nothing.name }",
            Some((2, 29)),
            "TypeError",
        ),
        (
            "\n\nexport default () => { throw new RangeError('no') }",
            Some((3, 30)),
            "RangeError: no",
        ),
        ("export default () => { throw 'text' }", None, "text"),
        (
            "export default () => {\n  for (let n = 1;;) n = Math.abs(n); }",
            Some((2, 3)),
            "100 ms",
        ),
        ("export default () => {}", None, "returned nothing"),
        ("export default async () => 1", None, "async"),
        ("export default () => 5", None, "object, an array or a string"),
        ("export default 7", None, "no function"),
        ("export default () => eval('1')", Some((1, 22)), "eval"),
        ("export default () => new Function('return 1')()", None, "made of text"),
        (
            "export default () => (async () => {}).constructor('1')",
            None,
            "made of text",
        ),
        (
            "export default () => { globalThis.x = 1; return {} }",
            Some((1, 24)),
            "TypeError",
        ),
        (
            "export default () => { Array.prototype.x = 1; return {} }",
            Some((1, 24)),
            "TypeError",
        ),
        (
            "export default () => { [][Symbol.iterator]().__proto__.next = 1; return {} }",
            Some((1, 24)),
            "TypeError",
        ),
        (
            "export default () => ({ payload: null })",
            None,
            "object, an array or a string",
        ),
        ("export default () => ({ t: setTimeout })", None, "setTimeout"),
        ("export default () => performance.now()", None, "performance"),
        (
            "export default () => { const f = () => f() + 1; return f() }",
            None,
            "stack",
        ),
    ] {
        match transformed(source).await {
            Made::Fault(fault) => {
                let detail = format!("{} {}", fault.text, fault.detail.clone().unwrap_or_default());
                assert!(detail.contains(said), "{source}: {fault:?}");
                assert!(
                    place.is_none() || fault.place.map(|(line, _)| line) == place.map(|(line, _)| line),
                    "{source}: {fault:?}"
                );
            }
            other => panic!("{source}: {other:?}"),
        }
    }
}

#[tokio::test]
async fn no_state_goes_from_one_event_to_the_next() {
    let guard = guard();
    for source in [
        "let n = 0; export default () => ({ n: n++ })",
        "const m = new Map(); export default () => { m.set(m.size, 1); return { n: m.size - 1 } }",
        "const f = function () {}; export default () => { f.n = (f.n ?? -1) + 1; return { n: f.n } }",
        "const t = x => x; export default () => { let n = 0; try { Math.n = 1; n = 1 } catch {} return { n } }",
        "const w = new WeakMap(), tag = s => s; export default () => { const k = tag`x`; const n = w.has(k) ? 1 : 0; w.set(k, 1); return { n } }",
        "let n = 0; export default () => { Promise.resolve().then(() => n++); return { n } }",
        "export default () => { const n = Error.prepareStackTrace ? 1 : 0; try { Error.prepareStackTrace = () => 1 } catch {} return { n } }",
        "export default () => { const n = Error.stackTraceLimit === 5 ? 1 : 0; try { Error.stackTraceLimit = 5 } catch {} return { n } }",
    ] {
        let program = Program::Transform(Transform::unchecked(source));
        let jobs = vec![job(Some(program), vec![]); 3];
        for made in guard.render(jobs).await.unwrap() {
            assert_eq!(payload(&made), r#"{"n":0}"#, "{source}");
        }
    }
}

/// What syntax leads to, and what the global object does; gives the keys that have setters, and what is not frozen.
const WALK: &str = r#"
export default () => {
  const tag = (s) => s;
  const hidden = [
    function () {}, async function () {}, function* () {}, async function* () {},
    [].values(), ""[Symbol.iterator](), new Map().keys(), new Set().keys(), "".matchAll(/./g), [].values().map((x) => x),
    Iterator.from({ next() {} }), Iterator.concat([]), new Error(), /x/, 1n, Symbol(), new Proxy({}, {}), tag`x`,
    (function () { return arguments })(),
  ];
  const seen = new Set(), found = new Set();
  const todo = [globalThis, ...hidden.map(Object.getPrototypeOf)];
  while (todo.length > 0) {
    const one = todo.pop();
    if (one === null || (typeof one !== "object" && typeof one !== "function") || seen.has(one)) continue;
    seen.add(one);
    if (!Object.isFrozen(one)) found.add(`not frozen: ${one}`);
    for (const key of Reflect.ownKeys(one)) {
      const property = Object.getOwnPropertyDescriptor(one, key);
      if (property.set) found.add(String(key));
      todo.push(property.value, property.get, property.set);
    }
    todo.push(Object.getPrototypeOf(one));
  }
  return [...found].sort();
}"#;

#[tokio::test]
async fn nothing_that_transforms_share_can_be_set() {
    // Setters of these say where they are: on what they are called for, which is frozen where it is shared.
    let known = r#"["Symbol(Symbol.toStringTag)","__proto__","arguments","caller","constructor","stack"]"#;
    assert_eq!(payload(&transformed(WALK).await), known);
}

#[tokio::test]
async fn a_text_that_is_another_one_as_a_script_is_no_transform() {
    let source =
        "let q= 1<!--y+`\n}); let counter=0; (function(){ //`; let y = 1;\nexport default () => ({ n: counter++ })";
    let fault = Transform::parse(source).unwrap_err();
    assert!(fault.contains("line 1") && fault.contains("<!--"), "{fault}");
    assert!(matches!(transformed(source).await, Made::Fault(_)));
    let fine = "// <!-- a\nconst r = /[<!--]|(?<!--)x/;\nexport default () => '<!--' + `<!--\n-->` /* <!-- */";
    Transform::parse(fine).unwrap();
    assert_eq!(payload(&transformed(fine).await), "<!--<!--\n-->");
}

/// A program that takes far longer to read than an event may take, and next to nothing to run.
fn long_to_read(result: &str) -> Program {
    let mut source = "function never() {\n".to_owned();
    for number in 0..60_000 {
        let _ = writeln!(source, "function f{number}(a, b) {{ return a + b * {number} }}");
    }
    source.push_str("}\nexport default (event, meta) => ");
    source.push_str(result);
    Program::Transform(Transform::unchecked(&source))
}

#[tokio::test]
async fn an_event_does_not_pay_for_reading_the_program() {
    let long = long_to_read("meta.seq % 2 ? { seq: meta.seq } : nothing");
    let jobs: Vec<Job> = (0..6)
        .map(|seq| Job {
            meta: format!("{{\"seq\":{seq}}}"),
            ..job(Some(long.clone()), vec![])
        })
        .collect();
    for (seq, made) in guard().render(jobs).await.unwrap().iter().enumerate() {
        if seq % 2 == 1 {
            assert_eq!(payload(made), format!("{{\"seq\":{seq}}}"));
        } else {
            let Made::Fault(fault) = made else { panic!("{made:?}") };
            assert_eq!(fault.text, "it threw an error", "{seq}");
        }
    }
}

/// Nobody looks for an error that nothing threw.
#[tokio::test]
async fn what_can_not_be_delivered_is_said_as_that() {
    for (result, said) in [
        ("5", "the payload is to be an object, an array or a string"),
        (
            "undefined",
            "it returned nothing: return null where nothing is to be delivered",
        ),
        ("() => 1", "the payload is to be an object, an array or a string"),
        ("new Promise(() => {})", "it returned a promise: it can't be async"),
        (
            "(function* () { yield 1 })()",
            "it returned a generator: it can't be function*",
        ),
        (
            "(async function* () { yield 1 })()",
            "it returned a generator: it can't be function*",
        ),
        ("({ payload: {}, key: {} })", "key is to be text"),
        ("nothing.at.all", "it threw an error"),
        (
            "{ const a = {}; a.a = a; return { payload: a } }",
            "the payload is circular: what holds itself is no JSON",
        ),
        (
            "{ throw { of: 'the event' } }",
            "it threw something that is no Error and names no place: throw new Error(...) instead",
        ),
    ] {
        let program = Program::Transform(Transform::unchecked(&format!("export default () => {result}")));
        let made = guard().render(vec![job(Some(program), vec![])]).await.unwrap();
        let Made::Fault(fault) = &made[0] else {
            panic!("{made:?}")
        };
        assert_eq!(fault.text, said, "{result}");
    }
}

#[test]
fn what_can_not_be_read_is_said_with_its_place() {
    for (source, said) in [
        (
            "export default function (event) {\n  return { a: }\n}",
            "in line 2, column",
        ),
        ("const x = 1;", "exports no function"),
        ("import x from 'y'; export default () => x", "import nothing"),
        ("export const a = 1; export default () => a", "by default"),
        ("export default () => { await 1 }", "line 1"),
        ("}); let s = 0; (function () { export default () => s", "line 1"),
        ("", "exports no function"),
    ] {
        let fault = Transform::parse(source).unwrap_err();
        assert!(fault.contains(said), "{source}: {fault}");
    }
    assert!(Transform::parse("export default function (event, meta) { return event }").is_ok());
}

#[tokio::test]
async fn a_batch_is_answered_in_order_whatever_is_in_it() {
    let guard = guard();
    let good = Program::Template(template("{{ meta.seq }}", Escape::None));
    let bad = Program::Template(template("{{ no }}", Escape::None));
    let skips = Program::Transform(Transform::unchecked("export default () => null"));
    let jobs: Vec<Job> = (0..1500)
        .map(|index| Job {
            meta: format!("{{\"seq\":{index}}}"),
            ..job(Some([&good, &bad, &skips][index % 3].clone()), vec![])
        })
        .collect();
    let made = guard.render(jobs).await.unwrap();
    for (index, made) in made.iter().enumerate() {
        match index % 3 {
            0 => assert_eq!(payload(made), index.to_string()),
            1 => assert!(matches!(made, Made::Fault(_))),
            _ => assert_eq!(*made, Made::Skipped),
        }
    }
}

#[tokio::test]
async fn no_more_is_made_at_a_time_than_there_is_memory_for() {
    let guard = guard();
    let long = Program::Transform(Transform::unchecked("export default () => 'x'.repeat(3 << 20)"));
    let mut jobs = vec![job(Some(long), vec![]); 25];
    let mut times = 0;
    while !jobs.is_empty() {
        let made = guard.render(jobs.clone()).await.unwrap();
        let len: usize = made.iter().map(|made| payload(made).len()).sum();
        assert!(!made.is_empty() && len <= MADE_MAX + (3 << 20), "{len} bytes");
        drop(jobs.drain(..made.len()));
        times += 1;
    }
    assert_eq!(times, 3);
}

#[tokio::test]
async fn what_nobody_waits_for_any_more_is_not_made() {
    let guard = guard();
    let endless = Program::Transform(Transform::unchecked("export default () => { for (;;); }"));
    let endless = vec![job(Some(endless), vec![]); 600];
    let left = tokio::time::timeout(Duration::from_millis(1), guard.render(endless)).await;
    assert!(left.is_err());
    let good = Program::Template(template("{{ meta.seq }}", Escape::None));
    // With all of the others before it, it would take twice as long of the processor alone.
    let made = tokio::time::timeout(Duration::from_secs(30), one(&guard, good))
        .await
        .unwrap();
    assert_eq!(payload(&made), "7");
}

#[tokio::test]
async fn a_thread_that_has_ended_is_begun_anew() {
    let guard = guard();
    let gone = mpsc::sync_channel(1).0;
    *guard.orders.lock().unwrap() = Some(Arc::new(gone));
    let good = Program::Template(template("{{ meta.seq }}", Escape::None));
    assert!(guard.render(vec![job(Some(good.clone()), vec![])]).await.is_err());
    assert_eq!(payload(&one(&guard, good).await), "7");
}

#[test]
fn a_child_stays_as_long_as_it_has_room_for_the_programs_that_it_lacks() {
    let mut keeper = Keeper {
        names: Arc::default(),
        program: None,
        child: None,
        vain: 0,
    };
    let mut work = |texts: &[String], events: usize| {
        let texts: Vec<(String, Template)> = texts
            .iter()
            .map(|text| (text.clone(), template(text, Escape::None)))
            .collect();
        let made = keeper.render(&vec![job(None, texts); events], || false).unwrap();
        assert!(made.iter().all(|made| matches!(made, Made::Rendered(_))));
        let child = keeper.child.as_ref().unwrap();
        let first = child.programs.first().cloned();
        let Some(Program::Template(first)) = first else {
            panic!()
        };
        (first.source().to_owned(), child.programs.len())
    };
    let text = |number: usize| format!("{number} {{{{ meta.seq }}}}");
    assert_eq!(work(&[text(0)], 1), (text(0), 1));
    // A full batch of several templates, again and again.
    let some: Vec<String> = (1..8).map(text).collect();
    for _ in 0..3 {
        assert_eq!(work(&some, BATCH_EVENTS), (text(0), 8));
    }
    let all: Vec<String> = (8..PROGRAMS_MAX).map(text).collect();
    assert_eq!(work(&all, 2), (text(0), PROGRAMS_MAX), "there is room for these");
    assert_eq!(work(&some, 2), (text(0), PROGRAMS_MAX), "and none of these is new");
    assert_eq!(work(&[text(5000)], 2), (text(5000), 1), "one more needs another child");
}
