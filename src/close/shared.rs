//! What nodes that share a log know of Close's side together: its files, in a store that all of them reach.
//!
//! What stands there counts, and a node's own files are copies of it. A change is made there first, expecting what this node has copied,
//! so that of two that change one thing one is refused; only then is it written here. Where that fails the change counts all the same, and the
//! copy is made up for with the next look. Each node looks every few seconds what others have
//! changed: keys of subscriptions and rotations so reach all that receive.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use serde::Serialize;

use super::api::error::Error;
use super::files;
use crate::state::{Expected, Revision, Store, StoreError};
use crate::sync::lock;

/// The files that are shared, below `close/`. What custom fields are called each node can ask for itself.
const FILES: [&str; 4] = ["keys.json", "state.json", "organization.json", "oauth.json"];

/// Files that others have changed, by name.
pub type Copied = BTreeMap<String, Changed>;

/// A file as it stands there now.
pub struct Changed {
    /// What was known here when it was looked at.
    before: Option<Revision>,
    pub(super) revision: Revision,
    /// What it holds: this node's copy may be missing.
    pub(super) value: Bytes,
}

impl std::fmt::Debug for Changed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Changed")
            .field("revision", &self.revision)
            .finish_non_exhaustive()
    }
}

/// Files that several nodes share.
#[derive(Debug)]
pub struct Shared {
    store: Arc<dyn Store>,
    dir: PathBuf,
    /// What is known here is of these.
    copied: Mutex<BTreeMap<String, Revision>>,
    /// What is known here and not in this node's file yet, and whether it was said why.
    behind: Mutex<BTreeMap<String, bool>>,
    /// This node's own files that could not be read when they were to be shared, which was said.
    unread: Mutex<BTreeSet<String>>,
    /// What is asked there, and the file that is written by it, are one step: else an older copy could come later.
    copying: tokio::sync::Mutex<()>,
}

impl Shared {
    /// Files of a data directory that are shared in a store, which has to keep secrets.
    pub fn new(store: Arc<dyn Store>, data_dir: &Path) -> Arc<Shared> {
        Arc::new(Shared {
            store,
            dir: data_dir.join("close"),
            copied: Mutex::default(),
            behind: Mutex::default(),
            unread: Mutex::default(),
            copying: tokio::sync::Mutex::default(),
        })
    }

    /// Makes a change known to all, before it is made here.
    async fn change(&self, name: &str, path: &Path, content: Vec<u8>) -> Result<(), Error> {
        let _copying = self.copying.lock().await;
        let copied = lock(&self.copied).get(name).copied();
        let expected = copied.map_or(Expected::Nothing, Expected::Revision);
        match self.store.put(name, content.clone(), expected).await {
            Ok(revision) => self.note(name, revision),
            Err(StoreError::Conflict(_)) => {
                return Err(Error::Local(format!(
                    "another node has just changed {name}: try again in a moment"
                )));
            }
            Err(error) => {
                return Err(Error::Local(format!(
                    "{name} can't be shared with the other nodes: {error}"
                )));
            }
        }
        // It is so for all of them, this one included: to say that it failed would be to go on from what it was.
        let _ = self.copy(name, path.to_owned(), content).await;
        Ok(())
    }

    /// Writes this node's file. Where that fails it is said once, and the next look tries it again.
    async fn copy(&self, name: &str, path: PathBuf, content: impl AsRef<[u8]> + Send + 'static) -> Result<(), Error> {
        lock(&self.behind).entry(name.to_owned()).or_default();
        let copied = files::blocking(move || files::replace(&path, content.as_ref())).await;
        if let Err(error) = &copied {
            let was_said = lock(&self.behind).insert(name.to_owned(), true).unwrap_or_default();
            if !was_said {
                tracing::warn!(%error, "what is shared with the other nodes can't be copied to this one's disk now; this is tried again");
            }
        } else {
            lock(&self.behind).remove(name);
        }
        copied
    }

    /// What stands there of a file that nobody here keeps in memory, for whoever is about to change it; `None`: nothing. This node's copy is
    /// left to the next look, since this may be needed where the disk is full.
    pub(super) async fn newest(&self, path: &Path) -> Result<Option<Bytes>, Error> {
        let Some(name) = name_of(path) else { return Ok(None) };
        let entry = self.store.get(name).await;
        let Some(entry) = entry.map_err(|error| Error::Local(error.to_string()))? else {
            lock(&self.copied).remove(name);
            return Ok(None);
        };
        let before = lock(&self.copied).insert(name.to_owned(), entry.revision);
        if before != Some(entry.revision) {
            lock(&self.behind).entry(name.to_owned()).or_default();
        }
        Ok(Some(entry.value))
    }

