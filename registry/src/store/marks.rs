//! Which files were verified since the machine booted, so that a hit need not be hashed each time.
//!
//! A mark is a fingerprint of inode, size and change time: whoever writes to the file, by whatever way, changes the last.
//! Marks are appended to `DIR/marks-<boot id>`, so that a restart of the process keeps them and a reboot, after which
//! nobody knows what reached the disk, does not. A lost mark costs a hash and nothing else, so nothing here is synced.

use std::{
    collections::HashSet,
    fs::{self, File, Metadata, OpenOptions},
    hash::{DefaultHasher, Hasher as _},
    io::{self, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError, RwLock},
};

use tracing::debug;

use super::read;

const PREFIX: &str = "marks-";
/// A log this long is read at once; a longer one meanwhile.
const READ_AT_START: u64 = 1 << 20;
/// The log may hold so many marks of files that have changed since, before it is written anew.
const STALE_MOST: usize = 1 << 16;

/// A fingerprint of a file as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Mark(u64);

impl Mark {
    pub(super) fn of(file: &Metadata) -> Self {
        let mut hasher = DefaultHasher::new();
        for part in [file.ino(), file.len(), file.ctime().cast_unsigned(), file.ctime_nsec().cast_unsigned()] {
            hasher.write_u64(part);
        }
        Self(hasher.finish())
    }
}

/// All marks of this boot.
pub(super) struct Marks {
    path: PathBuf,
    known: RwLock<HashSet<Mark>>,
    log: Mutex<Log>,
}

#[derive(Default)]
struct Log {
    file: Option<File>,
    unwritten: Vec<u8>,
    written: usize,
}

