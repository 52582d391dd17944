//! What Slack answers, and what that means: for the event, or for the sink and whoever looks after it.
//!
//! A webhook answers with a status and one word (Slack's documentation, "Sending messages using incoming webhooks"); a method of the API
//! answers 200 with `ok` and, where that is false, the word in `error` ("chat.postMessage", Errors).

use reqwest::StatusCode;
use serde::Deserialize;

use super::super::common::said::{self, Part};
use super::super::common::secrets::Secrets;
use crate::net::reply::Reply;
use crate::sinks::{Outcome, Reason, Unavailable};

/// What a word is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum About {
    /// The message: another one may be taken.
    Message,
    /// The channel.
    Channel(&'static str),
    /// Whoever sends: no message is taken. With what to do.
    Sender(&'static str),
    /// Slack, now.
    Slack,
}

const NEW_WEBHOOK: &str = "make a new incoming webhook in the Slack app and set webhook_url";
const NEW_TOKEN: &str = "set token to the Bot User OAuth Token of an app that is installed in the workspace";
const NOT_ALLOWED: &str = "an administrator of the workspace has to allow it";

/// What the documented words mean.
fn about(word: &str) -> Option<About> {
    Some(match word {
        "no_text"
        | "invalid_payload"
        | "invalid_blocks"
        | "invalid_blocks_format"
        | "invalid_attachments"
        | "msg_too_long"
        | "msg_blocks_too_long"
        | "too_many_attachments"
        | "too_many_contact_cards"
        | "attachment_payload_limit_exceeded"
        | "markdown_text_conflict"
        | "invalid_arguments"
        | "invalid_arg_name"
        | "invalid_array_arg"
        | "invalid_charset"
        | "invalid_form_data"
        | "invalid_json"
        | "json_not_object"
        | "invalid_post_type"
        | "missing_post_type"
        | "invalid_metadata_format"
        | "invalid_metadata_schema"
        | "metadata_too_large"
        | "cannot_reply_to_message"
        | "block_mismatch" => About::Message,
        "channel_not_found" => {
            About::Channel("set channel to a channel's id (C...), and invite the app to it if it is private")
        }
        "not_in_channel" => {
            About::Channel("invite the app to the channel (/invite @APP), or give it the scope chat:write.public")
        }
        "channel_is_archived" | "is_archived" => About::Channel("unarchive the channel, or choose another one"),
        "messages_tab_disabled" | "user_not_found" => About::Channel("choose another channel"),
        "action_prohibited"
        | "posting_to_general_channel_denied"
        | "restricted_action"
        | "restricted_action_read_only_channel"
        | "restricted_action_non_threadable_channel"
        | "restricted_action_thread_only_channel"
        | "restricted_action_thread_locked" => About::Channel(NOT_ALLOWED),
        "no_service" | "no_service_id" | "no_active_hooks" | "no_team" | "team_not_found" | "invalid_token" => {
            About::Sender(NEW_WEBHOOK)
        }
        "invalid_auth"
        | "not_authed"
        | "token_revoked"
        | "token_expired"
        | "account_inactive"
        | "not_allowed_token_type"
        | "org_login_required"
        | "two_factor_setup_required"
        | "metadata_must_be_sent_from_app"
        | "method_deprecated"
        | "deprecated_endpoint" => About::Sender(NEW_TOKEN),
        "missing_scope" | "no_permission" => {
            About::Sender("give the app the bot scope chat:write and install it in the workspace again")
        }
        "access_denied"
        | "ekm_access_denied"
        | "enterprise_is_restricted"
        | "team_disabled"
        | "team_access_not_granted"
        | "accesslimited" => About::Sender(NOT_ALLOWED),
        "message_limit_exceeded" => About::Sender("the workspace has reached its limit of messages"),
        "ratelimited"
        | "rate_limited"
        | "team_added_to_org"
        | "service_unavailable"
        | "request_timeout"
        | "internal_error"
        | "fatal_error" => About::Slack,
        _ => return None,
    })
}

/// A method's answer.
#[derive(Deserialize)]
pub(super) struct Said {
    pub ok: bool,
    #[serde(default)]
    pub error: String,
    #[serde(default)]
    pub team: String,
    #[serde(default)]
    pub user: String,
}

/// How messages reach Slack, as far as it matters for what an answer means.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sent {
    /// Over a method of the API; else over a webhook.
    pub by_method: bool,
    /// Each event may go to another channel.
    pub channel_varies: bool,
}

