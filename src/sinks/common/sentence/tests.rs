//! What is said of which event.

use crate::event::types::DOCUMENTED;
use crate::sinks::common::line::tests::delivery;

fn event(object_type: &str, action: &str, rest: &str) -> String {
    format!(
        r#"{{"event":{{"id":"ev_1","object_type":"{object_type}","action":"{action}","lead_id":"lead_A1b"{}{rest}}}}}"#,
        if rest.is_empty() { "" } else { "," }
    )
}

fn said(body: &str) -> String {
    super::of(&delivery(1, body).event)
}

/// Type, action, what else is in the event, and what is said of it.
const SENTENCES: &[(&str, &str, &str, &str)] = &[
    (
        "opportunity",
        "updated",
        r#""previous_data":{"status_label":"Active","value":100},"data":{"lead_name":"Acme","status_label":"Won","value":1200000,"value_currency":"USD","value_period":"one_time"}"#,
        "Opportunity of Acme moved from Active to Won (12,000 USD)",
    ),
    (
        "opportunity",
        "updated",
        r#""previous_data":{"value":100050},"data":{"lead_name":"Acme","value":-1,"value_currency":"EUR","value_period":"monthly"}"#,
        "Opportunity of Acme is worth -0.01 EUR a month now, 1,000.50 EUR a month before",
    ),
    (
        "opportunity",
        "created",
        r#""data":{"lead_name":"Acme","value":990,"value_currency":"EUR","status_label":"Offer"}"#,
        "New opportunity of Acme: 9.90 EUR, Offer",
    ),
    (
        "opportunity",
        "deleted",
        r#""data":null,"previous_data":{"lead_name":"Acme"}"#,
        "Opportunity of Acme was deleted",
    ),
    (
        "lead",
        "created",
        r#""data":{"name":"Acme","display_name":"Acme","status_label":"Potential","created_by_name":"Mira"}"#,
        "New lead: Acme (Potential) by Mira",
    ),
    (
        "lead",
        "updated",
        r#""changed_fields":["status_id","status_label","custom.cf_1","custom.cf_2","description","date_updated"],"data":{"display_name":"Acme"}"#,
        "Lead Acme was updated: status label, description, 2 custom fields",
    ),
    (
        "lead",
        "updated",
        r#""previous_data":{"name":"Bluth"},"data":{"name":"Bluth & Co"}"#,
        "Lead Bluth is now called Bluth & Co",
    ),
    (
        "lead",
        "deleted",
        r#""data":null,"previous_data":{"display_name":"Acme"}"#,
        "Lead Acme was deleted",
    ),
    (
        "lead",
        "merged",
        r#""meta":{"merge_source_lead_id":"lead_9"},"data":{"display_name":"Acme"}"#,
        "Lead lead_9 was merged into lead Acme",
    ),
    (
        "activity.call",
        "completed",
        r#""data":{"direction":"outbound","remote_phone_formatted":"+1 555","disposition":"answered","duration":183,"user_name":"Mira","note":""}"#,
        "Call to +1 555 is over (answered, 3 min 3 s) by Mira",
    ),
    (
        "activity.sms",
        "created",
        r#""data":{"direction":"inbound","remote_phone":"+1650","text":"Line one\nLine \"two\"\ttab"}"#,
        "SMS from +1650: “Line one Line \"two\" tab”",
    ),
    (
        "activity.email",
        "created",
        r#""data":{"direction":"incoming","sender":"Ann <a@b.c>","to":["x@y.z"],"subject":"Hi"}"#,
        "E-mail from Ann <a@b.c>: “Hi”",
    ),
    (
        "activity.email",
        "sent",
        r#""data":{"direction":"outgoing","to":["x@y.z"],"subject":"Hi","user_name":"Mira"}"#,
        "E-mail to x@y.z was sent by Mira: “Hi”",
    ),
    (
        "activity.meeting",
        "scheduled",
        r#""data":{"title":"Demo","starts_at":"2024-03-01T10:00:00+01:00"}"#,
        "Meeting “Demo” was scheduled for 2024-03-01 09:00 UTC",
    ),
    (
        "activity.lead_status_change",
        "created",
        r#""data":{"old_status_label":"A","new_status_label":"B","user_name":"Mira"}"#,
        "Lead moved from A to B by Mira",
    ),
    (
        "activity.opportunity_status_change",
        "created",
        r#""data":{"old_status_label":"A","new_status_label":"B","opportunity_value":500,"opportunity_value_currency":"USD"}"#,
        "Opportunity moved from A to B (5 USD)",
    ),
    (
        "task.lead",
        "created",
        r#""data":{"text":"Ring back","assigned_to_name":"Mira","lead_name":"Acme","due_date":"2026-03-09"}"#,
        "New task for Mira about Acme “Ring back”, due 2026-03-09",
    ),
    (
        "task.missed_call",
        "completed",
        r#""data":{"phone_formatted":"+1 555"}"#,
        "Task, missed call from +1 555 was completed",
    ),
    (
        "comment",
        "created",
        r#""data":{"body":"<p>ping <mention>x</mention></p>"}"#,
        "New comment: “ping x”",
    ),
    (
        "contact",
        "updated",
        r#""changed_fields":["emails"],"data":{"name":"Paul"}"#,
        "Contact Paul was updated: emails",
    ),
    (
        "sequence_subscription",
        "updated",
        r#""previous_data":{"status":"active"},"data":{"status":"finished","contact_email":"a@b.c"}"#,
        "a@b.c has finished a sequence",
    ),
    (
        "membership",
        "activated",
        r#""data":{"user_id":"user_1","role_id":"admin"}"#,
        "User user_1 may use Close now (role admin)",
    ),
    (
        "unsubscribed_email",
        "deleted",
        r#""data":null,"previous_data":{"email":"a@b.c"}"#,
        "a@b.c is not unsubscribed from e-mails any more",
    ),
    (
        "bulk_action.edit",
        "completed",
        r#""data":{"n_leads":1234}"#,
        "Bulk edit (1,234 leads) is done",
    ),
    (
        "export.opportunity",
        "created",
        "",
        "Export of opportunities was started",
    ),
    ("import", "reverting", "", "Import is being reverted"),
    (
        "custom_fields.activity",
        "created",
        r#""data":{"name":"Color"}"#,
        "New custom field of activities Color",
    ),
    (
        "status.lead",
        "updated",
        r#""previous_data":{"label":"A"},"data":{"label":"B"}"#,
        "Lead status A is now called B",
    ),
    (
        "future_thing.subtype",
        "exploded",
        r#""data":{"x":1}"#,
        "Future thing subtype: exploded",
    ),
];

