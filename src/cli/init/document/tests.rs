//! Edits of a text by hand, which leave everything else as it was written.

use super::*;
use proptest::prelude::*;

const REFERENCE: &str = include_str!("../../../../config/closehook.toml");

fn edited(text: &str, edit: impl FnOnce(&mut Editor) -> Result<(), String>) -> String {
    let mut editor = Editor::new(text).unwrap();
    edit(&mut editor).unwrap();
    editor.text
}

fn changed(before: &str, after: &str) -> Vec<String> {
    let lines = diff(before, after);
    lines.into_iter().filter(|line| line.starts_with(['+', '-'])).collect()
}

#[test]
fn a_key_is_put_where_the_reference_shows_it() {
    let after = edited(REFERENCE, |editor| {
        editor.set("server", "listen", "[::]:443")?;
        editor.set("server", "public_url", "https://a.example/x")?;
        editor.set("close", "api_key_file", "/etc/closehook/close_api_key")
    });
    assert_eq!(
        changed(REFERENCE, &after),
        [
            "-#: listen = \"127.0.0.1:8480\"",
            "+listen = \"[::]:443\"",
            "-# public_url = \"https://hooks.example.com/webhooks/close\"",
            "+public_url = \"https://a.example/x\"",
            "-# api_key_file = \"credential:close_api_key\"",
            "+api_key_file = \"/etc/closehook/close_api_key\"",
        ]
    );
}

#[test]
fn a_table_is_put_where_the_reference_shows_it_and_commented_out_again() {
    let with_acme = edited(REFERENCE, |editor| {
        editor.set(
            "server.acme",
            "domains",
            Value::from(toml_edit::Array::from_iter(["a.example"])),
        )?;
        editor.set("server.acme", "directory", "staging")
    });
    assert_eq!(
        changed(REFERENCE, &with_acme),
        [
            "-# [server.acme]",
            "-# domains = [\"hooks.example.com\"]",
            "+[server.acme]",
            "+domains = [\"a.example\"]",
            "-# directory = \"production\"               # Let's Encrypt's; \"staging\" for trying out, or the URL of another directory",
            "+directory = \"staging\"               # Let's Encrypt's; \"staging\" for trying out, or the URL of another directory",
        ]
    );
    let with_tls = edited(&with_acme, |editor| {
        editor.retire_table("server.acme")?;
        editor.set("server.tls", "cert", "/c.pem")
    });
    assert!(
        with_tls.contains("\n# [server.acme]\n# domains = [\"a.example\"]\n"),
        "{with_tls}"
    );
    let values = values(&with_tls).unwrap();
    assert_eq!(values.get("server.tls.cert").map(String::as_str), Some("\"/c.pem\""));
    assert!(!values.keys().any(|name| name.starts_with("server.acme")));
}

#[test]
fn what_no_reference_shows_comes_at_the_end_of_its_table_or_of_the_file() {
    let text = "[server]\nlisten = \"127.0.0.1:1\" # mine\n# the rest\n\n[log]\ndir = \"x\"\n";
    let after = edited(text, |editor| {
        editor.set("server", "path", "/x")?;
        editor.set("server", "listen", "127.0.0.1:2")?;
        editor.set("close", "api_key_file", "k")
    });
    assert_eq!(
        after,
        "[server]\nlisten = \"127.0.0.1:2\" # mine\npath = \"/x\"\n# the rest\n\n[log]\ndir = \"x\"\n\n[close]\napi_key_file = \"k\"\n"
    );
    assert_eq!(
        edited("", |editor| editor.set("log", "dir", "d")),
        "[log]\ndir = \"d\"\n"
    );
    // A table that only its inner ones imply.
    let text = "[server.tls]\ncert = \"c\"\nkey = \"k\"\n";
    let after = edited(text, |editor| editor.set("server", "path", "/x"));
    assert_eq!(after, format!("{text}\n[server]\npath = \"/x\"\n"));
}

