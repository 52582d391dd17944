//! The file of one sink's letters: read, written, and written anew.
//!
//! Files of the format before this one, in which each letter has a copy of its event, are written anew before anything is added.

mod rewrite;

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::damage::{self, Damage};
use super::extent::Extent;
use super::index::Index;
use super::keeper::{Keeper, Known, Way};
use super::reader::Frame;
use super::record::{self, FORMAT, Giver, TAG_GIVEN};
use super::{BLOCK_BYTES, is_gone, names};
use crate::framefile::{self, FrameError, FrameFile, FrameReader};
use crate::sync::lock;
use rewrite::Unnoted;
#[cfg(test)]
pub(super) use rewrite::copy_live;

/// A file is written anew when it is larger than this and mostly removed letters.
pub(super) const COMPACT_LEN: u64 = 1 << 20;

#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "they are independent of each other")]
pub(super) struct Disk {
    path: PathBuf,
    read_only: bool,
    /// `None` until the first letter, so that sinks without any leave no file.
    file: Option<FrameFile>,
    /// Of an older format: nothing may be added to it.
    is_old: bool,
    /// There may be frames in the file that nobody is to find there: of what was to be added together, some were and not all.
    is_unsure: bool,
    /// The file took its name, and whether that outlasts a power cut is not known.
    is_name_new: bool,
    /// Something in it is damaged.
    is_damaged: bool,
    /// How much of a file can be read that is looked at only.
    looked_at: u64,
    /// The step at which a test makes the disk fail.
    #[cfg(test)]
    fails_at: Option<&'static str>,
}

impl Disk {
    pub fn new(path: PathBuf, read_only: bool) -> Disk {
        Disk {
            path,
            read_only,
            file: None,
            is_old: false,
            is_unsure: false,
            is_name_new: false,
            is_damaged: false,
            looked_at: 0,
            #[cfg(test)]
            fails_at: None,
        }
    }

    /// Reads what is there. Only proven damage costs anything: then what can be read goes on, and the damaged file is set aside. Any
    /// other failure changes nothing, and may be over later.
    fn load(&mut self) -> Result<Index, FrameError> {
        if self.is_missing()? {
            return Ok(Index::default());
        }
        if names::left_of_rewrite(&self.path)? == names::Left::Letters {
            // None of it is of this sink, and all of it stands in the file that it was made of.
            if !self.read_only {
                let aside = names::put_by(&self.path);
                std::fs::rename(&self.path, &aside).map_err(|source| self.io(source))?;
                tracing::warn!(
                    "{} was left by an older closehook that was stopped while it wrote dead letters anew, and is now {}",
                    self.path.display(),
                    aside.display()
                );
            }
            return Ok(Index::default());
        }
        match self.scan() {
            Err(FrameError::Alien(_)) => self.read_behind_header(),
            Err(error) if is_gone(&error) => self.read_behind_header(),
            read => read,
        }
    }

    /// Whether there is no file; that it can't be looked at is an error.
    fn is_missing(&self) -> Result<bool, FrameError> {
        match std::fs::symlink_metadata(&self.path) {
            Ok(_) => Ok(false),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(self.io(error)),
        }
    }

