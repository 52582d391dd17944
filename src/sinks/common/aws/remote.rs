//! Keys that are lent: by STS, by the container, by EC2's metadata.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::HeaderMap;
use reqwest::{Method, StatusCode, Url};
use secrecy::SecretString;
use serde_json::Value;

use super::keys::Keys;
use super::machine::Machine;
use super::sign::{Scope, Unsigned, headers, sign};
use super::{domain, xml};
use crate::net::client::{Client, Request};
use crate::net::http::Way;
use crate::net::percent::encoded;
use crate::net::reply::Reply;

/// The container's and the machine's own service is near.
const NEAR_WITHIN: Duration = Duration::from_secs(3);

/// How the session is called in AWS's own records.
const SESSION: &str = "closehook";

const METADATA: &str = "http://169.254.169.254";
const CONTAINER: &str = "http://169.254.170.2";

/// Whom a container's token may be sent to without TLS: ECS and EKS.
const CONTAINER_HOSTS: [&str; 3] = ["169.254.170.2", "169.254.170.23", "fd00:ec2::23"];

/// Those who lend keys.
pub(super) struct Remote {
    pub machine: Machine,
    region: String,
    near: Client,
    far: Client,
}

impl Remote {
    /// `way`: how the sink's service is reached, and so STS.
    pub(super) fn new(machine: Machine, region: String, way: &Way, timeout: Duration) -> Result<Remote, String> {
        let near = Way {
            allow_private: true,
            ..Way::default()
        };
        Ok(Remote {
            machine,
            region,
            near: Client::new(&near, NEAR_WITHIN.min(timeout))?,
            far: Client::new(way, timeout)?,
        })
    }

    /// What a token in a file (of Kubernetes) is given for.
    pub(super) async fn web_identity(&self, token: &Path, role: &str) -> Result<Keys, String> {
        let text = tokio::fs::read_to_string(token).await;
        let text =
            text.map_err(|error| format!("the web identity's token {} can't be read: {error}", token.display()))?;
        let session = self.machine.variable("AWS_ROLE_SESSION_NAME");
        let form = form(&[
            ("Action", "AssumeRoleWithWebIdentity"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", session.as_deref().unwrap_or(SESSION)),
            ("WebIdentityToken", text.trim()),
        ]);
        self.sts(form, None, role).await
    }

    /// A role that is taken on with keys.
    pub(super) async fn assume_role(&self, keys: &Keys, role: &str, external_id: Option<&str>) -> Result<Keys, String> {
        let mut fields = vec![
            ("Action", "AssumeRole"),
            ("Version", "2011-06-15"),
            ("RoleArn", role),
            ("RoleSessionName", SESSION),
        ];
        fields.extend(external_id.map(|id| ("ExternalId", id)));
        self.sts(form(&fields), Some(keys), role).await
    }

    async fn sts(&self, form: String, keys: Option<&Keys>, role: &str) -> Result<Keys, String> {
        let named = self.machine.variable("AWS_ENDPOINT_URL_STS");
        let url = named.unwrap_or_else(|| format!("https://sts.{}.{}", self.region, domain(&self.region)));
        let url = Url::parse(&url).map_err(|_| "AWS_ENDPOINT_URL_STS is no URL".to_owned())?;
        let own = [("content-type", "application/x-www-form-urlencoded".to_owned())];
        let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&form));
        let unsigned = Unsigned {
            method: "POST",
            url: &url,
            headers: &own,
            digest: &digest,
        };
        let scope = Scope {
            region: &self.region,
            service: "sts",
        };
        let signed = keys.map(|keys| sign(&unsigned, keys, scope, Timestamp::now()));
        let what = format!("the role {role} can't be taken on");
        let request = Request {
            headers: headers(own.iter().chain(signed.iter().flatten())).map_err(|why| format!("{what}: {why}"))?,
            method: Method::POST,
            url,
            body: form.into(),
        };
        let unanswered = |why: String| format!("{what}: STS: {why}");
        let reply = asked(&self.far, &request).await.map_err(unanswered)?;
        let body = reply.text();
        if reply.status != StatusCode::OK {
            let code = xml::text(&body, "Code").unwrap_or_default();
            let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(60).collect();
            return Err(format!("{what}: STS answered {}", refused(reply.status, &code)));
        }
        let text = |name| xml::text(&body, name);
        keys_of(
            text("AccessKeyId"),
            text("SecretAccessKey"),
            text("SessionToken"),
            text("Expiration"),
        )
        .ok_or_else(|| format!("{what}: STS answered without keys"))
    }

    /// `None`: this is no such container.
    pub(super) async fn container(&self) -> Option<Result<Keys, String>> {
        let url = match self.machine.variable("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI") {
            Some(path) => format!("{CONTAINER}{path}"),
            None => self.machine.variable("AWS_CONTAINER_CREDENTIALS_FULL_URI")?,
        };
        Some(
            self.of_container(&url)
                .await
                .map_err(|why| format!("the container's credentials can't be had: {why}")),
        )
    }

    async fn of_container(&self, url: &str) -> Result<Keys, String> {
        let url = Url::parse(url).map_err(|_| "AWS_CONTAINER_CREDENTIALS_FULL_URI is no URL")?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let is_loopback = host == "localhost" || host.parse().is_ok_and(|address: IpAddr| address.is_loopback());
        if url.scheme() != "https" && !is_loopback && !CONTAINER_HOSTS.contains(&&*host) {
            return Err(format!(
                "{host} is neither this machine nor the container's service, and it is no https"
            ));
        }
        let mut request = plain(Method::GET, url);
        let token = match self.machine.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(path) => {
                let token = tokio::fs::read_to_string(&path).await;
                Some(token.map_err(|error| format!("its token {path} can't be read: {error}"))?)
            }
            None => self.machine.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        if let Some(token) = token {
            request.headers = headers([("authorization", token.trim().to_owned())].iter())?;
        }
        lent(&self.near, &request).await
    }

    /// The role of the EC2 instance.
    pub(super) async fn instance(&self) -> Result<Keys, String> {
        let no = |why: String| format!("this machine's own role can't be had (EC2 metadata: {why})");
        if self
            .machine
            .variable("AWS_EC2_METADATA_DISABLED")
            .is_some_and(|value| value.eq_ignore_ascii_case("true"))
        {
            return Err(no("AWS_EC2_METADATA_DISABLED is set".into()));
        }
        let base = self.machine.variable("AWS_EC2_METADATA_SERVICE_ENDPOINT");
        let base = base.as_deref().unwrap_or(METADATA).trim_end_matches('/');
        let ask = |method: Method, path: &str, header: (&'static str, String)| {
            let url = Url::parse(&format!("{base}/latest/{path}"));
            let url = url.map_err(|_| "AWS_EC2_METADATA_SERVICE_ENDPOINT is no URL".to_owned())?;
            let headers = headers([header].iter())?;
            Ok(Request {
                headers,
                ..plain(method, url)
            })
        };
        let ttl = ("x-aws-ec2-metadata-token-ttl-seconds", "300".to_owned());
        let request = ask(Method::PUT, "api/token", ttl).map_err(no)?;
        let token = found(&self.near, &request).await.map_err(no)?;
        let get = |path: &str| ask(Method::GET, path, ("x-aws-ec2-metadata-token", token.trim().to_owned()));
        let roles = "meta-data/iam/security-credentials/";
        let role = found(&self.near, &get(roles).map_err(no)?)
            .await
            .map_err(|why| no(format!("the instance has no role: {why}")))?;
        let role = role.lines().next().unwrap_or_default().trim();
        let request = get(&format!("{roles}{}", encoded(role))).map_err(no)?;
        lent(&self.near, &request).await.map_err(no)
    }
}

