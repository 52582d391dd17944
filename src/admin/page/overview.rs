//! Is it well, and what to do: troubles first, then the last 24 hours, the sinks, and what comes just now.

use std::cmp::Reverse;

use askama::Template;
use axum::response::Response;
use serde::Deserialize;

use super::charts::{Chart, Series, as_count, as_span, counts};
use super::said::Url;
use super::sinks::{SinkRow, SinkTable, lag_now};
use super::tail::{self, TailTable};
use super::text;
use super::tile::Tile;
use super::trouble::TroubleCell;
use super::view::{Frame, Shown, View, html};
use crate::admin::fields;
use crate::control::history::{self, Charts};
use crate::control::sinks::Shown as Sink;
use crate::control::status::{self, Status};
use crate::sorted;

/// Minutes in one bar.
const STEP_MINUTES: u32 = 15;

#[derive(Template)]
#[template(path = "overview.html")]
struct Overview {
    frame: Frame,
    part: Part,
    tail: TailTable,
    is_live: bool,
}

/// What is looked at again and again.
#[derive(Template)]
#[template(path = "overview_part.html")]
struct Part {
    well: bool,
    troubles: Vec<TroubleCell>,
    tiles: Vec<Tile>,
    charts: Vec<Chart>,
    /// Whose lag is shown, where it is not everybody's.
    lags: Option<String>,
    sinks: SinkTable,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wish {
    live: String,
}

/// `/`
pub async fn show(view: View, Url(wish): Url<Wish>) -> Shown {
    fields::choice("live", &wish.live, &["on", "off"]).map_err(|refused| view.wrong(refused))?;
    let is_live = wish.live != "off";
    let part = part_of(&view).await.map_err(|error| view.refused(error))?;
    let tail = tail::newest(&view, is_live)
        .await
        .map_err(|error| view.refused(error))?;
    Ok(html(&Overview {
        frame: view.frame("/"),
        part,
        tail,
        is_live,
    }))
}

/// What of it changes.
pub async fn part(view: View) -> Result<Response, super::view::Failed> {
    let part = part_of(&view).await.map_err(|error| view.refused(error))?;
    Ok(html(&part))
}

async fn part_of(view: &View) -> Result<Part, String> {
    let status = view.one(status::Show {}).await?;
    let history = history::Show {
        hours: Some(24),
        step_minutes: Some(STEP_MINUTES),
    };
    let history = view.one(history).await?;
    let sinks = status.sinks.iter().map(SinkRow::of).collect();
    Ok(Part {
        well: status.well,
        tiles: tiles(&status),
        charts: charts(&history, &status.sinks),
        lags: (history.sinks.len() > LAGS_MAX).then(|| {
            let all = text::count(&(history.sinks.len() as u64));
            format!("Lag is drawn of {LAGS_MAX} of {all} sinks, those that lag most; each has it on its own page.")
        }),
        sinks: SinkTable { sinks },
        troubles: status
            .troubles
            .iter()
            .map(|one| TroubleCell::of(one, &status))
            .collect(),
    })
}

fn tiles(status: &Status) -> Vec<Tile> {
    let mut tiles = Vec::new();
    let last = status.last_delivery_at;
    tiles.push(match &last {
        Some(at) => Tile::new("Last delivery", text::ago(at), text::when(at)),
        None => Tile::new("Last delivery", "none", "that is known"),
    });
    if let Some(received) = &status.received {
        let over = format!("in {}", text::length(received.seconds));
        let sum = |counts: &std::collections::BTreeMap<String, u64>| counts.values().sum::<u64>();
        let refused = sum(&received.refused) + sum(&received.unfit);
        let unavailable = sum(&received.unavailable);
        let stored = format!("deliveries {over}, none that is quarantined");
        tiles.push(Tile::new("Stored", text::count(&received.stored), stored));
        tiles.push(
            Tile::new("Refused", text::count(&refused), over.clone()).toned(if refused > 0 { "warn" } else { "" }),
        );
        if unavailable > 0 {
            tiles.push(Tile::new("Not taken", text::count(&unavailable), over).toned("bad"));
        }
    }
    tiles.push(Tile::new(
        "In the log",
        text::count(&status.log.events),
        format!("{} on disk", text::size(&status.log.disk_bytes)),
    ));
    if let Some(disk) = &status.disk {
        tiles.push(Tile::new(
            "Disk free",
            text::size(&disk.free_bytes),
            format!("of {}", text::size(&disk.total_bytes)),
        ));
    }
    if let Some(claim) = &status.close.complete {
        tiles.push(Tile::new(
            "Complete up to",
            text::when(&claim.complete.upto),
            text::ago(&claim.complete.upto),
        ));
    }
    tiles
}

fn charts(history: &Charts, sinks: &[Sink]) -> Vec<Chart> {
    let counted = |title: &str, values, tone| Series::of(history, title, values, tone, as_count).draw();
    let mut charts = vec![
        counted("Received", counts(&history.received), "accent"),
        counted("Stored, whatever it is", counts(&history.stored), "accent"),
        counted("Refused", counts(&history.refused), "warn"),
    ];
    let delivered = over_sinks(history, |sink| counts(&sink.delivered), |sum, value| sum + value);
    charts.push(counted("Delivered", delivered, "ok"));
    for (name, now) in lagging(history, sinks).into_iter().take(LAGS_MAX) {
        let Some(sink) = history.sinks.get(name) else { continue };
        let title = format!("Lag of {name}");
        let lag = Series::of(history, &title, sink.lag_seconds.clone(), "lag", as_span);
        charts.push(lag.at_most(now).draw());
    }
    charts
}

/// Sinks with their lag now, those first that lag most: now and, where they are alike in that, in these hours.
fn lagging<'h>(history: &'h Charts, sinks: &[Sink]) -> Vec<(&'h str, Option<f64>)> {
    let most = |values: &[Option<f64>]| values.iter().flatten().copied().fold(0.0, f64::max);
    let ranked = history.sinks.iter().map(|(name, charts)| {
        let now = sinks.iter().find(|sink| sink.sink.name == *name).and_then(lag_now);
        (name.as_str(), now, most(&charts.lag_seconds))
    });
    let mut ranked: Vec<(&str, Option<f64>, f64)> = ranked.collect();
    // Lengths of time are not negative, and as bits they are in the same order.
    let order =
        |(_, now, most): &(&str, Option<f64>, f64)| Reverse((now.unwrap_or_default().to_bits(), most.to_bits()));
    sorted::sort_by_key(&mut ranked, order);
    ranked.into_iter().map(|(name, now, _)| (name, now)).collect()
}

/// So many sinks have their lag drawn here; each has it on its own page.
const LAGS_MAX: usize = 4;

/// The series of all sinks as one.
fn over_sinks(
    history: &Charts,
    of: impl Fn(&history::SinkCharts) -> Vec<Option<f64>>,
    join: impl Fn(f64, f64) -> f64,
) -> Vec<Option<f64>> {
    let mut whole: Vec<Option<f64>> = vec![None; history.at.len()];
    for sink in history.sinks.values() {
        for (sum, value) in whole.iter_mut().zip(of(sink)) {
            if let Some(value) = value {
                *sum = Some(sum.map_or(value, |sum| join(sum, value)));
            }
        }
    }
    whole
}
