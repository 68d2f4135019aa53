//! Collects what nobody will come back for: downloads that nobody continues, records of content that is long gone, empty
//! folders, wrong content that nobody looked at.

use std::{
    fs::{self, DirEntry},
    path::Path,
    time::{Duration, SystemTime},
};

use tracing::{debug, info};

use super::{Store, read, shelves::digest_named, tags::TagRecord};

/// A download that nobody continued for so long.
const KEEP_PARTIAL: Duration = Duration::from_secs(24 * 3600);
/// A record is proof that upstream once served something, and small: it outlives the content that was evicted, so that
/// an outage finds it again once a peer has the content. But not for ever.
const KEEP_RECORD: Duration = Duration::from_secs(30 * 24 * 3600);
/// A younger folder may be about to be filled.
const KEEP_FOLDER: Duration = Duration::from_secs(3600);

impl Store {
    /// Looks at everything but content; ends early if `is_over`.
    pub fn sweep(&self, is_over: impl Fn() -> bool) {
        self.blobs.quarantine.tidy();
        for (digest, found) in self.partials.idle() {
            if found.modified().is_ok_and(|at| is_older(at, KEEP_PARTIAL)) {
                let bytes = self.partials.remove_idle(&digest);
                info!(digest = digest.short(), bytes, "unfinished download given up");
            }
        }
        self.sweep_folder(&self.repositories, &is_over);
    }

    fn sweep_folder(&self, folder: &Path, is_over: &impl Fn() -> bool) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if is_over() {
                return;
            }
            let path = entry.path();
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                let is_old =
                    entry.metadata().and_then(|found| found.modified()).is_ok_and(|at| is_older(at, KEEP_FOLDER));
                self.sweep_folder(&path, is_over);
                if is_old {
                    // It stays if anything is in it.
                    let _ = fs::remove_dir(&path);
                }
            } else if self.is_forgotten(folder, &entry) && fs::remove_file(&path).is_ok() {
                debug!(path = %path.display(), "record of evicted content given up");
            }
        }
    }

    fn is_forgotten(&self, folder: &Path, entry: &DirEntry) -> bool {
        let is_old = entry.metadata().and_then(|found| found.modified()).is_ok_and(|at| is_older(at, KEEP_RECORD));
        is_old
            && match folder.file_name().and_then(|name| name.to_str()) {
                Some("_links") => {
                    let digest = entry.file_name().to_str().and_then(digest_named);
                    digest.is_none_or(|digest| !self.blobs.has(&digest, None))
                }
                Some("_tags") => read::small::<TagRecord>(&entry.path()).is_none_or(
                    |TagRecord { current, previous, last_complete, .. }| {
                        let mut meant = [Some(current), previous, last_complete].into_iter().flatten();
                        meant.all(|at| !self.blobs.has(&at.digest, None))
                    },
                ),
                _ => false,
            }
    }
}

fn is_older(at: SystemTime, age: Duration) -> bool {
    at.elapsed().is_ok_and(|since| since > age)
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;
    use crate::{
        digest::{Algorithm, Digest},
        store::tags::Target,
    };

    #[test]
    fn a_tag_whose_elder_is_here_is_not_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let store =
            Store::open(folder.path().to_owned(), &"docker.io".parse().unwrap(), "1Gi".parse().unwrap()).unwrap();
        let (name, tag) = ("library/app".parse().unwrap(), "v1".parse().unwrap());
        let target = |bytes: &[u8]| {
            let digest = Digest::of(Algorithm::Sha256, bytes);
            Target { digest, media_type: "a/b".to_owned(), size: bytes.len() as u64 }
        };
        let (newcomer, elder) = (target(b"newcomer"), target(b"elder"));
        let (previous, last_complete) = (Some(elder.clone()), None);
        let record =
            TagRecord { current: newcomer, previous, last_complete, validated_at: 1, etag: None, is_gone: false };
        let age = |record| {
            store.tags.put(&name, &tag, record).unwrap();
            let path = folder.path().join("repositories/library/app/_tags/v1");
            File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
            store.sweep(|| false);
            store.tags.get(&name, &tag).is_some()
        };
        assert!(!age(&record), "nothing that it ever meant is here");
        store.keep_small(&elder.digest, b"elder", true).unwrap();
        assert!(age(&record));
    }
}
