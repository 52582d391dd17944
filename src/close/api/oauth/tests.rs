use std::path::Path;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::close::unanswered::Unanswered;
use crate::state::{Entry, Expected, LocalStore, Revision, Store, StoreError};

/// The refresh token that a request brings.
async fn asked_with(stream: &mut TcpStream) -> String {
    let mut said = String::new();
    let mut piece = [0; 1024];
    while !said.contains("refresh_token=") {
        let len = stream.read(&mut piece).await.unwrap();
        assert!(len > 0, "{said}");
        said += std::str::from_utf8(&piece[..len]).unwrap();
    }
    let value = said.rsplit("refresh_token=").next().unwrap();
    value.split('&').next().unwrap().to_owned()
}

/// Answers one request for each of these bodies, and gives the tokens they came with; fails where one does not come.
async fn answers(listener: TcpListener, bodies: &[(u16, &str)]) -> Vec<String> {
    let mut tokens = Vec::new();
    for (status, body) in bodies {
        let accepted = tokio::time::timeout(Duration::from_secs(30), listener.accept()).await;
        let (mut stream, _) = accepted.unwrap().unwrap();
        tokens.push(asked_with(&mut stream).await);
        let answer = format!(
            "HTTP/1.1 {status} x\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
    tokens
}

#[test]
fn only_close_itself_refuses_a_refresh_token() {
    let judged = |status: u16, kind: &'static str, body: &'static str| {
        let mut headers = reqwest::header::HeaderMap::new();
        headers.insert("content-type", kind.parse().unwrap());
        headers.insert("retry-after", "7".parse().unwrap());
        let answer = HttpAnswer {
            status: reqwest::StatusCode::from_u16(status).unwrap(),
            headers,
            body: body.into(),
        };
        answer.granted()
    };
    let (json, html) = ("application/json", "text/html");
    assert_eq!(judged(200, json, "{}"), Ok(()));
    let refused = judged(400, json, r#"{"error":"invalid_grant"}"#);
    assert_eq!(refused, Err(Error::RefreshRefused("invalid_grant".into())));
    for status in [200, 302, 400, 401, 403, 429, 502] {
        let page = judged(status, html, "<html>Attention required");
        assert!(matches!(page, Err(Error::NotClose { .. })), "{status}: {page:?}");
    }
    // Of a kind that nobody reads, and nothing that Close would say.
    let other = judged(401, "application/octet-stream", "denied");
    assert!(matches!(other, Err(Error::NotClose { .. })), "{other:?}");
    assert_eq!(judged(429, json, "{}"), Err(Error::RateLimited(Duration::from_secs(7))));
    assert_eq!(judged(503, json, "{}"), Err(Error::Server(503)));
    let missing = judged(404, html, "<html>");
    assert!(
        matches!(missing, Err(Error::Rejected { status: 404, .. })),
        "{missing:?}"
    );
}

#[tokio::test]
async fn where_the_newest_refresh_token_is_refused_the_one_before_is_tried() {
    crate::install_crypto();
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("oauth.json");
    let seed = "first";
    let chain = |refresh_token: &str, previous: Option<&str>| Chain {
        version: files::VERSION,
        seed: hex::encode(Sha256::digest(seed)),
        refresh_token: refresh_token.to_owned(),
        previous: previous.map(str::to_owned),
    };
    files::write_json(&path, &chain("newest", Some("before"))).unwrap();
    let oauth = || {
        let chain = OAuthChain::new("id".into(), "secret".into(), seed.into(), path.clone());
        Arc::new(chain)
    };
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/oauth2/token/", listener.local_addr().unwrap())).unwrap();
    let refused = (400, r#"{"error":"invalid_grant"}"#);
    let given = (200, r#"{"access_token":"a","refresh_token":"next","expires_in":3600}"#);
    let (asking, all) = (oauth(), [refused, given]);
    let (tokens, access) = tokio::join!(answers(listener, &all), asking.access_token(&http, url));
    assert_eq!(tokens, ["newest", "before"]);
    assert_eq!(access.unwrap().expose_secret(), "a");
    let kept: Chain = files::read_json(&path).unwrap().unwrap();
    assert_eq!((kept.refresh_token.as_str(), kept.previous.is_some()), ("next", true));

    // Where that is refused as well, it is said; and where there is none before, only one is tried.
    for (previous, expected) in [(Some("before"), vec!["newest", "before"]), (None, vec!["newest"])] {
        files::write_json(&path, &chain("newest", previous)).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
        let all = vec![refused; expected.len()];
        let asking = oauth();
        let (tokens, access) = tokio::join!(answers(listener, &all), asking.access_token(&http, url));
        assert_eq!(tokens, expected);
        assert!(matches!(access, Err(Error::RefreshRefused(_))));
    }
}

const SEED: &str = "first";

/// Longer than anything takes that is to happen.
const LONG: Duration = Duration::from_secs(60);

/// A node with its own directory, whose newest token is this one; and the place of that file.
fn node(dir: &Path, token: &str, store: Option<&LocalStore>) -> (Arc<OAuthChain>, PathBuf) {
    crate::install_crypto();
    let path = dir.join("close/oauth.json");
    write(&path, token, None);
    let shared = store.map(|store| Shared::new(Arc::new(store.clone()), dir));
    let chain = OAuthChain::new("id".into(), "secret".into(), SEED.into(), path.clone()).shared_by(shared);
    (Arc::new(chain), path)
}

fn write(path: &Path, refresh_token: &str, previous: Option<&str>) {
    let chain = Chain {
        version: files::VERSION,
        seed: hex::encode(Sha256::digest(SEED)),
        refresh_token: refresh_token.to_owned(),
        previous: previous.map(str::to_owned),
    };
    files::write_json(path, &chain).unwrap();
}

fn on_disk(path: &Path) -> String {
    files::read_json::<Chain>(path).unwrap().unwrap().refresh_token
}

/// While it is there, the file can't be replaced.
fn in_the_way(path: &Path) -> PathBuf {
    path.with_extension("json.tmp")
}

/// Has it refresh the token, which gives this one; gives the one that it asked with.
async fn refreshed(chain: &Arc<OAuthChain>, next: &str) -> String {
    chain.forget_access();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = Url::parse(&format!("http://{}/", listener.local_addr().unwrap())).unwrap();
    let body = format!(r#"{{"access_token":"a","refresh_token":"{next}","expires_in":3600}}"#);
    let all = [(200, body.as_str())];
    let (mut tokens, access) = tokio::join!(answers(listener, &all), chain.access_token(&http, url));
    access.unwrap();
    tokens.remove(0)
}

#[tokio::test]
async fn a_token_that_can_not_be_kept_serves_until_there_is_a_later_one() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, path) = node(dir.path(), "t0", None);
    std::fs::create_dir_all(in_the_way(&path).join("x")).unwrap();
    assert_eq!(refreshed(&chain, "t1").await, "t0");
    assert_eq!(refreshed(&chain, "t2").await, "t1", "the disk does not have it");
    // A command has refreshed it, with the lock as everybody who does.
    let locked = files::lock_beside(&path, || false).await.unwrap();
    std::fs::remove_dir_all(in_the_way(&path)).unwrap();
    write(&path, "t3", Some("t2"));
    drop(locked);
    assert_eq!(refreshed(&chain, "t4").await, "t3");
    assert_eq!(on_disk(&path), "t4");
}

#[tokio::test]
async fn a_token_that_only_the_other_nodes_have_gives_way_to_theirs() {
    let (below, one, two) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let store = LocalStore::open(below.path(), false).unwrap();
    let (one, path) = node(one.path(), "t0", Some(&store));
    let (two, _) = node(two.path(), "t0", Some(&store));
    std::fs::create_dir_all(in_the_way(&path).join("x")).unwrap();
    assert_eq!(refreshed(&one, "t1").await, "t0");
    assert_eq!(refreshed(&two, "t2").await, "t1");
    assert_eq!(refreshed(&one, "t3").await, "t2", "with its disk as full as before");
    std::fs::remove_dir_all(in_the_way(&path)).unwrap();
    assert_eq!(refreshed(&two, "t4").await, "t3");
    assert_eq!(refreshed(&one, "t5").await, "t4");
    assert_eq!(on_disk(&path), "t5");
}

#[tokio::test]
async fn a_token_that_could_not_be_kept_is_kept_as_soon_as_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, path) = node(dir.path(), "t0", None);
    std::fs::create_dir_all(in_the_way(&path).join("x")).unwrap();
    refreshed(&chain, "t1").await;
    assert_eq!(on_disk(&path), "t0");
    std::fs::remove_dir_all(in_the_way(&path)).unwrap();
    let kept = async {
        while on_disk(&path) != "t1" {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(LONG, kept)
        .await
        .expect("nobody asks for another one");
}

/// As `check --probe` does that somebody has stopped in the middle of it.
#[tokio::test(start_paused = true)]
async fn who_holds_the_lock_for_ever_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, path) = node(dir.path(), "t0", None);
    let held = std::fs::File::create(path.with_extension("lock")).unwrap();
    held.lock().unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = Url::parse("http://127.0.0.1:9/").unwrap();
    let error = chain.access_token(&http, url).await.unwrap_err().to_string();
    assert!(
        error.contains("oauth.lock") && error.contains("another process"),
        "{error}"
    );
}

#[tokio::test(start_paused = true)]
async fn a_refresh_that_hangs_is_not_waited_for_for_ever() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, _) = node(dir.path(), "t0", None);
    let store = Arc::new(Unanswered::new("oauth.json").also_to_readers());
    let shared = Some(Shared::new(store, dir.path()));
    let chain = Arc::new(Arc::into_inner(chain).unwrap().shared_by(shared));
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = Url::parse("http://127.0.0.1:9/").unwrap();
    let within = Duration::from_secs(24 * 3600);
    let told = tokio::time::timeout(within, chain.access_token(&http, url)).await;
    assert!(told.expect("it ends").is_err());
}

