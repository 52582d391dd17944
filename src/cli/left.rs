//! What is left where a command ends, and the job that it has begun does not: nobody is to be told that it failed who is left with one that
//! goes on.

use std::time::Duration;

use super::{Failure, Outcome};

/// What there is found out within this, or it is said that it is not known.
const LOOKED_WITHIN: Duration = Duration::from_secs(10);

/// How a job stands when the command ends that showed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stands {
    /// It goes on: with the daemon that runs, or with the next one.
    Running { has_daemon: bool },
    /// It goes on when somebody says so.
    Stopped,
    /// It has come to its end.
    Over,
}

/// A job, as it is named to people.
#[derive(Debug)]
pub(super) struct Job {
    /// Like "the backfill begun at noon".
    pub which: String,
    /// The command that goes on with it, and that watches it where it runs.
    pub resume: String,
    /// The command that shows it.
    pub shows: &'static str,
}

impl Job {
    /// What remains of it, and what to do.
    pub fn remains(&self, stands: Stands) -> String {
        let Job { which, resume, shows } = self;
        match stands {
            Stands::Over => format!("{which} is over"),
            Stands::Stopped => format!("{which} is stopped, go on with: {resume}"),
            Stands::Running { has_daemon: true } => format!(
                "{which} stays, and the daemon goes on with it: `{shows}` shows it, `{resume}` watches it, and Ctrl-C there stops it"
            ),
            Stands::Running { has_daemon: false } => format!(
                "{which} stays, and a daemon that is started goes on with it, as `{resume}` does; Ctrl-C there stops it"
            ),
        }
    }
}

/// Says with a failure what is left, which is looked for; `Ok(None)`: the failure says it. Where that can't be found out, `what` can't be, and
/// `shows` is the command that shows it.
pub(super) async fn told(
    ended: Outcome,
    look: impl Future<Output = Result<Option<String>, Failure>>,
    what: &str,
    shows: &str,
) -> Outcome {
    let why = match ended {
        Err(Failure::Work(why)) => why,
        ended => return ended,
    };
    let left = match tokio::time::timeout(LOOKED_WITHIN, look).await {
        Ok(Ok(Some(left))) => left,
        Ok(Ok(None)) => return Err(Failure::Work(why)),
        Ok(Err(_)) | Err(_) => format!(
            "{what} can't be found out now (`{shows}` shows it): what was begun stays, and goes on with the daemon"
        ),
    };
    Err(Failure::Work(format!("{why}; {left}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn told_of(ended: Outcome, look: Result<Option<String>, Failure>) -> Outcome {
        told(ended, async { look }, "what became of it", "closehook status").await
    }

    #[tokio::test]
    async fn a_failure_comes_with_what_is_left_or_with_that_it_is_not_known() {
        let failed = || Err(Failure::Work("the daemon is gone".into()));
        for (look, said) in [
            (Ok(Some("it goes on".into())), "the daemon is gone; it goes on"),
            (Ok(None), "the daemon is gone"),
            (
                Err(Failure::Work("nobody answers".into())),
                "the daemon is gone; what became of it can't be found out now (`closehook status` shows it): what was begun stays, and \
                 goes on with the daemon",
            ),
        ] {
            let told = told_of(failed(), look).await;
            assert!(matches!(&told, Err(Failure::Work(why)) if why == said), "{said}");
        }
        assert!(told_of(Ok(()), Ok(Some("it goes on".into()))).await.is_ok());
    }
}
