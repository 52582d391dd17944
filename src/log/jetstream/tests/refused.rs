//! Servers and streams that are set up so that what was acknowledged could be lost, or that are another log's.

use super::super::OpenError;
use super::*;
use crate::config::Durability;
use crate::log::tests::jetstream_cluster::Setup;
use crate::net::nats::Login;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn dead_letters_of_another_log_are_refused() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    open(&options).await.close().await;
    cluster.api(0, "STREAM.DELETE.closehook", &Value::Null).await;
    assert_eq!(check::create(&options).await, Ok(vec!["closehook".to_owned()]));
    let Err(OpenError::Refused(faults)) = JetStreamLog::open(options.clone()).await else {
        panic!("it is served");
    };
    assert!(
        faults.len() == 1 && faults[0].contains("closehook_dead holds dead letters of another log"),
        "{faults:?}"
    );
    let name = super::super::key::dead_stream(&options.stream);
    cluster.api(0, &format!("STREAM.DELETE.{name}"), &Value::Null).await;
    assert_eq!(check::create(&options).await, Ok(vec![name]));
    open(&options).await.close().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn servers_that_lose_what_they_acknowledge_are_refused() {
    let setup = Setup {
        servers: 3,
        syncs_always: false,
        ..Setup::default()
    };
    let Some(lazy) = Cluster::start_with(setup).await else {
        return;
    };
    let mut options = jetstream_options(&lazy);
    assert!(
        matches!(JetStreamLog::open(options.clone()).await, Err(OpenError::Refused(faults)) if faults[0].contains("check --create"))
    );
    check::create(&options).await.unwrap();
    let Err(OpenError::Refused(faults)) = JetStreamLog::open(options.clone()).await else {
        panic!("it is opened");
    };
    assert_eq!(faults.len(), 3, "{faults:?}");
    for number in 0..3 {
        let is_said = |fault: &String| fault.contains(&format!("n{number}")) && fault.contains("sync_interval: always");
        assert!(faults.iter().any(is_said), "{faults:?}");
    }
    // Written out, it is the user's risk.
    options.durability = Durability::Unchecked;
    let log = JetStreamLog::open(options.clone()).await.unwrap();
    assert_eq!(log.look().await.unwrap().warnings.len(), 3);
    drop(lazy);

    let Some(cluster) = Cluster::start().await else { return };
    let mut options = jetstream_options(&cluster);
    check::create(&options).await.unwrap();
    assert_eq!(check::look(&options).await.unwrap(), check::Found::default());
    // One that can't be asked counts as one that does not sync.
    options.monitor.pop();
    let faults = check::look(&options).await.unwrap().faults;
    assert!(
        faults.len() == 1 && faults[0].contains("n2") && faults[0].contains("monitor"),
        "{faults:?}"
    );
    // The system account sees all of them.
    options.monitor.clear();
    let mut system = options.way.clone();
    system.login = Login::User {
        name: "sys".into(),
        password: "sys-pass".to_owned().into(),
    };
    options.system = Some(system);
    assert_eq!(check::look(&options).await.unwrap(), check::Found::default());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_setting_of_a_stream_that_weakens_a_promise_is_named() {
    let Some(cluster) = Cluster::start_one().await else {
        return;
    };
    let options = jetstream_options(&cluster);
    check::create(&options).await.unwrap();
    let found = check::look(&options).await.unwrap();
    assert!(found.faults.is_empty(), "{found:?}");
    assert!(
        found.warnings.len() == 1 && found.warnings[0].contains("replicas is 1"),
        "{found:?}"
    );
    assert_eq!(check::create(&options).await, Ok(vec![]), "what is there stays");

    let good = cluster.api(0, "STREAM.INFO.closehook", &Value::Null).await["config"].clone();
    for (change, said) in [
        (
            json!({ "discard": "old", "discard_new_per_subject": false }),
            "discard = new",
        ),
        (json!({ "discard_new_per_subject": false }), "discard_new_per_subject"),
        (json!({ "max_msgs_per_subject": 5 }), "max_msgs_per_subject"),
        (json!({ "max_age": 3_600_000_000_000_u64 }), "max_age"),
        (json!({ "max_msgs": 1000 }), "max_msgs"),
        (json!({ "max_msg_size": 1000 }), "max_msg_size"),
        (json!({ "no_ack": true }), "no_ack"),
        (json!({ "allow_direct": false }), "allow_direct"),
        (json!({ "allow_atomic": false }), "allow_atomic"),
        (json!({ "subjects": ["closehook.ev.>"] }), "closehook.er.>"),
        (json!({ "metadata": {} }), "closehook.id"),
        (json!({ "storage": "memory" }), "storage = file"),
        (json!({ "retention": "workqueue" }), "retention = limits"),
        (json!({ "deny_delete": true }), "deny_delete"),
        (json!({ "sealed": true }), "is sealed"),
    ] {
        let mut config = good.clone();
        for (key, value) in change.as_object().unwrap() {
            config[key] = value.clone();
        }
        cluster.api(0, "STREAM.DELETE.closehook", &Value::Null).await;
        let is_sealed = config["sealed"] == true;
        config["sealed"] = json!(false);
        cluster.api(0, "STREAM.CREATE.closehook", &config).await;
        if is_sealed {
            config["sealed"] = json!(true);
            cluster.api(0, "STREAM.UPDATE.closehook", &config).await;
        }
        let found = check::look(&options).await.unwrap();
        assert!(
            found.faults.iter().any(|fault| fault.contains(said)),
            "{change}: {found:?}"
        );
        assert!(
            matches!(JetStreamLog::open(options.clone()).await, Err(OpenError::Refused(_))),
            "{change}"
        );
    }
    let mut many = options.clone();
    many.replicas = 3;
    let found = check::look(&many).await.unwrap();
    assert!(
        found.faults.iter().any(|fault| fault.contains("has to be on 3")),
        "{found:?}"
    );
}
