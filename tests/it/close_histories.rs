//! The closed loop: random histories of a Close and of the daemon's side of it, and after each deed what `status` claims is held
//! against the fake's own record. A claim may say less than is so; it may never say more.
//!
//! A history is a list of [`Deed`]s, drawn and shrunk by proptest; some of them come in the orders in which claims were false once
//! ([`story`]), since chance alone brings these about in one of hundreds. `CLOSEHOOK_TEST_HISTORIES=200` runs more of them, and
//! `CLOSEHOOK_TEST_SEED` draws others; one that fails is printed whole, smallest first.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use closehook::close::{Ask, CloseStatus};
use closehook::event::{EventKey, Kind, Seq, View};
use closehook::log::Take;
use fake_close::fault::{Fault, Faults, Kind as FaultKind};
use fake_close::{Moment, Role, Settings};
use jiff::Timestamp;
use proptest::prelude::*;
use proptest::test_runner::{Config as Runs, RngAlgorithm, TestRng, TestRunner};

use crate::close_process::{Process, World, rules};

/// Histories in CI, and what they are drawn from.
const HISTORIES: u32 = 30;
const SEED: u32 = 1;

/// What the rules can want, and how a scope of it is called.
const SCOPES: [(&[&str], &str); 5] = [
    (&["lead.*"], "lead.*"),
    (&["lead.*", "activity.*"], "activity.*, lead.*"),
    (&["lead.created", "lead.updated"], "lead.created, lead.updated"),
    (&["*"], "*"),
    // Nothing of it happens.
    (&["export.completed"], "export.completed"),
];

/// One thing that happens.
#[derive(Debug, Clone, PartialEq)]
enum Deed {
    /// So much happens in the organization, over so many minutes that pass.
    Happen { count: u8, minutes: u16 },
    /// Nothing happens for so many hours.
    Pass { hours: u16 },
    /// An event is changed again.
    Consolidate { which: u16 },
    /// The daemon looks at Close.
    Look { up_to_now: bool },
    /// A backfill is begun, of so many days.
    Begin { days: u8, only_leads: bool },
    /// It is carried out, or dies after so many steps.
    Run { steps: Option<u8> },
    /// It is stopped by a person.
    Stop,
    /// And gone on with.
    Resume,
    /// The process ends and another one begins.
    Restart,
    /// The machine's clock is set.
    Clock { minutes: i32 },
    /// Another key: an administrator's or not.
    Key { is_admin: bool },
    /// The user behind the weaker key gets more rights, or loses them.
    Promote { is_admin: bool },
    /// The rules want something else.
    Rules { scope: usize },
    /// Close pauses the subscription, or whoever can makes it active.
    Pause { paused: bool },
    /// Close answers the next requests badly.
    Trouble { kind: u8, times: u8, skip: u8 },
    /// Nobody is at the door for a while.
    Away { hours: u8 },
}

impl Deed {
    /// Whether it happens at Close alone: what is claimed is as it was, and so is how much of it there is.
    fn is_close_s_own(&self) -> bool {
        matches!(
            self,
            Deed::Happen { .. }
                | Deed::Pass { .. }
                | Deed::Consolidate { .. }
                | Deed::Promote { .. }
                | Deed::Pause { paused: true }
                | Deed::Trouble { .. }
        )
    }
}

