//! `apply`, rotation, replacement and clean-up killed between every two steps, with a Close that refuses duplicates: whatever is
//! written and whatever is asked of Close, there is a fault point before it and one behind it. In the end one subscription works,
//! no key is lost, and nothing of anybody else's was touched.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::time::Duration;

use closehook::close::{Error, NewByHand};
use closehook::config::Config;
use closehook::ingress::verify::Key;
use fake_close::{Settings, Subscription};
use serde_json::Value;

use crate::close::PUBLIC_URL;
use crate::close_process::{Process, World};

/// Steps of anything here, at the most.
const STEPS_MAX: i64 = 60;

/// Looks within which all that was begun must be finished.
const LOOKS_MAX: u32 = 12;

/// What is begun and killed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    /// The first `apply`.
    Apply,
    /// `apply --rotate`.
    Rotate,
    /// `apply` after the data directory was lost: a subscription here whose key nobody knows is in the way.
    Replace,
    /// A look at Close, by which the old subscription of a rotation goes.
    Finish,
    /// A look at Close that finds a creation which was cut off, with its orphan.
    CleanUp,
    /// `apply` where the subscription has to be changed into what one without a known key is.
    Change,
    /// `apply --rotate` of a subscription whose key the configuration has, with its id or without.
    RotateConfigured { named: bool },
    /// `subscription create`.
    ByHand,
    /// `subscription delete`.
    Delete,
}

async fn world() -> World {
    let settings = Settings {
        subscriptions_max: 500,
        ..Settings::calm()
    };
    let world = World::new(7, settings).await;
    world.fake.world().add_integrations(3);
    world
}

fn here(world: &World) -> Vec<Subscription> {
    let all = world.fake.world();
    all.subscriptions()
        .filter(|one| one.url == PUBLIC_URL)
        .cloned()
        .collect()
}

fn others(world: &World) -> Vec<(String, String, bool, String)> {
    let all = world.fake.world();
    let others = all.subscriptions().filter(|one| one.url != PUBLIC_URL);
    others
        .map(|one| (one.id.clone(), one.url.clone(), one.active, one.updated_by.clone()))
        .collect()
}

/// Every key there is on disk, by subscription, be it retired or not.
fn keys(world: &World) -> BTreeSet<(String, String)> {
    let text = std::fs::read(world.data().join("close/keys.json")).unwrap_or_default();
    let keys: Value = serde_json::from_slice(&text).unwrap_or_default();
    let text = |key: &Value, name: &str| key[name].as_str().unwrap().to_owned();
    let list = keys["keys"].as_array().cloned().unwrap_or_default();
    list.iter()
        .map(|key| (text(key, "id"), text(key, "signature_key")))
        .collect()
}

async fn something_happens(world: &World) -> String {
    let event = r#"{"object_type":"lead","action":"created"}"#;
    let event = world.fake.world().inject(event, Duration::ZERO, true).unwrap();
    world.fake.advance(Duration::from_secs(2)).await;
    event
}

/// What lies before the work.
async fn prepare(work: Work, world: &World) -> Config {
    let usual = world.usual();
    let narrow = || {
        let key = format!("api_key = \"{}\"", world.fake.api_key());
        world.config(&key, "[[rules]]\nname = \"r\"\nevents = [\"lead.created\"]\n")
    };
    match work {
        Work::Apply | Work::ByHand => usual,
        Work::Rotate | Work::Finish | Work::Delete => {
            let process = world.start(&usual);
            process.account.apply(false).await.unwrap();
            if work == Work::Finish {
                process.account.apply(true).await.unwrap();
                something_happens(world).await;
            }
            process.end().await;
            usual
        }
        Work::Replace => {
            let process = world.start(&usual);
            process.account.apply(false).await.unwrap();
            process.end().await;
            std::fs::remove_dir_all(world.data()).unwrap();
            usual
        }
        Work::RotateConfigured { named } => {
            let process = world.start(&usual);
            process.account.apply(false).await.unwrap();
            process.end().await;
            std::fs::remove_dir_all(world.data()).unwrap();
            let old = here(world).remove(0);
            let id = if named {
                format!("id = \"{}\"\n", old.id)
            } else {
                String::new()
            };
            let key = format!("signature_key = \"{}\"\n", old.signature_key);
            world.config(
                &format!("api_key = \"{}\"", world.fake.api_key()),
                &format!("[[close.subscriptions]]\n{id}{key}"),
            )
        }
        Work::CleanUp => {
            // Dead when Close had made it, and before its key was on disk.
            let process = world.start(&usual);
            let mut steps = 0;
            loop {
                steps += 1;
                let before = here(world).len();
                assert!(steps < STEPS_MAX, "it is never made");
                if process.dies_after(steps, process.account.apply(false)).await.is_none() && here(world).len() > before
                {
                    break;
                }
                assert!(keys(world).is_empty(), "its key was kept");
            }
            process.end().await;
            usual
        }
        Work::Change => {
            let process = world.start(&usual);
            process.account.apply(false).await.unwrap();
            process.end().await;
            std::fs::remove_dir_all(world.data()).unwrap();
            let process = world.start(&narrow());
            process.account.apply(false).await.unwrap();
            process.end().await;
            world.usual()
        }
    }
}

