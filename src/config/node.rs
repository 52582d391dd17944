//! `[node]`: which node this is, and what it does.

use serde_json::Value;

use super::listed::{Listed, placed};
use super::table::{FromValue, Table};
use super::{Config, Fault, Node, Role};

/// Types of sinks that write to the machine they run on.
const OF_ONE_MACHINE: [&str; 4] = ["exec", "file", "sqlite", "stdout"];

const NAME_LEN_MAX: usize = 64;

pub(super) fn read_node(table: &mut Table<'_>) -> Node {
    let name: Option<String> = table.optional("name");
    let is_fine = |name: &str| {
        let is_char = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
        !name.is_empty() && name.len() <= NAME_LEN_MAX && name.bytes().all(is_char)
    };
    if name.as_deref().is_some_and(|name| !is_fine(name)) {
        table.fault("name", "must be letters, digits, '-', '_' and '.', at most 64");
    }
    let texts: Result<Vec<String>, String> = match table.raw("roles") {
        None => Ok(ALL.map(str::to_owned).to_vec()),
        // As the environment has it.
        Some(Value::String(text)) => Ok(text.split(',').map(|role| role.trim().to_owned()).collect()),
        Some(list) => Vec::from_value(list),
    };
    let texts = texts.unwrap_or_else(|why| {
        table.fault("roles", why);
        Vec::new()
    });
    let mut roles = Vec::new();
    for (index, text) in texts.iter().enumerate() {
        match role(text) {
            Ok(role) => roles.push(role),
            Err(why) => table.fault(&format!("roles[{index}]"), why),
        }
    }
    Node {
        name: name.unwrap_or_else(host_name),
        roles,
    }
}

const ALL: [&str; 3] = ["ingress", "deliver", "close"];

fn host_name() -> String {
    let system = rustix::system::uname();
    let name = system.nodename().to_string_lossy().into_owned();
    let fit = |c: char| {
        if c.is_ascii_alphanumeric() || "-_.".contains(c) {
            c
        } else {
            '-'
        }
    };
    let name: String = name.chars().map(fit).take(NAME_LEN_MAX).collect();
    if name.is_empty() { "closehook".into() } else { name }
}

fn role(text: &str) -> Result<Role, String> {
    match text {
        "ingress" => Ok(Role::Ingress),
        "deliver" => Ok(Role::Deliver),
        "close" => Ok(Role::Close),
        other => Err(format!(
            "\"{other}\" is no role: \"ingress\", \"deliver\" and \"close\" are"
        )),
    }
}

/// A fault for each sink that writes to one machine and does not say to which, where several share the log.
pub(super) fn faults_of_sinks(config: &Config, listed: &[Listed], faults: &mut Vec<Fault>) {
    for (place, sink) in placed(listed, config) {
        if sink.node.is_none() && OF_ONE_MACHINE.contains(&sink.kind.as_str()) {
            faults.push(Fault {
                place: format!("{place}.node"),
                message: format!(
                    "is missing: a sink of type \"{}\" belongs to one machine; say which node drives it, for example node = \"{}\"",
                    sink.kind, config.node.name
                ),
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: Value) -> (Node, Vec<Fault>) {
        let mut faults = Vec::new();
        let mut table = Table::new("node", value, &mut faults);
        let node = read_node(&mut table);
        table.finish();
        (node, faults)
    }

    #[test]
    fn a_node_is_called_as_its_host_is_and_does_everything_unless_it_says_otherwise() {
        let (node, faults) = read(json!({}));
        assert!(faults.is_empty() && !node.name.is_empty());
        assert_eq!(node.roles, [Role::Ingress, Role::Deliver, Role::Close]);
        let (node, faults) = read(json!({ "name": "n-1.a", "roles": ["close"] }));
        assert_eq!(
            (node.name.as_str(), node.roles, faults.len()),
            ("n-1.a", vec![Role::Close], 0)
        );
        // As the environment has it.
        let (node, _) = read(json!({ "roles": "ingress, deliver" }));
        assert_eq!(node.roles, [Role::Ingress, Role::Deliver]);
        for (bad, part) in [
            (json!({ "name": "a b" }), "node.name"),
            (json!({ "name": "" }), "node.name"),
            (json!({ "roles": ["deliver", "leader"] }), "\"leader\" is no role"),
            (json!({ "role": [] }), "roles"),
        ] {
            let (_, faults) = read(bad.clone());
            assert!(
                faults.iter().any(|fault| fault.to_string().contains(part)),
                "{bad}: {faults:?}"
            );
        }
    }
}
