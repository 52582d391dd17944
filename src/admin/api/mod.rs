//! `/api/v1`: what the page and programs ask and order, with the answers that commands get over the socket.
//!
//! [`ROUTES`] is the one definition: the router is made of it, and so is the OpenAPI document ([`openapi`]), so that no route is without
//! a description and none is described that is not there.

mod acting;
pub mod asked;
mod declared;
mod events;
mod looking;
pub mod openapi;
mod schemas;
mod tail;

use axum::Router;
use axum::extract::Request;
use axum::middleware::{Next, from_fn};
use axum::routing::{MethodRouter, get, post};

use super::state::AdminState;

/// The way in which a route is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Changes nothing.
    Get,
    /// Changes something, or says more than fits a query.
    Post,
}

/// Who may ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Who {
    /// Whoever has signed in.
    Looks,
    /// Who may act.
    Acts,
}

/// What is answered.
#[derive(Debug, Clone, Copy)]
pub enum Says {
    /// One thing of this schema.
    One(&'static str),
    /// A list of them (`items`), and whether there is more of it (`is_cut`).
    Items(&'static str),
    /// Server-sent events and nothing else.
    Events,
}

/// One route.
pub struct Route {
    /// How.
    pub verb: Verb,
    /// Where, below `/api/v1`.
    pub path: &'static str,
    /// By whom.
    pub who: Who,
    /// What it does, one sentence.
    pub about: &'static str,
    /// Whether its query says which events are meant.
    pub picks: bool,
    /// Further parameters of its query.
    pub query: &'static [Parameter],
    /// The schema of its body; empty where it has none.
    pub body: &'static str,
    /// What it answers.
    pub says: Says,
    /// It can be had as server-sent events too, with how it gets on.
    pub streams: bool,
    handler: fn() -> MethodRouter<AdminState>,
}

impl Route {
    /// Every parameter of its query.
    pub fn parameters(&self) -> impl Iterator<Item = &'static Parameter> {
        let picks = if self.picks { PICK } else { &[] };
        picks.iter().chain(self.query)
    }

    const fn new(
        verb: Verb,
        path: &'static str,
        who: Who,
        says: Says,
        about: &'static str,
        handler: fn() -> MethodRouter<AdminState>,
    ) -> Route {
        Route {
            verb,
            path,
            who,
            about,
            picks: false,
            query: &[],
            body: "",
            says,
            streams: false,
            handler,
        }
    }

    const fn query(mut self, query: &'static [Parameter]) -> Route {
        self.query = query;
        self
    }

    const fn picks(mut self) -> Route {
        self.picks = true;
        self
    }

    const fn body(mut self, schema: &'static str) -> Route {
        self.body = schema;
        self
    }

    const fn streams(mut self) -> Route {
        self.streams = true;
        self
    }
}

/// Its routes, below `/api/v1`.
pub fn router() -> Router<AdminState> {
    let add = |router: Router<AdminState>, route: &'static Route| {
        let checked = from_fn(move |request: Request, next: Next| declared::checked(route, request, next));
        router.route(route.path, (route.handler)().route_layer(checked))
    };
    ROUTES.iter().fold(Router::new(), add)
}

