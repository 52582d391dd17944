//! What a page asks, asked through the socket as commands ask it: typed answers, bounded work, and nothing changed.

use std::time::Duration;

use closehook::admin::socket;
use closehook::control::browse::{Browse, Browsed, Ended, Page, Work};
use closehook::control::groups::Count;
use closehook::control::picture::{Draw, What};
use closehook::control::sent::Outcome;
use closehook::control::tries::{Draft, Summary, Tried, TriedEvent, Try};
use closehook::control::whole::{Found, Node, Verdict, Whole};
use closehook::control::{Pick, Question, Request, history, replay};
use closehook::deliver::EventState;
use closehook::event::{Kind, Seq};

use fake_close::Settings;

use crate::close::Rig;
use crate::harness::{Daemon, Receiver, body, until};

/// All answers to a question, or why there is none.
async fn asked<Q: Question>(daemon: &Daemon, question: Q) -> Result<Vec<Q::Answer>, String> {
    let request: Request = question.into();
    let mut coming = socket::ask(daemon.data(), &request).await.unwrap().unwrap();
    let mut answers = Vec::new();
    while let Some(answer) = coming.recv().await {
        answers.push(serde_json::from_str(answer.map_err(|why| why.to_string())?.get()).unwrap());
    }
    Ok(answers)
}

async fn ask<Q: Question>(daemon: &Daemon, question: Q) -> Vec<Q::Answer> {
    asked(daemon, question).await.unwrap()
}

async fn page(daemon: &Daemon, question: Browse) -> Page {
    match ask(daemon, question).await.pop() {
        Some(Browsed::Page(page)) => *page,
        other => panic!("{other:?}"),
    }
}

fn seqs(page: &Page) -> Vec<u64> {
    page.events.iter().map(|line| line.seq.0).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn events_are_browsed_backwards_by_cursor() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=30).await;
    let mut browse = Browse {
        limit: Some(12),
        ..Browse::default()
    };
    let (mut found, mut ends) = (Vec::new(), Vec::new());
    loop {
        let page = page(&daemon, browse.clone()).await;
        assert_eq!(page.head, Seq(30));
        found.extend(seqs(&page));
        ends.push(page.ended);
        let Some(next) = page.next else { break };
        browse.before = Some(next);
    }
    assert_eq!(found, (1..=30).rev().collect::<Vec<_>>());
    assert_eq!(ends, [Ended::Full, Ended::Full, Ended::Beginning]);

    let picked = |pick: Pick| Browse {
        pick,
        ..Browse::default()
    };
    let of_lead = Pick {
        lead: Some("lead_3".into()),
        ..Pick::default()
    };
    let shown = page(&daemon, picked(of_lead.clone())).await;
    assert_eq!((seqs(&shown), shown.next), (vec![24, 17, 10, 3], None));
    let of_type = |pattern: &str| Pick {
        types: vec![pattern.into()],
        ..Pick::default()
    };
    assert_eq!(seqs(&page(&daemon, picked(of_type("lead.*"))).await).len(), 30);
    assert_eq!(seqs(&page(&daemon, picked(of_type("task.*"))).await).len(), 0);
    let by_id = Pick {
        ids: vec!["ev_7".into(), "ev_29".into(), "ev_99".into()],
        ..Pick::default()
    };
    let shown = page(&daemon, picked(by_id)).await;
    assert_eq!(
        (seqs(&shown), shown.looked.scanned),
        (vec![29, 7], 2),
        "the log knows where they are"
    );
    for (partial, count) in [(true, 0), (false, 30)] {
        let pick = Pick {
            partial: Some(partial),
            ..Pick::default()
        };
        assert_eq!(page(&daemon, picked(pick)).await.events.len(), count);
    }
    let wrong = Pick {
        filter: Some("{".into()),
        ..Pick::default()
    };
    let refused = asked(&daemon, picked(wrong)).await.unwrap_err();
    assert!(refused.contains("the filter is not valid"), "{refused}");
}

