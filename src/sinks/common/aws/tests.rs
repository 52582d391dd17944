//! Finding keys, and what the table says. What answers mean is in `answers`.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::body::Bytes;
use axum::http::{HeaderMap, Method, Uri};
use axum::response::IntoResponse;
use jiff::{SignedDuration, Timestamp};
use serde_json::{Value, json};

use super::keys::Keys;
use super::*;

mod answers;

/// A request that was made: `POST /path?query`, its head and its body.
pub(in crate::sinks) type Seen = (String, HeaderMap, String);

/// A server that answers by what is asked, and remembers it.
pub(in crate::sinks) struct Fake {
    pub url: String,
    pub seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(in crate::sinks) async fn start(
        answer: impl Fn(&Seen) -> (u16, Vec<(&'static str, String)>, String) + Send + Sync + 'static,
    ) -> Fake {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let seen: Arc<Mutex<Vec<Seen>>> = Arc::default();
        let (kept, answer) = (seen.clone(), Arc::new(answer));
        let handle = move |method: Method, uri: Uri, head: HeaderMap, body: Bytes| async move {
            let asked = (
                format!("{method} {uri}"),
                head,
                String::from_utf8_lossy(&body).into_owned(),
            );
            let (status, headers, body) = answer(&asked);
            kept.lock().unwrap().push(asked);
            let mut response = (axum::http::StatusCode::from_u16(status).unwrap(), body).into_response();
            for (name, value) in headers {
                response.headers_mut().insert(name, value.parse().unwrap());
            }
            response
        };
        tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(handle)).await });
        Fake { url, seen }
    }

    pub(in crate::sinks) fn asked(&self) -> Vec<String> {
        self.seen
            .lock()
            .unwrap()
            .iter()
            .map(|(asked, _, _)| asked.clone())
            .collect()
    }
}

fn in_an_hour() -> String {
    (Timestamp::now() + SignedDuration::from_hours(1)).to_string()
}

fn lent(id: &str, token: &str) -> Value {
    json!({ "AccessKeyId": id, "SecretAccessKey": "s", token: "t", "Expiration": in_an_hour() })
}

fn sts(id: &str) -> String {
    format!(
        "<R><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t</SessionToken><Expiration>{}</Expiration></Credentials></R>",
        in_an_hour()
    )
}

/// STS, a container's service and EC2's metadata in one.
async fn lenders() -> Fake {
    Fake::start(|(asked, head, body)| {
        let header = |name: &str| head.get(name).and_then(|value| value.to_str().ok());
        let metadata = "/latest/meta-data/iam/security-credentials/";
        let (status, body) = match asked.as_str() {
            "PUT /latest/api/token" if header("x-aws-ec2-metadata-token-ttl-seconds").is_some() => {
                (200, "token".into())
            }
            path if path.starts_with(&format!("GET {metadata}"))
                && header("x-aws-ec2-metadata-token") != Some("token") =>
            {
                (401, String::new())
            }
            path if path == format!("GET {metadata}") => (200, "a role\n".into()),
            path if path == format!("GET {metadata}a%20role") => (200, lent("instance", "Token").to_string()),
            "GET /container" if header("authorization") == Some("secret") => {
                (200, lent("container", "Token").to_string())
            }
            "POST /" if body.contains("AssumeRoleWithWebIdentity") && body.contains("WebIdentityToken=jwt&") => {
                (400, String::new())
            }
            "POST /" if body.contains("AssumeRoleWithWebIdentity") && body.ends_with("WebIdentityToken=jwt") => {
                (200, sts("web"))
            }
            "POST /" if body.contains("Action=AssumeRole&") && body.contains("ExternalId=ext") => {
                (200, sts("role-ext"))
            }
            "POST /"
                if body.contains("Action=AssumeRole&")
                    && header("authorization").is_some_and(|it| it.contains("Credential=base/")) =>
            {
                (200, sts("role"))
            }
            _ => (403, "<Error><Code>AccessDenied</Code></Error>".into()),
        };
        (status, Vec::new(), body)
    })
    .await
}

