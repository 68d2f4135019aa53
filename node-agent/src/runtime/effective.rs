//! What containerd's configuration files come to for mirrors: which folders it looks for hosts.toml in, if any. Pure.
//!
//! Rules are those of containerd's source, 1.6 to 2.4: `LoadConfig` and `mergeConfig` of its server, the migration and the
//! defaults of the CRI image plugin, and `CheckLocalImagePullConfigs`.

use super::files::ConfigFile;
use super::version::Version;
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

const CRI: &str = "io.containerd.grpc.v1.cri";
const IMAGES: &str = "io.containerd.cri.v1.images";
/// What containerd 2.2 and later set where nothing is.
const DEFAULT_LIST: &str = "/etc/containerd/certs.d:/etc/docker/certs.d";

/// Where containerd looks for `hosts.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// In these folders, in this order.
    Folders(Vec<String>),
    /// Nowhere: `config_path` is empty.
    Nowhere,
    /// Nowhere: this version takes the list for the name of one folder.
    Unsplit(String),
    /// In drop-ins of registries.conf, as CRI-O does.
    DropIns,
    /// Nowhere: this is not containerd.
    Other(String),
    /// Nowhere: `registry.mirrors` is set, which excludes `config_path`.
    LegacyMirrors,
}

/// What was found, and where a mend belongs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Effective {
    /// Where containerd looks.
    pub lookup: Lookup,
    /// The file that decides, or the root file where none does.
    pub file: PathBuf,
    /// The plugin's table in that file's version.
    pub plugin: &'static str,
}

/// Merges the files, which are in the order in which containerd reads them, as this version of it does.
#[must_use]
pub(super) fn effective(files: &[ConfigFile], version: Version) -> Effective {
    let images = if version < Version(2, 0, 0) { images_1(files) } else { images_2(files, version) };
    let registry = |key: &str| images.get("registry").and_then(|registry| registry.get(key));
    let is_set = |key: &str| registry(key).and_then(Value::as_object).is_some_and(|table| !table.is_empty());
    let path = registry("config_path").and_then(Value::as_str);
    let path = match path.unwrap_or_default() {
        "" if default_applies(path.is_some(), version) => DEFAULT_LIST,
        path => path,
    };
    let folders = || path.split(':').map(str::to_owned).collect();
    let lookup = if is_set("mirrors") {
        Lookup::LegacyMirrors
    } else if path.is_empty() {
        Lookup::Nowhere
    } else if path.contains(':') && pulls_by_transfer_service(&images, version) {
        Lookup::Unsplit(path.to_owned())
    } else {
        Lookup::Folders(folders())
    };
    let (file, plugin) = deciding(files, version);
    Effective { lookup, file, plugin }
}

/// 2.2.0 and 2.2.1 have the list as the plugin's default, which an empty text overrides; later ones fill in an empty text.
fn default_applies(is_given: bool, version: Version) -> bool {
    version >= Version(2, 2, 2) || (version >= Version(2, 2, 0) && !is_given)
}

/// 1.x: a file replaces a plugin's whole table; version 1 names plugins in short.
fn images_1(files: &[ConfigFile]) -> Map<String, Value> {
    let version = files.iter().rev().map(version_of).find(|version| *version > 0);
    let name = if version.unwrap_or(1) < 2 { "cri" } else { CRI };
    files.iter().rev().find_map(|file| plugin(file, name)).cloned().unwrap_or_default()
}

/// 2.x: plugins' tables are merged key by key. What older versions set under the CRI plugin moves to the image plugin:
/// since 2.3 in each file, before that in the merged whole, by the version that the last file gave it.
fn images_2(files: &[ConfigFile], version: Version) -> Map<String, Value> {
    let per_file = version >= Version(2, 3, 0);
    let current = if per_file { 4 } else { 3 };
    let mut merged = Map::new();
    let mut legacy = Map::new();
    let mut last = current;
    for file in files {
        let version = version_of(file);
        let mut images = plugin(file, IMAGES).cloned().unwrap_or_default();
        let cri = plugin(file, CRI).or_else(|| plugin(file, "cri").filter(|_| version < 2));
        if per_file && version < current {
            images.extend(cri.map(moved).unwrap_or_default());
        } else if let Some(cri) = cri.filter(|_| !per_file) {
            merge(&mut legacy, cri);
        }
        merge(&mut merged, &images);
        // Before 2.3, files of version 1 and those without one are taken for the newest before they are merged.
        last = if version > 1 { version } else { last };
    }
    if !per_file && last < current {
        merged.extend(moved(&legacy));
    }
    merged
}