fn deed() -> impl Strategy<Value = Deed> {
    prop_oneof![
        5 => (1_u8..60, 1_u16..3000).prop_map(|(count, minutes)| Deed::Happen { count, minutes }),
        2 => (1_u16..24 * 20).prop_map(|hours| Deed::Pass { hours }),
        2 => any::<u16>().prop_map(|which| Deed::Consolidate { which }),
        6 => any::<bool>().prop_map(|up_to_now| Deed::Look { up_to_now }),
        3 => (1_u8..40, prop::bool::weighted(0.2)).prop_map(|(days, only_leads)| Deed::Begin { days, only_leads }),
        5 => prop::option::weighted(0.6, 1_u8..24).prop_map(|steps| Deed::Run { steps }),
        1 => Just(Deed::Stop),
        2 => Just(Deed::Resume),
        2 => Just(Deed::Restart),
        2 => (-3000_i32..3000).prop_map(|minutes| Deed::Clock { minutes }),
        2 => any::<bool>().prop_map(|is_admin| Deed::Key { is_admin }),
        1 => any::<bool>().prop_map(|is_admin| Deed::Promote { is_admin }),
        2 => (0..SCOPES.len()).prop_map(|scope| Deed::Rules { scope }),
        1 => any::<bool>().prop_map(|paused| Deed::Pause { paused }),
        2 => (0_u8..5, 1_u8..8, 0_u8..6).prop_map(|(kind, times, skip)| Deed::Trouble { kind, times, skip }),
        1 => (1_u8..100).prop_map(|hours| Deed::Away { hours }),
    ]
}

/// Deeds that belong together, and something between them that may be anything.
fn story() -> impl Strategy<Value = Vec<Deed>> {
    let (narrow, wide) = (0_usize..3, 1_usize..4);
    let begin = (20_u8..40).prop_map(|days| Deed::Begin {
        days,
        only_leads: false,
    });
    let dies = (1_u8..12).prop_map(|steps| Deed::Run { steps: Some(steps) });
    let done = Just(Deed::Run { steps: None });
    let look = any::<bool>().prop_map(|up_to_now| Deed::Look { up_to_now });
    let clock = (-3000_i32..3000).prop_map(|minutes| Deed::Clock { minutes });
    let young = (20_u8..60, 2_u16..9).prop_map(|(count, minutes)| Deed::Happen { count, minutes });
    let late = (200_u16..700).prop_map(|hours| Deed::Pass { hours });
    prop_oneof![
        // A backfill dies, and goes on when the rules want something else.
        (
            narrow,
            begin.clone(),
            dies.clone(),
            deed(),
            wide,
            done.clone(),
            look.clone()
        )
            .prop_map(|(narrow, begin, dies, other, wide, done, look)| {
                let rules = |scope| Deed::Rules { scope };
                vec![rules(narrow), begin, dies, other, rules(wide), done, look]
            }),
        // A backfill dies, and goes on when Close has forgotten some of what it was for.
        (begin.clone(), dies, late, done.clone(), look.clone())
            .prop_map(|(begin, dies, late, done, look)| vec![begin, dies, late, done, look]),
        // What has just happened, and can't be seen yet by all, when the clock is set before a backfill is carried out.
        (young.clone(), begin, clock, done, 1_u16..30, look.clone()).prop_map(
            |(young, begin, clock, done, hours, look)| vec![young, begin, clock, done, Deed::Pass { hours }, look]
        ),
        // The same, and it is looked at at once, and again later.
        (young, look.clone(), 1_u16..30, look).prop_map(|(young, look, hours, again)| vec![
            young,
            look,
            Deed::Pass { hours },
            again
        ]),
    ]
}

fn history() -> impl Strategy<Value = Vec<Deed>> {
    let part = prop_oneof![8 => deed().prop_map(|deed| vec![deed]), 1 => story()];
    let middle = prop::collection::vec(part, 3..16);
    (prop::option::weighted(0.5, story()), middle).prop_map(|(first, rest)| {
        let parts = first.into_iter().chain(rest);
        parts.flatten().collect()
    })
}

/// A daemon's side of Close, as it lives through a history.
struct Life {
    world: World,
    process: Option<Process>,
    weak_key: String,
    is_admin: bool,
    scope: usize,
}

