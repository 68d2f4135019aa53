//! One process per folder, one registry per folder.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read, Write},
    path::Path,
    sync::Arc,
};

use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use super::{Unusable, contact::LastContact, read};
use crate::registry_host::RegistryHost;

#[derive(Serialize, Deserialize)]
struct Owner {
    registry: String,
}

/// Held until dropped; the kernel lets go of it when the process dies, however it dies.
pub(super) struct Lock(Arc<File>);

impl Lock {
    pub(super) fn take(dir: &Path, registry: &RegistryHost) -> Result<Self, Unusable> {
        let path = dir.join("LOCK");
        let failed = |source: io::Error| Unusable::Create { path: path.clone(), source };
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let (mut file, _) = read::plain(&mut options, &path).map_err(failed)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(Unusable::Held),
            Err(error) => return Err(failed(error.into())),
        }
        let mut text = Vec::new();
        file.read_to_end(&mut text).map_err(failed)?;
        match serde_json::from_slice::<Owner>(&text) {
            Ok(Owner { registry: owner }) if owner != registry.as_str() => {
                return Err(Unusable::OtherRegistry { owner, wanted: registry.clone() });
            }
            Ok(_) => {}
            Err(_) => {
                let owner = serde_json::json!(Owner { registry: registry.to_string() }).to_string();
                file.set_len(0).and_then(|()| rewind_and_write(&mut file, &owner)).map_err(failed)?;
            }
        }
        Ok(Self(Arc::new(file)))
    }

    pub(super) fn contact(&self) -> LastContact {
        LastContact::of(Arc::clone(&self.0))
    }
}

fn rewind_and_write(file: &mut File, text: &str) -> io::Result<()> {
    io::Seek::rewind(file)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_holder_and_one_registry() {
        let dir = tempfile::tempdir().unwrap();
        let [hub, other] = ["docker.io", "ghcr.io"].map(|host| host.parse::<RegistryHost>().unwrap());
        let held = Lock::take(dir.path(), &hub).ok().unwrap();
        assert!(matches!(Lock::take(dir.path(), &hub), Err(Unusable::Held)));
        drop(held);
        assert!(matches!(Lock::take(dir.path(), &other), Err(Unusable::OtherRegistry { .. })));
        assert!(Lock::take(dir.path(), &hub).is_ok());
    }

    #[test]
    fn a_broken_record_is_no_owner() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("LOCK"), "{").unwrap();
        assert!(Lock::take(dir.path(), &"ghcr.io".parse().unwrap()).is_ok());
        assert_eq!(std::fs::read_to_string(dir.path().join("LOCK")).unwrap(), r#"{"registry":"ghcr.io"}"#);
    }
}