/// The settings of the CRI plugin that are the image plugin's since 2.0.
fn moved(cri: &Map<String, Value>) -> Map<String, Value> {
    let keep = |table: Option<&Map<String, Value>>, keys: &[&str]| -> Vec<(String, Value)> {
        let table = table.into_iter().flatten();
        table.filter(|(key, _)| keys.contains(&key.as_str())).map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let below = cri.get("containerd").and_then(Value::as_object);
    let mut moved = Map::new();
    moved.extend(keep(Some(cri), &["registry", "max_concurrent_downloads", "image_pull_with_sync_fs"]));
    moved.extend(keep(below, &["disable_snapshot_annotations", "discard_unpacked_layers"]));
    moved
}

/// Tables by key, lists without repetition, everything else is replaced.
fn merge(to: &mut Map<String, Value>, from: &Map<String, Value>) {
    for (key, value) in from {
        match (to.get_mut(key), value) {
            (Some(Value::Object(to)), Value::Object(from)) => merge(to, from),
            (Some(Value::Array(to)), Value::Array(from)) => {
                let new: Vec<_> = from.iter().filter(|value| !to.contains(value)).cloned().collect();
                to.extend(new);
            }
            _ => drop(to.insert(key.clone(), value.clone())),
        }
    }
}

/// Since 2.1 images are pulled by the transfer service, which does not split the list, unless one of these asks for what
/// it cannot do.
fn pulls_by_transfer_service(images: &Map<String, Value>, version: Version) -> bool {
    let truth = |key: &str, default: bool| images.get(key).and_then(Value::as_bool).unwrap_or(default);
    let number = |key: &str, default: i64| images.get(key).and_then(Value::as_i64).unwrap_or(default);
    let is_set = |key: &str| {
        let value = images.get("registry").and_then(|registry| registry.get(key));
        value.and_then(Value::as_object).is_some_and(|table| !table.is_empty())
    };
    version >= Version(2, 1, 0)
        && !truth("use_local_image_pull", false)
        && truth("disable_snapshot_annotations", true)
        && !truth("discard_unpacked_layers", false)
        && !truth("image_pull_with_sync_fs", false)
        && number("max_concurrent_downloads", 3) == 3
        && !is_set("configs")
        && !is_set("auths")
}

/// The last file that says something of registries, and the name of the plugin in it.
fn deciding(files: &[ConfigFile], version: Version) -> (PathBuf, &'static str) {
    let says =
        |file: &&ConfigFile| [CRI, IMAGES, "cri"].iter().any(|name| plugin(file, name).is_some_and(has_registry));
    let file = files.iter().rfind(says).or(files.first());
    let number = file.map_or(0, version_of);
    let is_new = number != 2 || file.is_some_and(|file| plugin(file, IMAGES).is_some());
    let name = match version >= Version(2, 0, 0) {
        true if is_new => IMAGES,
        false if number < 2 => "cri",
        _ => CRI,
    };
    (file.map_or_else(|| Path::new("config.toml").to_owned(), |file| file.path.clone()), name)
}

fn has_registry(plugin: &Map<String, Value>) -> bool {
    plugin.contains_key("registry")
}

fn plugin<'a>(file: &'a ConfigFile, name: &str) -> Option<&'a Map<String, Value>> {
    file.root.get("plugins")?.get(name)?.as_object()
}

