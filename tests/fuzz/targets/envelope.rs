//! Any body: reading it never panics and agrees with a full parse, and what a file sink writes of it is the same JSON on one line.
#![no_main]

use closehook::event::{Unreadable, View};
use closehook::json::{self, Node};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

#[path = "../../oracle/mod.rs"]
#[allow(dead_code)]
mod oracle;

fuzz_target!(|body: &[u8]| {
    let view = View::read(body);
    if let Ok(view) = &view {
        assert_eq!(view.key(), view.clone().key());
        assert!(view.idempotency_key().starts_with(&view.id));
        view.type_action();
    }
    let parsed = serde_json::from_slice::<Value>(body);
    if view == Err(Unreadable::NotJson) {
        assert!(parsed.is_err());
    }
    let Ok(parsed) = parsed else { return };
    assert_eq!(view.ok().map(oracle::fields_of), oracle::fields(&parsed));
    let text = json::validate(body).expect("what can be parsed is valid");
    let compact = json::compact(text);
    assert!(!compact.contains('\n'));
    assert_eq!(
        serde_json::from_str::<Value>(&compact).expect("compact JSON is JSON"),
        parsed
    );
    let tree = json::Value::parse(Node::new(text));
    assert!(tree.is_none_or(|tree| tree.equals(Node::new(&compact))));
});