/// As a sink's table says it.
fn way() -> Way {
    Way {
        allow_private: true,
        ..Way::default()
    }
}

async fn keys(named: Named, variables: &[(&str, &str)]) -> Result<Arc<Keys>, String> {
    let variables: BTreeMap<String, String> = variables
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    let machine = Machine::with(variables);
    let provider = Provider::new(named, machine, "eu-central-1".into(), &way(), Duration::from_secs(10)).unwrap();
    provider.keys().await
}

#[tokio::test]
async fn keys_are_found_where_aws_s_tools_find_them_and_in_their_order() {
    let fake = lenders().await;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    std::fs::write(at("jwt"), "jwt\n").unwrap();
    std::fs::write(at("token"), "secret\n").unwrap();
    std::fs::write(
        at("credentials"),
        "[default]\naws_access_key_id=file\naws_secret_access_key=s\n[base]\naws_access_key_id=base\naws_secret_access_key=s\n",
    )
    .unwrap();
    std::fs::write(
        at("config"),
        "[profile role]\nrole_arn=arn:aws:iam::1:role/x\nsource_profile=base\n\
         [profile twice]\nrole_arn=arn:aws:iam::1:role/y\nsource_profile=role\nexternal_id=ext\n\
         [profile machine]\nrole_arn=arn:aws:iam::1:role/z\nexternal_id=ext\ncredential_source=Ec2InstanceMetadata\n\
         [profile loop]\nrole_arn=arn:aws:iam::1:role/z\nsource_profile=loops\n\
         [profile loops]\nrole_arn=arn:aws:iam::1:role/z\nsource_profile=loop\n\
         [profile sso]\nsso_start_url=https://x\n",
    )
    .unwrap();
    let (config, credentials, jwt, token) = (at("config"), at("credentials"), at("jwt"), at("token"));
    let container = format!("{}/container", fake.url);
    let mut variables = vec![
        ("AWS_ACCESS_KEY_ID", "env"),
        ("AWS_SECRET_ACCESS_KEY", "s"),
        ("AWS_WEB_IDENTITY_TOKEN_FILE", &*jwt),
        ("AWS_ROLE_ARN", "arn:aws:iam::1:role/web"),
        ("AWS_SHARED_CREDENTIALS_FILE", &*credentials),
        ("AWS_CONFIG_FILE", &*config),
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", &*container),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", &*token),
        ("AWS_EC2_METADATA_SERVICE_ENDPOINT", &*fake.url),
        ("AWS_ENDPOINT_URL_STS", &*fake.url),
    ];
    let profile = |name: &str| Named {
        profile: Some(name.into()),
        ..Named::default()
    };
    let own = Named {
        id: Some("own".into()),
        secret: Some(Secret::Inline("s".into())),
        ..Named::default()
    };
    assert_eq!(keys(own, &variables).await.unwrap().id, "own");
    for (name, id) in [
        ("base", "base"),
        ("role", "role"),
        ("twice", "role-ext"),
        ("machine", "role-ext"),
    ] {
        assert_eq!(keys(profile(name), &variables).await.unwrap().id, id, "{name}");
    }
    for (name, why) in [
        ("loop", "too many"),
        ("sso", "a daemon can't use"),
        ("none", "there is no profile"),
    ] {
        let error = keys(profile(name), &variables).await.unwrap_err();
        assert!(error.contains(why), "{name}: {error}");
    }
    // Each way goes when what is before it says nothing.
    for (id, gone) in [("env", 2), ("web", 2), ("file", 1), ("container", 2), ("instance", 1)] {
        let found = keys(Named::default(), &variables).await.unwrap();
        assert_eq!(found.id, id);
        assert_eq!(found.token.is_some(), !["env", "file"].contains(&id), "{id}");
        variables.drain(..gone);
        // No file of whoever runs this.
        variables.retain(|(name, _)| *name != "AWS_CONFIG_FILE" || id == "env" || id == "web");
    }
    let none = keys(Named::default(), &[("AWS_EC2_METADATA_DISABLED", "true")])
        .await
        .unwrap_err();
    assert!(
        none.contains("no credentials were found") && none.contains("access_key_id"),
        "{none}"
    );
    let role = Named {
        role: Some("arn:aws:iam::1:role/denied".into()),
        ..Named::default()
    };
    let denied = keys(
        role,
        &[
            ("AWS_ACCESS_KEY_ID", "x"),
            ("AWS_SECRET_ACCESS_KEY", "s"),
            ("AWS_ENDPOINT_URL_STS", &fake.url),
        ],
    )
    .await;
    assert!(denied.unwrap_err().contains("STS answered 403 AccessDenied"));
}

