//! With somebody at a terminal.

use super::*;

/// A person at a terminal, as `script` gives one.
struct Person {
    child: Child,
    keyboard: ChildStdin,
    screen: Arc<Mutex<String>>,
    seen: usize,
}

impl Person {
    /// Runs a shell command line at a terminal; `"$@"` in it is `command`.
    fn run(line: &str, command: &Command) -> Option<Person> {
        let mut script = Command::new("script");
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => script.env(name, value),
                None => script.env_remove(name),
            };
        }
        let quoted = |text: &std::ffi::OsStr| format!("'{}'", text.to_str().unwrap());
        let mut words = quoted(command.get_program());
        for argument in command.get_args() {
            words += " ";
            words += &quoted(argument);
        }
        script
            .args([
                "--quiet",
                "--return",
                "--command",
                &line.replace("\"$@\"", &words),
                "/dev/null",
            ])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped());
        let Ok(mut child) = script.spawn() else {
            skipped("script is not installed");
            return None;
        };
        let screen = Arc::new(Mutex::new(String::new()));
        let (mut out, copy) = (child.stdout.take().unwrap(), screen.clone());
        std::thread::spawn(move || {
            let mut piece = [0; 4096];
            while let Ok(len @ 1..) = out.read(&mut piece) {
                copy.lock().unwrap().push_str(&String::from_utf8_lossy(&piece[..len]));
            }
        });
        Some(Person {
            keyboard: child.stdin.take().unwrap(),
            child,
            screen,
            seen: 0,
        })
    }

    /// Waits for a question and types the answer.
    async fn answers(&mut self, question: &str, answer: &str) {
        let mut found = None;
        until(question, async || {
            let screen = self.screen.lock().unwrap();
            found = screen[self.seen..]
                .find(question)
                .map(|at| self.seen + at + question.len());
            found.is_some()
        })
        .await;
        self.seen = found.unwrap();
        self.keyboard.write_all(answer.as_bytes()).unwrap();
        self.keyboard.flush().unwrap();
    }

    /// Waits for the end: how it ended, and all there was to see.
    async fn ended(mut self) -> (ExitStatus, String) {
        let mut exit = None;
        until("it has ended", async || {
            exit = self.child.try_wait().unwrap();
            exit.is_some()
        })
        .await;
        let screen = self.screen.lock().unwrap().clone();
        (exit.unwrap(), screen)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_is_asked_shown_and_asked_again() {
    let host = Host::new().await;
    let (cert, key) = host.certificate();
    let port = free_port();
    let Some(mut person) = Person::run("\"$@\"", &host.trusting(&["init"])) else {
        return;
    };
    let listen = format!("listen = \"[::]:{port}\"");
    person
        .answers("this host's public name: ", "http://example.com\n")
        .await;
    person
        .answers("Close delivers nowhere else", &format!("https://localhost:{port}\n"))
        .await;
    person.answers("One of these [acme]: ", "files\n").await;
    person.answers("certificate and its chain: ", "/no/such/file\n").await;
    person
        .answers("there is no file /no/such/file", &format!("{cert}\n"))
        .await;
    person.answers("its private key: ", &format!("{key}\n")).await;
    person.answers("in which events are kept [", "\n").await;
    person.answers("API keys) (not shown): ", "api_mistyped.key\n").await;
    person.answers("does not know this API key", "").await;
    person
        .answers("API keys) (not shown): ", &format!("{}\n", host.fake.api_key()))
        .await;
    person.answers("Write this to ", "y\n").await;
    person.answers("subscription plan --full` shows each", "").await;
    person.answers("Make this so at Close? [Y/n]: ", "\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(0), "{screen}");
    for part in [
        "changed  api-key",
        "changed  configuration",
        "changed  subscription",
        "ok       delivery",
        "closehook serve -c ",
    ] {
        assert!(screen.contains(part), "{part}: {screen}");
    }
    assert!(
        !screen.contains(&host.fake.api_key()) && !screen.contains("api_mistyped"),
        "{screen}"
    );
    assert!(
        host.text().contains(&listen) || host.text().contains("0.0.0.0"),
        "{}",
        host.text()
    );

    // Again: what is there is offered, and nothing has to be agreed to.
    let mut person = Person::run("\"$@\"", &host.trusting(&["init"])).unwrap();
    person
        .answers(&format!("[https://localhost:{port}/webhooks/close]: "), "\n")
        .await;
    person.answers("One of these [files]: ", "\n").await;
    person.answers(&format!("[{cert}]: "), "\n").await;
    person.answers(&format!("[{key}]: "), "\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(0), "{screen}");
    assert!(
        screen.contains("ok       configuration") && screen.contains("ok       subscription"),
        "{screen}"
    );

    // A no is a no.
    let mut person = Person::run(
        "\"$@\"",
        &host.trusting(&[
            "init",
            "--url",
            "https://localhost/no-thanks",
            "--listen",
            "127.0.0.1:0",
            "--https",
            "proxy",
        ]),
    )
    .unwrap();
    person.answers("-#: path = ", "").await;
    person.answers("Write this to ", "n\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(1), "{screen}");
    assert!(
        screen.contains("nothing was changed") && !host.text().contains("no-thanks"),
        "{screen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_without_its_key_is_replaced_after_a_person_was_told() {
    let host = Host::new().await;
    host.first().ended(0);
    let lost = host.subscriptions()[0].0.clone();
    std::fs::remove_dir_all(host.path("closehook-data")).unwrap();
    let Some(mut person) = Person::run("\"$@\"", &host.command(&["init"])) else {
        return;
    };
    person.answers("/webhooks/close]: ", "\n").await;
    person.answers("Make this so at Close? [Y/n]: ", "\n").await;
    let (exit, screen) = person.ended().await;
    assert_eq!(exit.code(), Some(0), "{screen}");
    let left = host.subscriptions();
    assert!(left.len() == 1 && left[0].0 != lost, "{screen}");
    let said = screen.split_whitespace().collect::<Vec<_>>().join(" ");
    let note = format!("{lost} delivers here and asks for the same, and its key is not known here: it is replaced");
    let asked = said.find("Make this so at Close?").unwrap();
    assert!(
        said.find(&note).is_some_and(|at| at < asked),
        "said before it is done: {screen}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interruption_leaves_everything_as_it_was_and_the_terminal_too() {
    let host = Host::new().await;
    let command = host.command(&[
        "init",
        "--url",
        &host.url(),
        "--https",
        "proxy",
        "--listen",
        &host.listen(),
    ]);
    // Ctrl-C is for all in front of the terminal; the shell is to tell how it ended.
    let Some(mut person) = Person::run("trap : INT; \"$@\"; echo ended with $?; stty -a", &command) else {
        return;
    };
    person.answers("in which events are kept [", "\n").await;
    person.answers("API keys) (not shown): ", "\u{3}").await;
    person.answers("ended with 1", "").await;
    let (_, screen) = person.ended().await;
    assert!(screen.contains("interrupted: what was done stays"), "{screen}");
    assert!(screen.contains(" echo ") && !screen.contains("-echo "), "{screen}");
    assert!(!host.config().exists() && host.subscriptions().is_empty());

    // In the middle of the steps: the next run goes on.
    let mut slow = fake_close::fault::Fault::new(fake_close::fault::Kind::Latency)
        .on("GET /api/v1/webhook/")
        .times(1000);
    slow.delay_ms = 60_000;
    host.fake.world().faults.order(slow).unwrap();
    let flags = host.first_flags();
    let flags = [&["init", "--yes"], &flags.each_ref().map(String::as_str)[..]].concat();
    let mut running = host.command(&flags);
    let mut running = running.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("its daemon runs", async || host.status()["daemon"]["running"] == true).await;
    let sent = Command::new("kill")
        .args(["-INT", &running.id().to_string()])
        .status()
        .unwrap();
    assert!(sent.success());
    let mut exit = None;
    until("it has ended", async || {
        exit = running.try_wait().unwrap();
        exit.is_some()
    })
    .await;
    assert_eq!(exit.unwrap().code(), Some(1));
    assert_ne!(host.status()["daemon"]["running"], true, "its daemon went with it");
    host.fake.world().faults = fake_close::fault::Faults::default();
    let steps = host.init(&[]).ended(0);
    assert_eq!(
        (steps.result("configuration"), steps.result("subscription")),
        ("ok", "changed")
    );
    assert_eq!(host.subscriptions().len(), 1);
}