/// A request that says nothing yet.
fn plain(method: Method, url: Url) -> Request {
    Request {
        method,
        url,
        headers: HeaderMap::new(),
        body: Bytes::new(),
    }
}

/// What is answered with 200.
async fn found(client: &Client, request: &Request) -> Result<String, String> {
    let reply = asked(client, request).await?;
    if reply.status != StatusCode::OK {
        return Err(format!("it answered {}", reply.status.as_u16()));
    }
    let text = reply.text().trim().to_owned();
    if text.is_empty() {
        return Err("its answer is empty".into());
    }
    Ok(text)
}

/// Keys as containers and machines write them.
async fn lent(client: &Client, request: &Request) -> Result<Keys, String> {
    let body = found(client, request).await?;
    let answer: Value = serde_json::from_slice(body.as_bytes()).map_err(|_| "the answer is no JSON")?;
    let text = |name: &str| answer.get(name).and_then(Value::as_str).map(str::to_owned);
    keys_of(
        text("AccessKeyId"),
        text("SecretAccessKey"),
        text("Token"),
        text("Expiration"),
    )
    .ok_or_else(|| "the answer has no keys".to_owned())
}

fn keys_of(id: Option<String>, secret: Option<String>, token: Option<String>, expires: Option<String>) -> Option<Keys> {
    Some(Keys {
        id: id?,
        secret: SecretString::from(secret?),
        token: token.map(Into::into),
        // An end that can't be read would be none.
        expires: expires.map(|at| at.parse()).transpose().ok()?,
    })
}

/// The answer. One that gives keys does so in its body, which has to be whole.
async fn asked(client: &Client, request: &Request) -> Result<Reply, String> {
    let reply = client.exchange(request).await.map_err(|failure| failure.reason)?;
    match reply.lacks() {
        Some(lacks) if reply.status.is_success() => Err(lacks.to_owned()),
        _ => Ok(reply),
    }
}

/// A refusal of STS's, and what to do: most are about who may take on the role, some are not.
fn refused(status: StatusCode, code: &str) -> String {
    let said = format!("{} {code}", status.as_u16());
    let said = said.trim_end();
    let advice = match status {
        StatusCode::TOO_MANY_REQUESTS => ": it is asked too much",
        _ if code.contains("Throttl") => ": it is asked too much",
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => ": correct proxy (http://USER:PASSWORD@HOST:PORT)",
        status if status.is_server_error() => ": it is not well, or asked too much",
        status if status.is_redirection() => ": correct region and AWS_ENDPOINT_URL_STS",
        _ if code.is_empty() => ": that is no answer of STS's, look at region, proxy and AWS_ENDPOINT_URL_STS",
        _ if code.contains("ExpiredToken") => ": what asks for the role has ended, renew it",
        _ if code.contains("RequestExpired") || code.contains("Signature") => {
            ": look at the secret access key, and at this machine's clock"
        }
        _ => ": look at the role's trust policy, and at who asks for it",
    };
    format!("{said}{advice}")
}

/// Fields as a form has them.
pub(in crate::sinks) fn form(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    fields.join("&")
}
