//! The drop-in that lets containerd 2.x read the folder that the agent writes: whether one would do, where it goes and what it says.
//! Pure.

use super::effective::{Lookup, effective};
use super::files::{Source, Unreadable, load, place};
use super::version::Version;
use std::io;
use std::path::{Path, PathBuf};

/// Sorts after what others may have there.
const NAME: &str = "99-breakwater.toml";
/// The first line of a drop-in of ours.
pub(super) const MARKER: &str = "# Managed by Breakwater: --configure-runtime\n";

/// A drop-in that would do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct DropIn {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// Why there is none. Each names the mend.
#[derive(Debug, thiserror::Error)]
pub(super) enum NoDropIn {
    /// Its configuration is not known.
    #[error(transparent)]
    Unreadable(Unreadable),
    /// A drop-in would replace the whole table of the CRI plugin.
    #[error("containerd before 2.0 merges no drop-in; set config_path in its config.toml")]
    Old,
    /// Nobody would read it.
    #[error("{0} imports no folder of drop-ins; add imports = [\"/etc/containerd/conf.d/*.toml\"] to it")]
    NotImported(PathBuf),
    /// It would have to name the version of the root file.
    #[error("{0} names no version; replace it by what containerd config migrate prints")]
    NoVersion(PathBuf),
    /// Somebody chose another way.
    #[error("somebody else has set where containerd looks")]
    Chosen,
    /// With it, containerd would still look elsewhere.
    #[error("another drop-in is read later and overrides one of ours")]
    Overridden,
}

/// The drop-in for this folder; None where containerd reads it without one.
pub(super) fn drop_in(
    root: &Path,
    source: &impl Source,
    version: Version,
    folder: &str,
) -> Result<Option<DropIn>, NoDropIn> {
    let files = load(root, source).map_err(NoDropIn::Unreadable)?;
    let root_file = files.first().ok_or(NoDropIn::Old)?;
    let Some(path) = place(root_file, NAME) else {
        return match effective(&files, version).lookup {
            Lookup::Folders(folders) if folders.iter().any(|one| one == folder) => Ok(None),
            _ if version < Version(2, 0, 0) => Err(NoDropIn::Old),
            _ => Err(NoDropIn::NotImported(root.to_owned())),
        };
    };
    let with = |text: &str| {
        let files = load(root, &Overlay { source, path: &path, text }).map_err(NoDropIn::Unreadable)?;
        Ok(effective(&files, version).lookup)
    };
    match with("")? {
        Lookup::Folders(folders) if folders.iter().any(|one| one == folder) => return Ok(None),
        _ if version < Version(2, 0, 0) => return Err(NoDropIn::Old),
        Lookup::Nowhere | Lookup::Unsplit(_) => {}
        Lookup::Folders(_) | Lookup::LegacyMirrors | Lookup::DropIns | Lookup::Other(_) => {
            return Err(NoDropIn::Chosen);
        }
    }
    let text = match root_file.root.get("version").and_then(serde_json::Value::as_i64) {
        Some(number @ 2) => text(number, "io.containerd.grpc.v1.cri", folder),
        Some(number @ 3..) => text(number, "io.containerd.cri.v1.images", folder),
        _ => return Err(NoDropIn::NoVersion(root.to_owned())),
    };
    match with(&text)? {
        Lookup::Folders(folders) if folders == [folder] => Ok(Some(DropIn { path, text })),
        _ => Err(NoDropIn::Overridden),
    }
}

fn text(version: i64, plugin: &str, folder: &str) -> String {
    format!("{MARKER}version = {version}\n\n[plugins.'{plugin}'.registry]\nconfig_path = '{folder}'\n")
}

/// The node's files with one more, or another text in it.
struct Overlay<'a, S> {
    source: &'a S,
    path: &'a Path,
    text: &'a str,
}

