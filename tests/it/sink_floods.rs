//! Servers of other sinks than http that send without end: slack's, Pub/Sub's and AWS's, and those that lend tokens and keys. Whatever
//! it is, it costs nobody but them (I7).

use std::path::{Path, PathBuf};

use crate::flooder::{
    Deed, FLOODS, FRAMES, Flood, Flooder, others_go_on, others_go_on_with, says_nothing, sealed, server,
};
use crate::sinks_pubsub::write_account;

/// Gives up soon, and tries again in an hour.
const PATIENT: &str = "start = \"beginning\"\nretry = { initial = \"1h\", max_delay = \"1h\" }\n\
     breaker = { failures = 1000, refusals = 1000 }\n";

/// What floods a sink of one kind.
struct Floods {
    dir: tempfile::TempDir,
    config: String,
    all: Vec<Flood>,
}

impl Floods {
    fn new() -> Floods {
        let dir = tempfile::tempdir().unwrap();
        let (config, all) = (String::new(), Vec::new());
        Floods { dir, config, all }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A sink whose server does this; `own` writes its table for the server's address.
    fn add(&mut self, name: &str, is_taken: Option<bool>, deed: Deed, own: impl Fn(&str) -> String) {
        let flooder = Flooder::start(None, deed);
        self.with(name, &format!("http://127.0.0.1:{}", flooder.port), &own);
        self.all.push((name.to_owned(), is_taken, flooder));
    }

    fn with(&mut self, name: &str, url: &str, own: &dyn Fn(&str) -> String) {
        self.config += &format!("[[sinks]]\nname = \"{name}\"\n{PATIENT}{}\n", own(url));
    }

    /// What comes over HTTP/1.1, and something of TLS and HTTP/2. `taken`: whether a status of 200 alone says that the events are there.
    fn add_each(&mut self, taken: Option<bool>, own: impl Fn(&str) -> String) {
        for (name, has_status, deed) in FLOODS {
            self.add(name, taken.filter(|_| has_status), deed, &own);
        }
        let ca = self.trusts("h1.pem", &sealed().0);
        let flooder = Flooder::start(None, says_nothing);
        let url = format!("https://localhost:{}", flooder.port);
        self.with("records", &url, &|url| own(url) + &ca);
        self.all.push(("records".to_owned(), None, flooder));
        let (pem, tls) = server(b"h2");
        let ca = self.trusts("h2.pem", &pem);
        for (name, has_status, deed) in FRAMES
            .into_iter()
            .filter(|(name, _, _)| ["ping", "interim"].contains(name))
        {
            assert!(!has_status);
            let name = format!("h2-{name}");
            let flooder = Flooder::start(Some(tls.clone()), deed);
            let url = format!("https://localhost:{}", flooder.port);
            self.with(&name, &url, &|url| own(url) + &ca);
            self.all.push((name, None, flooder));
        }
    }

    fn trusts(&self, name: &str, pem: &str) -> String {
        std::fs::write(self.path(name), pem).unwrap();
        format!("ca = \"{}\"\n", self.path(name).display())
    }
}

fn deed(name: &str) -> Deed {
    FLOODS.iter().find(|(known, _, _)| *known == name).unwrap().2
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn a_slack_that_sends_without_end_holds_up_nobody() {
    let mut floods = Floods::new();
    let own = |url: &str| {
        format!(
            "type = \"slack\"\nwebhook_url = \"{url}/services/T0/B0/x\"\nallow_private = true\nrate = \"100000/s\"\ntimeout = \"1s\"\n"
        )
    };
    floods.add_each(Some(true), own);
    floods.add("proxied", None, deed("interim"), |url| {
        format!("{}proxy = \"{url}\"\n", own("http://slack.example"))
    });
    // A method's answer is its body.
    floods.add("method", None, deed("interim"), |url| {
        format!("type = \"slack\"\ntoken = \"xoxb-1\"\nchannel = \"c\"\napi_url = \"{url}\"\nallow_private = true\ntimeout = \"2s\"\n")
    });
    others_go_on(floods.config, floods.all).await;
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn a_pubsub_that_sends_without_end_holds_up_nobody() {
    let mut floods = Floods::new();
    let own = |url: &str| {
        format!("type = \"pubsub\"\ntopic = \"projects/acme/topics/close\"\nendpoint = \"{url}\"\ntimeout = \"2s\"\n")
    };
    floods.add_each(Some(true), own);
    for name in ["interim", "head", "chunks"] {
        let account = floods.path(&format!("{name}.json"));
        let flooder = Flooder::start(None, deed(name));
        if write_account(&account, &format!("http://127.0.0.1:{}/token", flooder.port)).is_none() {
            return;
        }
        let name = format!("token-{name}");
        let credentials = format!("credentials_file = \"{}\"\n", account.display());
        floods.with(&name, "http://127.0.0.1:9", &|url| own(url) + &credentials);
        floods.all.push((name, None, flooder));
    }
    others_go_on(floods.config, floods.all).await;
}

const KEYS: &str = "access_key_id = \"test\"\nsecret_access_key = \"hunter2-secret\"\n";

fn sqs(url: &str) -> String {
    format!("type = \"sqs\"\nregion = \"eu-central-1\"\nqueue = \"{url}/1/q\"\ntimeout = \"2s\"\n")
}

/// Variables that keep the files of whoever runs this out of it.
fn alone(dir: &Path) -> Vec<(String, String)> {
    ["AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"]
        .map(|name| (name.to_owned(), dir.join("none").display().to_string()))
        .to_vec()
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn an_aws_that_sends_without_end_holds_up_nobody() {
    let mut floods = Floods::new();
    // What became of each event is said by the body.
    floods.add_each(None, |url| sqs(url) + KEYS);
    for name in ["interim", "line", "trailers"] {
        floods.add(&format!("s3-{name}"), None, deed(name), |url| {
            format!(
                "type = \"s3\"\nbucket = \"crm\"\nregion = \"eu-central-1\"\nendpoint = \"{url}\"\ntimeout = \"2s\"\n\
                 batch = {{ events = 1, wait = \"0s\" }}\n{KEYS}"
            )
        });
    }
    floods.add("proxied", None, deed("interim"), |url| {
        format!("{}{KEYS}proxy = \"{url}\"\n", sqs("http://sqs.example"))
    });
    others_go_on(floods.config, floods.all).await;
}

/// I7
#[tokio::test(flavor = "multi_thread")]
async fn who_lends_keys_and_sends_without_end_holds_up_nobody() {
    let mut floods = Floods::new();
    let mut environment = alone(floods.dir.path());
    // One server each, for many sinks: each finds keys for itself.
    let container = Flooder::start(None, deed("interim"));
    let (pem, tls) = server(b"h2");
    let ca = floods.trusts("h2.pem", &pem);
    let (_, _, interim) = FRAMES.into_iter().find(|(name, _, _)| *name == "interim").unwrap();
    let sts = Flooder::start(Some(tls), interim);
    let near = format!("http://127.0.0.1:{}", container.port);
    environment.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI".to_owned(), near));
    let far = format!("https://localhost:{}", sts.port);
    environment.push(("AWS_ENDPOINT_URL_STS".to_owned(), far));
    for number in 1..=4 {
        let at_nobody = "http://127.0.0.1:9";
        floods.with(&format!("container-{number}"), at_nobody, &sqs);
        floods.with(&format!("sts-{number}"), at_nobody, &|url| {
            format!("{}{KEYS}{ca}role_arn = \"arn:aws:iam::1:role/x\"\n", sqs(url))
        });
    }
    floods.all.push(("container-1".to_owned(), None, container));
    floods.all.push(("sts-1".to_owned(), None, sts));
    others_go_on_with(environment, floods.config, floods.all).await;
}
