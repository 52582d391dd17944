//! What the handlers of the admin listener share.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::acts::Acts;
use super::auth::{Actor, Auth};
use crate::control::{Answer, Ask, Order, Question, Refusal, Told, Window};

/// The daemon as a handler sees it: it can ask ([`AdminState::ask`]), and with an [`Actor`] order ([`AdminState::order`]). It is cheap to
/// clone.
#[derive(Debug, Clone)]
pub struct AdminState(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    window: Window,
    auth: Arc<Auth>,
    acts: Acts,
    stop: CancellationToken,
}

impl AdminState {
    /// On this daemon; what streams ends at `stop`.
    pub fn new(window: Window, auth: Arc<Auth>, stop: CancellationToken) -> AdminState {
        AdminState(Arc::new(Inner {
            window,
            auth,
            acts: Acts::default(),
            stop,
        }))
    }

    /// Asks what changes nothing.
    pub fn ask<Q: Question + Into<Ask>>(&self, question: Q) -> Told<Q::Answer> {
        self.0.window.ask(question)
    }

    /// Orders something in somebody's name and gives the last answer. It is logged and kept for [`AdminState::acts`], and carried out to
    /// its end whoever goes meanwhile.
    pub async fn order<Q>(&self, by: &Actor, order: Q) -> Result<Answer, Refusal>
    where
        Q: Question + Into<Order> + Clone,
    {
        let (said, state) = (order.clone().into(), self.clone());
        let number = self.0.acts.begin(&by.viewer().name, &said);
        let told = self.0.window.order(order);
        let carried_out = tokio::spawn(async move {
            let last = told.last_text().await;
            state.acts().end(number, last.as_ref().err().map(String::as_str));
            last
        });
        carried_out.await.unwrap_or_else(|error| Err(error.to_string()))
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