#[tokio::test]
async fn keys_are_kept_while_they_are_good_and_fetched_again_before_they_end() {
    let ends = Arc::new(Mutex::new(SignedDuration::from_hours(1)));
    let is_down = Arc::new(Mutex::new(false));
    let (end, down) = (ends.clone(), is_down.clone());
    let fake = Fake::start(move |_| {
        let at = Timestamp::now() + *end.lock().unwrap();
        let answer = json!({ "AccessKeyId": "x", "SecretAccessKey": "s", "Token": "t", "Expiration": at.to_string() });
        (
            if *down.lock().unwrap() { 500 } else { 200 },
            Vec::new(),
            answer.to_string(),
        )
    })
    .await;
    let machine = Machine::of([
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", fake.url.clone()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "x".into()),
    ]);
    let provider = Provider::new(Named::default(), machine, "x".into(), &way(), Duration::from_secs(10)).unwrap();
    let asked = || fake.asked().len();
    provider.keys().await.unwrap();
    provider.keys().await.unwrap();
    assert_eq!(asked(), 1);
    provider.forget();
    *ends.lock().unwrap() = SignedDuration::from_secs(120);
    provider.keys().await.unwrap();
    assert_eq!(asked(), 2, "AWS did not take the others");
    *is_down.lock().unwrap() = true;
    provider.keys().await.unwrap();
    assert_eq!(asked(), 3, "they end soon; they are good until then");
    provider.forget();
    let error = provider.keys().await.unwrap_err();
    assert!(
        error.contains("the container's credentials can't be had: it answered 500"),
        "{error}"
    );
}

#[tokio::test]
async fn only_keys_that_are_refused_are_thrown_away() {
    for (status, code, times) in [
        (400, "ThrottlingException", 1),
        (400, "QueueDoesNotExist", 1),
        (403, "RequestTimeTooSkewed", 1),
        (403, "ExpiredToken", 3),
        (403, "SignatureDoesNotMatch", 3),
        (403, "UnrecognizedClientException", 3),
        // Once: they may have the right by now.
        (403, "AccessDeniedException", 2),
        // What it does not name may be that they have ended.
        (400, "", 2),
        (403, "", 2),
    ] {
        let fake = Fake::start(move |(asked, _, _)| match asked.as_str() {
            "GET /container" => (200, Vec::new(), lent("container", "Token").to_string()),
            _ => (status, Vec::new(), json!({ "__type": code }).to_string()),
        })
        .await;
        let machine = Machine::of([
            ("AWS_CONTAINER_CREDENTIALS_FULL_URI", format!("{}/container", fake.url)),
            ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "x".into()),
        ]);
        let access = Access {
            machine,
            endpoint: Some(Url::parse(&fake.url).unwrap()),
            ..access()
        };
        let account = access.account_within(Duration::from_secs(10)).unwrap();
        for _ in 0..3 {
            account.json("X.Y", "1.0", &json!({})).await.unwrap_err();
        }
        let fetched = fake.asked().iter().filter(|asked| *asked == "GET /container").count();
        assert_eq!(fetched, times, "{code}");
    }
}

