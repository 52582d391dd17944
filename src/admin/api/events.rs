//! Events: a page of them from the newest back, one with all that is known of it, and what is tried over them before it is deployed; the
//! charts and the line of days that are made of them.

use axum::extract::State;
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::json;

use super::acting::Which;
use super::asked::{self, Asked, Body, ITEMS_MAX, Named, Way, inside, plain, refused};
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::viewer::Viewer;
use crate::control::browse::{Browse, PAGE_MAX, Work};
use crate::control::tries::{Draft, Tried, Try};
use crate::control::whole::{REVISIONS_MAX, Whole};
use crate::control::{Answer, deployed, history, picture};
use crate::event::Seq;

/// `GET /events`
pub async fn list(State(state): State<AdminState>, way: Way, mut asked: Asked) -> Result<Response, Refused> {
    let pick = asked.pick()?;
    let before = asked.read::<u64>("before", "the Seq of an event")?.map(Seq);
    let after = asked.read::<u64>("after", "the Seq of an event")?.map(Seq);
    let limit = asked.number("limit", PAGE_MAX)?;
    let sinks = asked.read::<bool>("sinks", "true or false")?.unwrap_or_default();
    let told = state.ask(Browse {
        pick,
        before,
        after,
        limit,
        sinks,
        work: Work::default(),
    });
    way.give(&state, told, |answer| inside(&answer, "page")).await
}

/// `GET /events/{id}`
pub async fn show(
    State(state): State<AdminState>,
    Named(id): Named,
    mut asked: Asked,
    _: Viewer,
) -> Result<Response, Refused> {
    let send = asked.read::<bool>("send", "true or false")?.unwrap_or_default();
    let told = state.ask(Whole { id: id.clone(), send }).texts(REVISIONS_MAX).await;
    let found = told.map_err(Refused::failing)?;
    if found.is_empty() {
        return Err(Refused::missing(format!(
            "there is no event {id} in the log: it never came, or is not kept any more"
        )));
    }
    let is_cut = found.len() == REVISIONS_MAX && revisions(found.first()) > found.len();
    Ok(asked::list_of(&found, is_cut))
}

/// How many revisions there are of what was found.
fn revisions(found: Option<&Answer>) -> usize {
    /// Each names all of them.
    #[derive(Default, Deserialize)]
    struct Of {
        revisions: Vec<Seq>,
    }
    let of = found.and_then(|found| serde_json::from_slice::<Of>(found.get().as_bytes()).ok());
    of.unwrap_or_default().revisions.len()
}

/// What is tried over which events.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToTry {
    draft: Draft,
    #[serde(default)]
    pick: Which,
    #[serde(default)]
    last: Option<u64>,
}

/// `POST /try`: it changes nothing, and is a POST for its body. A draft that is wrong is an answer, with its faults.
pub async fn try_draft(
    State(state): State<AdminState>,
    way: Way,
    Body(to_try): Body<ToTry>,
) -> Result<Response, Refused> {
    let pick = to_try.pick.pick()?;
    let told = state.ask(Try {
        draft: to_try.draft,
        pick,
        last: to_try.last,
        work: Work::default(),
    });
    if way.wants_stream() {
        return way.stream(&state, told);
    }
    let (mut faults, mut events, mut summary) = (Vec::new(), Vec::new(), None);
    let mut told = told;
    while let Some(tried) = told.next().await {
        match tried.map_err(refused)? {
            Tried::Faults(found) => faults = found,
            Tried::Event(event) => events.push(event),
            Tried::Done(done) => summary = Some(done),
        }
    }
    Ok(axum::Json(json!({ "faults": faults, "events": events, "summary": summary })).into_response())
}

/// `GET /deployed`
pub async fn deployed(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    asked::all(state.ask(deployed::Show {}), ITEMS_MAX).await
}

/// `GET /history`
pub async fn history(State(state): State<AdminState>, mut asked: Asked, _: Viewer) -> Result<Response, Refused> {
    let hours = asked.number("hours", u64::from(history::HOURS_MAX))?;
    let step_minutes = asked.number("step_minutes", u64::from(history::STEP_MAX))?;
    let told = state.ask(history::Show {
        hours: hours.map(|hours| hours as u32),
        step_minutes: step_minutes.map(|minutes| minutes as u32),
    });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// `GET /close/completeness`
pub async fn completeness(State(state): State<AdminState>, mut asked: Asked, _: Viewer) -> Result<Response, Refused> {
    let days = asked.number("days", u64::from(picture::DAYS_MAX))?;
    let days = days.map(|days| days as u32);
    Ok(plain(
        &state.ask(picture::Draw { days }).last_text().await.map_err(refused)?,
    ))
}
