//! `--configure-runtime`: puts the drop-in into its place, and takes it back where containerd, started anew, still does not come to
//! the relay. Changes no file of others and restarts nothing.

use super::drop_in::{DropIn, MARKER, drop_in};
use super::files::Disk;
use super::version::Version;
use super::{Look, Places};
use crate::durable;
use crate::text_file::read;
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// What was done to this node's containerd; kept in the state folder.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    path: PathBuf,
    /// The runtime's life in which it was done: only a later one can have read it.
    life: Option<String>,
    /// Why it was taken back; it is not tried again while this stands.
    taken_back: Option<String>,
}

/// Keeps one drop-in, or sees to it that there is none.
#[derive(Clone, Debug)]
pub struct Configure {
    record: PathBuf,
    is_wanted: bool,
}

/// What containerd did, seen over all registries whose files are in place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// It came to the relay at least once.
    Came,
    /// It was asked and went elsewhere each time.
    Missed,
    /// Neither, as far as is known.
    Nothing,
}

/// Why the drop-in is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum Unconfigured {
    /// None would do; why, with the mend.
    #[error("--configure-runtime can do nothing: {0}")]
    Unfit(String),
    /// It did not help.
    #[error("--configure-runtime took its drop-in back: {0}; remove {1} to have it tried again")]
    TakenBack(String, PathBuf),
    /// The disk refused.
    #[error("--configure-runtime cannot {action} {path}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

impl Configure {
    /// With its record in the agent's state folder.
    #[must_use]
    pub fn new(state_dir: &Path, is_wanted: bool) -> Self {
        Self { record: state_dir.join(durable::RUNTIME), is_wanted }
    }

    /// One look: writes what is missing, takes back what does not help. Blocks on the disk.
    ///
    /// # Errors
    /// What stands in the way, with the mend.
    pub fn turn(
        &self,
        places: &Places,
        runtime_version: Option<&str>,
        look: &Look,
        folder: &str,
        seen: Seen,
    ) -> Result<(), Unconfigured> {
        if !self.is_wanted {
            return self.give_back();
        }
        // Too little is known to change anything.
        let Some(Ok(version)) = runtime_version.map(Version::parse) else { return Ok(()) };
        match self.done() {
            Some(Done { taken_back: Some(why), .. }) => Err(Unconfigured::TakenBack(why, self.record.clone())),
            // Only from now on it is seen whether containerd starts anew.
            Some(done @ Done { life: None, .. }) if look.life.is_some() => {
                self.keep(&Done { life: look.life.clone(), ..done })
            }
            Some(done) if seen == Seen::Missed && look.life.is_some() && look.life != done.life => {
                let why = "containerd started anew and did not come to the relay".to_owned();
                remove(&done.path)?;
                tracing::warn!(path = %done.path.display(), why, "the runtime's drop-in is taken back");
                self.keep(&Done { taken_back: Some(why.clone()), ..done })?;
                Err(Unconfigured::TakenBack(why, self.record.clone()))
            }
            done => {
                let unfit = |error: super::drop_in::NoDropIn| Unconfigured::Unfit(error.to_string());
                let Some(DropIn { path, text }) = drop_in(&places.config, &Disk, version, folder).map_err(unfit)?
                else {
                    return Ok(());
                };
                if done.is_some() && read(&path).is_ok_and(|current| current == text) {
                    return Ok(());
                }
                if path.symlink_metadata().is_ok() && !is_ours(&path) {
                    return Err(Unconfigured::Unfit(format!("{} is not the agent's; rename it", path.display())));
                }
                let life = look.life.clone();
                // Another folder is imported now: the drop-in in the old one would be on no record any more.
                if let Some(elsewhere) = done.as_ref().filter(|done| done.path != path) {
                    remove(&elsewhere.path)?;
                }
                // On record first, so that it is taken back whatever happens.
                let done = done.filter(|done| done.path == path);
                self.keep(&done.unwrap_or_else(|| Done { path: path.clone(), life, taken_back: None }))?;
                write(&path, &text)?;
                tracing::info!(path = %path.display(), "drop-in written; containerd reads it when it is restarted");
                Ok(())
            }
        }
    }

