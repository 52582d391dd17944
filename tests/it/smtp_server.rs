//! A mail server of a test's own: `aiosmtpd` (`smtp_server.py` beside this), which answers as the test says.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use serde_json::{Value, json};

use crate::harness::skipped;

pub struct Server {
    pub dir: tempfile::TempDir,
    pub port: u16,
    rules: Value,
    child: Option<Child>,
}

fn tools() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("target/tools/aiosmtpd")
}

impl Server {
    /// A running server with a certificate for 127.0.0.1 from an authority of its own (`ca.pem`); `None`, loudly, where aiosmtpd is not
    /// installed.
    pub fn start(rules: Value) -> Option<Server> {
        if !tools().join("aiosmtpd").exists() {
            skipped("aiosmtpd is not installed (tests/run.sh does it)");
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::new(Vec::new()).unwrap();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let authority = CertifiedIssuer::self_signed(authority, KeyPair::generate().unwrap()).unwrap();
        let key = KeyPair::generate().unwrap();
        let cert = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        let cert = cert.signed_by(&key, &authority).unwrap();
        let write = |name: &str, text: String| std::fs::write(dir.path().join(name), text).unwrap();
        write("ca.pem", authority.pem());
        write("cert.pem", cert.pem());
        write("key.pem", key.serialize_pem());
        let mut server = Server {
            dir,
            port: 0,
            rules,
            child: None,
        };
        server.run();
        Some(server)
    }

    /// Starts it (again), on its port if it has one.
    pub fn run(&mut self) {
        self.rules["port"] = self.port.into();
        self.write_rules();
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/smtp_server.py");
        let mut child = Command::new("python3")
            .arg(script)
            .arg(self.dir.path())
            .env("PYTHONPATH", tools())
            .env("PYTHONWARNINGS", "ignore")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        self.port = line
            .trim()
            .parse()
            .unwrap_or_else(|_| panic!("the mail server does not start: {line:?}"));
        self.child = Some(child);
    }

    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// How it answers from now on; null is as usual.
    pub fn says(&mut self, key: &str, answer: Value) {
        self.rules[key] = answer;
        self.write_rules();
    }

    fn write_rules(&self) {
        let rules = self
            .rules
            .as_object()
            .unwrap()
            .iter()
            .filter(|(_, rule)| !rule.is_null());
        let rules: serde_json::Map<String, Value> = rules.map(|(key, rule)| (key.clone(), rule.clone())).collect();
        // Whoever reads it meanwhile finds the one or the other.
        let new = self.dir.path().join("rules.new");
        std::fs::write(&new, json!(rules).to_string()).unwrap();
        std::fs::rename(new, self.dir.path().join("rules.json")).unwrap();
    }

    pub fn path(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }

    /// The mails that it has.
    pub fn mails(&self) -> Vec<Mail> {
        let text = std::fs::read_to_string(self.dir.path().join("mails.jsonl")).unwrap_or_default();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(Mail::parse).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

#[derive(Debug, Clone)]
pub struct Mail {
    pub to: Vec<String>,
    pub text: String,
    pub tls: bool,
}

impl Mail {
    fn parse(line: &str) -> Mail {
        let mail: Value = serde_json::from_str(line).unwrap();
        Mail {
            to: mail["to"]
                .as_array()
                .unwrap()
                .iter()
                .map(|to| to.as_str().unwrap().to_owned())
                .collect(),
            // Without the line ends that only a mail has.
            text: mail["text"].as_str().unwrap().replace("=\r\n", ""),
            tls: mail["tls"] == true,
        }
    }

    /// The value of a header; empty where there is none.
    pub fn header(&self, name: &str) -> String {
        let head = self.text.split("\r\n\r\n").next().unwrap().replace("\r\n ", " ");
        let begins = format!("{}:", name.to_ascii_lowercase());
        let found = head
            .split("\r\n")
            .find(|line| line.to_ascii_lowercase().starts_with(&begins));
        found
            .map(|line| line[begins.len()..].trim().to_owned())
            .unwrap_or_default()
    }
}

#[async_trait::async_trait]
impl crate::campaign::Peer for Server {
    fn kill(&mut self) {
        Server::kill(self);
    }

    async fn run(&mut self) {
        Server::run(self);
    }
}
