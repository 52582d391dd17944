//! `s3`: compressed objects of lines in a bucket, each event in one of them, exactly once.
//!
//! An object is called `PREFIX/dt=YYYY-MM-DD/EPOCH-FIRST-LAST.jsonl.gz` (of replays and letters `EPOCH-JOB-FIRST-LAST`; decision 36),
//! by the Seqs of its first and last event, and holds the lines of the file sink, or what a template made of each event. Events are
//! gathered for minutes, and compressed as they come: what is held in memory is that, and the events' keys. The engine's mark stays
//! behind all of it until it is in the bucket, so the log still has it.
//!
//! Nothing can be taken back from a bucket, and a request whose answer was lost may still arrive. So an object is *planned* first: its
//! name, and which events are in it, are saved beside the mark that is before them. Then it is sent with `If-None-Match: *`, which the
//! bucket does once for a name, and refuses afterwards with 412. Then the mark moves. The object carries a digest of the Seqs and keys in
//! it, so that what stands there under a name says which of the tries it was.
//!
//! | what ends the process, or the connection | what follows |
//! |---|---|
//! | before the plan is durable | nothing was sent; the events come again, and make another object |
//! | the plan is durable, nothing was sent | the events come again, go to the same name, and nowhere else |
//! | it was sent, and the answer is lost; or it has not arrived yet | the same: whichever comes first is there, the other one gets 412 |
//! | 412 by the same events | they are there: done |
//! | 412 by other events of the same plan (an earlier try had more of them) | the sink is opened anew: what the object says is in it is not written again, the rest goes to the next object |
//! | fewer events come again (rules have changed, data was erased) | the object has those; whoever came first wins as above |
//! | it is there, and the mark is not saved yet | the plan is still beside the old mark: 412, done |
//! | an object of that name is somebody else's | its digest is none that was planned: the next name has a number behind it |
//! | the log is restored from a backup | it has a new epoch, so no name meets an old one; a plan that was in the backup keeps its name |
//!
//! A retry that is given fewer events (a single one, to see whether the bucket works again) makes an object whose name promises more: the
//! rest is in the next one. Whoever reads the archive reads all objects of a day, in whichever order.
//!
//! An object is sent in one request, of at most what `batch.bytes` lets be gathered and one call more, so there are no parts to be
//! cleaned up.
//!
//! | file | what it does |
//! |---|---|
//! | `definition` | what there is to say of it |
//! | `object` | gathers and compresses, gives names |
//! | `plan` | what the mark remembers |

pub(super) mod definition;
mod object;
mod plan;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use reqwest::header::ETAG;
use reqwest::{Method, StatusCode, Url};

use self::object::{FULL, Format, Gathered, Sealed, check_prefix, has_dot_segment, place};
use self::plan::State;
use super::common::aws::{self, Access, Account, Ask, Failed};
use super::common::line;

use super::{
    Batch, Commit, Context, Drive, Fingerprint, Gather, Limits, Opened, Outcome, Position, Preview, Sink, SinkKind,
    Unavailable,
};
use crate::config::{SinkOptions, Table};
use crate::event::Delivery;
use crate::net::percent::encoded;
use crate::net::reply::Reply;
use crate::render::{Escape, Template};
use crate::sync::lock;
use crate::task;

/// What an object says is in it.
const DIGEST: &str = "x-amz-meta-closehook-events";
const COUNT: &str = "x-amz-meta-closehook-count";

const GATHERS: Limits = Limits {
    events: 10_000,
    bytes: 16 << 20,
    wait: Duration::from_secs(300),
};

/// What is gathered is in memory, compressed; and a mark names its events.
const GATHERS_MOST: Limits = Limits {
    events: 50_000,
    bytes: 256 << 20,
    wait: Duration::from_secs(3600),
};

/// Events and bytes in one call.
const CALL: (usize, usize) = (1024, 4 << 20);

/// Events in one call where each may make an object of its own.
const CALL_SPREAD: usize = 64;

/// Requests that are under way at a time.
const AT_A_TIME: usize = 4;

#[derive(Debug)]
struct Options {
    bucket: String,
    prefix: Option<Template>,
    format: Format,
    batch: Limits,
    access: Access,
    fingerprint: Fingerprint,
    /// What was found under names by an opening that came to no end: the next one goes on from there.
    found: Arc<Mutex<Known>>,
}

