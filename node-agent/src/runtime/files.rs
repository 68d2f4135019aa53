//! containerd's configuration files in the order in which it merges them: the root file, then its imports, breadth first.
//! Knows what an import is and nothing of what else the files say.
//! <https://github.com/containerd/containerd/blob/main/docs/man/containerd-config.toml.5.md>

use crate::text_file;
use serde_json::{Map, Value};
use std::collections::{BTreeSet, VecDeque};
use std::io;
use std::path::{Component, Path, PathBuf};
use toml_edit::{Document, Item, Table, Value as Toml};

/// More files are somebody's mistake.
const FILES_MAX: usize = 64;

/// Where files come from.
pub(super) trait Source {
    /// The text of a file.
    ///
    /// # Errors
    /// It cannot be read.
    fn read(&self, path: &Path) -> io::Result<String>;
    /// The names in a folder, sorted.
    ///
    /// # Errors
    /// It cannot be listed.
    fn list(&self, folder: &Path) -> io::Result<Vec<String>>;
}

/// The node's files at the paths that the node itself knows them by.
#[derive(Clone, Copy, Debug)]
pub(super) struct Disk;

/// One parsed file.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct ConfigFile {
    /// Where it is.
    pub(super) path: PathBuf,
    /// What it says.
    pub(super) root: Map<String, Value>,
}

/// Why the configuration is not known. Says nothing of what a file holds: there may be passwords in it.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unreadable {
    /// A file cannot be read from here.
    #[error("cannot read {path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is not TOML; containerd would not have started with it.
    #[error("{path} is not valid TOML in line {line}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// The first wrong line.
        line: usize,
    },
    /// An import of a form that is not understood.
    #[error("{path} imports {import:?}, which is not understood")]
    Import {
        /// The file.
        path: PathBuf,
        /// The import.
        import: String,
    },
    /// More files than anybody has.
    #[error("more than {FILES_MAX} files are imported")]
    TooMany,
}

impl Source for Disk {
    fn read(&self, path: &Path) -> io::Result<String> {
        text_file::read(path)
    }

    fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
        let names: io::Result<BTreeSet<_>> =
            std::fs::read_dir(folder)?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect();
        Ok(names?.into_iter().collect())
    }
}

/// Reads the root file and everything that it imports.
///
/// # Errors
/// A file that containerd reads cannot be read, or is not understood.
pub(super) fn load(root: &Path, source: &impl Source) -> Result<Vec<ConfigFile>, Unreadable> {
    let mut files: Vec<ConfigFile> = Vec::new();
    let mut pending = VecDeque::from([root.to_owned()]);
    while let Some(path) = pending.pop_front() {
        if files.iter().any(|file| file.path == path) {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(Unreadable::TooMany);
        }
        let file = parse(path, source)?;
        for import in file.root.get("imports").and_then(Value::as_array).into_iter().flatten() {
            let import = import.as_str().unwrap_or_default();
            let misread = || Unreadable::Import { path: file.path.clone(), import: import.to_owned() };
            pending.extend(resolve(&file.path, import, source).ok_or_else(misread)?);
        }
        files.push(file);
    }
    Ok(files)
}

fn parse(path: PathBuf, source: &impl Source) -> Result<ConfigFile, Unreadable> {
    let text = source.read(&path).map_err(|source| Unreadable::Read { path: path.clone(), source })?;
    match Document::parse(text.as_str()) {
        Ok(document) => {
            Ok(ConfigFile { root: document.iter().map(|(key, item)| (key.to_owned(), json(item))).collect(), path })
        }
        Err(error) => {
            let start = error.span().map_or(0, |span| span.start);
            let line = 1 + text.get(..start).unwrap_or_default().matches('\n').count();
            Err(Unreadable::Parse { path, line })
        }
    }
}

/// Tables however they are written, so that they merge alike.
fn json(item: &Item) -> Value {
    match item {
        Item::None => Value::Null,
        Item::Value(value) => json_value(value),
        Item::Table(table) => object(table),
        Item::ArrayOfTables(tables) => tables.iter().map(object).collect(),
    }
}

fn object(table: &Table) -> Value {
    table.iter().map(|(key, item)| (key, json(item))).collect()
}

fn json_value(value: &Toml) -> Value {
    match value {
        Toml::String(text) => text.value().clone().into(),
        Toml::Integer(number) => (*number.value()).into(),
        Toml::Float(number) => (*number.value()).into(),
        Toml::Boolean(truth) => (*truth.value()).into(),
        Toml::Datetime(time) => time.value().to_string().into(),
        Toml::Array(values) => values.iter().map(json_value).collect(),
        Toml::InlineTable(table) => table.iter().map(|(key, value)| (key, json_value(value))).collect(),
    }
}

/// The files that an import names. A pattern may match none; None where the pattern is beyond us.
fn resolve(parent: &Path, import: &str, source: &impl Source) -> Option<Vec<PathBuf>> {
    let path = clean(&parent.parent()?.join(import));
    if !import.contains('*') {
        return Some(vec![path]);
    }
    if import.contains(['[', '\\']) {
        return None;
    }
    let mut found = vec![PathBuf::from("/")];
    for part in path.components().filter(|part| matches!(part, Component::Normal(_))) {
        let part = part.as_os_str().to_str()?;
        found = if part.contains(['*', '?']) {
            let within = |folder: PathBuf| {
                let names = source.list(&folder).unwrap_or_default();
                names.into_iter().filter(|name| matches(part, name)).map(move |name| folder.join(name))
            };
            found.into_iter().flat_map(within).collect()
        } else {
            found.into_iter().map(|folder| folder.join(part)).collect()
        };
    }
    // Only whole matches are taken from the listings; what follows a pattern may not be there.
    let is_last_pattern = path.file_name()?.to_str()?.contains(['*', '?']);
    found.retain(|path| is_last_pattern || source.read(path).is_ok());
    Some(found)
}

