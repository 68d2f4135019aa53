//! Lists as upstream last wrote them, bounded in number and bytes. Knows nothing of what stands in them.

use std::{
    fs, io,
    path::PathBuf,
    sync::Mutex,
    time::{Duration, SystemTime},
};

use super::{read, write::Writer};
use crate::digest::{Algorithm, Digest};

/// More than any cluster asks for; clients choose the queries, so there is an end to it.
const MOST_FILES: usize = 4096;
const MOST_BYTES: u64 = 64 * 1024 * 1024;
/// Looked over again after so many more.
const PRUNE_AFTER_FILES: usize = 256;
const PRUNE_AFTER_BYTES: u64 = 8 * 1024 * 1024;

/// `DIR/lists`
pub struct Lists {
    folder: PathBuf,
    writer: Writer,
    /// Files and bytes written since the folder was looked over; `None`: it has not been yet.
    written: Mutex<Option<(usize, u64)>>,
}

impl Lists {
    pub(super) fn new(folder: PathBuf, writer: Writer) -> Self {
        Self { folder, writer, written: Mutex::default() }
    }

    /// The file's name says nothing of who asked for what: names and queries may be of any length.
    fn path(&self, name: &str) -> PathBuf {
        self.folder.join(Digest::of(Algorithm::Sha256, name.as_bytes()).hex())
    }

    /// A record and the time since it was written; `None` for a time that lies in the future, as after a clock was set back.
    pub fn get(&self, name: &str) -> Option<(Vec<u8>, Option<Duration>)> {
        let path = self.path(name);
        let written = fs::metadata(&path).ok()?.modified().ok()?;
        Some((read::record(&path, MOST_BYTES).ok()?, SystemTime::now().duration_since(written).ok()))
    }

    /// Puts a record in place. The oldest go when there are too many.
    pub fn put(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        self.writer.record(&self.path(name), bytes)?;
        if self.is_pruning_due(bytes.len() as u64) {
            self.prune()?;
        }
        Ok(())
    }

    /// The same with what was written so long ago elsewhere.
    pub fn put_aged(&self, name: &str, bytes: &[u8], age: Duration) -> io::Result<()> {
        self.put(name, bytes)?;
        let written = SystemTime::now().checked_sub(age).unwrap_or(SystemTime::UNIX_EPOCH);
        fs::File::options().write(true).open(self.path(name))?.set_modified(written)
    }

    /// Forgets a record.
    pub fn remove(&self, name: &str) {
        // Without one there is nothing to forget.
        let _ = fs::remove_file(self.path(name));
    }

    fn is_pruning_due(&self, bytes: u64) -> bool {
        let mut written = self.written.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let (files, sum) = written.map_or((PRUNE_AFTER_FILES, 0), |(files, sum)| (files + 1, sum + bytes));
        let is_due = files >= PRUNE_AFTER_FILES || sum >= PRUNE_AFTER_BYTES;
        *written = Some(if is_due { (0, 0) } else { (files, sum) });
        is_due
    }

    fn prune(&self) -> io::Result<()> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            // What has vanished meanwhile takes no room.
            if let Ok(metadata) = entry.metadata() {
                found.push((metadata.modified()?, metadata.len(), entry.path()));
            }
        }
        found.sort_unstable_by(|one, other| other.cmp(one));
        let (mut files, mut bytes) = (0, 0);
        for (_, size, path) in found {
            files += 1;
            bytes += size;
            if files > MOST_FILES || bytes > MOST_BYTES {
                fs::remove_file(path)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::{fs::File, sync::Arc};

    use super::*;

    #[test]
    fn the_oldest_go_when_there_are_too_many() {
        let folder = tempfile::tempdir().unwrap();
        let writer = || Writer::new(folder.path().to_owned(), Arc::default());
        let lists = || Lists::new(folder.path().to_owned(), writer());
        let old = SystemTime::now() - Duration::from_secs(60);
        for name in 0..MOST_FILES + 10 {
            File::create(folder.path().join(name.to_string())).unwrap().set_modified(old).unwrap();
        }
        // A fresh process looks the folder over at its first write.
        lists().put("new", b"page").unwrap();
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), MOST_FILES);
        assert_eq!(lists().get("new").map(|(bytes, _)| bytes), Some(b"page".to_vec()));
    }

    #[test]
    fn bytes_are_bounded_too() {
        let folder = tempfile::tempdir().unwrap();
        let lists = Lists::new(folder.path().to_owned(), Writer::new(folder.path().to_owned(), Arc::default()));
        let page = vec![0; 4 * 1024 * 1024];
        for name in 0..30 {
            lists.put(&name.to_string(), &page).unwrap();
        }
        let kept = fs::read_dir(folder.path()).unwrap().count() as u64 * page.len() as u64;
        assert!(kept <= MOST_BYTES + PRUNE_AFTER_BYTES, "{kept}");
        assert!(lists.get("29").is_some());
    }
}