/// Whoever looks for what is rare hears how far it was looked, and goes on from there.
#[tokio::test(flavor = "multi_thread")]
async fn a_page_ends_where_its_work_does_and_says_how_far_it_has_looked() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=25).await;
    let filter = r#"{"type":"field_accessor","field":"id","filter":{"type":"equals","value":"ev_2"}}"#;
    let mut browse = Browse {
        pick: Pick {
            filter: Some(filter.into()),
            ..Pick::default()
        },
        work: Work {
            events: 10,
            ..Work::default()
        },
        ..Browse::default()
    };
    let mut looks = Vec::new();
    loop {
        let page = page(&daemon, browse.clone()).await;
        looks.push((page.looked.to.0, page.looked.scanned, seqs(&page), page.ended));
        assert!(page.looked.received_at.is_some());
        let Some(next) = page.next else { break };
        assert_eq!(next, page.looked.to);
        browse.before = Some(next);
    }
    let expected = [
        (16, 10, vec![], Ended::Work),
        (6, 10, vec![], Ended::Work),
        (1, 5, vec![2], Ended::Beginning),
    ];
    assert_eq!(looks, expected);
}

fn decided(node: &Node) -> Vec<&Node> {
    let own = node.deciding.then_some(node);
    own.into_iter().chain(node.children.iter().flat_map(decided)).collect()
}

async fn whole(daemon: &Daemon, id: &str) -> Found {
    let question = Whole {
        id: id.into(),
        send: true,
    };
    ask(daemon, question).await.remove(0)
}

const FILTER: &str = r#"{"type":"field_accessor","field":"lead_id","filter":{"type":"equals","value":"lead_1"}}"#;