/// Slack's words are shorter.
const WORD_LEN_MAX: usize = 64;

const PAGE: &str = "a web page answered, not Slack: correct webhook_url or api_url, and look at what stands between (a proxy, a login)";

/// The one place that decides what an answer means. `secrets` are hidden in what is kept of it.
pub(super) fn outcome(reply: &Reply, sent: Sent, secrets: &Secrets) -> Result<Outcome, Unavailable> {
    let status = reply.status;
    // A method says in its body what it did. A webhook's status says it; so does one that is no success.
    if sent.by_method
        && status.is_success()
        && let Some(lacks) = reply.lacks()
    {
        return Err(Unavailable::new(secrets.hidden_in(lacks)));
    }
    let said = serde_json::from_slice::<Said>(&reply.body).ok();
    if status.is_success() {
        if is_page(reply) {
            return Err(Unavailable::new(PAGE));
        }
        match &said {
            Some(said) if said.ok => return Ok(Outcome::Delivered),
            // A webhook says "ok"; what is compatible with Slack may say something else, or nothing.
            _ if !sent.by_method => return Ok(Outcome::Delivered),
            _ => {}
        }
    }
    let word = match said {
        Some(said) if sent.by_method => said.error,
        _ => String::from_utf8_lossy(&reply.body[..reply.body.len().min(WORD_LEN_MAX)])
            .trim()
            .to_owned(),
    };
    let is_word = (1..=WORD_LEN_MAX).contains(&word.len())
        && word
            .bytes()
            .all(|byte| byte.is_ascii_lowercase() || byte == b'_' || byte.is_ascii_digit());
    let about = about(&word);
    let answered = match Some(&*word).filter(|_| is_word) {
        // What a method has in this place is a word of Slack's, if a new one.
        Some(word) if about.is_none() && sent.by_method => {
            format!("Slack answered {word}, which its documentation does not name")
        }
        word => answered(status, word.filter(|_| about.is_some())),
    };
    let after = reply.after();
    let unavailable = |what_to_do: &str| {
        let end = if what_to_do.is_empty() {
            String::new()
        } else {
            format!(": {what_to_do}")
        };
        Unavailable {
            after,
            ..Unavailable::new(format!("{answered}{end}"))
        }
    };
    let reason = Reason {
        text: answered.clone(),
        answer: said::cleaned(&reply.body, Part::Beginning, secrets),
    };
    if status == StatusCode::TOO_MANY_REQUESTS {
        return Err(unavailable("it takes about one message a second for each channel"));
    }
    match about {
        Some(About::Message) => Ok(Outcome::Reject { reason }),
        Some(About::Channel(_)) if sent.channel_varies => Ok(Outcome::Reject { reason }),
        Some(About::Channel(what_to_do) | About::Sender(what_to_do)) => Err(unavailable(what_to_do)),
        Some(About::Slack) => Err(unavailable("")),
        None => by_status(status, sent, reason, after, unavailable),
    }
}

/// What Slack answered, by the word that its documentation has, if there is one.
fn answered(status: StatusCode, word: Option<&str>) -> String {
    match word {
        Some(word) => format!("Slack answered {word}"),
        None if status.is_success() => "Slack answered what its documentation does not name".into(),
        None => format!("Slack answered {status}"),
    }
}

/// Whether it is HTML, which neither Slack nor anything compatible with it says to a message.
fn is_page(reply: &Reply) -> bool {
    let body = reply.body.trim_ascii_start();
    body.starts_with(b"<")
}

/// What an answer means that holds no documented word.
fn by_status(
    status: StatusCode,
    sent: Sent,
    reason: Reason,
    after: Option<std::time::Duration>,
    unavailable: impl Fn(&str) -> Unavailable,
) -> Result<Outcome, Unavailable> {
    let what_to_do = if sent.by_method { NEW_TOKEN } else { NEW_WEBHOOK };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND | StatusCode::GONE => {
            Err(unavailable(what_to_do))
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => Err(unavailable("the proxy wants credentials: see proxy")),
        status if status.is_redirection() => Err(unavailable("redirects are not followed, set the final URL")),
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_EARLY => Ok(Outcome::Retry { reason, after }),
        status if status.is_client_error() => Ok(Outcome::Reject { reason }),
        // A word that is new, or a server in trouble with this message.
        _ => Ok(Outcome::Retry { reason, after }),
    }
}
