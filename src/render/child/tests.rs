//! Of the child what its daemon does not see.

use super::*;
use crate::render::Transform;

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
