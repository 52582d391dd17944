//! Erasures that do not come to their end.

use super::*;

/// A full disk, say: what is still in the log is delivered by others or erased later, and until then its letters are all that says it is dead.
#[tokio::test(flavor = "multi_thread")]
async fn letters_of_what_the_log_could_not_erase_stay_and_what_went_is_told() {
    let bench = Bench::with(9).await;
    let dir = tempfile::tempdir().unwrap();
    for seq in [3, 6] {
        let event = bench.log.log.get(Seq(seq)).unwrap().unwrap();
        deliver::tests::leave_letter(dir.path(), "crm", &event);
    }
    // Its event has left the log.
    let body = r#"{"event":{"id":"ev_20","object_type":"lead","action":"updated","lead_id":"lead_0"}}"#;
    let kind = crate::event::Kind::Event;
    let gone = Event::new(Seq(20), Timestamp::now(), Source::Webhook, kind, None, body.into());
    deliver::tests::leave_letter(dir.path(), "crm", &gone);
    let facade = facade(dir.path(), bench.log.clone()).await;
    let bench = Bench { facade, ..bench };
    let whose = || erase::Erase {
        lead: Some("lead_0".into()),
        ..erase::Erase::default()
    };
    let letters = || -> Vec<Seq> {
        let found = bench.facade.engine.dead_list(Some("crm"), Seq::ZERO, 9).unwrap();
        found.into_iter().map(|letter| letter.seq).collect()
    };
    assert_eq!(letters(), [3, 6, 20].map(Seq));

    *lock(&bench.log.erases_upto) = Seq::ZERO;
    let told = bench.answers(whose()).await.remove(0);
    assert_eq!((told.erased.as_slice(), told.dead_letters_dropped), (&[][..], 1));
    let says = |told: &erase::Erased, what: &str| told.left.iter().any(|left| left.contains(what));
    assert!(says(&told, "no room") && says(&told, "2 event(s)"), "{told:?}");
    assert_eq!(letters(), [3, 6].map(Seq));

    // Where nothing went there is the error alone.
    let (to, _from) = tokio::sync::mpsc::channel(1);
    let refused = bench.facade.answer(whose().into(), &Answers::new(to)).await;
    assert!(refused.unwrap_err().contains("no room"));
    assert_eq!(letters(), [3, 6].map(Seq));

    *lock(&bench.log.erases_upto) = Seq(3);
    let told = bench.answers(whose()).await.remove(0);
    assert_eq!((told.erased.as_slice(), told.dead_letters_dropped), (&[Seq(3)][..], 1));
    assert!(says(&told, "no room") && says(&told, "event 6 is still"), "{told:?}");
    assert_eq!(letters(), [Seq(6)]);

    *lock(&bench.log.erases_upto) = Seq(u64::MAX);
    let told = bench.answers(whose()).await.remove(0);
    assert_eq!(told.erased, [6, 9].map(Seq));
    assert_eq!((told.dead_letters_dropped, told.left), (1, Vec::new()));
    assert_eq!(letters(), []);
}