/// What nodes share, of which the servers go just when something is to be changed.
#[derive(Debug)]
struct Going(LocalStore);

#[async_trait::async_trait]
impl Store for Going {
    async fn get(&self, key: &str) -> Result<Option<Entry>, StoreError> {
        self.0.get(key).await
    }

    async fn put(&self, _key: &str, _value: Vec<u8>, _expected: Expected) -> Result<Revision, StoreError> {
        Err(StoreError::Failing("nobody is there".to_owned()))
    }

    async fn remove(&self, _key: &str, _expected: Expected) -> Result<(), StoreError> {
        Err(StoreError::Failing("nobody is there".to_owned()))
    }

    async fn keys(&self, prefix: &str) -> Result<Vec<String>, StoreError> {
        self.0.keys(prefix).await
    }

    fn is_damaged(&self) -> bool {
        false
    }

    async fn mended(&self) -> Result<(), StoreError> {
        Ok(())
    }

    async fn close(&self) {}
}

/// A node that gets this token, and ends before it can share it. Its directory stays.
async fn ended_with(dir: &Path, store: &LocalStore, token: &str) {
    use std::os::unix::fs::PermissionsExt;
    let (chain, path) = node(dir, "t0", None);
    let shared = Shared::new(Arc::new(Going(store.clone())), dir);
    let chain = Arc::new(Arc::into_inner(chain).unwrap().shared_by(Some(shared)));
    assert_eq!(refreshed(&chain, token).await, "t0");
    assert!(chain.unsaved.why().is_some());
    assert_eq!(on_disk(&path), "t0");
    let left = std::fs::metadata(files::unsaved_path(&path)).unwrap();
    assert_eq!(left.permissions().mode() & 0o777, 0o600);
}

