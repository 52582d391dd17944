//! What templates and transforms make of a batch before the sink gets it.
//!
//! A rule's template or transform wins over the sink's: that of the first rule, in the file's order, that sends the event there and has
//! one (decision 41). What is wrong with an event, or with a program on this event, refuses it, as a receiver would; that nothing can be
//! rendered at all is no event's fault, and the sink waits.

use std::fmt::Write as _;
use std::sync::Arc;

use crate::config::{SinkConfig, SinkOptions};
use crate::event::{Delivery, Event, Origin, View};
use crate::json;
use crate::plain;
use crate::render::{Escape, Fault, Guard, Job, Made, NameBook, Program, Rendered, Template};
use crate::rules::RuleSet;
use crate::sinks::{Outcome, Preview, Reason, Unavailable};

/// What a program itself said is kept up to so many bytes.
const SAID_MAX: usize = 2048;

/// Renders for one sink.
#[derive(Debug, Clone)]
pub struct Rendering {
    sink: Arc<str>,
    program: Option<Program>,
    /// The sink's keys that have something to fill in.
    texts: Arc<[(String, Template)]>,
    /// What is done to values in a template that makes the payload.
    escape: Escape,
    options: SinkOptions,
    guard: Guard,
}

/// What would be sent for an event, and what that was made of.
#[derive(Debug)]
pub struct Shown {
    /// The delivery, with what was made of it.
    pub delivery: Delivery,
    /// What would be sent.
    pub preview: Preview,
}

impl Rendering {
    /// For a sink as it is configured.
    pub fn new(config: &SinkConfig, guard: Guard) -> Rendering {
        let texts = config.options.templates();
        let texts = texts.into_iter().filter(|(_, template)| !template.is_constant());
        Rendering {
            sink: config.name.as_str().into(),
            program: config.program.clone(),
            texts: texts.collect(),
            escape: config.options.escape(),
            options: config.options.clone(),
            guard,
        }
    }

    /// What its templates know custom fields by.
    pub fn names(&self) -> &NameBook {
        self.guard.names()
    }

    /// For a sink that makes one message of several events.
    pub fn renderer(&self) -> Guard {
        self.guard.clone()
    }

    /// What would be sent for an event that these rules have sent there, with nothing sent; an error is what would become of it instead.
    pub async fn preview(
        &self,
        programs: &RuleSet,
        rules: Arc<[Arc<str>]>,
        event: Arc<Event>,
    ) -> Result<Shown, Outcome> {
        let mut batch = [Delivery {
            origin: Origin::Live,
            event,
            rules,
            attempt: 1,
            rendered: None,
        }];
        let ended = self.render(programs, &mut batch).await.map_err(Outcome::Waits)?;
        if let Some(ended) = ended.into_iter().next().flatten() {
            return Err(ended);
        }
        let gathered = match self.options.gathered(&self.sink, &self.guard, &batch) {
            Some(gathered) => Some(gathered.await?),
            None => None,
        };
        if let Some(texts) = gathered {
            let made = batch[0].rendered.take();
            let made = made.map(Arc::unwrap_or_clone).unwrap_or_default();
            batch[0].rendered = Some(Arc::new(Rendered { texts, ..made }));
        }
        let preview = self.options.preview(&self.sink, &batch[0])?;
        let [delivery] = batch;
        Ok(Shown { delivery, preview })
    }

    /// Puts into each delivery what is made of it. Gives for each what has become of it already, if it does not go to the sink; nothing
    /// at all where all of them go.
    pub async fn render(&self, rules: &RuleSet, batch: &mut [Delivery]) -> Result<Vec<Option<Outcome>>, Unavailable> {
        let mut all: Vec<Option<Outcome>> = Vec::new();
        let mut done = 0;
        while done < batch.len() {
            let (count, ended) = self.render_some(rules, &mut batch[done..]).await?;
            all.resize(done, None);
            all.extend(ended);
            done += count;
        }
        if !all.is_empty() {
            all.resize(done, None);
        }
        Ok(if all.iter().all(Option::is_none) {
            Vec::new()
        } else {
            all
        })
    }

