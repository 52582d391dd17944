//! Erasing somebody's data: whose it is, and where a log has to look for it.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use serde::{Deserialize, Serialize};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::dead;
use super::pick::Pick;
use crate::deliver::DeadLetter;
use crate::event::{self, Event, Seq};
use crate::json::{self, Kind, Node};
use crate::log::{self, Narrow};

/// Whose data: what fits any of these. Bodies in quarantine are no events, so it is enough that lead or address stand in them.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Erase {
    /// Events of this lead, and those about the lead itself.
    #[serde(default)]
    pub lead: Option<String>,
    /// Events in which this address stands.
    #[serde(default)]
    pub email: Option<String>,
    /// Events with these ids.
    #[serde(default)]
    pub ids: Vec<String>,
}

/// What was erased.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Erased {
    /// The Seqs that are tombstones now.
    pub erased: Vec<Seq>,
    /// What may hold some of it and was left, one sentence each.
    pub left: Vec<String>,
    /// Dead letters that went.
    pub dead_letters_dropped: u64,
}

/// Forgets what this node holds of what was erased from the log that it shares with others.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct EraseHere {
    /// Whose data it was.
    pub whose: Erase,
    /// What was erased.
    pub erased: Vec<Seq>,
}

/// What a node held of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Forgotten {
    /// Dead letters that went.
    pub dead_letters_dropped: u64,
    /// What may hold some of it and was left, one sentence each.
    pub left: Vec<String>,
}

/// What the log's nearest server has not heard of yet is waited for.
const GONE_WITHIN: Duration = Duration::from_secs(15);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// Seqs that are looked at together.
const LOOKS: usize = 32;

