//! Files that others replace while we run, such as those of a mounted Secret: notices that they are no longer what was read.
//! Knows nothing of what they hold.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// Some files, as they were when they were last read.
#[derive(Clone)]
pub struct Watched {
    paths: Vec<PathBuf>,
    read: Vec<Option<State>>,
}

/// What tells one content from the next without reading it: where a symlink leads, which file stands there, its size and
/// the time of its last change.
type State = (PathBuf, u64, u64, i64, i64);

impl Watched {
    /// To be made before the files are read: a change that comes meanwhile is so noticed later.
    pub fn before_reading(dir: &Path, names: &[&str]) -> Self {
        let paths: Vec<_> = names.iter().map(|name| dir.join(name)).collect();
        Self { read: look(&paths), paths }
    }

    /// Looks after each pause, and calls `reread` when something has changed; as long as that fails, after each pause. An
    /// error is `told` once for each state of the files.
    pub async fn follow<E>(mut self, pause: Duration, reread: impl Fn() -> Result<(), E>, told: impl Fn(E)) {
        let mut failed = None;
        loop {
            tokio::time::sleep(pause).await;
            let now = look(&self.paths);
            if now == self.read {
                continue;
            }
            match reread() {
                Ok(()) => self.read = now,
                Err(_) if failed.as_ref() == Some(&now) => {}
                Err(error) => {
                    told(error);
                    failed = Some(now);
                }
            }
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<State>> {
    let state = |path: &PathBuf| {
        let leads_to = fs::canonicalize(path).ok()?;
        let found = fs::metadata(&leads_to).ok()?;
        Some((leads_to, found.ino(), found.len(), found.ctime(), found.ctime_nsec()))
    };
    paths.iter().map(state).collect()
}

#[cfg(test)]
mod tests {
    use std::{cell::Cell, os::unix::fs::symlink};

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_change_since_before_the_first_reading_is_read_and_told_of_until_it_can_be() {
        let dir = tempfile::tempdir().unwrap();
        for content in ["old", "new"] {
            fs::create_dir(dir.path().join(content)).unwrap();
            fs::write(dir.path().join(content).join("file"), content).unwrap();
        }
        let link = dir.path().join("data");
        symlink("old", &link).unwrap();
        let watched = Watched::before_reading(&link, &["file", "none"]);
        fs::remove_file(&link).unwrap();
        symlink("new", &link).unwrap();
        let (tries, told) = (Cell::new(0), Cell::new(0));
        let reread = || {
            tries.set(tries.get() + 1);
            if tries.get() < 4 { Err(()) } else { Ok(()) }
        };
        let follow = watched.follow(Duration::from_millis(1), reread, |()| told.set(told.get() + 1));
        // Reads no more once it has succeeded.
        assert!(tokio::time::timeout(Duration::from_millis(100), follow).await.is_err());
        assert_eq!((tries.get(), told.get()), (4, 1));
    }
}
