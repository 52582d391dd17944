use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::Duration;

use arc_swap::ArcSwap;

use super::*;
use crate::close::Account;
use crate::close::unanswered::Unanswered;
use crate::ingress::verify::Verifier;
use crate::state;

const KEY: &str = "058bfb6a3d8cfdc4da7c3be5901b16ae11da982b46a25fb2cd7016e97a140a1c";

#[tokio::test]
async fn keys_are_private_on_disk_and_silent_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let store = Arc::new(CloseStore::open(dir.path(), false, Seams::default()));
    let now = Timestamp::UNIX_EPOCH;
    let key = StoredKey::new("whsub_1".into(), "https://a".into(), KEY.into(), now).unwrap();
    assert!(!format!("{key:?}").contains(KEY));
    store.change_keys(|keys| keys.list.push(key)).await.unwrap();
    let path = dir.path().join("close/keys.json");
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let (live, retired) = signature_keys(dir.path()).unwrap();
    assert_eq!((live.len(), retired.len()), (1, 0));
    assert_eq!(live[0].subscription_id.as_deref(), Some("whsub_1"));
    store
        .change_keys(move |keys| keys.retire("whsub_1", now))
        .await
        .unwrap();
    let (live, retired) = signature_keys(dir.path()).unwrap();
    assert_eq!((live.len(), retired.len()), (0, 1));
    let again = CloseStore::open(dir.path(), true, Seams::default());
    assert!(again.keys().live("whsub_1").is_none());
    assert!(
        Arc::new(again).change_keys(|_| ()).await.is_err(),
        "reading writes nothing"
    );
}

#[tokio::test]
async fn a_keys_file_that_cannot_be_read_is_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("close")).unwrap();
    let path = dir.path().join("close/keys.json");
    for (content, why) in [
        ("{\"version\": 1, \"keys\": [{", "damaged"),
        ("{\"version\": 2}", "newer version"),
    ] {
        std::fs::write(&path, content).unwrap();
        let store = Arc::new(CloseStore::open(dir.path(), false, Seams::default()));
        let error = store.change_keys(|_| ()).await.unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), content);
    }
    std::fs::write(&path, "").unwrap();
    assert!(signature_keys(dir.path()).is_err());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(dir.path().join("close/state.json"), "nonsense").unwrap();
    assert!(
        CloseStore::open(dir.path(), false, Seams::default())
            .marks()
            .complete
            .is_none()
    );
}

/// What it says is worth something to the closehook that has written it.
#[tokio::test]
async fn marks_of_a_newer_closehook_are_never_written_over() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("close")).unwrap();
    let path = dir.path().join("close/state.json");
    let newer = r#"{"version": 2, "complete": "in another way"}"#;
    std::fs::write(&path, newer).unwrap();
    let store = Arc::new(CloseStore::open(dir.path(), false, Seams::default()));
    for refused in [store.check_marks(), store.change_marks(|_| ()).await] {
        let refused = refused.unwrap_err();
        assert!(refused.to_string().contains("run the newer version"), "{refused}");
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), newer);
    // What is damaged is worth nothing to anybody.
    std::fs::write(&path, "nonsense").unwrap();
    let store = Arc::new(CloseStore::open(dir.path(), false, Seams::default()));
    assert!(store.forgotten().is_some());
    store.change_marks(|_| ()).await.unwrap();
    assert!(readable(dir.path()).iter().all(Result::is_ok));
}

/// An account whose changes are shared in a store.
fn account_on(dir: &Path, store: Arc<dyn state::Store>) -> Account {
    let mut config = crate::config::Config::load(&crate::config::Layers::new(&[], crate::rules::faults)).unwrap();
    config.log.dir = dir.to_owned();
    let rules = crate::rules::RuleSet::of(&config).unwrap();
    let log = crate::log::LocalLog::open(crate::log::Options::from_config(&config)).unwrap();
    let verifier = Arc::new(ArcSwap::from_pointee(Verifier::default()));
    let shared = Some(Shared::new(store, dir));
    Account::open_shared(&config, &rules, Arc::new(log), verifier, false, Arc::default(), shared)
}