impl Life {
    async fn begin(seed: u64) -> Life {
        let settings = Settings {
            visibility_lag: fake_close::Span::secs(240),
            ..Settings::calm()
        };
        let world = World::new(seed, settings).await;
        let weak_key = world.fake.world().access.add(None, Role::User).unwrap().key.clone();
        {
            let mut fake = world.fake.world();
            let now = fake.now();
            fake.generate(150, now, Duration::from_secs(25 * 86_400)).unwrap();
        }
        world.fake.advance(Duration::from_secs(25 * 86_400)).await;
        let mut life = Life {
            world,
            process: None,
            weak_key,
            is_admin: true,
            scope: 3,
        };
        life.start();
        let _ = life.process().account.apply(false).await;
        life
    }

    fn config(&self) -> closehook::config::Config {
        let admin = self.world.fake.api_key();
        let key = if self.is_admin { &admin } else { &self.weak_key };
        let events = SCOPES[self.scope].0;
        self.world.config(
            &format!("api_key = \"{key}\""),
            &format!("[[rules]]\nname = \"r\"\nevents = {events:?}\n"),
        )
    }

    fn start(&mut self) {
        self.process = Some(self.world.start(&self.config()));
    }

    fn process(&self) -> &Process {
        self.process.as_ref().unwrap()
    }