async fn carry_out(work: Work, process: &Process, world: &World) -> Result<(), Error> {
    match work {
        Work::Apply | Work::Replace | Work::Change => process.account.apply(false).await.map(drop),
        Work::Rotate | Work::RotateConfigured { .. } => process.account.apply(true).await.map(drop),
        Work::Finish | Work::CleanUp => process.account.look_once(false).await,
        Work::ByHand => {
            let new = NewByHand {
                url: None,
                events: vec!["lead.created".into()],
                filter: None,
                verify_ssl: true,
            };
            process.account.create(&new).await.map(drop)
        }
        Work::Delete => {
            let id = here(world).first().map(|one| one.id.clone());
            match id {
                Some(id) => process.account.delete(&id).await,
                None => Ok(()),
            }
        }
    }
}

/// The live keys of exactly these subscriptions, beside those that the configuration has.
fn knows(world: &World, process: &Process, all: &[Subscription]) -> bool {
    let verifier = process.verifier.load();
    let kept: BTreeSet<_> = verifier
        .kept
        .iter()
        .filter_map(|key| key.subscription_id.clone())
        .collect();
    let signs = |one: &Subscription| {
        let key = Key::from_hex(None, &one.signature_key).unwrap();
        let headers = key.sign(jiff::Timestamp::UNIX_EPOCH, b"{}");
        let fits = |known: &Key| known.subscription_id.as_ref().is_none_or(|id| *id == one.id);
        verifier
            .live()
            .any(|known| fits(known) && known.signed(&headers, b"{}"))
    };
    let is_there = |id: &String| world.fake.world().subscription(id).is_some();
    all.iter().all(signs) && kept.iter().all(is_there)
}

/// One subscription delivers here, its key is live, and nothing is under way any more.
async fn one_works(world: &World, process: &Process, what: &str) {
    for look in 0..LOOKS_MAX {
        let event = something_happens(world).await;
        let _ = process.account.look_once(false).await;
        if look == LOOKS_MAX / 2 {
            // Whoever was interrupted says it again.
            process.account.apply(false).await.unwrap();
        }
        let all = here(world);
        let text = std::fs::read(world.data().join("close/keys.json")).unwrap_or_default();
        let on_disk: Value = serde_json::from_slice(&text).unwrap_or_default();
        let is_settled = on_disk["intent"].is_null()
            && on_disk["rotation"].is_null()
            && on_disk["replaced"].as_array().is_none_or(Vec::is_empty);
        if let ([one], true) = (all.as_slice(), is_settled)
            && one.active
            && knows(world, process, &all)
        {
            let event = if one.queued == 0 {
                event
            } else {
                something_happens(world).await
            };
            let delivered = world.fake.world().deliveries(0).any(|delivery| delivery.id == event);
            if delivered || world.fake.world().delivery_count() > 0 && something_delivered(world).await {
                return;
            }
        }
        // A creation that was cut off before anything of it was on disk is begun by whoever wants it.
        let has_keys = process.verifier.load().live().next().is_some();
        if is_settled && (!has_keys || all.iter().all(|one| !one.active)) {
            process.account.apply(false).await.unwrap();
        }
    }
    let all: Vec<_> = here(world).into_iter().map(|one| (one.id, one.active)).collect();
    let text = std::fs::read_to_string(world.data().join("close/keys.json")).unwrap_or_default();
    panic!("{what}: not one that works: {all:?} {text}");
}

async fn something_delivered(world: &World) -> bool {
    let event = something_happens(world).await;
    world.fake.world().deliveries(0).any(|delivery| delivery.id == event)
}

