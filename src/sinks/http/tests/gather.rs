//! Several events in one request.

use super::*;

/// What a receiver of batches was sent: headers, and the ids in the body.
type Batches = Arc<Mutex<Vec<(AxumHeaders, String)>>>;

/// A receiver that judges each request by what is in it.
async fn judge(judge: impl Fn(&str, usize) -> u16 + Clone + Send + Sync + 'static) -> (String, Batches) {
    let seen = Batches::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/hook", listener.local_addr().unwrap());
    let keep = seen.clone();
    let answer = move |headers: AxumHeaders, body: String| async move {
        let mut seen = keep.lock().unwrap();
        seen.push((headers, body));
        let status = judge(&seen.last().unwrap().1, seen.len());
        axum::http::StatusCode::from_u16(status).unwrap()
    };
    tokio::spawn(async move { axum::serve(listener, axum::Router::new().fallback(answer)).await });
    (url, seen)
}

fn body(id: u64) -> String {
    format!("{{\"event\" : {{\"id\": \"ev_{id}\",\n \"date_updated\":\"2024-02-15T12:48:23\", \"n\": 1.50}}}}\n")
}

fn deliveries(count: u64) -> Vec<Delivery> {
    (1..=count).map(|id| delivery(id, &body(id))).collect()
}

async fn gathering(url: &str, format: &str) -> Box<dyn Sink> {
    let table = serde_json::json!({
        "url": url, "allow_private": true, "batch": {"events": 500, "wait": "0s"}, "format": format, "secret": "whsec_c2VjcmV0",
    });
    let (options, sink) = build(table).await;
    assert_eq!(options.drive().batch.events, 500);
    sink
}

fn rejected(outcomes: &[Outcome]) -> usize {
    outcomes
        .iter()
        .filter(|outcome| matches!(outcome, Outcome::Reject { .. }))
        .count()
}

fn delivered(outcomes: &[Outcome]) -> usize {
    outcomes
        .iter()
        .filter(|outcome| **outcome == Outcome::Delivered)
        .count()
}

#[tokio::test]
async fn a_batch_is_one_body_known_by_its_keys_and_signed_as_a_whole() {
    let (url, seen) = judge(|_, _| 200).await;
    for (format, content_type, whole) in [
        (
            "json_array",
            "application/json",
            format!("[{},{}]", body(1).trim(), body(2).trim()),
        ),
        (
            "jsonl",
            "application/x-ndjson",
            [1, 2]
                .map(|id| {
                    format!(
                        "{{\"event\":{{\"id\":\"ev_{id}\",\"date_updated\":\"2024-02-15T12:48:23\",\"n\":1.50}}}}\n"
                    )
                })
                .concat(),
        ),
    ] {
        let sink = gathering(&url, format).await;
        assert_eq!(delivered(&deliver(&*sink, &deliveries(2)).await.unwrap()), 2);
        let (headers, sent) = seen.lock().unwrap().pop().unwrap();
        assert_eq!(sent, whole);
        let header = |name: &str| headers.get(name).unwrap().to_str().unwrap().to_owned();
        let id = message::batch_id(["ev_1:2024-02-15T12:48:23", "ev_2:2024-02-15T12:48:23"].into_iter());
        assert_eq!(
            (header("webhook-id"), header("idempotency-key")),
            (id.clone(), id.clone())
        );
        assert_eq!(header("content-type"), content_type);
        let signature = sign(b"secret", &id, &header("webhook-timestamp"), whole.as_bytes());
        assert_eq!(header("webhook-signature"), signature);
        let of_one = headers.keys().find(|name| name.as_str().starts_with("closehook-"));
        assert_eq!(of_one, None, "which event?");
    }
}

#[tokio::test]
async fn one_bad_event_in_five_hundred_costs_itself_and_no_other_comes_twice() {
    let is_bad = |sent: &str| sent.contains("\"ev_333\"");
    let (url, seen) = judge(move |sent, _| if is_bad(sent) { 422 } else { 200 }).await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(500)).await.unwrap();
    assert_eq!(delivered(&outcomes), 499);
    assert!(
        matches!(&outcomes[332], Outcome::Reject { reason } if reason.text.contains("422")),
        "{:?}",
        outcomes[332]
    );
    let seen = seen.lock().unwrap();
    assert!(seen.len() <= 19, "{} requests", seen.len());
    // Of those that were taken.
    for id in 1..=500 {
        let name = format!("\"ev_{id}\"");
        let times = seen
            .iter()
            .filter(|(_, sent)| !is_bad(sent) && sent.contains(&name))
            .count();
        assert_eq!(times, usize::from(id != 333), "{name}");
    }
}

