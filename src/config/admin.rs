//! Reading `[admin]`: where the operator's page is, under which names, and who may look at it or act on it.

use serde_json::Value;

use super::table::Table;
use super::{Admin, AdminToken, Fault, May};

/// So many tokens at the most: each is compared with what somebody presents.
const TOKENS_MAX: usize = 64;

/// What `admin.token` is called.
const ADMIN: &str = "admin";

/// What who came by a link is called: no token may have that name.
pub const LINK: &str = "link";

pub(super) fn read_admin(table: &mut Table<'_>) -> Admin {
    let mut admin = Admin {
        listen: table.or("listen", ([127, 0, 0, 1], 8481).into()),
        hosts: read_hosts(table),
        tokens: Vec::new(),
    };
    if let Some(token) = table.secret("token") {
        admin.tokens.push(AdminToken {
            place: table.place("token"),
            name: ADMIN.to_owned(),
            token,
            may: May::Act,
        });
    }
    // Also of those that are faulty otherwise.
    let mut names: Vec<String> = admin.tokens.iter().map(|token| token.name.clone()).collect();
    let listed = table.list("tokens");
    if admin.tokens.len() + listed.len() > TOKENS_MAX {
        table.fault("tokens", format!("has more than {TOKENS_MAX} tokens"));
    }
    for (place, value) in listed {
        let name = value.get("name").and_then(Value::as_str).map(str::to_owned);
        let mut inner = Table::new(&place, value, table.faults());
        admin.tokens.extend(read_token(&mut inner, &place));
        inner.finish();
        let Some(name) = name else { continue };
        if names.contains(&name) {
            let message = format!("two tokens are called \"{name}\": the log could not say who acted");
            fault(table, &place, message);
        }
        names.push(name);
    }
    admin
}

fn fault(table: &mut Table<'_>, place: &str, message: String) {
    let place = format!("{place}.name");
    table.faults().push(Fault { place, message });
}

fn read_token(table: &mut Table<'_>, place: &str) -> Option<AdminToken> {
    let name: Option<String> = table.required("name", "\"on-call\"");
    let may: Option<String> = table.required("may", "\"read\" (look) or \"act\" (look and act)");
    let is_there = ["token", "token_file", "token_env"].iter().any(|key| table.has(key));
    let token = table.secret("token");
    if !is_there {
        table.fault(
            "token",
            "is missing: set it, for example token_file = \"/etc/closehook/on-call.token\"",
        );
    }
    let name = name?;
    if !is_name(&name) {
        let message = format!("\"{name}\" is no name: up to 64 letters, digits, '-', '_' and '.'");
        table.fault("name", message);
    } else if name == LINK {
        table.fault(
            "name",
            "\"link\" is what those are called who came by `closehook status --open`",
        );
    }
    let may = match may?.as_str() {
        "read" => May::Read,
        "act" => May::Act,
        other => {
            table.fault("may", format!("\"{other}\" is not \"read\" or \"act\""));
            return None;
        }
    };
    Some(AdminToken {
        place: format!("{place}.token"),
        name,
        token: token?,
        may,
    })
}

fn is_name(name: &str) -> bool {
    let is_fine = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    (1..=64).contains(&name.len()) && name.bytes().all(is_fine)
}

/// Further names of the page: without a scheme, a port or a path, for any port is as good as another.
fn read_hosts(table: &mut Table<'_>) -> Vec<String> {
    let hosts: Vec<String> = table.or("hosts", Vec::new());
    for (index, host) in hosts.iter().enumerate().filter(|(_, host)| !is_host(host)) {
        let message = format!(
            "\"{host}\" is no name of a host: write it like \"closehook.example.com\", without scheme and port"
        );
        table.fault(&format!("hosts[{index}]"), message);
    }
    hosts.iter().map(|host| plain(host)).collect()
}

/// As hosts are compared: small letters, no brackets, no dot at the end.
fn plain(host: &str) -> String {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.trim_end_matches('.').to_ascii_lowercase()
}

fn is_host(host: &str) -> bool {
    let host = plain(host);
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_".contains(&byte))
    };
    host.parse::<std::net::IpAddr>().is_ok() || host.len() <= 253 && host.split('.').all(is_label)
}
