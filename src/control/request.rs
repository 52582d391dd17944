//! Everything that can be asked, and who may ask it: one table of each kind, with the type of the answers.
//!
//! [`Ask`] changes nothing. [`Order`] changes what somebody who may act on a page may change: deliveries, and what is fetched.
//! [`Deed`] is for whoever has the data directory: it hands out what is secret, takes in what nobody signed, destroys, or changes
//! where Close delivers. Nothing that is reached over HTTP is ever given a [`Deed`].
//!
//! On the wire a request is one JSON object that names its kind: `{"query":"events",...}`, `{"order":"reload"}`, `{"deed":"backup"}`.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::answers::{Answer, Answers, Refusal};
use super::{
    Facade, ahead, backup, browse, close, configured, dead, deployed, erase, events, groups, history, picture, reload,
    replay, sign, sign_in, sinks, status, transfer, tries, whole,
};
use crate::close::{Applied, BackfillStatus, SubscriptionPlan};
use crate::deliver::ReplayStatus;

/// One request with the type of its answers, of which there may be several.
pub trait Question: Into<Request> + Send {
    /// What each answer is.
    type Answer: Serialize + DeserializeOwned + Send + 'static;
}

/// Whatever can be asked.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Request {
    /// Changes nothing.
    Ask(Ask),
    /// Changes deliveries, or spends Close's rate limit.
    Order(Order),
    /// Only for whoever has the data directory.
    Deed(Deed),
}

impl Request {
    /// Reads what came over a wire. An error says what is not understood.
    pub fn read(text: &str) -> Result<Request, serde_json::Error> {
        /// Which of them it is; only one is there.
        #[derive(Deserialize)]
        struct Kind<'a> {
            #[serde(borrow)]
            order: Option<std::borrow::Cow<'a, str>>,
            #[serde(borrow)]
            deed: Option<std::borrow::Cow<'a, str>>,
        }
        let kind: Kind<'_> = serde_json::from_slice(text.as_bytes())?;
        match (kind.order, kind.deed) {
            (None, None) => serde_json::from_slice(text.as_bytes()).map(Request::Ask),
            (Some(_), None) => serde_json::from_slice(text.as_bytes()).map(Request::Order),
            _ => serde_json::from_slice(text.as_bytes()).map(Request::Deed),
        }
    }
}