/// A parameter of a query: its name, its type and what it is.
type Parameter = (&'static str, &'static str, &'static str);

/// Which events are meant.
const PICK: &[Parameter] = &[
    ("id", "string[]", "Event ids"),
    (
        "type",
        "string[]",
        "Patterns of types, like lead.* or activity.note.created",
    ),
    ("lead", "string", "The id of a lead"),
    ("filter", "string", "A filter of Close's language, as JSON text"),
    (
        "since",
        "string",
        "Received at or after: RFC 3339, a date, or a span back from now like 36h",
    ),
    ("until", "string", "Received before"),
    (
        "quarantined",
        "boolean",
        "Only (true) or no (false) bodies that can't be read as an event",
    ),
    (
        "partial",
        "boolean",
        "Only (true) or no (false) events whose data Close withholds",
    ),
];

const OF_SINK: &[Parameter] = &[("sink", "string", "Only of this sink")];
const OF_GROUP: &[Parameter] = &[
    ("sink", "string", "Only of this sink"),
    ("group", "string", "Only of this group, as /dead/groups names it"),
];
const OF_DEAD: &[Parameter] = &[
    ("sink", "string", "Only of this sink"),
    ("group", "string", "Only of this group, as /dead/groups names it"),
    (
        "limit",
        "integer",
        "At most so many; 100 where it is not said, 1000 at the most",
    ),
];

use Says::{Items, One};
use Verb::{Get, Post};
use Who::{Acts, Looks};

/// Every route.
pub const ROUTES: &[Route] = &[
    Route::new(Get, "/openapi.json", Looks, One("any"), "This document", || {
        get(openapi::document)
    }),
    Route::new(Get, "/me", Looks, One("Me"), "Who looks, and what they may do", || {
        get(looking::me)
    }),
    Route::new(
        Get,
        "/status",
        Looks,
        One("Status"),
        "Is it well, and what to do",
        || get(looking::status),
    ),
    Route::new(
        Get,
        "/config",
        Looks,
        One("Config"),
        "The configuration in force, secrets masked",
        || get(looking::config),
    ),
    Route::new(
        Get,
        "/acts",
        Looks,
        Items("Act"),
        "What was done here, the newest first",
        || get(looking::acts),
    ),
    Route::new(
        Post,
        "/reload",
        Acts,
        One("Reloaded"),
        "Take over what the configuration says now; 422 with every fault where it is bad",
        || post(looking::reload),
    )
    .streams(),
    Route::new(
        Get,
        "/events",
        Looks,
        One("EventsPage"),
        "Events from the newest back, a page at a time",
        || get(events::list),
    )
    .picks()
    .query(&[
        (
            "before",
            "integer",
            "Only those before this Seq: the `next` of the page before",
        ),
        ("after", "integer", "Only those behind this Seq"),
        (
            "sinks",
            "boolean",
            "Also what became of each at each sink that it was meant for",
        ),
        (
            "limit",
            "integer",
            "At most so many; 50 where it is not said, 500 at the most",
        ),
    ])
    .streams(),
    Route::new(
        Get,
        "/events/{id}",
        Looks,
        Items("EventFound"),
        "An event by its id (every revision, the newest first) or its Seq",
        || get(events::show),
    )
    .query(&[("send", "boolean", "Also what each sink would be sent now")]),
    Route::new(
        Post,
        "/try",
        Looks,
        One("Tried"),
        "What a filter, rule, template or transform that is not deployed makes of stored events",
        || post(events::try_draft),
    )
    .body("ToTry")
    .streams(),
    Route::new(
        Get,
        "/deployed",
        Looks,
        Items("Deployed"),
        "The filters, templates and transforms in force, to begin a try with",
        || get(events::deployed),
    ),
    Route::new(
        Get,
        "/history",
        Looks,
        One("Charts"),
        "The last 24 hours, for charts",
        || get(events::history),
    )
    .query(&[
        ("hours", "integer", "Back from now; 24 at the most"),
        ("step_minutes", "integer", "Minutes in one point"),
    ]),
    Route::new(
        Get,
        "/close/completeness",
        Looks,
        One("Picture"),
        "How complete the log is, as a line of days",
        || get(events::completeness),
    )
    .query(&[("days", "integer", "Back from now; 30 at the most")]),
    Route::new(
        Get,
        "/tail",
        Looks,
        Says::Events,
        "Events as they come: `begin`, `event`, `skipped` for what was left out because it came too fast or the log does not keep it any more, and `looked` for how far it was looked \
         where nothing was meant",
        || get(tail::tail),
    )
    .picks()
    .query(&[(
        "after",
        "integer",
        "Begin behind this Seq; without it, with what comes next",
    )]),
    Route::new(Get, "/sinks", Looks, Items("Sink"), "How each sink does", || {
        get(acting::list_sinks)
    }),
    Route::new(Get, "/sinks/{name}", Looks, One("Sink"), "How one sink does", || {
        get(acting::sink)
    }),
    Route::new(
        Post,
        "/sinks/{name}/pause",
        Acts,
        One("Done"),
        "Stop a sink's deliveries",
        || post(acting::pause),
    ),
    Route::new(
        Post,
        "/sinks/{name}/resume",
        Acts,
        One("Done"),
        "Let a sink's deliveries go on",
        || post(acting::resume),
    ),
    Route::new(Get, "/dead", Looks, Items("DeadLetter"), "Dead letters", || {
        get(acting::list_dead)
    })
    .picks()
    .query(OF_DEAD),
    Route::new(
        Get,
        "/dead/groups",
        Looks,
        Items("DeadGroup"),
        "Dead letters by what is wrong, the largest group first",
        || get(acting::groups),
    )
    .picks()
    .query(OF_SINK),
    Route::new(
        Get,
        "/dead/count",
        Looks,
        One("DeadCount"),
        "How many dead letters are meant",
        || get(acting::count_dead),
    )
    .picks()
    .query(OF_GROUP),
    Route::new(
        Get,
        "/dead/{id}",
        Looks,
        Items("DeadWithEvent"),
        "The dead letters of an event (its id or Seq), with it",
        || get(acting::dead),
    )
    .query(OF_SINK),
    Route::new(
        Post,
        "/dead/retry",
        Acts,
        One("Retried"),
        "Deliver dead letters again; who is delivered is one no more",
        || post(acting::retry),
    )
    .body("Letters")
    .streams(),
    Route::new(
        Post,
        "/dead/drop",
        Acts,
        One("Dropped"),
        "Remove dead letters for good",
        || post(acting::drop_dead),
    )
    .body("Letters"),
    Route::new(
        Post,
        "/replays/plan",
        Looks,
        One("ReplayPlan"),
        "How many events a replay would send where; nothing is sent",
        || post(acting::plan_replay),
    )
    .body("ReplayToPlan")
    .streams(),
    Route::new(
        Post,
        "/replays",
        Acts,
        One("ReplayId"),
        "Begin a replay as it was planned",
        || post(acting::start_replay),
    )
    .body("ReplayPlan"),
    Route::new(
        Get,
        "/replays",
        Looks,
        Items("Replay"),
        "The replays of the last 7 days, and older ones that are not over, oldest first",
        || get(acting::list_replays),
    ),
    Route::new(
        Get,
        "/replays/{id}",
        Looks,
        One("Replay"),
        "How a replay gets on",
        || get(acting::show_replay),
    )
    .streams(),
    Route::new(
        Post,
        "/replays/{id}/stop",
        Acts,
        One("Done"),
        "Interrupt a replay",
        || post(acting::stop_replay),
    ),
    Route::new(
        Post,
        "/replays/{id}/resume",
        Acts,
        One("Done"),
        "Go on with a replay",
        || post(acting::resume_replay),
    ),
    Route::new(
        Get,
        "/close/subscriptions",
        Looks,
        Items("Subscription"),
        "The subscriptions that Close has",
        || get(looking::subscriptions),
    ),
    Route::new(
        Get,
        "/close/subscriptions/{id}",
        Looks,
        One("any"),
        "One subscription, as Close shows it",
        || get(looking::subscription),
    ),
    Route::new(
        Post,
        "/close/subscriptions/{id}/resume",
        Acts,
        One("Done"),
        "Make a paused subscription active again",
        || post(looking::resume_subscription),
    ),
    Route::new(
        Get,
        "/close/plan",
        Looks,
        One("SubscriptionPlan"),
        "What `closehook subscription apply` would change",
        || get(looking::plan),
    ),
    Route::new(
        Post,
        "/close/backfill/plan",
        Acts,
        One("BackfillPlan"),
        "What a backfill would store: all of the range is read at Close, nothing is stored",
        || post(looking::plan_backfill),
    )
    .body("BackfillWanted")
    .streams(),
    Route::new(
        Get,
        "/close/backfill",
        Looks,
        One("Backfill"),
        "How the newest backfill gets on, or what came of it; 404 where there is none",
        || get(looking::show_backfill),
    ),
    Route::new(Post, "/close/backfill", Acts, One("Done"), "Begin a backfill", || {
        post(looking::backfill)
    })
    .body("BackfillWanted"),
    Route::new(
        Post,
        "/close/backfill/stop",
        Acts,
        One("Done"),
        "Stop the newest backfill",
        || post(looking::stop_backfill),
    ),
    Route::new(
        Post,
        "/close/backfill/resume",
        Acts,
        One("Done"),
        "Go on with the newest backfill",
        || post(looking::resume_backfill),
    ),
];
