//! JSON as text, compared with `serde_json` where that can tell.

use super::*;
use proptest::prelude::*;

#[test]
fn half_a_surrogate_hides_nothing_beside_it() {
    for (raw, part, found) in [
        (r#""\ud800 jane""#, "jane", true),
        (r#""jane\udc00""#, "jane", true),
        (r#""\ud83d\ude80 \ud83d""#, "🚀", true),
        (r#""\ud83d\n\u00e9""#, "\né", true),
        (r#""\ud83d\ud83d\ude80""#, "🚀", true),
        (r#""\ud800""#, "", true),
        (r#""\ud800\\""#, "\\", true),
        (r#""\ud800""#, "\u{fffd}", false),
        (r#""\ud83d x \ude80""#, "🚀", false),
        (r#""\u00e9""#, "é", true),
        ("1", "1", false),
    ] {
        let node = Node::new(validate(raw.as_bytes()).unwrap());
        assert_eq!(node.contains(part), found, "{raw} {part:?}");
    }
}

#[test]
fn a_value_is_on_one_line_and_else_as_it_was() {
    assert_eq!(on_one_line(r#"{ "a" :  "b\n\t" }"#), r#"{ "a" :  "b\n\t" }"#);
    for white in ["\n", "\r", "\t"] {
        let text = format!("{{ \"a\":{white}\"b c\" }}");
        assert_eq!(on_one_line(&text), r#"{"a":"b c"}"#, "{white:?}");
    }
}

#[test]
fn a_member_is_set_and_all_else_stays() {
    let set = |text| with_member(text, "a", "[1]");
    assert_eq!(
        set(r#" { "b" : 1.50 , "a" : {"a":2} } "#).unwrap(),
        r#"{ "b" : 1.50 , "a" : [1] }"#
    );
    assert_eq!(
        set(r#"{"a":1,"a":2}"#).unwrap(),
        r#"{"a":1,"a":[1]}"#,
        "the last one counts"
    );
    assert_eq!(set(r#"{"b":{"a":1} }"#).unwrap(), r#"{"b":{"a":1} ,"a":[1]}"#);
    assert_eq!(set("{ }").unwrap(), r#"{ "a":[1]}"#);
    assert_eq!(set("[]"), None);
}

proptest! {
    #[test]
    fn a_string_contains_what_its_decoded_text_contains(text in "[a-c\u{e9}🚀\\\\\n\"]{0,12}", part in "[a-c\u{e9}🚀\\\\\n\"]{0,3}") {
        let plain = serde_json::Value::from(text.as_str()).to_string();
        let escaped: Vec<String> = text.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
        let escaped = escaped.concat();
        let halved = format!("\"{escaped}\\udc00\"");
        for raw in [plain, halved] {
            let node = Node::new(validate(raw.as_bytes()).unwrap());
            prop_assert_eq!(node.contains(&part), text.contains(&part));
        }
    }
}

#[test]
fn look_ups_read_what_is_written() {
    let text = r#" {"a" : 1.50, "b":{"c":[1, {"d":"x\"]}"}, []]}, "a":2, "\u0065":"\ud83d\ude80", "z":"\ud800"} "#;
    let root = Node::new(validate(text.as_bytes()).unwrap());
    assert_eq!(root.get("a").unwrap().raw(), "2", "the last duplicate wins");
    assert_eq!(
        root.get("e").unwrap().as_string().unwrap(),
        "🚀",
        "escaped keys are compared decoded"
    );
    assert_eq!(root.get("z").unwrap().as_string(), None);
    let c = root.get("b").unwrap().get("c").unwrap();
    assert_eq!(
        c.elements().map(Node::raw).collect::<Vec<_>>(),
        ["1", r#"{"d":"x\"]}"}"#, "[]"]
    );
    assert_eq!(c.get("x"), None);
    let doc = Doc::new(text);
    for _ in 0..2 {
        assert_eq!(doc.get(doc.root(), "a").unwrap().raw(), "2");
        assert_eq!(doc.get(doc.root(), "missing"), None);
    }
}

#[test]
fn nesting_has_no_limit_and_needs_no_stack() {
    let deep = format!("{{\"event\":{}{}}}", "[".repeat(200_000), "]".repeat(200_000));
    let root = Node::new(validate(deep.as_bytes()).unwrap());
    assert_eq!(root.get("event").unwrap().raw().len(), 400_000);
    assert_eq!(compact(&deep).len(), deep.len());
    assert_eq!(Value::parse(root), None);
}

#[test]
fn what_is_not_json_is_refused() {
    for text in [
        "",
        "{",
        "{}x",
        "[1,]",
        "nul",
        "\"\u{1}\"",
        "01",
        "{'a':1}",
        "\"\\x\"",
        "NaN",
        "{\"a\" 1}",
    ] {
        assert!(validate(text.as_bytes()).is_err(), "{text}");
    }
    assert!(validate(b"\"\xff\"").is_err());
    assert!(validate(b"{\"a\":\xff}").is_err());
}

#[test]
fn numbers_compare_by_value() {
    let equal = [
        ("1", "1.0"),
        ("100", "1e2"),
        ("0.1", "1E-1"),
        ("-0", "0.00e7"),
        ("9007199254740993", "9007199254740993.0"),
        ("12.5e-1", "1.25"),
    ];
    for (a, b) in equal {
        assert_eq!(Decimal::parse(a), Decimal::parse(b), "{a} {b}");
    }
    let different = [
        ("9007199254740993", "9007199254740992"),
        ("0.1", "0.10000000000000001"),
        ("1", "-1"),
        ("1e5", "1e6"),
    ];
    for (a, b) in different {
        assert_ne!(Decimal::parse(a), Decimal::parse(b), "{a} {b}");
    }
    let huge = "1e999999999999999999999999999999999999999999";
    assert_eq!(Decimal::parse(huge), Decimal::parse(huge));
}

pub(super) fn values() -> impl Strategy<Value = serde_json::Value> {
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i32>().prop_map(Into::into),
        "[a-c\\\\\"\u{0}é🚀]{0,4}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
            prop::collection::btree_map("[ab\"]{1,2}", inner, 0..4)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}

/// JSON, and what is nearly JSON.
fn texts() -> impl Strategy<Value = String> {
    let token = prop::sample::select(vec![
        "{",
        "}",
        "[",
        "]",
        ",",
        ":",
        "\"",
        "\\",
        "\"a\"",
        "\"b\":",
        "\"\\u00e9\"",
        "\\ud83d",
        "u12",
        "0",
        "1",
        "-",
        ".",
        "e",
        "+",
        "true",
        "false",
        "null",
        "nul",
        " ",
        "\n",
        "\t",
        "\u{c}",
        "\u{0}",
        "\u{1f}",
        "\u{7f}",
        "é",
        "12345678",
        "abcdefgh",
    ]);
    let noise = prop::collection::vec(token, 0..12).prop_map(|tokens| tokens.concat());
    let edited = (values(), any::<prop::sample::Index>(), noise.clone(), 0_usize..3).prop_map(
        |(value, at, inserted, dropped)| {
            let text = serde_json::to_string_pretty(&value).unwrap();
            let at = text.floor_char_boundary(at.index(text.len() + 1));
            let rest = text[at..].chars().skip(dropped);
            text[..at].chars().chain(inserted.chars()).chain(rest).collect()
        },
    );
    prop_oneof![noise, edited, values().prop_map(|value| value.to_string())]
}

#[test]
fn every_short_text_is_valid_where_serde_json_takes_it() {
    const TOKENS: [&str; 11] = ["[", "]", "{", "}", ",", "\"a\":", "0", "1", "-", ".", "e"];
    let mut texts = vec![String::new()];
    for _ in 0..5 {
        let longer = |text: &String| TOKENS.map(|token| format!("{text}{token}"));
        texts = texts.iter().flat_map(longer).collect();
        for text in &texts {
            let takes = serde_json::from_str::<&RawValue>(text).is_ok();
            assert_eq!(validate(text.as_bytes()).is_ok(), takes, "{text}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn what_is_valid_is_what_serde_json_takes(text in texts()) {
        let takes = serde_json::from_str::<&RawValue>(&text).is_ok();
        prop_assert_eq!(validate(text.as_bytes()).is_ok(), takes);
        prop_assert_eq!(Doc::parse(text.as_bytes()).is_ok(), takes);
    }
}

proptest! {
    #[test]
    fn equality_agrees_with_a_full_parse(a in values(), b in values(), pretty in any::<bool>()) {
        let write = |value: &serde_json::Value| {
            if pretty { serde_json::to_string_pretty(value) } else { serde_json::to_string(value) }.unwrap()
        };
        let (text_a, text_b) = (write(&a), write(&b));
        let parsed = Value::parse(Node::new(&text_a)).unwrap();
        prop_assert!(parsed.equals(Node::new(&text_a)));
        prop_assert_eq!(parsed.equals(Node::new(&text_b)), a == b);
        prop_assert_eq!(compact(&text_a), serde_json::to_string(&a).unwrap());
    }

    #[test]
    fn remembered_places_are_those_a_scan_finds(value in values(), pretty in any::<bool>()) {
        let text = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) }.unwrap();
        let doc = Doc::new(&text);
        let mut pending = vec![doc.root()];
        while let Some(node) = pending.pop() {
            prop_assert_eq!(&text[doc.place_of(node)], node.raw());
            for key in ["a", "b", "\"", "ab", "a\"", "missing"] {
                prop_assert_eq!(doc.get(node, key), node.get(key));
                pending.extend(doc.get(node, key));
            }
            pending.extend(node.elements());
        }
        let parsed = Doc::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(parsed.get(parsed.root(), "a"), doc.get(doc.root(), "a"));
        prop_assert_eq!(Doc::new(&text).descend("a").root(), doc.root().get("a").unwrap_or(Node::NULL));
    }

    #[test]
    fn strings_end_where_they_end(inner in "[a\\\\\"é]{0,90}", more in "[a\"]{0,9}") {
        let text = format!("{}{more}", serde_json::to_string(&inner).unwrap());
        prop_assert_eq!(string_end(text.as_bytes(), 0), text.len() - more.len());
    }

    #[test]
    fn nothing_panics_on_anything(text in "[\\[\\]{}\",:\\\\a0-9 \n.eE+-]{0,40}", key in "[a\\\\\"]{0,2}") {
        let node = Node::new(&text);
        let _ = (node.get(&key), node.as_string(), node.elements().count(), compact(&text));
        let doc = Doc::new(&text);
        let _ = doc.get(doc.root(), &key).map(|inner| doc.get(inner, &key));
        let _ = Value::parse(node).map(|value| value.equals(node));
        let _ = validate(text.as_bytes());
    }
}

#[test]
fn numbers_are_ordered_by_their_value() {
    let ordered = [
        "-1e999",
        "-20",
        "-3",
        "-2.50",
        "-2.5e-3",
        "0",
        "1e-40",
        "0.1",
        "0.12",
        "0.123",
        "0.9",
        "1",
        "1.50",
        "2",
        "10",
        "1e3",
        "12345678901234567890122",
        "12345678901234567890123",
        "1e40",
    ];
    for (at, one) in ordered.iter().enumerate() {
        for (place, other) in ordered.iter().enumerate() {
            let found = Decimal::parse(one).compare(&Decimal::parse(other));
            assert_eq!(found, at.cmp(&place), "{one} {other}");
        }
    }
    let equal = |a: &str, b: &str| Decimal::parse(a).compare(&Decimal::parse(b)).is_eq();
    assert!(equal("1.50", "15e-1") && equal("-0", "0.00") && equal("1e+3", "1000"));
    // Exponents that no machine number holds are numbers all the same, and every one has its place.
    let (nines, ones) = ("9".repeat(60), "1".repeat(60));
    let ordered = [
        format!("-1e{nines}"),
        "-5".into(),
        format!("-1e-{nines}"),
        "0".into(),
        format!("1e-{nines}"),
        format!("2e-{nines}"),
        format!("1e-{ones}"),
        "1e-5".into(),
        "2".into(),
        "10".into(),
        format!("1e{ones}"),
        format!("9e{ones}"),
        format!("10e{ones}"),
        format!("1e{nines}"),
        format!("1.5e{nines}"),
        format!("10e{nines}"),
    ];
    for (at, one) in ordered.iter().enumerate() {
        for (place, other) in ordered.iter().enumerate() {
            let found = Decimal::parse(one).compare(&Decimal::parse(other));
            assert_eq!(found, at.cmp(&place), "{one} {other}");
        }
    }
    let thousand = format!("1e1{}", "0".repeat(60));
    assert!(equal(&format!("10e{nines}"), &thousand) && equal(&thousand, &format!("100e{}8", &nines[1..])));
    assert!(equal(&format!("0.1e-{nines}"), &format!("1e-1{}", "0".repeat(60))));
    // At the edge of what fits.
    assert!(equal(
        &format!("10e{}", i128::MAX),
        &format!("1e{}", i128::MAX.unsigned_abs() + 1)
    ));
}

#[test]
fn what_is_unfit_is_said_without_what_stands_there() {
    for (text, said) in [
        ("\"secret\"", "it is other JSON than it should be: line 1, column 8"),
        ("\n x", "it is no JSON: line 2, column 2"),
        ("[1", "it ends too soon: line 1, column 2"),
    ] {
        let error = serde_json::from_slice::<Vec<u8>>(text.as_bytes()).unwrap_err();
        assert_eq!(unfit(&error), said, "{text}");
    }
    let error = serde_json::from_value::<u8>(serde_json::json!("secret")).unwrap_err();
    assert_eq!(unfit(&error), "it is other JSON than it should be");
}
