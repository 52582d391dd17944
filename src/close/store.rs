//! What is known about Close's end and must survive a restart: keys, what is being changed, how far the log is complete.
//!
//! Below the data directory, `close/`, every file mode 0600, replaced as a whole and synced:
//!
//! - `keys.json`: the signature key of every subscription made here, live and retired, what is under way with them, and the keys that
//!   the configuration has or had (see `noted`);
//! - `state.json`: the completeness mark, the newest backfill, and where events are whose data is withheld;
//! - `organization.json`: whose all of it is (see `organization`);
//! - `oauth.json`: the newest refresh token, and `oauth.unsaved.json`: one that is not shared with the other nodes yet (see `oauth`);
//! - `custom_fields.json`: what custom fields are called (see `fields`).
//!
//! Losing `state.json` costs a claim and some requests; losing `keys.json` costs the keys. So a keys file that can't be read
//! is an error to whoever would change it, and is never written over; the daemon goes on without those keys. Whatever a newer closehook
//! has written is never written over either.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio_util::task::TaskTracker;

use super::api::error::Error;
use super::api::identity::Organization;
use super::api::oauth::Unsaved;
use super::completeness::marks::Marks;
use super::files::{VERSION, oauth_path, parse, read_json};
use super::noted::NotedKey;
use super::seams::Seams;
use super::shared::{Changed, Copied, Shared, write_shared};
use crate::event::Seq;
use crate::ingress::verify::Key;
use crate::task;

/// The signature key of one subscription.
#[derive(Clone, Serialize, Deserialize)]
pub(super) struct StoredKey {
    /// `whsub_...`
    pub id: String,
    /// Where the subscription pointed when it was made.
    pub url: String,
    /// Hex, as Close gave it.
    signature_key: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// Since then only stored deliveries are checked with it; `None`: it is live.
    pub retired_at: Option<Timestamp>,
    /// Made by `subscription create`, with events of a person's choice: `apply` leaves it alone if it has another.
    #[serde(default)]
    pub by_hand: bool,
}

impl std::fmt::Debug for StoredKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredKey")
            .field("id", &self.id)
            .field("retired_at", &self.retired_at)
            .finish_non_exhaustive()
    }
}

impl StoredKey {
    /// A new, live key; an error says what is wrong with it, without showing it.
    pub fn new(id: String, url: String, signature_key: String, now: Timestamp) -> Result<StoredKey, Error> {
        Key::from_hex(None, &signature_key).map_err(|error| Error::Garbled(format!("signature_key: {error}")))?;
        Ok(StoredKey {
            id,
            url,
            signature_key,
            made_at: now,
            retired_at: None,
            by_hand: false,
        })
    }

    /// For the verifier; bound to the subscription.
    pub fn key(&self) -> Result<Key, String> {
        Key::from_hex(Some(self.id.clone()), &self.signature_key)
    }
}

/// A subscription is about to be made: if its key never arrives, this tells the orphan.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Intent {
    /// Where it will point.
    pub url: String,
    /// The subscriptions there were before.
    pub known: BTreeSet<String>,
    /// When.
    pub begun_at: Timestamp,
    /// Where rotation is the purpose: the subscription to be replaced.
    pub replaces: Option<String>,
    /// See [`StoredKey::by_hand`].
    #[serde(default)]
    pub by_hand: bool,
    /// Paused to make room, since Close has no two active ones that are the same. They are deleted when the new one is there, or
    /// resumed when it can't be made.
    #[serde(default)]
    pub paused: BTreeSet<String>,
}

/// Two subscriptions live: the old one goes when the new one has delivered.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Rotation {
    /// To be deleted.
    pub old: String,
    /// To deliver first.
    pub new: String,
    /// Events from here on are looked at for a delivery of the new one.
    pub from: Seq,
    /// When.
    pub begun_at: Timestamp,
}

/// `keys.json`
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(super) struct Keys {
    version: u32,
    #[serde(rename = "keys")]
    pub list: Vec<StoredKey>,
    pub intent: Option<Intent>,
    pub rotation: Option<Rotation>,
    /// Paused by a person through closehook: not to be resumed by itself.
    #[serde(default)]
    pub paused: BTreeSet<String>,
    /// Without a key and replaced: to be deleted at Close.
    #[serde(default)]
    pub replaced: BTreeSet<String>,
    /// Keys that the configuration has or had: only stored deliveries are checked with them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub configured: Vec<NotedKey>,
}

impl Keys {
    /// The live key of a subscription.
    pub fn live(&self, id: &str) -> Option<&StoredKey> {
        self.list.iter().find(|key| key.id == id && key.retired_at.is_none())
    }