    /// Copies everything, before anybody here has read it: what can't be copied would not be known here. So it is with keys that only this node
    /// has and can't read: they would be known to nobody.
    pub async fn look_first(&self) -> Result<(), Error> {
        let (changed, written) = self.take().await?;
        written?;
        for (name, file) in changed {
            self.note(&name, file.revision);
        }
        Ok(())
    }

    /// Whether what is known here of a file is still what it was when this was looked at: else it is an old story by now, and could undo
    /// a change that was made here since.
    pub(super) fn is_next(&self, name: &str, file: &Changed) -> bool {
        lock(&self.copied).get(name).copied() == file.before
    }

    /// What this node knows of a file is of this revision from now on.
    pub(super) fn note(&self, name: &str, revision: Revision) {
        lock(&self.copied).insert(name.to_owned(), revision);
    }

    /// Copies what others have changed; the files that are others now. Until that is noted nothing of them can be changed here. What only
    /// this node has is shared. What this node's disk does not take counts all the same.
    pub(super) async fn look(&self) -> Result<Copied, Error> {
        let (changed, _) = self.take().await?;
        Ok(changed)
    }

    /// The files that are others now, and whether all of them are on this node's disk, and the keys that only it has are shared.
    async fn take(&self) -> Result<(Copied, Result<(), Error>), Error> {
        let mut changed = Copied::new();
        let mut written = Ok(());
        for name in FILES {
            let path = self.dir.join(name);
            let local = |error: StoreError| Error::Local(error.to_string());
            let _copying = self.copying.lock().await;
            let before = lock(&self.copied).get(name).copied();
            let Some(entry) = self.store.get(name).await.map_err(local)? else {
                let shared = self.share_own(name, &path).await?;
                // What else can't be read is said, and tried again with each look: without it events can be received.
                if name == "keys.json" {
                    written = written.and(shared);
                }
                continue;
            };
            let is_here = !lock(&self.behind).contains_key(name);
            if before == Some(entry.revision) && is_here {
                continue;
            }
            written = written.and(self.copy(name, path, entry.value.clone()).await);
            // Of what is known, only the copy was missing.
            if before != Some(entry.revision) {
                let file = Changed {
                    before,
                    revision: entry.revision,
                    value: entry.value,
                };
                changed.insert(name.to_owned(), file);
            }
        }
        Ok((changed, written))
    }

    /// A file that was there before anything was shared. The inner error: it can't be read, so whether it holds anything is not known; that
    /// keeps no other file from being looked at.
    async fn share_own(&self, name: &str, path: &Path) -> Result<Result<(), Error>, Error> {
        let read = crate::files::read(path);
        if let Err(error) = &read
            && error.kind() != std::io::ErrorKind::NotFound
        {
            let unread = Error::Local(format!("close/{name} can't be read, so it is not shared: {error}"));
            if lock(&self.unread).insert(name.to_owned()) {
                tracing::warn!(error = %unread, "what only this node has is not known to the other nodes; this is tried again");
            }
            return Ok(Err(unread));
        }
        lock(&self.unread).remove(name);
        let Ok(content) = read else { return Ok(Ok(())) };
        match self.store.put(name, content, Expected::Nothing).await {
            Ok(revision) => {
                self.note(name, revision);
                Ok(Ok(()))
            }
            // Another node was faster: the next look copies what it has.
            Err(StoreError::Conflict(_)) => Ok(Ok(())),
            Err(error) => Err(Error::Local(error.to_string())),
        }
    }
}

/// Puts a data directory's own files into the store, whatever that holds of them; gives how many there are. For whoever has both alone.
pub async fn carry(data_dir: &Path, store: &dyn Store) -> Result<usize, Error> {
    let local = |error: &dyn std::fmt::Display| Error::Local(error.to_string());
    let mut count = 0;
    for name in FILES {
        match crate::files::read(&data_dir.join("close").join(name)) {
            Ok(content) => {
                let put = store.put(name, content, Expected::Anything).await;
                put.map_err(|error| local(&error))?;
                count += 1;
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                let gone = store.remove(name, Expected::Anything).await;
                gone.map_err(|error| local(&error))?;
            }
            Err(error) => return Err(Error::Local(format!("close/{name} can't be read: {error}"))),
        }
    }
    Ok(count)
}