/// Kills the work after so many steps, and what takes up where it was after `again` more. Gives whether it was killed.
async fn killed(work: Work, steps: i64, again: Option<i64>) -> bool {
    let world = world().await;
    let config = prepare(work, &world).await;
    let before = others(&world);
    let known = keys(&world);
    let process = world.start(&config);
    let ended = process.dies_after(steps, carry_out(work, &process, &world)).await;
    let at = process.steps.taken().last().cloned().unwrap_or_default();
    let what = format!("{work:?}, killed after step {steps} ({at}), and again after {again:?}");
    if let Some(result) = &ended {
        result
            .as_ref()
            .unwrap_or_else(|error| panic!("{what}: undisturbed, it does its work: {error}"));
    }
    let mut kept: BTreeSet<_> = known.union(&keys(&world)).cloned().collect();
    process.end().await;
    if let Some(again) = again {
        let process = world.start(&config);
        process.dies_after(again, process.account.look_once(false)).await;
        kept = kept.union(&keys(&world)).cloned().collect();
        process.end().await;
    }
    let process = world.start(&config);
    one_works(&world, &process, &what).await;
    assert_eq!(others(&world), before, "{what}: nothing of anybody else's is touched");
    let now = keys(&world);
    assert!(kept.is_subset(&now), "{what}: a key is lost: {kept:?} {now:?}");
    process.end().await;
    ended.is_none()
}