/// What was found under names: the digest, where it is an object that says one; `None`: nothing that is known.
type Known = BTreeMap<String, Option<Option<String>>>;

fn parse(table: &mut Table<'_>) -> Option<SinkOptions> {
    let bucket: Option<String> = table.needed("bucket");
    let prefix = table.template("prefix", Escape::None);
    let format: String = table.or("format", "jsonl.gz".to_owned());
    let batch = aws::batch(table, GATHERS, GATHERS_MOST);
    let access = Access::of(table, "s3");
    let bucket = bucket?;
    if !is_bucket(&bucket) {
        table.fault("bucket", "must be the name of a bucket, like \"example-crm-archive\" (its region and endpoint are keys of their own)");
    }
    let is_fixed = |prefix: &&Template| prefix.is_constant();
    if prefix
        .as_ref()
        .filter(is_fixed)
        .is_some_and(|prefix| has_dot_segment(prefix.source()))
    {
        table.fault("prefix", "must not have \".\" or \"..\" between slashes: no path can");
    }
    let Some(format) = Format::parse(&format) else {
        table.fault("format", format!("\"{format}\" is not \"jsonl.gz\" or \"jsonl.zst\""));
        return None;
    };
    let fingerprint = access.fingerprint(&(&bucket, &prefix, format, batch));
    Some(Arc::new(Options {
        bucket,
        prefix,
        format,
        batch,
        access,
        fingerprint,
        found: Arc::default(),
    }))
}

fn is_bucket(name: &str) -> bool {
    (3..=255).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
}

impl Options {
    fn store(&self, context: &Context) -> Result<Store, Unavailable> {
        let account = self.access.account(context)?;
        let (endpoint, is_named) = self.access.endpoint().map_err(Unavailable::new)?;
        let mut base = endpoint;
        let host = base.host_str().unwrap_or_default().to_owned();
        // A certificate covers one part in front of the service's name.
        if is_named || self.bucket.contains('.') {
            let path = format!("{}/{}/", base.path().trim_end_matches('/'), self.bucket);
            base.set_path(&path);
        } else if base.set_host(Some(&format!("{}.{host}", self.bucket))).is_err() {
            return Err(Unavailable::new("bucket can't be a part of a host's name: correct it"));
        }
        Ok(Store {
            account,
            base,
            format: self.format,
        })
    }
}

#[async_trait]
impl SinkKind for Options {
    fn drive(&self) -> Drive {
        let is_spread = self.prefix.as_ref().is_some_and(|prefix| !prefix.is_constant());
        let call = if is_spread { CALL_SPREAD } else { CALL.0 };
        Drive {
            batch: Limits {
                events: self.batch.events.min(call),
                bytes: self.batch.bytes.min(CALL.1),
                wait: Duration::ZERO,
            },
            concurrency: 1,
            commit: Commit::Checkpoint,
        }
    }

    fn gathers(&self) -> Option<Gather> {
        Some(Gather {
            events: self.batch.events,
            bytes: self.batch.bytes,
            wait: self.batch.wait,
        })
    }

    fn exclusive(&self) -> Option<String> {
        let place = self
            .access
            .endpoint()
            .map_or_else(|_| String::new(), |(url, _)| url.to_string());
        let prefix = self.prefix.as_ref().map_or("", Template::source).trim_matches('/');
        Some(format!("{prefix}/ in the bucket {} of {place}", self.bucket))
    }

    fn fault(&self) -> Option<String> {
        self.access.fault()
    }

    fn payload(&self, delivery: &Delivery) -> Bytes {
        line::payload(delivery)
    }

    fn preview(&self, _sink: &str, delivery: &Delivery) -> Result<Preview, Outcome> {
        let prefix = prefix_of(delivery, self.prefix.as_ref());
        check_prefix(prefix)?;
        Ok(Preview {
            body: Some(self.payload(delivery)),
            subject: Some(place(prefix, delivery.event.received_at)),
            ..Preview::default()
        })
    }

    fn templates(&self) -> Vec<(String, Template)> {
        self.prefix
            .iter()
            .map(|prefix| ("prefix".to_owned(), prefix.clone()))
            .collect()
    }

    fn fingerprint(&self) -> Fingerprint {
        self.fingerprint.clone()
    }