/// Copies what the store holds into a data directory; gives how many files that are. For whoever has both alone.
pub async fn fetch(data_dir: &Path, store: &dyn Store) -> Result<usize, Error> {
    let mut count = 0;
    for name in FILES {
        let entry = store.get(name).await.map_err(|error| Error::Local(error.to_string()))?;
        if let Some(entry) = entry {
            files::replace(&data_dir.join("close").join(name), &entry.value)?;
            count += 1;
        }
    }
    Ok(count)
}

/// What a file is called that is shared.
fn name_of(path: &Path) -> Option<&str> {
    let name = path.file_name().and_then(|name| name.to_str());
    name.filter(|name| FILES.contains(name))
}

/// Replaces a file as [`files::write_json`] does; where several nodes share it, all of them have it before it is here, and it counts then.
pub(super) async fn write_shared<T: Serialize + Sync>(
    path: &Path,
    value: &T,
    shared: Option<&Shared>,
) -> Result<(), Error> {
    let text = files::text_of(path, value)?;
    if let Some((shared, name)) = shared.zip(name_of(path)) {
        return shared.change(name, path, text).await;
    }
    let path = path.to_owned();
    files::blocking(move || files::replace(&path, &text)).await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::LocalStore;

    fn node(store: &LocalStore) -> (tempfile::TempDir, Arc<Shared>) {
        let dir = tempfile::tempdir().unwrap();
        let shared = Shared::new(Arc::new(store.clone()), dir.path());
        (dir, shared)
    }

    async fn write(shared: &Arc<Shared>, name: &str, value: u32) -> Result<(), Error> {
        let value = serde_json::json!({ "version": 1, "value": value });
        write_shared(&shared.dir.join(name), &value, Some(shared)).await
    }

    fn read(shared: &Shared, name: &str) -> Option<u64> {
        let value: Option<serde_json::Value> = files::read_json(&shared.dir.join(name)).unwrap();
        value.and_then(|value| value["value"].as_u64())
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_one_node_changes_reaches_the_others_and_two_never_undo_each_other() {
        let below = tempfile::tempdir().unwrap();
        let store = LocalStore::open(below.path(), false).unwrap();
        let ((_one, one), (_two, two)) = (node(&store), node(&store));
        assert!(one.look().await.unwrap().is_empty());
        write(&one, "keys.json", 1).await.unwrap();
        assert_eq!(read(&two, "keys.json"), None);
        assert!(two.look().await.unwrap().contains_key("keys.json"));
        assert_eq!(read(&two, "keys.json"), Some(1));
        let early = write(&two, "keys.json", 2).await.unwrap_err().to_string();
        assert!(
            early.contains("another node"),
            "nobody here has read what it builds on: {early}"
        );
        two.look_first().await.unwrap();
        assert!(two.look().await.unwrap().is_empty(), "nothing new");
        write(&two, "keys.json", 2).await.unwrap();
        let refused = write(&one, "keys.json", 3).await.unwrap_err().to_string();
        assert!(refused.contains("another node"), "{refused}");
        assert_eq!(
            read(&one, "keys.json"),
            Some(1),
            "a change that is refused is made nowhere"
        );
        one.look_first().await.unwrap();
        write(&one, "keys.json", 3).await.unwrap();
        two.look_first().await.unwrap();
        assert_eq!((read(&one, "keys.json"), read(&two, "keys.json")), (Some(3), Some(3)));
        // Each asks for itself what custom fields are called.
        write(&one, "custom_fields.json", 1).await.unwrap();
        assert!(two.look().await.unwrap().is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_a_node_had_before_is_shared_and_what_is_shared_wins() {
        let below = tempfile::tempdir().unwrap();
        let store = LocalStore::open(below.path(), false).unwrap();
        let ((_one, one), (_two, two)) = (node(&store), node(&store));
        for (shared, value) in [(&one, 1), (&two, 2)] {
            files::write_json(
                &shared.dir.join("keys.json"),
                &serde_json::json!({ "version": 1, "value": value }),
            )
            .unwrap();
        }
        one.look().await.unwrap();
        assert!(two.look().await.unwrap().contains_key("keys.json"));
        assert_eq!(read(&two, "keys.json"), Some(1));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn an_own_file_that_can_not_be_read_is_not_taken_for_none() {
        let below = tempfile::tempdir().unwrap();
        let store = LocalStore::open(below.path(), false).unwrap();
        let ((_one, one), (_two, two)) = (node(&store), node(&store));
        let own = one.dir.join("keys.json");
        std::fs::create_dir_all(&own).unwrap();
        let why = one.look_first().await.unwrap_err().to_string();
        assert!(why.contains("close/keys.json can't be read"), "{why}");
        // The others are looked at all the same.
        write(&two, "state.json", 1).await.unwrap();
        assert!(one.look().await.unwrap().contains_key("state.json"));
        assert_eq!(read(&one, "state.json"), Some(1));
        std::fs::remove_dir(&own).unwrap();
        files::write_json(&own, &serde_json::json!({ "version": 1, "value": 2 })).unwrap();
        one.look_first().await.unwrap();
        two.look_first().await.unwrap();
        assert_eq!(read(&two, "keys.json"), Some(2), "it was shared with the next look");
    }

    /// Its worth is known to nobody, and events can be received without it.
    #[tokio::test(flavor = "multi_thread")]
    async fn an_own_file_without_keys_that_can_not_be_read_keeps_no_node_from_beginning() {
        let below = tempfile::tempdir().unwrap();
        let store = LocalStore::open(below.path(), false).unwrap();
        let ((_one, one), (_two, two)) = (node(&store), node(&store));
        let names = FILES.into_iter().filter(|name| *name != "keys.json");
        for name in names.clone() {
            std::fs::create_dir_all(one.dir.join(name)).unwrap();
        }
        one.look_first().await.unwrap();
        for name in names {
            let own = one.dir.join(name);
            std::fs::remove_dir(&own).unwrap();
            files::write_json(&own, &serde_json::json!({ "version": 1, "value": 2 })).unwrap();
            one.look().await.unwrap();
            two.look_first().await.unwrap();
            assert_eq!(read(&two, name), Some(2), "{name} was shared with the next look");
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_shared_counts_although_this_nodes_disk_is_full() {
        let below = tempfile::tempdir().unwrap();
        let store = LocalStore::open(below.path(), false).unwrap();
        let ((_one, one), (_two, two)) = (node(&store), node(&store));
        let in_the_way = one.dir.join("keys.json.tmp");
        write(&one, "keys.json", 1).await.unwrap();
        std::fs::create_dir_all(in_the_way.join("x")).unwrap();
        write(&one, "keys.json", 2).await.unwrap();
        two.look_first().await.unwrap();
        assert_eq!((read(&one, "keys.json"), read(&two, "keys.json")), (Some(1), Some(2)));
        assert!(one.look().await.unwrap().is_empty(), "only the copy is missing");
        write(&two, "keys.json", 3).await.unwrap();
        write(&two, "state.json", 4).await.unwrap();
        assert!(one.look_first().await.is_err(), "who reads the file would not know it");
        let changed = one.look().await.unwrap();
        let value: serde_json::Value = serde_json::from_slice(&changed["keys.json"].value).unwrap();
        assert_eq!(value["value"], 3);
        assert!(changed.contains_key("state.json"), "the others are looked at too");
        assert_eq!((read(&one, "keys.json"), read(&one, "state.json")), (Some(1), Some(4)));
        std::fs::remove_dir_all(in_the_way).unwrap();
        one.look_first().await.unwrap();
        assert_eq!(read(&one, "keys.json"), Some(3));
        assert!(one.look().await.unwrap().is_empty());
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_copy_that_failed_is_made_with_a_later_look() {
        let below = tempfile::tempdir().unwrap();
        let store = LocalStore::open(below.path(), false).unwrap();
        let (_one, one) = node(&store);
        let in_the_way = one.dir.join("keys.json.tmp");
        std::fs::create_dir_all(in_the_way.join("x")).unwrap();
        write(&one, "keys.json", 1).await.unwrap();
        assert!(one.look().await.unwrap().is_empty());
        assert_eq!(read(&one, "keys.json"), None);
        std::fs::remove_dir_all(in_the_way).unwrap();
        assert!(one.look().await.unwrap().is_empty(), "it is known here");
        assert_eq!(read(&one, "keys.json"), Some(1));
    }
}
