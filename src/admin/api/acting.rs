//! Sinks, dead letters and replays: how they do, and what may be done to them.

use std::collections::BTreeMap;

use axum::extract::State;
use axum::response::Response;
use jiff::Timestamp;
use serde::Deserialize;

use super::asked::{self, Asked, Body, ITEMS_MAX, Named, Way, all, inside, plain, refused};
use crate::admin::refused::Refused;
use crate::admin::state::AdminState;
use crate::admin::viewer::{Actor, Viewer};
use crate::config::time;
use crate::control::agreed::Agreed;
use crate::control::{Pick, dead, groups, replay, sinks};
use crate::deliver::{ReplaySpec, ReplayStatus};
use crate::event::Seq;
use crate::names;

/// Refuses the name of a sink that there is not.
async fn known_sink(state: &AdminState, name: &str) -> Result<sinks::Shown, Refused> {
    let all = state.ask(sinks::List {}).all(usize::MAX).await.map_err(refused)?;
    let names: Vec<String> = all.iter().map(|shown| shown.sink.name.clone()).collect();
    let found = all.into_iter().find(|shown| shown.sink.name == name);
    found.ok_or_else(|| {
        let known = names.iter().map(String::as_str);
        Refused::missing(names::unknown(format!("there is no sink \"{name}\""), name, known)).at("sink")
    })
}

/// Refuses the name of a sink that there is not, and never was one with dead letters. Gives whether it is configured; `None`: none is named.
async fn known_of_dead(state: &AdminState, sink: Option<&str>) -> Result<Option<bool>, Refused> {
    let Some(sink) = sink else { return Ok(None) };
    let Err(missing) = known_sink(state, sink).await else {
        return Ok(Some(true));
    };
    let removed = state.ask(dead::Removed {}).all(usize::MAX).await.map_err(refused)?;
    if removed.iter().any(|one| one.sink == sink) {
        return Ok(Some(false));
    }
    Err(missing)
}

async fn known_sinks(state: &AdminState, names: &[String]) -> Result<(), Refused> {
    for name in names {
        known_sink(state, name).await?;
    }
    Ok(())
}

/// `GET /sinks`
pub async fn list_sinks(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    all(state.ask(sinks::List {}), ITEMS_MAX).await
}

/// `GET /sinks/{name}`
pub async fn sink(
    State(state): State<AdminState>,
    Named(name): Named,
    _: Viewer,
) -> Result<axum::Json<sinks::Shown>, Refused> {
    known_sink(&state, &name).await.map(axum::Json)
}

/// `POST /sinks/{name}/pause`
pub async fn pause(State(state): State<AdminState>, Named(name): Named, actor: Actor) -> Result<Response, Refused> {
    set_paused(&state, name, &actor, true).await
}

/// `POST /sinks/{name}/resume`
pub async fn resume(State(state): State<AdminState>, Named(name): Named, actor: Actor) -> Result<Response, Refused> {
    set_paused(&state, name, &actor, false).await
}