    async fn open(&self, context: Context) -> Result<Opened, Unavailable> {
        let store = self.store(&context)?;
        let state = store.settled(State::of(context.position.as_ref()), &self.found).await?;
        let position = state.position();
        Ok(Opened {
            sink: Box::new(Archive {
                store,
                prefix: self.prefix.clone(),
                gathered: Arc::new(Mutex::new(Gathered::new(context.epoch, self.format, state))),
            }),
            mark: None,
            position: Some(position),
        })
    }

    async fn probe(&self, context: Context) -> Result<String, Unavailable> {
        let store = self.store(&context)?;
        let ask = store.request(Method::GET, "closehook-probe", Vec::new(), Bytes::new());
        let reply = store.account.ask(ask).await?;
        // No such object in a bucket that may be read and listed.
        if reply.status.is_success() || reply.text().contains("NoSuchKey") {
            return Ok(format!("the bucket {} answers", self.bucket));
        }
        match store.account.judge(&reply) {
            Failed::Sink(unavailable) => Err(unavailable),
            Failed::Content(refusal) => Err(Unavailable::new(format!("the bucket answers {}", refusal.code))),
        }
    }
}

/// What the names of an event's object begin with.
fn prefix_of<'d>(delivery: &'d Delivery, prefix: Option<&'d Template>) -> &'d str {
    prefix.map_or("", |prefix| delivery.text("prefix", prefix))
}

/// The bucket.
struct Store {
    account: Account,
    /// Ends with a slash.
    base: Url,
    format: Format,
}

/// What is there under a name.
enum Found {
    Nothing,
    /// An object, and what it says is in it.
    Object(Option<String>),
    /// It may not be asked for.
    Unknown(Unavailable),
}

impl Store {
    fn request(&self, method: Method, name: &str, headers: Vec<(&'static str, String)>, body: Bytes) -> Ask {
        let parts: Vec<String> = name.split('/').map(encoded).collect();
        let mut url = self.base.clone();
        url.set_path(&format!("{}{}", self.base.path(), parts.join("/")));
        Ask {
            method,
            url,
            headers,
            body,
        }
    }

    async fn find(&self, name: &str) -> Result<Found, Unavailable> {
        let reply = self
            .account
            .ask(self.request(Method::HEAD, name, Vec::new(), Bytes::new()))
            .await?;
        if reply.status.is_success() {
            let digest = reply.headers.get(DIGEST).and_then(|value| value.to_str().ok());
            return Ok(Found::Object(digest.map(str::to_owned)));
        }
        if reply.status == StatusCode::NOT_FOUND {
            return Ok(Found::Nothing);
        }
        match self.account.judge(&reply) {
            Failed::Sink(unavailable) if reply.status == StatusCode::FORBIDDEN => Ok(Found::Unknown(unavailable)),
            Failed::Sink(unavailable) => Err(unavailable),
            Failed::Content(refusal) => Err(strange(&reply, &refusal.code)),
        }
    }

    /// Takes over the objects that may be there, and are. However many these are, each opening gets further with them.
    async fn settled(&self, mut state: State, known: &Mutex<Known>) -> Result<State, Unavailable> {
        let asked: Vec<String> = {
            let known = lock(known);
            let names = state.plans.iter().map(|plan| &plan.name);
            names.filter(|name| !known.contains_key(*name)).cloned().collect()
        };
        let find = |name: String| async move {
            let found = match self.find(&name).await? {
                Found::Object(digest) => Some(digest),
                Found::Nothing | Found::Unknown(_) => None,
            };
            lock(known).insert(name, found);
            Ok::<_, Unavailable>(())
        };
        stream::iter(asked.into_iter().map(find))
            .buffer_unordered(AT_A_TIME)
            .try_collect::<()>()
            .await?;
        // From now on it may change: what was not there may come.
        let known = std::mem::take(&mut *lock(known));
        for index in (0..state.plans.len()).rev() {
            // What is not there may still come: its name stays planned.
            if let Some(Some(digest)) = known.get(&state.plans[index].name) {
                state.is_there(index, digest.as_deref());
            }
        }
        Ok(state)
    }

    /// Sends an object; done where it is there afterwards.
    async fn put(&self, sealed: &Sealed) -> Result<(), Unavailable> {
        let format = Format::of(&sealed.plan.name).unwrap_or(self.format);
        let headers = vec![
            ("content-type", format.content_type().to_owned()),
            ("if-none-match", "*".to_owned()),
            (DIGEST, sealed.digest.clone()),
            (COUNT, sealed.count.to_string()),
        ];
        let name = &sealed.plan.name;
        let reply = self
            .account
            .ask(self.request(Method::PUT, name, headers, sealed.bytes.clone()))
            .await?;
        if reply.status.is_success() {
            // There is no body that could say what was done. Every store names the object's tag; what says yes to anything does not.
            return if reply.headers.contains_key(ETAG) {
                Ok(())
            } else {
                Err(Unavailable::new(format!(
                    "what answers at endpoint says {} to an object and names no ETag, so it is no store: correct endpoint and proxy",
                    reply.status.as_u16()
                )))
            };
        }
        if reply.status != StatusCode::PRECONDITION_FAILED {
            return Err(match self.account.judge(&reply) {
                Failed::Sink(unavailable) => unavailable,
                // Nothing in an object is about one event.
                Failed::Content(refusal) => strange(&reply, &refusal.code),
            });
        }
        match self.find(name).await? {
            Found::Object(digest) if digest.as_ref() == Some(&sealed.digest) => Ok(()),
            // It can only be what was planned under this name before.
            Found::Unknown(_) if sealed.is_again && sealed.plan.tried.len() == 1 => Ok(()),
            Found::Unknown(unavailable) => Err(unavailable),
            Found::Object(_) | Found::Nothing => Err(Unavailable::new(format!(
                "an object is called {name} already and has other events: it is looked at again"
            ))),
        }
    }
}

fn strange(reply: &Reply, code: &str) -> Unavailable {
    let status = reply.status.as_u16().to_string();
    // Where it names none the status stands for it.
    let code = if code == status {
        status
    } else {
        format!("{status} {code}")
    };
    Unavailable::new(format!(
        "the bucket refuses an object with {code}: is the endpoint a store that speaks S3, with conditional writes?"
    ))
}

struct Archive {
    store: Store,
    prefix: Option<Template>,
    gathered: Arc<Mutex<Gathered>>,
}

impl Archive {
    /// Compressing takes its time, and is no work for the runtime's own threads.
    async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Gathered) -> std::io::Result<T> + Send + 'static,
    ) -> Result<T, Unavailable> {
        let gathered = self.gathered.clone();
        let done = task::begin_blocking(move || work(&mut lock(&gathered))).await;
        done.map_err(|error| Unavailable::new(format!("compressing failed: {error}")))?
            .map_err(|error| Unavailable::new(format!("compressing failed: {error}")))
    }
}

