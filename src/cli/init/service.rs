//! systemd, where it is there: the unit that runs this configuration, and what to tell systemd so that it runs it as it is now.

use std::collections::BTreeMap;
use std::path::Path;

use tokio::process::Command;

use crate::sorted;

/// The unit that runs a configuration.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Unit {
    pub name: String,
    pub is_active: bool,
    pub is_enabled: bool,
    /// 0: none.
    pub main_pid: u32,
    /// Whom it runs as; `None`: root.
    pub user: Option<String>,
    /// `CLOSEHOOK__...` variables.
    pub environment: Vec<(String, String)>,
    /// It may listen below port 1024 by itself.
    pub may_take_low_ports: bool,
    /// The unit that holds its public socket; `None`: there is none.
    pub socket: Option<Socket>,
}

/// A socket unit.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Socket {
    pub name: String,
    pub is_active: bool,
    pub is_enabled: bool,
    /// Where it listens, as systemd says it.
    pub listens: String,
}

impl Socket {
    /// Whether it holds this TCP port.
    pub fn has_port(&self, port: u16) -> bool {
        let mut words = self.listens.split_whitespace();
        words.any(|word| word.rsplit_once(':').is_some_and(|(_, last)| last == port.to_string()))
    }
}

const PROPERTIES: &str =
    "LoadState,ActiveState,UnitFileState,MainPID,User,ExecStart,Environment,AmbientCapabilities,Listen";

/// Finds the unit that serves a configuration file; `None`: there is none, or no systemd.
pub(super) async fn find(file: &Path) -> Option<Unit> {
    let stem = file.file_stem()?.to_str()?;
    let name = if stem == "closehook" {
        "closehook.service".to_owned()
    } else {
        format!("closehook@{stem}.service")
    };
    let shown = show(&name).await?;
    let mut unit = read_unit(&name, &shown, file)?;
    let socket_name = name.replace(".service", ".socket");
    unit.socket = show(&socket_name)
        .await
        .and_then(|shown| read_socket(&socket_name, &shown));
    Some(unit)
}