fn version_of(file: &ConfigFile) -> i64 {
    file.root.get("version").and_then(Value::as_i64).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::files::load;
    use super::super::files::tests::Tree;
    use super::*;

    const V1: Version = Version(1, 7, 28);
    const ROOT: &str = "/etc/containerd/config.toml";
    const CERTS: &str = "/etc/containerd/certs.d";

    fn found(version: Version, files: &[(&str, &str)]) -> Effective {
        effective(&load(Path::new(ROOT), &Tree::new(files)).unwrap(), version)
    }

    #[track_caller]
    fn check(version: Version, text: &str, expected: &Lookup) {
        assert_eq!(&found(version, &[(ROOT, text)]).lookup, expected, "{version:?}: {text}");
    }

    fn one() -> Lookup {
        Lookup::Folders(vec![CERTS.to_owned()])
    }

    fn both() -> Lookup {
        Lookup::Folders(vec![CERTS.to_owned(), "/etc/docker/certs.d".to_owned()])
    }

    fn unsplit() -> Lookup {
        Lookup::Unsplit(DEFAULT_LIST.to_owned())
    }

    fn v2(registry: &str) -> String {
        format!("version = 2\n[plugins.\"{CRI}\".registry]\n{registry}\n")
    }

    fn v3(version: u8, settings: &str, registry: &str) -> String {
        format!("version = {version}\n[plugins.'{IMAGES}']\n{settings}\n[plugins.'{IMAGES}'.registry]\n{registry}\n")
    }

    #[test]
    fn what_nothing_set_means_by_version() {
        for (version, expected) in [
            (Version(1, 6, 38), Lookup::Nowhere),
            (V1, Lookup::Nowhere),
            (Version(2, 0, 5), Lookup::Nowhere),
            (Version(2, 1, 4), Lookup::Nowhere),
            (Version(2, 2, 0), unsplit()),
            (Version(2, 2, 2), unsplit()),
            (Version(2, 3, 0), unsplit()),
            (Version(2, 4, 2), unsplit()),
        ] {
            for text in ["", "version = 2\n", &v2("")] {
                check(version, text, &expected);
            }
        }
        check(Version(2, 2, 1), &v2("config_path = ''"), &Lookup::Nowhere);
        check(Version(2, 2, 2), &v2("config_path = ''"), &unsplit());
    }

    #[test]
    fn one_folder_works_everywhere() {
        let path = format!("config_path = '{CERTS}'");
        for version in [Version(1, 6, 38), V1, Version(2, 0, 5), Version(2, 1, 4), Version(2, 2, 0), Version(2, 4, 2)] {
            check(version, &v2(&path), &one());
        }
        for version in [Version(2, 0, 5), Version(2, 1, 4), Version(2, 4, 2)] {
            check(version, &v3(3, "", &path), &one());
        }
        check(Version(2, 3, 0), &v3(4, "", &path), &one());
        check(V1, &format!("[plugins.cri.registry]\n{path}"), &one());
        check(Version(2, 4, 2), &format!("[plugins.cri.registry]\n{path}"), &one());
        for short in [format!("[plugins.cri.registry]\n{path}"), format!("version = 1\n[plugins.cri.registry]\n{path}")]
        {
            check(Version(2, 1, 4), &short, &Lookup::Nowhere);
            check(Version(2, 2, 9), &short, &unsplit());
        }
        // The well-known slip: without `version = 2` the long name means nothing to 1.x.
        check(V1, &format!("[plugins.\"{CRI}\".registry]\n{path}"), &Lookup::Nowhere);
        // The mend is the table that this file needs.
        let unversioned = "[plugins.cri]\nsandbox_image = 'pause'\n";
        for (version, table) in [(V1, "cri"), (Version(2, 2, 9), IMAGES), (Version(2, 4, 2), IMAGES)] {
            assert_eq!(found(version, &[(ROOT, unversioned)]).plugin, table);
            check(version, &format!("{unversioned}[plugins.'{table}'.registry]\n{path}"), &one());
        }
        // Inline and dotted tables mean the same.
        check(Version(2, 4, 2), &format!("version = 3\nplugins.'{IMAGES}'.registry = {{ {path} }}"), &one());
    }

    #[test]
    fn a_list_is_split_by_the_local_pull_alone() {
        let list = format!("config_path = '{DEFAULT_LIST}'");
        check(V1, &v2(&list), &both());
        check(Version(2, 0, 5), &v3(3, "", &list), &both());
        for version in [Version(2, 1, 4), Version(2, 2, 0), Version(2, 4, 2)] {
            check(version, &v3(3, "", &list), &unsplit());
            check(version, &v2(&list), &unsplit());
            for local in [
                "use_local_image_pull = true",
                "disable_snapshot_annotations = false",
                "discard_unpacked_layers = true",
                "image_pull_with_sync_fs = true",
                "max_concurrent_downloads = 10",
            ] {
                check(version, &v3(3, local, &list), &both());
            }
            check(version, &v3(3, "max_concurrent_downloads = 3", &list), &unsplit());
            check(version, &v3(3, "", &format!("{list}\nconfigs.'a.example'.auth.username = 'u'")), &both());
            let old = format!("{}[plugins.\"{CRI}\".containerd]\ndiscard_unpacked_layers = true\n", v2(&list));
            check(version, &old, &both());
        }
    }

    #[test]
    fn legacy_mirrors_exclude_the_folders() {
        let mirrors = "mirrors.'docker.io'.endpoint = ['https://mirror.example']";
        for version in [V1, Version(2, 0, 5), Version(2, 4, 2)] {
            check(version, &v2(mirrors), &Lookup::LegacyMirrors);
        }
        check(Version(2, 4, 2), &v3(3, "", mirrors), &Lookup::LegacyMirrors);
        check(V1, &v2(&format!("config_path = '{CERTS}'\n[plugins.\"{CRI}\".registry.mirrors]")), &one());
    }

    #[test]
    fn drop_ins_replace_in_1_and_merge_in_2() {
        let path = format!("config_path = '{CERTS}'");
        let with = |drop_in: &str, root: &str| {
            let root = format!("imports = ['conf.d/*.toml']\n{root}");
            [(ROOT.to_owned(), root), ("/etc/containerd/conf.d/a.toml".to_owned(), drop_in.to_owned())]
        };
        let check = |version, files: &[(String, String); 2], expected: &Lookup| {
            let files = files.each_ref().map(|(path, text)| (path.as_str(), text.as_str()));
            assert_eq!(&found(version, &files).lookup, expected, "{version:?} {files:?}");
        };
        // The drop-in does not speak of registries: in 1.x it still takes the root's away.
        let other = with(&format!("version = 2\n[plugins.\"{CRI}\"]\nsandbox_image = 'p'"), &v2(&path));
        check(V1, &other, &Lookup::Nowhere);
        check(Version(2, 0, 5), &other, &one());
        check(Version(2, 4, 2), &other, &one());
        let sets = with(&v2(&path), &v2("config_path = '/elsewhere'"));
        for version in [V1, Version(2, 0, 5), Version(2, 4, 2)] {
            check(version, &sets, &one());
        }
        // Newer drop-in, older root: merged raw up to 2.2, where the root's own part is then never migrated.
        let newer = with(&v3(3, "", ""), &v2(&path));
        check(Version(2, 1, 4), &newer, &Lookup::Nowhere);
        let older = with(&v2(&path), &v3(3, "", "config_path = '/elsewhere'"));
        check(Version(2, 4, 2), &older, &one());
    }

    #[test]
    fn the_mend_belongs_into_the_file_that_decides() {
        let at = |version, files: &[(&str, &str)]| {
            let found = found(version, files);
            (found.file.display().to_string(), found.plugin)
        };
        assert_eq!(at(V1, &[(ROOT, "version = 2")]), (ROOT.to_owned(), CRI));
        assert_eq!(at(Version(2, 4, 2), &[(ROOT, "version = 2")]), (ROOT.to_owned(), CRI));
        assert_eq!(at(Version(2, 4, 2), &[(ROOT, "version = 3")]), (ROOT.to_owned(), IMAGES));
        let drop_in = "/etc/containerd/conf.d/a.toml";
        let files = [(ROOT, "version = 3\nimports = ['conf.d/*.toml']"), (drop_in, &v3(3, "", "config_path = ''"))];
        assert_eq!(at(Version(2, 4, 2), &files), (drop_in.to_owned(), IMAGES));
    }
}
