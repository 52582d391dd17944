//! Who signs: found as AWS's own tools find it, kept while it is good, fetched again before it ends.
//!
//! | order | where |
//! |---|---|
//! | 1 | the sink: `access_key_id` and `secret_access_key`, or `profile` |
//! | 2 | variables: `AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_SESSION_TOKEN` |
//! | 3 | web identity: `AWS_WEB_IDENTITY_TOKEN_FILE`, `AWS_ROLE_ARN` (EKS) |
//! | 4 | the files of AWS's command line: profile `AWS_PROFILE`, else `default`; keys, or a role taken on with them or with a token |
//! | 5 | the container: `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `_FULL_URI` (ECS, EKS Pod Identity) |
//! | 6 | the machine: EC2's metadata, by its second version only |
//!
//! `role_arn` of the sink is taken on with what was found. What is wrong here is the sink's trouble, never an event's. Programs
//! (`credential_process`) are not run, and there is no signing on by browser (SSO): a daemon has nobody to do that.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::keys::Keys;
use super::machine::Machine;
use super::profile::{self, Profile};
use super::remote::Remote;
use crate::config::Secret;
use crate::net::http::Way;
use crate::sinks::common::lent::{Lends, Lent, Standing};
use crate::task;

/// What ends within this is fetched again.
const REFRESH_BEFORE: SignedDuration = SignedDuration::from_mins(5);

/// What could not be fetched again is used up to so long before its end.
const USED_UNTIL: SignedDuration = SignedDuration::from_secs(20);

/// While keys are good and the next can't be had, these are not looked for more often.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Keys that lack a right are not thrown away more often.
const FORGOTTEN_AGAIN_AFTER: Duration = Duration::from_secs(300);

const LATE: &str = "credentials did not come in time";

/// Profiles that name one another.
const PROFILES_MAX: usize = 5;

/// What the sink says of who signs.
#[derive(Debug, Clone, Default)]
pub(in crate::sinks) struct Named {
    pub id: Option<String>,
    pub secret: Option<Secret>,
    pub token: Option<Secret>,
    pub profile: Option<String>,
    /// Taken on with whatever was found.
    pub role: Option<String>,
}

/// Finds keys, and keeps them while they are good. They are looked for once at a time, whoever waits.
pub(super) struct Provider {
    named: Named,
    remote: Remote,
    /// How long looking for them, or waiting for whoever does, may take.
    timeout: Duration,
    kept: Lent<Keys, String>,
    /// When they were forgotten for a right that is missing.
    forgotten: std::sync::Mutex<Option<Instant>>,
}

impl Lends for Keys {
    fn standing(&self) -> Standing {
        let left = self.expires.map(|at| at.duration_since(Timestamp::now()));
        match left {
            Some(left) if left <= USED_UNTIL => Standing::Over,
            Some(left) if left <= REFRESH_BEFORE => Standing::Good,
            _ => Standing::Fresh,
        }
    }
}

impl Provider {
    pub(super) fn new(
        named: Named,
        machine: Machine,
        region: String,
        way: &Way,
        timeout: Duration,
    ) -> Result<Provider, String> {
        Ok(Provider {
            named,
            remote: Remote::new(machine, region, way, timeout)?,
            timeout,
            kept: Lent::new(LOOK_AGAIN_AFTER),
            forgotten: std::sync::Mutex::default(),
        })
    }

    /// Keys to sign with now. An error is one sentence, with what to do.
    pub(super) async fn keys(&self) -> Result<Arc<Keys>, String> {
        let find = async {
            let found = tokio::time::timeout(self.timeout, self.find()).await;
            found.unwrap_or_else(|_| Err(LATE.to_owned()))
        };
        let until = Instant::now() + self.timeout;
        self.kept.get(None, until, || LATE.to_owned(), find).await
    }

    /// AWS does not take them: they are looked for again the next time.
    pub(super) fn forget(&self) {
        self.kept.forget();
    }

    /// They lack a right, which others may have by now.
    pub(super) fn forget_at_times(&self) {
        let now = Instant::now();
        let mut forgotten = crate::sync::lock(&self.forgotten);
        if forgotten.is_none_or(|at| now.duration_since(at) >= FORGOTTEN_AGAIN_AFTER) {
            *forgotten = Some(now);
            self.kept.forget();
        }
    }

    async fn find(&self) -> Result<Keys, String> {
        let keys = self.find_own().await?;
        match &self.named.role {
            Some(role) => self.remote.assume_role(&keys, role, None).await,
            None => Ok(keys),
        }
    }

    async fn find_own(&self) -> Result<Keys, String> {
        let named = self.named.clone();
        if let Some(keys) = blocking(move || of_the_sink(&named)).await? {
            return Ok(keys);
        }
        if let Some(profile) = &self.named.profile {
            let found = self.of_profile(profile).await?;
            return found.ok_or_else(|| {
                format!("there is no profile {profile} with keys or a role in ~/.aws/config and ~/.aws/credentials")
            });
        }
        let machine = &self.remote.machine;
        if let Some(keys) = of_variables(machine) {
            return keys;
        }
        if let (Some(token), Some(role)) = (
            machine.variable("AWS_WEB_IDENTITY_TOKEN_FILE"),
            machine.variable("AWS_ROLE_ARN"),
        ) {
            return self.remote.web_identity(Path::new(&token), &role).await;
        }
        let profile = machine.variable("AWS_PROFILE");
        if let Some(keys) = self.of_profile(profile.as_deref().unwrap_or("default")).await? {
            return Ok(keys);
        }
        if let Some(profile) = profile {
            return Err(format!(
                "AWS_PROFILE names the profile {profile}, which has no keys and no role in ~/.aws/config and ~/.aws/credentials"
            ));
        }
        if let Some(keys) = self.remote.container().await {
            return keys;
        }
        self.remote.instance().await.map_err(|error| {
            format!(
                "no credentials were found: set access_key_id and secret_access_key_file in the sink, or what AWS's tools use (AWS_ACCESS_KEY_ID, \
                 ~/.aws/credentials of the daemon's user, a role of the container or the instance); {error}"
            )
        })
    }