/// Makes the enum of a kind of request, what leads from each question to it, and the way from it to what answers.
macro_rules! requests {
    ($(#[$about:meta])* $kind:ident as $tag:literal, $answer:ident:
     $($(#[$doc:meta])* $name:ident($question:ty) -> $of:ty,)*) => {
        $(#[$about])*
        #[derive(Debug, Clone, Serialize, Deserialize)]
        #[serde(tag = $tag, rename_all = "kebab-case")]
        pub enum $kind {
            $($(#[$doc])* $name($question),)*
        }

        $(
            impl From<$question> for $kind {
                fn from(question: $question) -> $kind {
                    $kind::$name(question)
                }
            }

            impl From<$question> for Request {
                fn from(question: $question) -> Request {
                    Request::$kind($kind::$name(question))
                }
            }

            impl Question for $question {
                type Answer = $of;
            }
        )*

        impl Facade {
            /// Answers requests of this kind. An empty refusal means that whoever asked has gone.
            pub async fn $answer(&self, request: $kind, out: &Answers) -> Result<(), Refusal> {
                if let Some(why) = self.log.absent().filter(|_| !$kind::does_without_log(&request)) {
                    return Err(why);
                }
                match request {
                    $($kind::$name(question) => question.answer(self, out.of::<$of>()).await,)*
                }
            }
        }
    };
}

requests! {
    /// Questions that change nothing: they write nothing here, not even whose Close's credentials prove to be (only a token that Close
    /// renews is kept, or it would be lost), and hold no more in memory than a batch of events, however much is asked for. Where no
    /// daemon runs, the command that has begun a replay or a backfill carries it out while it watches; nobody else can ask it then.
    ///
    /// Those that ask Close (its subscriptions, one of them, the plan) make a request or two each, which its rate limit is there for.
    /// What a backfill would store takes hundreds of them, of those with which the daemon compares and fetches: that is an [`Order`].
    Ask as "query", ask:
    /// Is it well, and what to do.
    Status(status::Show) -> status::Status,
    /// How each sink does.
    Sinks(sinks::List) -> sinks::Shown,
    /// Events, a line each.
    Events(events::List) -> events::Listed,
    /// Events from the newest back, a page at a time.
    Browse(browse::Browse) -> browse::Browsed,
    /// Events from a place on, a piece at a time.
    Ahead(ahead::Ahead) -> ahead::Found,
    /// Events, whole.
    Export(transfer::Export) -> transfer::Line,
    /// One event and what became of it.
    Event(events::Show) -> events::Shown,
    /// One event with all that is known of it: why it goes where, and what each sink would be sent now.
    Whole(whole::Whole) -> whole::Found,
    /// What a filter, rule, template or transform that is not deployed makes of stored events.
    Try(tries::Try) -> tries::Tried,
    /// The filters, templates and transforms in force.
    Deployed(deployed::Show) -> deployed::Deployed,
    /// The last 24 hours, for charts.
    History(history::Show) -> history::Charts,
    /// How complete the log is, as a line of days.
    Picture(picture::Draw) -> picture::Picture,
    /// Whether what is stored is what was signed.
    Verify(events::Verify) -> events::Checked,
    /// What a replay would send where.
    ReplayPlan(replay::Plan) -> replay::Planned,
    /// How a replay gets on, until it is over.
    ReplayWatch(replay::Watch) -> ReplayStatus,
    /// The replays of the last days.
    Replays(replay::List) -> ReplayStatus,
    /// Dead letters.
    DeadList(dead::List) -> crate::deliver::DeadLetter,
    /// Dead letters by what is wrong.
    DeadGroups(groups::Groups) -> groups::Group,
    /// How many dead letters are meant.
    DeadCount(groups::Count) -> groups::Counted,
    /// Removed sinks that may have some.
    DeadRemoved(dead::Removed) -> dead::OfRemoved,
    /// One with its event.
    DeadShow(dead::Show) -> dead::Shown,
    /// The configuration in force, without its secrets.
    Configured(configured::Show) -> configured::Shown,
    /// What Close has.
    Subscriptions(close::Subscriptions) -> close::Listed,
    /// One of these, as Close shows it.
    Subscription(close::Subscription) -> Box<serde_json::value::RawValue>,
    /// What `apply` would change.
    SubscriptionPlan(close::Plan) -> SubscriptionPlan,
    /// How the newest backfill gets on, until it stops.
    BackfillWatch(close::Watch) -> BackfillStatus,
}

requests! {
    /// What a page may do for somebody who may act: what changes something, and what spends something.
    Order as "order", order:
    /// Stop a sink's deliveries, or let them go on.
    Pause(sinks::Pause) -> super::Done,
    /// Begin a planned replay.
    ReplayStart(replay::Start) -> replay::Begun,
    /// Interrupt a replay, or go on with it.
    ReplaySet(replay::Set) -> super::Done,
    /// Deliver dead letters again.
    DeadRetry(dead::Retry) -> dead::Retried,
    /// Remove dead letters.
    DeadDrop(dead::Drop) -> dead::Dropped,
    /// What a backfill would store: nothing is stored, and Close's whole range is read for it.
    BackfillPlan(close::Rehearse) -> close::Rehearsal,
    /// Begin a backfill.
    Backfill(close::Begin) -> super::Done,
    /// Stop a backfill, or go on with it.
    BackfillSet(close::Set) -> super::Done,
    /// Make a paused subscription active again.
    SubscriptionResume(close::Resume) -> super::Done,
    /// Take over what the configuration says now.
    Reload(reload::Reload) -> reload::Outcome,
}

requests! {
    /// What needs the data directory itself.
    Deed as "deed", deed:
    /// Sign as Close would.
    Sign(sign::Sign) -> sign::Signed,
    /// A link to the operator's page.
    SignIn(sign_in::Link) -> sign_in::Linked,
    /// Take in events that nobody signed for us.
    Import(transfer::Import) -> transfer::Imported,
    /// Everything there is, keys included.
    Backup(backup::Backup) -> backup::Part,
    /// Erase somebody's data.
    Erase(erase::Erase) -> erase::Erased,
    /// Forget what this node holds of what was erased from the log.
    EraseHere(erase::EraseHere) -> erase::Forgotten,
    /// Forget a removed sink with its dead letters.
    Forget(sinks::Forget) -> sinks::Forgotten,
    /// Make a subscription, to wherever.
    SubscriptionCreate(close::Create) -> close::Created,
    /// Stop a subscription: Close then queues nothing.
    SubscriptionPause(close::Pause) -> super::Done,
    /// Delete a subscription.
    SubscriptionDelete(close::Delete) -> super::Done,
    /// Make Close's side what the rules want.
    SubscriptionApply(close::Apply) -> Applied,
}

impl Ask {
    /// What else would be answered without a log as well, and wrongly: nothing is known of what it keeps, nor of positions, dead letters
    /// and replays, which are kept beside it.
    fn does_without_log(ask: &Ask) -> bool {
        matches!(
            ask,
            Ask::Status(_)
                | Ask::Try(_)
                | Ask::Deployed(_)
                | Ask::History(_)
                | Ask::Configured(_)
                | Ask::Subscriptions(_)
                | Ask::Subscription(_)
                | Ask::SubscriptionPlan(_)
                | Ask::BackfillWatch(_)
        )
    }
}

impl Order {
    fn does_without_log(_: &Order) -> bool {
        false
    }

    /// What has failed of an order that was not refused, as its last answer says; `None`: nothing.
    pub fn failed(&self, last: &Answer) -> Option<String> {
        fn read<T: DeserializeOwned>(last: &Answer) -> Option<T> {
            serde_json::from_slice(last.get().as_bytes()).ok()
        }
        match self {
            Order::Reload(_) => read::<reload::Outcome>(last)?.failure(),
            Order::DeadRetry(_) => read::<dead::Retried>(last)?.failure(),
            // What is answered to these is that it is done.
            Order::Pause(_)
            | Order::ReplayStart(_)
            | Order::ReplaySet(_)
            | Order::DeadDrop(_)
            | Order::BackfillPlan(_)
            | Order::Backfill(_)
            | Order::BackfillSet(_)
            | Order::SubscriptionResume(_) => None,
        }
    }
}

impl Deed {
    fn does_without_log(deed: &Deed) -> bool {
        matches!(deed, Deed::Sign(_) | Deed::SignIn(_))
    }
}

impl Facade {
    /// Answers whatever was asked, for whoever has the data directory.
    pub async fn answer(&self, request: Request, out: &Answers) -> Result<(), Refusal> {
        match request {
            Request::Ask(ask) => self.ask(ask, out).await,
            Request::Order(order) => self.order(order, out).await,
            Request::Deed(deed) => self.deed(deed, out).await,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_answered_says_whether_the_order_has_failed() {
        let failed = |order: &str, last: &str| {
            let order: Order = serde_json::from_str(order).unwrap();
            order.failed(&serde_json::value::RawValue::from_string(last.to_owned()).unwrap())
        };
        let reload = r#"{"order":"reload"}"#;
        let faults =
            r#"{"faults":[{"place":"sinks[0].type","message":"there is no type"},{"place":"","message":"b"}]}"#;
        assert_eq!(
            failed(reload, faults).unwrap(),
            "nothing has changed: sinks[0].type: there is no type, and 1 more"
        );
        assert_eq!(failed(reload, r#"{"waits":"for a sink"}"#), None);
        let retry = r#"{"order":"dead-retry","sink":"a","pick":{}}"#;
        let retried = |failed: u64| {
            format!(
                r#"{{"total":3,"delivered":{},"failed":{failed},"reason":"404"}}"#,
                3 - failed
            )
        };
        assert_eq!(failed(retry, &retried(0)), None);
        assert_eq!(failed(retry, &retried(2)).unwrap(), "2 of 3 stay dead: 404");
    }

    /// A page is given the first two kinds only: what they are must not depend on how a request is spelt.
    #[test]
    fn a_request_is_of_the_kind_it_says_and_of_no_other() {
        for (text, kind) in [
            (r#"{"query":"status"}"#, "ask"),
            (r#"{"query":"event","id":"ev_1"}"#, "ask"),
            (r#"{"order":"reload"}"#, "order"),
            // It stores nothing, and spends what is there for storing.
            (r#"{"order":"backfill-plan","ask":{"types":[]}}"#, "order"),
            (r#"{"order":"pause","sink":"a","paused":true}"#, "order"),
            (r#"{"deed":"backup"}"#, "deed"),
            (r#"{"deed":"erase","ids":["ev_1"]}"#, "deed"),
        ] {
            let request = Request::read(text).unwrap();
            let is = match &request {
                Request::Ask(_) => "ask",
                Request::Order(_) => "order",
                Request::Deed(_) => "deed",
            };
            assert_eq!(is, kind, "{text}");
            let again = serde_json::to_string(&request).unwrap();
            assert_eq!(
                format!("{:?}", Request::read(&again).unwrap()),
                format!("{request:?}"),
                "{again}"
            );
        }
        for text in [
            r#"{"query":"backup"}"#,
            r#"{"query":"reload"}"#,
            r#"{"query":"backfill-plan","ask":{"types":[]}}"#,
            r#"{"order":"backup"}"#,
            r#"{"order":"sign","body":""}"#,
            r#"{"order":"erase","ids":["ev_1"]}"#,
            r#"{"order":"subscription-apply","rotate":true}"#,
            r#"{"deed":"status"}"#,
            r#"{"order":"reload","deed":"backup2"}"#,
            r"{}",
            "[]",
            "",
        ] {
            assert!(Request::read(text).is_err(), "{text}");
        }
        for text in [r#"{"deed":"backup"}"#, r#"{"deed":"sign","body":""}"#] {
            assert!(serde_json::from_str::<Order>(text).is_err() && serde_json::from_str::<Ask>(text).is_err());
        }
    }
}
