//! Connections with TLS and without it, and certificates.

use super::*;

fn authority(name: &str) -> (rcgen::CertifiedIssuer<'static, rcgen::KeyPair>, String) {
    let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    parameters.distinguished_name.push(rcgen::DnType::CommonName, name);
    let issuer = rcgen::CertifiedIssuer::self_signed(parameters, rcgen::KeyPair::generate().unwrap()).unwrap();
    let pem = issuer.pem();
    (issuer, pem)
}

fn with_mode(mode: &str, host: &str, ca: Option<&str>, port: u16) -> SinkOptions {
    let mut table = json!({"url": format!("postgres://postgres@{host}:{port}/postgres?sslmode={mode}")});
    if let Some(ca) = ca {
        table["ca"] = ca.into();
    }
    kind(table)
}

/// Whether the sink's connection is encrypted; why there is none.
async fn is_encrypted(kind: SinkOptions, server: &Server) -> Result<bool, String> {
    let _opened = kind.open(context()).await.map_err(|error| error.reason)?;
    let sql = "SELECT count(*) FROM pg_stat_ssl JOIN pg_stat_activity USING (pid) WHERE ssl AND application_name = 'closehook db'";
    Ok(server.number(sql).await > 0)
}

/// A server with TLS, whose certificate is for `localhost`, and what its clients may trust.
struct WithTls {
    server: Server,
    dir: tempfile::TempDir,
    issuer: rcgen::CertifiedIssuer<'static, rcgen::KeyPair>,
    /// The authority of the server's certificate, another one, and that certificate itself.
    right: String,
    wrong: String,
    own: String,
}

impl WithTls {
    async fn start() -> Option<WithTls> {
        let mut server = Server::start("").await?;
        let dir = tempfile::tempdir().unwrap();
        let (issuer, ca) = authority("right");
        let (_, other) = authority("wrong");
        let key = rcgen::KeyPair::generate().unwrap();
        let parameters = rcgen::CertificateParams::new(vec!["localhost".into()]).unwrap();
        let certificate = parameters.signed_by(&key, &issuer).unwrap();
        server.write("server.crt", &certificate.pem());
        server.write("server.key", &key.serialize_pem());
        server.write("root.crt", &ca);
        server.stop();
        let config = server.data().join("postgresql.conf");
        let text = std::fs::read_to_string(&config).unwrap() + "ssl = on\nssl_ca_file = 'root.crt'\n";
        std::fs::write(&config, text).unwrap();
        server.run().await;
        Some(WithTls {
            right: file(&dir, "ca.pem", &ca),
            wrong: file(&dir, "other.pem", &other),
            own: file(&dir, "own.pem", &certificate.pem()),
            server,
            dir,
            issuer,
        })
    }
}

fn file(dir: &tempfile::TempDir, name: &str, text: &str) -> String {
    std::fs::write(dir.path().join(name), text).unwrap();
    dir.path().join(name).to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_tls_is_refused_only_where_sslmode_demands_it() {
    let Some(server) = Server::start("").await else { return };
    for mode in ["disable", "allow", "prefer"] {
        let kind = with_mode(mode, "localhost", None, server.port);
        assert_eq!(is_encrypted(kind, &server).await, Ok(false), "{mode}");
    }
    let kind = with_mode("require", "localhost", None, server.port);
    let said = is_encrypted(kind, &server).await.unwrap_err();
    assert!(said.contains("does not support TLS"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sslmode_means_what_it_means_to_libpq() {
    let Some(tls) = WithTls::start().await else { return };
    let (right, wrong, own) = (Some(&*tls.right), Some(&*tls.wrong), Some(&*tls.own));
    for (mode, host, ca, encrypted) in [
        ("disable", "localhost", None, Ok(false)),
        ("allow", "localhost", None, Ok(false)),
        ("prefer", "localhost", None, Ok(true)),
        ("prefer", "localhost", wrong, Ok(true)),
        ("require", "127.0.0.1", None, Ok(true)),
        ("require", "127.0.0.1", right, Ok(true)),
        ("require", "127.0.0.1", wrong, Err("set ca")),
        ("verify-ca", "127.0.0.1", right, Ok(true)),
        ("verify-ca", "127.0.0.1", own, Ok(true)),
        ("verify-ca", "localhost", wrong, Err("set ca")),
        ("verify-ca", "localhost", None, Err("set ca")),
        ("verify-full", "localhost", right, Ok(true)),
        ("verify-full", "localhost", own, Ok(true)),
        ("verify-full", "127.0.0.1", own, Err("the host's name")),
        ("verify-full", "localhost", wrong, Err("set ca")),
        ("verify-full", "localhost", None, Err("set ca")),
        ("verify-full", "127.0.0.1", right, Err("the host's name")),
    ] {
        let got = is_encrypted(with_mode(mode, host, ca, tls.server.port), &tls.server).await;
        match (&got, encrypted) {
            (Ok(got), Ok(expected)) => assert_eq!(*got, expected, "{mode} {host} {ca:?}"),
            (Err(said), Err(hint)) => assert!(said.contains(hint), "{mode} {host} {ca:?}: {said}"),
            _ => panic!("{mode} {host} {ca:?}: {got:?}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_takes_only_tls_and_known_clients_is_shown_a_certificate() {
    let Some(tls) = WithTls::start().await else { return };
    let rules = "local all all trust\nhostnossl all all all reject\nhostssl all all all cert\n";
    tls.server.write("pg_hba.conf", rules);
    tls.server.sql("SELECT pg_reload_conf()").await;
    let mut parameters = rcgen::CertificateParams::new(Vec::<String>::new()).unwrap();
    parameters
        .distinguished_name
        .push(rcgen::DnType::CommonName, "postgres");
    let key = rcgen::KeyPair::generate().unwrap();
    let certificate = parameters.signed_by(&key, &tls.issuer).unwrap();
    let cert = file(&tls.dir, "cert.pem", &certificate.pem());
    let key = file(&tls.dir, "key.pem", &key.serialize_pem());
    let port = tls.server.port;
    for mode in ["allow", "prefer", "require", "verify-full"] {
        let url = format!("postgres://postgres@localhost:{port}/postgres?sslmode={mode}");
        let with = kind(json!({"url": url, "ca": tls.right, "cert": cert, "key": key}));
        assert_eq!(is_encrypted(with, &tls.server).await, Ok(true), "{mode}");
    }
    let kind = with_mode("disable", "localhost", None, port);
    let said = is_encrypted(kind, &tls.server).await.unwrap_err();
    assert!(said.contains("pg_hba.conf"), "{said}");
}
