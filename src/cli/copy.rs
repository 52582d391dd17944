//! `closehook log copy`, `closehook log reopen`

use std::sync::Mutex;

use indicatif::ProgressBar;

use super::copy_args::To;
pub(super) use super::copy_args::{Copy, Reopen};
use super::interrupt::Stop;
use super::report;
use super::term::{confirm, count_bar};
use super::{Failure, Global, Outcome};
use crate::app::{self, copy};
use crate::config::Size;
use crate::event::Seq;
use crate::sync::lock;

/// Shows each step as a bar of its own.
struct Bars(Mutex<Option<(copy::Step, Seq, ProgressBar)>>);

impl Bars {
    fn show(&self, step: copy::Step, at: Seq, last: Seq) {
        let mut bar = lock(&self.0);
        if bar.as_ref().is_none_or(|(shown, ..)| *shown != step) {
            let new = count_bar();
            new.set_message(match step {
                copy::Step::Reading => "reading",
                copy::Step::Copying => "copying",
                copy::Step::Comparing => "comparing",
            });
            if let Some((_, _, before)) = bar.replace((step, at, new)) {
                before.finish_and_clear();
            }
        }
        if let Some((_, from, bar)) = bar.as_ref() {
            bar.set_length(last.0.saturating_sub(from.0));
            bar.set_position(at.0.saturating_sub(from.0));
        }
    }

    fn end(&self) {
        if let Some((_, _, bar)) = lock(&self.0).take() {
            bar.finish_and_clear();
        }
    }
}

impl Copy {
    pub(super) async fn run(&self, global: &Global) -> Outcome {
        let config = global.load()?;
        if config.log.jetstream.is_none() {
            return Err(Failure::Usage(
                "[log.jetstream] is missing in the configuration: it says where the other log is".into(),
            ));
        }
        let bars = Bars(Mutex::default());
        let show = |step, at, last| bars.show(step, at, last);
        let copying = async {
            match self.to {
                To::Jetstream => copy::copy_to_jetstream(&config, &show).await,
                To::Local => copy::copy_to_local(&config, &show).await,
            }
        };
        let mut stop = Stop::listen()?;
        let copied = tokio::select! {
            copied = copying => copied,
            () = stop.told() => {
                bars.end();
                return Err(Failure::Work(
                    "interrupted: the log is served as before; run it again, and it goes on where it was".into(),
                ));
            }
        };
        bars.end();
        app::leave_to_owner(&config.log.dir);
        let copied = copied?;
        for (first, last) in &copied.damaged {
            let notice = format!(
                "events {first} to {last} are damaged in the log, and so not in the copy: `closehook backfill` fetches what Close still has"
            );
            report::notice(global.json, &notice);
        }
        for lost in &copied.damaged_letters {
            report::notice(global.json, &format!("damaged, and so not in the copy: {lost}"));
        }
        global.print(&copied, told)
    }
}

fn told(copied: &copy::Copied) -> String {
    if copied.later > 0 {
        return format!(
            "{} events that were received here after the log was copied are in {} now, behind what has come there since, and are delivered from there: a sink that has got them here gets them once more, with the same keys\nthe log goes on there: set log.engine and start it; here it is not served any more",
            copied.later, copied.to
        );
    }
    if copied.was_done {
        return format!(
            "the log is in {} already, whole: an earlier try came to its end",
            copied.to
        );
    }
    let resumed = copied.resumed_at.map_or_else(String::new, |seq| {
        format!("; an earlier try had come up to event {seq}")
    });
    format!(
        "{} events ({} to {}, {}) copied to {} and compared byte for byte (SHA-256 {}){resumed}\n{} in quarantine, {} erased, {} keys of expired ones; {} values of state, {} dead letters, {} given to other sinks, {} files of Close's side\nthe log goes on there: set log.engine and start it; here it is not served any more",
        copied.events,
        copied.first,
        copied.last,
        Size(copied.bytes),
        copied.to,
        copied.sha256,
        copied.quarantined,
        copied.erased,
        copied.known,
        copied.state,
        copied.dead_letters,
        copied.given_letters,
        copied.close,
    )
}

impl Reopen {
    pub(super) async fn run(&self, global: &Global) -> Outcome {
        if !self.yes {
            confirm("Have this log served again, although it goes on elsewhere?")?;
        }
        let config = global.load()?;
        copy::reopen(&config).await?;
        app::leave_to_owner(&config.log.dir);
        global.print(&serde_json::json!({ "reopened": true }), |_| {
            "it can be served again, as another life of the log".into()
        })
    }
}