    fn scan(&mut self) -> Result<Index, FrameError> {
        self.may("medium").map_err(|_| self.io(rustix::io::Errno::IO.into()))?;
        let mut index = Index::default();
        let each = |frame: framefile::Frame<'_>| {
            index.take(&frame);
        };
        let (scan, reader) = if self.read_only {
            (
                framefile::scan(&self.path, FORMAT, each)?,
                FrameReader::open(&self.path)?,
            )
        } else {
            let (file, scan) = FrameFile::open(&self.path, FORMAT, each)?;
            let reader = file.reader().map_err(|source| self.io(source))?;
            self.is_old = record::version_of(&self.path)? < FORMAT.version;
            self.file = Some(file);
            (scan, reader)
        };
        self.is_damaged = !scan.damage.is_empty();
        self.looked_at = scan.good_len;
        if self.is_damaged {
            self.tell_damage(&mut index, &scan.damage, false);
        }
        index.reader = Some(Arc::new(reader));
        Ok(index)
    }

    fn tell_damage(&self, index: &mut Index, damage: &[framefile::Damage], is_header_alone: bool) {
        let bytes: u64 = damage.iter().map(|damage| damage.to - damage.from).sum();
        let kept = index.places.len();
        let file = self.path.display();
        if is_header_alone {
            tracing::error!(%file, kept, "the header of a file of dead letters is damaged; that costs no letter");
        } else {
            tracing::error!(%file, places = damage.len(), bytes, kept, "some dead letters are damaged and can't be read any more");
        }
        let words = format!(
            "{}; the {kept} letter(s) that can be read are kept",
            damage::told(&self.path, damage)
        );
        index.damage = Some(if is_header_alone {
            Damage::harmless(words)
        } else {
            Damage::in_file(words, self.identity(), damage)
        });
    }

    /// The number of the file, and when it was made.
    fn identity(&self) -> (u64, u64) {
        Extent::of(&self.path, 0).map(Extent::file).unwrap_or_default()
    }

    /// The name says what the file is, so a damaged header costs no letter. Where there is more than letters behind it, or the medium is
    /// bad, the file is set aside and the letters that can be read go into a new one. What the sink has to deliver matters more than what
    /// it had to give up.
    fn read_behind_header(&mut self) -> Result<Index, FrameError> {
        let mut index = Index::default();
        let (mut known, mut strange) = (0_u64, 0_u64);
        let mut is_free = true;
        let scan = framefile::scan_behind_header(&self.path, FORMAT, |frame| {
            // Where the beginning of the file is missing something else is in the header's place.
            is_free &= frame.offset >= framefile::HEADER_LEN;
            let counter = if index.take(&frame) { &mut known } else { &mut strange };
            *counter += 1;
        });
        let scan = match scan {
            Ok(scan) if known > 0 => scan,
            Err(error) if !is_gone(&error) => return Err(error),
            // Not one letter can be told from something else.
            _ => return self.set_aside(),
        };
        // All frames are whole, and in their places.
        let is_header_alone = strange == 0 && is_free && scan.damage.len() == 1;
        self.tell_damage(&mut index, &scan.damage, is_header_alone);
        index.reader = Some(Arc::new(FrameReader::open(&self.path)?));
        if self.read_only {
            self.looked_at = scan.good_len;
            return Ok(index);
        }
        let is_mendable = strange == 0 && is_free && !scan.lacks_beginning() && self.may("medium").is_ok();
        let mut mended = if is_mendable && framefile::put_header_back(&self.path, FORMAT).is_ok() {
            self.scan()?
        } else {
            self.salvage(&index)?
        };
        // What the next start will find is told by what is still there.
        if let (Some(all), Some(left)) = (&mut index.damage, &mended.damage) {
            all.mark = left.mark;
        }
        mended.damage = index.damage;
        Ok(mended)
    }

    /// Writes the letters that can be read into a new file, which takes the old one's name; the old one is set aside first, under a second
    /// name, so that there is always one of them under the first.
    fn salvage(&mut self, known: &Index) -> Result<Index, FrameError> {
        let reader = known.reader.clone();
        let read = |offset| match &reader {
            Some(reader) => reader.read(offset),
            None => Err(FrameError::Poisoned(self.path.clone())),
        };
        let unnamed = names::unnamed(&self.path);
        let (file, mut fresh, gone) = self.build(&unnamed, known, &read)?;
        fresh.damage = self.newly_damaged(known, &fresh, &gone).or(fresh.damage);
        let aside = names::free_aside(&self.path);
        framefile::name_again(&self.path, &aside).map_err(|source| self.io(source))?;
        std::fs::rename(&unnamed, &self.path).map_err(|source| self.io(source))?;
        tracing::error!(
            file = %self.path.display(),
            aside = %aside.display(),
            letters = fresh.places.len(),
            "the file of dead letters is damaged and set aside; the letters that can be read are in a new one"
        );
        self.file = Some(file);
        self.is_old = false;
        self.is_name_new = true;
        Ok(fresh)
    }

    fn set_aside(&self) -> Result<Index, FrameError> {
        let aside = names::free_aside(&self.path);
        let bytes = std::fs::symlink_metadata(&self.path).map_or(0, |metadata| metadata.len());
        tracing::error!(
            file = %self.path.display(),
            aside = %aside.display(),
            bytes,
            "not one letter can be read in the file of dead letters; it is set aside"
        );
        let file = self.identity();
        if !self.read_only {
            std::fs::rename(&self.path, &aside).map_err(|source| self.io(source))?;
        }
        let damage = format!(
            "not one letter could be read in {} ({bytes} bytes); it is set aside as {}",
            self.path.display(),
            aside.display()
        );
        Ok(Index {
            damage: Some(Damage::said(damage, file)),
            ..Index::default()
        })
    }

    /// The file, fit to be written.
    fn writer(&mut self, index: &Known) -> Result<&mut FrameFile, FrameError> {
        if self.read_only {
            let source = io::Error::new(io::ErrorKind::PermissionDenied, "it was opened to be looked at only");
            return Err(self.io(source));
        }
        if self.is_old || self.is_doubtful() {
            self.rewrite(index, Unnoted::Stays, &|| ())?;
        }
        // Only where none is: a new file would take the place of what is there.
        if self.file.is_none() && !self.is_missing()? {
            let read = self.load()?;
            *lock(index) = Some(read);
        }
        if self.file.is_none() {
            self.create(index)?;
        }
        if self.is_name_new {
            self.sync_name()?;
        }
        self.file
            .as_mut()
            .ok_or_else(|| FrameError::Poisoned(self.path.clone()))
    }

    /// Whether what is in the file may not be what is known of it.
    fn is_doubtful(&self) -> bool {
        self.is_unsure || self.file.as_ref().is_some_and(FrameFile::is_poisoned)
    }

    fn create(&mut self, index: &Known) -> Result<(), FrameError> {
        if let Some(dir) = self.path.parent() {
            let fail = |source| FrameError::Io {
                path: dir.to_owned(),
                source,
            };
            framefile::make_dir(dir).map_err(fail)?;
        }
        let unnamed = names::unnamed(&self.path);
        let file = FrameFile::create(&unnamed, FORMAT)?.named(&self.path);
        self.is_name_new = true;
        std::fs::rename(&unnamed, &self.path).map_err(|source| self.io(source))?;
        let reader = file.reader().map_err(|source| self.io(source))?;
        let mut known = lock(index);
        let before = known.take().unwrap_or_default();
        *known = Some(Index {
            reader: Some(Arc::new(reader)),
            damage: before.damage,
            missing: before.missing,
            ..Index::default()
        });
        drop(known);
        self.file = Some(file);
        Ok(())
    }

    /// Whether nothing of what was to be added together is in the file any more: after a restart it would count.
    fn take_back(&mut self, offsets: &[u64]) -> bool {
        match (offsets.first(), &mut self.file) {
            (Some(first), Some(file)) => file.take_back(*first).is_ok(),
            (first, _) => first.is_none(),
        }
    }

    fn sync_name(&mut self) -> Result<(), FrameError> {
        let synced = self.may("name").and_then(|()| framefile::sync_parent(&self.path));
        synced.map_err(|source| self.io(source))?;
        self.is_name_new = false;
        Ok(())
    }

    /// All of the file, where it is durable; of one that is looked at only, what can be read.
    fn extent(&self) -> Option<Extent> {
        let looked_at = Some(self.looked_at).filter(|_| self.read_only);
        let len = self.file.as_ref().map(FrameFile::len).or(looked_at)?;
        Extent::of(&self.path, len)
    }

    fn io(&self, source: io::Error) -> FrameError {
        FrameError::Io {
            path: self.path.clone(),
            source,
        }
    }

    /// Where tests make the disk fail.
    #[cfg(test)]
    fn may(&self, step: &'static str) -> io::Result<()> {
        if self.fails_at == Some(step) {
            return Err(io::Error::other(format!("it failed on purpose at: {step}")));
        }
        Ok(())
    }

    #[cfg(not(test))]
    #[expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "only tests make it fail")]
    fn may(&self, _step: &'static str) -> io::Result<()> {
        Ok(())
    }
}