    async fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.end().await;
        }
    }

    async fn reload(&self) {
        let config = self.config();
        self.process().account.reconfigure(&config, &rules(&config)).await;
    }

    async fn carry_out(&mut self, deed: &Deed) {
        let hours = |hours: u64| Duration::from_secs(3600 * hours);
        match *deed {
            Deed::Happen { count, minutes } => {
                let span = Duration::from_secs(60 * u64::from(minutes));
                {
                    let mut fake = self.world.fake.world();
                    let now = fake.now();
                    fake.generate(u64::from(count), now, span).unwrap();
                }
                self.world.fake.advance(span).await;
            }
            Deed::Pass { hours: count } => drop(self.world.fake.advance(hours(u64::from(count))).await),
            Deed::Consolidate { which } => {
                let mut fake = self.world.fake.world();
                let ids: Vec<String> = fake.revisions(0).map(|revision| revision.id).collect();
                let id = ids[usize::from(which) % ids.len()].clone();
                // One that is to happen yet can't be changed.
                let _ = fake.consolidate(&id, Duration::from_secs(u64::from(which % 240)));
            }
            Deed::Look { up_to_now } => drop(self.process().account.look_once(up_to_now).await),
            Deed::Begin { days, only_leads } => {
                let now: Timestamp = self.world.fake.world().now().into();
                let ask = Ask {
                    since: now
                        .checked_sub(jiff::SignedDuration::from_hours(24 * i64::from(days)))
                        .ok(),
                    until: None,
                    types: if only_leads { vec!["lead.*".into()] } else { Vec::new() },
                    lead: None,
                };
                let _ = self.process().account.begin_job(ask).await;
            }
            Deed::Run { steps } => {
                let process = self.process();
                let steps = steps.map_or(i64::MAX, i64::from);
                let ended = process.dies_after(steps, process.account.run_job()).await;
                if ended.is_none() {
                    self.end().await;
                    self.start();
                }
            }
            Deed::Stop => drop(self.process().account.set_job_running(false).await),
            Deed::Resume => drop(self.process().account.set_job_running(true).await),
            Deed::Restart => {
                self.end().await;
                self.start();
            }
            Deed::Clock { minutes } => {
                let skew = i64::from(minutes) * 60_000_000;
                self.world.skew.store(skew, Ordering::Relaxed);
            }
            Deed::Key { is_admin } => {
                self.is_admin = is_admin;
                self.reload().await;
            }
            Deed::Promote { is_admin } => {
                let mut fake = self.world.fake.world();
                let mut keys = fake.access.keys.iter_mut();
                let key = keys.find(|key| key.key == self.weak_key).unwrap();
                key.role = if is_admin { Role::Admin } else { Role::User };
            }
            Deed::Rules { scope } => {
                self.scope = scope;
                self.reload().await;
            }
            Deed::Pause { paused } => self.pause(paused).await,
            Deed::Trouble { kind, times, skip } => {
                // What is tried again at once is over soon, so that nothing has to be waited for.
                let fault = match kind {
                    0 => Fault::new(FaultKind::Status).status(403).times(u32::from(times)),
                    1 => Fault::new(FaultKind::Html).status(403).times(u32::from(times)),
                    2 => Fault::new(FaultKind::Reset),
                    3 => Fault::new(FaultKind::Truncated),
                    _ => Fault::new(FaultKind::DropAnswer),
                };
                let fault = fault.on("GET").after(u32::from(skip));
                let mut fake = self.world.fake.world();
                fake.faults = Faults::default();
                fake.faults.order(fault).unwrap();
                fake.expire_cursors();
            }
            Deed::Away { hours: count } => {
                self.end().await;
                self.world.fake.advance(hours(u64::from(count))).await;
                self.start();
            }
        }
    }

    async fn pause(&self, paused: bool) {
        let id = self.world.fake.world().subscriptions().next().map(|one| one.id.clone());
        let Some(id) = id else { return };
        if paused {
            self.world.fake.world().pause(&id);
        } else {
            let _ = self.process().account.set_active(&id, true).await;
        }
    }

    /// Whatever is claimed is so.
    async fn check(&self) -> Result<(), String> {
        let status = self.process().account.status();
        self.check_held(&status).await?;
        let Some(claim) = &status.complete else { return Ok(()) };
        let wanted = SCOPES.iter().find(|(_, name)| *name == claim.complete.scope);
        let (patterns, _) = wanted.ok_or_else(|| format!("no scope is called {}", claim.complete.scope))?;
        let now = self.world.fake.world().now();
        for (id, (updated, event)) in self.current(now) {
            let at: Timestamp = updated.into();
            if at < claim.complete.from || at >= claim.complete.upto || !is_wanted(patterns, &event) {
                continue;
            }
            let what = format!("{event} {id} {at}: {claim:?}");
            match self.stored(&id, updated).await {
                None => return Err(format!("missing is {what}")),
                Some(Kind::Partial) if claim.lacks.is_none() => return Err(format!("without its data is {what}")),
                Some(_) => {}
            }
        }
        Ok(())
    }

    /// The revision of each event that counts at this time, with its type.
    fn current(&self, now: Moment) -> BTreeMap<String, (Moment, String)> {
        let fake = self.world.fake.world();
        let mut current = BTreeMap::new();
        // In the order of the log: the last one that has happened stays.
        for revision in fake.revisions(0) {
            let updated = Moment::parse(&revision.date_updated).unwrap();
            if updated <= now {
                current.insert(revision.id, (updated, revision.event));
            }
        }
        current
    }

    /// How a revision is in the log, if it is.
    async fn stored(&self, id: &str, updated: Moment) -> Option<Kind> {
        let log = &self.process().log;
        let key = EventKey {
            id: id.to_owned(),
            updated: closehook::event::Updated::parse(&updated.plain()),
        };
        if log.find_revision(&key).await.unwrap().is_some() {
            return Some(Kind::Event);
        }
        for seq in log.find(id).await.unwrap() {
            let event = log.get(seq).await.unwrap()?;
            if event.view().is_some_and(|view| view.key() == key) {
                return Some(event.kind);
            }
        }
        None
    }

    /// That no event lacks its data, or no more than so many, is so.
    async fn check_held(&self, status: &CloseStatus) -> Result<(), String> {
        let (held, is_counted) = status
            .held
            .as_ref()
            .map_or((0, true), |held| (held.events, held.is_counted));
        if !is_counted {
            return Ok(());
        }
        let patterns = SCOPES[self.scope].0;
        let log = &self.process().log;
        let mut newest: BTreeMap<String, (i128, bool, String)> = BTreeMap::new();
        let mut next = Seq(1);
        loop {
            let take = Take {
                events: 1000,
                bytes: 16 << 20,
                narrow: None,
            };
            let batch = log.read(next, take).await.unwrap();
            for event in &batch.events {
                let Some(view) = event.view() else { continue };
                let type_action = View::type_action(view).unwrap_or_default();
                let updated = match closehook::event::Updated::parse(&view.date_updated) {
                    closehook::event::Updated::Instant(nanoseconds) => nanoseconds,
                    _ => 0,
                };
                let is_whole = event.kind == Kind::Event;
                let entry = newest.entry(view.id.clone()).or_insert((updated, false, type_action));
                if updated > entry.0 {
                    (entry.0, entry.1) = (updated, is_whole);
                } else if updated == entry.0 {
                    entry.1 |= is_whole;
                }
            }
            if batch.next == next {
                break;
            }
            next = batch.next;
        }
        let lack = newest
            .values()
            .filter(|(_, is_whole, event)| !is_whole && is_wanted(patterns, event));
        let lack = lack.count() as u64;
        // The count is for the rules at the last look.
        let is_of_now = status
            .complete
            .as_ref()
            .is_some_and(|claim| claim.complete.scope == SCOPES[self.scope].1);
        if is_of_now && lack > held {
            return Err(format!("{lack} events lack their data, {held} are said to"));
        }
        Ok(())
    }
}

