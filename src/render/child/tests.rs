//! Of the child what its daemon does not see.

use minijinja::context;

use super::*;
use crate::render::{Escape, MEMORY_MAX, Template, Transform};

fn scripts(source: &str) -> Scripts {
    let mut scripts = Scripts::default();
    scripts.add(0, &Transform::unchecked(source)).unwrap();
    scripts
}

#[test]
fn whoever_runs_out_of_memory_is_tried_again_alone() {
    let mut scripts = scripts("export default () => { const a = []; for (;;) a.push(new Array(1000).fill(7)); }");
    let until = used(ClockId::ThreadCPUTime) + Duration::from_secs(60);
    let reply = scripts.run(0, "{}", "{}", until);
    assert!(
        matches!(&reply, Reply::Overtime(fault) if fault.text.contains("16 MiB")),
        "{reply:?}"
    );
}

#[test]
fn what_ends_the_function_around_it_is_no_program() {
    let scripts = Scripts::default();
    for breaks_out in [
        "}); let s = 0; (function () { export default () => ({ n: s++ })",
        "}, function () { export default () => ({})",
        "})(function () { return function () {} })(function () { export default () => ({})",
    ] {
        assert!(scripts.factory(breaks_out).is_err(), "{breaks_out}");
    }
    assert!(
        scripts
            .factory("\r\n// \u{e9}\u{1f600}\r\nexport default () => ({})\t")
            .is_ok()
    );
}

#[test]
fn a_template_makes_as_much_as_one_may_and_no_byte_more() {
    let mut jinja = Jinja::new();
    let piece = "x".repeat(MEMORY_MAX / 1024);
    let mut made = |number, end: &str| {
        let source = format!("{{% for _ in range(1024) %}}{piece}{{% endfor %}}{end}");
        let template = Template::unchecked(&source, Escape::None);
        let name = jinja.add(number, &template).unwrap();
        jinja.render(&name, &Value::UNDEFINED).map(|text| text.len())
    };
    assert_eq!(made(0, ""), Ok(MEMORY_MAX));
    assert!(made(1, "x").is_err_and(|fault| fault.text.contains("16 MiB")));
}

#[test]
fn what_is_no_number_of_json_is_below_or_above_all_that_are() {
    let all = [1.5, f64::INFINITY, 0.0, f64::NEG_INFINITY, -1.5];
    let all: Value = all.into_iter().map(|n| context! { n => n }).collect();
    let mut jinja = Jinja::new();
    let source = "{% for one in all | sort(attribute='n') %}{{ one.n }} {% endfor %}";
    let name = jinja.add(0, &Template::unchecked(source, Escape::None)).unwrap();
    assert_eq!(
        jinja.render(&name, &context! { all => all }),
        Ok("-inf -1.5 0.0 1.5 inf ".to_owned())
    );
}
