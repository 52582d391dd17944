//! `closehook sinks types`: what it says is what a build has, and every example works as it is pasted.

use std::process::Output;

use closehook::config::{Config, Layers, SinkType};
use closehook::sinks::REGISTRY;
use serde_json::json;

use crate::harness::{Daemon, parsed};

/// The types that this build has.
fn here() -> impl Iterator<Item = &'static SinkType> {
    REGISTRY.iter().copied().filter(|kind| kind.parse.is_some())
}

fn said(output: &Output) -> String {
    String::from_utf8([output.stdout.clone(), output.stderr.clone()].concat()).unwrap()
}

/// Where everything is made that an example names: files below a directory, credentials in another.
struct Place {
    daemon: Daemon,
    certificate: String,
    key: String,
    account: String,
}

/// A service account's key as Google gives it.
fn account() -> String {
    let arguments = [
        "genpkey",
        "-quiet",
        "-algorithm",
        "RSA",
        "-pkeyopt",
        "rsa_keygen_bits:2048",
    ];
    let made = std::process::Command::new("openssl").args(arguments).output().unwrap();
    let private_key = String::from_utf8(made.stdout).unwrap();
    json!({
        "type": "service_account",
        "client_email": "closehook@acme.iam.gserviceaccount.com",
        "private_key": private_key,
    })
    .to_string()
}

/// A user's of NATS, as its tools write it.
const CREDS: &str = "-----BEGIN NATS USER JWT-----\neyJ0eXAiOiJqd3QifQ.e30.c2ln\n------END NATS USER JWT------\n\n\
     -----BEGIN USER NKEY SEED-----\nSUAIO3FHUX5PNV2LQIIP7TZ3N4L7TX3W53MQGEIVYFIGA635OZCKEYHFLM\n------END USER NKEY SEED------\n";

impl Place {
    fn new() -> Place {
        let made = rcgen::generate_simple_self_signed(vec!["example.com".to_owned()]).unwrap();
        Place {
            daemon: Daemon::new(""),
            certificate: made.cert.pem(),
            key: made.signing_key.serialize_pem(),
            account: account(),
        }
    }

    /// What is in a file that a key names.
    fn content(&self, kind: &str, key: &str) -> &str {
        match (kind, key) {
            (_, "ca" | "cert") => &self.certificate,
            (_, "key") => &self.key,
            ("http", "secret_file") => "whsec_MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIz",
            ("slack", "webhook_url_file") => "https://hooks.slack.com/services/T0AAAAAAA/B0BBBBBBB/x",
            ("pubsub", "credentials_file") => &self.account,
            ("nats", "credentials_file") => CREDS,
            _ => "a-secret",
        }
    }

    /// The example with every path in the directory of the test, and the files that are to be read.
    fn here(&self, kind: &SinkType) -> String {
        let mut document: toml_edit::DocumentMut = kind.example.parse().unwrap();
        let sinks = document["sinks"].as_array_of_tables_mut().unwrap();
        for (name, item) in sinks.get_mut(0).unwrap().iter_mut() {
            let Some(text) = item.as_str().map(str::to_owned) else {
                continue;
            };
            let path = if let Some(credential) = text.strip_prefix("credential:") {
                self.daemon.path("credentials").join(credential)
            } else if let Some(path) = text.strip_prefix('/') {
                let path = self.daemon.path("root").join(path);
                *item = toml_edit::value(path.to_str().unwrap());
                path
            } else {
                continue;
            };
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            if matches!(name.get(), "ca" | "cert" | "key") || name.get().ends_with("_file") {
                std::fs::write(&path, self.content(kind.name, name.get())).unwrap();
            }
        }
        document.to_string()
    }

    fn check(&self, text: &str) -> Output {
        self.daemon.configure(text);
        let mut command = self.daemon.command();
        command.env("CREDENTIALS_DIRECTORY", self.daemon.path("credentials"));
        command.arg("check").output().unwrap()
    }
}

#[test]
fn check_accepts_the_example_of_every_type() {
    let place = Place::new();
    for kind in here() {
        let output = place.check(&place.here(kind));
        let told = said(&output);
        assert!(output.status.success(), "{}: {told}", kind.name);
        assert!(!told.contains("sink \""), "{} is warned of: {told}", kind.name);
        let broken = place.here(kind).replace("type = ", "no_such_key = 1\ntype = ");
        let output = place.check(&broken);
        let told = said(&output);
        assert_eq!(output.status.code(), Some(2), "{}: {told}", kind.name);
        assert!(told.contains("sinks[0].no_such_key: there is no such key"), "{told}");
    }
}

