//! What the handlers of the admin listener share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::acts::Acts;
use super::auth::Auth;
use super::places::{Streaming, Streams};
use super::refused::Refused;
use super::viewer::{Actor, Viewer};
use crate::control::{Ask, Order, Question, Told, Window};
use crate::event::Seq;

/// The daemon as a handler sees it: it can ask ([`AdminState::ask`]), and with an [`Actor`] order ([`AdminState::order`]). It is cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct AdminState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    window: Window,
    auth: Arc<Auth>,
    acts: Acts,
    streams: Streams,
    stop: CancellationToken,
}

impl AdminState {
    /// On this daemon; what streams ends at `stop`.
    pub fn new(window: Window, auth: Arc<Auth>, stop: CancellationToken) -> AdminState {
        AdminState(Arc::new(Inner {
            window,
            auth,
            acts: Acts::default(),
            streams: Streams::default(),
            stop,
        }))
    }

    /// Asks what changes nothing.
    pub fn ask<Q: Question + Into<Ask>>(&self, question: Q) -> Told<Q::Answer> {
        self.0.window.ask(question)
    }

    /// Asks for what is to come, until the answers are dropped. Take a place for it ([`AdminState::stream`]).
    pub fn follow<Q: Question + Into<Ask>>(&self, question: Q) -> Told<Q::Answer> {
        self.0.window.follow(question)
    }

    /// Orders something in somebody's name. It is logged and kept for [`AdminState::acts`], and carried out to its end whoever goes
    /// meanwhile.
    pub fn order<Q>(&self, by: &Actor, order: Q) -> Told<Q::Answer>
    where
        Q: Question + Into<Order> + Clone,
    {
        let (said, state): (Order, AdminState) = (order.clone().into(), self.clone());
        let number = self.0.acts.begin(&by.viewer().name, &said);
        let told = self.0.window.order(order);
        told.and_then(move |went| {
            let failed = match went {
                Ok(last) => last.and_then(|last| said.failed(last)),
                Err(refusal) => Some(refusal.to_owned()),
            };
            state.acts().end(number, failed.as_deref());
        })
    }

    /// The newest event's place in the log.
    pub fn newest(&self) -> Seq {
        self.0.window.newest()
    }

    /// The oldest event's place in the log; one past the newest while it keeps none.
    pub fn oldest(&self) -> Seq {
        self.0.window.oldest()
    }

    /// The newest event's place, as it moves.
    pub fn head(&self) -> tokio::sync::watch::Receiver<Seq> {
        self.0.window.head()
    }

    /// A place for something that streams to a viewer until it is dropped.
    pub fn stream(&self, viewer: &Viewer) -> Result<Streaming, Refused> {
        self.0.streams.begin(&viewer.name)
    }

    /// What was done lately.
    pub fn acts(&self) -> &Acts {
        &self.0.acts
    }

    /// Who signs in.
    pub fn auth(&self) -> &Auth {
        &self.0.auth
    }

    /// Cancelled when the listener stops.
    pub fn stop(&self) -> &CancellationToken {
        &self.0.stop
    }
}
