use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use fake_close::fault::{Fault, Kind};
use fake_close::{Fake, Settings};

use super::*;
use crate::close::Seams;
use crate::config::{Config, Layers};
use crate::ingress::verify::Verifier;
use crate::rules::RuleSet;

/// What happens at a step; how often the keys were to be written before.
type AtStep = fn(dir: &Path, what: &str, writes: usize);

/// An account at this Close that has nothing yet, and what happens at its steps.
fn account(fake: &Fake, dir: &Path, at: AtStep) -> Account {
    let file = dir.join("closehook.toml");
    let text = format!(
        "[server]\npublic_url = \"https://hooks.example.com/close\"\n[log]\ndir = \"{}\"\n[close]\nbase_url = \"{}\"\napi_key = \"{}\"\n",
        dir.join("data").display(),
        fake.base_url(),
        fake.api_key()
    );
    std::fs::write(&file, text).unwrap();
    let layers = Layers {
        file: Some(file),
        ..Layers::new(crate::sinks::REGISTRY, crate::rules::faults)
    };
    let config = Config::load(&layers).unwrap();
    let rules = RuleSet::of(&config).unwrap();
    let log = crate::log::LocalLog::open(crate::log::Options::from_config(&config)).unwrap();
    let (close, writes) = (config.log.dir.join("close"), AtomicUsize::new(0));
    let seams = Seams {
        step: Some(std::sync::Arc::new(move |what| {
            let count = writes.fetch_add(usize::from(what == "before keys.json"), Ordering::SeqCst);
            at(&close, &what, count);
            Box::pin(std::future::ready(()))
        })),
        ..Seams::default()
    };
    let verifier = std::sync::Arc::new(ArcSwap::from_pointee(Verifier::default()));
    Account::open_with(&config, &rules, std::sync::Arc::new(log), verifier, false, seams)
}

async fn close() -> (Fake, tempfile::TempDir) {
    crate::install_crypto();
    let options = fake_close::Options {
        settings: Settings::calm(),
        ..fake_close::Options::default()
    };
    (Fake::start(options).await.unwrap(), tempfile::tempdir().unwrap())
}

/// Its key is on disk then, and needs no second look at the disk.
#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_whose_key_is_durable_stays_whatever_comes_then() {
    let (fake, dir) = close().await;
    let unreadable: AtStep = |dir, what, writes| {
        // After the intent comes the key.
        if what == "after keys.json" && writes == 2 {
            std::fs::rename(dir.join("keys.json"), dir.join("kept.json")).unwrap();
            std::fs::create_dir(dir.join("keys.json")).unwrap();
        }
    };
    let account = account(&fake, dir.path(), unreadable);
    let applied = account.apply(false).await.unwrap();
    let there: Vec<String> = fake.world().subscriptions().map(|one| one.id.clone()).collect();
    assert_eq!(there, [applied.subscription]);
    assert_eq!(account.verifier.load().kept.len(), 1, "its deliveries are accepted");
}

/// Else nobody would know of it, and Close would deliver for ever what nobody can verify.
#[tokio::test(flavor = "multi_thread")]
async fn what_is_begun_is_known_as_long_as_its_orphan_may_be_there() {
    let (fake, dir) = close().await;
    let unwritable: AtStep = |dir, what, writes| {
        let in_the_way = dir.join("keys.json.tmp");
        match (what, writes) {
            ("before keys.json", 1) => std::fs::create_dir_all(in_the_way.join("x")).unwrap(),
            (what, 2) if what.starts_with("before DELETE") && in_the_way.exists() => {
                std::fs::remove_dir_all(in_the_way).unwrap();
            }
            _ => {}
        }
    };
    let account = account(&fake, dir.path(), unwritable);
    let refused = Fault::new(Kind::Status).on("DELETE /api/v1/webhook/").status(403);
    fake.world().faults.order(refused).unwrap();
    account.apply(false).await.unwrap_err();
    assert_eq!(fake.world().subscriptions().count(), 1, "the orphan");
    assert!(account.store.keys().intent.is_some(), "what tells it");
    assert!(account.finish_what_was_begun().await.unwrap());
    let there: Vec<String> = fake.world().subscriptions().map(|one| one.id.clone()).collect();
    assert_eq!(
        there,
        account.store.keys().live_ids(),
        "the orphan is gone, and another one made"
    );
}