#[test]
fn a_key_that_is_missing_or_misspelt_is_told_with_its_definition() {
    let place = Place::new();
    let wrong = |text: &str| said(&place.check(&format!("[[sinks]]\nname = \"s\"\n{text}")));
    for (text, told) in [
        (
            "type = \"file\"\n",
            "sinks[0].path: is missing: set it, for example path = \"/var/log/closehook/events.jsonl\"",
        ),
        (
            "type = \"http\"\nurl = \"https://e.com/\"\nforward_signatur = true\n",
            "sinks[0].forward_signatur: there is no such key: did you mean \"forward_signature\"?",
        ),
        (
            "type = \"http\"\nurl = \"https://e.com/\"\nsecret_fil = \"x\"\n",
            "did you mean \"secret_file\"?",
        ),
        (
            "type = \"file\"\npath = \"/var/log/x\"\ntimeuot = \"1s\"\n",
            "did you mean \"timeout\"?",
        ),
        (
            "type = \"file\"\npath = \"/var/log/x\"\nrotate = { kep = 1 }\n",
            "sinks[0].rotate.kep: there is no such key: did you mean \"keep\"?",
        ),
    ] {
        let said = wrong(text);
        assert!(said.contains(told), "{said}");
    }
    // A key that is missing makes no other one unknown.
    let said = wrong("type = \"exec\"\nenv = { A = \"b\" }\n");
    assert!(
        said.contains("sinks[0].command: is missing") && !said.contains("no such key"),
        "{said}"
    );
}

#[test]
fn types_are_listed_and_explained_within_80_columns_without_a_configuration() {
    let daemon = Daemon::new("");
    std::fs::remove_file(daemon.config()).unwrap();
    let run = |arguments: &[&str]| -> String {
        let output = daemon
            .command()
            .args(["sinks", "types"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", said(&output));
        String::from_utf8(output.stdout).unwrap()
    };
    let list = run(&[]);
    for kind in REGISTRY {
        let mut lines = list.lines();
        let line = lines
            .find(|line| line.split_whitespace().next() == Some(kind.name))
            .unwrap();
        assert_eq!(line.contains("not in this build"), kind.parse.is_none(), "{line}");
    }
    assert!(list.lines().all(|line| line.chars().count() <= 80), "{list}");
    for kind in here() {
        let page = run(&[kind.name]);
        assert!(page.contains(kind.example), "{page}");
        for key in kind.keys {
            assert!(page.contains(&format!("\n  {}\n", key.line())), "{}: {page}", key.name);
        }
        // What is to be copied is as long as it is.
        let is_wide =
            |line: &&str| line.chars().count() > 80 && !line.starts_with("  ") && !kind.example.contains(*line);
        assert_eq!(page.lines().find(is_wide), None, "{}", kind.name);
    }
    let all: Vec<serde_json::Value> = run(&["--json"]).lines().map(parsed).collect();
    assert_eq!(all.len(), REGISTRY.len());
    let http = all.iter().find(|kind| kind["type"] == "http").unwrap();
    assert_eq!(&parsed(run(&["http", "--json"]).trim()), http);
    let mut keys = all[0]["keys"].as_array().unwrap().iter();
    let compress = keys.find(|key| key["key"] == "rotate.compress").unwrap();
    assert_eq!(
        (&compress["presence"], &compress["value"]),
        (&json!("default"), &json!("true"))
    );
    let mut keys = http["keys"].as_array().unwrap().iter();
    let batch = keys.find(|key| key["key"] == "batch").unwrap();
    assert_eq!(batch["presence"], json!("optional"), "without it there are no batches");
    let unknown = daemon.command().args(["sinks", "types", "htp"]).output().unwrap();
    assert_eq!(unknown.status.code(), Some(2));
    assert!(said(&unknown).contains("http"), "{}", said(&unknown));
}

/// Decision 45. A build with all types lacks none, so one is made up.
#[test]
fn a_type_that_a_build_lacks_is_never_unknown() {
    static LACKING: SinkType = SinkType::lacking("queue", "sink-queue");
    static TYPES: &[&SinkType] = &[&LACKING];
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("closehook.toml");
    std::fs::write(&file, "[[sinks]]\nname = \"q\"\ntype = \"queue\"\ntopic = \"x\"\n").unwrap();
    let layers = Layers {
        file: Some(file),
        ..Layers::new(TYPES, closehook::rules::faults)
    };
    let faults = Config::load(&layers).unwrap_err();
    let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
    let told = "sinks[0].type: this build of closehook was made without this type of sink; the packages have it (as a Cargo \
                feature: sink-queue)";
    assert_eq!(faults, [told]);
}
