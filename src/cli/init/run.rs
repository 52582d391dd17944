//! Step after step, each told as soon as it is over.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::answers::{Answers, Https};
use super::checks::{self, Listening};
use super::report::{Done, Report};
use super::service::{self, Unit};
use super::site::{Account, Draft, Origin, Site, with_key};
use super::{Flags, daemon, delivery, document, files};
use crate::cli::when::when_said;
use crate::cli::{Failure, Outcome, field, said, subscription, term};
use crate::close;
use crate::config::{Config, Listen, mask};
use crate::control;

/// How long a certificate may take: an order takes some ten seconds.
const CERTIFICATE_PATIENCE: Duration = Duration::from_secs(120);

const LOOK_EVERY: Duration = Duration::from_millis(250);

/// One run, with everything decided.
pub(super) struct Run<'r> {
    pub flags: &'r Flags,
    pub site: Site,
    pub answers: Answers,
    pub account: Account,
    pub draft: Draft,
    pub is_attended: bool,
    pub report: Report,
    /// systemd has another secret for the daemon than it started with.
    pub has_new_credential: bool,
    /// A daemon for the time of the checks.
    pub own: Option<daemon::Own>,
}

impl Run<'_> {
    /// `--dry-run`
    pub async fn rehearse(&mut self) -> Outcome {
        self.preflight().await?;
        if let Account::Key(key) = &self.account {
            let done = if key.is_tried { Done::Ok } else { Done::Failed };
            self.report.step(done, "api-key", &key.says)?;
        }
        let file = self.site.file.display();
        if self.must_write() {
            let before = if self.site.is_new { "" } else { self.site.text.as_str() };
            let diff = document::diff(before, &self.draft.text);
            let says = format!("{file} would change: {}", self.draft.places.join(", "));
            self.report
                .step_with(Done::Skipped, "configuration", &says, json!({ "diff": diff }))?;
            self.report.note(&diff.join("\n"))?;
        } else {
            self.report
                .step(Done::Ok, "configuration", &format!("{file} says all of it already"))?;
        }
        let Account::Key(key) = &self.account else {
            let says = "with OAuth only the daemon asks Close: `closehook subscription plan` shows it";
            self.report.step(Done::Skipped, "subscription", says)?;
            return self.end();
        };
        match close::preview(&with_key(&self.draft.config, &key.secret)).await {
            Ok(plan) if plan.steps.is_empty() => {
                let says = format!("{} delivers to {}", plan.subscription.unwrap_or_default(), plan.url);
                self.report.step(Done::Ok, "subscription", &says)?;
            }
            Ok(plan) => {
                let plan = json!(plan);
                let says = format!("would deliver to {}", field(&plan, "url"));
                self.report
                    .step_with(Done::Skipped, "subscription", &says, json!({ "plan": plan }))?;
                self.report.note(&subscription::render(&plan, false))?;
            }
            Err(error) => self.report.step(Done::Failed, "subscription", &error.to_string())?,
        }
        self.end()
    }

    fn must_write(&self) -> bool {
        self.site.is_new || self.draft.text != self.site.text
    }

    /// Everything, in order.
    pub async fn carry_out(&mut self) -> Outcome {
        if !self.preflight().await? {
            return Err(Failure::Work(
                "nothing was changed: put that right, then run `closehook init` again".into(),
            ));
        }
        self.agree().await?;
        self.store_key()?;
        self.write_configuration()?;
        if !self.daemon().await? {
            for step in ["subscription", "delivery"] {
                self.report.step(Done::Skipped, step, "needs the daemon")?;
            }
            return self.end();
        }
        let has_certificate = self.certificate().await?;
        let subscription = self.subscription().await?;
        if self.flags.no_test {
            self.report.step(Done::Skipped, "delivery", "--no-test")?;
        } else if has_certificate {
            self.deliver(subscription.as_deref()).await?;
        } else {
            self.report.step(Done::Skipped, "delivery", "needs the certificate")?;
        }
        self.end()
    }

    /// The last words. What was started for the checks stops.
    fn end(&mut self) -> Outcome {
        let is_borrowed = self.own.take().is_some();
        if self.report.failed() > 0 {
            return Err(Failure::Work(format!(
                "{} of the steps failed: put that right, then run `closehook init` again, which goes on from there",
                self.report.failed()
            )));
        }
        if self.flags.dry_run {
            return Ok(());
        }
        let file = self.site.file.display();
        if is_borrowed {
            self.report.note(&format!(
                "\nThe daemon ran for the time of the checks. Start it for good: closehook serve -c {file}"
            ))?;
        }
        let next = if self.draft.config.sinks.is_empty() {
            format!(
                "\nNext: say where events go, with [[sinks]] and [[rules]] in {file} (closehook check, then reload); until then they are kept."
            )
        } else {
            "\nNext: closehook status, and closehook events tail to see events come in.".to_owned()
        };
        self.report.note(&next)
    }

    /// Name and port; `false`: a change would lead nowhere.
    async fn preflight(&mut self) -> Result<bool, Failure> {
        let mut is_good = true;
        if self.answers.url.is_https() {
            match checks::name(&self.answers.url).await {
                Ok(says) => self.report.step(Done::Ok, "name", &says)?,
                Err(says) => {
                    self.report.step(Done::Failed, "name", &says)?;
                    // No certificate can be had for it; elsewhere it may be known to others.
                    is_good &= !matches!(self.answers.https, Https::Acme { .. });
                }
            }
        }
        match self.listening().check() {
            Ok(says) => self.report.step(Done::Ok, "port", &says)?,
            Err(says) => {
                self.report.step(Done::Failed, "port", &says)?;
                is_good = false;
            }
        }
        // The other port of a daemon that is yet to start; where several run on a machine, they want one each.
        if self.site.status.is_none()
            && let Err(says) = checks::admin(self.draft.config.admin.listen)
        {
            self.report.step(Done::Failed, "port", &says)?;
            is_good = false;
        }
        Ok(is_good)
    }

    fn unit(&self) -> Option<&Unit> {
        self.site
            .unit
            .as_ref()
            .filter(|_| files::is_root() && !self.flags.no_service)
    }

    fn listening(&self) -> Listening<'_> {
        Listening {
            answers: &self.answers,
            running: self
                .site
                .status
                .as_ref()
                .and_then(|status| status["daemon"]["url"].as_str()),
            unit: self.unit(),
            is_root: files::is_root(),
        }
    }

    /// A person sees what changes before it does.
    async fn agree(&self) -> Outcome {
        if !self.is_attended || !self.must_write() {
            return Ok(());
        }
        eprintln!();
        if self.site.is_new {
            for (place, value) in document::values(&self.draft.text)? {
                eprintln!("  {place} = {}", mask::value(&place, &value));
            }
        } else {
            eprintln!("{}", document::diff(&self.site.text, &self.draft.text).join("\n"));
        }
        let question = format!("Write this to {}?", self.site.file.display());
        if term::yes_or_no(&question, true).await? {
            Ok(())
        } else {
            Err(Failure::Work("nothing was changed".into()))
        }
    }

    fn store_key(&mut self) -> Outcome {
        let Account::Key(key) = &self.account else {
            return self
                .report
                .step(Done::Ok, "api-key", "the configuration has an OAuth app instead");
        };
        let place = key.place.path.display();
        if !key.is_tried {
            return self.report.step(Done::Failed, "api-key", &key.says);
        }
        let is_kept = match key.origin {
            // Where a person has put it is that person's business, unless nobody can use it there.
            Origin::Configured => !key.place.is_out_of_reach(self.site.owner),
            Origin::Beside | Origin::New => key.place.holds(&key.secret, self.site.owner),
        };
        if is_kept {
            return self.report.step(Done::Ok, "api-key", &key.says);
        }
        key.place.store(&key.secret, self.site.owner)?;
        self.has_new_credential = key.place.by_systemd;
        let reader = if key.place.by_systemd {
            "which systemd hands to the daemon"
        } else {
            "readable by the daemon only"
        };
        let says = format!("{}; kept in {place}, {reader}", key.says);
        self.report.step(Done::Changed, "api-key", &says)
    }

    fn write_configuration(&mut self) -> Outcome {
        let file = self.site.file.display().to_string();
        if !self.must_write() {
            return self
                .report
                .step(Done::Ok, "configuration", &format!("{file} says all of it already"));
        }
        files::write_configuration(&self.site.file, &self.draft.text)?;
        let places = &self.draft.places;
        let mut says = if self.site.is_new {
            format!("{file} is made")
        } else {
            format!("{file}: {}", places.join(", "))
        };
        if self.draft.dead_keys > 0 {
            says += "; [[close.subscriptions]] whose key is nowhere are comments now, as no daemon starts with them";
        }
        self.report.step_with(
            Done::Changed,
            "configuration",
            &says,
            json!({ "file": file, "changed": places }),
        )?;
        self.proxy_lines()
    }

    /// What a proxy has to be told.
    fn proxy_lines(&self) -> Outcome {
        if !matches!(self.answers.https, Https::Proxy { .. }) || !self.answers.url.is_https() {
            return Ok(());
        }
        self.report.note(&proxy_lines(&self.answers, &self.draft.config))
    }

    /// Has a daemon run with this configuration; `false`: there is none.
    async fn daemon(&mut self) -> Result<bool, Failure> {
        let outcome = match &self.site.status {
            Some(status) => self.take_over(status).await,
            None => self.start().await,
        };
        match outcome {
            Ok((done, says)) => {
                self.report.step(done, "daemon", &says)?;
                Ok(true)
            }
            Err(says) => {
                self.report.step(Done::Failed, "daemon", &says)?;
                Ok(false)
            }
        }
    }

    /// The running daemon takes over what has changed.
    async fn take_over(&self, status: &Value) -> Result<(Done, String), String> {
        let pid = field(&status["daemon"], "pid");
        let config = &self.draft.config;
        let unit = self.unit().filter(|unit| unit.main_pid.to_string() == pid);
        let by_socket = self.listening().by_socket();
        let mut waiting: Vec<String> = match daemon::reload(config).await {
            Ok(reloaded) => {
                let same =
                    |file: &PathBuf| std::fs::canonicalize(file).ok() == std::fs::canonicalize(&self.site.file).ok();
                if let Some(other) = reloaded.file.as_ref().filter(|file| file.is_absolute() && !same(file)) {
                    return Err(format!(
                        "process {pid} runs on {} with another configuration, {}: name that one with -c, or stop it",
                        config.log.dir.display(),
                        other.display()
                    ));
                }
                reloaded.restart.iter().map(|table| format!("[{table}]")).collect()
            }
            Err(error) if error.contains("does not understand") => vec!["the program itself".to_owned()],
            Err(error) => return Err(format!("process {pid} does not take over the configuration: {error}")),
        };
        if self.has_new_credential {
            waiting.push("credentials of systemd".to_owned());
        }
        if let Some(unit) = unit {
            let commands = service::commands(unit, by_socket, !waiting.is_empty());
            if commands.is_empty() {
                return Ok(self.taken_over(&pid));
            }
            self.agree_to(&commands).await?;
            service::run(&commands).await?;
            daemon::appears(config).await?;
            return Ok((Done::Changed, format!("{} runs as configured now", unit.name)));
        }
        if waiting.is_empty() {
            return Ok(self.taken_over(&pid));
        }
        Err(format!(
            "process {pid} takes over changes in {} at its next start only: restart it, then run this again",
            waiting.join(", ")
        ))
    }

    fn taken_over(&self, pid: &str) -> (Done, String) {
        let key_changed = matches!(&self.account, Account::Key(key) if key.origin == Origin::New);
        if self.must_write() || key_changed {
            (Done::Changed, format!("process {pid} has taken it over"))
        } else {
            (Done::Ok, format!("process {pid} runs as configured"))
        }
    }

    /// systemd starts it where it has a unit, else it runs as long as we do.
    async fn start(&mut self) -> Result<(Done, String), String> {
        if let Some(unit) = self.unit() {
            let commands = service::commands(unit, self.listening().by_socket(), false);
            let is_wanted = self.agree_to(&commands).await;
            if is_wanted.is_ok() {
                service::run(&commands).await?;
                daemon::appears(&self.draft.config).await?;
                return Ok((
                    Done::Changed,
                    format!("{} runs, now and after a start of the machine", unit.name),
                ));
            }
        }
        let environment = self
            .site
            .unit
            .iter()
            .flat_map(|unit| unit.environment.clone())
            .collect();
        let mut own = daemon::Own::start(&self.site.file, self.site.owner, environment)?;
        own.is_ready(&self.draft.config).await?;
        self.own = Some(own);
        Ok((Done::Changed, "none ran: one runs for the time of the checks".into()))
    }

    async fn agree_to(&self, commands: &[Vec<String>]) -> Result<(), String> {
        if !self.is_attended {
            return Ok(());
        }
        for words in commands {
            eprintln!("  systemctl {}", words.join(" "));
        }
        let is_wanted = term::yes_or_no("Tell systemd this?", true).await;
        if is_wanted.map_err(daemon::sentence)? {
            Ok(())
        } else {
            Err("systemd was not told, so what runs is not as configured".into())
        }
    }

    /// Waits until the certificate is there; `false`: it is not.
    async fn certificate(&mut self) -> Result<bool, Failure> {
        if !matches!(self.answers.https, Https::Acme { .. }) {
            return Ok(true);
        }
        let began = Instant::now();
        let bar = (self.is_attended && !self.report.is_json()).then(|| term::spinner("waiting for the certificate"));
        let mut waited = false;
        let outcome = loop {
            let status = match daemon::ask(&self.draft.config, control::status::Show {}).await {
                Ok(status) => status,
                Err(error) => break Err(error),
            };
            let certificate = &status["certificate"];
            if let Some(not_after) = when_said(&certificate["not_after"]) {
                break Ok(format!(
                    "for {}, valid until {not_after}, next order {}",
                    self.answers.url.host(),
                    when_said(&certificate["next_renewal"]).unwrap_or_default()
                ));
            }
            if let Some(error) = said(&certificate["last_error"]) {
                break Err(format!(
                    "{error}. It is tried again by itself, at once when this is run again"
                ));
            }
            if began.elapsed() > CERTIFICATE_PATIENCE {
                break Err(format!(
                    "it did not come within {} s: `closehook status` shows when it does, then run this again",
                    CERTIFICATE_PATIENCE.as_secs()
                ));
            }
            waited = true;
            if let Some(bar) = &bar {
                bar.tick();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        };
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        match outcome {
            Ok(says) => {
                let done = if waited { Done::Changed } else { Done::Ok };
                self.report.step(done, "certificate", &says)?;
                Ok(true)
            }
            Err(says) => {
                self.report.step(Done::Failed, "certificate", &says)?;
                Ok(false)
            }
        }
    }

    /// Makes Close's subscription what the rules want, and gives its id.
    async fn subscription(&mut self) -> Result<Option<String>, Failure> {
        match self.apply().await {
            Ok((done, id, says, notes)) => {
                self.report.step_with(
                    done,
                    "subscription",
                    &says,
                    json!({ "subscription": id, "notes": notes }),
                )?;
                for note in notes {
                    self.report.note(&format!("         note: {note}"))?;
                }
                self.clear_away().await?;
                Ok(Some(id))
            }
            Err(says) => {
                self.report.step(Done::Failed, "subscription", &says)?;
                Ok(None)
            }
        }
    }

    /// Subscriptions to our URL whose keys nobody has, as after a loss of the data directory: Close sends everything once more
    /// for each, only to be refused. What becomes of them is for a person to say, for they may be somebody else's.
    async fn clear_away(&mut self) -> Outcome {
        if !self.is_attended {
            return Ok(());
        }
        let config = &self.draft.config;
        let listed = daemon::ask_all(config, control::close::Subscriptions::default()).await?;
        for id in listed
            .iter()
            .filter(|one| one["standing"] == "keyless")
            .map(|one| field(one, "id"))
        {
            let question = format!("Delete {id} at Close, which delivers here too and whose key is not known?");
            if term::yes_or_no(&question, false).await? {
                daemon::ask(config, control::close::Delete { id: id.clone() }).await?;
                let says = format!("{id} is deleted at Close");
                self.report.step(Done::Changed, "subscription", &says)?;
            }
        }
        Ok(())
    }

    async fn apply(&self) -> Result<(Done, String, String, Vec<String>), String> {
        let config = &self.draft.config;
        let plan = daemon::ask(config, control::close::Plan {}).await?;
        let notes = |plan: &Value| -> Vec<String> {
            let notes = plan["notes"].as_array().into_iter().flatten();
            notes.filter_map(Value::as_str).map(ToOwned::to_owned).collect()
        };
        let url = field(&plan, "url");
        let has_steps = plan["steps"].as_array().is_some_and(|steps| !steps.is_empty());
        if !has_steps {
            let id = field(&plan, "subscription");
            let asked = control::close::Subscription {
                id: id.clone(),
                masks: false,
            };
            let shown = daemon::ask(config, asked).await?;
            if shown.is_null() {
                return Err(format!("Close knows no subscription {id} any more: try again"));
            }
            if shown["status"] != "active" {
                return Err(format!(
                    "{id} was paused by a person, and Close delivers nothing: closehook subscription resume {id}"
                ));
            }
            return Ok((Done::Ok, id.clone(), format!("{id} delivers to {url}"), notes(&plan)));
        }
        if self.is_attended {
            eprintln!("\n{}", subscription::render(&plan, false));
            let is_wanted = term::yes_or_no("Make this so at Close?", true).await;
            if !is_wanted.map_err(daemon::sentence)? {
                return Err("it was left as it is: `closehook subscription apply` does it".into());
            }
        }
        let applied = daemon::ask(config, control::close::Apply { rotate: false }).await?;
        let id = field(&applied, "subscription");
        let steps = applied["plan"]["steps"].as_array().into_iter().flatten();
        let is_made = steps.into_iter().any(|step| step["step"] == "create");
        let what = if is_made { "is made" } else { "is changed" };
        let says = format!("{id} {what} and delivers to {url}; its key is in the data directory");
        Ok((Done::Changed, id, says, notes(&applied["plan"])))
    }

    async fn deliver(&mut self, subscription: Option<&str>) -> Outcome {
        let verdict = delivery::send(&self.draft.config, &self.answers, subscription).await;
        match verdict {
            Err(why) => self.report.step(Done::Skipped, "delivery", &why),
            Ok(verdict) => {
                let done = if verdict.is_good { Done::Ok } else { Done::Failed };
                self.report
                    .step_with(done, "delivery", &verdict.says, verdict.details)?;
                // Shown already where the configuration has changed.
                if verdict.is_good || self.must_write() {
                    Ok(())
                } else {
                    self.proxy_lines()
                }
            }
        }
    }
}

