//! Reaching the data: through the socket of a running daemon, else on the data directory itself.

use std::marker::PhantomData;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::handover::{Own, Said, Saying, may_be_asked_again};
use super::when::when;
use super::{Failure, Global, Outcome, report};
use crate::admin::socket::{self, Unanswered};
use crate::app;
use crate::close::Setback;
use crate::config::Config;
use crate::control::status::Show;
use crate::control::{Answer, Question, Request};
use crate::log;

/// A daemon that has the data directory has so long to make its socket.
const SOCKET_WITHIN: Duration = Duration::from_secs(5);

/// So often it is looked for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// Close takes long to answer when it has not after this.
const LATE_AFTER: Duration = Duration::from_secs(3);

/// How Close stands is found out within this, or not said.
const LOOKED_WITHIN: Duration = Duration::from_secs(10);

/// Does work for which Close is asked, and says so where that takes long: what it has answered, once it has. `set_back` finds that out.
pub(super) async fn asking_close<T>(
    global: &Global,
    config: &Config,
    set_back: impl AsyncFn() -> Result<Option<Setback>, Failure>,
    work: impl Future<Output = T>,
) -> T {
    let host = config.close.base_url.host_str().unwrap_or_default();
    let mut work = std::pin::pin!(work);
    let mut told = String::new();
    loop {
        let looking = async {
            tokio::time::sleep(LATE_AFTER).await;
            let looked = tokio::time::timeout(LOOKED_WITHIN, set_back()).await;
            looked.ok().and_then(Result::ok)
        };
        let newest = tokio::select! {
            done = &mut work => return done,
            newest = looking => newest,
        };
        if let Some(waits) = late(host, newest.as_ref().map(Option::as_ref), &mut told) {
            report::notice(global.json, &waits);
        }
    }
}

/// What is said of work that Close has not done after a while; `None`: nothing new. `newest`: what it has answered to a request that is made
/// again, `None` where that can't be found out. `told`: what was told before.
#[expect(clippy::option_option, reason = "that there is none is known, or nothing is")]
fn late(host: &str, newest: Option<Option<&Setback>>, told: &mut String) -> Option<String> {
    let Some(newest) = newest.flatten() else {
        if !told.is_empty() {
            return None;
        }
        host.clone_into(told);
        let stands = match newest {
            Some(_) => "has not answered yet: it is waited for",
            None => "is waited for, and what it has answered can't be found out now",
        };
        return Some(format!(
            "Close's API at {host} {stands}, about a minute for each request, and longer where its rate limit is used up (`closehook \
             status` says how long)"
        ));
    };
    if newest.said == *told {
        return None;
    }
    newest.said.clone_into(told);
    let again = newest.again_at.map_or_else(
        || "the request is being made again".to_owned(),
        |at| {
            format!(
                "the request is made again at {}, and again after that while it may help",
                when(at)
            )
        },
    );
    Some(format!("{}; {again}", newest.said))
}

/// What a command will do to the data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    Read,
    Write,
    /// Like `Read`, for what makes sense before there is any data: a directory that is not there yet is as good as an empty one.
    Preview,
    /// Like `Write`, and makes a directory that is not there yet.
    Begin,
}

/// The other end of a command's questions.
pub(super) struct Connection {
    pub config: Config,
    /// The data directory itself; `None`: a daemon is asked.
    local: Option<Arc<Own>>,
    access: Access,
    /// Stands for a directory that is not there yet.
    instead: Option<tempfile::TempDir>,
    is_json: bool,
}

/// Answers of any type as they come.
enum Coming {
    /// From the data directory itself.
    Own(Saying),
    Daemon(mpsc::Receiver<Result<Answer, Unanswered>>),
}

/// What was asked, and where.
struct Asked {
    request: Request,
    coming: Coming,
    /// Whoever was asked gives no answer, and says why: it has not just gone away.
    is_refused: bool,
}

impl Asked {
    fn new(request: Request, coming: Coming) -> Asked {
        Asked {
            request,
            coming,
            is_refused: false,
        }
    }
}

/// Why an order was not answered as done.
pub(super) enum Undone {
    /// It was refused, or nobody could be asked: it is not done.
    Not(Failure),
    /// The answer to it was lost: it may be done or not.
    Perhaps(Failure),
}

/// A stream of answers of one type.
pub(super) struct Answers<'c, T> {
    connection: &'c Connection,
    asked: Asked,
    of: PhantomData<fn() -> T>,
}

impl<T: DeserializeOwned> Answers<'_, T> {
    /// Whether it ended because whoever was asked is there and gives no answer.
    pub fn is_refused(&self) -> bool {
        self.asked.is_refused
    }

    /// The next answer; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<T>, Failure> {
        let text = self.connection.next_text(&mut self.asked).await?;
        text.map(|answer| understood(&answer)).transpose()
    }
}

fn understood<T: DeserializeOwned>(answer: &Answer) -> Result<T, Failure> {
    serde_json::from_slice(answer.get().as_bytes()).map_err(|error| not_understood(&error))
}

