//! Sentences of leads, contacts, opportunities, and of what an organization sets up.

use super::told::{Told, done, several};

/// `None`: no documented type.
pub(super) fn said(told: &Told<'_>, object_type: &str, action: &str) -> Option<String> {
    if let Some(kind) = object_type.strip_prefix("custom_fields.") {
        return Some(custom_field(told, kind, action));
    }
    if let Some(kind) = object_type.strip_prefix("bulk_action.") {
        return Some(bulk_action(told, kind, action));
    }
    if let Some(kind) = object_type.strip_prefix("export.") {
        return Some(running(told, &format!("Export of {}", plural(kind)), action));
    }
    if let Some(kind) = object_type.strip_prefix("status.") {
        let what = match kind {
            "lead" => "Lead status",
            "opportunity" => "Opportunity status",
            _ => return None,
        };
        return Some(named(told, what, action));
    }
    Some(match object_type {
        "lead" => lead(told, action),
        "contact" => contact(told, action),
        "opportunity" => opportunity(told, action),
        "lead_merge" => lead_merge(told, action),
        "comment" => comment(told, action),
        "comment_thread" => done(told, "Thread of comments", action),
        "custom_object" => named(told, "Custom object", action),
        "custom_object_type" => named(told, "Custom object type", action),
        "custom_activity_type" => named(told, "Custom activity type", action),
        "email_template" => named(told, "E-mail template", action),
        "sms_template" => named(told, "SMS template", action),
        "group" => named(told, "Group", action),
        "saved_search" => named(told, "Smart View", action),
        "sequence" => sequence(told, action),
        "sequence_subscription" => subscription(told, action),
        "phone_number" => {
            let number = told.first(&["number_formatted", "number", "phone_formatted", "phone", "label"]);
            done(told, &called("Phone number", number), action)
        }
        "import" => running(told, &called("Import", told.name("name")), action),
        "membership" => membership(told, action),
        "unsubscribed_email" => unsubscribed(told, action),
        _ => return None,
    })
}

fn called(what: &str, name: Option<String>) -> String {
    name.map_or_else(|| what.to_owned(), |name| format!("{what} {name}"))
}

fn named(told: &Told<'_>, what: &str, action: &str) -> String {
    let name = told.first(&["name", "label", "title"]);
    if action == "updated"
        && let Some((was, is)) = told.moved("name").or_else(|| told.moved("label"))
    {
        return format!("{what} {was} is now called {is}{}", told.by(&["updated_by_name"]));
    }
    done(told, &called(what, name), action)
}

fn plural(what: &str) -> String {
    match what {
        "opportunity" => "opportunities".into(),
        other => format!("{}s", other.replace('_', " ")),
    }
}

fn lead(told: &Told<'_>, action: &str) -> String {
    let name = told.first(&["display_name", "name"]);
    let what = called("Lead", name.clone());
    let by = told.by(&["updated_by_name"]);
    match action {
        "created" => {
            let status = told.name("status_label").map(|status| format!(" ({status})"));
            let name = name.map(|name| format!(": {name}")).unwrap_or_default();
            format!(
                "New lead{name}{}{}",
                status.unwrap_or_default(),
                told.by(&["created_by_name"])
            )
        }
        "updated" => {
            if let Some((was, is)) = told.moved("status_label") {
                return format!("{what} moved from {was} to {is}{by}");
            }
            match told.moved("name") {
                Some((was, is)) => format!("Lead {was} is now called {is}{by}"),
                None => done(told, &what, action),
            }
        }
        "merged" => {
            let source = told.meta("merge_source_lead_id");
            let source = source.map_or_else(|| "Another lead".to_owned(), |id| format!("Lead {id}"));
            let into = name.map_or_else(|| "this one".to_owned(), |name| format!("lead {name}"));
            format!("{source} was merged into {into}")
        }
        _ => done(told, &what, action),
    }
}

fn contact(told: &Told<'_>, action: &str) -> String {
    let name = told.first(&["display_name", "name"]);
    if action == "created" {
        let title = told
            .name("title")
            .map(|title| format!(" ({title})"))
            .unwrap_or_default();
        let name = name.map(|name| format!(": {name}")).unwrap_or_default();
        return format!("New contact{name}{title}{}", told.by(&["created_by_name"]));
    }
    if action == "updated"
        && let Some((was, is)) = told.moved("name")
    {
        return format!("Contact {was} is now called {is}{}", told.by(&["updated_by_name"]));
    }
    done(told, &called("Contact", name), action)
}

fn opportunity(told: &Told<'_>, action: &str) -> String {
    let of = told.first(&["lead_name", "contact_name"]);
    let of = of.map(|name| format!(" of {name}")).unwrap_or_default();
    let what = format!("Opportunity{of}");
    let money = told.money("");
    let paid = money.as_ref().map(|money| format!(" ({money})")).unwrap_or_default();
    let by = told.by(&["updated_by_name"]);
    match action {
        "created" => {
            let parts: Vec<String> = money.into_iter().chain(told.name("status_label")).collect();
            let parts = if parts.is_empty() {
                String::new()
            } else {
                format!(": {}", parts.join(", "))
            };
            format!(
                "New opportunity{of}{parts}{}",
                told.by(&["user_name", "created_by_name"])
            )
        }
        "updated" => {
            if let Some((was, is)) = told.moved("status_label") {
                return format!("{what} moved from {was} to {is}{paid}{by}");
            }
            match (told.money_was(""), money) {
                (Some(was), Some(is)) if was != is => format!("{what} is worth {is} now, {was} before{by}"),
                _ => done(told, &format!("{what}{paid}"), action),
            }
        }
        "deleted" => format!("{what}{paid} was deleted"),
        _ => done(told, &what, action),
    }
}

