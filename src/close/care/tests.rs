use arc_swap::ArcSwap;

use super::*;
use crate::close::api::client::{Auth, Call, Client};
use crate::close::api::oauth::OAuthChain;
use crate::close::completeness::marks::{Ask, BackfillJob, Marks};
use crate::close::connection::READ_WITHIN;
use crate::close::seams::Seams;
use crate::close::subscriptions::scope::Scope;
use crate::close::unanswered::Unanswered;
use crate::config::{Config, Credentials, Layers, Secret};
use crate::ingress::verify::Verifier;
use crate::state::{Expected, LocalStore, Store};

fn config(dir: &std::path::Path) -> Config {
    let layers = Layers {
        overrides: vec![("close.api_key".into(), "k".into())],
        ..Layers::new(&[], crate::rules::faults)
    };
    let mut config = Config::load(&layers).unwrap();
    config.log.dir = dir.to_owned();
    config
}

fn account(dir: &std::path::Path) -> Account {
    account_sharing(dir, None)
}

fn account_sharing(dir: &std::path::Path, shared: Option<Arc<Shared>>) -> Account {
    let config = config(dir);
    let rules = crate::rules::RuleSet::of(&config).unwrap();
    let log = crate::log::LocalLog::open(crate::log::Options::from_config(&config)).unwrap();
    let verifier = Arc::new(ArcSwap::from_pointee(Verifier::default()));
    Account::open_shared(&config, &rules, Arc::new(log), verifier, false, Arc::default(), shared)
}

/// Whatever it is that it waits for.
#[tokio::test(start_paused = true)]
async fn a_look_that_does_not_end_is_said_where_it_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let account = account(dir.path());
    let long = account.policy().health_every * 4;
    let overdue = |account: &Account| account.status().overdue_seconds;
    tokio::time::advance(long).await;
    assert_eq!(overdue(&account), None, "another node does");
    let caring = Caring::begin(&account);
    assert_eq!(overdue(&account), None, "it has only begun");
    tokio::time::advance(long).await;
    assert_eq!(overdue(&account), Some(long.as_secs()));
    assert!(!account.health().reachable);
    account.note(Err(Error::Server(503)));
    assert_eq!(overdue(&account), None, "it has ended, badly, and that is said");
    tokio::time::advance(long).await;
    assert_eq!(overdue(&account), Some(long.as_secs()), "the one after it does not");
    drop(caring);
    assert_eq!(overdue(&account), None, "another node does");
}

/// An account with a client that Close lets make no request for so long.
fn limited(dir: &std::path::Path, limit: Duration) -> (Account, Arc<Client>) {
    let account = account(dir);
    let auth = Auth::ApiKey(String::from("k").into());
    let client = Client::new("https://api.close.com/api/v1/".parse().unwrap(), auth, Seams::default());
    let client = Arc::new(client.unwrap());
    client.set_proved();
    client.limit_for(limit);
    account.connection.set(client.clone());
    (account, client)
}

#[tokio::test(start_paused = true)]
async fn a_look_that_waits_for_the_rate_limit_is_not_overdue() {
    let dir = tempfile::tempdir().unwrap();
    let limit = Duration::from_secs(300);
    let (account, client) = limited(dir.path(), limit);
    let long = account.policy().health_every * 4;
    let _caring = Caring::begin(&account);
    tokio::time::advance(long).await;
    assert_eq!(account.status().overdue_seconds, Some(long.as_secs()));
    client.limit_for(limit);
    let mut looking = Box::pin(account.look(None));
    assert!(futures::poll!(&mut looking).is_pending());
    let status = account.status();
    assert!(status.next_request_at.is_some());
    assert_eq!(status.overdue_seconds, None, "Close has said when to come again");
    drop(looking);
    let overdue = account.status().overdue_seconds;
    assert_eq!(overdue, Some(long.as_secs()), "nothing waits for it any more");
}

/// What kept it from getting on then may be over, and something else keep it now.
#[tokio::test]
async fn why_a_backfill_waits_is_of_this_life_or_told_as_of_an_earlier_one() {
    let dir = tempfile::tempdir().unwrap();
    let account = account(dir.path());
    let ask = Ask {
        since: None,
        until: None,
        types: Vec::new(),
        lead: None,
    };
    let begun_at: Timestamp = "2024-02-15T12:00:00Z".parse().unwrap();
    let job = BackfillJob::new(ask.at(begun_at), ("all".into(), "1".into()), begun_at);
    account.store.change_marks(|marks| marks.job = Some(job)).await.unwrap();
    let said = |account: &Account| {
        let backfill = account.status().backfill.unwrap();
        (backfill.job.trouble, backfill.earlier_trouble)
    };
    let caring = Caring::begin(&account);
    account.note_job(&Error::Server(503)).await;
    let trouble = Error::Server(503).to_string();
    let now = (Some(trouble.clone()), None::<String>);
    assert_eq!(said(&account), now);
    let note = |at: Timestamp| move |marks: &mut Marks| marks.job.as_mut().unwrap().troubled_at = Some(at);
    account.store.change_marks(note(begun_at)).await.unwrap();
    assert_eq!(said(&account), now, "also where the clock was set back meanwhile");
    drop(caring);
    let ahead: Timestamp = "2124-02-15T12:00:00Z".parse().unwrap();
    account.store.change_marks(note(ahead)).await.unwrap();
    let earlier = Some(format!("{trouble} (at 2124-02-15T12:00:00Z)"));
    assert_eq!(said(&account), (None, earlier.clone()), "nobody carries it out");
    let _caring = Caring::begin(&account);
    assert_eq!(said(&account), (None, earlier), "it was not tried yet");
    account.note_job(&Error::Server(502)).await;
    assert_eq!(said(&account), (Some(Error::Server(502).to_string()), None));
}

