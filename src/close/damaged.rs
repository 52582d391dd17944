//! Files of what is known of Close that can't be used: each is named while it is so, whatever else there is in its place.
//!
//! Two things count: what this process could not read when it began, which it goes on without; and what lies on the disk now, which the next
//! one would go on without.

use std::path::Path;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use super::account::Account;
use super::api::error::Error;
use super::api::oauth;
use super::fields;
use super::files::oauth_path;
use super::store::{self, CloseStore};
use crate::sync::OneAtATime;

/// A file that can't be used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DamagedFile {
    /// Which, below the data directory; empty where none could be looked at.
    pub file: String,
    /// What that costs, and why it can't be used: one sentence.
    pub what: String,
    /// What to do about it.
    #[serde(rename = "do")]
    pub remedy: String,
}

impl DamagedFile {
    /// `remedy`: what to do about it where nobody can read it. What a newer closehook has written is good for that one.
    fn new(file: &str, what: &str, why: &Error, remedy: &str) -> DamagedFile {
        let remedy = if matches!(why, Error::Newer(_)) {
            "run the newer closehook that has written it, and leave the file where it is"
        } else {
            remedy
        };
        DamagedFile {
            file: format!("close/{file}"),
            what: format!("{what}: {why}"),
            remedy: remedy.to_owned(),
        }
    }

    /// They were not read in time.
    pub fn unread(why: &str) -> DamagedFile {
        DamagedFile {
            file: String::new(),
            what: format!("whether what is known of Close can still be read is not known: {why}"),
            remedy: "see whether the disk of the data directory answers".to_owned(),
        }
    }
}

/// Those that lie in a data directory. Blocking.
pub(crate) fn damaged_on_disk(data_dir: &Path) -> Vec<DamagedFile> {
    let mut found = Vec::new();
    let mut add = |file: &str, what: &str, read: Result<(), Error>, remedy: &str| {
        found.extend(read.err().map(|why| DamagedFile::new(file, what, &why, remedy)));
    };
    let [keys, marks, organization] = store::readable(data_dir);
    add(
        store::KEYS,
        "the keys of subscriptions that were made here can't be read: who does not have them yet refuses their deliveries",
        keys,
        "put close/keys.json back from a backup, then restart closehook; without one move it away, restart, and let `closehook subscription \
         apply` make a new key",
    );
    add(
        store::MARKS,
        "how far the log is complete, and which backfill is under way, can't be read",
        marks,
        "a daemon that compares the logs writes it anew; where none does, move close/state.json away",
    );
    add(
        store::ORGANIZATION,
        "whose events these are can't be read: who does not know it yet asks Close for nothing",
        organization,
        "put close/organization.json back from a backup, or move it away: it is found out anew; then restart closehook",
    );
    let [token, unsaved] = oauth::readable(&oauth_path(data_dir));
    add(
        "oauth.json",
        "the newest OAuth refresh token can't be read",
        token,
        "move close/oauth.json away; where [close.oauth] is used, authorize the app again and set its refresh_token",
    );
    add(
        "oauth.unsaved.json",
        "an OAuth refresh token that was not shared with the other nodes can't be read",
        unsaved,
        "move close/oauth.unsaved.json away; if Close then refuses the token, authorize the app again",
    );
    add(
        "custom_fields.json",
        "what custom fields were called can't be read",
        fields::readable(data_dir),
        "it is fetched anew where a template uses `named`; where none does, move close/custom_fields.json away",
    );
    found
}

impl CloseStore {
    /// What this process could not read when it began.
    fn missed(&self) -> Vec<DamagedFile> {
        let keys = self.check().err().map(|why| {
            DamagedFile::new(
                store::KEYS,
                "the keys of subscriptions that were made here are not known: their deliveries are refused, and only what keys of the configuration \
                 sign is taken (`close.local_key` among them)",
                &why,
                "put close/keys.json back from a backup, then restart closehook; without one move it away, restart, and let `closehook \
                 subscription apply` make a new key",
            )
        });
        let marks = self.forgotten().map(|why| {
            let what = if self.check_marks().is_err() {
                "how far the log is complete is not known here: it is not compared with Close's, and no backfill begins"
            } else {
                "how far the log was complete, and a backfill that was under way, are forgotten"
            };
            DamagedFile::new(
                store::MARKS,
                what,
                why,
                "it is found out anew for what comes; `closehook backfill` fetches what Close still has of what was before. Where nothing \
                 compares the logs, move close/state.json away",
            )
        });
        let organization = self.organization().err().map(|why| {
            DamagedFile::new(
                store::ORGANIZATION,
                "whose events these are is not known, and Close is asked for nothing",
                &why,
                "put close/organization.json back from a backup, or move it away: it is found out anew; then restart closehook",
            )
        });
        keys.into_iter().chain(marks).chain(organization).collect()
    }
}