    /// `None`: there is no such profile, or it says nothing of who signs.
    async fn of_profile(&self, name: &str) -> Result<Option<Keys>, String> {
        // Of roles that are taken on one with the other, the last first.
        let mut roles: Vec<Profile> = Vec::new();
        let mut next = name.to_owned();
        let base = loop {
            let (machine, wanted) = (self.remote.machine.clone(), next.clone());
            let Some(profile) = blocking(move || profile::read(&machine, &wanted)).await? else {
                if roles.is_empty() {
                    return Ok(None);
                }
                return Err(format!(
                    "the profile {next}, which another one names as its source_profile, is not there"
                ));
            };
            let source = profile.get("source_profile").cloned();
            let has_role = profile.contains_key("role_arn") && !profile.contains_key("web_identity_token_file");
            if !has_role {
                break self.base(&next, &profile).await?;
            }
            let own = source.as_deref() == Some(&next);
            let with = profile.get("credential_source").cloned();
            roles.push(profile.clone());
            if own {
                break self.base(&next, &profile).await?;
            }
            match (source, with.as_deref()) {
                (Some(source), _) if roles.len() < PROFILES_MAX => next = source,
                (Some(_), _) => return Err(format!("the profile {name} leads through too many others")),
                (None, Some("Environment")) => break of_variables(&self.remote.machine).transpose()?,
                (None, Some("EcsContainer")) => break self.remote.container().await.transpose()?,
                (None, Some("Ec2InstanceMetadata")) => break Some(self.remote.instance().await?),
                (None, _) => {
                    return Err(format!(
                        "the profile {next} has a role_arn and neither source_profile nor credential_source"
                    ));
                }
            }
        };
        let Some(mut keys) = base else { return Ok(None) };
        for role in roles.iter().rev() {
            let arn = role.get("role_arn").map(String::as_str).unwrap_or_default();
            keys = self
                .remote
                .assume_role(&keys, arn, role.get("external_id").map(String::as_str))
                .await?;
        }
        Ok(Some(keys))
    }

    /// What a profile itself says.
    async fn base(&self, name: &str, profile: &Profile) -> Result<Option<Keys>, String> {
        if let (Some(token), Some(role)) = (profile.get("web_identity_token_file"), profile.get("role_arn")) {
            return self.remote.web_identity(Path::new(token), role).await.map(Some);
        }
        if let (Some(id), Some(secret)) = (profile.get("aws_access_key_id"), profile.get("aws_secret_access_key")) {
            return Ok(Some(Keys {
                id: id.clone(),
                secret: secret.clone().into(),
                token: profile.get("aws_session_token").map(|token| token.clone().into()),
                expires: None,
            }));
        }
        let unusable = ["credential_process", "sso_session", "sso_start_url"]
            .into_iter()
            .find(|key| profile.contains_key(*key));
        match unusable {
            Some(key) => Err(format!(
                "the profile {name} has {key}, which a daemon can't use: give it keys, a role, or set access_key_id in the sink"
            )),
            None => Ok(None),
        }
    }
}

/// Reads files where that may take its time.
async fn blocking<T: Send + 'static>(read: impl FnOnce() -> Result<T, String> + Send + 'static) -> Result<T, String> {
    let read = task::begin_blocking(read).await;
    read.map_err(|_| "credentials can't be read".to_owned())?
}

fn of_the_sink(named: &Named) -> Result<Option<Keys>, String> {
    let (Some(id), Some(secret)) = (&named.id, &named.secret) else {
        return Ok(None);
    };
    Ok(Some(Keys {
        id: id.clone(),
        secret: secret.resolve()?,
        token: named.token.as_ref().map(Secret::resolve).transpose()?,
        expires: None,
    }))
}

/// `None`: they say nothing.
fn of_variables(machine: &Machine) -> Option<Result<Keys, String>> {
    let id = machine.variable("AWS_ACCESS_KEY_ID")?;
    let secret = machine
        .variable("AWS_SECRET_ACCESS_KEY")
        .ok_or_else(|| "AWS_ACCESS_KEY_ID is set, and AWS_SECRET_ACCESS_KEY is not".to_owned());
    Some(secret.map(|secret| Keys {
        id,
        secret: secret.into(),
        token: machine.variable("AWS_SESSION_TOKEN").map(Into::into),
        expires: None,
    }))
}

/// The region that variables or the profile say.
pub(super) fn region(machine: &Machine, profile_named: Option<&str>) -> Option<String> {
    let variable = machine
        .variable("AWS_REGION")
        .or_else(|| machine.variable("AWS_DEFAULT_REGION"));
    let name = profile_named
        .map(str::to_owned)
        .or_else(|| machine.variable("AWS_PROFILE"));
    let of_profile = || {
        profile::read(machine, name.as_deref().unwrap_or("default"))
            .ok()
            .flatten()?
            .get("region")
            .cloned()
    };
    match profile_named {
        Some(_) => of_profile().or(variable),
        None => variable.or_else(of_profile),
    }
}

/// For whoever has to hide them.
pub(super) fn secrets_of(keys: &Keys) -> impl Iterator<Item = &str> {
    std::iter::once(&keys.secret)
        .chain(&keys.token)
        .map(ExposeSecret::expose_secret)
}
