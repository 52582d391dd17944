//! Records of a journal by their places, and those at hand that were read last.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::super::reader::{Frame, Reader};
use super::super::record::TAG_COPIES;
use super::{Desk, Stream};
use crate::framefile::FrameError;
use crate::state::journal::Content;
use crate::sync::lock;

/// Letters that were read last are kept at hand: what is asked for again is mostly one of them.
const AT_HAND_MAX: usize = 64;

/// Reads records by their places.
#[derive(Debug)]
pub(super) struct AtHand {
    desk: Arc<Desk>,
    topic: String,
    read: Mutex<BTreeMap<u64, Frame>>,
}

impl AtHand {
    pub fn new(desk: &Arc<Desk>, topic: &str) -> Arc<AtHand> {
        Arc::new(AtHand {
            desk: desk.clone(),
            topic: topic.to_owned(),
            read: Mutex::default(),
        })
    }

    pub fn forget(&self) {
        lock(&self.read).clear();
    }
}

impl Reader for AtHand {
    fn read(&self, offset: u64) -> Result<Frame, FrameError> {
        if let Some(frame) = lock(&self.read).get(&offset) {
            return Ok(frame.clone());
        }
        let topic = self.topic.clone();
        let got = self
            .desk
            .ask(move |journal| async move { journal.get(&topic, offset).await });
        let damaged = || FrameError::Damaged {
            path: Stream::path(&self.desk, &self.topic),
            offset,
        };
        let kept = got.map_err(|error| self.desk.io(&error))?.ok_or_else(damaged)?;
        let Content::Whole(payload) = kept.content else {
            return Err(damaged());
        };
        let frame = (kept.tag, payload.to_vec());
        if frame.0 != TAG_COPIES {
            let mut read = lock(&self.read);
            while read.len() >= AT_HAND_MAX {
                read.pop_first();
            }
            read.insert(offset, frame.clone());
        }
        Ok(frame)
    }
}