    /// Takes the drop-in back, and forgets it.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn give_back(&self) -> Result<(), Unconfigured> {
        let Some(done) = self.done() else { return Ok(()) };
        remove(&done.path)?;
        tracing::info!(path = %done.path.display(), "the runtime's drop-in is taken back");
        durable::remove(&self.record).map_err(|source| Unconfigured::Io {
            action: "remove",
            path: self.record.clone(),
            source,
        })
    }

    fn done(&self) -> Option<Done> {
        serde_json::from_slice(&std::fs::read(&self.record).ok()?).ok()
    }

    fn keep(&self, done: &Done) -> Result<(), Unconfigured> {
        let bytes = serde_json::to_vec(done).map_err(io::Error::from);
        let kept = bytes.and_then(|bytes| durable::replace(&self.record, &bytes, durable::PRIVATE));
        kept.map_err(|source| Unconfigured::Io { action: "record", path: self.record.clone(), source })
    }
}

fn write(path: &Path, text: &str) -> Result<(), Unconfigured> {
    let written = sweep_beside(path).and_then(|()| durable::replace(path, text.as_bytes(), durable::PUBLIC));
    written.map_err(|source| Unconfigured::Io { action: "write", path: path.to_owned(), source })
}

/// Removes a drop-in if it is ours still, and what a crash left of a write.
fn remove(path: &Path) -> Result<(), Unconfigured> {
    let removed = sweep_beside(path).and_then(|()| if is_ours(path) { durable::remove(path) } else { Ok(()) });
    removed.map_err(|source| Unconfigured::Io { action: "remove", path: path.to_owned(), source })
}

fn sweep_beside(path: &Path) -> io::Result<()> {
    match path.parent().map_or(Ok(()), durable::sweep) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        swept => swept,
    }
}