/// Two nodes, each with its directory.
fn two_nodes(below: &Path) -> [Account; 2] {
    let store = state::LocalStore::open(&below.join("shared"), false).unwrap();
    ["one", "two"].map(|name| account_on(&below.join(name), Arc::new(store.clone())))
}

async fn add_key(account: &Account) {
    let key = StoredKey::new("whsub_1".into(), "https://a".into(), KEY.into(), Timestamp::UNIX_EPOCH).unwrap();
    let added = account.store.change_keys(|keys| keys.list.push(key)).await;
    added.unwrap();
}

async fn retire_key(account: &Account) {
    let retire = |keys: &mut Keys| keys.retire("whsub_1", Timestamp::UNIX_EPOCH);
    account.store.change_keys(retire).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_change_counts_here_although_this_nodes_disk_is_full() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = two_nodes(dir.path());
    let in_the_way = one.store.dir.join("keys.json.tmp");
    std::fs::create_dir_all(in_the_way.join("x")).unwrap();
    add_key(&two).await;
    let marked = two.store.change_marks(|marks| marks.belong_to("orga_1".into())).await;
    marked.unwrap();
    one.catch_up().await.unwrap();
    assert_eq!(one.verifier.load().kept.len(), 1, "its deliveries are good here too");
    assert!(
        one.store.marks().organization.is_some(),
        "the other files are taken over"
    );
    retire_key(&one).await;
    two.catch_up().await.unwrap();
    assert_eq!(
        (two.verifier.load().kept.len(), two.verifier.load().retired.len()),
        (0, 1)
    );
    std::fs::remove_dir_all(in_the_way).unwrap();
    one.catch_up().await.unwrap();
    let (live, retired) = signature_keys(one.store.data_dir()).unwrap();
    assert_eq!((live.len(), retired.len()), (0, 1), "the copy is made up for");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_taken_over_late_undoes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let [one, two] = two_nodes(dir.path());
    add_key(&two).await;
    let shared = one.store.shared().unwrap();
    let late = shared.look().await.unwrap();
    one.catch_up().await.unwrap();
    retire_key(&one).await;
    one.store.reread(&late).await.unwrap();
    assert!(one.store.keys().live("whsub_1").is_none());
    one.store.change_keys(|_| ()).await.unwrap();
}

/// With one thread for all of them: were it to wait, nobody would be left to see the change through.
#[test]
fn whoever_asks_waits_for_no_change_that_is_under_way() {
    const LONG: Duration = Duration::from_secs(20);
    for key in ["keys.json", "state.json", ORGANIZATION] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let dir = tempfile::tempdir().unwrap();
        let (asked, is_asked) = mpsc::channel();
        let unanswered = Arc::new(Unanswered::new(key).telling(asked));
        let account = Arc::new(runtime.block_on(async { account_on(dir.path(), unanswered) }));
        let store = account.store.clone();
        runtime.spawn(async move {
            let organization = Organization {
                id: "orga_1".into(),
                name: None,
            };
            match key {
                "keys.json" => store.change_keys(|keys| keys.paused.extend(["whsub_1".into()])).await,
                "state.json" => store.change_marks(|_| ()).await,
                _ => store.remember_organization(organization).await,
            }
        });
        let is_under_way = is_asked.recv_timeout(LONG);
        let (tell, told) = mpsc::channel();
        runtime.spawn(async move {
            let status = account.status();
            let counts = (account.health().held_events, account.held_by_sink().len());
            let known = (account.store.keys().paused.len(), status.organization.is_some());
            tell.send((counts, known)).unwrap();
        });
        let answer = told.recv_timeout(LONG);
        // First: one of its threads may hang.
        runtime.shutdown_background();
        is_under_way.unwrap();
        assert_eq!(
            answer,
            Ok(((0, 0), (0, false))),
            "{key}: what is not durable is not known either"
        );
    }
}