    /// The ids of live keys.
    pub fn live_ids(&self) -> Vec<String> {
        let live = self.list.iter().filter(|key| key.retired_at.is_none());
        live.map(|key| key.id.clone()).collect()
    }

    /// For the verifier: live ones, and those that only stored deliveries are checked with. `path`: where they are, for an error.
    fn for_verifier(&self, path: &Path) -> Result<(Vec<Key>, Vec<Key>), String> {
        let (mut live, mut retired) = (Vec::new(), Vec::new());
        for stored in &self.list {
            let list = if stored.retired_at.is_none() {
                &mut live
            } else {
                &mut retired
            };
            list.push(
                stored
                    .key()
                    .map_err(|error| format!("{}: {}: {error}", path.display(), stored.id))?,
            );
        }
        for noted in &self.configured {
            let key = noted.key().map_err(|error| format!("{}: {error}", path.display()))?;
            retired.push(key);
        }
        Ok((live, retired))
    }

    /// The subscription is gone: its key serves `events verify` only.
    pub fn retire(&mut self, id: &str, now: Timestamp) {
        for key in self.list.iter_mut().filter(|key| key.id == id) {
            key.retired_at.get_or_insert(now);
        }
        self.paused.remove(id);
    }
}

/// `organization.json`
#[derive(Debug, Clone, Serialize, Deserialize)]
struct OrganizationFile {
    version: u32,
    #[serde(flatten)]
    organization: Organization,
}

impl OrganizationFile {
    fn new(organization: Organization) -> OrganizationFile {
        OrganizationFile {
            version: VERSION,
            organization,
        }
    }
}

/// The files. Every change is durable when it returns: on disk, or, where several nodes share them, with all of these.
#[derive(Debug)]
pub(super) struct CloseStore {
    dir: PathBuf,
    read_only: bool,
    keys: Kept<Keys>,
    /// Why the keys file can't be read; then it is not written either.
    fault: Option<Error>,
    marks: Kept<Marks>,
    /// Why the marks of before could not be read: they are found out anew, and the file is written over, unless a newer closehook has written
    /// it.
    forgotten: Option<Error>,
    /// An error is why it can't be read.
    organization: Kept<Result<Option<Organization>, Error>>,
    /// The newest refresh token, while it can't be written.
    unsaved: Arc<Unsaved>,
    /// Where several nodes share the files.
    shared: Option<Arc<Shared>>,
    /// What must not end with a request that nobody waits for any more.
    refreshes: TaskTracker,
    seams: Seams,
}

/// What a file holds. Whoever asks never waits for the disk, or for other nodes: only who changes it does.
#[derive(Debug)]
struct Kept<T> {
    /// As it is durable.
    now: ArcSwap<T>,
    changing: tokio::sync::Mutex<()>,
}

impl<T> Kept<T> {
    fn new(now: T) -> Kept<T> {
        Kept {
            now: ArcSwap::from_pointee(now),
            changing: tokio::sync::Mutex::default(),
        }
    }

    /// For whoever holds `changing`.
    fn set(&self, now: T) {
        self.now.store(Arc::new(now));
    }
}

/// Where keys are kept.
pub(super) const KEYS: &str = "keys.json";

/// Where it is kept how far the log is complete.
pub(super) const MARKS: &str = "state.json";

/// Where the organization is remembered.
pub(super) const ORGANIZATION: &str = "organization.json";

/// A change to what a file keeps. In a box, so that what writes it is compiled once and not for each change.
type Change<T> = Box<dyn FnOnce(&mut T) + Send>;

impl CloseStore {
    /// Reads what there is below a data directory; nothing is written before the first change.
    pub fn open(data_dir: &Path, read_only: bool, seams: Seams) -> CloseStore {
        CloseStore::open_shared(data_dir, read_only, seams, None)
    }

