//! Keys that are lent: by STS, by the container, by EC2's metadata.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use jiff::Timestamp;
use reqwest::{Method, RequestBuilder, Url};
use secrecy::SecretString;
use serde_json::Value;

use super::keys::Keys;
use super::machine::Machine;
use super::sign::{Scope, Unsigned, sign};
use super::{domain, xml};
use crate::net::http::{Way, why_unanswered};
use crate::net::percent::encoded;

/// The container's and the machine's own service is near.
const NEAR_WITHIN: Duration = Duration::from_secs(3);

/// More of an answer is not read.
const ANSWER_LEN_MAX: usize = 256 << 10;

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
    near: reqwest::Client,
    far: reqwest::Client,
}

impl Remote {
    /// `way`: how the sink's service is reached, and so STS.
    pub(super) fn new(machine: Machine, region: String, way: &Way, timeout: Duration) -> Result<Remote, String> {
        let near = Way {
            allow_private: true,
            ..Way::default()
        };
        let client = |way: &Way, timeout| way.builder(timeout)?.build().map_err(|error| why_unanswered(&error));
        Ok(Remote {
            machine,
            region,
            near: client(&near, NEAR_WITHIN.min(timeout))?,
            far: client(way, timeout)?,
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
        let headers = [("content-type", "application/x-www-form-urlencoded".to_owned())];
        let mut request = self.far.post(url.clone());
        let digest = hex::encode(<sha2::Sha256 as sha2::Digest>::digest(&form));
        let unsigned = Unsigned {
            method: "POST",
            url: &url,
            headers: &headers,
            digest: &digest,
        };
        let scope = Scope {
            region: &self.region,
            service: "sts",
        };
        let signed = keys.map(|keys| sign(&unsigned, keys, scope, Timestamp::now()));
        for (name, value) in headers.iter().chain(signed.iter().flatten()) {
            request = request.header(*name, value);
        }
        let what = format!("the role {role} can't be taken on");
        let (status, body) = read(request.body(form))
            .await
            .map_err(|why| format!("{what}: STS: {why}"))?;
        if status != 200 {
            let code = xml::text(&body, "Code").unwrap_or_default();
            let code: String = code.chars().filter(char::is_ascii_alphanumeric).take(60).collect();
            return Err(format!(
                "{what}: STS answered {status} {code}: look at the role's trust policy, and at who asks for it"
            ));
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
        let mut request = self.near.get(url);
        let token = match self.machine.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE") {
            Some(path) => {
                let token = tokio::fs::read_to_string(&path).await;
                Some(token.map_err(|error| format!("its token {path} can't be read: {error}"))?)
            }
            None => self.machine.variable("AWS_CONTAINER_AUTHORIZATION_TOKEN"),
        };
        if let Some(token) = token {
            request = request.header("authorization", token.trim());
        }
        lent(request).await
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
        let request = self.near.request(Method::PUT, format!("{base}/latest/api/token"));
        let request = request.header("x-aws-ec2-metadata-token-ttl-seconds", "300");
        let token = found(request).await.map_err(no)?;
        let roles = format!("{base}/latest/meta-data/iam/security-credentials/");
        let ask = |url: &str| self.near.get(url).header("x-aws-ec2-metadata-token", token.trim());
        let role = found(ask(&roles))
            .await
            .map_err(|why| no(format!("the instance has no role: {why}")))?;
        let role = role.lines().next().unwrap_or_default().trim();
        lent(ask(&format!("{roles}{}", encoded(role)))).await.map_err(no)
    }
}

/// What is answered with 200.
async fn found(request: RequestBuilder) -> Result<String, String> {
    match read(request).await? {
        (200, body) => Ok(body),
        (status, _) => Err(format!("it answered {status}")),
    }
}

/// Keys as containers and machines write them.
async fn lent(request: RequestBuilder) -> Result<Keys, String> {
    let body = found(request).await?;
    let answer: Value = serde_json::from_str(&body).map_err(|_| "the answer is no JSON")?;
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

async fn read(request: RequestBuilder) -> Result<(u16, String), String> {
    let mut response = request.send().await.map_err(|error| why_unanswered(&error))?;
    let status = response.status().as_u16();
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|error| why_unanswered(&error))? {
        body.extend_from_slice(&chunk);
        if body.len() > ANSWER_LEN_MAX {
            return Err("the answer is too long".into());
        }
    }
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// Fields as a form has them.
pub(in crate::sinks) fn form(fields: &[(&str, &str)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("{}={}", encoded(name), encoded(value)))
        .collect();
    fields.join("&")
}