#[tokio::test]
async fn what_is_wrong_with_the_receiver_costs_no_event_of_a_batch_an_attempt() {
    for status in [401, 403, 407, 429, 500, 502, 503, 504, 302] {
        let (url, seen) = judge(move |_, _| status).await;
        let sink = gathering(&url, "json_array").await;
        let unavailable = deliver(&*sink, &deliveries(9)).await.unwrap_err();
        assert!(unavailable.reason.contains(&status.to_string()), "{unavailable}");
        // Whether it fails over one of them is found out, unless it says that it is away.
        let most = if status == 500 { 2 * 9 } else { 1 };
        let asked = seen.lock().unwrap().len();
        assert!((1..=most).contains(&asked), "{status}: {asked}");
    }
    // Who says when it will be there is asked nothing more until then.
    let (url, seen) = receiver(500, &[("retry-after", "7")]).await;
    let sink = gathering(&url, "json_array").await;
    let unavailable = deliver(&*sink, &deliveries(9)).await.unwrap_err();
    assert_eq!(unavailable.after, Some(Duration::from_secs(7)));
    assert_eq!(seen.lock().unwrap().len(), 1);
    // Also where it is over so few that there is no end of the row.
    let (url, _) = judge(|_, _| 500).await;
    let sink = gathering(&url, "json_array").await;
    assert!(deliver(&*sink, &deliveries(2)).await.is_err());
    // It may be that it was too much at a time.
    let (url, _) = judge(|_, _| 408).await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(2)).await.unwrap();
    assert!(
        outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. })),
        "{outcomes:?}"
    );
}

#[tokio::test]
async fn what_was_delivered_stays_so_when_the_receiver_goes_away_amid_the_halves() {
    let (url, _) = judge(|_, asked| [422, 200].get(asked - 1).copied().unwrap_or(503)).await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(8)).await.unwrap();
    assert_eq!(delivered(&outcomes[..4]), 4);
    assert!(
        outcomes[4..].iter().all(|outcome| matches!(outcome, Outcome::Waits(_))),
        "{outcomes:?}"
    );
}

/// Decision 21: what refuses everything must not make dead letters of everything.
#[tokio::test]
async fn a_receiver_that_refuses_one_after_the_other_is_left_alone() {
    let (url, seen) = judge(|_, _| 400).await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(500)).await.unwrap();
    assert_eq!((rejected(&outcomes), delivered(&outcomes)), (5, 0));
    assert!(seen.lock().unwrap().len() < 30);
}

#[tokio::test]
async fn a_receiver_that_refuses_all_but_one_is_left_alone_too() {
    let (url, seen) = judge(|sent, _| {
        let is_first_alone = sent.contains("\"ev_1\"") && sent.matches("\"ev_").count() == 1;
        if is_first_alone { 200 } else { 400 }
    })
    .await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(500)).await.unwrap();
    assert_eq!((rejected(&outcomes), delivered(&outcomes)), (5, 1));
    assert!(seen.lock().unwrap().len() < 30);
}

/// A receiver that falls over one event is not one that takes nothing.
#[tokio::test]
async fn a_failure_over_one_event_of_a_batch_is_as_if_it_had_come_alone() {
    let (url, _) = judge(|_, _| 503).await;
    let sink = gathering(&url, "json_array").await;
    let outcome = deliver(&*sink, &deliveries(1)).await.unwrap().remove(0);
    assert!(
        matches!(&outcome, Outcome::Retry { reason, .. } if reason.text.contains("503")),
        "{outcome:?}"
    );
    // Among many it is found out, whatever it is asked first.
    for bad in [1, 250, 500] {
        let name = format!("\"ev_{bad}\"");
        let (url, seen) = judge(move |sent, _| if sent.contains(&name) { 500 } else { 200 }).await;
        let sink = gathering(&url, "json_array").await;
        let outcomes = deliver(&*sink, &deliveries(500)).await.unwrap();
        assert!(matches!(&outcomes[bad - 1], Outcome::Retry { .. }), "{outcomes:?}");
        assert_eq!(delivered(&outcomes), 499);
        assert!(seen.lock().unwrap().len() < 20);
    }
    // Amid the halves: the others go on.
    let (url, _) = judge(|sent, _| match sent.matches("\"ev_").count() {
        1 if sent.contains("\"ev_2\"") => 500,
        1 => 200,
        _ => 422,
    })
    .await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(4)).await.unwrap();
    assert!(matches!(outcomes[1], Outcome::Retry { .. }), "{outcomes:?}");
    assert_eq!(delivered(&outcomes), 3);
    // One after the other: it is not about them.
    let (url, seen) = judge(|sent, _| if sent.matches("\"ev_").count() == 1 { 500 } else { 422 }).await;
    let sink = gathering(&url, "json_array").await;
    let outcomes = deliver(&*sink, &deliveries(500)).await.unwrap();
    let all_later = outcomes.iter().all(|outcome| matches!(outcome, Outcome::Retry { .. }));
    assert!(all_later && seen.lock().unwrap().len() < 30, "{outcomes:?}");
}