impl Account {
    /// Files of what is known of Close that can't be used, each once. It is for the caller to wait only so long for the disk.
    pub async fn damaged(&self) -> Vec<DamagedFile> {
        static LOOKING: LazyLock<OneAtATime> = LazyLock::new(OneAtATime::default);
        let mut found = self.store.missed();
        let dir = self.store.data_dir().to_owned();
        let on_disk = LOOKING.run(move || damaged_on_disk(&dir)).await;
        let on_disk = on_disk.unwrap_or_else(|error| vec![DamagedFile::unread(&error.to_string())]);
        for one in on_disk {
            if found.iter().all(|known| known.file != one.file) {
                found.push(one);
            }
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::close::seams::Seams;

    const FILES: [&str; 6] = [
        "keys.json",
        "state.json",
        "organization.json",
        "oauth.json",
        "oauth.unsaved.json",
        "custom_fields.json",
    ];

    #[test]
    fn each_file_that_is_damaged_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let close = dir.path().join("close");
        assert_eq!(damaged_on_disk(dir.path()), []);
        std::fs::create_dir(&close).unwrap();
        assert_eq!(damaged_on_disk(dir.path()), []);
        for name in FILES {
            std::fs::write(close.join(name), "{").unwrap();
            let found = damaged_on_disk(dir.path());
            let files: Vec<&str> = found.iter().map(|one| one.file.as_str()).collect();
            assert_eq!(files, [format!("close/{name}")]);
            assert!(found[0].what.contains("is damaged"), "{found:?}");
            std::fs::remove_file(close.join(name)).unwrap();
        }
    }

    /// They are shown to whoever looks.
    #[tokio::test]
    async fn no_secret_of_a_file_that_is_damaged_is_told() {
        const SECRET: &str = "0123456789secret";
        let dir = tempfile::tempdir().unwrap();
        let close = dir.path().join("close");
        std::fs::create_dir(&close).unwrap();
        for (name, content) in [
            ("oauth.json", SECRET.to_owned()),
            ("oauth.json", format!("\"{SECRET}\"")),
            (
                "oauth.json",
                format!("{{\"version\":1,\"seed\":\"\",\"refresh_token\":[\"{SECRET}\"]}}"),
            ),
            ("oauth.unsaved.json", format!("\"{SECRET}\"")),
            ("keys.json", format!("{{\"version\":1,\"keys\":\"{SECRET}\"}}")),
            ("keys.json", format!("{{\"version\":\"{SECRET}\"}}")),
        ] {
            std::fs::write(close.join(name), &content).unwrap();
            let store = CloseStore::open(dir.path(), false, Seams::default());
            let mut found = damaged_on_disk(dir.path());
            found.extend(store.missed());
            assert!(found.iter().any(|one| one.file.ends_with(name)), "{content}");
            for one in found {
                assert!(one.what.contains("is damaged ("), "{one:?}");
                assert!(one.what.contains("line 1, column "), "{one:?}");
                assert!(!format!("{one:?}").contains("secret"), "{one:?}");
            }
            std::fs::remove_file(close.join(name)).unwrap();
        }
    }

    #[tokio::test]
    async fn a_file_of_a_newer_closehook_is_left_to_that_one() {
        let dir = tempfile::tempdir().unwrap();
        let close = dir.path().join("close");
        std::fs::create_dir(&close).unwrap();
        for name in &FILES[..5] {
            std::fs::write(close.join(name), "{\"version\":2}").unwrap();
            let store = CloseStore::open(dir.path(), false, Seams::default());
            let mut found = damaged_on_disk(dir.path());
            assert_eq!(found.len(), 1, "{found:?}");
            found.extend(store.missed());
            for one in found {
                assert_eq!(one.file, format!("close/{name}"));
                assert!(one.what.contains("has format 2"), "{one:?}");
                assert!(one.remedy.contains("run the newer closehook"), "{one:?}");
                assert!(!one.remedy.contains("away"), "{one:?}");
            }
            std::fs::remove_file(close.join(name)).unwrap();
        }
    }

    #[tokio::test]
    async fn what_a_process_could_not_read_is_named_after_it_was_put_right() {
        let dir = tempfile::tempdir().unwrap();
        let close = dir.path().join("close");
        std::fs::create_dir(&close).unwrap();
        for name in &FILES[..3] {
            std::fs::write(close.join(name), "{").unwrap();
        }
        let store = CloseStore::open(dir.path(), false, Seams::default());
        for name in &FILES[..3] {
            std::fs::remove_file(close.join(name)).unwrap();
        }
        let files: Vec<String> = store.missed().into_iter().map(|one| one.file).collect();
        assert_eq!(
            files,
            ["close/keys.json", "close/state.json", "close/organization.json"]
        );
        assert_eq!(CloseStore::open(dir.path(), false, Seams::default()).missed(), []);
    }
}
