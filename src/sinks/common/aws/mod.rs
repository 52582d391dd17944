//! What the sinks for AWS share: who signs and how, where a service is, and what its answers mean.
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of the keys that all of them have |
//! | `credentials` | finds keys as AWS's tools do, and keeps them while they are good |
//! | `keys`, `machine` | what signs, and what the machine says of it |
//! | `profile` | the files of AWS's command line |
//! | `remote` | keys that are lent: STS, containers, EC2 |
//! | `sign` | the signature |
//! | `ask` | a signed request, and what the answer means |
//! | `message` | an event as a message: attributes, keys, `{meta, event}` |
//! | `entries` | requests that carry several events and answer for each |
//! | `xml` | as much of it as AWS's answers have |

mod ask;
mod credentials;
pub(in crate::sinks) mod definition;
#[cfg(feature = "aws-messages")]
pub(in crate::sinks) mod entries;
mod keys;
mod machine;
#[cfg(feature = "aws-messages")]
pub(in crate::sinks) mod message;
mod profile;
mod remote;
mod sign;
#[cfg(test)]
pub(in crate::sinks) mod tests;
pub(in crate::sinks) mod xml;

use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use secrecy::ExposeSecret;
use sha2::{Digest as _, Sha256};

#[cfg(feature = "aws-messages")]
pub(in crate::sinks) use self::ask::Answer;
pub(in crate::sinks) use self::ask::{Account, Ask, Failed};
use self::credentials::{Named, Provider};
use self::machine::Machine;
#[cfg(feature = "sink-sns")]
pub(in crate::sinks) use self::remote::form;
use super::identity;
use super::secrets::Secrets;
use crate::config::{Secret, Size, Span, Table};
use crate::net::client::Client;
use crate::net::http::Way;
use crate::sinks::{Context, Fingerprint, Limits, Unavailable};

/// Where a service is and who asks it, as a sink's table says.
#[derive(Debug, Clone)]
pub(in crate::sinks) struct Access {
    service: &'static str,
    region: Option<String>,
    endpoint: Option<Url>,
    named: Named,
    way: Way,
    machine: Machine,
    fingerprint: String,
}

impl Access {
    /// Reads the keys that all sinks for AWS have. `service` is its name in host names and signatures.
    pub(in crate::sinks) fn of(table: &mut Table<'_>, service: &'static str) -> Access {
        let region: Option<String> = table.optional("region");
        let endpoint: Option<String> = table.optional("endpoint");
        let named = Named {
            id: table.optional("access_key_id"),
            secret: table.secret("secret_access_key"),
            token: table.secret("session_token"),
            profile: table.optional("profile"),
            role: table.optional("role_arn"),
        };
        let way = Way {
            allow_private: true,
            proxy: table.optional("proxy"),
            ca: table.optional::<PathBuf>("ca"),
            identity: identity::read(table),
        };
        faults_of(table, &named);
        let is_sound = |region: &String| region.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
        if region
            .as_ref()
            .is_some_and(|region| region.is_empty() || !is_sound(region))
        {
            table.fault("region", "must be the name of a region, like \"eu-central-1\"");
        }
        let endpoint = endpoint.and_then(|text| match Url::parse(&text) {
            Ok(url) if matches!(url.scheme(), "http" | "https") && url.host().is_some() && url.query().is_none() => {
                Some(url)
            }
            _ => {
                table.fault("endpoint", "must be a URL like \"https://minio.example.com:9000\"");
                None
            }
        });
        let fingerprint = format!(
            "{region:?}\n{endpoint:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{:?}\n{way:?}\n{:?}",
            named.id,
            named.secret.as_ref().map(Secret::fingerprint),
            named.token.as_ref().map(Secret::fingerprint),
            named.profile,
            named.role,
            way.files(),
        );
        Access {
            service,
            region,
            endpoint,
            named,
            way,
            machine: Machine::default(),
            fingerprint,
        }
    }

    /// The region where the table does not say it: from an ARN or a URL.
    #[cfg(feature = "aws-messages")]
    pub(in crate::sinks) fn with_region(mut self, region: Option<&str>) -> Access {
        self.region = self.region.or(region.map(str::to_owned));
        self
    }

    /// Where the table does not say where the service is.
    #[cfg(feature = "sink-sqs")]
    pub(in crate::sinks) fn with_endpoint(mut self, endpoint: Option<Url>) -> Access {
        self.endpoint = self.endpoint.or(endpoint);
        self
    }

    /// Equal as long as what the table says is, and what else the sink adds.
    pub(in crate::sinks) fn fingerprint(&self, more: &impl std::fmt::Debug) -> Fingerprint {
        Fingerprint(hex::encode(Sha256::digest(format!("{}\n{more:?}", self.fingerprint))))
    }

    fn region(&self) -> Result<String, String> {
        let found = self
            .region
            .clone()
            .or_else(|| credentials::region(&self.machine, self.named.profile.as_deref()));
        found.ok_or_else(|| {
            "its region is not known: set region, for example region = \"eu-central-1\" (or AWS_REGION)".into()
        })
    }