/// Where a file of that name is imported by the root file, if anywhere.
pub(super) fn place(root: &ConfigFile, name: &str) -> Option<PathBuf> {
    let imports = root.root.get("imports").and_then(Value::as_array)?;
    imports.iter().filter_map(Value::as_str).find_map(|import| {
        let path = clean(&root.path.parent()?.join(import));
        let (folder, pattern) = (path.parent()?, path.file_name()?.to_str()?);
        let is_plain = !folder.to_str()?.contains(['*', '?', '[', '\\']) && !pattern.contains(['[', '\\']);
        (is_plain && pattern.contains('*') && matches(pattern, name)).then(|| folder.join(name))
    })
}

/// Without `.` and `..`, as containerd compares paths.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(cleaned.pop()),
            Component::CurDir => {}
            part => cleaned.push(part),
        }
    }
    cleaned
}

/// `*` and `?` of a file name pattern.
fn matches(pattern: &str, name: &str) -> bool {
    let [pattern, name] = [pattern, name].map(|text| text.chars().collect::<Vec<_>>());
    let (mut at, mut of_name) = (0, 0);
    // After the last star, and what it does not stand for yet: an earlier one need not be tried again.
    let mut star = None;
    while let Some(found) = name.get(of_name) {
        match (pattern.get(at), star) {
            (Some('*'), _) => {
                star = Some((at + 1, of_name));
                at += 1;
            }
            (Some(wanted), _) if *wanted == '?' || wanted == found => (at, of_name) = (at + 1, of_name + 1),
            (_, Some((after, from))) => {
                star = Some((after, from + 1));
                (at, of_name) = (after, from + 1);
            }
            (_, None) => return false,
        }
    }
    pattern.iter().skip(at).all(|left| *left == '*')
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::collections::BTreeMap;

    /// Path to text.
    pub(in crate::runtime) struct Tree(BTreeMap<PathBuf, String>);

    impl Tree {
        pub(in crate::runtime) fn new(files: &[(&str, &str)]) -> Self {
            Self(files.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect())
        }
    }

    impl Source for Tree {
        fn read(&self, path: &Path) -> io::Result<String> {
            self.0.get(path).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
        }

        fn list(&self, folder: &Path) -> io::Result<Vec<String>> {
            let below = self.0.keys().filter_map(|path| path.strip_prefix(folder).ok()?.components().next());
            let names: BTreeSet<_> = below.map(|part| part.as_os_str().to_string_lossy().into_owned()).collect();
            Ok(names.into_iter().collect())
        }
    }

    fn order(files: &[(&str, &str)]) -> Vec<String> {
        let loaded = load(Path::new("/etc/containerd/config.toml"), &Tree::new(files)).unwrap();
        loaded.iter().map(|file| file.path.display().to_string()).collect()
    }

    #[test]
    fn imports_are_followed_breadth_first_and_once() {
        let files = [
            ("/etc/containerd/config.toml", "imports = ['conf.d/*.toml', '/etc/containerd/../x.toml', 'config.toml']"),
            ("/etc/containerd/conf.d/20-b.toml", ""),
            ("/etc/containerd/conf.d/10-a.toml", "imports = ['deep/c.toml']"),
            ("/etc/containerd/conf.d/notes.txt", "no TOML"),
            ("/etc/containerd/conf.d/deep/c.toml", ""),
            ("/etc/x.toml", ""),
        ];
        assert_eq!(
            order(&files),
            [
                "/etc/containerd/config.toml",
                "/etc/containerd/conf.d/10-a.toml",
                "/etc/containerd/conf.d/20-b.toml",
                "/etc/x.toml",
                "/etc/containerd/conf.d/deep/c.toml",
            ]
        );
        assert_eq!(order(&[("/etc/containerd/config.toml", "imports = ['/none/*.toml']")]).len(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_named_and_its_text_is_not() {
        let fault = |files: &[(&str, &str)]| {
            load(Path::new("/etc/containerd/config.toml"), &Tree::new(files)).unwrap_err().to_string()
        };
        assert!(fault(&[]).starts_with("cannot read /etc/containerd/config.toml: "));
        let missing = fault(&[("/etc/containerd/config.toml", "imports = ['/elsewhere/a.toml']")]);
        assert!(missing.starts_with("cannot read /elsewhere/a.toml: "), "{missing}");
        let broken = fault(&[("/etc/containerd/config.toml", "version = 2\npassword = hunter2\n")]);
        assert_eq!(broken, "/etc/containerd/config.toml is not valid TOML in line 2");
        let odd = fault(&[("/etc/containerd/config.toml", "imports = ['conf.d/[ab]*.toml']")]);
        assert!(odd.contains("is not understood"), "{odd}");
    }

    #[test]
    fn patterns() {
        for (pattern, name, expected) in [
            ("*.toml", "a.toml", true),
            ("*.toml", ".toml", true),
            ("*.toml", "a.toml.bak", false),
            ("a?*", "ab", true),
            ("a?*", "a", false),
            ("*é*", "caféx", true),
            ("", "", true),
        ] {
            assert_eq!(matches(pattern, name), expected, "{pattern} {name}");
        }
        assert!(!matches("*a*a*a*a*a*a*a*a*.toml", &"a".repeat(60)), "nor does it take for ever to tell");
    }
}