#[tokio::test]
async fn while_keys_are_good_nobody_waits_for_the_next_and_a_failure_is_everybody_s() {
    let ends = Arc::new(Mutex::new(Some(SignedDuration::from_secs(120))));
    let end = ends.clone();
    let fake = Fake::start(move |_| match *end.lock().unwrap() {
        Some(ends) => {
            let at = Timestamp::now() + ends;
            let answer =
                json!({ "AccessKeyId": "x", "SecretAccessKey": "s", "Token": "t", "Expiration": at.to_string() });
            (200, Vec::new(), answer.to_string())
        }
        None => (500, Vec::new(), String::new()),
    })
    .await;
    let machine = Machine::of([
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", fake.url.clone()),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "x".into()),
    ]);
    let way = way();
    let provider = Provider::new(Named::default(), machine, "x".into(), &way, Duration::from_secs(10)).unwrap();
    provider.keys().await.unwrap();
    *ends.lock().unwrap() = None;
    for _ in 0..5 {
        provider.keys().await.unwrap();
    }
    assert_eq!(fake.asked().len(), 2, "it failed, and they are good for two minutes");
    provider.forget();
    let all = futures::future::join_all((0..5).map(|_| provider.keys())).await;
    assert!(all.iter().all(Result::is_err));
    assert_eq!(fake.asked().len(), 3, "who waited is told the same");
}

#[tokio::test]
async fn credentials_that_do_not_come_have_a_deadline() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let machine = Machine::of([
        (
            "AWS_CONTAINER_CREDENTIALS_FULL_URI",
            format!("http://{}", listener.local_addr().unwrap()),
        ),
        ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "x".into()),
    ]);
    let way = way();
    let provider = Provider::new(Named::default(), machine, "x".into(), &way, Duration::from_millis(200)).unwrap();
    let all = futures::future::join_all((0..20).map(|_| provider.keys()));
    let all = tokio::time::timeout(Duration::from_secs(3), all).await.unwrap();
    assert!(all.iter().all(Result::is_err));
}

#[tokio::test]
async fn sts_is_reached_as_the_service_is() {
    let proxy = Fake::start(|_| (200, Vec::new(), sts("by-proxy"))).await;
    let way = Way {
        proxy: Some(proxy.url.clone()),
        ..way()
    };
    let machine = Machine::of([
        ("AWS_ACCESS_KEY_ID", "x".into()),
        ("AWS_SECRET_ACCESS_KEY", "s".into()),
        ("AWS_ENDPOINT_URL_STS", "http://sts.invalid".into()),
    ]);
    let role = Named {
        role: Some("arn:aws:iam::1:role/x".into()),
        ..Named::default()
    };
    let provider = Provider::new(role, machine, "x".into(), &way, Duration::from_secs(10)).unwrap();
    assert_eq!(provider.keys().await.unwrap().id, "by-proxy");
}

#[tokio::test]
async fn a_container_s_token_goes_to_nobody_else() {
    let elsewhere = ("AWS_CONTAINER_CREDENTIALS_FULL_URI", "http://198.51.100.1/x");
    let error = keys(Named::default(), &[elsewhere]).await.unwrap_err();
    assert!(
        error.contains("neither this machine nor the container's service"),
        "{error}"
    );
}

