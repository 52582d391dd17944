use arc_swap::ArcSwap;

use super::*;
use crate::close::api::client::{Auth, Client};
use crate::close::seams::Seams;
use crate::config::{Config, Layers};
use crate::ingress::verify::Verifier;

fn account(dir: &std::path::Path) -> Account {
    let layers = Layers {
        overrides: vec![("close.api_key".into(), "k".into())],
        ..Layers::new(&[], crate::rules::faults)
    };
    let mut config = Config::load(&layers).unwrap();
    config.log.dir = dir.to_owned();
    let rules = crate::rules::RuleSet::of(&config).unwrap();
    let log = crate::log::LocalLog::open(crate::log::Options::from_config(&config)).unwrap();
    let verifier = Arc::new(ArcSwap::from_pointee(Verifier::default()));
    Account::open(&config, &rules, Arc::new(log), verifier, false)
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

#[tokio::test(start_paused = true)]
async fn a_look_that_waits_for_the_rate_limit_is_not_overdue() {
    let dir = tempfile::tempdir().unwrap();
    let account = account(dir.path());
    let auth = Auth::ApiKey(String::from("k").into());
    let client = Client::new("https://api.close.com/api/v1/".parse().unwrap(), auth, Seams::default());
    let client = Arc::new(client.unwrap());
    *account.client_cell() = Some(client.clone());
    let long = account.policy().health_every * 4;
    let _caring = Caring::begin(&account);
    tokio::time::advance(long).await;
    assert_eq!(account.status().overdue_seconds, Some(long.as_secs()));
    let limit = Duration::from_secs(300);
    client.limit_for(limit);
    let status = account.status();
    assert!(status.next_request_at.is_some());
    assert_eq!(status.overdue_seconds, None, "Close has said when to come again");
    tokio::time::advance(limit).await;
    let overdue = account.status().overdue_seconds;
    assert_eq!(overdue, Some((long + limit).as_secs()), "nothing waits for it any more");
}
