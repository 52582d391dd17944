//! Sentences of what people do with a lead: calls, mails, meetings, notes, and tasks.

use super::told::{Told, done, several, words};

/// Who did it, by what the object says.
const WHO: [&str; 3] = ["user_name", "updated_by_name", "created_by_name"];

/// `None`: it is nothing of this.
pub(super) fn said(told: &Told<'_>, object_type: &str, action: &str) -> Option<String> {
    if let Some(kind) = object_type.strip_prefix("task.") {
        return Some(task(told, kind, action));
    }
    Some(match object_type.strip_prefix("activity.")? {
        "call" => call(told, action),
        "email" => email(told, action),
        "email_thread" => email_thread(told, action),
        "sms" => message(told, "SMS", &["text"], action),
        "whatsapp_message" => message(told, "WhatsApp message", &["text", "message_markdown"], action),
        "meeting" => meeting(told, action),
        "note" => note(told, action),
        "form_submission" => form(told, action),
        "task_completed" => task_completed(told, action),
        "lead_status_change" => status_change(told, "Lead", "", action),
        "opportunity_status_change" => {
            let money = told.money("opportunity_").map(|money| format!(" ({money})"));
            status_change(told, "Opportunity", &money.unwrap_or_default(), action)
        }
        "lead_merge" => super::objects::lead_merge(told, action),
        "custom_activity" => {
            let status = told.name("status").map(|status| format!(" ({status})"));
            done(told, &format!("Custom activity{}", status.unwrap_or_default()), action)
        }
        _ => return None,
    })
}

/// `text` behind a colon, or nothing.
fn quoted(told: &Told<'_>, keys: &[&str]) -> String {
    told.text(keys).map(|text| format!(": {text}")).unwrap_or_default()
}

fn is_inbound(told: &Told<'_>) -> bool {
    told.is("direction", "inbound") || told.is("direction", "incoming")
}

/// `call from +1 555-010-0147`, `call to ...`.
fn with_whom(told: &Told<'_>, what: &str) -> String {
    let inbound = is_inbound(told);
    let far = told.first(&["remote_phone_formatted", "remote_phone", "phone"]);
    match (far, inbound) {
        (Some(far), true) => format!("{what} from {far}"),
        (Some(far), false) => format!("{what} to {far}"),
        (None, true) => format!("Incoming {}", lower(what)),
        (None, false) => format!("Outgoing {}", lower(what)),
    }
}

/// Unless it is an abbreviation or a name.
fn lower(what: &str) -> String {
    match what {
        "Call" => "call".into(),
        other => other.to_owned(),
    }
}

fn call(told: &Told<'_>, action: &str) -> String {
    let what = with_whom(told, "Call");
    let disposition = told.name("disposition").map(|said| match said.as_str() {
        "vm-left" => "voicemail left".to_owned(),
        "vm-answer" => "answered by a voicemail".to_owned(),
        other => other.replace(['-', '_'], " "),
    });
    let parts: Vec<String> = disposition.into_iter().chain(told.span("duration")).collect();
    let how = if parts.is_empty() {
        String::new()
    } else {
        format!(" ({})", parts.join(", "))
    };
    match action {
        "created" | "completed" => {
            let ended = if action == "completed" { " is over" } else { "" };
            format!("{what}{ended}{how}{}{}", told.by(&WHO), quoted(told, &["note"]))
        }
        "answered" => format!("{what} was answered{}", told.by(&WHO)),
        _ => done(told, &what, action),
    }
}

fn email(told: &Told<'_>, action: &str) -> String {
    let subject = quoted(told, &["subject"]);
    let from = told.name("sender").filter(|_| is_inbound(told));
    let to = told.names("to").into_iter().next();
    let whom = match (from, to) {
        (Some(from), _) => format!(" from {from}"),
        (None, Some(to)) if !is_inbound(told) => format!(" to {to}"),
        _ => String::new(),
    };
    match action {
        "sent" => format!("E-mail{whom} was sent{}{subject}", told.by(&WHO)),
        "created" if told.is("status", "draft") => format!("Draft of an e-mail{whom}{}{subject}", told.by(&WHO)),
        "created" if is_inbound(told) => format!("E-mail{whom}{subject}"),
        "created" => format!("E-mail{whom}{}{subject}", told.by(&WHO)),
        "deleted" => format!("E-mail{whom} was deleted{subject}"),
        _ => format!("{}{subject}", done(told, &format!("E-mail{whom}"), action)),
    }
}

fn email_thread(told: &Told<'_>, action: &str) -> String {
    let subject = told.text(&["latest_normalized_subject"]);
    let subject = subject.map(|subject| format!(" {subject}")).unwrap_or_default();
    let count = told.number("n_emails").and_then(|count| usize::try_from(count).ok());
    let count = count.map(|count| format!(" ({})", several(count, "e-mail")));
    done(
        told,
        &format!("E-mail thread{subject}{}", count.unwrap_or_default()),
        action,
    )
}

