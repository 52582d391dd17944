//! The mail of an event, or of several.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use lettre::Message;
use lettre::message::header::{HeaderName, HeaderValue};
use lettre::message::{Mailbox, Mailboxes, MultiPart, SinglePart};
use sha2::{Digest as _, Sha256};

use super::super::common::{message, sentence};
use crate::event::Delivery;
use crate::plain;
use crate::render::{Payload, Template};

/// Events that a digest lists; the rest is counted.
pub(super) const LISTED_MAX: usize = 100;

/// Bytes of events that a digest's templates see: rendering has a limit of memory.
const SCOPE_LEN_MAX: usize = 2 << 20;

/// Characters of one event's own text in a digest.
const ENTRY_LEN_MAX: usize = 2000;

/// Characters of a subject.
const SUBJECT_LEN_MAX: usize = 300;

/// Characters of a header's name, as the library takes it.
const NAME_LEN_MAX: usize = 76;

/// Headers that a transform may set beside those that begin with `x-`. The others say how a mail travels and what it is made of.
const HEADERS: [&str; 7] = [
    "in-reply-to",
    "importance",
    "keywords",
    "list-id",
    "list-unsubscribe",
    "priority",
    "references",
];

/// What the configuration says of every mail.
#[derive(Debug, Clone)]
pub(super) struct Words {
    pub from: Mailbox,
    pub to: Vec<Template>,
    pub subject: Option<Template>,
    pub text: Option<Template>,
    pub html: Option<Template>,
}

/// The name under which the rendered text of a recipient is found.
pub(super) fn to_name(index: usize) -> String {
    format!("to[{index}]")
}

impl Words {
    /// Each of its templates, by name.
    pub fn templates(&self) -> Vec<(String, Template)> {
        let to = self.to.iter().enumerate();
        let to = to.map(|(index, to)| (to_name(index), to.clone()));
        to.chain(self.texts()).collect()
    }

    /// Whether the event says to whom its mail goes.
    pub fn to_varies(&self) -> bool {
        self.to.iter().any(|to| !to.is_constant())
    }

    /// Those that say something of the event, or of the events of a digest.
    pub fn texts(&self) -> Vec<(String, Template)> {
        let named = [("subject", &self.subject), ("text", &self.text), ("html", &self.html)];
        let named = named
            .into_iter()
            .filter_map(|(name, template)| Some((name.to_owned(), template.clone()?)));
        named.collect()
    }

    /// The mail of one event. An error says in one sentence what is wrong with what the event made of it.
    pub fn mail(&self, sink: &str, delivery: &Delivery) -> Result<Message, String> {
        let rendered = delivery.rendered.as_deref();
        let subject = rendered.and_then(|rendered| rendered.subject.clone());
        let subject = subject.or_else(|| Some(delivery.text("subject", self.subject.as_ref()?).to_owned()));
        let subject = one_line(&subject.unwrap_or_default());
        let subject = if subject.is_empty() {
            sentence::of(&delivery.event)
        } else {
            subject
        };
        let mut mail = self.head(
            &message::key(&delivery.event),
            sink,
            &subject,
            &self.recipients(delivery)?,
        );
        for (name, value) in message::attributes(delivery) {
            mail = with_header(mail, name, &message::legal(value));
        }
        for (name, value) in message::made(delivery)? {
            let lower = name.to_ascii_lowercase();
            let may_be_set = lower.starts_with("x-") || HEADERS.contains(&lower.as_str());
            if !may_be_set || !is_name(name) {
                let shown: String = plain::line(name).chars().take(NAME_LEN_MAX).collect();
                return Err(format!(
                    "the header {shown} can't be set: a transform may set x-... of a mail, of at most {NAME_LEN_MAX} letters, digits and hyphens"
                ));
            }
            mail = with_header(mail, name, value);
        }
        // A rule's words win over the sink's.
        let html = self.html.as_ref().filter(|_| delivery.payload().is_none());
        let html = html.map(|html| delivery.text("html", html).to_owned());
        built(mail, self.text(delivery), html)
    }

    /// The text of the mail of one event.
    pub fn text(&self, delivery: &Delivery) -> String {
        match (delivery.payload(), &self.text) {
            (Some(payload), _) => payload_text(payload),
            (None, Some(text)) => delivery.text("text", text).to_owned(),
            (None, None) => default_text(delivery),
        }
    }