/// What stands before a receiver says 502 when that falls over an event.
#[tokio::test]
async fn an_event_over_which_a_receiver_seems_away_is_found_and_goes_alone_from_then_on() {
    let is_bad = |sent: &str| sent.contains("\"ev_250\"");
    let (url, seen) = judge(move |sent, _| if is_bad(sent) { 502 } else { 200 }).await;
    let sink = gathering(&url, "json_array").await;
    let all = deliveries(500);
    assert!(deliver(&*sink, &all).await.is_err(), "it may be back in a moment");
    assert_eq!(seen.lock().unwrap().len(), 1);
    // A probe shows nothing of batches.
    assert_eq!(delivered(&deliver(&*sink, &deliveries(1)).await.unwrap()), 1);
    let outcomes = deliver(&*sink, &all).await.unwrap();
    assert!(matches!(&outcomes[249], Outcome::Retry { .. }), "{:?}", outcomes[249]);
    assert_eq!(delivered(&outcomes), 499);
    assert!(seen.lock().unwrap().len() < 24);
    // It holds up no other one any more.
    seen.lock().unwrap().clear();
    let outcomes = deliver(&*sink, &all[200..300]).await.unwrap();
    assert!(matches!(&outcomes[49], Outcome::Retry { .. }), "{:?}", outcomes[49]);
    assert_eq!(delivered(&outcomes), 99);
    let bad: Vec<usize> = seen
        .lock()
        .unwrap()
        .iter()
        .filter(|(_, sent)| is_bad(sent))
        .map(|(_, sent)| sent.matches("\"ev_").count())
        .collect();
    assert_eq!(bad, [1]);
    assert!(seen.lock().unwrap().len() <= 3);
}

#[tokio::test]
async fn a_receiver_that_stays_away_is_asked_little() {
    let (url, seen) = judge(|_, _| 503).await;
    let sink = gathering(&url, "json_array").await;
    for asked in [1, 3, 5] {
        assert!(deliver(&*sink, &deliveries(500)).await.is_err(), "no event is to blame");
        assert_eq!(seen.lock().unwrap().len(), asked);
    }
    // While it still asks for time no event is looked for.
    let (url, seen) = receiver(503, &[("retry-after", "3600")]).await;
    let sink = gathering(&url, "json_array").await;
    for asked in [1, 2] {
        assert!(deliver(&*sink, &deliveries(500)).await.is_err());
        assert_eq!(seen.lock().unwrap().len(), asked);
    }
}

/// Each event waits for the one before, also amid the halves of a batch and where they go to several places.
#[tokio::test]
async fn in_strict_order_nothing_is_sent_that_follows_one_to_be_tried_again() {
    let strict = async |url: &str| {
        let table = serde_json::json!({"url": url, "allow_private": true, "batch": {"events": 500, "wait": "0s"}});
        let context = Context {
            timeout: Duration::from_secs(10),
            is_strict: true,
            ..Context::default()
        };
        tests::sound(&definition::TYPE, table).open(context).await.unwrap().sink
    };
    let (url, seen) = judge(|_, asked| [422, 408].get(asked - 1).copied().unwrap_or(200)).await;
    let is_retried = |outcome: &Outcome| matches!(outcome, Outcome::Retry { .. });
    let is_untried = |outcome: &Outcome| matches!(outcome, Outcome::Untried { .. });
    let outcomes = deliver(&*strict(&url).await, &deliveries(4)).await.unwrap();
    let all_later = outcomes[..2].iter().all(is_retried) && outcomes[2..].iter().all(is_untried);
    assert!(all_later && seen.lock().unwrap().len() == 2, "{outcomes:?}");
    // Three runs to two places, each for itself.
    let (url, seen) = judge(|_, asked| [200, 500].get(asked - 1).copied().unwrap_or(200)).await;
    let sink = strict(&format!("{url}/{{{{ x }}}}")).await;
    let to = |id: u64, place: &str| made::rendered(delivery(id, &body(id)), &[("url", &format!("{url}/{place}"))]);
    let all = [to(1, "a"), to(2, "a"), to(3, "b"), to(4, "a")];
    let outcomes = deliver(&*sink, &all).await.unwrap();
    assert_eq!(delivered(&outcomes[..2]), 2);
    let rest_later = is_retried(&outcomes[2]) && is_untried(&outcomes[3]);
    assert!(rest_later && seen.lock().unwrap().len() == 2, "{outcomes:?}");
    let again = deliver(&*sink, &all[2..]).await.unwrap();
    assert_eq!((delivered(&again), seen.lock().unwrap().len()), (2, 4));
}

#[test]
fn what_can_not_be_of_a_batch_is_a_fault() {
    for (more, part) in [
        (
            serde_json::json!({"format": "jsonl"}),
            "sinks[0].format: says how a batch",
        ),
        (
            serde_json::json!({"batch": {}, "format": "csv"}),
            "sinks[0].format: \"csv\" is not",
        ),
        (
            serde_json::json!({"batch": {}, "forward_signature": true}),
            "sinks[0].forward_signature: can't be with batch",
        ),
        (
            serde_json::json!({"batch": {"events": 0}}),
            "sinks[0].batch.events: must be between 1 and",
        ),
        (serde_json::json!({"batch": {"size": 1}}), "sinks[0].batch.size"),
    ] {
        let mut table = serde_json::json!({"url": "https://example.com/"});
        table.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        let said = faults(table);
        assert!(said.len() == 1 && said[0].contains(part), "{part}: {said:?}");
    }
}