async fn shared_token(store: &LocalStore) -> Option<String> {
    let entry = store.get("oauth.json").await.unwrap();
    entry.map(|entry| entry.json::<Chain>().unwrap().refresh_token)
}

#[tokio::test]
async fn a_token_that_came_while_nothing_could_be_shared_is_there_after_a_restart() {
    for refreshes in [true, false] {
        let (below, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = LocalStore::open(below.path(), false).unwrap();
        ended_with(dir.path(), &store, "t1").await;
        let (chain, path) = node(dir.path(), "t0", Some(&store));
        if refreshes {
            assert_eq!(refreshed(&chain, "t2").await, "t1");
        } else {
            chain.keep_now().await.unwrap();
        }
        let expected = if refreshes { "t2" } else { "t1" };
        assert_eq!(shared_token(&store).await.as_deref(), Some(expected));
        assert_eq!(on_disk(&path), expected);
        assert!(!files::unsaved_path(&path).exists(), "it has gone");
        assert_eq!(chain.unsaved.why(), None);
    }
}

#[tokio::test]
async fn a_token_that_was_left_gives_way_to_a_later_one_that_is_shared() {
    let (below, one, two) = (
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
        tempfile::tempdir().unwrap(),
    );
    let store = LocalStore::open(below.path(), false).unwrap();
    ended_with(one.path(), &store, "t1").await;
    // The app was authorized again, say.
    let (other, _) = node(two.path(), "t0", Some(&store));
    assert_eq!(refreshed(&other, "t5").await, "t0");
    let (chain, path) = node(one.path(), "t0", Some(&store));
    chain.keep_now().await.unwrap();
    assert_eq!(shared_token(&store).await.as_deref(), Some("t5"));
    assert!(!files::unsaved_path(&path).exists(), "it has gone");
    assert_eq!(refreshed(&chain, "t6").await, "t5");
    assert_eq!(shared_token(&store).await.as_deref(), Some("t6"));
}

/// An error is never an absence: the one that is kept was used up.
#[tokio::test]
async fn a_token_that_was_left_and_can_not_be_read_is_not_passed_over() {
    let (below, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(below.path(), false).unwrap();
    let (chain, path) = node(dir.path(), "t0", Some(&store));
    std::fs::write(files::unsaved_path(&path), "{").unwrap();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    let url = Url::parse("http://127.0.0.1:9/").unwrap();
    let error = chain.access_token(&http, url).await.unwrap_err().to_string();
    assert!(error.contains("oauth.unsaved.json is damaged"), "{error}");
}

/// As where the file system has become read-only in between: what was left before can't be taken away either.
#[tokio::test]
async fn a_token_that_could_not_be_left_does_not_give_way_to_the_one_before() {
    let (below, dir) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = LocalStore::open(below.path(), false).unwrap();
    let (chain, path) = node(dir.path(), "t0", None);
    let shared = Shared::new(Arc::new(Going(store)), dir.path());
    let chain = Arc::new(Arc::into_inner(chain).unwrap().shared_by(Some(shared)));
    let left = files::unsaved_path(&path);
    assert_eq!(refreshed(&chain, "t1").await, "t0");
    let before = std::fs::read(&left).unwrap();
    std::fs::create_dir_all(in_the_way(&left).join("x")).unwrap();
    assert_eq!(refreshed(&chain, "t2").await, "t1");
    std::fs::write(&left, before).unwrap();
    assert_eq!(refreshed(&chain, "t3").await, "t2");
}

#[tokio::test]
async fn a_node_that_is_alone_looks_at_no_token_that_others_do_not_have() {
    let dir = tempfile::tempdir().unwrap();
    let (chain, path) = node(dir.path(), "t0", None);
    std::fs::write(files::unsaved_path(&path), "{").unwrap();
    chain.keep_now().await.unwrap();
}
