//! How HTTPS comes about: from files, and ordered.

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn https_from_files_is_proved_with_its_certificate() {
    let host = Host::new().await;
    let (cert, key) = host.certificate();
    let port = free_port();
    let (url, listen, api_key) = (
        format!("https://localhost:{port}"),
        format!("127.0.0.1:{port}"),
        host.key_argument(),
    );
    let flags = [
        "init",
        "--yes",
        "--json",
        "--url",
        &url,
        "--https",
        "files",
        "--cert",
        &cert,
        "--cert-key",
        &key,
    ];
    let run = |trusting: bool| {
        let mut command = if trusting {
            host.trusting(&flags)
        } else {
            host.command(&flags)
        };
        let output = command
            .args(["--listen", &listen, "--api-key", &api_key])
            .output()
            .unwrap();
        Steps::of(output)
    };
    let steps = run(true).ended(0);
    assert!(steps.says("name").contains("localhost is ") && steps.result("name") == "ok");
    let delivery = steps.step("delivery");
    assert!(
        delivery["says"].as_str().unwrap().contains("certificate valid until"),
        "{delivery}"
    );
    assert!(delivery["certificate_not_after"].is_string());
    assert_eq!(host.subscriptions()[0].1, format!("{url}/webhooks/close"));
    // Others do not trust it, and neither would Close.
    let steps = run(false).ended(1);
    assert_eq!(steps.result("subscription"), "ok");
    assert!(
        steps
            .says("delivery")
            .contains("Close would not accept the certificate")
            && steps.says("delivery").contains("then its chain"),
        "{steps:?}"
    );
    // Somebody else has the port.
    let _taken = std::net::TcpListener::bind(&listen).unwrap();
    let before = host.text();
    let steps = host.init(&["--url", "https://localhost/other"]).ended(1);
    assert!(steps.says("port").contains("something else listens"), "{steps:?}");
    assert_eq!((steps.results().len(), host.text()), (2, before), "it stops there");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_is_ordered_and_waited_for() {
    let host = Host::new().await;
    let port = free_port();
    let Some(pebble) = Pebble::start(host.dir.path(), port, 3600).await else {
        return;
    };
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[server.acme]\ndomains = [\"old.example.com\"] # so far\n\
         directory = \"{}\"\nca = \"{}\"\n[log]\ndir = \"{}\"\n",
        pebble.directory,
        host.path("pebble.pem").display(),
        host.path("data").display()
    );
    std::fs::write(host.config(), config).unwrap();
    let url = format!("https://localhost:{port}/webhooks/close");
    let steps = host.init(&["--url", &url, "--api-key", &host.key_argument()]).ended(0);
    assert!(host.text().contains("domains = [\"localhost\"] # so far"));
    assert_eq!(steps.result("certificate"), "changed");
    assert!(
        steps.says("certificate").contains("for localhost, valid until"),
        "{steps:?}"
    );
    // It came through, though nobody on the web trusts that issuer.
    assert!(
        steps.says("delivery").contains("--acme-directory production"),
        "{steps:?}"
    );
    assert_eq!(host.init(&[]).ended(0).result("certificate"), "ok");
    // No name, no order: everything stays as it was.
    let before = host.text();
    let steps = host.init(&["--url", "https://closehook.invalid/x"]).ended(1);
    assert!(
        steps.says("name").contains("closehook.invalid leads nowhere"),
        "{steps:?}"
    );
    assert_eq!(host.text(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_order_that_fails_is_told_with_the_issuer_s_reason() {
    let host = Host::new().await;
    // The issuer looks where nobody listens.
    let Some(pebble) = Pebble::start(host.dir.path(), free_port(), 3600).await else {
        return;
    };
    let port = free_port();
    let config = format!(
        "[server]\nlisten = \"127.0.0.1:{port}\"\n[server.acme]\ndomains = [\"localhost\"]\n\
         directory = \"{}\"\nca = \"{}\"\n[log]\ndir = \"{}\"\n",
        pebble.directory,
        host.path("pebble.pem").display(),
        host.path("data").display()
    );
    std::fs::write(host.config(), config).unwrap();
    let url = format!("https://localhost:{port}/webhooks/close");
    let steps = host.init(&["--url", &url, "--api-key", &host.key_argument()]).ended(1);
    assert!(
        steps
            .says("certificate")
            .contains("its port 443 must reach server.listen"),
        "{steps:?}"
    );
    assert_eq!(
        (steps.result("subscription"), steps.result("delivery")),
        ("changed", "skipped")
    );
}