async fn set_paused(state: &AdminState, sink: String, actor: &Actor, paused: bool) -> Result<Response, Refused> {
    known_sink(state, &sink).await?;
    let told = state.order(actor, sinks::Pause { sink, paused });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// `GET /dead`
pub async fn list_dead(State(state): State<AdminState>, mut asked: Asked, _: Viewer) -> Result<Response, Refused> {
    let (sink, group, pick) = (asked.one("sink")?, asked.one("group")?, asked.pick()?);
    let limit = asked.number("limit", ITEMS_MAX as u64)?.unwrap_or(100);
    known_of_dead(&state, sink.as_deref()).await?;
    let list = dead::List {
        sink,
        pick,
        group,
        limit: limit + 1,
    };
    all(state.ask(list), limit as usize).await
}

/// `GET /dead/groups`
pub async fn groups(State(state): State<AdminState>, mut asked: Asked, _: Viewer) -> Result<Response, Refused> {
    let (sink, pick) = (asked.one("sink")?, asked.pick()?);
    known_of_dead(&state, sink.as_deref()).await?;
    all(state.ask(groups::Groups { sink, pick }), ITEMS_MAX).await
}

/// `GET /dead/count`
pub async fn count_dead(State(state): State<AdminState>, mut asked: Asked, _: Viewer) -> Result<Response, Refused> {
    let (sink, group, pick) = (asked.one("sink")?, asked.one("group")?, asked.pick()?);
    known_of_dead(&state, sink.as_deref()).await?;
    let told = state.ask(groups::Count { sink, pick, group });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// `GET /dead/{id}`
pub async fn dead(
    State(state): State<AdminState>,
    Named(id): Named,
    mut asked: Asked,
    _: Viewer,
) -> Result<Response, Refused> {
    let sink = asked.one("sink")?;
    known_of_dead(&state, sink.as_deref()).await?;
    let letters = state
        .ask(dead::Show { sink, id: id.clone() })
        .texts(ITEMS_MAX + 1)
        .await;
    let letters = letters.map_err(Refused::failing)?;
    if letters.is_empty() {
        return Err(Refused::missing(format!("there is no dead letter {id}")));
    }
    Ok(asked::list(letters, ITEMS_MAX))
}

/// Which dead letters are meant. Everything is meant only where that is said, so that nothing is done to all of them by mistake.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Letters {
    #[serde(default)]
    sink: Option<String>,
    #[serde(default)]
    pick: Which,
    #[serde(default)]
    group: Option<String>,
    #[serde(default)]
    all: bool,
    #[serde(default)]
    agreed: Option<Agreed>,
}

/// The same, checked.
struct Meant {
    sink: Option<String>,
    pick: Pick,
    group: Option<String>,
    agreed: Option<Agreed>,
    /// Nothing can be delivered to the sink that is named.
    is_removed: bool,
}

/// Which events are meant, each part of which may be left out.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Which {
    ids: Vec<String>,
    types: Vec<String>,
    lead: Option<String>,
    filter: Option<String>,
    #[serde(deserialize_with = "time::optional")]
    since: Option<Timestamp>,
    #[serde(deserialize_with = "time::optional")]
    until: Option<Timestamp>,
    quarantined: Option<bool>,
    partial: Option<bool>,
}

impl Which {
    /// The same, checked.
    pub(super) fn pick(self) -> Result<Pick, Refused> {
        let pick = Pick {
            ids: self.ids,
            types: self.types,
            lead: self.lead,
            filter: self.filter,
            since: self.since,
            until: self.until,
            quarantined: self.quarantined,
            partial: self.partial,
        };
        asked::check(&pick)?;
        Ok(pick)
    }
}

impl Letters {
    async fn meant(self, state: &AdminState) -> Result<Meant, Refused> {
        let pick = self.pick.pick()?;
        let is_configured = known_of_dead(state, self.sink.as_deref()).await?;
        if self.sink.is_none() && self.group.is_none() && pick.is_empty() && !self.all {
            let message = "say which dead letters are meant (sink, pick, group), or \"all\": true for every one";
            return Err(Refused::bad(message).at("all"));
        }
        Ok(Meant {
            sink: self.sink,
            pick,
            group: self.group,
            agreed: self.agreed,
            is_removed: is_configured == Some(false),
        })
    }
}

/// `POST /dead/retry`
pub async fn retry(
    State(state): State<AdminState>,
    way: Way,
    actor: Actor,
    Body(letters): Body<Letters>,
) -> Result<Response, Refused> {
    let meant = letters.meant(&state).await?;
    if let Some(sink) = meant.sink.as_deref().filter(|_| meant.is_removed) {
        return Err(refused(dead::not_configured(sink)));
    }
    let order = dead::Retry {
        sink: meant.sink,
        pick: meant.pick,
        group: meant.group,
        agreed: meant.agreed,
    };
    let told = state.order(&actor, order);
    way.give(&state, told, |answer| Ok(plain(&answer))).await
}

/// `POST /dead/drop`
pub async fn drop_dead(
    State(state): State<AdminState>,
    actor: Actor,
    Body(letters): Body<Letters>,
) -> Result<Response, Refused> {
    let meant = letters.meant(&state).await?;
    let order = dead::Drop {
        sink: meant.sink,
        pick: meant.pick,
        group: meant.group,
        agreed: meant.agreed,
    };
    let told = state.order(&actor, order);
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// What a replay is asked for; what is left out restricts nothing.
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Spec {
    from: u64,
    to: u64,
    #[serde(deserialize_with = "time::optional")]
    since: Option<Timestamp>,
    #[serde(deserialize_with = "time::optional")]
    until: Option<Timestamp>,
    ids: Vec<String>,
    types: Vec<String>,
    lead: Option<String>,
    filter: Option<String>,
    rule: Option<String>,
    sinks: Vec<String>,
    rate: Option<f64>,
    limit: Option<u64>,
    only_partials: bool,
}

impl Default for Spec {
    fn default() -> Spec {
        Spec {
            from: 1,
            to: u64::MAX,
            since: None,
            until: None,
            ids: Vec::new(),
            types: Vec::new(),
            lead: None,
            filter: None,
            rule: None,
            sinks: Vec::new(),
            rate: None,
            limit: None,
            only_partials: false,
        }
    }
}

impl Spec {
    async fn checked(self, state: &AdminState) -> Result<ReplaySpec, Refused> {
        let which = Which {
            ids: self.ids.clone(),
            types: self.types.clone(),
            lead: self.lead.clone(),
            filter: self.filter.clone(),
            ..Which::default()
        };
        which.pick()?;
        known_sinks(state, &self.sinks).await?;
        if self.rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
            return Err(Refused::bad("the rate of a replay must be above 0 deliveries a second").at("rate"));
        }
        Ok(ReplaySpec {
            from: Seq(self.from),
            to: Seq(self.to),
            since: self.since,
            until: self.until,
            ids: self.ids,
            types: self.types,
            lead: self.lead,
            filter: self.filter,
            rule: self.rule,
            sinks: self.sinks,
            rate: self.rate,
            limit: self.limit,
            only_partials: self.only_partials,
            releases: false,
        })
    }
}