async fn killed_between_every_two_steps(work: Work) {
    let mut steps = 0;
    while killed(work, steps, None).await {
        steps += 1;
        assert!(steps < STEPS_MAX, "{work:?} does not end");
    }
    assert!(steps >= 2, "{work:?} has {steps} steps only");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_first_apply_killed_between_any_two_steps_ends_with_one_subscription() {
    killed_between_every_two_steps(Work::Apply).await;
    killed_between_every_two_steps(Work::ByHand).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_killed_between_any_two_steps_ends_with_one_subscription() {
    killed_between_every_two_steps(Work::Rotate).await;
    killed_between_every_two_steps(Work::Finish).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_of_what_the_configuration_names_killed_between_any_two_steps_ends_with_one_subscription() {
    for named in [true, false] {
        killed_between_every_two_steps(Work::RotateConfigured { named }).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_apply_behind_a_rotation_of_what_the_configuration_names_keeps_what_works() {
    for named in [true, false] {
        let work = Work::RotateConfigured { named };
        killed_between_every_two_steps_and_followed(&[(work, Work::Apply), (work, Work::ByHand)]).await;
    }
}

/// A rotation is killed, and then Close shall deliver to another URL: what was paused for the one is no part of the other.
#[tokio::test(flavor = "multi_thread")]
async fn a_rotation_that_was_killed_leaves_no_pause_where_another_url_is_wanted_now() {
    for steps in 0..STEPS_MAX {
        let world = world().await;
        let mut config = prepare(Work::RotateConfigured { named: false }, &world).await;
        let old = here(&world).remove(0).id;
        let process = world.start(&config);
        let ended = process.dies_after(steps, process.account.apply(true)).await;
        let at = process.steps.taken().last().cloned().unwrap_or_default();
        process.end().await;
        config.server.public_url = Some("https://hooks.example.com/moved".into());
        let process = world.start(&config);
        process.account.apply(false).await.unwrap();
        let text = std::fs::read(world.data().join("close/keys.json")).unwrap();
        let on_disk: Value = serde_json::from_slice(&text).unwrap();
        let is_being_replaced = on_disk["rotation"]["old"] == old.as_str();
        let is_active = world.fake.world().subscription(&old).is_some_and(|one| one.active);
        assert!(
            is_active || is_being_replaced,
            "killed after step {steps} ({at}): it stays paused"
        );
        process.end().await;
        if ended.is_some() {
            return;
        }
    }
    panic!("it does not end");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_killed_between_any_two_steps_ends_with_one_subscription() {
    killed_between_every_two_steps(Work::Replace).await;
    killed_between_every_two_steps(Work::Change).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clean_up_killed_between_any_two_steps_ends_with_one_subscription() {
    killed_between_every_two_steps(Work::CleanUp).await;
    killed_between_every_two_steps(Work::Delete).await;
}

/// Whoever goes on with it is killed too: every third place of the first by every fourth of the second.
#[tokio::test(flavor = "multi_thread")]
async fn whoever_takes_up_where_one_was_killed_can_be_killed_too() {
    for work in [Work::Rotate, Work::Replace, Work::CleanUp] {
        for steps in (1..STEPS_MAX).step_by(3) {
            let mut was_killed = true;
            for again in (0..16).step_by(4) {
                was_killed = killed(work, steps, Some(again)).await;
            }
            if !was_killed {
                break;
            }
        }
    }
}

/// All that delivers here works: each one is active and its key is known, nothing is under way any more, and what happens then
/// comes from each.
async fn all_work(world: &World, process: &Process, what: &str) {
    for _ in 0..LOOKS_MAX {
        something_happens(world).await;
        let _ = process.account.look_once(false).await;
        let text = std::fs::read(world.data().join("close/keys.json")).unwrap_or_default();
        let on_disk: Value = serde_json::from_slice(&text).unwrap_or_default();
        let is_settled = on_disk["intent"].is_null()
            && on_disk["rotation"].is_null()
            && on_disk["replaced"].as_array().is_none_or(Vec::is_empty);
        let all = here(world);
        let are_active = !all.is_empty() && all.iter().all(|one| one.active);
        if is_settled && are_active && knows(world, process, &all) {
            return;
        }
    }
    let all: Vec<_> = here(world).into_iter().map(|one| (one.id, one.active)).collect();
    let text = std::fs::read_to_string(world.data().join("close/keys.json")).unwrap_or_default();
    panic!("{what}: not all of them work: {all:?} {text}");
}

/// Kills the work after so many steps, and begins another one right behind it, before anybody has looked. Gives whether it was
/// killed.
async fn killed_and_followed(work: Work, steps: i64, next: Work) -> bool {
    let world = world().await;
    let config = prepare(work, &world).await;
    let before = others(&world);
    let process = world.start(&config);
    let ended = process.dies_after(steps, carry_out(work, &process, &world)).await;
    let at = process.steps.taken().last().cloned().unwrap_or_default();
    let what = format!("{work:?}, killed after step {steps} ({at}), and {next:?} behind it");
    process.end().await;
    let process = world.start(&config);
    match carry_out(next, &process, &world).await {
        // The same one is there and works.
        Err(Error::Duplicate(ids)) if next == Work::ByHand && work == Work::ByHand => {
            let known = keys(&world);
            assert!(
                ids.iter().all(|id| known.iter().any(|(of, _)| of == id)),
                "{what}: an orphan is in the way"
            );
        }
        followed => followed.unwrap_or_else(|error| panic!("{what}: {error}")),
    }
    all_work(&world, &process, &what).await;
    assert_eq!(others(&world), before, "{what}: nothing of anybody else's is touched");
    process.end().await;
    ended.is_none()
}

async fn killed_between_every_two_steps_and_followed(works: &[(Work, Work)]) {
    for (work, next) in works.iter().copied() {
        let mut steps = 0;
        while killed_and_followed(work, steps, next).await {
            steps += 1;
            assert!(steps < STEPS_MAX, "{work:?} does not end");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_begun_behind_a_creation_that_was_killed_leaves_no_orphan() {
    killed_between_every_two_steps_and_followed(&[
        (Work::ByHand, Work::ByHand),
        (Work::Apply, Work::ByHand),
        (Work::CleanUp, Work::ByHand),
        (Work::ByHand, Work::Apply),
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_begun_behind_a_rotation_that_was_killed_leaves_no_pause() {
    killed_between_every_two_steps_and_followed(&[
        (Work::Rotate, Work::ByHand),
        (Work::Finish, Work::ByHand),
        (Work::Rotate, Work::Apply),
    ])
    .await;
}

/// Whoever may only look changes nothing, here or at Close: not even whose all of it is gets written down.
#[tokio::test(flavor = "multi_thread")]
async fn a_question_writes_nothing() {
    let world = world().await;
    let process = world.start(&world.usual());
    process.steps.arm(i64::MAX);
    process.account.subscriptions().await.unwrap();
    process.account.plan().await.unwrap();
    assert_eq!(process.steps.taken().len(), 0, "{:?}", process.steps.taken());
    // What changes something still finds out whose it is.
    process.account.apply(false).await.unwrap();
    let taken = process.steps.taken().clone();
    assert!(taken.contains(&"after organization.json".to_owned()), "{taken:?}");
}

/// The fault points are before and behind everything that is written, and everything that changes something at Close.
#[tokio::test(flavor = "multi_thread")]
async fn every_write_and_every_change_at_close_has_its_fault_points() {
    let world = world().await;
    let process = world.start(&world.usual());
    process.steps.arm(i64::MAX);
    process.account.apply(false).await.unwrap();
    let taken = process.steps.taken().clone();
    for step in ["keys.json", "organization.json", "POST webhook/"] {
        for when in ["before", "after"] {
            assert!(taken.contains(&format!("{when} {step}")), "{when} {step}: {taken:?}");
        }
    }
    assert_eq!(world.skew.load(Ordering::Relaxed), 0);
    process.end().await;
}
