//! The container runtime's own side: what its configuration says of mirrors, and whether it may have changed. Writes nothing but, where
//! it was told to, one drop-in.

mod configure;
mod drop_in;
mod effective;
mod files;
mod finding;
mod version;

pub use configure::{Configure, Seen, Unconfigured};
pub use effective::{Effective, Lookup};
pub use finding::Doubt;

use aws_lc_rs::digest::{Context, SHA256};
use files::{Disk, load};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use version::{NoVersion, Version};

/// Where to look.
#[derive(Clone, Debug)]
pub struct Places {
    /// containerd's root configuration file.
    pub config: PathBuf,
    /// The runtime's socket; None: it is not to be used.
    pub socket: Option<PathBuf>,
    /// Whether the runtime reads drop-ins of registries.conf, which it always does, so that its own configuration says nothing.
    pub drop_ins: bool,
}

/// What was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Look {
    /// What the configuration says of mirrors, or why that is not known.
    pub effective: Result<Effective, String>,
    /// Another one means: what was proven of the runtime may hold no more.
    pub fingerprint: String,
    /// The socket, if there is one.
    pub socket: Option<PathBuf>,
    /// One life of the runtime, as its socket tells; None: there is no socket.
    pub life: Option<String>,
    /// What became of configuring it, where that is worth a word.
    pub note: Option<String>,
}

/// Reads the runtime's configuration as the version in `containerd://2.4.2` does. Blocks on the disk.
#[must_use]
pub fn look(places: &Places, runtime_version: Option<&str>) -> Look {
    let mut hash = Context::new(&SHA256);
    let loaded = load(&places.config, &Disk).map_err(|unreadable| unreadable.to_string());
    for file in loaded.iter().flatten() {
        hash.update(format!("{}\0{:?}\0", file.path.display(), file.root).as_bytes());
    }
    let socket = places.socket.as_deref().and_then(|path| Some((path, identity(path)?)));
    // A runtime that started anew made its socket anew. Without one, another version tells at least of an upgrade.
    let (socket, life) = socket.map(|(path, life)| (path.to_owned(), life)).unzip();
    hash.update(life.as_deref().or(runtime_version).unwrap_or_default().as_bytes());
    let simple = |lookup| Effective { lookup, file: places.config.clone(), plugin: "" };
    let effective = match runtime_version.map(Version::parse) {
        _ if places.drop_ins => Ok(simple(Lookup::DropIns)),
        None => Err("the runtime's version is not known yet".to_owned()),
        Some(Err(NoVersion::Other(runtime))) => Ok(simple(Lookup::Other(runtime))),
        Some(Err(error)) => Err(error.to_string()),
        Some(Ok(version)) => loaded.map(|files| effective::effective(&files, version)),
    };
    let fingerprint = hex::encode(hash.finish());
    Look { effective, fingerprint, socket, life, note: None }
}

/// Names one life of a socket.
fn identity(socket: &Path) -> Option<String> {
    let found = std::fs::metadata(socket).ok()?;
    Some(format!("{} {} {}.{}", found.dev(), found.ino(), found.mtime(), found.mtime_nsec()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_restart_of_the_runtime_and_an_edit_change_the_fingerprint_and_a_second_look_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            config: dir.path().join("config.toml"),
            socket: Some(dir.path().join("containerd.sock")),
            drop_ins: false,
        };
        let look = || look(&places, Some("containerd://2.4.2"));
        let nothing = look();
        assert!(nothing.effective.as_ref().is_err_and(|why| why.contains("config.toml")), "{nothing:?}");
        assert_eq!(nothing.socket, None);

        std::fs::write(&places.config, "version = 3").unwrap();
        let config = look();
        assert!(matches!(&config.effective, Ok(Effective { lookup: Lookup::Unsplit(_), .. })), "{config:?}");
        let socket = places.socket.clone().unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let started = look();
        assert_eq!(started.socket.as_deref(), Some(&*socket));
        assert_eq!(started, look());
        drop(listener);
        std::fs::remove_file(&socket).unwrap();
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let fingerprints = [&nothing, &config, &started, &look()].map(|look| look.fingerprint.clone());
        let distinct: std::collections::BTreeSet<_> = fingerprints.iter().collect();
        assert_eq!(distinct.len(), 4, "{fingerprints:?}");
    }

    #[test]
    fn without_the_version_nothing_is_claimed() {
        let dir = tempfile::tempdir().unwrap();
        let mut places = Places { config: dir.path().join("config.toml"), socket: None, drop_ins: false };
        std::fs::write(&places.config, "").unwrap();
        assert!(look(&places, None).effective.unwrap_err().contains("version"));
        let lookup = |places: &Places, version: &str| look(places, Some(version)).effective.unwrap().lookup;
        assert_eq!(lookup(&places, "cri-o://1.34.0"), Lookup::Other("cri-o://1.34.0".into()));
        places.drop_ins = true;
        assert_eq!(lookup(&places, "cri-o://1.34.0"), Lookup::DropIns);
    }
}