/// Waits until an event is gone from the log as this node sees it. Only what is gone is forgotten; and what is read again must not be the
/// data once more.
async fn is_gone(on: &Facade, seq: Seq, until: tokio::time::Instant) -> Result<(), Refusal> {
    while let Some(event) = on.log.get(seq).await.map_err(text)?
        && event.kind != event::Kind::Erased
    {
        if tokio::time::Instant::now() >= until {
            return Err(format!("event {seq} is still in the log, as its servers have it here"));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    Ok(())
}

impl EraseHere {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Forgotten>) -> Result<(), Refusal> {
        let whose = self.whose.checked()?;
        on.log.forget_read_ahead();
        let until = tokio::time::Instant::now() + GONE_WITHIN;
        let gone = futures::stream::iter(self.erased.clone()).map(async |seq| is_gone(on, seq, until).await);
        let mut gone = std::pin::pin!(gone.buffer_unordered(LOOKS));
        while let Some(gone) = gone.next().await {
            gone?;
        }
        // What was read meanwhile may be older than that.
        on.log.forget_read_ahead();
        let (letters, unread) = whose.letters(on).await?;
        let (letters, kept) = whose.without_kept(on, letters, &self.erased).await;
        let (dead_letters_dropped, mut left) = on.engine.dead_erase(letters, Some(self.erased)).await;
        left.extend(kept.into_iter().chain(unread));
        out.say(&Forgotten {
            dead_letters_dropped,
            left,
        })
        .await
    }
}

impl Erase {
    /// The same without white space around what is given. An error is one sentence: what names nobody would be found nearly everywhere
    /// or nowhere at all, and what is erased does not come back.
    pub fn checked(self) -> Result<Erase, String> {
        if self.lead.is_none() && self.email.is_none() && self.ids.is_empty() {
            return Err("say whose data is to be erased: a lead's, an address's or that of events by their ids".into());
        }
        let name = |what: &str, given: String| match given.trim() {
            "" => Err(format!("{what} is empty: nothing was erased, say whose data it is")),
            name => Ok(name.to_owned()),
        };
        let whose = Erase {
            lead: self.lead.map(|lead| name("the lead's id", lead)).transpose()?,
            email: self.email.map(|email| name("the address", email)).transpose()?,
            ids: self
                .ids
                .into_iter()
                .map(|id| name("an event's id", id))
                .collect::<Result<_, _>>()?,
        };
        match &whose.email {
            Some(email) if !is_address(email) => Err(format!(
                "\"{email}\" is no address like jane@example.com: nothing was erased, give one address and nothing else"
            )),
            _ => Ok(whose),
        }
    }

    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Erased>) -> Result<(), Refusal> {
        let whose = self.checked()?;
        let (letters, unread) = whose.letters(on).await?;
        let place = whose.place();
        let meant = whose.clone();
        let doomed = Arc::new(move |event: &Event| meant.is_in(event));
        let erased = on.log.erase(place, doomed).await;
        // After the log, so that none is made or copied of what is still there.
        // An earlier erasure may not have come to its end: what it made a tombstone may still be in memory.
        let seqs = erased.as_ref().ok();
        let seqs: Option<Vec<Seq>> = seqs.map(|erased| erased.seqs.iter().chain(&erased.before).copied().collect());
        let gone = seqs.as_deref().unwrap_or_default();
        let (letters, kept) = whose.without_kept(on, letters, gone).await;
        let (dead_letters_dropped, left_in_letters) = on.engine.dead_erase(letters, seqs).await;
        let erased = match erased {
            Err(error) if dead_letters_dropped == 0 => return Err(text(error)),
            // What went all the same is told with the error.
            Err(error) => log::Erased {
                left: vec![text(error)],
                ..log::Erased::default()
            },
            Ok(erased) => erased,
        };
        // Also where nothing was found: an earlier one may not have come to its end there.
        let told = if erased.seqs.is_empty() {
            erased.before.clone()
        } else {
            erased.seqs.clone()
        };
        let mut answer = Erased {
            erased: erased.seqs,
            left: (erased.left.into_iter().chain(kept))
                .chain(left_in_letters)
                .chain(unread)
                .collect(),
            dead_letters_dropped,
        };
        let here = EraseHere { whose, erased: told };
        for (node, forgotten) in on.ask_all(&here).await {
            match forgotten {
                Ok(forgotten) => {
                    answer.dead_letters_dropped += forgotten.dead_letters_dropped;
                    let left = forgotten.left.into_iter().map(|left| format!("on node \"{node}\": {left}"));
                    answer.left.extend(left);
                }
                Err(why) => answer.left.push(format!(
                    "what node \"{node}\" has in memory may still be delivered, and its dead letters may hold some of it: {why}"
                )),
            }
        }
        // The nodes were asked, and this machine's own one is none of those that a command beside it asks.
        if let Some(pid) = on.facts.unreachable {
            answer.left.push(format!(
                "closehook runs on this machine (process {pid}) and can't be asked, for its socket is gone: what it has in memory may still be delivered; restart it"
            ));
        }
        out.say(&answer).await
    }

    /// The letters of which the data is theirs, by their events; and a sentence for each of which that can't be told.
    async fn letters(&self, on: &Facade) -> Result<(BTreeSet<Seq>, Vec<String>), Refusal> {
        let (mut letters, mut unread) = (BTreeSet::new(), Vec::new());
        // Letters that can't be read now keep nothing else from being erased, and are named with what is left.
        let mut readable = dead::Letters::of(on, None, &Pick::default()).await?.with_given();
        while let Some(letter) = readable.next().await? {
            let found = on.engine.dead_get(&letter.sink, letter.seq).await;
            let event = found.as_ref().ok().and_then(|found| found.as_ref()?.1.clone());
            let is_theirs = event.is_some_and(|event| event.kind == event::Kind::Erased || self.is_in(&event));
            if is_theirs || self.is_named_in(&letter) {
                letters.insert(letter.seq);
            } else if let Err(why) = found {
                let (sink, seq) = (&letter.sink, letter.seq);
                unread.push(format!(
                    "the dead letter of event {seq} at sink \"{sink}\" can't be read: {why}"
                ));
            }
        }
        Ok((letters, unread))
    }

    /// The letters without those of which the log still has the event, or may have it: what it could not erase is still to be delivered, and
    /// its letter goes with it when this is done again. The others are told in one sentence. `erased`: what the log is known to have erased.
    async fn without_kept(
        &self,
        on: &Facade,
        letters: BTreeSet<Seq>,
        erased: &[Seq],
    ) -> (BTreeSet<Seq>, Option<String>) {
        let erased: BTreeSet<Seq> = erased.iter().copied().collect();
        let (mut gone, rest): (BTreeSet<Seq>, BTreeSet<Seq>) =
            letters.into_iter().partition(|seq| erased.contains(seq));
        let looks = futures::stream::iter(rest).map(async |seq| {
            let found = tokio::time::timeout(GONE_WITHIN, on.log.get(seq)).await;
            (seq, found)
        });
        let mut looks = std::pin::pin!(looks.buffer_unordered(LOOKS));
        let mut kept = BTreeMap::new();
        while let Some((seq, found)) = looks.next().await {
            match found {
                // Of what came at this Seq since there is nothing to be erased.
                Ok(Ok(found)) if found.as_ref().is_none_or(|event| !self.is_in(event)) => {
                    gone.insert(seq);
                }
                Ok(Ok(_)) => {
                    kept.insert(seq, "is still in the log".to_owned());
                }
                Ok(Err(error)) => {
                    kept.insert(seq, format!("may still be in the log ({error})"));
                }
                Err(_) => {
                    kept.insert(seq, "may still be in the log, which does not answer".to_owned());
                }
            }
        }
        let left = kept.first_key_value().map(|(seq, why)| {
            let count = kept.len();
            format!("the dead letters of {count} event(s) stay until their events go: event {seq} {why}")
        });
        (gone, left)
    }

    /// Whether an event is meant.
    fn is_in(&self, event: &Event) -> bool {
        if event.kind == event::Kind::Quarantined {
            let names = self.lead.iter().chain(&self.email);
            return names.into_iter().any(|name| stands_in(&event.body, name));
        }
        let Some(view) = event.view() else { return false };
        let is_of_lead =
            |lead: &String| view.lead_id.as_ref() == Some(lead) || lead_itself(event).as_deref() == Some(lead.as_str());
        self.ids.contains(&view.id)
            || self.lead.as_ref().is_some_and(is_of_lead)
            || self
                .email
                .as_deref()
                .is_some_and(|email| mentions(event.object(), email))
    }

    /// Whether a dead letter itself says so: its event may not be kept any more.
    fn is_named_in(&self, letter: &DeadLetter) -> bool {
        self.ids.contains(&letter.id) || (self.lead.is_some() && self.lead == letter.lead_id)
    }

    /// Where to look: whatever is meant is left by this, or is no delivery.
    fn place(&self) -> Narrow {
        // A lead is also what an event is about, and an address may stand anywhere.
        let is_only_ids = self.lead.is_none() && self.email.is_none();
        Narrow {
            ids: self.ids.iter().filter(|_| is_only_ids).cloned().collect(),
            ..Narrow::default()
        }
    }
}