#[test]
fn the_keys_of_the_table_belong_together() {
    let faults = |table: Value| {
        let mut faults = Vec::new();
        let mut table = crate::config::Table::new("s", table, &mut faults);
        let _ = Access::of(&mut table, "s3");
        table.finish();
        faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    };
    for (table, part) in [
        (json!({"access_key_id": "x"}), "s.secret_access_key"),
        (json!({"secret_access_key": "x"}), "s.access_key_id"),
        (json!({"session_token": "x"}), "s.session_token"),
        (
            json!({"access_key_id": "x", "secret_access_key": "y", "profile": "z"}),
            "keep one of them",
        ),
        (json!({"region": "eu central"}), "s.region"),
        (json!({"endpoint": "minio:9000"}), "s.endpoint"),
        (json!({"role_arn": "closehook"}), "s.role_arn"),
    ] {
        assert!(
            faults(table.clone()).contains(part),
            "{table}: {}",
            faults(table.clone())
        );
    }
    assert_eq!(
        faults(json!({"region": "eu-central-1", "profile": "x", "role_arn": "arn:aws:iam::1:role/x"})),
        ""
    );
}

#[test]
fn where_a_service_is_follows_from_its_region() {
    for (region, host) in [
        ("eu-central-1", "sqs.eu-central-1.amazonaws.com"),
        ("cn-north-1", "sqs.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "sqs.us-gov-west-1.amazonaws.com"),
    ] {
        let mut faults = Vec::new();
        let mut table = crate::config::Table::new("s", json!({ "region": region }), &mut faults);
        let access = Access::of(&mut table, "sqs");
        assert_eq!(access.endpoint().unwrap().0.host_str(), Some(host));
    }
    let unknown = Access {
        machine: Machine::of([]),
        region: None,
        ..access()
    };
    assert!(unknown.fault().unwrap().contains("set region"));
    let variable = Access {
        machine: Machine::of([("AWS_REGION", "us-east-2".to_owned())]),
        region: None,
        ..access()
    };
    assert_eq!(variable.region().unwrap(), "us-east-2");
}

fn access() -> Access {
    let mut faults = Vec::new();
    let mut table = crate::config::Table::new("s", json!({ "region": "x" }), &mut faults);
    Access::of(&mut table, "sqs")
}

/// A sink on a fake, opened.
pub(in crate::sinks) async fn opened(
    kind: &crate::sinks::SinkType,
    fake: &Fake,
    more: &Value,
) -> Box<dyn crate::sinks::Sink> {
    let mut table =
        json!({ "region": "eu-central-1", "endpoint": fake.url, "access_key_id": "AKID", "secret_access_key": "s" });
    for (key, value) in more.as_object().unwrap() {
        table[key] = value.clone();
    }
    let options = crate::sinks::tests::sound(kind, table);
    let context = crate::sinks::Context {
        timeout: Duration::from_secs(10),
        ..crate::sinks::Context::default()
    };
    options.open(context).await.unwrap().sink
}

/// How three events fare where the service answers so: `d`elivered, `r`etry, not tried (`-`), refused (`x`); and what was asked.
pub(in crate::sinks) async fn fares(
    kind: &crate::sinks::SinkType,
    more: &Value,
    answer: String,
) -> (String, Vec<Seen>) {
    let fake = Fake::start(move |_| (200, Vec::new(), answer.clone())).await;
    let sink = opened(kind, &fake, more).await;
    let event = |seq: u64| {
        let body =
            format!(r#"{{"event":{{"id":"ev_{seq}","object_type":"lead","action":"updated","lead_id":"lead_é"}}}}"#);
        super::super::line::tests::delivery(seq, &body)
    };
    let fared = match crate::sinks::tests::deliver(&*sink, &[event(1), event(2), event(3)]).await {
        Ok(outcomes) => outcomes
            .iter()
            .map(|outcome| match outcome {
                crate::sinks::Outcome::Delivered => 'd',
                crate::sinks::Outcome::Skipped => 's',
                crate::sinks::Outcome::Retry { .. } => 'r',
                crate::sinks::Outcome::Untried { .. } => '-',
                crate::sinks::Outcome::Waits(_) => 'w',
                crate::sinks::Outcome::Reject { .. } => 'x',
            })
            .collect(),
        Err(unavailable) => unavailable.reason,
    };
    let seen = fake.seen.lock().unwrap().clone();
    (fared, seen)
}
