//! A stream whose log is copied to somewhere else.

use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::time::Instant;

use super::super::api;
use super::super::check::{self, COPY, EPOCH, ID, MOVED, Seen};
use super::super::fetch;
use super::super::key::{self, Key};
use super::super::link::Link;
use super::super::settings::Options;
use super::super::shared::Shared;
use super::claim::{Origin, change};
use super::{PATIENCE, alien, text};
use crate::event::{Event, Seq};
use crate::log::known_key::KnownKey;

/// A stream from which a log is copied.
#[derive(Debug)]
pub struct CopySource {
    shared: Arc<Shared>,
    /// It was noted before that its log went to this place.
    pub has_moved: bool,
}

/// What there is of a stream's events: those that can be read, and the keys of what is not there any more, by Seq.
#[derive(Debug, Default)]
pub struct Found {
    /// In order.
    pub events: Vec<Event>,
    /// By which Seq it is known.
    pub known: Vec<(Seq, KnownKey)>,
    /// Damaged on every server, or before the log was copied there; each range with its last.
    pub lost: Vec<(Seq, Seq)>,
}

impl CopySource {
    /// Opens a stream to copy its log to this place; it may have been noted already that it was.
    pub async fn open(options: Options, to: &str) -> Result<(CopySource, Origin), String> {
        let announcements = key::head(&options.stream);
        let link = Link::new(options.way.clone(), announcements.clone(), mpsc::channel(1).0);
        let Seen { found, main, .. } = check::look_whoever_serves(&link, &options).await.map_err(text)?;
        let stream = &options.stream;
        let info = main.ok_or_else(|| format!("there is no stream {stream}"))?;
        // Once it is noted where it went it takes no events, which would be a fault.
        if !found.faults.is_empty() && check::metadata(&info, MOVED).is_none() {
            return Err(found.faults.join("; "));
        }
        let has_moved = check::metadata(&info, MOVED).is_some();
        let identity = check::metadata(&info, ID).zip(check::metadata(&info, EPOCH));
        let is_elsewhere = check::metadata(&info, MOVED).filter(|moved| moved != to);
        let (Some((id, epoch)), None, None) = (identity, check::metadata(&info, COPY), &is_elsewhere) else {
            return Err(match is_elsewhere {
                Some(place) => format!("the log of the stream {stream} was copied to {place}, and goes on there"),
                None => format!("the stream {stream} holds no log that is whole"),
            });
        };
        let origin = Origin {
            id: id.clone(),
            epoch: epoch.clone(),
            first: Seq(info.state.first_seq.max(1)),
            last: Seq(info.state.last_seq),
        };
        let reader = Link::new(options.way.clone(), announcements, mpsc::channel(1).0);
        let shared = Arc::new(Shared::new(options, link, reader, info, (id, epoch)));
        Ok((CopySource { shared, has_moved }, origin))
    }

    /// What is from a Seq on, and where to read on.
    pub async fn read(&self, from: Seq) -> Result<(Found, Seq), String> {
        let (messages, next) = fetch::raw(&self.shared, from).await.map_err(text)?;
        let mut found = Found::default();
        for message in messages {
            if message.erases().is_some() {
                found
                    .known
                    .extend(Key::read(message.key()).map(|key| (message.known_as(), key)));
                continue;
            }
            if let Some(upto) = message.lost_upto() {
                found.lost.push((Seq(message.seq), upto));
                continue;
            }
            let until = Instant::now() + PATIENCE;
            match fetch::event_of(&self.shared, &message, until).await.map_err(text)? {
                Ok(event) => found.events.push(event),
                Err(_) => found.lost.push((Seq(message.seq), Seq(message.seq))),
            }
        }
        Ok((found, next))
    }

    /// Notes in the stream where the log went: nobody opens it from then on. What was stored since it was read is an error, and then it
    /// stays as it was.
    pub async fn moved(&self, origin: &Origin, to: &str) -> Result<(), String> {
        let (shared, until) = (&self.shared, Instant::now() + PATIENCE);
        let info = async || {
            api::info(&shared.link, shared.stream(), None, until)
                .await
                .map_err(text)
        };
        change(&shared.link, info().await?, until, |metadata| {
            metadata.insert(MOVED.into(), to.into());
        })
        .await?;
        let now = info().await?;
        if now.state.last_seq != origin.last.0 {
            let last = now.state.last_seq;
            change(&shared.link, now, until, |metadata| {
                metadata.remove(MOVED);
            })
            .await?;
            return Err(alien(last));
        }
        Ok(())
    }

    /// Lets go.
    pub async fn close(&self) {
        self.shared.link.close().await;
        self.shared.reader.close().await;
    }
}
