//! A browser of one's own, as far as these tests need one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use base64::Engine as _;
use fantoccini::elements::Element;
use fantoccini::wd::WebDriverCompatibleCommand;
use fantoccini::{Client, ClientBuilder, Locator};
use hyper_util::client::legacy::connect::HttpConnector;
use reqwest::{Method, Url};
use serde_json::{Value, json};
use tokio::sync::{Mutex, MutexGuard};

use crate::harness::{Daemon, skipped, until};

/// What looks for what keeps people from using a page.
const AXE: &str = include_str!("../../vendor/axe-core/axe.min.js");

/// One browser at a time: each takes as much as a core and half a gigabyte.
static TURN: Mutex<()> = Mutex::const_new(());

/// Chromium, driven.
pub struct Browser {
    pub client: Client,
    driver: Child,
    port: u16,
    session: String,
    is_closed: bool,
    _profile: tempfile::TempDir,
    _turn: MutexGuard<'static, ()>,
}

/// A command of Chromium's driver that is none of `WebDriver`'s own.
#[derive(Debug)]
struct Own {
    path: &'static str,
    body: Value,
}

impl WebDriverCompatibleCommand for Own {
    fn endpoint(&self, base: &Url, session: Option<&str>) -> Result<Url, <Url as std::str::FromStr>::Err> {
        base.join(&format!("session/{}/{}", session.unwrap_or_default(), self.path))
    }

    fn method_and_body(&self, _: &Url) -> (Method, Option<String>) {
        (Method::POST, Some(self.body.to_string()))
    }
}

/// Starts the driver, and gives the port it listens on; `None`, loudly, where there is none.
fn start_driver() -> Option<(Child, u16)> {
    // It takes a free port for IPv4, and ends where that port is somebody's for IPv6: another time it is another port.
    for _ in 0..10 {
        let spawned = Command::new("chromedriver")
            .arg("--port=0")
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut driver) = spawned else {
            skipped("chromedriver is not installed");
            return None;
        };
        let mut said = BufReader::new(driver.stdout.take().unwrap()).lines();
        let port: Option<u16> = said.by_ref().map_while(Result::ok).find_map(|line| {
            let rest = line.split_once("successfully on port ")?.1;
            rest.trim_end_matches('.').parse().ok()
        });
        if let Some(port) = port {
            // The browser has the same standard output: it ends when nobody reads that any more.
            std::thread::spawn(move || said.for_each(drop));
            return Some((driver, port));
        }
        driver.wait().unwrap();
    }
    panic!("chromedriver found no port ten times");
}

impl Browser {
    /// `None`, loudly, where there is none.
    pub async fn open() -> Option<Browser> {
        Browser::open_with(&[]).await
    }