    /// One mail of several events. `made`: what its templates made of them, by name.
    pub fn digest(
        &self,
        sink: &str,
        deliveries: &[Delivery],
        made: &BTreeMap<String, String>,
    ) -> Result<Message, String> {
        let Some(first) = deliveries.first() else {
            return Err("a digest of nothing".into());
        };
        let said = |name: &str, template: &Option<Template>| {
            let template = template.as_ref()?;
            let made = made.get(name).map(String::as_str);
            Some(made.unwrap_or_else(|| template.source()).to_owned())
        };
        let subject = said("subject", &self.subject).map(|subject| one_line(&subject));
        let subject = subject
            .filter(|subject| !subject.is_empty())
            .unwrap_or_else(|| match deliveries.len() {
                1 => "1 event in Close".into(),
                count => format!("{count} events in Close"),
            });
        let mail = self.head(&digest_key(deliveries), sink, &subject, &self.recipients(first)?);
        let seqs = deliveries.iter().map(|delivery| delivery.event.seq);
        let mail = match (seqs.clone().min(), seqs.max()) {
            (Some(first), Some(last)) => with_header(mail, "closehook-seq", &format!("{first}-{last}")),
            _ => mail,
        };
        let keys: Vec<String> = deliveries
            .iter()
            .take(LISTED_MAX)
            .map(|delivery| message::legal(message::key(&delivery.event)))
            .collect();
        built(
            with_header(mail, "closehook-key", &keys.join(" ")),
            said("text", &self.text).unwrap_or_else(|| digest_text(deliveries)),
            said("html", &self.html),
        )
    }

    /// What a mail says before its parts.
    fn head(&self, key: &str, sink: &str, subject: &str, to: &[Mailbox]) -> lettre::message::MessageBuilder {
        let mail = Message::builder()
            .from(self.from.clone())
            .subject(subject)
            .message_id(Some(message_id(key, sink, self.from.email.domain())))
            .date_now();
        let mail = to.iter().fold(mail, |mail, to| mail.to(to.clone()));
        // Nobody is to answer that he is on holiday.
        with_header(mail, "auto-submitted", "auto-generated")
    }

    fn recipients(&self, delivery: &Delivery) -> Result<Vec<Mailbox>, String> {
        let mut found = Vec::new();
        for (index, to) in self.to.iter().enumerate() {
            let text = delivery.text(&to_name(index), to).trim();
            // For this event it names nobody.
            if !text.is_empty() {
                let these =
                    mailboxes(text).ok_or_else(|| format!("{} is no address for this event", to_name(index)))?;
                // A value that is filled in would add others by a comma.
                if these.len() > 1 && !to.is_constant() {
                    return Err(format!(
                        "{} is {} addresses for this event, and one is taken of what is filled in",
                        to_name(index),
                        these.len()
                    ));
                }
                found.extend(these);
            }
        }
        if found.is_empty() {
            return Err("to names nobody for this event".into());
        }
        Ok(found)
    }
}

/// What a header may be called: with anything else in it, it would end its own line and begin another.
fn is_name(name: &str) -> bool {
    name.len() <= NAME_LEN_MAX && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
}

/// Addresses, one or several with commas.
pub(super) fn mailboxes(text: &str) -> Option<Vec<Mailbox>> {
    if text.chars().any(char::is_control) {
        return None;
    }
    let found: Vec<Mailbox> = text.parse::<Mailboxes>().ok()?.into_iter().collect();
    (!found.is_empty()).then_some(found)
}

fn with_header(mail: lettre::message::MessageBuilder, name: &str, value: &str) -> lettre::message::MessageBuilder {
    match HeaderName::new_from_ascii(name.to_owned()) {
        Ok(name) => mail.raw_header(HeaderValue::new(name, one_line(value))),
        Err(_) => mail,
    }
}

fn built(mail: lettre::message::MessageBuilder, text: String, html: Option<String>) -> Result<Message, String> {
    let built = match html {
        Some(html) => mail.multipart(MultiPart::alternative_plain_html(text, html)),
        None => mail.singlepart(SinglePart::plain(text)),
    };
    built.map_err(|error| format!("the mail can't be made: {error}"))
}

/// What fits a line of a mail's head: an event can end none and begin none.
fn one_line(text: &str) -> String {
    let beginning: String = text.chars().take(SUBJECT_LEN_MAX * 8).collect();
    let words: Vec<&str> = beginning
        .split(|c: char| c.is_whitespace() || c.is_control())
        .filter(|word| !word.is_empty())
        .collect();
    plain::line(&words.join(" "))
        .chars()
        .take(SUBJECT_LEN_MAX * 4)
        .collect()
}

