//! Who may call: API keys over HTTP Basic, OAuth tokens over Bearer, and what each of them is allowed.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::dice::Dice;
use super::ids::Ids;
use super::moment::Moment;
use super::settings::Settings;

/// Keys and tokens kept at most.
const KEYS_MAX: usize = 1000;

/// What a key's user is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    /// Sees `data` of events of any age.
    Admin,
    /// Sees it for an hour.
    User,
}

/// How a key is answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// It works.
    Ok,
    /// 401
    Revoked,
    /// 402: the plan does not include this.
    PaymentRequired,
    /// 403: the user may not do this.
    Forbidden,
}

/// One API key.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ApiKey {
    /// `api_...`
    pub id: String,
    /// What is sent as the user name.
    pub key: String,
    /// Whose.
    pub user_id: String,
    /// What that user may see.
    pub role: Role,
    /// How it is answered.
    pub state: State,
}

/// The OAuth client: one grant, whose tokens change with every refresh.
#[derive(Debug, Clone, Serialize)]
pub struct Grant {
    /// What the client calls itself.
    pub client_id: String,
    /// What it proves it with.
    pub client_secret: String,
    /// The one refresh token that is good.
    pub refresh_token: String,
    /// The access token that is good, until `expires`.
    pub access_token: String,
    /// As a key's.
    pub role: Role,
    /// As a key's.
    pub state: State,
    /// How many refreshes there were.
    pub refreshes: u64,
    #[serde(skip)]
    expires: Moment,
}

/// Somebody who may go on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The key's id, or the OAuth client's.
    pub id: String,
    /// `None` for OAuth.
    pub api_key_id: Option<String>,
    /// Who it is.
    pub user_id: String,
    /// What that user may see.
    pub role: Role,
}

/// Why a call is refused: the status, and what to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// Whose limit the refused call counts for; `None` where nobody is known.
    pub caller: Option<String>,
    /// 401, 402 or 403.
    pub status: u16,
    /// For `errors`.
    pub message: &'static str,
}

/// All keys and the grant.
#[derive(Debug)]
pub struct Access {
    seed: u64,
    /// The first one is the one that is printed at the start.
    pub keys: Vec<ApiKey>,
    /// For OAuth clients.
    pub grant: Grant,
}

impl Access {
    /// One admin's key, and one grant.
    pub fn new(seed: u64, key: Option<String>, settings: &Settings, wall: Moment) -> Access {
        let secret = |topic: u64, prefix: &str| format!("{prefix}{}", token(seed, topic, 0));
        let mut access = Access {
            seed,
            keys: Vec::new(),
            grant: Grant {
                client_id: secret(1, "oa2client_"),
                client_secret: secret(2, ""),
                refresh_token: token(seed, 3, 0),
                access_token: token(seed, 4, 0),
                role: Role::Admin,
                state: State::Ok,
                refreshes: 0,
                expires: wall.plus(settings.token_life.0),
            },
        };
        // One key always fits.
        let _ = access.add(key, Role::Admin);
        access
    }

    /// Another key; its text is made up where none is given.
    pub fn add(&mut self, key: Option<String>, role: Role) -> Result<&ApiKey, String> {
        if self.keys.len() >= KEYS_MAX {
            return Err(format!("the fake keeps at most {KEYS_MAX} keys"));
        }
        let number = self.keys.len() as u64;
        let ids = Ids(self.seed);
        let id = ids.id("api_", number);
        let key = key.unwrap_or_else(|| format!("{id}.{}", token(self.seed, 5, number)));
        if self.keys.iter().any(|known| known.key == key) {
            return Err("there is such a key already".into());
        }
        self.keys.push(ApiKey {
            id,
            key,
            user_id: ids.id("user_", number),
            role,
            state: State::Ok,
        });
        Ok(&self.keys[self.keys.len() - 1])
    }

    /// Finds out who calls, by the `authorization` header.
    pub fn admit(&self, authorization: Option<&str>, wall: Moment) -> Result<Caller, Refused> {
        let refused = |status, message| Refused {
            caller: None,
            status,
            message,
        };
        let header = authorization.ok_or(refused(401, "Authentication is required."))?;
        let (scheme, value) = header
            .split_once(' ')
            .ok_or(refused(401, "The Authorization header is malformed."))?;
        let (caller, state) = if scheme.eq_ignore_ascii_case("basic") {
            let text = STANDARD
                .decode(value.trim())
                .ok()
                .and_then(|bytes| String::from_utf8(bytes).ok());
            let (user, password) = text
                .as_deref()
                .and_then(|text| text.split_once(':'))
                .ok_or(refused(401, "The Authorization header is malformed."))?;
            if !password.is_empty() {
                return Err(refused(
                    401,
                    "The API key is the user name; the password must be empty.",
                ));
            }
            let key = self
                .keys
                .iter()
                .find(|key| key.key == user)
                .ok_or(refused(401, "The API key is not valid."))?;
            let caller = Caller {
                id: key.id.clone(),
                api_key_id: Some(key.id.clone()),
                user_id: key.user_id.clone(),
                role: key.role,
            };
            (caller, key.state)
        } else if scheme.eq_ignore_ascii_case("bearer") {
            let grant = &self.grant;
            if value.trim() != grant.access_token || wall >= grant.expires {
                return Err(refused(401, "The access token is not valid or has expired."));
            }
            let caller = Caller {
                id: grant.client_id.clone(),
                api_key_id: None,
                user_id: Ids(self.seed).id("user_", 0),
                role: grant.role,
            };
            (caller, grant.state)
        } else {
            return Err(refused(401, "Use HTTP Basic with an API key, or a Bearer token."));
        };
        let known = |status, message| Refused {
            caller: Some(caller.id.clone()),
            status,
            message,
        };
        match state {
            State::Ok => Ok(caller),
            State::Revoked => Err(known(401, "The API key is not valid.")),
            State::PaymentRequired => Err(known(402, "Your plan does not include this feature.")),
            State::Forbidden => Err(known(403, "You don't have permission to do this.")),
        }
    }

