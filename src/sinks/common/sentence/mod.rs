//! What an event says to a person, in one sentence, where nobody has written a template: "Opportunity of Acme moved from Active to Won
//! (12,000 USD)".
//!
//! Each documented type of event has words of its own; one that is not documented is named as Close names it. What comes from the
//! event (names, subjects, the beginning of a note) is made one line, cut, and holds nothing that moves a terminal or turns the
//! direction of text. It is plain text: whoever puts it into HTML or Slack's markup escapes it whole.
//!
//! | file | what it does |
//! |---|---|
//! | `told` | reads what an event tells: fields, what changed, money, moments |
//! | `activities` | calls, mails, meetings, notes, tasks |
//! | `objects` | everything else |

mod activities;
mod objects;
mod told;

use self::told::Told;
use crate::event::{Dead, Delivery, Event};

/// Where a person looks at a lead.
const LEAD_URL: &str = "https://app.close.com/lead/";

/// Longer ids are nobody's.
const ID_LEN_MAX: usize = 100;

/// The sentence, without a full stop.
pub(in crate::sinks) fn of(event: &Event) -> String {
    let object = event.object();
    let told = Told::new(object);
    let (Some(object_type), Some(action)) = (told.envelope("object_type"), told.envelope("action")) else {
        return "An event without a type".into();
    };
    let said = activities::said(&told, &object_type, &action).or_else(|| objects::said(&told, &object_type, &action));
    said.unwrap_or_else(|| told::unknown(&told, &object_type, &action))
}

/// Of what another sink gave up, who that was and why.
pub(in crate::sinks) fn given_up(delivery: &Delivery) -> Option<String> {
    let Dead { sink, reason, attempts } = delivery.dead()?;
    Some(format!("Not delivered to {sink} (attempts: {attempts}): {reason}"))
}

/// Where the event's lead can be looked at; `None` where it has none.
pub(in crate::sinks) fn lead_link(event: &Event) -> Option<String> {
    let lead = event.view()?.lead_id.as_deref()?;
    let is_id = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'-');
    let is_sound = !lead.is_empty() && lead.len() <= ID_LEN_MAX && lead.bytes().all(is_id);
    is_sound.then(|| format!("{LEAD_URL}{lead}/"))
}

#[cfg(test)]
mod tests;