/// A replay that is to be planned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToPlan {
    spec: Spec,
}

/// A replay as it was planned.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ToStart {
    spec: Spec,
    planned: BTreeMap<String, u64>,
}

/// `POST /replays/plan`: it changes nothing, and is a POST for its body.
pub async fn plan_replay(
    State(state): State<AdminState>,
    way: Way,
    Body(ToPlan { spec }): Body<ToPlan>,
) -> Result<Response, Refused> {
    let spec = Box::new(spec.checked(&state).await?);
    let told = state.ask(replay::Plan { spec });
    way.give(&state, told, |answer| inside(&answer, "done")).await
}

/// `POST /replays`
pub async fn start_replay(
    State(state): State<AdminState>,
    actor: Actor,
    Body(ToStart { spec, planned }): Body<ToStart>,
) -> Result<Response, Refused> {
    let spec = Box::new(spec.checked(&state).await?);
    let told = state.order(&actor, replay::Start { spec, planned });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

/// `GET /replays`
pub async fn list_replays(State(state): State<AdminState>, _: Viewer) -> Result<Response, Refused> {
    all(state.ask(replay::List {}), ITEMS_MAX).await
}

async fn known_replay(state: &AdminState, id: &str) -> Result<ReplayStatus, Refused> {
    let all = state.ask(replay::List {}).all(usize::MAX).await.map_err(refused)?;
    let found = all.into_iter().find(|replay| replay.id == id);
    found.ok_or_else(|| {
        Refused::missing(format!("there is no replay {id}, or it was over more than 7 days ago")).at("id")
    })
}

/// `GET /replays/{id}`; for who wants a stream, until it is over.
pub async fn show_replay(State(state): State<AdminState>, way: Way, Named(id): Named) -> Result<Response, Refused> {
    let status = known_replay(&state, &id).await?;
    if way.wants_stream() {
        return way.stream(&state, state.follow(replay::Watch { id }));
    }
    Ok(axum::response::IntoResponse::into_response(axum::Json(status)))
}

/// `POST /replays/{id}/stop`
pub async fn stop_replay(State(state): State<AdminState>, Named(id): Named, actor: Actor) -> Result<Response, Refused> {
    set_running(&state, id, &actor, false).await
}

/// `POST /replays/{id}/resume`
pub async fn resume_replay(
    State(state): State<AdminState>,
    Named(id): Named,
    actor: Actor,
) -> Result<Response, Refused> {
    set_running(&state, id, &actor, true).await
}

async fn set_running(state: &AdminState, id: String, actor: &Actor, running: bool) -> Result<Response, Refused> {
    known_replay(state, &id).await?;
    let told = state.order(actor, replay::Set { id, running });
    Ok(plain(&told.last_text().await.map_err(refused)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_known_in_a_body_is_refused() {
        let times: Which = serde_json::from_str(r#"{"since":"2024-02-15","until":"36h"}"#).unwrap();
        assert_eq!(times.since.unwrap().to_string(), "2024-02-15T00:00:00Z");
        assert!(times.until.is_some());
        for body in [r#"{"sink":"a","al":true}"#, r#"{"pick":{"leed":"x"}}"#, "[1]"] {
            assert!(serde_json::from_str::<Letters>(body).is_err(), "{body}");
        }
        let spec: Spec = serde_json::from_str("{}").unwrap();
        assert_eq!((spec.from, spec.to), (1, u64::MAX));
    }
}
