//! What another node does is passed on to it, as it was asked here; and what others pass on is done here.
//!
//! Whose something is, its lease says. An order goes to whoever has that, through what the nodes share, and its answers come back the same
//! way. What was passed on once is done or refused, and not passed on again.
//!
//! Only what is meant for another node is taken from one: nothing that hands out what is secret, and nothing that takes events in.

use std::sync::{Arc, Weak};
use std::time::Duration;

use futures::FutureExt;
use serde_json::value::RawValue;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use super::answers::{Answers, Out, Refusal, text};
use super::{Deed, Facade, Order, Question, Request};
use crate::deliver::Referral;
use crate::node::{self, Leases, NodeState};
use crate::task;

/// Close's side may have to ask Close several times.
const CLOSE_WITHIN: Duration = Duration::from_secs(150);

/// A sink, and what a node has in memory.
const WITHIN: Duration = Duration::from_secs(40);

const REQUEST: &str = "request";

/// Answers of one order at the most.
const ANSWERS_MAX: usize = 64;

/// Whether it is for other nodes to ask.
fn may_be_passed(request: &Request) -> bool {
    match request {
        Request::Ask(_) => false,
        Request::Order(order) => matches!(
            order,
            Order::Pause(_)
                | Order::DeadRetry(_)
                | Order::DeadDrop(_)
                | Order::Backfill(_)
                | Order::BackfillSet(_)
                | Order::SubscriptionResume(_)
        ),
        Request::Deed(deed) => matches!(
            deed,
            Deed::EraseHere(_)
                | Deed::SubscriptionCreate(_)
                | Deed::SubscriptionPause(_)
                | Deed::SubscriptionDelete(_)
                | Deed::SubscriptionApply(_)
        ),
    }
}

impl Facade {
    /// Has the node that looks after Close's side do it; gives it back where that is this one.
    pub(super) async fn pass_to_close<Q>(&self, question: Q, out: &Out<'_, Q::Answer>) -> Result<Option<Q>, Refusal>
    where
        Q: Question + Clone + Sync,
    {
        let passed = self.pass(node::CLOSE, question, CLOSE_WITHIN, out).await?;
        // What is asked here next builds on it; it is done, whether or not that can be seen here at once.
        if passed.is_none()
            && let Err(error) = self.account.catch_up().await
        {
            tracing::warn!(%error, "what another node has just changed can't be taken over now; this is tried again");
        }
        Ok(passed)
    }

    /// Has the node that drives a sink do it; gives it back where that is this one.
    pub(super) async fn pass_to_sink<Q>(
        &self,
        sink: &str,
        question: Q,
        out: &Out<'_, Q::Answer>,
    ) -> Result<Option<Q>, Refusal>
    where
        Q: Question + Clone + Sync,
    {
        self.pass(&node::of_sink(sink), question, WITHIN, out).await
    }

    async fn pass<Q>(
        &self,
        what: &str,
        question: Q,
        within: Duration,
        out: &Out<'_, Q::Answer>,
    ) -> Result<Option<Q>, Refusal>
    where
        Q: Question + Clone + Sync,
    {
        let Some(others) = self.others.as_ref().filter(|others| others.lease(what).is_none()) else {
            return Ok(Some(question));
        };
        for answer in ask(&**others, what, question.into(), within).await? {
            out.repeat(RawValue::from_string(answer).map_err(text)?).await?;
        }
        Ok(None)
    }

    /// Asks every other node that lives, all at once; what each says, or why it does not, by its name.
    pub(super) async fn ask_all<Q>(&self, question: &Q) -> Vec<(String, Result<Q::Answer, Refusal>)>
    where
        Q: Question + Clone + Sync,
    {
        let Some(others) = &self.others else { return Vec::new() };
        let alive = others.nodes().into_iter().filter(|node| node.state == NodeState::Alive);
        let own = self.facts.node.as_deref();
        let names: Vec<String> = alive
            .map(|node| node.name)
            .filter(|name| Some(name.as_str()) != own)
            .collect();
        let asked = names.into_iter().map(async |name| {
            let said = ask(&**others, &node::of_node(&name), question.clone().into(), WITHIN).await;
            // Where no node runs nobody has said that this one is dead. It has nothing in memory then.
            if said.is_err() && !self.facts.running && others.has_gone(&name).await {
                return None;
            }
            let read = said.and_then(|said| {
                let last = said.last().ok_or("it has no answer")?;
                serde_json::from_slice(last.as_bytes()).map_err(text)
            });
            Some((name, read))
        });
        futures::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// Does what another node asks for.
    async fn obey(self: Arc<Facade>, what: String, request: Value) -> Result<Value, Refusal> {
        let request = Request::read(&request.to_string())
            .map_err(|_| "this node knows no such order: is its closehook older?")?;
        if !may_be_passed(&request) {
            return Err("that is for no other node to ask".into());
        }
        let is_own = self.others.as_ref().is_some_and(|others| others.lease(&what).is_some());
        if !is_own
            && what
                .strip_prefix("node/")
                .is_none_or(|name| Some(name) != self.facts.node.as_deref())
        {
            return Err("another node has just taken it over: try again".into());
        }
        // What was passed on once is not passed on again.
        let here = Facade {
            others: None,
            ..Facade::clone(&self)
        };
        let (sender, mut coming) = mpsc::channel(ANSWERS_MAX);
        let answering = task::begin(async move { here.answer(request, &Answers::new(sender)).await });
        let mut said = Vec::new();
        while let Some(answer) = coming.recv().await {
            if said.len() == ANSWERS_MAX {
                // Those before say how it got on.
                said.remove(0);
            }
            said.push(Value::from(answer.get()));
        }
        answering.await.map_err(text)??;
        Ok(said.into())
    }

    /// Who answers what other nodes ask: this one, as long as it is there.
    pub fn referral(self: &Arc<Facade>) -> Referral {
        let facade: Weak<Facade> = Arc::downgrade(self);
        Referral::new(move |order| {
            let request = order.order.get(REQUEST)?.clone();
            let (facade, what) = (facade.upgrade(), order.what.clone());
            let answering = async move {
                match facade {
                    Some(facade) => facade.obey(what, request).await,
                    None => Err("this node is stopping".to_owned()),
                }
            };
            Some(answering.boxed())
        })
    }
}

async fn ask(others: &dyn Leases, what: &str, request: Request, within: Duration) -> Result<Vec<String>, Refusal> {
    let request = serde_json::to_value(&request).map_err(text)?;
    let said = others.ask(what, json!({ REQUEST: request }), within).await?;
    serde_json::from_value(said).map_err(text)
}