#[test]
fn every_way_to_write_a_table_is_edited() {
    for text in [
        "server.listen = \"a\"\n",
        "server = { listen = \"a\" }\n",
        "[server]\nlisten = \"a\"",
        "\"server\".\"listen\" = 'a'\n",
    ] {
        let after = edited(text, |editor| {
            editor.set("server", "listen", "b")?;
            editor.set("server", "path", "/x")?;
            editor.set(
                "server.acme",
                "domains",
                Value::from(toml_edit::Array::from_iter(["a"])),
            )
        });
        let values = values(&after).unwrap_or_else(|error| panic!("{error}: {after}"));
        assert_eq!(
            values.into_iter().collect::<Vec<_>>(),
            [
                ("server.acme.domains".to_owned(), "[\"a\"]".to_owned()),
                ("server.listen".to_owned(), "\"b\"".to_owned()),
                ("server.path".to_owned(), "\"/x\"".to_owned())
            ],
            "{after}"
        );
    }
}

#[test]
fn what_looks_like_a_shown_key_and_is_none_is_left_alone() {
    // Taking the mark off would move `max_body` into another table.
    let text = "[server]\n# [server.acme]\n# domains = [\"x\"]\nmax_body = \"1 MiB\"\n";
    let after = edited(text, |editor| {
        editor.set(
            "server.acme",
            "domains",
            Value::from(toml_edit::Array::from_iter(["a.example"])),
        )
    });
    assert_eq!(after, format!("{text}\n[server.acme]\ndomains = [\"a.example\"]\n"));
    // It is text, not TOML.
    let text = "[server]\n# listen = wherever you like\n";
    let after = edited(text, |editor| editor.set("server", "listen", "a"));
    assert_eq!(after, "[server]\nlisten = \"a\"\n# listen = wherever you like\n");
}

#[test]
fn a_secret_goes_with_its_line_and_an_entry_of_a_list_becomes_a_comment() {
    let text = "[close]\n# who we are\napi_key = \"\"\"\nhunter2\"\"\" # secret\nbase_url = \"u\"\n\n\
                [[close.subscriptions]]\nid = \"a\"\nsignature_key = \"k1\"\n\n[[close.subscriptions]]\nsignature_key = \"k2\"\n";
    let after = edited(text, |editor| {
        editor.remove("close", "api_key")?;
        editor.retire_entry("close.subscriptions", 1)?;
        editor.retire_entry("close.subscriptions", 7)
    });
    assert_eq!(
        after,
        "[close]\n# who we are\nbase_url = \"u\"\n\n[[close.subscriptions]]\nid = \"a\"\nsignature_key = \"k1\"\n\n\
         # [[close.subscriptions]]\n# signature_key = \"k2\"\n"
    );
    let inline = "close = { api_key = \"hunter2\", base_url = \"u\", subscriptions = [{ signature_key = \"k\" }] }\n";
    let after = edited(inline, |editor| {
        editor.remove("close", "api_key")?;
        editor.retire_entry("close.subscriptions", 0)
    });
    assert!(
        !after.contains("hunter2") && !after.contains("signature_key"),
        "{after}"
    );
    assert_eq!(
        values(&after).unwrap().get("close.base_url").map(String::as_str),
        Some("\"u\"")
    );
}

#[test]
fn a_difference_is_shown_with_what_is_around_it() {
    let before = "1\n2\n3\n4\n5\n6\n7\n8\n9\n";
    let after = before.replace("2\n", "two\n").replace("8\n", "");
    assert_eq!(
        diff(before, &after),
        [" 1", "-2", "+two", " 3", " 4", "...", " 6", " 7", "-8", " 9"]
    );
    assert_eq!(diff(before, before), Vec::<String>::new());
}