async fn show(name: &str) -> Option<String> {
    let mut command = Command::new("systemctl");
    command.args(["show", name, "--property", PROPERTIES]);
    let output = command.stdin(std::process::Stdio::null()).output().await.ok()?;
    output
        .status
        .success()
        .then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn properties(shown: &str) -> BTreeMap<&str, &str> {
    sorted::map(shown.lines().filter_map(|line| line.split_once('=')))
}

/// Reads what `systemctl show` says of a service; `None` where it is not there or serves another file.
fn read_unit(name: &str, shown: &str, file: &Path) -> Option<Unit> {
    let properties = properties(shown);
    let get = |name: &str| properties.get(name).copied().unwrap_or_default();
    let is_ours = get("ExecStart").split_whitespace().any(|word| Path::new(word) == file);
    if get("LoadState") != "loaded" || !is_ours {
        return None;
    }
    let environment = get("Environment").split_whitespace().filter_map(|word| {
        let (name, value) = word.trim_matches('"').split_once('=')?;
        name.starts_with("CLOSEHOOK__")
            .then(|| (name.to_owned(), value.to_owned()))
    });
    Some(Unit {
        name: name.to_owned(),
        is_active: get("ActiveState") == "active",
        is_enabled: get("UnitFileState").starts_with("enabled"),
        main_pid: get("MainPID").parse().unwrap_or_default(),
        user: Some(get("User").to_owned()).filter(|user| !user.is_empty()),
        environment: environment.collect(),
        may_take_low_ports: get("AmbientCapabilities")
            .to_ascii_lowercase()
            .contains("cap_net_bind_service"),
        socket: None,
    })
}

fn read_socket(name: &str, shown: &str) -> Option<Socket> {
    let properties = properties(shown);
    let get = |name: &str| properties.get(name).copied().unwrap_or_default();
    (get("LoadState") == "loaded").then(|| Socket {
        name: name.to_owned(),
        is_active: get("ActiveState") == "active",
        is_enabled: get("UnitFileState").starts_with("enabled"),
        listens: get("Listen").to_owned(),
    })
}

/// What systemd is to be told so that the unit runs now and after a start of the machine. `by_socket`: the socket unit is to
/// hold the port; `restart`: what runs is not as configured any more.
pub(super) fn commands(unit: &Unit, by_socket: bool, restart: bool) -> Vec<Vec<String>> {
    let mut commands: Vec<Vec<&str>> = Vec::new();
    let service = unit.name.as_str();
    let mut runs = unit.is_active;
    if let Some(socket) = &unit.socket {
        let name = socket.name.as_str();
        if by_socket != socket.is_active && runs {
            // Only a service that is down gets, or gives back, its socket.
            commands.push(vec!["stop", service]);
            runs = false;
        }
        if by_socket && !(socket.is_active && socket.is_enabled) {
            commands.push(vec!["enable", "--now", name]);
        } else if !by_socket && (socket.is_active || socket.is_enabled) {
            commands.push(vec!["disable", "--now", name]);
        }
    }
    if runs {
        if restart {
            commands.push(vec!["restart", service]);
        }
        if !unit.is_enabled {
            commands.push(vec!["enable", service]);
        }
    } else {
        // One that failed again and again is given another chance.
        commands.push(vec!["reset-failed", service]);
        if unit.is_enabled {
            commands.push(vec!["start", service]);
        } else {
            commands.push(vec!["enable", "--now", service]);
        }
    }
    let owned = |words: Vec<&str>| words.into_iter().map(ToOwned::to_owned).collect();
    commands.into_iter().map(owned).collect()
}

/// Tells systemd. An error is one sentence.
pub(super) async fn run(commands: &[Vec<String>]) -> Result<(), String> {
    for words in commands {
        let text = format!("systemctl {}", words.join(" "));
        let mut command = Command::new("systemctl");
        command
            .arg("--no-ask-password")
            .args(words)
            .stdin(std::process::Stdio::null());
        let output = command.output().await.map_err(|error| format!("{text}: {error}"))?;
        let is_optional = words.first().is_some_and(|word| word == "reset-failed");
        if !output.status.success() && !is_optional {
            let said = String::from_utf8_lossy(&output.stderr).trim().replace('\n', " ");
            return Err(format!("`{text}` failed: {said}"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHOWN: &str = "LoadState=loaded\nActiveState=inactive\nUnitFileState=disabled\nMainPID=0\nUser=closehook\n\
        ExecStart={ path=/usr/bin/closehook ; argv[]=/usr/bin/closehook serve -c /etc/closehook/closehook.toml ; ignore_errors=no }\n\
        Environment=CLOSEHOOK__LOG__DIR=/var/lib/closehook LANG=C\nAmbientCapabilities=\n";

    fn unit() -> Unit {
        read_unit("closehook.service", SHOWN, Path::new("/etc/closehook/closehook.toml")).unwrap()
    }

    fn words(commands: &[Vec<String>]) -> Vec<String> {
        commands.iter().map(|words| words.join(" ")).collect()
    }

    #[test]
    fn a_unit_is_ours_if_it_serves_our_file() {
        let unit = unit();
        assert_eq!(
            (unit.user.as_deref(), unit.is_active, unit.is_enabled),
            (Some("closehook"), false, false)
        );
        assert_eq!(
            unit.environment,
            [("CLOSEHOOK__LOG__DIR".to_owned(), "/var/lib/closehook".to_owned())]
        );
        assert_eq!(
            read_unit("closehook.service", SHOWN, Path::new("/tmp/closehook.toml")),
            None
        );
        let missing = SHOWN.replace("loaded", "not-found");
        assert_eq!(
            read_unit(
                "closehook.service",
                &missing,
                Path::new("/etc/closehook/closehook.toml")
            ),
            None
        );
        let low = SHOWN.replace("AmbientCapabilities=", "AmbientCapabilities=cap_net_bind_service");
        assert!(
            read_unit("x", &low, Path::new("/etc/closehook/closehook.toml"))
                .unwrap()
                .may_take_low_ports
        );
    }

    #[test]
    fn a_socket_tells_its_port() {
        let shown = "LoadState=loaded\nActiveState=active\nUnitFileState=enabled\nListen=[::]:443 (Stream)\n";
        let socket = read_socket("closehook.socket", shown).unwrap();
        assert!(socket.is_active && socket.has_port(443) && !socket.has_port(44) && !socket.has_port(8443));
    }

    #[test]
    fn systemd_is_told_what_is_needed_and_no_more() {
        let service = "closehook.service";
        let mut unit = unit();
        assert_eq!(
            words(&commands(&unit, false, false)),
            [format!("reset-failed {service}"), format!("enable --now {service}")]
        );
        unit.socket = Some(Socket {
            name: "closehook.socket".into(),
            ..Socket::default()
        });
        assert_eq!(
            words(&commands(&unit, true, false)),
            [
                "enable --now closehook.socket".to_owned(),
                format!("reset-failed {service}"),
                format!("enable --now {service}")
            ]
        );
        // It runs without the socket, which is to hold the port from now on.
        (unit.is_active, unit.is_enabled) = (true, true);
        assert_eq!(
            words(&commands(&unit, true, true)),
            [
                format!("stop {service}"),
                "enable --now closehook.socket".to_owned(),
                format!("reset-failed {service}"),
                format!("start {service}")
            ]
        );
        unit.socket.as_mut().unwrap().is_active = true;
        unit.socket.as_mut().unwrap().is_enabled = true;
        assert_eq!(commands(&unit, true, false), Vec::<Vec<String>>::new());
        assert_eq!(words(&commands(&unit, true, true)), [format!("restart {service}")]);
        // And back behind a proxy.
        assert_eq!(
            words(&commands(&unit, false, true)),
            [
                format!("stop {service}"),
                "disable --now closehook.socket".to_owned(),
                format!("reset-failed {service}"),
                format!("start {service}")
            ]
        );
    }
}
