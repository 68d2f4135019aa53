//! What stands between containerd and the folder that the agent writes, with the mend. Pure.

use super::Look;
use super::effective::{Effective, Lookup};
use breakwater_crds::conditions::reason;

/// Why the runtime may not read our files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Doubt {
    /// The reason for the API.
    pub reason: &'static str,
    /// What was found and what to do.
    pub message: String,
    /// Whether the files are not read for certain. Otherwise only the proof tells.
    pub certain: bool,
}

impl Look {
    /// What is wrong with the runtime's configuration, for an agent that writes `folder` as the node sees it.
    #[must_use]
    pub fn doubt(&self, folder: &str) -> Option<Doubt> {
        let doubt = self.found(folder)?;
        let note = self.note.as_ref().map(|note| format!("; {note}")).unwrap_or_default();
        Some(Doubt { message: format!("{}{note}", doubt.message), ..doubt })
    }

    fn found(&self, folder: &str) -> Option<Doubt> {
        let found = match &self.effective {
            Ok(found) => found,
            Err(why) => {
                let message = format!(
                    "the runtime's configuration is not known: {why}; mount it into the agent and name it with --runtime-config"
                );
                return Some(Doubt { reason: reason::CONFIG_UNREADABLE, message, certain: false });
            }
        };
        let (reason, what, certain) = match &found.lookup {
            Lookup::Folders(folders) if folders.iter().any(|one| same(one, folder)) => return None,
            Lookup::DropIns => return None,
            Lookup::Folders(folders) => {
                let message = format!("containerd reads {}, not {folder}", folders.join(" and "));
                return Some(Doubt {
                    reason: reason::CONFIG_PATH_ELSEWHERE,
                    message: format!("{message}; mount that folder at --certs-dir and name it with --config-path, or {}", mend(found, folder)),
                    // The two may be one folder by a symlink that cannot be seen from here.
                    certain: false,
                });
            }
            Lookup::Other(runtime) => {
                let message = format!(
                    "the node runs {runtime}, which reads no hosts.toml; for CRI-O choose the preset cri-o, which writes drop-ins of \
                     registries.conf"
                );
                return Some(Doubt { reason: reason::CONFIG_PATH_ELSEWHERE, message, certain: true });
            }
            Lookup::Nowhere => (reason::CONFIG_PATH_UNSET, "containerd reads no hosts.toml, because config_path is empty".to_owned(), true),
            Lookup::Unsplit(list) => (
                reason::MULTIPLE_PATHS,
                format!("containerd's transfer service takes the list {list} for the name of one folder and reads no hosts.toml"),
                true,
            ),
            Lookup::LegacyMirrors => (
                reason::LEGACY_MIRRORS,
                "containerd reads no hosts.toml, because registry.mirrors is set; move what it says to hosts.toml files and remove it".to_owned(),
                true,
            ),
        };
        Some(Doubt { reason, message: format!("{what}; {}", mend(found, folder)), certain })
    }
}

fn mend(found: &Effective, folder: &str) -> String {
    format!(
        "in {} set [plugins.\"{}\".registry] config_path = \"{folder}\" and restart containerd",
        found.file.display(),
        found.plugin
    )
}

/// The same folder but for slashes.
fn same(a: &str, b: &str) -> bool {
    a.split('/').filter(|part| !part.is_empty()).eq(b.split('/').filter(|part| !part.is_empty()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CERTS: &str = "/etc/containerd/certs.d";

    fn look(lookup: Lookup) -> Look {
        let found =
            Effective { lookup, file: "/etc/containerd/config.toml".into(), plugin: "io.containerd.cri.v1.images" };
        Look { effective: Ok(found), fingerprint: String::new(), socket: None, life: None, note: None }
    }

    #[track_caller]
    fn check(lookup: Lookup, reason: &str, certain: bool) {
        let doubt = look(lookup).doubt(CERTS).unwrap();
        assert_eq!((doubt.reason, doubt.certain), (reason, certain));
        let mend = "in /etc/containerd/config.toml set [plugins.\"io.containerd.cri.v1.images\".registry] \
                    config_path = \"/etc/containerd/certs.d\" and restart containerd";
        assert!(doubt.message.ends_with(mend), "{}", doubt.message);
    }

    #[test]
    fn another_runtime_is_told_by_its_name() {
        let doubt = look(Lookup::Other("cri-o://1.34.0".into())).doubt(CERTS).unwrap();
        assert!(doubt.certain && doubt.message.contains("cri-o://1.34.0") && doubt.message.contains("preset"));
        assert_eq!(look(Lookup::DropIns).doubt("/etc/containers/registries.conf.d"), None);
    }

    #[test]
    fn each_finding_carries_its_mend() {
        check(Lookup::Nowhere, "ConfigPathUnset", true);
        check(Lookup::Unsplit("/a:/b".into()), "MultiplePaths", true);
        check(Lookup::LegacyMirrors, "LegacyMirrors", true);
        check(Lookup::Folders(vec!["/etc/docker/certs.d".into()]), "ConfigPathElsewhere", false);
        for folders in [vec![CERTS], vec!["/etc/containerd//certs.d/"], vec!["/a", CERTS]] {
            let folders = folders.into_iter().map(str::to_owned).collect();
            assert_eq!(look(Lookup::Folders(folders)).doubt(CERTS), None);
        }
        let mut unknown = look(Lookup::Nowhere);
        unknown.note = Some("and so".into());
        assert!(unknown.doubt(CERTS).unwrap().message.ends_with("restart containerd; and so"));
        unknown.effective = Err("cannot read x".into());
        let doubt = unknown.doubt(CERTS).unwrap();
        assert_eq!((doubt.reason, doubt.certain), ("ConfigUnreadable", false));
        assert!(doubt.message.contains("cannot read x") && doubt.message.contains("--runtime-config"));
    }
}