fn not_understood(why: &dyn std::fmt::Display) -> Failure {
    Failure::Work(format!(
        "the daemon's answer is not understood ({why}); is it another version?"
    ))
}

impl Connection {
    /// Finds out whether a daemon runs, and opens the data directory if none does.
    pub async fn open(global: &Global, access: Access) -> Result<Connection, Failure> {
        let mut config = global.load()?;
        let wanted = CancellationToken::new();
        let (mut local, mut instead) = (None, None);
        let found = look_for_daemon(&config).await?;
        if found != Found::Answers {
            if access == Access::Begin {
                app::make_data_dir(&config.log.dir)?;
            } else if access == Access::Preview && is_missing(&config.log.dir) {
                let dir = tempfile::tempdir()?;
                dir.path().clone_into(&mut config.log.dir);
                instead = Some(dir);
            }
            local = Some(match access {
                Access::Read => app::open_read(&config).await?,
                Access::Preview if instead.is_none() => app::open_read(&config).await?,
                Access::Preview | Access::Write | Access::Begin => app::open_write(&config, wanted.clone()).await?,
            });
        }
        // One that has begun since is no daemon whose socket is missing.
        let dir = &config.log.dir;
        if found == Found::Nobody
            && access == Access::Read
            && is_held(dir)
            && look_for_daemon(&config).await? == Found::Answers
        {
            local = None;
        }
        let mut connection = Connection {
            config,
            local: None,
            access,
            instead,
            is_json: global.json,
        };
        let gives_way = connection.writes();
        connection.local = local.map(|facade| Own::new(facade, wanted, gives_way));
        Ok(connection)
    }

    /// The running daemon, if there is one; the data directory is not touched.
    pub async fn to_daemon(config: &Config) -> Result<Option<Connection>, Failure> {
        let answers = look_for_daemon(config).await? == Found::Answers;
        Ok(answers.then(|| Connection {
            config: config.clone(),
            local: None,
            access: Access::Read,
            instead: None,
            is_json: false,
        }))
    }

    /// Whether a daemon answers.
    pub fn is_daemon(&self) -> bool {
        self.local.as_ref().is_none_or(|own| own.is_given_up())
    }

    /// Whether the data directory was opened to be written, and must be closed well.
    fn writes(&self) -> bool {
        match self.access {
            Access::Read => false,
            Access::Preview => self.instead.is_some(),
            Access::Write | Access::Begin => true,
        }
    }

    /// Asks; answers come as a stream. Where a daemon takes over meanwhile they begin anew, as it has them.
    pub async fn ask<Q: Question>(&self, question: Q) -> Result<Answers<'_, Q::Answer>, Failure> {
        Ok(Answers {
            connection: self,
            asked: self.request(question.into()).await?,
            of: PhantomData,
        })
    }

    /// Asks whatever it is. What answers is large: it is compiled here once, and not for each type of question.
    async fn request(&self, request: Request) -> Result<Asked, Failure> {
        if let Some(own) = &self.local {
            if let Some(said) = own.ask(request.clone()) {
                return Ok(Asked::new(request, Coming::Own(said)));
            }
            own.daemon_answers(&self.config.log.dir, self.is_json).await?;
        }
        let asked = socket::ask(&self.config.log.dir, &request).await;
        // Not as an error of our own output: a daemon that goes away closes a pipe, too.
        let asked = asked.map_err(|error| Failure::Work(format!("the daemon can't be asked: {error}")))?;
        let coming = asked.ok_or_else(|| Failure::Work("the daemon has just stopped: try again".into()))?;
        Ok(Asked::new(request, Coming::Daemon(coming)))
    }

    /// The text of the next answer; `None` at the end.
    async fn next_text(&self, asked: &mut Asked) -> Result<Option<Answer>, Failure> {
        loop {
            let said = match &mut asked.coming {
                Coming::Daemon(coming) => {
                    let answer = coming.recv().await.transpose();
                    asked.is_refused = matches!(answer, Err(Unanswered::Refused(_)));
                    return answer.map_err(|why| Failure::Work(why.to_string()));
                }
                Coming::Own(said) => said.recv().await,
            };
            match said {
                None => return Ok(None),
                Some(Said::Answer(answer)) => return Ok(Some(answer)),
                Some(Said::Refusal(refusal)) => {
                    asked.is_refused = true;
                    return Err(Failure::Work(refusal));
                }
                Some(Said::Cut) if may_be_asked_again(&asked.request) => {
                    *asked = self.request(asked.request.clone()).await?;
                }
                Some(Said::Cut) => {
                    return Err(Failure::Work(
                        "a daemon is starting and has taken the data directory over before this was answered: it may be done or not; look, and run it again if it is not".into(),
                    ));
                }
            }
        }
    }

    /// Asks for one answer; the last one counts.
    pub async fn ask_one<Q: Question>(&self, question: Q) -> Result<Q::Answer, Failure> {
        understood(&self.last_text(question.into()).await?)
    }

    /// The same of an order. An error says whether it may be done all the same.
    pub async fn order_one<Q: Question>(&self, question: Q) -> Result<Q::Answer, Undone> {
        let mut asked = self.request(question.into()).await.map_err(Undone::Not)?;
        let last = self.last_of(&mut asked).await;
        last.and_then(|answer| understood(&answer)).map_err(|failure| {
            if asked.is_refused {
                Undone::Not(failure)
            } else {
                Undone::Perhaps(failure)
            }
        })
    }

    async fn last_text(&self, request: Request) -> Result<Answer, Failure> {
        let mut asked = self.request(request).await?;
        self.last_of(&mut asked).await
    }

    async fn last_of(&self, asked: &mut Asked) -> Result<Answer, Failure> {
        let mut last = None;
        while let Some(answer) = self.next_text(asked).await? {
            last = Some(answer);
        }
        last.ok_or_else(|| not_understood(&"there is none"))
    }

    /// The same, for who reads fields of it by their names.
    pub async fn ask_value<Q: Question>(&self, question: Q) -> Result<Value, Failure> {
        let answer = self.ask_one(question).await?;
        serde_json::to_value(answer).map_err(|error| not_understood(&error))
    }

    /// What Close has answered to a request that is made again, where that can be found out.
    pub async fn set_back(&self) -> Result<Option<Setback>, Failure> {
        Ok(self.ask_one(Show {}).await?.close.set_back)
    }

    /// Lets go of the data directory in good order.
    pub async fn close(self, outcome: Outcome) -> Outcome {
        if self.writes()
            && let Some(own) = self.local
        {
            own.close().await?;
        }
        outcome
    }
}

