//! Status, configuration, Close's side, and who did what.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;

use super::asked::{self, Body, ITEMS_MAX, Named, Way, inside, plain, refused};
use crate::admin::acts::Act;
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::viewer::{Actor, May, Viewer};
use crate::close;
use crate::config::{Fault, time};
use crate::control::close::{Begin, Plan, Rehearse, Resume, Set, Subscription, Subscriptions};
use crate::control::reload::{Outcome, Reload};
use crate::control::{Pick, configured, status};

/// Who looks.
#[derive(Debug, Serialize)]
pub struct Me {
    name: String,
    may: May,
}

/// `GET /me`
pub async fn me(viewer: Viewer) -> Json<Me> {
    Json(Me {
        name: viewer.name,
        may: viewer.may,
    })
}

/// `GET /status`
pub async fn status(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    Ok(plain(&state.ask(status::Show {}).last_text().await.map_err(refused)?))
}

/// `GET /config`
pub async fn config(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    Ok(plain(
        &state.ask(configured::Show {}).last_text().await.map_err(refused)?,
    ))
}

/// What was done.
#[derive(Debug, Serialize)]
pub struct Acts {
    items: Vec<Act>,
    is_cut: bool,
}

/// `GET /acts`
pub async fn acts(State(state): State<AdminState>, _: Viewer) -> Result<Json<Acts>, Refused> {
    let items = state.acts().last();
    let is_cut = items.last().is_some_and(|act| act.number > 1);
    Ok(Json(Acts { items, is_cut }))
}

/// `POST /reload`. That the configuration is bad, and changes nothing, is 422 with every fault.
pub async fn reload(State(state): State<AdminState>, way: Way, actor: Actor) -> Result<Response, Refused> {
    let told = state.order(&actor, Reload {});
    way.give(&state, told, |answer| {
        if let Ok(Outcome::Faults(faults)) = serde_json::from_slice(answer.get().as_bytes()) {
            return Ok(bad(&faults));
        }
        inside(&answer, "reloaded")
    })
    .await
}

fn bad(faults: &[Fault]) -> Response {
    let first = faults.first().cloned().unwrap_or(Fault {
        place: String::new(),
        message: "the configuration is bad".to_owned(),
    });
    (
        StatusCode::UNPROCESSABLE_ENTITY,
        Json(json!({ "error": first, "faults": faults })),
    )
        .into_response()
}

/// Close has not answered, or has refused.
fn by_close(refusal: String) -> Refused {
    Refused::new(StatusCode::BAD_GATEWAY, refusal)
}

/// What can't be asked of Close without credentials.
async fn has_credentials(state: &AdminState) -> Result<status::Status, Refused> {
    let status = state.ask(status::Show {}).last().await.map_err(refused)?;
    if status.close.configured {
        return Ok(status);
    }
    Err(refused(
        "there are no credentials for Close's API: set api_key_file in [close], then reload".to_owned(),
    ))
}

/// `GET /close/subscriptions`
pub async fn subscriptions(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    has_credentials(&state).await?;
    let told = state.ask(Subscriptions { masks: true }).texts(ITEMS_MAX + 1).await;
    Ok(asked::list(told.map_err(by_close)?, ITEMS_MAX))
}

/// `GET /close/subscriptions/{id}`
pub async fn subscription(State(state): State<AdminState>, Named(id): Named, _: Viewer) -> Result<Response, Refused> {
    has_credentials(&state).await?;
    Ok(plain(&shown_by_close(&state, &id).await?))
}

/// A subscription as Close shows it; 404 where it knows none of this id.
async fn shown_by_close(state: &AdminState, id: &str) -> Result<Box<RawValue>, Refused> {
    let asked = Subscription {
        id: id.to_owned(),
        masks: true,
    };
    let shown = state.ask(asked).texts(1).await.map_err(by_close)?;
    let shown = shown.into_iter().next();
    shown.ok_or_else(|| Refused::missing(format!("Close knows no subscription {id}")))
}

/// `POST /close/subscriptions/{id}/resume`
pub async fn resume_subscription(
    State(state): State<AdminState>,
    Named(id): Named,
    actor: Actor,
) -> Result<Response, Refused> {
    has_credentials(&state).await?;
    shown_by_close(&state, &id).await?;
    let told = state.order(&actor, Resume { id, only_ours: true });
    Ok(plain(&told.last_text().await.map_err(by_close)?))
}

/// `GET /close/plan`
pub async fn plan(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    has_credentials(&state).await?;
    Ok(plain(&state.ask(Plan {}).last_text().await.map_err(by_close)?))
}

/// What a backfill is asked for; what is left out restricts nothing.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Wanted {
    #[serde(deserialize_with = "time::optional")]
    since: Option<Timestamp>,
    #[serde(deserialize_with = "time::optional")]
    until: Option<Timestamp>,
    types: Vec<String>,
    lead: Option<String>,
}

impl Wanted {
    /// The same, checked.
    fn ask(self) -> Result<Box<close::Ask>, Refused> {
        let pick = Pick {
            types: self.types,
            lead: self.lead,
            ..Pick::default()
        };
        asked::check(&pick)?;
        Ok(Box::new(close::Ask {
            since: self.since,
            until: self.until,
            types: pick.types,
            lead: pick.lead,
        }))
    }
}

/// `POST /close/backfill/plan`
pub async fn plan_backfill(
    State(state): State<AdminState>,
    way: Way,
    actor: Actor,
    Body(wanted): Body<Wanted>,
) -> Result<Response, Refused> {
    let ask = wanted.ask()?;
    has_credentials(&state).await?;
    let told = state.order(&actor, Rehearse { ask });
    way.give(&state, told, |answer| inside(&answer, "done")).await
}

/// `POST /close/backfill`
pub async fn backfill(
    State(state): State<AdminState>,
    actor: Actor,
    Body(wanted): Body<Wanted>,
) -> Result<Response, Refused> {
    let ask = wanted.ask()?;
    has_credentials(&state).await?;
    let told = state.order(&actor, Begin { ask });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// `GET /close/backfill`: the newest one, with what came of it where it is over.
pub async fn show_backfill(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    let status = state.ask(status::Show {}).last().await.map_err(refused)?;
    let none = || Refused::missing("there is no backfill: none was begun here");
    let close = status.close;
    close
        .backfill
        .or(close.last_backfill)
        .map(|job| Json(job).into_response())
        .ok_or_else(none)
}

/// `POST /close/backfill/stop`
pub async fn stop_backfill(State(state): State<AdminState>, actor: Actor) -> Result<Response, Refused> {
    let told = state.order(&actor, Set { running: false });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// `POST /close/backfill/resume`
pub async fn resume_backfill(State(state): State<AdminState>, actor: Actor) -> Result<Response, Refused> {
    let told = state.order(&actor, Set { running: true });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}