/// Files as people write them: tables in any order, in several notations, with comments and shown keys.
fn text() -> impl Strategy<Value = String> {
    let piece = prop::sample::select(vec![
        "[server]\n",
        "[server]\n# The listener.\n#: listen = \"127.0.0.1:8480\"\n",
        "[server]\nlisten = \"[::]:443\"   # mine\n#: path = \"/webhooks/close\"\n",
        "[server.tls]\ncert = \"c\"\nkey = \"k\"\n",
        "# [server.acme]\n# domains = [\"x\"]\n# email = \"y\"\n",
        "[server.acme]\ndomains = [\"old.example\"]\n",
        "[close]\napi_key = \"hunter2\"\n",
        "[close]\n# api_key_file = \"credential:close_api_key\"\n",
        "[[close.subscriptions]]\nsignature_key_file = \"x\"\n",
        "[log]\ndir = \"d\" # here\n\n",
        "# just words = and more\n\n",
        "[[rules]]\nname = \"r\"\nfilter = [\n[1],\n[2]]\n",
    ]);
    prop::collection::vec(piece, 0..8)
        .prop_map(|pieces| pieces.concat())
        .prop_filter("TOML", |text| parse(text).is_ok())
}

proptest! {
    #[test]
    fn an_edit_does_what_it_says_nothing_else_and_nothing_twice(text in text(), table in prop::sample::select(vec!["server", "server.acme", "close", "log"]), key in prop::sample::select(vec!["listen", "path", "domains", "api_key_file", "dir"]), value in "[a-z]{1,8}") {
        let after = edited(&text, |editor| editor.set(table, key, value.as_str()));
        let mut wanted = values(&text).unwrap();
        wanted.insert(format!("{table}.{key}"), format!("\"{value}\""));
        prop_assert_eq!(values(&after).unwrap(), wanted, "{}", after);
        prop_assert_eq!(&edited(&after, |editor| editor.set(table, key, value.as_str())), &after);
        // Every comment is still there, unless it showed the key or its table.
        for line in text.lines().filter(|line| line.starts_with("# ") && !line.contains(" = ") && !line.contains('[')) {
            prop_assert!(after.contains(line));
        }
    }

    #[test]
    fn what_is_retired_is_gone_and_the_rest_stays(text in text(), table in prop::sample::select(vec!["server.acme", "server.tls"])) {
        let after = edited(&text, |editor| {
            editor.retire_table(table)?;
            editor.retire_entry("close.subscriptions", 0)?;
            editor.remove("close", "api_key")
        });
        let found = values(&after).unwrap();
        let mut wanted = values(&text).unwrap();
        wanted.retain(|name, _| !is_within(name, table) && !is_within(name, "close.api_key"));
        let count = |values: &Values| values.keys().filter(|name| name.starts_with("close.subscriptions")).count();
        prop_assert_eq!(count(&found), count(&wanted).saturating_sub(1));
        let others = |values: &Values| -> Values { values.iter().filter(|(name, _)| !name.starts_with("close.subscriptions")).map(|(name, value)| (name.clone(), value.clone())).collect() };
        prop_assert_eq!(others(&found), others(&wanted));
        prop_assert!(!after.contains("hunter2"));
    }
}

proptest! {
    #[test]
    fn no_difference_shows_a_secret(
        lines in prop::collection::vec(prop::sample::select(vec![
            "listen = 'a'", "secret = 'hunter2'", "secret = \"\"\"\nhunter2\n\"\"\"", "# secret = 'hunter2'", "[close]", "[[sinks]]",
            "api_key = \"hunter2\"", "env = { A = 'hunter2' }", "", "# note", "b = 1", "a.password = 'hunter2'",
        ]), 0..12),
        change in any::<prop::sample::Index>(),
    ) {
        let before = lines.join("\n");
        let mut after = lines.clone();
        after.insert(change.index(lines.len() + 1), "public_url = 'https://x:hunter2@y'");
        // Where it is no TOML nobody edits it.
        prop_assume!(Document::parse(before.as_str()).is_ok() && Document::parse(after.join("\n")).is_ok());
        let shown = diff(&before, &after.join("\n")).join("\n");
        prop_assert!(!shown.contains("hunter2"), "{}", shown);
    }
}