fn message(told: &Told<'_>, what: &str, keys: &[&str], action: &str) -> String {
    let whom = with_whom(told, what);
    let text = quoted(told, keys);
    match action {
        "created" if is_inbound(told) => format!("{whom}{text}"),
        "created" => format!("{whom}{}{text}", told.by(&WHO)),
        "sent" => format!("{whom} was sent{}{text}", told.by(&WHO)),
        "deleted" => format!("{whom} was deleted{text}"),
        _ => done(told, &whom, action),
    }
}

fn meeting(told: &Told<'_>, action: &str) -> String {
    let title = told.text(&["title"]).map(|title| format!(" {title}"));
    let what = format!("Meeting{}", title.unwrap_or_default());
    let at = told.moment("starts_at");
    let on = at.as_ref().map(|at| format!(" for {at}")).unwrap_or_default();
    let of = at.as_ref().map(|at| format!(" of {at}")).unwrap_or_default();
    match action {
        "created" | "scheduled" => format!("{what} was scheduled{on}{}", told.by(&["user_name", "created_by_name"])),
        "started" => format!("{what} has begun"),
        "completed" => format!("{what}{of} is over"),
        "canceled" => format!("{what}{of} was canceled"),
        _ => done(told, &format!("{what}{of}"), action),
    }
}

fn note(told: &Told<'_>, action: &str) -> String {
    let text = quoted(told, &["note", "note_html", "title"]);
    match action {
        "created" => format!("New note{}{text}", told.by(&["created_by_name", "user_name"])),
        "updated" => format!("A note was changed{}{text}", told.by(&["updated_by_name", "user_name"])),
        "deleted" => format!("A note was deleted{text}"),
        _ => done(told, "Note", action),
    }
}

fn form(told: &Told<'_>, action: &str) -> String {
    let name = told
        .name("form_name")
        .map_or_else(|| "A form".to_owned(), |name| format!("The form {name}"));
    match action {
        "created" => format!("{name} was filled in"),
        "deleted" => format!("An answer to {} was deleted", lower_first(&name)),
        _ => format!("An answer to {} was updated", lower_first(&name)),
    }
}

fn lower_first(text: &str) -> String {
    let mut chars = text.chars();
    let first = chars.next().into_iter().flat_map(char::to_lowercase);
    first.chain(chars).collect()
}

fn task_completed(told: &Told<'_>, action: &str) -> String {
    let text = told
        .text(&["task_text"])
        .map(|text| format!(" {text}"))
        .unwrap_or_default();
    match action {
        "deleted" => format!("Task{text} is not completed any more"),
        _ => format!("Task{text} was completed{}", told.by(&WHO)),
    }
}

fn status_change(told: &Told<'_>, what: &str, money: &str, action: &str) -> String {
    let from = told.name("old_status_label").map(|status| format!(" from {status}"));
    let to = told.name("new_status_label").map(|status| format!(" to {status}"));
    let from_to = format!("{}{}", from.unwrap_or_default(), to.unwrap_or_default());
    match action {
        "created" => format!("{what} moved{from_to}{money}{}", told.by(&WHO)),
        "deleted" => format!("The note that the {} moved{from_to} was deleted", what.to_lowercase()),
        _ => format!("The note that the {} moved{from_to} was updated", what.to_lowercase()),
    }
}

/// A task: of which kind, about what, for whom.
fn task(told: &Told<'_>, kind: &str, action: &str) -> String {
    let phone = told.first(&["phone_formatted", "phone"]);
    let from = phone.as_ref().map(|phone| format!(" from {phone}")).unwrap_or_default();
    let to = phone.as_ref().map(|phone| format!(" to {phone}")).unwrap_or_default();
    let what = match kind {
        "lead" => "Task".to_owned(),
        "incoming_email" => "Task, incoming e-mail".to_owned(),
        "email_followup" => "Task, follow up an e-mail".to_owned(),
        "incoming_sms" => format!("Task, incoming SMS{from}"),
        "missed_call" => format!("Task, missed call{from}"),
        "answered_detached_call" => format!("Task, answered call{from}"),
        "voicemail" => format!("Task, voicemail{from}"),
        "outgoing_call" => format!("Task, call{to}"),
        "opportunity_due" => {
            let money = told.money("opportunity_").map(|money| format!(" ({money})"));
            format!("Task, opportunity is due{}", money.unwrap_or_default())
        }
        other => words(&format!("task, {other}")),
    };
    let text = told.text(&["text", "subject", "opportunity_note", "body_preview"]);
    let text = text.map(|text| format!(" {text}")).unwrap_or_default();
    let due = told.first(&["due_date", "date"]).map(|due| {
        let date = due.get(..10).unwrap_or(&due).to_owned();
        format!(", due {date}")
    });
    let due = due.unwrap_or_default();
    let of = told
        .name("lead_name")
        .map(|name| format!(" about {name}"))
        .unwrap_or_default();
    match action {
        "created" => {
            let whom = told.name("assigned_to_name").map(|name| format!(" for {name}"));
            format!("New {}{}{of}{text}{due}", lower_first(&what), whom.unwrap_or_default())
        }
        "completed" => format!(
            "{what}{of}{text} was completed{}",
            told.by(&["updated_by_name", "assigned_to_name"])
        ),
        "deleted" => format!("{what}{of}{text} was deleted"),
        _ => done(told, &format!("{what}{of}{text}"), action),
    }
}