impl Keeper for Disk {
    fn read(&mut self, known: &Known) -> Result<(), FrameError> {
        if lock(known).is_none() {
            let mut read = self.load()?;
            read.extent = self.extent();
            *lock(known) = Some(read);
            self.renew(known);
        }
        Ok(())
    }

    fn write(
        &mut self,
        known: &Known,
        way: Way,
        decide: &mut dyn FnMut(&Index) -> Vec<Frame>,
    ) -> Result<(), FrameError> {
        let mut ask = || lock(known).as_ref().map_or_else(Vec::new, &mut *decide);
        // Where nothing is to be written no file is made.
        let is_fit = self.file.is_some() && !self.is_old && !self.is_doubtful() && !self.is_name_new;
        if !is_fit && ask().is_empty() {
            return Ok(());
        }
        self.writer(known)?;
        let frames = ask();
        if frames.is_empty() {
            return Ok(());
        }
        // What may fail before anything is written leaves nothing behind.
        if way.step != "add" {
            self.may(way.step).map_err(|source| self.io(source))?;
        }
        let mut offsets = Vec::new();
        let mut append = || {
            for (tag, payload) in &frames {
                offsets.push(self.writer(known)?.append(*tag, &[payload])?);
            }
            if way.step == "add" {
                self.may(way.step).map_err(|source| self.io(source))?;
            }
            if way.is_lazy {
                Ok(())
            } else {
                self.writer(known)?.sync()
            }
        };
        if let Err(error) = append() {
            self.is_unsure |= !self.take_back(&offsets);
            return Err(error);
        }
        let extent = self.extent().filter(|_| !way.is_lazy);
        if let Some(index) = &mut *lock(known) {
            index.extent = extent.or(index.extent);
            for ((tag, payload), offset) in frames.iter().zip(offsets) {
                index.take(&framefile::Frame {
                    offset,
                    tag: *tag,
                    payload,
                    after_damage: None,
                });
                // Whoever sees it from here on must not deliver it before it is released.
                if let (TAG_GIVEN, Some(seq)) = (*tag, record::seq_of(payload)) {
                    index.withheld.insert(seq, Giver::in_payload(payload));
                }
            }
        }
        Ok(())
    }