    /// Where the service is, without a path; and whether somebody has said so.
    pub(in crate::sinks) fn endpoint(&self) -> Result<(Url, bool), String> {
        if let Some(url) = &self.endpoint {
            return Ok((url.clone(), true));
        }
        let region = self.region()?;
        let url = format!("https://{}.{region}.{}", self.service, domain(&region));
        let url = Url::parse(&url).map_err(|_| format!("{region} is no region"))?;
        Ok((url, false))
    }

    /// What keeps it from ever working, as far as this machine shows it.
    pub(in crate::sinks) fn fault(&self) -> Option<String> {
        let secrets = [&self.named.secret, &self.named.token];
        let unread = secrets.into_iter().flatten().find_map(|secret| secret.resolve().err());
        unread.or_else(|| self.account_within(Duration::from_secs(1)).err())
    }

    /// Who asks, for a sink that is being opened. Reads what is on this machine, contacts nobody.
    pub(in crate::sinks) fn account(&self, context: &Context) -> Result<Account, Unavailable> {
        let account = self.account_within(context.timeout).map_err(Unavailable::new)?;
        Ok(Account {
            answers: context.answers.clone(),
            ..account
        })
    }

    fn account_within(&self, timeout: Duration) -> Result<Account, String> {
        let region = self.region()?;
        let client = Client::new(&self.way, timeout)?;
        let (endpoint, _) = self.endpoint()?;
        let mut secrets = Secrets::default();
        if let Some(proxy) = &self.way.proxy {
            secrets.add_proxy(proxy);
        }
        for secret in [&self.named.secret, &self.named.token].into_iter().flatten() {
            if let Ok(secret) = secret.resolve() {
                secrets.add(secret.expose_secret());
            }
        }
        let provider = Provider::new(
            self.named.clone(),
            self.machine.clone(),
            region.clone(),
            &self.way,
            timeout,
        )?;
        Ok(Account {
            client,
            endpoint,
            region,
            service: self.service,
            provider,
            known: ask::Known::new(secrets).into(),
            answers: None,
        })
    }
}

fn faults_of(table: &mut Table<'_>, named: &Named) {
    match (&named.id, &named.secret) {
        (Some(_), None) => table.fault(
            "secret_access_key",
            "is missing beside access_key_id: set it, or secret_access_key_file",
        ),
        (None, Some(_)) => table.fault("access_key_id", "is missing beside secret_access_key: set it"),
        _ => {}
    }
    if named.token.is_some() && named.id.is_none() {
        table.fault("session_token", "belongs to access_key_id, which is missing");
    }
    if named.profile.is_some() && named.id.is_some() {
        table.fault("profile", "and access_key_id both say who signs: keep one of them");
    }
    if named.role.as_deref().is_some_and(|role| !role.starts_with("arn:")) {
        table.fault(
            "role_arn",
            "must be an ARN like \"arn:aws:iam::123456789012:role/closehook\"",
        );
    }
}

/// The domain in which a region's services are.
fn domain(region: &str) -> &'static str {
    match region {
        region if region.starts_with("cn-") => "amazonaws.com.cn",
        region if region.starts_with("us-isob-") => "sc2s.sgov.gov",
        region if region.starts_with("us-iso-") => "c2s.ic.gov",
        region if region.starts_with("eusc-") => "amazonaws.eu",
        _ => "amazonaws.com",
    }
}

/// The parts of `arn:PARTITION:SERVICE:REGION:ACCOUNT:RESOURCE`, if it is one of this service.
pub(in crate::sinks) struct Arn<'a> {
    pub region: &'a str,
    pub account: &'a str,
    pub resource: &'a str,
}

impl<'a> Arn<'a> {
    pub(in crate::sinks) fn parse(text: &'a str, service: &str) -> Option<Arn<'a>> {
        let parts: Vec<&str> = text.splitn(6, ':').collect();
        match *parts.as_slice() {
            ["arn", _, of, region, account, resource]
                if of == service && !region.is_empty() && !resource.is_empty() =>
            {
                Some(Arn {
                    region,
                    account,
                    resource,
                })
            }
            _ => None,
        }
    }
}

/// `batch`: what goes into one request, within what the service takes.
pub(in crate::sinks) fn batch(table: &mut Table<'_>, default: Limits, most: Limits) -> Limits {
    table.table("batch", |table| {
        let bytes = Size(default.bytes as u64);
        let wait = table.or("wait", Span(default.wait));
        if wait.0 > most.wait {
            table.fault("wait", format!("must be at most {}, not {wait}", Span(most.wait)));
        }
        Limits {
            events: table.within("events", default.events, 1, most.events),
            bytes: table.within("bytes", bytes, Size(1), Size(most.bytes as u64)).0 as usize,
            wait: wait.0,
        }
    })
}