#[async_trait]
impl Sink for Archive {
    async fn deliver(&self, batch: &Batch<'_>) -> Result<Vec<Outcome>, Unavailable> {
        let prefix = |delivery: &Delivery| prefix_of(delivery, self.prefix.as_ref()).to_owned();
        let deliveries: Vec<(Delivery, String)> = batch
            .deliveries()
            .iter()
            .map(|delivery| (delivery.clone(), prefix(delivery)))
            .collect();
        self.work(move |gathered| gathered.take(&deliveries)).await
    }

    async fn plan(&self) -> Result<Option<Position>, Unavailable> {
        let plan = self.work(Gathered::plan).await?;
        Ok(plan.map(|state| state.position()))
    }

    async fn checkpoint(&self) -> Result<Option<Position>, Unavailable> {
        let sealed = std::mem::take(&mut lock(&self.gathered).sealed);
        let put = |sealed: Sealed| async move {
            self.store.put(&sealed).await?;
            lock(&self.gathered).settled.push(sealed.plan);
            Ok::<_, Unavailable>(())
        };
        // After an error the sink is opened anew, and what was not sent comes again.
        stream::iter(sealed.into_iter().map(put))
            .buffer_unordered(AT_A_TIME)
            .try_collect::<()>()
            .await?;
        Ok(Some(lock(&self.gathered).after().position()))
    }

    fn exchanges(&self) -> u32 {
        // Where a name is taken it is asked what is there.
        2 * lock(&self.gathered).owed().div_ceil(AT_A_TIME).max(1) as u32
    }

    fn is_full(&self) -> bool {
        lock(&self.gathered).owed() >= FULL
    }

    async fn committed(&self) -> Result<Option<Position>, Unavailable> {
        lock(&self.gathered).committed();
        Ok(None)
    }
}

#[cfg(test)]
mod tests;