impl<S: Source> Source for Overlay<'_, S> {
    fn read(&self, path: &Path) -> io::Result<String> {
        if path == self.path { Ok(self.text.to_owned()) } else { self.source.read(path) }
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        if self.path.parent() != Some(folder) {
            return self.source.list(folder);
        }
        // The folder need not be there yet.
        let mut names = self.source.list(folder).unwrap_or_default();
        names.extend(self.path.file_name().and_then(|name| name.to_str()).map(str::to_owned));
        names.sort();
        names.dedup();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::Tree;
    use super::*;

    const ROOT: &str = "/etc/containerd/config.toml";
    const CERTS: &str = "/etc/containerd/certs.d";
    const NEW: Version = Version(2, 4, 2);
    const IMPORTS: &str = "imports = ['/etc/containerd/conf.d/*.toml']";

    fn made(version: Version, files: &[(&str, &str)]) -> Result<Option<DropIn>, NoDropIn> {
        drop_in(Path::new(ROOT), &Tree::new(files), version, CERTS)
    }

    #[test]
    fn it_goes_where_drop_ins_are_imported_and_speaks_the_root_files_version() {
        for (version, number, plugin) in [
            (NEW, 4, "io.containerd.cri.v1.images"),
            (NEW, 2, "io.containerd.grpc.v1.cri"),
            (Version(2, 2, 0), 3, "io.containerd.cri.v1.images"),
            (Version(2, 0, 5), 2, "io.containerd.grpc.v1.cri"),
        ] {
            let root = format!("version = {number}\n{IMPORTS}\n");
            let found = made(version, &[(ROOT, &root)]).unwrap().unwrap();
            assert_eq!(found.path, Path::new("/etc/containerd/conf.d/99-breakwater.toml"));
            let expected = format!("version = {number}\n\n[plugins.'{plugin}'.registry]\nconfig_path = '{CERTS}'\n");
            assert_eq!(found.text, format!("{MARKER}{expected}"));
            // Once it is there, it is wanted still.
            let path = found.path.to_str().unwrap().to_owned();
            assert_eq!(made(version, &[(ROOT, &root), (&path, &found.text)]).unwrap(), Some(found));
        }
        let relative = made(
            NEW,
            &[(ROOT, "version = 3\nimports = ['other.toml', 'conf.d/*.toml']"), ("/etc/containerd/other.toml", "")],
        );
        assert_eq!(relative.unwrap().unwrap().path, Path::new("/etc/containerd/conf.d/99-breakwater.toml"));
    }

    #[test]
    fn nothing_is_done_where_it_is_not_needed_or_would_not_do() {
        let set = format!("version = 3\n{IMPORTS}\n[plugins.'io.containerd.cri.v1.images'.registry]\n");
        assert_eq!(made(NEW, &[(ROOT, &format!("{set}config_path = '{CERTS}'"))]).unwrap(), None);
        let why = |version, text: &str| made(version, &[(ROOT, text)]).unwrap_err().to_string();
        assert!(why(NEW, &format!("{set}config_path = '/elsewhere'")).contains("somebody else"));
        assert!(why(NEW, &format!("{set}mirrors.a.endpoint = ['https://b']")).contains("somebody else"));
        assert!(why(NEW, "version = 3").contains("imports ="));
        assert!(why(NEW, IMPORTS).contains("names no version"));
        assert!(why(Version(1, 7, 28), &format!("version = 2\n{IMPORTS}")).contains("2.0"));
        assert!(why(NEW, "version = [").contains("not valid TOML"));
        let later = "version = 3\nimports = ['/etc/containerd/conf.d/*.toml', '/etc/containerd/last.toml']";
        let last = "version = 3\n[plugins.'io.containerd.cri.v1.images'.registry]\nconfig_path = ''";
        let files = [(ROOT, later), ("/etc/containerd/last.toml", last)];
        assert!(made(Version(2, 1, 0), &files).unwrap_err().to_string().contains("overrides"));
    }
}