fn is_wanted(patterns: &[&str], event: &str) -> bool {
    patterns.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(start) => event.starts_with(start),
        None => *pattern == event,
    })
}

async fn live_through(seed: u64, deeds: &[Deed]) -> Result<(), String> {
    let mut life = Life::begin(seed).await;
    let mut result = life.check().await;
    for (number, deed) in deeds.iter().enumerate() {
        if result.is_err() {
            break;
        }
        life.carry_out(deed).await;
        if deed.is_close_s_own() {
            continue;
        }
        result = life
            .check()
            .await
            .map_err(|why| format!("after {number} ({deed:?}): {why}"));
    }
    life.end().await;
    result
}

#[tokio::test(flavor = "multi_thread")]
async fn a_claim_is_not_said_to_lack_nothing_by_a_count_for_other_rules() {
    let backfill = || Deed::Begin {
        days: 20,
        only_leads: false,
    };
    let deeds = [
        Deed::Key { is_admin: false },
        Deed::Pass { hours: 3 },
        backfill(),
        Deed::Run { steps: None },
        Deed::Look { up_to_now: true },
        Deed::Rules { scope: 4 },
        backfill(),
        Deed::Run { steps: None },
    ];
    live_through(1, &deeds).await.unwrap();
}

fn number(variable: &str) -> Option<u32> {
    std::env::var(variable).ok().and_then(|number| number.parse().ok())
}

#[test]
fn whatever_happens_at_close_no_claim_is_false() {
    let histories = number("CLOSEHOOK_TEST_HISTORIES").unwrap_or(HISTORIES);
    let seed = number("CLOSEHOOK_TEST_SEED").unwrap_or(SEED);
    let runs = Runs {
        cases: histories,
        max_shrink_iters: 300,
        max_shrink_time: 120_000,
        failure_persistence: None,
        ..Runs::default()
    };
    let mut bytes = [0; 32];
    bytes[..4].copy_from_slice(&seed.to_le_bytes());
    let mut runner = TestRunner::new_with_rng(runs, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let runtime = Arc::new(runtime);
    let drawn = (any::<u64>(), history());
    // What fails is told at once: finding the smallest one like it takes a while.
    let (lived, failed) = (Cell::new(0), Cell::new(false));
    let result = runner.run(&drawn, |(seed, deeds)| {
        lived.set(lived.get() + u32::from(!failed.get()));
        let outcome = runtime.block_on(live_through(seed, &deeds));
        if let (Err(why), false) = (&outcome, failed.get()) {
            failed.set(true);
            eprintln!("history {} of {histories} fails: {why}", lived.get());
        }
        outcome.map_err(TestCaseError::fail)
    });
    if let Err(error) = result {
        panic!("CLOSEHOOK_TEST_SEED={seed}, history {}: {error}", lived.get());
    }
}
