//! What the server says (RabbitMQ's documentation, "Channels", "Access Control", "Alarms"), and what that means.
//!
//! | it says | means |
//! |---|---|
//! | a confirmation, without having sent the message back | delivered |
//! | the message comes back (`mandatory`), of a routing key that the event has chosen | the message is refused, the others go on |
//! | the message comes back, of a constant routing key | no queue is bound: nothing is counted |
//! | `basic.nack` | a queue is full or broken: nothing is counted |
//! | the channel is closed over a message (406; 403 about the topic that the event has chosen) | it is found out over which one, and that is refused |
//! | the channel is closed otherwise (404, 403), the connection is closed, blocked, silent or gone | nothing is counted |

use super::session::{Closed, End};
use crate::plain;
use crate::sinks::common::secrets::Secrets;
use crate::sinks::{Reason, Unavailable};

/// So much of what it says goes into a sentence.
const SAID_LEN_MAX: usize = 200;

const ACCESS_REFUSED: u16 = 403;
const NOT_FOUND: u16 = 404;
const PRECONDITION_FAILED: u16 = 406;
const CONNECTION_FORCED: u16 = 320;
const NOT_ALLOWED: u16 = 530;

/// What sentences are about.
pub(super) struct Place {
    pub(super) exchange: String,
    pub(super) vhost: String,
    pub(super) secrets: Secrets,
}

/// Over what a channel was closed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Over {
    /// A message: just the one that was on its way.
    Message(Reason),
    /// A message, one of several.
    OneOf(Unavailable),
    /// All of them.
    Everything(Unavailable),
}

impl Place {
    /// What the server said, as the end of a sentence.
    fn said(&self, closed: &Closed) -> String {
        let said = self.secrets.hidden_in(&closed.text);
        let said: String = plain::line(said.trim()).chars().take(SAID_LEN_MAX).collect();
        format!(", it said {} \"{said}\"", closed.code)
    }

    /// `exchange "x" in vhost "/"`
    fn exchange(&self) -> String {
        if self.exchange.is_empty() {
            format!("the default exchange in vhost \"{}\"", self.vhost)
        } else {
            format!("exchange \"{}\" in vhost \"{}\"", self.exchange, self.vhost)
        }
    }

    /// Over what the channel was closed. `varies`: the events choose their routing keys; `alone`: there was one message on its way.
    pub(super) fn over(&self, closed: &Closed, varies: bool, alone: bool) -> Over {
        let is_topic = closed.code == ACCESS_REFUSED && varies && closed.text.contains("access to topic");
        let is_about_a_message = closed.by_publish && (closed.code == PRECONDITION_FAILED || is_topic);
        if !is_about_a_message {
            return Over::Everything(self.channel_closed(closed));
        }
        if !alone {
            return Over::OneOf(Unavailable::new(format!(
                "the server closed the channel over one of several messages{}: it is found out which one",
                self.said(closed)
            )));
        }
        // What it says may quote the event.
        let text = if is_topic {
            "the user may not write to this routing key: see the server's topic permissions"
        } else if closed.text.contains("size") {
            "the message is larger than the server takes: see its max_message_size"
        } else {
            "the server does not take the message"
        };
        Over::Message(Reason {
            text: format!("{text} ({})", closed.code),
            answer: Some(self.secrets.hidden_in(&plain::line(&closed.text))).filter(|said| !said.is_empty()),
        })
    }

    fn channel_closed(&self, closed: &Closed) -> Unavailable {
        let (said, exchange) = (self.said(closed), self.exchange());
        let is_internal = closed.text.contains("internal exchange");
        Unavailable::new(match closed.code {
            NOT_FOUND if closed.text.contains("no queue") => {
                format!("there is no such queue{said}: declare it, or see routing_key")
            }
            NOT_FOUND => format!("there is no {exchange}{said}: declare it, or see exchange"),
            ACCESS_REFUSED if is_internal => format!("nobody may publish to {exchange}{said}: see exchange"),
            ACCESS_REFUSED => format!(
                "the user may not write to {exchange}{said}: give the right with rabbitmqctl set_permissions -p \
                 VHOST USER \"\" \"^EXCHANGE$\" \"\""
            ),
            _ => format!("the server closed the channel{said}"),
        })
    }

    fn connection_closed(&self, closed: &Closed) -> Unavailable {
        let said = self.said(closed);
        let vhost = &self.vhost;
        Unavailable::new(match closed.code {
            ACCESS_REFUSED => format!(
                "the server lets nobody in with this user and password{said}: see username and password, or those in url"
            ),
            NOT_ALLOWED if closed.text.contains("not found") => format!(
                "there is no vhost \"{vhost}\"{said}: create it with rabbitmqctl add_vhost, or see the path of url"
            ),
            NOT_ALLOWED if closed.text.contains("access to vhost") => format!(
                "the user may not enter vhost \"{vhost}\"{said}: give the right with rabbitmqctl set_permissions -p VHOST \
                 USER \"\" \"^EXCHANGE$\" \"\""
            ),
            NOT_ALLOWED => {
                format!("the server does not let the connection be{said}: is a limit of connections reached?")
            }
            CONNECTION_FORCED => format!("the server is stopping, or somebody has closed the connection there{said}"),
            _ => format!("the server closed the connection{said}"),
        })
    }

    /// Why nothing can be published now.
    pub(super) fn unavailable(&self, end: &End) -> Unavailable {
        match end {
            End::Late => Unavailable::new("the server did not answer in time: is it overloaded, or is its disk?"),
            End::Blocked(reason) => blocked(reason),
            End::Channel(closed) => self.channel_closed(closed),
            End::Connection(closed) => self.connection_closed(closed),
            End::Lost(why) => Unavailable::new(self.secrets.hidden_in(why)),
        }
    }

    /// Messages came back although the routing key is always the same.
    pub(super) fn unroutable(&self, routing_key: &str) -> Unavailable {
        let key: String = plain::line(routing_key).chars().take(SAID_LEN_MAX).collect();
        Unavailable::new(if self.exchange.is_empty() {
            format!(
                "there is no queue \"{key}\" in vhost \"{}\", and messages came back: declare it, or see routing_key and exchange",
                self.vhost
            )
        } else {
            format!(
                "no queue is bound to {} for routing_key \"{key}\", and messages came back: bind one, or see routing_key",
                self.exchange()
            )
        })
    }

    /// The same where the event has chosen the routing key.
    pub(super) fn unroutable_for_event(&self) -> Reason {
        Reason::from(format!(
            "no queue takes messages with its routing key from {}: bind one",
            self.exchange()
        ))
    }

    /// The server did not take a message that it may take later.
    pub(super) fn full(&self) -> Unavailable {
        Unavailable::new(format!(
            "the server did not take messages (basic.nack): a queue behind {} is full (overflow reject-publish), or broken: read \
             from it, raise its limit, or see the server's log",
            self.exchange()
        ))
    }
}

/// The server has raised an alarm.
pub(super) fn blocked(reason: &str) -> Unavailable {
    let reason: String = plain::line(reason.trim()).chars().take(SAID_LEN_MAX).collect();
    Unavailable::new(format!(
        "the server takes nothing from anybody who publishes, it said \"{reason}\": see rabbitmqctl status for its alarms, and \
         free memory or disk there, or read from its queues"
    ))
}
