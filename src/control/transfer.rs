//! Events as they leave a log and come into another: whole, byte for byte.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize, Serializer};

use super::Facade;
use super::answers::{Out, Refusal, text};
use super::pick::Pick;
pub use super::walk::Unread;
use super::walk::{Range, missing, walk};
use crate::event::{Event, Kind, Seq, SignatureHeaders, Source};
use crate::log::{Appended, Incoming};

/// Events whole, in Seq order.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Export {
    /// Which.
    pub pick: Pick,
    /// At most so many; `None`: all.
    pub limit: Option<u64>,
}

/// What is said of an export: each event, and at the end what is missing among them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Line {
    /// What can't be read; said where there is any.
    Unread(Unread),
    /// An event.
    Event(Box<Exported>),
}

/// An event as `events export` writes it and `log import` takes it back.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exported {
    /// Its place in the log.
    #[serde(default)]
    pub seq: Seq,
    /// When it came.
    #[serde(serialize_with = "to_the_microsecond")]
    pub received_at: Timestamp,
    /// How it came.
    #[serde(default = "webhook")]
    pub source: Source,
    /// What it was signed with.
    #[serde(default)]
    pub headers: Headers,
    /// Whether Close withholds its data; left out where not.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub partial: bool,
    /// Its bytes, where they are UTF-8.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body: Option<String>,
    /// Its bytes in Base64, where they are not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub body_base64: Option<String>,
}

/// The two signature headers; both are left out where there is no signature.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Headers {
    /// The text as it was sent.
    #[serde(rename = "close-sig-timestamp", default, skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// The text as it was sent.
    #[serde(rename = "close-sig-hash", default, skip_serializing_if = "Option::is_none")]
    pub hash: Option<String>,
}

fn webhook() -> Source {
    Source::Webhook
}

/// As times of receipt are kept.
pub(super) fn to_the_microsecond<S: Serializer>(time: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&format_args!("{time:.6}"))
}

impl Exported {
    /// The event.
    pub fn of(event: &Event) -> Exported {
        let signature = event.signature.as_ref();
        let (body, body_base64) = match std::str::from_utf8(&event.body) {
            Ok(body) => (Some(body.to_owned()), None),
            Err(_) => (None, Some(STANDARD.encode(&event.body))),
        };
        Exported {
            seq: event.seq,
            received_at: event.received_at,
            source: event.source,
            headers: Headers {
                timestamp: signature.map(|signature| signature.timestamp.clone()),
                hash: signature.map(|signature| signature.hash.clone()),
            },
            partial: event.kind == Kind::Partial,
            body,
            body_base64,
        }
    }

    /// The body, byte for byte.
    pub fn bytes(&self) -> Result<Vec<u8>, Refusal> {
        match (&self.body, &self.body_base64) {
            (Some(body), _) => Ok(body.as_bytes().to_vec()),
            (None, Some(encoded)) => STANDARD
                .decode(encoded)
                .map_err(|_| "body_base64 is not base64".to_owned()),
            (None, None) => {
                Err("a line has neither body nor body_base64: is it from `closehook events export`?".into())
            }
        }
    }

    fn incoming(self, dispatch: bool) -> Result<Incoming, Refusal> {
        let body = self.bytes()?;
        let signature = match (self.headers.timestamp, self.headers.hash) {
            (Some(timestamp), Some(hash)) => Some(SignatureHeaders { timestamp, hash }),
            _ => None,
        };
        Ok(Incoming {
            held: !dispatch,
            partial: self.partial,
            ..Incoming::new(body.into(), self.received_at, self.source, signature)
        })
    }
}

impl Export {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Line>) -> Result<(), Refusal> {
        let range = Range {
            limit: self.limit,
            ..Range::default()
        };
        // Of an erased event there is nothing to hand on.
        let render = |event: &Event| (event.kind != Kind::Erased).then(|| Line::Event(Box::new(Exported::of(event))));
        let selection = self.pick.compile()?;
        let mut unread = walk(on, &selection, range, render, &out).await?;
        // What was lost before the oldest event kept is as little missing from it as what has expired.
        unread.keep(on.log.first(), Seq(u64::MAX));
        match missing(on, &selection, unread).await? {
            Some(unread) => out.say(&Line::Unread(unread)).await,
            None => Ok(()),
        }
    }
}

/// Takes events in, which get new Seqs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Import {
    /// As they were exported.
    pub lines: Vec<Exported>,
    /// Send them to the sinks, like events that have just arrived.
    pub dispatch: bool,
}

/// What became of imported events.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// New in the log.
    pub stored: u64,
    /// Known already, and passed over.
    pub known: u64,
}

impl Import {
    pub(super) async fn answer(self, on: &Facade, out: Out<'_, Imported>) -> Result<(), Refusal> {
        let mut imported = Imported::default();
        let lines = self.lines.into_iter();
        let incoming: Vec<Incoming> = lines
            .map(|line| line.incoming(self.dispatch))
            .collect::<Result<_, _>>()?;
        if self.dispatch {
            on.engine.settle_starts().await.map_err(text)?;
        }
        let has_parts = incoming.iter().any(|incoming| incoming.partial);
        let from = on.log.head().borrow().next();
        if has_parts {
            on.account.expect_parts(from).await.map_err(text)?;
        }
        let appended = on.log.append_in_order(incoming).await;
        if has_parts {
            // They may have been counted before they were there.
            on.account.expect_parts(from).await.map_err(text)?;
        }
        for appended in appended {
            match appended.map_err(text)? {
                Appended::Stored(_) | Appended::Quarantined { repeated: false, .. } => imported.stored += 1,
                Appended::Duplicate(_) | Appended::Quarantined { .. } => imported.known += 1,
            }
        }
        out.say(&imported).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_exported_is_taken_back_byte_for_byte() {
        let signature = SignatureHeaders {
            timestamp: "1".into(),
            hash: "ab".into(),
        };
        let at: Timestamp = "2024-02-15T12:00:00.123456Z".parse().unwrap();
        for body in [
            br#"{"event": {"id":"ev_1", "n" : 1.50, "n":12345678901234567890123}}"#.to_vec(),
            b"\xff\xfe no text".to_vec(),
            Vec::new(),
        ] {
            let kind = Kind::Partial;
            let event = Event::new(
                Seq(7),
                at,
                Source::Backfill,
                kind,
                Some(signature.clone()),
                body.clone().into(),
            );
            let line = serde_json::to_string(&Exported::of(&event)).unwrap();
            assert!(
                line.contains("\"received_at\":\"2024-02-15T12:00:00.123456Z\""),
                "{line}"
            );
            let back: Exported = serde_json::from_str(&line).unwrap();
            assert_eq!(back, Exported::of(&event));
            let incoming = back.incoming(false).unwrap();
            assert_eq!((&incoming.body[..], incoming.received_at), (&body[..], at));
            assert_eq!((incoming.partial, incoming.held), (true, true));
            assert_eq!(incoming.signature.as_ref(), Some(&signature));
        }
        // What others leave out, and what they add.
        let line = r#"{"received_at":"2024-02-15T12:00:00Z","body":"x","more":1}"#;
        let back: Exported = serde_json::from_str(line).unwrap();
        let incoming = back.incoming(true).unwrap();
        assert_eq!((incoming.source, incoming.held), (Source::Webhook, false));
        let empty: Exported = serde_json::from_str(r#"{"received_at":"2024-02-15T12:00:00Z"}"#).unwrap();
        assert!(empty.incoming(true).is_err());
    }
}
