//! What takes longer than a page waits: it is carried out whoever goes meanwhile, and a page shows how it gets on.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};

use askama::Template;
use axum::Extension;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;

use super::said::Named;
use super::view::{Frame, Shown, View, html, to};
use crate::sync::lock;
use crate::task;

/// So many are kept.
const JOBS_MAX: usize = 64;

/// All of them.
#[derive(Debug, Clone, Default)]
pub struct Jobs(Arc<Mutex<Kept>>);

#[derive(Debug, Default)]
struct Kept {
    jobs: VecDeque<Job>,
    begun: u64,
}

/// One of them.
#[derive(Debug, Clone)]
struct Job {
    id: u64,
    about: About,
    /// How far it is, from 0 to 1, and in words; `None`: that is not known.
    so_far: Option<(f64, String)>,
    ended: Option<Ended>,
}

/// What a job is.
#[derive(Debug, Clone)]
pub struct About {
    /// What is done.
    pub title: String,
    /// What is said while it runs.
    pub says: String,
    /// The page it was begun from.
    pub back: String,
}

/// How one has ended.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Whether it has failed.
    pub failed: bool,
    /// What has come of it.
    pub says: String,
    /// What there is to that.
    pub more: Vec<String>,
    /// Markup of ours: what can be done next.
    pub after: String,
}

impl Ended {
    /// It went well.
    pub fn well(says: impl Into<String>) -> Ended {
        Ended {
            failed: false,
            says: says.into(),
            more: Vec::new(),
            after: String::new(),
        }
    }

    /// It did not.
    pub fn badly(says: impl Into<String>) -> Ended {
        Ended {
            failed: true,
            ..Ended::well(says)
        }
    }
}

impl Jobs {
    /// Begins one, and leads to its page.
    pub fn begin<F>(&self, about: About, work: impl FnOnce(Progress) -> F) -> Response
    where
        F: Future<Output = Ended> + Send + 'static,
    {
        let mut kept = lock(&self.0);
        kept.begun += 1;
        let id = kept.begun;
        // Those that run are not forgotten before those that are over.
        if kept.jobs.len() >= JOBS_MAX {
            let oldest = kept.jobs.iter().position(|job| job.ended.is_some());
            kept.jobs.remove(oldest.unwrap_or_default());
        }
        kept.jobs.push_back(Job {
            id,
            about,
            so_far: None,
            ended: None,
        });
        drop(kept);
        let jobs = self.clone();
        let work = task::begin(work(Progress { jobs: self.clone(), id }));
        task::begin(async move {
            let ended = work.await;
            let ended = ended.unwrap_or_else(|_| Ended::badly("the daemon has a defect here: its log says where"));
            jobs.end(id, ended);
        });
        to(&format!("/jobs/{id}"))
    }

    fn end(&self, id: u64, ended: Ended) {
        if let Some(job) = lock(&self.0).jobs.iter_mut().find(|job| job.id == id) {
            job.ended = Some(ended);
        }
    }

    fn find(&self, id: u64) -> Option<Job> {
        lock(&self.0).jobs.iter().find(|job| job.id == id).cloned()
    }
}

/// Says how a job gets on.
#[derive(Debug)]
pub struct Progress {
    jobs: Jobs,
    id: u64,
}

impl Progress {
    /// So far: from 0 to 1, and in words.
    pub fn say(&self, fraction: f64, words: String) {
        if let Some(job) = lock(&self.jobs.0).jobs.iter_mut().find(|job| job.id == self.id) {
            job.so_far = Some((fraction, words));
        }
    }
}

#[derive(Template)]
#[template(path = "job.html")]
pub struct JobPage {
    pub frame: Frame,
    pub title: String,
    pub back: String,
    pub part: JobPart,
}

/// What of a job changes.
#[derive(Template)]
#[template(path = "job_part.html")]
pub struct JobPart {
    pub title: String,
    /// Where it is looked at again.
    pub place: String,
    pub runs: bool,
    pub failed: bool,
    pub says: String,
    pub fraction: Option<f64>,
    pub more: Vec<String>,
    pub after: String,
}

/// Whether only what changes is asked for.
pub fn is_part(headers: &HeaderMap) -> bool {
    headers.contains_key("hx-request")
}

/// `/jobs/{id}`
pub async fn show(view: View, Extension(jobs): Extension<Jobs>, Named(id): Named, headers: HeaderMap) -> Shown {
    let missing = || {
        view.failed(
            StatusCode::NOT_FOUND,
            "that is not known any more: /acts has what was done",
        )
    };
    let job = id.parse().ok().and_then(|id| jobs.find(id)).ok_or_else(missing)?;
    let part = part_of(&job);
    if is_part(&headers) {
        return Ok(html(&part));
    }
    Ok(html(&JobPage {
        frame: view.frame(""),
        title: job.about.title,
        back: job.about.back,
        part,
    }))
}

fn part_of(job: &Job) -> JobPart {
    let about = &job.about;
    let (fraction, words) = job.so_far.clone().unzip();
    let running = JobPart {
        title: about.title.clone(),
        place: format!("/jobs/{}", job.id),
        runs: true,
        failed: false,
        says: about.says.clone(),
        fraction,
        more: words.into_iter().collect(),
        after: String::new(),
    };
    match job.ended.clone() {
        None => running,
        Some(ended) => JobPart {
            runs: false,
            failed: ended.failed,
            says: ended.says,
            more: ended.more,
            after: ended.after,
            ..running
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about() -> About {
        About {
            title: "Retry".into(),
            says: "They are tried.".into(),
            back: "/".into(),
        }
    }

    #[tokio::test]
    async fn what_runs_is_not_forgotten_for_what_is_over() {
        let jobs = Jobs::default();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        jobs.begin(about(), |_| async move {
            wait.await.ok();
            Ended::well("done")
        });
        for _ in 0..JOBS_MAX + 5 {
            jobs.begin(about(), |_| async { Ended::well("done") });
            let newest = lock(&jobs.0).begun;
            while jobs.find(newest).is_none_or(|job| job.ended.is_none()) {
                tokio::task::yield_now().await;
            }
        }
        assert!(jobs.find(1).is_some_and(|job| job.ended.is_none()));
        assert!(jobs.find(2).is_none());
        go.send(()).unwrap();
        while jobs.find(1).is_some_and(|job| job.ended.is_none()) {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn one_that_panics_ends_too() {
        let jobs = Jobs::default();
        jobs.begin(about(), |_| async { panic!("on purpose") });
        while jobs.find(1).is_some_and(|job| job.ended.is_none()) {
            tokio::task::yield_now().await;
        }
        assert!(jobs.find(1).unwrap().ended.unwrap().failed);
    }
}