/// Lines for the proxies that most people have. Each says who the client is in one header and takes the other one away, which
/// the client may have sent.
fn proxy_lines(answers: &Answers, config: &Config) -> String {
    let path = answers.url.url().path();
    let (nginx, caddy, haproxy) = match &answers.listen {
        Listen::Tcp(address) => (format!("http://{address}"), address.to_string(), address.to_string()),
        Listen::Unix(file) => (
            format!("http://unix:{}:", file.display()),
            format!("unix/{}", file.display()),
            format!("unix@{}", file.display()),
        ),
    };
    let megabytes = config.server.max_body.0.div_ceil(1 << 20);
    format!(
        "\n  nginx, in the server block of {host}:\n\
         \x20   location = {path} {{\n\
         \x20       proxy_pass {nginx};\n\
         \x20       proxy_set_header X-Forwarded-For $remote_addr;\n\
         \x20       proxy_set_header Forwarded \"\";\n\
         \x20       client_max_body_size {megabytes}m;\n\
         \x20   }}\n\
         \x20 caddy:\n\
         \x20   {host} {{\n\
         \x20       reverse_proxy {path} {caddy} {{\n\
         \x20           header_up -Forwarded\n\
         \x20       }}\n\
         \x20   }}\n\
         \x20 haproxy:\n\
         \x20   backend closehook\n\
         \x20       http-request set-header X-Forwarded-For %[src]\n\
         \x20       http-request del-header Forwarded\n\
         \x20       server closehook {haproxy}\n",
        host = answers.url.host(),
    )
}
