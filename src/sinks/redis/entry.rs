//! An event as an entry of a stream: fields that say what is known of it, and the body.

use bytes::Bytes;

use super::MARKS;
use crate::event::Delivery;
use crate::render::Template;
use crate::sinks::Reason;
use crate::sinks::common::message;

/// The field that has the body.
pub(super) const BODY: &str = "event";

/// Fields that a transform may add.
const MADE_MAX: usize = 100;

/// An entry on its way.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    pub(super) stream: &'a str,
    /// The event has chosen the stream.
    pub(super) stream_varies: bool,
    pub(super) fields: Vec<(&'a str, String)>,
    pub(super) body: &'a Bytes,
}

impl<'a> Entry<'a> {
    /// Of what was made of an event, or the event as it came; the reason where that can't be an entry.
    pub(super) fn of(delivery: &'a Delivery, stream: &'a Template) -> Result<Entry<'a>, Reason> {
        let rendered = delivery.rendered.as_deref();
        let chosen = rendered.and_then(|rendered| rendered.subject.as_deref());
        let stream_varies = chosen.is_some() || !stream.is_constant();
        let name = chosen.unwrap_or_else(|| delivery.text("stream", stream));
        if name.is_empty() {
            return Err("the name of the stream is empty for this event".into());
        }
        if name.starts_with(MARKS) {
            return Err(format!("what begins with {MARKS} are no streams").into());
        }
        let mut fields: Vec<(&str, String)> = message::attributes(delivery);
        let made = rendered.iter().flat_map(|rendered| &rendered.headers);
        if made.clone().count() > MADE_MAX {
            return Err(format!("its transform returns more than {MADE_MAX} headers").into());
        }
        for (name, value) in made {
            if name == BODY {
                return Err(format!("its transform returns a header {BODY}, which is the field of the body").into());
            }
            // What a transform says wins over what is said by itself.
            fields.retain(|(own, _)| own != name);
            fields.push((name, value.clone()));
        }
        Ok(Entry {
            stream: name,
            stream_varies,
            fields,
            body: body(delivery),
        })
    }

    /// Bytes of what is said of it to the script, or a few more.
    pub(super) fn len(&self) -> usize {
        const NUMBERS: usize = 16;
        let texts = self.fields.iter().map(|(name, value)| name.len() + value.len());
        texts.sum::<usize>() + BODY.len() + self.body.len() + NUMBERS
    }

    /// Bytes of its longest text.
    pub(super) fn longest(&self) -> usize {
        let texts = self.fields.iter().flat_map(|(name, value)| [name.len(), value.len()]);
        texts
            .chain([self.stream.len(), self.body.len()])
            .max()
            .unwrap_or_default()
    }
}

/// What was made of an event, or the delivery as it came.
pub(super) fn body(delivery: &Delivery) -> &Bytes {
    delivery
        .payload()
        .map_or(&delivery.event.body, |payload| payload.bytes())
}