async fn with_sinks(status: u16) -> (Daemon, Receiver) {
    let receiver = Receiver::start(status).await;
    let config = format!(
        "[[sinks]]\nname = \"archive\"\ntype = \"file\"\npath = \"DIR/events.jsonl\"\n\n\
         [[sinks]]\nname = \"crm\"\ntype = \"http\"\nurl = \"{}\"\nallow_private = true\n\n\
         [[rules]]\nname = \"all\"\nsinks = [\"archive\"]\n\n\
         [[rules]]\nname = \"one lead\"\nevents = [\"lead.*\"]\nfilter = '{FILTER}'\nsinks = [\"crm\"]\ntemplate = \"{{{{ event.id }}}}!\"\n",
        receiver.url
    );
    (Daemon::start(&config).await, receiver)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_event_is_shown_whole() {
    let (daemon, receiver) = with_sinks(200).await;
    daemon.store(1..=2).await;
    until("both have what is theirs", async || {
        receiver.count() == 1 && daemon.sink("archive")["delivered"] == 2
    })
    .await;
    let found = whole(&daemon, "ev_1").await;
    assert_eq!(found.event.body.as_deref(), Some(body(1).as_str()), "byte for byte");
    assert_eq!(
        (found.kind, found.type_action.as_deref()),
        (Kind::Event, Some("lead.updated"))
    );
    assert_eq!(
        (found.lead_id.as_deref(), found.subscription_id.as_deref()),
        (Some("lead_1"), Some("whsub_1"))
    );
    assert_eq!(found.signature.verdict, Verdict::Valid);
    assert!(found.signature.signed_at.is_some() && !found.signature.is_retired);
    assert_eq!(found.revisions, [Seq(1)]);
    let [all, one_lead] = &found.routes[..] else {
        panic!("{:?}", found.routes)
    };
    assert!(all.matched && one_lead.matched);
    let node = decided(&one_lead.why)[0];
    assert_eq!(
        (node.kind.as_str(), node.saw.as_str(), node.matched),
        ("equals", "\"lead_1\"", true)
    );
    let at = |name: &str| found.sinks.iter().find(|at| at.sink == name).unwrap();
    assert_eq!(
        (&at("crm").state, &at("crm").rules),
        (&EventState::Delivered, &vec!["one lead".to_owned()])
    );
    let sent = at("crm").sent.as_ref().unwrap();
    assert_eq!(
        (sent.outcome, sent.body.as_deref(), sent.rule.as_deref()),
        (Outcome::Sent, Some("ev_1!"), Some("one lead"))
    );
    assert!(
        at("archive")
            .sent
            .as_ref()
            .unwrap()
            .body
            .as_deref()
            .unwrap()
            .contains("ev_1")
    );
    assert_eq!(receiver.bodies(), ["ev_1!"], "nothing was sent to show it");

    // The other one goes nowhere near it.
    let found = whole(&daemon, "2").await;
    let node = decided(&found.routes[1].why)[0];
    assert_eq!(
        (node.place.as_str(), node.saw.as_str(), node.matched),
        ("filter.filter", "\"lead_2\"", false)
    );
    assert!(
        found
            .sinks
            .iter()
            .any(|at| at.sink == "crm" && !at.routed && at.state == EventState::NotRouted)
    );
    assert_eq!(found.replays, []);
    let question = Whole {
        id: "ev_9".into(),
        send: false,
    };
    assert_eq!(ask(&daemon, question).await, [], "there is none");

    daemon.ok(&["replay", "--id", "ev_2", "--sink", "archive"]);
    let found = whole(&daemon, "ev_2").await;
    assert_eq!(
        (found.replays.len(), &found.replays[0].sinks),
        (1, &vec!["archive".to_owned()])
    );
    assert_eq!(whole(&daemon, "ev_1").await.replays, [], "it took the other one in");
    let replays = ask(&daemon, replay::List {}).await;
    assert_eq!(
        (replays[0].total, replays[0].done, replays[0].eta_seconds),
        (1, 1, None)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_told_retried_and_dropped_by_what_is_wrong() {
    let (daemon, receiver) = with_sinks(400).await;
    // Of lead 1 are 1, 8, 15, ...
    daemon.store(1..=15).await;
    until("three are dead", async || daemon.sink("crm")["dead"] == 3).await;
    receiver.answer_with(422);
    daemon.store(16..=22).await;
    until("a fourth is dead", async || daemon.sink("crm")["dead"] == 4).await;
    let groups = daemon.lines(&["dead", "reasons"]);
    assert_eq!(groups.len(), 2, "{groups:?}");
    let told = |at: usize| (groups[at]["count"].as_u64(), groups[at]["example"]["id"].as_str());
    assert_eq!((told(0), told(1)), ((Some(3), Some("ev_15")), (Some(1), Some("ev_22"))));
    assert_eq!(groups[0]["types"]["lead.updated"], 3);
    let first = groups[0]["group"].as_str().unwrap();
    assert!(first.contains("400"), "{first}");
    let of = |group: &str| Count {
        group: Some(group.into()),
        ..Count::default()
    };
    assert_eq!(ask(&daemon, of(first)).await[0].letters, 3);
    assert_eq!(ask(&daemon, Count::default()).await[0].letters, 4);
    assert_eq!(ask(&daemon, of("another")).await[0].letters, 0);
    assert_eq!(daemon.lines(&["dead", "list", "--reason", first]).len(), 3);
    receiver.answer_with(200);
    let retried = daemon.lines(&["dead", "retry", "--reason", first]);
    assert_eq!(
        (retried[0]["total"].as_u64(), retried[0]["delivered"].as_u64()),
        (Some(3), Some(3))
    );
    let second = groups[1]["group"].as_str().unwrap();
    let dropped = daemon.lines(&["dead", "drop", "--reason", second, "--yes"]);
    assert_eq!(dropped[0]["dropped"], 1);
    assert_eq!(daemon.lines(&["dead", "reasons"]).len(), 0);
}

async fn stored_in_charts(daemon: &Daemon) -> (u64, usize) {
    let charts = ask(daemon, history::Show::default()).await.remove(0);
    let series = [&charts.received, &charts.stored, &charts.duplicates, &charts.refused];
    assert!(series.iter().all(|series| series.len() == charts.at.len()));
    (charts.stored.iter().flatten().sum(), charts.at.len())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_day_is_kept_over_a_restart() {
    let (mut daemon, _receiver) = with_sinks(200).await;
    daemon.store(1..=5).await;
    assert_eq!(stored_in_charts(&daemon).await, (5, 1440));
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(stored_in_charts(&daemon).await.0, 5);
    daemon.store(6..=8).await;
    until("the archive has all", async || {
        let charts = ask(
            &daemon,
            history::Show {
                hours: Some(1),
                step_minutes: Some(60),
            },
        )
        .await
        .remove(0);
        let delivered = charts
            .sinks
            .get("archive")
            .map_or(0, |sink| sink.delivered.iter().flatten().sum());
        // The hour may have ended meanwhile.
        charts.at.len() == 1 && (delivered == 8 || stored_in_charts(&daemon).await.0 == 8)
    })
    .await;
}

/// Whatever is left of a minute that was being written, those before it are there.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_takes_from_the_last_day_no_more_than_the_minute_that_runs() {
    let (mut daemon, _receiver) = with_sinks(200).await;
    daemon.store(1..=5).await;
    daemon.stop().await;
    daemon.run().await;
    daemon.store(6..=8).await;
    daemon.kill();
    daemon.run().await;
    let after_kill = stored_in_charts(&daemon).await.0;
    assert!((5..=8).contains(&after_kill), "{after_kill}");
    daemon.store(9..=10).await;
    assert_eq!(stored_in_charts(&daemon).await.0, after_kill + 2);
    daemon.stop().await;
    // Killed while it writes: the frame is not whole.
    let file = daemon.data().join("history");
    let len = std::fs::metadata(&file).unwrap().len();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .unwrap()
        .set_len(len - 3)
        .unwrap();
    daemon.run().await;
    let kept = stored_in_charts(&daemon).await.0;
    assert!((5..=after_kill + 2).contains(&kept), "{kept}");
    daemon.store(11..=12).await;
    assert_eq!(stored_in_charts(&daemon).await.0, kept + 2);
    daemon.stop().await;
    daemon.run().await;
    assert_eq!(
        stored_in_charts(&daemon).await.0,
        kept + 2,
        "what comes behind it is kept as well"
    );
    assert_eq!(daemon.status()["log"]["events"], 12, "the log has all of it");
}

async fn tried(daemon: &Daemon, draft: Draft, last: u64) -> (Vec<TriedEvent>, Summary) {
    let question = Try {
        draft,
        pick: Pick::default(),
        last: Some(last),
        work: Work::default(),
    };
    let (mut events, mut summary) = (Vec::new(), None);
    for answer in ask(daemon, question).await {
        match answer {
            Tried::Event(event) => events.push(*event),
            Tried::Done(done) => summary = Some(*done),
            Tried::Faults(faults) => panic!("{faults:?}"),
        }
    }
    (events, summary.unwrap())
}

async fn faults(daemon: &Daemon, draft: Draft) -> Vec<(String, Option<usize>, Option<usize>)> {
    let question = Try {
        draft,
        pick: Pick::default(),
        last: None,
        work: Work::default(),
    };
    match &ask(daemon, question).await[..] {
        [Tried::Faults(faults)] => faults
            .iter()
            .map(|fault| (fault.path.clone(), fault.line, fault.column))
            .collect(),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_draft_is_tried_on_stored_events_and_changes_nothing() {
    let (daemon, receiver) = with_sinks(200).await;
    daemon.store(1..=9).await;
    // Counted, too: what is compared below is at rest.
    until("all is delivered", async || {
        let counted = |sink: &str, count: u64| daemon.sink(sink)["delivered"] == count;
        receiver.count() == 2 && counted("archive", 9) && counted("crm", 2)
    })
    .await;
    let before = daemon.status()["sinks"].clone();

    let (events, summary) = tried(&daemon, Draft::Filter { text: FILTER.into() }, 4).await;
    let matched: Vec<_> = events.iter().map(|event| (event.line.seq.0, event.matched)).collect();
    assert_eq!(matched, [(9, false), (8, true), (7, false), (6, false)]);
    assert_eq!(decided(&events[0].why[0])[0].saw, "\"lead_2\"");
    assert_eq!((summary.events, summary.matched, summary.is_cut), (4, 1, false));
    assert!(summary.toml.starts_with("filter = "), "{}", summary.toml);

    let rules = "[[rules]]\nname = \"new\"\nevents = [\"lead.updated\"]\nsinks = [\"crm\", \"archive\"]\n\
                 transform = '''\nexport default (event) => event.id === \"ev_9\" ? null : ({ id: event.id });\n'''\n";
    let (events, summary) = tried(&daemon, Draft::Rules { text: rules.into() }, 2).await;
    let outcomes = |event: &TriedEvent| event.sent.iter().map(|to| to.sent.outcome).collect::<Vec<_>>();
    assert_eq!(outcomes(&events[0]), [Outcome::Skipped, Outcome::Skipped]);
    assert_eq!(outcomes(&events[1]), [Outcome::Sent, Outcome::Sent]);
    assert_eq!((summary.sent, summary.skipped, summary.toml.as_str()), (2, 2, rules));

    let template = |text: &str, sink: &str| Draft::Template {
        text: text.into(),
        sink: sink.into(),
    };
    let (events, summary) = tried(&daemon, template("<{{ event.id }}>", "crm"), 1).await;
    assert_eq!(
        events[0].sent[0].sent.body.as_deref(),
        Some("<ev_9>"),
        "and not what the rule in force makes of it"
    );
    assert!(
        summary.toml.contains("template = \"<{{ event.id }}>\""),
        "{}",
        summary.toml
    );
    // It can be read, and fails on an event.
    let (events, summary) = tried(&daemon, template("{{ 1 // 0 }}", "crm"), 1).await;
    assert_eq!(
        (outcomes(&events[0]), summary.failed),
        (vec![Outcome::Failed], 1),
        "{events:?}"
    );
    assert!(tried(&daemon, template("x", "archive"), 0).await.0.is_empty());

    // What is wrong is said with its place.
    let filter = Draft::Filter {
        text: "{\n\"type\": \"equal\" }".into(),
    };
    assert_eq!(faults(&daemon, filter).await, [("type".into(), Some(2), Some(9))]);
    assert_eq!(faults(&daemon, template("one\n{{ two", "crm")).await[0].1, Some(2));
    let unknown = rules.replace("\"archive\"", "\"nobody\"");
    assert_eq!(
        faults(&daemon, Draft::Rules { text: unknown }).await,
        [("rules[0].sinks[1]".into(), Some(4), Some(17))]
    );
    // The daemon's files are not for whoever may look at a page.
    let file = "[[rules]]\nname = \"a\"\nsinks = []\nfilter = \"@/etc/passwd\"\n";
    assert_eq!(
        faults(&daemon, Draft::Rules { text: file.into() }).await,
        [("rules[0].filter".into(), Some(4), Some(10))]
    );
    let question = Try {
        draft: template("x", "nobody"),
        pick: Pick::default(),
        last: None,
        work: Work::default(),
    };
    assert!(
        asked(&daemon, question)
            .await
            .unwrap_err()
            .contains("there is no sink \"nobody\"")
    );

    assert_eq!(receiver.count(), 2, "nothing was sent");
    assert_eq!(daemon.status()["sinks"], before);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_credentials_nothing_is_claimed_on_the_line_of_days() {
    let daemon = Daemon::start("").await;
    daemon.store(1..=3).await;
    let picture = ask(&daemon, Draw { days: Some(7) }).await.remove(0);
    assert!(!picture.configured);
    assert_eq!(picture.to.duration_since(picture.from).as_hours(), 7 * 24);
    let [unclaimed] = &picture.stretches[..] else {
        panic!("{picture:?}")
    };
    assert_eq!((unclaimed.kind, unclaimed.is_open), (What::Unclaimed, true));
    assert_eq!((unclaimed.first, unclaimed.last), (Some(Seq(1)), Some(Seq(3))));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_that_is_over_and_what_is_complete_are_on_the_line_of_days() {
    let mut rig = Rig::subscribed(Settings::calm(), "", "").await;
    let id = rig.only_subscription();
    rig.happen(20, Duration::from_secs(3600)).await;
    rig.settled().await;
    assert!(rig.fake.world().pause(&id));
    let drawn = async |daemon: &Daemon, kind| {
        let picture = ask(daemon, Draw::default()).await.remove(0);
        assert!(picture.configured);
        let of_kind = picture.stretches.into_iter().filter(|stretch| stretch.kind == kind);
        of_kind.collect::<Vec<_>>()
    };
    until("the pause was found, and is over", async || {
        drawn(&rig.daemon, What::Paused)
            .await
            .iter()
            .any(|pause| !pause.is_open)
    })
    .await;
    let pauses = drawn(&rig.daemon, What::Paused).await;
    assert_eq!(pauses.len(), 1, "{pauses:?}");
    assert!(
        pauses[0].text.starts_with(&id) && pauses[0].from <= pauses[0].to,
        "{pauses:?}"
    );
    let complete = drawn(&rig.daemon, What::Complete).await;
    assert_eq!(complete.len(), 1, "{complete:?}");
    assert!(complete[0].is_open && complete[0].from < complete[0].to);
    // Nobody has to remember it.
    rig.daemon.stop().await;
    rig.run().await;
    let again = drawn(&rig.daemon, What::Paused).await;
    assert_eq!(
        (again.len(), again[0].from, again[0].to),
        (1, pauses[0].from, pauses[0].to)
    );
}