    fn look_again(&mut self, known: &Known) -> Result<(), FrameError> {
        if self.read_only {
            let mut read = self.load()?;
            read.extent = self.extent();
            *lock(known) = Some(read);
        }
        Ok(())
    }

    fn heal(&mut self, known: &Known, turn: &dyn Fn()) -> Result<(), FrameError> {
        if self.read_only {
            return Ok(());
        }
        if self.is_damaged {
            self.rewrite(known, Unnoted::Stays, turn)?;
        }
        if let Some(index) = &mut *lock(known) {
            index.note_healed();
        }
        Ok(())
    }

    fn mend(&mut self, known: &Known) -> Result<(), FrameError> {
        if self.is_doubtful() {
            self.writer(known)?;
        }
        Ok(())
    }

    fn tidy(&mut self, known: &Known) -> Result<(), FrameError> {
        self.compact(known)
    }

    fn scrub(&mut self, known: &Known, turn: &dyn Fn()) -> Result<(), FrameError> {
        self.write_anew(known, turn)
    }

    fn remove_all(&mut self, _known: &Known) -> Result<(), FrameError> {
        let beside = names::all_beside(&self.path).map_err(|source| self.io(source))?;
        for path in beside.into_iter().chain([self.path.clone()]) {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(self.io(error)),
                _ => {}
            }
        }
        Ok(())
    }

    fn block_bytes(&self) -> usize {
        BLOCK_BYTES
    }

    #[cfg(test)]
    fn fail_at(&mut self, step: Option<&'static str>) {
        self.fails_at = step;
    }
}