/// The same for the same event and sink whenever it is sent: mailboxes know a repeat by it.
fn message_id(key: &str, sink: &str, domain: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
    let readable = |text: &str, max: usize| -> String {
        let parts: Vec<&str> = text
            .split(|c: char| !is_plain(c))
            .filter(|part| !part.is_empty())
            .collect();
        parts.join(".").chars().take(max).collect()
    };
    // What is readable may be the same for two keys.
    let digest = hex::encode(Sha256::digest(format!("{sink}\n{key}")));
    let domain = if domain.is_ascii() { domain } else { "closehook.invalid" };
    let readable = readable(key, 80);
    let begins = if readable.is_empty() {
        "event".to_owned()
    } else {
        readable
    };
    format!("<{}.{}@{domain}>", begins.trim_matches('.'), &digest[..16])
}

/// As an http batch is known: by the keys of its events, in order.
pub(super) fn digest_key(deliveries: &[Delivery]) -> String {
    let keys: Vec<String> = deliveries
        .iter()
        .map(|delivery| message::key(&delivery.event))
        .collect();
    message::batch_id(keys.iter().map(String::as_str))
}

fn payload_text(payload: &Payload) -> String {
    String::from_utf8_lossy(payload.bytes()).into_owned()
}

/// Without a template.
fn default_text(delivery: &Delivery) -> String {
    let event = &delivery.event;
    let mut text = format!("{}.\n\n", sentence::of(event));
    if let Some(why) = sentence::given_up(delivery) {
        let _ = writeln!(text, "{why}");
    }
    if let Some(link) = sentence::lead_link(event) {
        let _ = writeln!(text, "The lead: {link}");
    }
    let view = event.view();
    let what = view.and_then(crate::event::View::type_action).unwrap_or_default();
    let id = view.map(|view| view.id.as_str()).unwrap_or_default();
    let _ = writeln!(
        text,
        "The event: {} {}, received {:.0}",
        plain::line(&what),
        plain::line(id),
        event.received_at
    );
    text
}

/// What a digest's templates see: the first of its events, how many there are, and how many of them are not among these.
pub(super) fn digest_scope(deliveries: &[Delivery]) -> String {
    let mut bytes = 0;
    let fits = |object: &&str| {
        bytes += object.len();
        bytes <= SCOPE_LEN_MAX
    };
    let objects = deliveries.iter().map(|delivery| delivery.event.object().raw());
    let listed: Vec<&str> = objects.take(LISTED_MAX).take_while(fits).collect();
    let (count, more) = (deliveries.len(), deliveries.len() - listed.len());
    format!(r#"{{"events":[{}],"count":{count},"more":{more}}}"#, listed.join(","))
}

/// Without a template: a line or what a rule's template made for each event, up to a number.
pub(super) fn digest_text(deliveries: &[Delivery]) -> String {
    let mut text = String::new();
    for delivery in deliveries.iter().take(LISTED_MAX) {
        let said = delivery
            .payload()
            .map_or_else(|| sentence::of(&delivery.event), payload_text);
        let said: String = said.trim().chars().take(ENTRY_LEN_MAX).collect();
        let _ = writeln!(text, "* {}", said.replace('\n', "\n  "));
        if delivery.payload().is_none()
            && let Some(link) = sentence::lead_link(&delivery.event)
        {
            let _ = writeln!(text, "  {link}");
        }
        if let Some(why) = sentence::given_up(delivery) {
            let _ = writeln!(text, "  {why}");
        }
    }
    let more = deliveries.len().saturating_sub(LISTED_MAX);
    if more > 0 {
        let _ = writeln!(text, "\nand {more} more");
    }
    text
}

/// What the head of a mail says, for people: but for its subject, the moment, and how the body is written.
pub(super) fn shown_headers(mail: &Message) -> BTreeMap<String, String> {
    let head = mail.headers().to_string().replace("\r\n ", " ").replace("\r\n\t", " ");
    let is_shown = |name: &str| {
        let name = name.to_ascii_lowercase();
        !matches!(&*name, "subject" | "date" | "mime-version") && !name.starts_with("content-")
    };
    let pairs = head.lines().filter_map(|line| line.split_once(": "));
    let pairs = pairs.filter(|(name, _)| is_shown(name));
    // As it was before it was written for a mail.
    let value = |name: &str, written: &str| mail.headers().get_raw(name).unwrap_or(written).to_owned();
    pairs
        .map(|(name, written)| (name.to_owned(), value(name, written)))
        .collect()
}