impl Marks {
    /// Takes up the marks of this boot and removes those of earlier ones.
    pub(super) fn open(dir: &Path, boot: &str) -> Self {
        let path = dir.join(format!("{PREFIX}{boot}"));
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().starts_with(PREFIX) && entry.path() != path {
                // It is read by nobody.
                let _ = fs::remove_file(entry.path());
            }
        }
        if fs::symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
            // Nothing of ours: the next line tells if it stays.
            let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir_all(&path));
        }
        let file = read::plain(OpenOptions::new().create(true).append(true), &path);
        let file =
            file.inspect_err(|error| debug!(%error, "verification marks are not kept")).ok().map(|(file, _)| file);
        let log = Mutex::new(Log { file, ..Log::default() });
        let marks = Self { path, known: RwLock::default(), log };
        if fs::metadata(&marks.path).is_ok_and(|file| file.len() <= READ_AT_START) {
            marks.load();
        }
        marks
    }

    /// Reads the log. Until that is done, what it marks is hashed once more.
    pub(super) fn load(&self) {
        let Ok(bytes) = read::record(&self.path, u64::MAX) else { return };
        let (marks, _) = bytes.as_chunks::<8>();
        let read = marks.iter().map(|mark| Mark(u64::from_le_bytes(*mark)));
        self.known.write().unwrap_or_else(PoisonError::into_inner).extend(read);
        // Whoever saw them counted before they are known would take the log for stale and write it anew without them.
        self.lock().written = marks.len();
    }

    pub(super) fn has(&self, mark: Mark) -> bool {
        self.known.read().unwrap_or_else(PoisonError::into_inner).contains(&mark)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.known.read().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// The file was hashed and is right.
    pub(super) fn add(&self, mark: Mark) {
        if self.known.write().unwrap_or_else(PoisonError::into_inner).insert(mark) {
            self.lock().unwritten.extend(mark.0.to_le_bytes());
        }
    }

    /// The file is gone, or in doubt. In the log it stays until that is written anew.
    pub(super) fn forget(&self, mark: Mark) {
        self.known.write().unwrap_or_else(PoisonError::into_inner).remove(&mark);
    }

    /// Writes what has been added.
    pub(super) fn flush(&self) {
        let mut log = self.lock();
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner).len();
        let done = if log.written > 2 * known + STALE_MOST { self.rewrite(&mut log) } else { log.append() };
        if let Err(error) = done {
            log.unwritten.clear();
            debug!(%error, "verification marks not kept");
        }
    }

    fn rewrite(&self, log: &mut Log) -> io::Result<()> {
        let known = self.known.read().unwrap_or_else(PoisonError::into_inner);
        let bytes: Vec<u8> = known.iter().flat_map(|mark| mark.0.to_le_bytes()).collect();
        let aside = self.path.with_extension("tmp");
        fs::write(&aside, &bytes)?;
        fs::rename(&aside, &self.path)?;
        log.file = Some(OpenOptions::new().append(true).open(&self.path)?);
        log.written = known.len();
        log.unwritten.clear();
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Log> {
        self.log.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Log {
    fn append(&mut self) -> io::Result<()> {
        if self.unwritten.is_empty() {
            return Ok(());
        }
        if let Some(file) = &mut self.file {
            // What a full disk or a killed process cut short would shift all that follows.
            let length = file.metadata()?.len();
            let torn = length % size_of::<Mark>() as u64;
            if torn > 0 {
                file.set_len(length - torn)?;
            }
            file.write_all(&self.unwritten)?;
        }
        self.written += self.unwritten.len() / size_of::<Mark>();
        self.unwritten.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(dir: &Path) -> (PathBuf, Mark) {
        let path = dir.join("file");
        fs::write(&path, b"content").unwrap();
        let mark = Mark::of(&fs::metadata(&path).unwrap());
        (path, mark)
    }

    #[test]
    fn marks_outlive_the_process_but_not_the_boot() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mark) = file(dir.path());
        let marks = Marks::open(dir.path(), "one");
        marks.add(mark);
        marks.flush();
        assert!(Marks::open(dir.path(), "one").has(mark));
        assert!(!Marks::open(dir.path(), "two").has(mark));
        assert!(!Marks::open(dir.path(), "one").has(mark), "marks of another boot are gone");
    }

    #[test]
    fn any_write_ends_a_mark() {
        let dir = tempfile::tempdir().unwrap();
        let (path, mark) = file(dir.path());
        // Where change times are coarse, a tick has to pass.
        let is_ended = (0..1_000_000).any(|_| {
            fs::write(&path, b"c0ntent").unwrap();
            Mark::of(&fs::metadata(&path).unwrap()) != mark
        });
        assert!(is_ended);
    }

    #[test]
    fn a_torn_log_loses_no_more_than_its_end() {
        let dir = tempfile::tempdir().unwrap();
        let (_, mark) = file(dir.path());
        let marks = Marks::open(dir.path(), "one");
        marks.add(mark);
        marks.flush();
        let mut log = OpenOptions::new().append(true).open(&marks.path).unwrap();
        log.write_all(&[1, 2, 3]).unwrap();
        assert!(Marks::open(dir.path(), "one").has(mark));
    }

    #[test]
    fn what_follows_a_torn_record_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path(), "one");
        // As a full disk leaves it, or a process that was killed while it wrote.
        fs::write(&marks.path, [1, 2, 3]).unwrap();
        marks.add(Mark(7));
        marks.flush();
        assert!(Marks::open(dir.path(), "one").has(Mark(7)));
    }

    #[test]
    fn the_log_does_not_grow_for_ever() {
        let dir = tempfile::tempdir().unwrap();
        let marks = Marks::open(dir.path(), "one");
        for round in 0..3 * STALE_MOST as u64 {
            marks.add(Mark(round));
            marks.forget(Mark(round));
            if round % 1000 == 0 {
                marks.flush();
            }
        }
        marks.add(Mark(7));
        marks.flush();
        let length = fs::metadata(&marks.path).unwrap().len();
        assert!(length < 2 * 8 * STALE_MOST as u64, "{length}");
        assert!(Marks::open(dir.path(), "one").has(Mark(7)));
    }
}