#[tokio::test(start_paused = true)]
async fn when_close_is_tried_again_is_known_where_it_could_not_be_used() {
    let now: Timestamp = "2024-02-15T12:00:00Z".parse().unwrap();
    let mut schedule = Schedule::begin();
    schedule.ended(&every(60), true, true);
    assert_eq!(schedule.tried_again_at(now), None, "the next look is a regular one");
    schedule.ended(&every(60), false, false);
    let wait = schedule.check_at.duration_since(Instant::now());
    assert_eq!(schedule.tried_again_at(now), now.checked_add(wait).ok());
}

#[tokio::test(start_paused = true)]
async fn close_that_is_being_tried_again_is_not_to_be_tried_later() {
    let dir = tempfile::tempdir().unwrap();
    let (account, _client) = limited(dir.path(), Duration::from_secs(300));
    let later: Timestamp = "2124-02-15T12:00:00Z".parse().unwrap();
    {
        let mut seen = account.seen();
        (seen.trouble, seen.tried_again_at) = (Some(Error::Server(503)), Some(later));
    }
    assert_eq!(account.status().tried_again_at, Some(later));
    let stop = CancellationToken::new();
    let looking = tokio::time::timeout(Duration::from_secs(1), look_after(&account, &stop)).await;
    assert!(looking.is_err(), "it waits for Close");
    assert_eq!(account.status().tried_again_at, None);
}

/// Both go by one budget, and what the look waits for is something else.
#[tokio::test(start_paused = true)]
async fn a_look_that_hangs_is_overdue_although_a_backfill_waits_for_the_rate_limit() {
    let dir = tempfile::tempdir().unwrap();
    let (account, client) = limited(dir.path(), Duration::from_secs(600));
    let _caring = Caring::begin(&account);
    // A change of subscriptions that does not come to its end.
    let _changing = account.begin_change().await;
    let mut looking = Box::pin(account.looks.of(account.changing.lock()));
    let call = Call::get("event/");
    let mut fetching = Box::pin(client.send(&call));
    assert!(futures::poll!(&mut looking).is_pending());
    assert!(futures::poll!(&mut fetching).is_pending());
    let long = account.policy().health_every * 4;
    tokio::time::advance(long).await;
    client.limit_for(Duration::from_secs(600));
    assert!(futures::poll!(&mut fetching).is_pending());
    let status = account.status();
    assert!(status.next_request_at.is_some());
    assert_eq!(status.overdue_seconds, Some(long.as_secs()));
    assert!(!account.health().reachable);
}

/// The disk that they are on does not give them.
#[tokio::test(start_paused = true)]
async fn secrets_that_can_not_be_read_keep_nobody_from_what_is_known() {
    let dir = tempfile::tempdir().unwrap();
    let account = account(dir.path());
    let hangs = account.connection.hang().await;
    let looks = async {
        assert_eq!(account.status().next_request_at, None);
        assert_eq!(account.clock_offset_seconds(), None);
        tokio::time::advance(READ_WITHIN).await;
    };
    let (client, ()) = tokio::join!(account.any_client(), looks);
    let error = client.unwrap_err().to_string();
    assert!(error.contains("the disk that they are on does not answer"), "{error}");
    drop(hangs);
    let client = account.any_client().await.unwrap();
    assert!(Arc::ptr_eq(&client, &account.any_client().await.unwrap()));
}

/// What it was made of is another one's by the time it is there.
#[tokio::test]
async fn a_client_that_was_made_by_older_settings_is_not_kept() {
    let dir = tempfile::tempdir().unwrap();
    let account = account(dir.path());
    let hangs = account.connection.hang().await;
    let mut asked = Box::pin(account.any_client());
    assert!(futures::poll!(&mut asked).is_pending());
    let mut config = config(dir.path());
    config.close.credentials = Some(Credentials::ApiKey(Secret::Inline(String::from("other").into())));
    account
        .reconfigure(&config, &crate::rules::RuleSet::of(&config).unwrap())
        .await;
    drop(hangs);
    assert!(asked.await.unwrap().is_for(&config.close));
}

