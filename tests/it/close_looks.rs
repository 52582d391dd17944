//! A look at Close beside a person who changes something there: neither is judged by what the other had before.

use std::sync::Arc;
use std::time::Duration;

use closehook::close::{Condition, FoundSubscription, NewByHand};
use fake_close::Settings;
use fake_close::fault::{Fault, Kind};

use crate::close_process::{Process, World};
use crate::harness::until;

/// Longer than anything takes that is to happen meanwhile, if nothing keeps it from happening.
const HELD: Duration = Duration::from_millis(1500);

fn by_hand(event: &str) -> NewByHand {
    NewByHand {
        url: None,
        events: vec![event.into()],
        filter: None,
        verify_ssl: true,
    }
}

async fn begun() -> (World, Process) {
    let world = World::new(7, Settings::calm()).await;
    let process = world.start(&world.usual());
    (world, process)
}

fn found(process: &Process) -> Vec<FoundSubscription> {
    process.account.status().subscriptions
}

/// Holds the next request of this kind as long as `HELD`, and does `work` when Close has it.
async fn while_held<T>(
    world: &World,
    fault: Fault,
    look: impl Future<Output = T>,
    work: impl Future<Output = ()>,
) -> T {
    let seen = world.fake.world().requests().count();
    let is_late = fault.kind == Kind::Late;
    world.fake.world().faults.order(fault.delayed(HELD)).unwrap();
    let work = async {
        until("Close has the request", async || {
            let world = world.fake.world();
            let took_effect = !is_late || world.requests().count() > seen;
            world.faults.list().is_empty() && took_effect
        })
        .await;
        work.await;
    };
    tokio::join!(look, work).0
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_made_or_deleted_while_close_answers_a_look_is_neither_missing_nor_keyless() {
    let (world, process) = begun().await;
    process.account.apply(false).await.unwrap();
    process.account.look_once(false).await.unwrap();
    let list = || Fault::new(Kind::Late).on("GET /api/v1/webhook/");
    let account = process.account.clone();
    let make = async move { drop(account.create(&by_hand("lead.merged")).await.unwrap()) };
    Box::pin(while_held(&world, list(), process.account.look_once(false), make))
        .await
        .unwrap();
    let is_well = |one: &FoundSubscription| one.state == Condition::Active;
    assert!(found(&process).iter().all(is_well), "{:?}", found(&process));

    process.account.look_once(false).await.unwrap();
    assert_eq!(found(&process).len(), 2);
    let made = {
        let close = world.fake.world();
        let made = close.subscriptions().find(|one| one.events.len() == 1);
        made.unwrap().id.clone()
    };
    let account = process.account.clone();
    let delete = async move { account.delete(&made).await.unwrap() };
    Box::pin(while_held(&world, list(), process.account.look_once(false), delete))
        .await
        .unwrap();
    assert!(found(&process).iter().all(is_well), "{:?}", found(&process));
    process.account.look_once(false).await.unwrap();
    assert_eq!(found(&process).len(), 1);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_person_asks_while_something_is_made_or_deleted_is_answered_by_one_state() {
    let (world, process) = begun().await;
    process.account.apply(false).await.unwrap();
    let id = process.account.subscriptions().await.unwrap()[0].0.id.clone();
    let list = || Fault::new(Kind::Late).on("GET /api/v1/webhook/");
    let account = process.account.clone();
    let delete = async move { account.delete(&id).await.unwrap() };
    let listed = while_held(&world, list(), process.account.subscriptions(), delete)
        .await
        .unwrap();
    assert!(
        listed
            .iter()
            .all(|(_, standing)| *standing == closehook::close::Standing::Ours),
        "{listed:?}"
    );
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_a_person_makes_during_a_look_is_not_undone_by_it() {
    let (world, process) = begun().await;
    process.account.apply(false).await.unwrap();
    process.account.create(&by_hand("lead.merged")).await.unwrap();
    process.account.look_once(false).await.unwrap();
    let ids: Vec<String> = found(&process).into_iter().map(|one| one.id).collect();
    let [first, second] = ids.as_slice() else {
        panic!("{ids:?}")
    };
    for id in &ids {
        assert!(world.fake.world().pause(id));
    }
    let resuming = Fault::new(Kind::Late).on(&format!("PUT /api/v1/webhook/{first}/"));
    let (account, id) = (process.account.clone(), second.clone());
    let pause = async move { account.set_active(&id, false).await.unwrap() };
    Box::pin(while_held(&world, resuming, process.account.look_once(false), pause))
        .await
        .unwrap();
    let is_active = |id: &str| world.fake.world().subscription(id).unwrap().active;
    assert_eq!((is_active(first), is_active(second)), (true, false));
    process.account.look_once(false).await.unwrap();
    let states: Vec<Condition> = found(&process).into_iter().map(|one| one.state).collect();
    assert_eq!(states, [Condition::Active, Condition::PausedByHand]);
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_waits_for_nothing_that_is_being_made_and_what_was_made_is_looked_at_soon() {
    let (world, process) = begun().await;
    process.account.apply(false).await.unwrap();
    process.account.look_once(false).await.unwrap();
    let stop = tokio_util::sync::CancellationToken::new();
    let looking = tokio::spawn(closehook::close::supervise(process.account.clone(), stop.clone()));
    until("it looks", async || process.account.status().reconciled_at.is_some()).await;
    let post = Fault::new(Kind::Latency).on("POST /api/v1/webhook/");
    let account = Arc::clone(&process.account);
    let make = async move { account.create(&by_hand("lead.merged")).await.unwrap() };
    let at_once = async { assert_eq!(found(&process).len(), 1) };
    while_held(&world, post, make, at_once).await;
    // The next regular look is minutes away.
    until("what was made is seen", async || found(&process).len() == 2).await;
    stop.cancel();
    looking.await.unwrap();
    // Nobody here looks any more: another node may, and see something else.
    let status = process.account.status();
    assert!(status.subscriptions.is_empty() && status.checked_at.is_none() && status.reconciled_at.is_none());
    process.end().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_fails_takes_no_mark_along_that_may_be_right() {
    let (world, process) = begun().await;
    process.account.apply(false).await.unwrap();
    let id = process.account.subscriptions().await.unwrap()[0].0.id.clone();
    let pause = async || process.account.set_active(&id, false).await;
    let state = async || {
        process.account.look_once(false).await.unwrap();
        found(&process)[0].state
    };
    let order = |fault: Fault| {
        let fault = fault.on(&format!("PUT /api/v1/webhook/{id}/"));
        world.fake.world().faults.order(fault).unwrap();
    };
    // Close says no, and nothing was marked before.
    order(Fault::new(Kind::Status).status(403));
    pause().await.unwrap_err();
    assert_eq!(state().await, Condition::Active);
    assert!(world.fake.world().pause(&id));
    assert_eq!(state().await, Condition::Active, "what Close has paused is resumed");
    process.account.set_active(&id, true).await.unwrap();

    // It is not known what Close did.
    order(Fault::new(Kind::DropAnswer).times(100));
    pause().await.unwrap_err();
    world.fake.world().faults.clear();
    assert_eq!(state().await, Condition::PausedByHand);

    // Close says no, and it was paused by a person before.
    order(Fault::new(Kind::Status).status(403));
    pause().await.unwrap_err();
    assert_eq!(state().await, Condition::PausedByHand);
    process.end().await;
}