#[test]
fn a_sentence_says_what_has_happened() {
    for (object_type, action, rest, sentence) in SENTENCES {
        assert_eq!(said(&event(object_type, action, rest)), *sentence);
    }
    assert_eq!(said(r#"{"event":{"id":"ev_1"}}"#), "An event without a type");
}

/// However little of it is there.
#[test]
fn each_documented_event_has_a_sentence_of_its_own() {
    let mut seen = std::collections::BTreeMap::new();
    for (object_type, action) in DOCUMENTED.iter() {
        for rest in [
            "",
            r#""data":null,"previous_data":null"#,
            r#""data":7,"previous_data":[],"changed_fields":"x","meta":1"#,
        ] {
            let sentence = said(&event(object_type, action, rest));
            assert!(
                sentence.starts_with(char::is_uppercase),
                "{object_type}.{action}: {sentence}"
            );
            assert!(
                !sentence.contains("  ") && !sentence.ends_with([' ', ':', ',']),
                "{object_type}.{action}: {sentence}"
            );
            assert!(!sentence.contains('_'), "{object_type}.{action} is unknown: {sentence}");
            assert!(
                !sentence.ends_with(&format!(": {action}")),
                "{object_type}.{action} is unknown: {sentence}"
            );
            seen.entry(sentence)
                .or_insert_with(Vec::new)
                .push(format!("{object_type}.{action}"));
        }
    }
    // Of the object and its activity the same may be said, and what differs only in a field that is missing here.
    for (sentence, mut types) in seen {
        types.sort();
        types.dedup();
        let actions: std::collections::BTreeSet<&str> =
            types.iter().filter_map(|name| name.rsplit('.').next()).collect();
        assert!(
            types.len() <= 2
                && (actions.len() == 1 || types[0].contains("meeting") || types[0].contains("task_completed")),
            "\"{sentence}\" is said of {types:?}"
        );
    }
}

#[test]
fn what_comes_from_the_event_is_short_and_moves_nothing() {
    let long = "x".repeat(5 << 20);
    for name in [&long, "a\\u001b[2J\\u202eb", "\\n\\n\\t \\u2028x", "\\ud800"] {
        let sentence = said(&event(
            "lead",
            "created",
            &format!(r#""data":{{"display_name":"{name}"}}"#),
        ));
        assert!(
            sentence.len() < 400 && !sentence.contains(['\u{1b}', '\u{202e}', '\n', '\u{2028}']),
            "{sentence}"
        );
    }
    let html = event(
        "comment",
        "created",
        r#""data":{"body":"a<b>b</b> &lt;!channel&gt; <"}"#,
    );
    assert_eq!(said(&html), "New comment: “ab <!channel> <”");
}

#[test]
fn a_link_is_made_only_of_what_is_an_id() {
    let link = |lead: &str| {
        let body = format!(r#"{{"event":{{"id":"ev_1","lead_id":{lead}}}}}"#);
        super::lead_link(&delivery(1, &body).event)
    };
    assert_eq!(link("\"lead_A1b\"").unwrap(), "https://app.close.com/lead/lead_A1b/");
    for bad in ["null", "\"\"", "\"a/../b\"", "\"a|b\"", "\"a>b\"", "\"é\"", "7"] {
        assert_eq!(link(bad), None, "{bad}");
    }
}