    /// The same where several nodes may share what is there.
    pub fn open_shared(data_dir: &Path, read_only: bool, seams: Seams, shared: Option<Arc<Shared>>) -> CloseStore {
        let dir = data_dir.join("close");
        let (keys, fault) = match read_json(&dir.join(KEYS)) {
            Ok(keys) => (keys.unwrap_or_default(), None),
            Err(error) => (Keys::default(), Some(error)),
        };
        let (marks, forgotten) = match read_json::<Marks>(&dir.join(MARKS)) {
            Ok(marks) => (marks, None),
            Err(error) => {
                if matches!(error, Error::Newer(_)) {
                    tracing::error!(%error, "how far the log is complete is not known here; it is not compared with Close's");
                } else {
                    tracing::error!(%error, "how far the log is complete is forgotten; it is found out anew");
                }
                (None, Some(error))
            }
        };
        let organization = read_json::<OrganizationFile>(&dir.join(ORGANIZATION));
        let marks = marks.unwrap_or_default();
        CloseStore {
            organization: Kept::new(organization.map(|file| file.map(|file| file.organization))),
            unsaved: Arc::default(),
            refreshes: TaskTracker::new(),
            seams,
            shared,
            dir,
            read_only,
            keys: Kept::new(keys),
            fault,
            forgotten,
            marks: Kept::new(marks.taken_over()),
        }
    }

    /// Whether the keys are known; nothing about subscriptions can be done otherwise.
    pub fn check(&self) -> Result<(), Error> {
        self.fault.clone().map_or(Ok(()), Err)
    }

    /// Why the marks of before are forgotten; `None`: they are not.
    pub fn forgotten(&self) -> Option<&Error> {
        self.forgotten.as_ref()
    }

    /// Whether it can be noted how far the log is complete: what a newer closehook knows of that is left to it.
    pub fn check_marks(&self) -> Result<(), Error> {
        match &self.forgotten {
            Some(newer @ Error::Newer(_)) => Err(newer.clone()),
            _ => Ok(()),
        }
    }

    /// The directory this is below.
    pub fn data_dir(&self) -> &Path {
        self.dir.parent().unwrap_or(&self.dir)
    }

    /// Where several nodes share the files.
    pub fn shared(&self) -> Option<Arc<Shared>> {
        self.shared.clone()
    }

    /// Takes over files that another node has changed, as they stand with all nodes: this one's disk may be full. What is changed here builds
    /// on what was read, so both are one step.
    pub async fn reread(&self, copied: &Copied) -> Result<(), Error> {
        let Some(shared) = &self.shared else { return Ok(()) };
        for (name, file) in copied {
            match name.as_str() {
                KEYS => self.take_over(&self.keys, name, file, |keys: Keys| keys).await?,
                MARKS => self.take_over(&self.marks, name, file, Marks::taken_over).await?,
                ORGANIZATION => {
                    let known = |file: OrganizationFile| Ok(Some(file.organization));
                    self.take_over(&self.organization, name, file, known).await?;
                }
                // The newest refresh token is read whenever it is needed.
                _ if shared.is_next(name, file) => shared.note(name, file.revision),
                _ => {}
            }
        }
        Ok(())
    }

    /// Takes over what a file is now, unless it was changed here since that was looked at.
    async fn take_over<F: DeserializeOwned, T>(
        &self,
        kept: &Kept<T>,
        name: &str,
        file: &Changed,
        read: impl FnOnce(F) -> T,
    ) -> Result<(), Error> {
        let _changing = kept.changing.lock().await;
        if let Some(shared) = &self.shared
            && shared.is_next(name, file)
        {
            kept.set(read(parse(&self.dir.join(name), &file.value)?));
            shared.note(name, file.revision);
        }
        Ok(())
    }

    /// The refreshes of the OAuth token that are under way.
    pub fn refreshes(&self) -> &TaskTracker {
        &self.refreshes
    }

    /// The keys there are: live ones, and those that only stored deliveries are checked with.
    pub fn signature_keys(&self) -> Result<(Vec<Key>, Vec<Key>), Error> {
        self.check()?;
        let keys = self.keys.now.load();
        keys.for_verifier(&self.dir.join(KEYS)).map_err(Error::Local)
    }

    /// The newest refresh token, while it can't be written.
    pub fn unsaved(&self) -> &Arc<Unsaved> {
        &self.unsaved
    }

    /// Where the newest OAuth refresh token is kept.
    pub fn oauth_path(&self) -> PathBuf {
        oauth_path(self.data_dir())
    }

    pub fn keys(&self) -> Keys {
        Keys::clone(&self.keys.now.load())
    }

    pub fn marks(&self) -> Marks {
        Marks::clone(&self.marks.now.load())
    }

    /// Whose all of it is; `None` where that is not known yet. An error where it can't be read.
    pub fn organization(&self) -> Result<Option<Organization>, Error> {
        Result::clone(&self.organization.now.load())
    }

    /// Where that is kept.
    pub fn organization_path(&self) -> PathBuf {
        self.dir.join(ORGANIZATION)
    }