/// The lead an event is about, where the object is the lead itself.
fn lead_itself(event: &Event) -> Option<Cow<'_, str>> {
    let object = event.object();
    let is_lead = object.get("object_type").and_then(Node::as_string).as_deref() == Some("lead");
    object.get("object_id").filter(|_| is_lead)?.as_string()
}

/// Whether a text is one address: something on both sides of the `@`, and nothing around it.
fn is_address(text: &str) -> bool {
    let is_around = |c: char| c.is_whitespace() || matches!(c, '<' | '>' | ',' | ';');
    let has_both_sides = text
        .rsplit_once('@')
        .is_some_and(|(user, host)| !user.is_empty() && !host.is_empty());
    // What is in quotes may have anything in it.
    has_both_sides && (text.starts_with('"') || !text.contains(is_around))
}

/// Whether a name stands in a body that is no delivery: in its text, or, where it is JSON, in a string, however that is written.
fn stands_in(body: &[u8], name: &str) -> bool {
    let is_string = || json::validate(body).is_ok_and(|text| mentions(Node::new(text.trim()), name));
    has_word(&String::from_utf8_lossy(body), &name.to_lowercase()) || is_string()
}

/// Whether an address stands in a string anywhere in the value, in a key too, alone or as a word of a text, however its letters are cased.
fn mentions(root: Node<'_>, email: &str) -> bool {
    let email = email.to_lowercase();
    let mut pending = vec![root];
    while let Some(node) = pending.pop() {
        match node.kind() {
            Kind::String if node.as_string().is_some_and(|text| has_word(&text, &email)) => return true,
            Kind::Object => pending.extend(node.entries().flat_map(<[Node<'_>; 2]>::from)),
            Kind::Array => pending.extend(node.elements()),
            _ => {}
        }
    }
    false
}

/// Whether a name, in small letters, stands in a text, and not as a part of a longer one.
fn has_word(text: &str, name: &str) -> bool {
    let text = text.to_lowercase();
    let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '+' | '.');
    // An address may have one inside, behind a letter; elsewhere it begins what is quoted.
    let is_address = name.contains('@');
    let ends_with_part = |before: &str| {
        let quoted = before.strip_suffix(['\'', '\u{2019}']).filter(|_| is_address);
        before.ends_with(is_part) || quoted.is_some_and(|before| before.ends_with(char::is_alphanumeric))
    };
    let is_word = |(at, _): (usize, &str)| {
        // The end of a sentence is no part of a name.
        let after = text[at + name.len()..].trim_start_matches('.');
        !ends_with_part(&text[..at]) && !after.starts_with(is_part)
    };
    text.match_indices(name).any(is_word)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::event::Source;

    fn event(object: &str) -> Event {
        let body = format!(r#"{{"event":{object}}}"#).into();
        let kind = event::Kind::Event;
        Event::new(Seq(1), Timestamp::UNIX_EPOCH, Source::Webhook, kind, None, body)
    }

    #[test]
    fn whatever_is_meant_is_found_where_it_is_looked_for() {
        let events = [
            event(r#"{"id":"ev_1","lead_id":"lead_1","object_type":"contact","object_id":"cont_1"}"#),
            event(r#"{"id":"ev_2","lead_id":null,"object_type":"lead","object_id":"lead\u005f1"}"#),
            event(r#"{"id":"ev_3","object_type":"contact","object_id":"lead_1"}"#),
            event(r#"{"id":"ev_4","lead_id":"lead_2","data":{"emails":[{"email":"Jane@Example.com"}]}}"#),
            event(r#"{"id":"ev_5","data":{"note":"write to jane@example.com"}}"#),
            event(r#"{"id":"ev_6","data":{"to":["\"Jane\" <JANE\u0040example.com>"]}}"#),
            event(r#"{"id":"ev_7","data":{"opens":{"jane@example.com":3}}}"#),
            event(r#"{"id":"ev_8","data":{"note":"mary-jane@example.com, jane@example.com.au"}}"#),
        ];
        let janes = ["ev_4", "ev_5", "ev_6", "ev_7"];
        let cases = [
            (Some("lead_1"), None, &[][..], &["ev_1", "ev_2"][..]),
            (Some("lead_2"), None, &["ev_1", "ev_5"], &["ev_1", "ev_4", "ev_5"]),
            (None, Some("jane@example.COM"), &[], &janes),
            (Some("lead_3"), Some("jane@example.com"), &[], &janes),
            (None, None, &["ev_3"], &["ev_3"]),
        ];
        for (lead, email, ids, expected) in cases {
            let whose = Erase {
                lead: lead.map(Into::into),
                email: email.map(Into::into),
                ids: ids.iter().map(ToString::to_string).collect(),
            };
            let meant = events.iter().filter(|event| whose.is_in(event));
            let found: Vec<&str> = meant
                .inspect(|event| assert!(whose.place().leaves(event), "{whose:?} {event:?}"))
                .filter_map(|event| Some(event.view()?.id.as_str()))
                .collect();
            assert_eq!(found, expected, "{whose:?}");
        }
        let single = Erase {
            ids: vec!["ev_3".into()],
            ..Erase::default()
        };
        assert!(!single.place().leaves(&events[0]), "others are not looked at");
    }

    /// What is empty stands in nearly every text.
    #[test]
    fn what_names_nobody_is_refused_and_white_space_is_no_part_of_a_name() {
        let whose = |lead: Option<&str>, email: Option<&str>, ids: &[&str]| Erase {
            lead: lead.map(Into::into),
            email: email.map(Into::into),
            ids: ids.iter().map(ToString::to_string).collect(),
        };
        for nobody in [
            whose(None, None, &[]),
            whose(Some(""), None, &[]),
            whose(Some(" \t"), None, &["ev_1"]),
            whose(None, Some(""), &[]),
            whose(None, Some("\n"), &[]),
            whose(None, Some("jane"), &[]),
            whose(None, Some("@"), &[]),
            whose(None, Some("@example.com"), &[]),
            whose(None, Some("jane@"), &[]),
            whose(None, Some("Jane <jane@example.com>"), &[]),
            whose(None, Some("jane@example.com, bob@example.com"), &[]),
            whose(None, None, &[""]),
            whose(Some("lead_1"), None, &["ev_1", " "]),
        ] {
            let refused = nobody.clone().checked();
            assert!(refused.is_err(), "{nobody:?}");
        }
        let checked = whose(Some(" lead_1\n"), Some("jane@example.com "), &[" ev_1"]).checked();
        let checked = checked.unwrap();
        assert_eq!(
            (checked.lead.as_deref(), checked.email.as_deref(), &checked.ids[..]),
            (Some("lead_1"), Some("jane@example.com"), &["ev_1".to_owned()][..])
        );
        assert!(whose(None, Some("\"jane doe\"@example.com"), &[]).checked().is_ok());
    }

    #[test]
    fn an_apostrophe_is_a_part_of_an_address_behind_a_letter_only() {
        for (text, is_neils) in [
            ("o'neil@x.com", false),
            ("O\u{2019}Neil@x.com", false),
            ("to 'neil@x.com'", true),
            ("'neil@x.com'", true),
            ("neil@x.com's address", true),
            ("o'neil@x.com and neil@x.com", true),
            ("'o'neil@x.com'", false),
        ] {
            assert_eq!(has_word(text, "neil@x.com"), is_neils, "{text}");
        }
        assert!(has_word("o'neil@x.com", "o'neil@x.com"));
        assert!(has_word("b'lead_1'", "lead_1"), "no address");
    }

    #[test]
    fn bodies_in_quarantine_are_meant_where_a_name_stands_in_them() {
        let quarantined = |body: &str| {
            let kind = event::Kind::Quarantined;
            let body = body.to_owned().into();
            Event::new(Seq(1), Timestamp::UNIX_EPOCH, Source::Webhook, kind, None, body)
        };
        let lead = Erase {
            lead: Some("lead_1".into()),
            ..Erase::default()
        };
        let person = Erase {
            email: Some("Jane@example.com".into()),
            ..Erase::default()
        };
        for (whose, body, is_meant) in [
            (&lead, r#"{"lead":"lead_1"}"#, true),
            (&lead, r#"{"lead":"lead_1", cut o"#, true),
            (&lead, r#"{"lead":"lead_12"}"#, false),
            (&lead, r#"{"lead":"lead\u005f1"}"#, true),
            (&person, "to jane@EXAMPLE.com.", true),
            (&person, "to mary.jane@example.com", false),
            (&person, "to jane@example.com.au", false),
            (&person, r#"["jane\u0040example.com"]"#, true),
            (&person, r#"{"Jane\u0040example.com":1}"#, true),
            (&person, r#"["to <jane\u0040example.com>"]"#, true),
            (&person, r#"["to mary.jane\u0040example.com"]"#, false),
        ] {
            let event = quarantined(body);
            assert_eq!(whose.is_in(&event), is_meant, "{body}");
        }
        let id = Erase {
            ids: vec!["ev_1".into()],
            ..Erase::default()
        };
        assert!(!id.is_in(&quarantined("ev_1")), "it has no id");
    }

    /// Its event may be gone, and the letter still says whose it was.
    #[test]
    fn a_letter_whose_event_is_gone_is_found_by_what_it_says() {
        let letter = DeadLetter {
            sink: "a".into(),
            seq: Seq(1),
            id: "ev_1".into(),
            event_type: None,
            lead_id: Some("lead_1".into()),
            reason: "no".into(),
            answer: None,
            attempts: 1,
            first_attempt: None,
            died_at: Timestamp::UNIX_EPOCH,
            dead: None,
            replay: None,
        };
        let whose = |lead: Option<&str>, id: Option<&str>| Erase {
            lead: lead.map(Into::into),
            email: None,
            ids: id.into_iter().map(Into::into).collect(),
        };
        assert!(whose(Some("lead_1"), None).is_named_in(&letter));
        assert!(whose(None, Some("ev_1")).is_named_in(&letter));
        assert!(!whose(Some("lead_2"), Some("ev_2")).is_named_in(&letter));
        let without = DeadLetter {
            lead_id: None,
            ..letter
        };
        assert!(
            !whose(None, Some("ev_2")).is_named_in(&without),
            "no lead is not the same lead"
        );
    }
}