/// Ends a command that asks Close where there is neither a key for it nor any data yet: before a directory is made in which nothing would
/// come to be. Where there is data, its daemon may know a key.
pub(super) fn need_credentials(global: &Global) -> Outcome {
    let config = global.load()?;
    if config.close.credentials.is_none() && is_missing(&config.log.dir) {
        return Err(Failure::Work(crate::close::Error::NotConfigured.to_string()));
    }
    Ok(())
}

/// Whether a data directory is yet to be made. One with something in it that is not closehook's is a mistake, and not missing.
pub(super) fn is_missing(dir: &Path) -> bool {
    match std::fs::read_dir(dir) {
        Ok(mut listing) => listing.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    }
}

/// Who has a data directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Found {
    /// A daemon that answers on the directory's socket.
    Answers,
    /// A daemon without a socket: somebody has removed that.
    Deaf,
    /// No daemon.
    Nobody,
}

/// Whether a daemon has the directory.
fn is_held(dir: &Path) -> bool {
    matches!(log::holder(dir), Ok(Some(holder)) if holder.serves)
}

/// Looks whether a daemon answers on the directory's socket. One that has the directory and no socket is about to make it, for it starts,
/// or somebody has removed it: that is waited for.
async fn look_for_daemon(config: &Config) -> Result<Found, Failure> {
    let dir = &config.log.dir;
    let until = tokio::time::Instant::now() + SOCKET_WITHIN;
    loop {
        match socket::connect(dir).await {
            Ok(_) => return Ok(Found::Answers),
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Failure::Work(format!(
                    "{} belongs to another user: run this as that user or as root",
                    socket::path(dir).display()
                )));
            }
            Err(_) => {}
        }
        if !is_held(dir) {
            return Ok(Found::Nobody);
        }
        if tokio::time::Instant::now() > until {
            return Ok(Found::Deaf);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Opens, runs, closes.
pub(super) async fn with<F>(global: &Global, access: Access, work: F) -> Outcome
where
    F: AsyncFnOnce(&Connection) -> Outcome,
{
    let connection = Connection::open(global, access).await?;
    let outcome = work(&connection).await;
    connection.close(outcome).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_refuses_is_told_as_one_and_once() {
        let mut told = String::new();
        let set_back = |said: &str| Setback {
            said: said.to_owned(),
            again_at: Some(jiff::Timestamp::UNIX_EPOCH),
        };
        let silent = late("api", Some(None), &mut told).unwrap();
        assert!(silent.contains("has not answered yet"), "{silent}");
        let unknown = late("api", None, &mut String::new()).unwrap();
        assert!(!unknown.contains("answered yet"), "{unknown}");
        assert_eq!(late("api", Some(None), &mut told), None);
        let (limited, broken) = (set_back("Close has answered 429"), set_back("Close has answered 500"));
        let said = late("api", Some(Some(&limited)), &mut told).unwrap();
        assert!(
            said.contains("answered 429; the request is made again at 1970-01-01 00:00:00Z"),
            "{said}"
        );
        assert_eq!(late("api", Some(Some(&limited)), &mut told), None);
        assert_eq!(late("api", Some(None), &mut told), None, "it has answered");
        assert!(
            late("api", Some(Some(&broken)), &mut told)
                .unwrap()
                .contains("answered 500")
        );
    }
}
