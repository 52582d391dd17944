//! Tables that are made where they are missing.

use super::*;

/// What several sinks do that begin with a new database, the other one stopped amid it.
#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_makes_tables_waits_for_another_one_that_does() {
    let Some(server) = Server::start("").await else { return };
    let other = server.admin().await;
    let marks = "CREATE TABLE IF NOT EXISTS closehook_mark (log_id text NOT NULL, sink text NOT NULL, epoch text NOT NULL, \
                 seq bigint NOT NULL, mark text NOT NULL, updated_at timestamptz NOT NULL, PRIMARY KEY (log_id, sink))";
    let made = format!("BEGIN; {}; {marks}", statements::IN_TURN);
    other.batch_execute(&made).await.unwrap();
    let kind = kind(json!({"url": server.url()}));
    let goes_on = async {
        while server.number("SELECT count(*) FROM pg_locks WHERE NOT granted").await == 0 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
        other.batch_execute("COMMIT").await.unwrap();
    };
    let (opened, ()) = tokio::join!(kind.open(context()), goes_on);
    let opened = opened.unwrap();
    assert_eq!(deliver(&opened, &[event(1)]).await.unwrap(), [Outcome::Delivered]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sink_that_waits_for_its_turn_in_vain_says_for_what() {
    let Some(server) = Server::start("").await else { return };
    let other = server.admin().await;
    let held = format!("BEGIN; {}", statements::IN_TURN);
    other.batch_execute(&held).await.unwrap();
    let opened = kind(json!({"url": server.url()})).open(hasty()).await;
    let why = opened.err().unwrap();
    assert!(why.reason.contains("another session makes tables"), "{why}");
}

/// What is like PostgreSQL may have no such locks.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_locks_of_that_kind_gets_its_tables_all_the_same() {
    let Some(server) = Server::start("").await else { return };
    let gone = "ALTER FUNCTION pg_catalog.pg_advisory_xact_lock(bigint) RENAME TO closehook_gone";
    server.admin().await.batch_execute(gone).await.unwrap();
    let opened = kind(json!({"url": server.url()})).open(context()).await.unwrap();
    assert_eq!(deliver(&opened, &[event(1)]).await.unwrap(), [Outcome::Delivered]);
}