    /// The same for as many of the first deliveries as are made at a time, which is said: what is made of them is all in memory.
    pub async fn render_some(
        &self,
        rules: &RuleSet,
        batch: &mut [Delivery],
    ) -> Result<(usize, Vec<Option<Outcome>>), Unavailable> {
        let count = batch.len();
        if self.program.is_none() && self.texts.is_empty() && !rules.has_programs(&self.sink) {
            return Ok((count, Vec::new()));
        }
        let (mut places, mut jobs, mut by) = (Vec::new(), Vec::new(), Vec::new());
        for (place, delivery) in batch.iter().enumerate() {
            let (rule, program) = match rules.program(&self.sink, &delivery.rules) {
                Some((rule, program)) => (Some(rule.clone()), Some(program.clone())),
                None => (None, self.program.clone()),
            };
            if program.is_none() && self.texts.is_empty() {
                continue;
            }
            by.push((rule, program.as_ref().map(Program::word)));
            places.push(place);
            jobs.push(Job {
                payload: program.map(|program| program.escaping(self.escape)),
                texts: self.texts.clone(),
                event: delivery.event.object().raw().to_owned(),
                meta: meta(delivery, &self.sink),
            });
        }
        if jobs.is_empty() {
            return Ok((count, Vec::new()));
        }
        let made = self.guard.render(jobs).await;
        let made = made.map_err(|stuck| Unavailable::new(stuck.0))?;
        // The first one that is for another time, and all behind it.
        let count = places.get(made.len()).copied().unwrap_or(count);
        let mut ended: Vec<Option<Outcome>> = vec![None; count];
        for ((place, made), (rule, word)) in places.into_iter().zip(made).zip(by) {
            match made {
                Made::Rendered(rendered) => batch[place].rendered = Some(Arc::new(rendered)),
                Made::Skipped => ended[place] = Some(Outcome::Skipped),
                Made::Fault(fault) => {
                    let reason = self.reason(&fault, rule.as_deref(), word);
                    ended[place] = Some(Outcome::Reject { reason });
                }
            }
        }
        if ended.iter().all(Option::is_none) {
            ended = Vec::new();
        }
        Ok((count, ended))
    }

    /// Why nothing could be made of an event, in one sentence without anything of the event.
    fn reason(&self, fault: &Fault, rule: Option<&str>, word: Option<&'static str>) -> Reason {
        let payload = || match (rule, word) {
            (Some(rule), Some(word)) => format!("the {word} of rule \"{rule}\""),
            (None, Some(word)) => format!("its {word}"),
            (_, None) => "one of its templates".to_owned(),
        };
        let what = match fault.program {
            Some(0) => payload(),
            Some(number) => {
                let key = self.texts.get(number - 1).map_or("", |(key, _)| key);
                format!("its template {key}")
            }
            None if self.texts.is_empty() => payload(),
            None => format!("{}, or a template of its keys,", payload()),
        };
        let answer = fault.detail.as_deref().map(|said| {
            let said = plain::lines(said);
            let end = said
                .char_indices()
                .map(|(at, c)| at + c.len_utf8())
                .take_while(|end| *end <= SAID_MAX);
            said[..end.last().unwrap_or(0)].to_owned()
        });
        Reason {
            text: format!("{what} failed{}", fault.words()),
            answer,
        }
    }
}

/// What templates see of an event beside itself.
fn meta(delivery: &Delivery, sink: &str) -> String {
    let event = &delivery.event;
    let view = event.view();
    let mut meta = String::with_capacity(256);
    // Writing to a String can't fail.
    let _ = write!(
        meta,
        r#"{{"seq":{},"received_at":"{:.6}","source":"{}","attempt":{},"rules":["#,
        event.seq, event.received_at, event.source, delivery.attempt
    );
    for (index, rule) in delivery.rules.iter().enumerate() {
        if index > 0 {
            meta.push(',');
        }
        json::push_string(&mut meta, rule);
    }
    meta.push_str(r#"],"subscription_id":"#);
    match view.and_then(|view| view.subscription_id.as_deref()) {
        Some(subscription) => json::push_string(&mut meta, subscription),
        None => meta.push_str("null"),
    }
    meta.push_str(r#","key":"#);
    json::push_string(&mut meta, &view.map(View::idempotency_key).unwrap_or_default());
    meta.push_str(r#","sink":"#);
    json::push_string(&mut meta, sink);
    meta.push_str(r#","dead":"#);
    match delivery.dead() {
        Some(dead) => meta.push_str(&dead.json()),
        None => meta.push_str("null"),
    }
    meta.push('}');
    meta
}