fn every(minutes: u64) -> Policy {
    let rules = crate::rules::RuleSet::compile(&[], &[]).unwrap();
    Policy {
        health_every: Duration::from_secs(60 * minutes),
        reconcile_every: Duration::from_secs(180 * minutes),
        ..Policy::for_tests(Scope::of(&rules, true))
    }
}

#[tokio::test(start_paused = true)]
async fn intervals_that_are_others_count_from_the_last_look_on() {
    let minutes = |minutes: u64| Duration::from_secs(60 * minutes);
    let mut schedule = Schedule::begin();
    let began = Instant::now();
    schedule.ended(&every(60), true, true);
    assert_eq!(
        (schedule.check_at, schedule.reconcile_at),
        (began + minutes(60), began + minutes(180))
    );
    tokio::time::advance(minutes(10)).await;
    for interval in [5, 20, 90, 60] {
        schedule.follow(&every(interval));
        assert_eq!(schedule.check_at, began + minutes(interval));
        assert_eq!(schedule.reconcile_at, began + minutes(3 * interval));
    }
    // What was asked for is not put off.
    let now = Instant::now();
    schedule.compare_at(now);
    schedule.follow(&every(90));
    assert_eq!((schedule.check_at, schedule.reconcile_at), (began + minutes(90), now));
    // Neither is what is to be tried again.
    schedule.ended(&every(60), false, false);
    let again = schedule.check_at;
    assert!(again <= now + RETRY_AFTER);
    schedule.follow(&every(90));
    assert_eq!(schedule.check_at, again);
}

#[tokio::test]
async fn a_reload_wakes_who_looks() {
    let dir = tempfile::tempdir().unwrap();
    let account = account(dir.path());
    let config = config(dir.path());
    account
        .reconfigure(&config, &crate::rules::RuleSet::of(&config).unwrap())
        .await;
    let woken = std::pin::pin!(account.policy_changed.notified());
    assert!(futures::poll!(woken).is_ready());
}

/// A token as another process left it, which could not share it.
fn leave_token(account: &Account) {
    let chain = serde_json::json!({ "version": 1, "seed": "s", "refresh_token": "t", "previous": null });
    let left = serde_json::json!({ "version": 1, "chain": chain, "follows": null });
    files::write_json(&files::unsaved_path(&account.store.oauth_path()), &left).unwrap();
}

/// Whoever refreshes a token has what it takes to write another one.
#[tokio::test(start_paused = true)]
async fn a_stop_says_what_became_of_tokens_before_it_is_cut_off() {
    let dir = tempfile::tempdir().unwrap();
    let shared = Shared::new(Arc::new(Unanswered::new("oauth.json").also_to_readers()), dir.path());
    let account = account_sharing(dir.path(), Some(shared.clone()));
    leave_token(&account);
    let path = account.store.oauth_path();
    let chain = OAuthChain::new("id".into(), "secret".into(), "first".into(), path);
    let chain = chain
        .shared_by(Some(shared))
        .tracked_by(account.store.refreshes().clone());
    let url = "https://api.close.com/api/v1/".parse().unwrap();
    let client = Client::new(url, Auth::OAuth(Arc::new(chain)), Seams::default());
    let client = Arc::new(client.unwrap());
    account.connection.set(client.clone());
    let asking = tokio::spawn(async move { client.send(&Call::get("me/")).await });
    while account.store.refreshes().is_empty() {
        tokio::task::yield_now().await;
    }
    let began = Instant::now();
    account.settle().await;
    let a_moment = Duration::from_millis(10);
    assert!(began.elapsed() < SETTLED_WITHIN + a_moment, "{:?}", began.elapsed());
    asking.abort();
}

/// The disk with its credentials does not answer, say.
#[tokio::test]
async fn what_others_change_is_known_while_a_token_that_was_left_can_not_be_shared() {
    let (below, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(below.path(), false).unwrap();
    let shared = Shared::new(Arc::new(store.clone()), dir.path());
    let account = Arc::new(account_sharing(dir.path(), Some(shared.clone())));
    leave_token(&account);
    let _hangs = account.connection.hang().await;
    let stop = CancellationToken::new();
    let following = tokio::spawn(follow_shared(account.clone(), shared, stop.clone()));
    // With the first it is shown that what is shared can be followed, and the token is looked for.
    for value in [&b"{}"[..], b"[]"] {
        store
            .put("oauth.json", value.to_vec(), Expected::Anything)
            .await
            .unwrap();
        let copied = async {
            while std::fs::read(account.store.oauth_path()).ok().as_deref() != Some(value) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let copied = tokio::time::timeout(READ_WITHIN * 2 / 3, copied).await;
        copied.expect("before anybody gives up to wait for the credentials");
    }
    stop.cancel();
    following.await.unwrap();
}