/// The object, and the activity, that tell of two leads that become one.
pub(super) fn lead_merge(told: &Told<'_>, action: &str) -> String {
    let side = |keys: &[&str], missing: &str| told.first(keys).unwrap_or_else(|| missing.to_owned());
    let source = side(&["source_display_name", "source_lead_id"], "another one");
    let destination = side(&["destination_display_name", "destination_lead_id"], "a lead");
    let what = format!("Merge of lead {source} into {destination}");
    match (action, told.name("merge_status").as_deref()) {
        ("deleted", _) => format!("{what} was deleted"),
        (_, Some("completed")) => format!("{what} is done"),
        (_, Some("errored")) => format!("{what} has failed"),
        (_, Some(status)) => format!("{what}: {}", status.replace('_', " ")),
        (_, None) => done(told, &what, action),
    }
}

fn comment(told: &Told<'_>, action: &str) -> String {
    let text = told.text(&["body"]).map(|text| format!(": {text}")).unwrap_or_default();
    match action {
        "created" => format!("New comment{text}"),
        "deleted" => format!("A comment was deleted{text}"),
        // Close deletes the text first, and the comment with its thread.
        "updated" if text.is_empty() => "A comment was removed".into(),
        _ => format!("A comment was changed{text}"),
    }
}

fn custom_field(told: &Told<'_>, kind: &str, action: &str) -> String {
    let of = match kind {
        "shared" => "Shared custom field".to_owned(),
        kind => format!("Custom field of {}", plural_of(kind)),
    };
    named(told, &of, action)
}

fn plural_of(kind: &str) -> String {
    match kind {
        "activity" => "activities".into(),
        other => plural(other),
    }
}

fn sequence(told: &Told<'_>, action: &str) -> String {
    if action == "updated"
        && let Some((was, is)) = told.moved("status")
    {
        let what = called("Sequence", told.name("name"));
        return format!("{what} went from {was} to {is}");
    }
    named(told, "Sequence", action)
}

fn subscription(told: &Told<'_>, action: &str) -> String {
    let who = told
        .first(&["contact_email", "contact_name"])
        .unwrap_or_else(|| "A contact".into());
    let which = told
        .name("sequence_name")
        .map_or_else(|| "a sequence".to_owned(), |name| format!("the sequence {name}"));
    match action {
        "created" => format!("{who} was added to {which}"),
        "deleted" => format!("{who} was taken out of {which}"),
        "updated" => match told.moved("status") {
            Some((_, is)) if is == "finished" => format!("{who} has finished {which}"),
            Some((was, is)) => format!("{who} in {which} went from {was} to {is}"),
            None => format!("{who} in {which} was updated{}", told.changes()),
        },
        _ => done(told, &format!("{who} in {which}"), action),
    }
}

fn membership(told: &Told<'_>, action: &str) -> String {
    let who = told.first(&["user_full_name", "user_email", "user_id"]);
    let who = who.map_or_else(|| "A user".to_owned(), |name| format!("User {name}"));
    let role = told
        .name("role_id")
        .map(|role| format!(" (role {role})"))
        .unwrap_or_default();
    match action {
        "activated" => format!("{who} may use Close now{role}"),
        "deactivated" => format!("{who} may not use Close any more"),
        _ => done(told, &who, action),
    }
}

fn unsubscribed(told: &Told<'_>, action: &str) -> String {
    let who = told.name("email").unwrap_or_else(|| "An address".into());
    match action {
        "created" => format!("{who} unsubscribed from e-mails"),
        "deleted" => format!("{who} is not unsubscribed from e-mails any more"),
        _ => done(told, &format!("Unsubscribed address {who}"), action),
    }
}

fn bulk_action(told: &Told<'_>, kind: &str, action: &str) -> String {
    let what = match kind {
        "delete" => "Bulk deletion".to_owned(),
        "edit" => "Bulk edit".to_owned(),
        "email" => "Bulk e-mail".to_owned(),
        "sequence_subscription" => "Bulk change of sequences".to_owned(),
        other => format!("Bulk {}", other.replace('_', " ")),
    };
    running(told, &what, action)
}

/// What takes a while: bulk actions, exports, imports.
fn running(told: &Told<'_>, what: &str, action: &str) -> String {
    let leads = told.number("n_leads").and_then(|count| usize::try_from(count).ok());
    let leads = leads
        .map(|count| format!(" ({})", several(count, "lead")))
        .unwrap_or_default();
    let by = told.by(&["created_by_name", "user_name"]);
    match action {
        "created" => format!("{what}{leads} was started{by}"),
        "completed" => format!("{what}{leads} is done"),
        "paused" => format!("{what}{leads} is paused"),
        "reverting" => format!("{what}{leads} is being reverted"),
        "reverted" => format!("{what}{leads} was reverted"),
        _ => match told.name("status") {
            Some(status) => format!("{what}{leads} is {}", status.replace('_', " ")),
            None => done(told, &format!("{what}{leads}"), action),
        },
    }
}