    /// Trades the refresh token in: the answer's JSON, or the error code of RFC 6749, section 5.2. The old tokens are revoked
    /// at once, whether or not the client gets to see the answer.
    pub fn refresh(
        &mut self,
        form: &[(String, String)],
        settings: &Settings,
        wall: Moment,
    ) -> Result<String, &'static str> {
        let field = |name: &str| {
            form.iter()
                .find(|(key, _)| key == name)
                .map(|(_, value)| value.as_str())
        };
        match field("grant_type") {
            Some("refresh_token") => {}
            Some(_) => return Err("unsupported_grant_type"),
            None => return Err("invalid_request"),
        }
        let grant = &mut self.grant;
        if field("client_id") != Some(&grant.client_id) || field("client_secret") != Some(&grant.client_secret) {
            return Err("invalid_client");
        }
        match field("refresh_token") {
            Some(token) if token == grant.refresh_token && grant.state != State::Revoked => {}
            Some(_) => return Err("invalid_grant"),
            None => return Err("invalid_request"),
        }
        grant.refreshes += 1;
        grant.refresh_token = token(self.seed, 3, grant.refreshes);
        grant.access_token = token(self.seed, 4, grant.refreshes);
        grant.expires = wall.plus(settings.token_life.0);
        Ok(serde_json::json!({
            "access_token": grant.access_token,
            "refresh_token": grant.refresh_token,
            "token_type": "Bearer",
            "expires_in": settings.token_life.0.as_secs(),
            "scope": "all.full_access offline_access",
            "user_id": Ids(self.seed).id("user_", 0),
            "organization_id": Ids(self.seed).id("orga_", 0),
        })
        .to_string())
    }

    /// Lets the access token expire now.
    pub fn expire_token(&mut self) {
        self.grant.expires = Moment(i64::MIN);
    }
}

fn token(seed: u64, topic: u64, number: u64) -> String {
    let mut dice = Dice::of(&[seed, 6, topic, number]);
    format!("{:016x}{:016x}", dice.roll(), dice.roll())
}

#[cfg(test)]
mod tests {
    use super::*;

    const WALL: Moment = Moment(1_700_000_000_000_000);

    fn basic(user: &str, password: &str) -> String {
        format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
    }

    #[test]
    fn a_key_is_the_user_name_and_nothing_else_gets_in() {
        let mut access = Access::new(7, Some("secret".into()), &Settings::default(), WALL);
        let status = |access: &Access, header: &str| access.admit(Some(header), WALL).map_err(|refused| refused.status);
        assert_eq!(
            status(&access, &basic("secret", "")).unwrap().api_key_id.as_ref(),
            Some(&access.keys[0].id)
        );
        for bad in [
            basic("secret", "x"),
            basic("other", ""),
            "Basic !".into(),
            "Bearer secret".into(),
            "secret".into(),
            "Digest x".into(),
        ] {
            assert_eq!(status(&access, &bad), Err(401), "{bad}");
        }
        assert_eq!(access.admit(None, WALL).unwrap_err().status, 401);
        for (state, code) in [
            (State::Revoked, 401),
            (State::PaymentRequired, 402),
            (State::Forbidden, 403),
        ] {
            access.keys[0].state = state;
            assert_eq!(status(&access, &basic("secret", "")), Err(code));
        }
    }

    #[test]
    fn a_refresh_revokes_both_old_tokens_at_once() {
        let settings = Settings::default();
        let mut access = Access::new(7, None, &settings, WALL);
        let old = access.grant.clone();
        let form = |token: &str| -> Vec<(String, String)> {
            [
                ("grant_type", "refresh_token"),
                ("client_id", &old.client_id),
                ("client_secret", &old.client_secret),
                ("refresh_token", token),
            ]
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .to_vec()
        };
        let answer: serde_json::Value =
            serde_json::from_str(&access.refresh(&form(&old.refresh_token), &settings, WALL).unwrap()).unwrap();
        let bearer = |token: &str| format!("Bearer {token}");
        let new = answer["access_token"].as_str().unwrap();
        assert!(access.admit(Some(&bearer(new)), WALL).is_ok());
        assert!(access.admit(Some(&bearer(&old.access_token)), WALL).is_err());
        assert_eq!(
            access.refresh(&form(&old.refresh_token), &settings, WALL),
            Err("invalid_grant")
        );
        assert!(
            access
                .admit(Some(&bearer(new)), WALL.plus(settings.token_life.0))
                .is_err()
        );
        access.expire_token();
        assert!(access.admit(Some(&bearer(new)), WALL).is_err());
        let mut wrong = form(answer["refresh_token"].as_str().unwrap());
        wrong[2].1 = "wrong".into();
        assert_eq!(access.refresh(&wrong, &settings, WALL), Err("invalid_client"));
        assert_eq!(access.refresh(&wrong[..0], &settings, WALL), Err("invalid_request"));
    }
}
