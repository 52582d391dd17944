//! How a page acts: in the name of whoever looks, and as a page where it can't be done.

use super::view::{Failed, View};
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::viewer::Actor;
use crate::control::{Order, Question, Refusal};

/// Whoever sent the form, or why they may not act.
pub type May = Result<Actor, Refused>;

/// Somebody who may act, or the page that says why not.
pub fn actor(view: &View, may: May) -> Result<Actor, Failed> {
    may.map_err(|refused| view.failed(refused.status, refused.message))
}

/// Orders something and waits for its end: what takes long is a job ([`super::jobs`]).
pub async fn order<Q>(view: &View, may: May, order: Q) -> Result<Q::Answer, Failed>
where
    Q: Question + Into<Order> + Clone,
{
    let actor = actor(view, may)?;
    last(&view.state, &actor, order)
        .await
        .map_err(|error| view.refused(error))
}

/// Orders something, and gives the last answer.
pub async fn last<Q>(state: &AdminState, actor: &Actor, order: Q) -> Result<Q::Answer, Refusal>
where
    Q: Question + Into<Order> + Clone,
{
    state.order(actor, order).last().await
}

/// The same, with each answer shown as it comes: they say how it gets on.
pub async fn watched<Q>(
    state: &AdminState,
    actor: &Actor,
    order: Q,
    mut show: impl FnMut(&Q::Answer),
) -> Result<Q::Answer, Refusal>
where
    Q: Question + Into<Order> + Clone,
{
    let mut told = state.order(actor, order);
    let mut last = None;
    while let Some(answer) = told.next().await {
        let answer = answer?;
        show(&answer);
        last = Some(answer);
    }
    last.ok_or_else(|| "the daemon has no answer to this".to_owned())
}
