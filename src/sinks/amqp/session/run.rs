//! What becomes of messages that are published together.

use super::Fate;
use crate::sinks::amqp::message::Message;

/// Messages on their way.
pub(super) struct Run<'m> {
    pub messages: &'m [Message],
    /// The number of the first one on the channel.
    pub first: u64,
    /// Those that were put into the wire.
    pub sent: usize,
    /// Those that came back.
    pub returned: Vec<bool>,
    /// The first one that may come back next: they do so in their order.
    pub may_return: usize,
    pub fates: Vec<Option<Fate>>,
    /// All before it have their fate.
    pub settled: usize,
}

impl<'m> Run<'m> {
    pub fn new(messages: &'m [Message]) -> Run<'m> {
        Run {
            messages,
            first: 1,
            sent: 0,
            returned: vec![false; messages.len()],
            may_return: 0,
            fates: vec![None; messages.len()],
            settled: 0,
        }
    }

    /// The server sent a message back, before it confirms it. What an earlier run has left on its way may come back, too.
    pub fn came_back(&mut self, id: Option<&str>) {
        let is_it = |message: &Message| Some(message.id.as_str()) == id;
        let sent = &self.messages[..self.sent];
        let found = sent.iter().skip(self.may_return).position(is_it);
        if let Some(found) = found {
            self.returned[self.may_return + found] = true;
            self.may_return += found + 1;
        }
    }

    /// The server has spoken about a message, or about all up to it (0: all).
    pub fn settle(&mut self, tag: u64, multiple: bool, is_refused: bool) {
        let end = match tag {
            0 => self.sent,
            // Of an earlier run.
            tag if tag < self.first => return,
            tag => ((tag - self.first) as usize + 1).min(self.sent),
        };
        let begin = if multiple { self.settled } else { end.saturating_sub(1) };
        for at in begin..end {
            let fate = match (is_refused, self.returned[at]) {
                (true, _) => Fate::Refused,
                (false, true) => Fate::Returned,
                (false, false) => Fate::Taken,
            };
            self.fates[at].get_or_insert(fate);
        }
        while self.fates.get(self.settled).is_some_and(Option::is_some) {
            self.settled += 1;
        }
    }
}