fn is_ours(path: &Path) -> bool {
    let is_file = path.symlink_metadata().is_ok_and(|found| found.is_file());
    is_file && read(path).is_ok_and(|text| text.starts_with(MARKER))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::look;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::net::UnixListener;
    use tempfile::TempDir;

    const VERSION: Option<&str> = Some("containerd://2.4.2");
    const CERTS: &str = "/etc/containerd/certs.d";

    struct Node {
        dir: TempDir,
        places: Places,
        configure: Configure,
        listener: Option<UnixListener>,
    }

    impl Node {
        fn new() -> Self {
            let dir = TempDir::new().unwrap();
            let socket = dir.path().join("containerd.sock");
            std::fs::create_dir(dir.path().join("conf.d")).unwrap();
            std::fs::create_dir(dir.path().join("state")).unwrap();
            std::fs::write(dir.path().join("config.toml"), "version = 3\nimports = ['conf.d/*.toml']\n").unwrap();
            let places = Places { config: dir.path().join("config.toml"), socket: Some(socket), drop_ins: false };
            let configure = Configure::new(&dir.path().join("state"), true);
            let mut node = Self { dir, places, configure, listener: None };
            node.restart();
            node
        }

        fn restart(&mut self) {
            let socket = self.places.socket.clone().unwrap();
            drop(self.listener.take());
            drop(std::fs::remove_file(&socket));
            self.listener = Some(UnixListener::bind(&socket).unwrap());
        }

        fn turn(&self, seen: Seen) -> Result<(), Unconfigured> {
            self.configure.turn(&self.places, VERSION, &look(&self.places, VERSION), CERTS, seen)
        }

        fn drop_in(&self) -> Option<String> {
            std::fs::read_to_string(self.dir.path().join("conf.d/99-breakwater.toml")).ok()
        }
    }

    #[test]
    fn a_socket_that_is_seen_later_or_changed_hands_is_no_restart() {
        let mut node = Node::new();
        node.restart();
        let unseen = Places { socket: None, ..node.places.clone() };
        node.configure.turn(&unseen, VERSION, &look(&unseen, VERSION), CERTS, Seen::Nothing).unwrap();
        node.turn(Seen::Missed).unwrap();
        let socket = node.places.socket.clone().unwrap();
        let before = socket.metadata().unwrap();
        let has_changed = || {
            (before.ctime(), before.ctime_nsec())
                != socket.metadata().map(|now| (now.ctime(), now.ctime_nsec())).unwrap()
        };
        // A clock may tick every few milliseconds only.
        while !has_changed() {
            std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o660)).unwrap();
        }
        node.turn(Seen::Missed).unwrap();
        assert!(node.drop_in().is_some());
    }

    #[test]
    fn where_the_record_was_lost_the_drop_in_is_taken_back_as_well() {
        let node = Node::new();
        node.turn(Seen::Nothing).unwrap();
        durable::remove(&node.dir.path().join("state").join(durable::RUNTIME)).unwrap();
        node.turn(Seen::Nothing).unwrap();
        node.configure.give_back().unwrap();
        assert!(node.drop_in().is_none());
    }

    #[test]
    fn it_is_written_once_and_stays_where_it_helps() {
        let mut node = Node::new();
        node.turn(Seen::Missed).unwrap();
        assert!(node.drop_in().unwrap().contains(CERTS));
        // Not started anew yet: that it goes elsewhere says nothing of the drop-in.
        node.turn(Seen::Missed).unwrap();
        node.restart();
        node.turn(Seen::Nothing).unwrap();
        node.turn(Seen::Came).unwrap();
        assert!(node.drop_in().is_some());
        std::fs::remove_file(node.dir.path().join("conf.d/99-breakwater.toml")).unwrap();
        node.turn(Seen::Came).unwrap();
        assert!(node.drop_in().is_some(), "it is kept in place");
        // Whoever has other drop-ins imported finds ours there, and nowhere else.
        std::fs::create_dir(node.dir.path().join("other.d")).unwrap();
        std::fs::write(&node.places.config, "version = 3\nimports = ['other.d/*.toml']\n").unwrap();
        node.turn(Seen::Nothing).unwrap();
        assert!(node.drop_in().is_none() && node.dir.path().join("other.d/99-breakwater.toml").exists());
        node.configure.give_back().unwrap();
        assert!(!node.dir.path().join("other.d/99-breakwater.toml").exists());
    }

    #[test]
    fn it_is_taken_back_where_it_does_not_help_and_not_tried_again() {
        let mut node = Node::new();
        node.turn(Seen::Missed).unwrap();
        node.restart();
        assert!(matches!(node.turn(Seen::Missed), Err(Unconfigured::TakenBack(..))));
        assert!(node.drop_in().is_none());
        assert!(matches!(node.turn(Seen::Missed), Err(Unconfigured::TakenBack(..))));
        assert!(node.drop_in().is_none());
    }

    #[test]
    fn a_file_of_others_is_never_touched_and_what_stands_in_the_way_is_named() {
        let mut node = Node::new();
        let path = node.dir.path().join("conf.d/99-breakwater.toml");
        node.turn(Seen::Nothing).unwrap();
        std::fs::write(&path, "version = 3\n").unwrap();
        assert!(node.turn(Seen::Nothing).unwrap_err().to_string().contains("not the agent's"));
        node.configure.is_wanted = false;
        node.turn(Seen::Nothing).unwrap();
        assert_eq!(node.drop_in().as_deref(), Some("version = 3\n"));
        node.configure.is_wanted = true;
        std::fs::remove_dir_all(node.dir.path().join("conf.d")).unwrap();
        let refused = node.turn(Seen::Nothing).unwrap_err().to_string();
        assert!(refused.contains("99-breakwater.toml"), "{refused}");
        std::fs::write(&node.places.config, "version = 3\n").unwrap();
        assert!(node.turn(Seen::Nothing).unwrap_err().to_string().contains("imports"));
    }
}