    /// The same with arguments of one's own.
    pub async fn open_with(more: &[&str]) -> Option<Browser> {
        let turn = TURN.lock().await;
        let profile = tempfile::tempdir().unwrap();
        let (driver, port) = start_driver()?;
        let mut arguments = vec![
            "--headless=new".to_owned(),
            "--no-sandbox".to_owned(),
            "--disable-gpu".to_owned(),
            "--disable-dev-shm-usage".to_owned(),
            "--no-proxy-server".to_owned(),
            format!("--user-data-dir={}", profile.path().display()),
        ];
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "script": 120_000, "pageLoad": 60_000 },
        });
        let client = ClientBuilder::new(HttpConnector::new())
            .capabilities(capabilities.as_object().unwrap().clone())
            .connect(&format!("http://127.0.0.1:{port}"))
            .await
            .unwrap();
        Some(Browser {
            session: client.session_id().await.unwrap().unwrap(),
            port,
            client,
            driver,
            is_closed: false,
            _profile: profile,
            _turn: turn,
        })
    }

    /// The same, signed in by a link.
    pub async fn at(daemon: &Daemon) -> Option<Browser> {
        let browser = Browser::open().await?;
        browser.sign_in(daemon).await;
        Some(browser)
    }

    /// Signs in by a link, which goes on to the overview.
    pub async fn sign_in(&self, daemon: &Daemon) {
        self.client.goto(&daemon.link()).await.unwrap();
        until("the link has led to the page", async || {
            self.is_there("main#content").await
        })
        .await;
    }

    /// Ends it.
    pub async fn close(mut self) {
        self.client.clone().close().await.unwrap();
        self.is_closed = true;
    }

    /// Goes to a path of the daemon's page.
    pub async fn go(&self, daemon: &Daemon, path: &str) {
        self.client.goto(&format!("{}{path}", daemon.admin)).await.unwrap();
    }

    /// Runs a script; `return` gives what it gives.
    pub async fn run(&self, script: &str) -> Value {
        self.client.execute(script, Vec::new()).await.unwrap()
    }

    /// Runs a script that awaits; what it returns is given, or that it threw.
    pub async fn run_async(&self, script: &str) -> Value {
        let script = format!(
            "const done = arguments[arguments.length - 1];
            (async () => {{ {script} }})().then(done, (error) => done('thrown: ' + error.name));"
        );
        self.client.execute_async(&script, Vec::new()).await.unwrap()
    }

    /// The text of all that is shown.
    pub async fn text(&self) -> String {
        let text = self.run("return document.body.innerText").await;
        text.as_str().unwrap().to_owned()
    }

    /// Waits until the page says something.
    pub async fn says(&self, text: &str) {
        let mut last = String::new();
        let said = tokio::time::timeout(Duration::from_secs(60), async {
            loop {
                last = self
                    .run("return document.body?.innerText ?? ''")
                    .await
                    .as_str()
                    .unwrap()
                    .to_owned();
                if last.contains(text) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        });
        let said = said.await;
        assert!(said.is_ok(), "it never says {text:?}:\n{last}");
    }

    /// Whether something is there.
    pub async fn is_there(&self, css: &str) -> bool {
        !self.client.find_all(Locator::Css(css)).await.unwrap().is_empty()
    }

    /// What has to be there.
    pub async fn find(&self, css: &str) -> Element {
        let found = self.client.find(Locator::Css(css)).await;
        found.unwrap_or_else(|error| panic!("{css}: {error}"))
    }

    /// Clicks on a button or link by what it says, in its order on the page.
    pub async fn click(&self, says: &str) {
        let path = format!("(//a | //button | //summary)[starts-with(normalize-space(.), '{says}')]");
        self.click_at(Locator::XPath(&path), says).await;
    }

    /// Clicks on what a selector names.
    pub async fn click_on(&self, css: &str) {
        self.click_at(Locator::Css(css), css).await;
    }

    /// A page that looks again by itself may have put another one in its place since it was found.
    async fn click_at(&self, place: Locator<'_>, says: &str) {
        until(&format!("{says:?} stays where it is"), async || {
            let found = self.client.find(place).await;
            let found = found.unwrap_or_else(|error| panic!("there is no {says:?} to click on: {error}"));
            match found.click().await {
                Ok(()) => true,
                Err(error) if error.is_stale_element_reference() => false,
                Err(error) => panic!("{says:?} can't be clicked on: {error}"),
            }
        })
        .await;
    }

    /// Writes into a field in place of what is there.
    pub async fn write(&self, css: &str, text: &str) {
        let field = self.find(css).await;
        field.clear().await.unwrap();
        field.send_keys(text).await.unwrap();
    }

    /// Presses a key where the focus is.
    pub async fn press(&self, key: &str) {
        let active = self.client.active_element().await.unwrap();
        active.send_keys(key).await.unwrap();
    }

    /// How wide and high the page is, and in which colours.
    pub async fn looks(&self, width: u32, scheme: &str) {
        let metrics = json!({ "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false });
        self.cdp("Emulation.setDeviceMetricsOverride", metrics).await;
        let media = json!({ "features": [{ "name": "prefers-color-scheme", "value": scheme }] });
        self.cdp("Emulation.setEmulatedMedia", media).await;
    }

    pub async fn cdp(&self, method: &str, params: Value) -> Value {
        let body = json!({ "cmd": method, "params": params });
        let path = "goog/cdp/execute";
        self.client.issue_cmd(Own { path, body }).await.unwrap()
    }

    /// It can be used by everybody, and is no wider than the window.
    pub async fn suits_everybody(&self, what: &str) {
        self.run("for (const one of document.querySelectorAll('details')) one.open = true")
            .await;
        let barriers = self.barriers().await;
        assert!(barriers.is_empty(), "{what}: {barriers:#?}");
        let over = self
            .run("return document.documentElement.scrollWidth - innerWidth")
            .await;
        assert!(over.as_i64().unwrap() <= 0, "{what} is {over} wider than the window");
    }

    /// What the browser complained of since it was last asked: errors of scripts, and what the policy let not through.
    pub async fn complaints(&self) -> Vec<String> {
        let body = json!({ "type": "browser" });
        let said = self.client.issue_cmd(Own { path: "se/log", body }).await.unwrap();
        let said = said.as_array().cloned().unwrap_or_default();
        let complaints = said.into_iter().filter(|entry| entry["level"] == "SEVERE");
        complaints
            .map(|entry| entry["message"].as_str().unwrap().to_owned())
            .collect()
    }

    /// What keeps people from using the page, and is serious.
    pub async fn barriers(&self) -> Vec<String> {
        self.client.execute(AXE, Vec::new()).await.unwrap();
        let script = "const done = arguments[arguments.length - 1];
            axe.run(document, { resultTypes: ['violations'] }).then(
                (found) => done(found.violations
                    .filter((one) => ['serious', 'critical'].includes(one.impact))
                    .flatMap((one) => one.nodes.map((node) => one.id + ': ' + node.html.slice(0, 300) + ' ' + node.failureSummary))),
                (error) => done(['axe: ' + error]));";
        let found = self.client.execute_async(script, Vec::new()).await.unwrap();
        let found = found.as_array().cloned().unwrap();
        found.into_iter().map(|one| one.as_str().unwrap().to_owned()).collect()
    }

    /// A picture of the page, where somebody wants to look at it.
    pub async fn picture(&self, name: &str) {
        let Some(dir) = std::env::var_os("CLOSEHOOK_TEST_PICTURES") else {
            return;
        };
        let size = self.run("return document.documentElement.scrollHeight").await;
        let width = self.run("return innerWidth").await;
        let clip = json!({ "x": 0, "y": 0, "width": width, "height": size, "scale": 1 });
        let taken = self
            .cdp(
                "Page.captureScreenshot",
                json!({ "captureBeyondViewport": true, "clip": clip }),
            )
            .await;
        let png = base64::engine::general_purpose::STANDARD.decode(taken["data"].as_str().unwrap());
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(std::path::Path::new(&dir).join(format!("{name}.png")), png.unwrap()).unwrap();
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // Its driver takes the browser along when the session is over, which a test that has failed has not said.
        if !self.is_closed
            && let Ok(mut stream) = TcpStream::connect(("127.0.0.1", self.port))
        {
            let host = format!("host: 127.0.0.1:{}", self.port);
            let _ = write!(stream, "DELETE /session/{} HTTP/1.1\r\n{host}\r\n\r\n", self.session);
            // The beginning of its answer: the connection stays open behind it.
            let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
            let _ = stream.read(&mut [0; 64]);
        }
        let _ = self.driver.kill();
        let _ = self.driver.wait();
    }
}