    /// Remembers whose it is, unless that is known. What was claimed for another one is no claim any more.
    pub async fn remember_organization(self: &Arc<CloseStore>, organization: Organization) -> Result<(), Error> {
        if self.read_only || self.organization()?.as_ref() == Some(&organization) {
            return Ok(());
        }
        let id = organization.id.clone();
        if self.marks().organization.as_ref() != Some(&id) {
            self.change_marks(move |marks| marks.belong_to(id)).await?;
        }
        let store = self.clone();
        self.changing(ORGANIZATION, async move {
            // Whoever is first has said it, and nobody else writes the file meanwhile.
            let _changing = store.organization.changing.lock().await;
            if store.organization()?.as_ref() == Some(&organization) {
                return Ok(());
            }
            let file = OrganizationFile::new(organization.clone());
            write_shared(&store.organization_path(), &file, store.shared.as_deref()).await?;
            store.organization.set(Ok(Some(organization)));
            Ok(())
        })
        .await
    }

    /// Changes the keys file; on failure nothing has changed.
    pub async fn change_keys(
        self: &Arc<CloseStore>,
        change: impl FnOnce(&mut Keys) + Send + 'static,
    ) -> Result<(), Error> {
        self.write_keys(Box::new(change)).await
    }

    async fn write_keys(self: &Arc<CloseStore>, change: Change<Keys>) -> Result<(), Error> {
        self.check()?;
        let change: Change<Keys> = Box::new(|keys| {
            keys.version = VERSION;
            change(keys);
        });
        self.write(KEYS, |store| &store.keys, change).await
    }

    /// Changes the state file; on failure nothing has changed.
    pub async fn change_marks(
        self: &Arc<CloseStore>,
        change: impl FnOnce(&mut Marks) + Send + 'static,
    ) -> Result<(), Error> {
        self.write_marks(Box::new(change)).await
    }

    async fn write_marks(self: &Arc<CloseStore>, change: Change<Marks>) -> Result<(), Error> {
        self.check_marks()?;
        let now = self.seams.now();
        let change: Change<Marks> = Box::new(move |marks| {
            let before = marks.clone();
            marks.version = VERSION;
            change(marks);
            marks.remember(&before, now);
        });
        self.write(MARKS, |store| &store.marks, change).await
    }

    async fn write<T: Clone + Serialize + Send + Sync + 'static>(
        self: &Arc<CloseStore>,
        name: &'static str,
        of: fn(&CloseStore) -> &Kept<T>,
        change: Change<T>,
    ) -> Result<(), Error> {
        if self.read_only {
            return Err(Error::Local("the data directory is open for reading only".into()));
        }
        let store = self.clone();
        self.changing(name, async move {
            let kept = of(&store);
            let _changing = kept.changing.lock().await;
            let mut next = T::clone(&kept.now.load());
            change(&mut next);
            write_shared(&store.dir.join(name), &next, store.shared.as_deref()).await?;
            kept.set(next);
            Ok(())
        })
        .await
    }

    /// Writes a file, with a step before and after it. What was begun ends, whether or not somebody still waits for it: otherwise a file
    /// could be another than what is known of it.
    async fn changing(
        &self,
        name: &str,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        self.seams.step(|| format!("before {name}")).await;
        let written = task::begin(work).await;
        written.map_err(|error| Error::Local(error.to_string()))??;
        self.seams.step(|| format!("after {name}")).await;
        Ok(())
    }
}

/// Whether a data directory has a key that deliveries are verified with.
pub(crate) fn has_live_key(data_dir: &Path) -> bool {
    signature_keys(data_dir).is_ok_and(|(live, _)| !live.is_empty())
}

/// The keys in a data directory: live ones, and those that only stored deliveries are checked with.
pub(crate) fn signature_keys(data_dir: &Path) -> Result<(Vec<Key>, Vec<Key>), String> {
    keys_on_disk(data_dir).map_err(|error| error.to_string())
}

fn keys_on_disk(data_dir: &Path) -> Result<(Vec<Key>, Vec<Key>), Error> {
    let path = data_dir.join("close").join(KEYS);
    let keys: Keys = read_json(&path)?.unwrap_or_default();
    keys.for_verifier(&path).map_err(Error::Local)
}

/// Whether the files in a data directory can be read: keys, marks, organization. Blocking.
pub(super) fn readable(data_dir: &Path) -> [Result<(), Error>; 3] {
    let dir = data_dir.join("close");
    [
        keys_on_disk(data_dir).map(drop),
        read_json::<Marks>(&dir.join(MARKS)).map(drop),
        read_json::<OrganizationFile>(&dir.join(ORGANIZATION)).map(drop),
    ]
}

#[cfg(test)]
mod tests;
