//! Where systemd runs the daemon.

use super::*;

/// Stands in for systemd: keeps one service as it is told to, and writes down what it was told.
const SYSTEMCTL: &str = r#"#!/bin/sh
cd "$SYSTEMD_DIR" || exit 1
up() {
    mkdir -p credentials; cp close_api_key credentials/ 2>/dev/null || echo >credentials/close_api_key
    CREDENTIALS_DIRECTORY="$SYSTEMD_DIR/credentials" setsid "$PROGRAM" -c "$FILE" serve >/dev/null 2>>service.log & echo $! >pid
}
down() { if [ -e pid ]; then kill "$(cat pid)"; while kill -0 "$(cat pid)" 2>/dev/null; do :; done; rm pid; fi; }
if [ "$1" = show ]; then
    case $2 in
    closehook.service)
        echo LoadState=loaded
        echo User=
        echo "ExecStart={ path=$PROGRAM ; argv[]=$PROGRAM serve -c $FILE ; ignore_errors=no }"
        echo "Environment=CLOSEHOOK__LOG__DIR=$SYSTEMD_DIR/state"
        if [ -e pid ]; then echo ActiveState=active; echo "MainPID=$(cat pid)"; else echo ActiveState=inactive; echo MainPID=0; fi
        if [ -e enabled ]; then echo UnitFileState=enabled; else echo UnitFileState=disabled; fi ;;
    *) echo LoadState=not-found ;;
    esac
    exit 0
fi
shift
echo "$*" >>told
case "$*" in
"enable --now closehook.service") touch enabled; [ -e pid ] || up ;;
"start closehook.service") [ -e pid ] || up ;;
"restart closehook.service") down; up ;;
"reset-failed closehook.service") ;;
*) echo "what is $*?" >&2; exit 1 ;;
esac
"#;

#[tokio::test(flavor = "multi_thread")]
async fn systemd_runs_it_where_it_has_a_unit_for_it() {
    if !rustix::process::geteuid().is_root() {
        skipped("only root tells systemd anything");
        return;
    }
    let host = Host::new().await;
    let bin = host.path("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::write(bin.join("systemctl"), SYSTEMCTL).unwrap();
    std::fs::set_permissions(bin.join("systemctl"), std::fs::Permissions::from_mode(0o755)).unwrap();
    let told = || std::fs::read_to_string(host.path("told")).unwrap_or_default();
    let pid = || std::fs::read_to_string(host.path("pid")).unwrap_or_default();
    let init = |flags: &[&str]| {
        let mut command = host.command(&["init", "--yes", "--json"]);
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        command
            .args(flags)
            .env("PATH", path)
            .env("SYSTEMD_DIR", host.dir.path())
            .env("PROGRAM", binary())
            .env("FILE", host.config())
            .env("CLOSEHOOK__LOG__DIR", host.path("state"));
        let output = command.output().unwrap();
        Steps::of(output)
    };
    let first = host.first_flags();
    let steps = init(&first.each_ref().map(String::as_str));
    let stop = Stop(host.path("pid"));
    let steps = steps.ended(0);
    assert_eq!(
        told(),
        "reset-failed closehook.service\nenable --now closehook.service\n"
    );
    assert!(
        steps.says("daemon").contains("now and after a start of the machine"),
        "{steps:?}"
    );
    assert!(
        host.path("state/close/keys.json").exists() && !host.path("closehook-data").exists(),
        "where the unit says"
    );

    let (before, ran) = (told(), pid());
    assert_eq!(init(&[]).ended(0).results(), ALL_GOOD);
    assert_eq!((told(), pid()), (before.clone(), ran.clone()), "nothing to tell");
    // What only a start takes over.
    let other = format!("unix:{}", host.path("other.sock").display());
    *host.proxy.to.lock().unwrap() = host.path("other.sock");
    let steps = init(&["--listen", &other]).ended(0);
    assert_eq!(told(), format!("{before}restart closehook.service\n"));
    assert_eq!((steps.result("daemon"), steps.result("delivery")), ("changed", "ok"));
    assert_ne!(pid(), ran);

    // What systemd hands over comes with a start, too.
    let (before, file) = (told(), format!("\"{}\"", host.path("close_api_key").display()));
    std::fs::write(
        host.config(),
        host.text().replace(&file, "\"credential:close_api_key\""),
    )
    .unwrap();
    std::fs::remove_file(host.path("close_api_key")).unwrap();
    let steps = init(&["--api-key", &host.key_argument()]).ended(0);
    assert_eq!(steps.result("configuration"), "ok");
    assert!(
        steps.says("api-key").contains("which systemd hands to the daemon"),
        "{steps:?}"
    );
    assert_eq!(told(), format!("{before}restart closehook.service\n"));
    assert_eq!(init(&[]).ended(0).results(), ALL_GOOD);
    drop(stop);
}

/// Ends the process whose id is in a file.
struct Stop(PathBuf);

impl Drop for Stop {
    fn drop(&mut self) {
        if let Ok(pid) = std::fs::read_to_string(&self.0) {
            let _ = Command::new("kill").args(["-KILL", pid.trim()]).status();
        }
    }
}
