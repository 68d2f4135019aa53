//! The text of a `hosts.toml`: rendered, merged into a foreign file, taken out again. Pure; knows no path.
//!
//! A foreign file is spliced, never re-rendered: each of its bytes stays. Our part is one block of lines right after the
//! root-level keys, so that its table is the first host and its `server` still a root-level key; where a foreign `server`
//! must yield, its lines become comments that remember them. Both are found again in the text alone, so that a lost
//! journal costs nothing.
//! <https://github.com/containerd/containerd/blob/main/docs/hosts.md>

use toml_edit::{Document, Item, Table, Value};

/// Begins the first line of our block; the mirror's name follows.
const MARKER: &str = "# Managed by Breakwater: RegistryMirror/";
/// Begins each line of a foreign `server` that had to yield.
const KEPT: &str = "# Kept by Breakwater: ";
const BOM: char = '\u{feff}';

/// What we want in one `hosts.toml`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Name of the `RegistryMirror`, for whoever reads the file.
    pub mirror: String,
    /// The relay's URL.
    pub relay: String,
    /// The last host to try.
    pub server: Server,
}

/// The last host that the runtime tries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Server {
    /// The runtime's own default for the registry: no line is written.
    Default,
    /// This URL, unless a foreign file names its own.
    Url(String),
    /// The relay: there is no way round it.
    Relay,
}

/// Why a foreign file cannot be merged.
#[derive(Debug, thiserror::Error)]
pub enum Unmergeable {
    /// It is no TOML; containerd ignores it too.
    #[error("the file is not valid TOML")]
    Parse(#[source] toml_edit::TomlError),
    /// A host table of its own cannot be added, such as beside an inline `host = {}`.
    #[error("the file's own hosts leave no room for another table")]
    Extend(#[source] toml_edit::TomlError),
    /// Taking our part out again would not give the file back as it was.
    #[error("the file could not be given back as it was found")]
    Irreversible,
}

/// A file that is wholly ours.
#[must_use]
pub fn render(entry: &Entry) -> String {
    let server = match &entry.server {
        Server::Default => None,
        Server::Url(url) => Some(url),
        Server::Relay => Some(&entry.relay),
    };
    block(entry, server.map(String::as_str), "\n")
}

/// A foreign file with our table before its own. Merging again changes nothing.
///
/// # Errors
/// A file that is not valid, or cannot be given back byte for byte afterwards.
pub fn merge(found: &str, entry: &Entry) -> Result<String, Unmergeable> {
    let foreign = unmerge(found, &entry.relay).unwrap_or_else(|| found.to_owned());
    let document = Document::parse(foreign.as_str()).map_err(Unmergeable::Parse)?;
    let their_server = document.as_table().get_key_value("server").filter(|(_, item)| item.is_value());
    let server = match (&entry.server, their_server) {
        (Server::Relay, _) => Some(&entry.relay),
        (Server::Url(url), None) => Some(url),
        (Server::Url(_), Some(_)) | (Server::Default, _) => None,
    };
    let newline = newline_of(&foreign);
    let mut ours = block(entry, server.map(String::as_str), newline);
    let at = insertion_point(&foreign, document.as_table());
    if at == foreign.len() && !foreign.is_empty() && !foreign.ends_with(['\n', BOM]) {
        // The missing newline moves from their last line to ours, which tells `unmerge` that there was none.
        ours.truncate(ours.len() - newline.len());
        ours.insert_str(0, newline);
    }
    let mut merged = foreign.clone();
    merged.insert_str(at, &ours);
    if entry.server == Server::Relay
        && let Some(lines) =
            their_server.and_then(|(key, item)| lines_of(&foreign, key.span()?.start, item.span()?.end))
    {
        merged.replace_range(lines.clone(), &comment_out(&foreign[lines]));
    }
    Document::parse(merged.as_str()).map_err(Unmergeable::Extend)?;
    match unmerge(&merged, &entry.relay) {
        Some(back) if back == foreign => Ok(merged),
        _ => Err(Unmergeable::Irreversible),
    }
}

/// The file without our part; None if nothing in it is ours. Empty where all of it was.
///
/// Our table is known by the comment before it or, where an editor dropped that, by the relay's URL. Where somebody wrote another
/// `server` beside the one that we remember, the remembered one stays a comment: the file is valid with one alone.
#[must_use]
pub fn unmerge(text: &str, relay: &str) -> Option<String> {
    let is_valid = |text: &str| Document::parse(text).is_ok();
    let back = take_out(text, relay, true)?;
    if is_valid(&back) {
        return Some(back);
    }
    match take_out(text, relay, false) {
        Some(less) if is_valid(&less) => Some(less),
        None if is_valid(text) => None,
        _ => Some(back),
    }
}

/// Without our block and, if wanted, with the lines that had to yield.
fn take_out(text: &str, relay: &str, gives_back: bool) -> Option<String> {
    let body = text.strip_prefix(BOM).unwrap_or(text);
    let lines: Vec<&str> = body.split_inclusive('\n').collect();
    let header = host_header(relay);
    let mut kept = text[..text.len() - body.len()].to_owned();
    let mut ours = false;
    let mut i = 0;
    while i < lines.len() {
        let line = lines[i];
        if line.starts_with(MARKER) || line.trim() == header {
            i = end_of_block(&lines, i);
            ours = true;
            if i == lines.len() && !body.ends_with('\n') {
                kept.truncate(kept.len() - trailing_newline(&kept));
            }
            continue;
        }
        let original = line.strip_prefix(KEPT).filter(|_| gives_back);
        ours |= original.is_some();
        kept.push_str(original.unwrap_or(line));
        i += 1;
    }
    ours.then_some(kept)
}

/// Whether the file names files beside itself, which another folder's copy of it would not find.
///
/// # Errors
/// A file that is not valid TOML.
pub fn names_files(text: &str) -> Result<bool, Unmergeable> {
    fn within(table: &Table) -> bool {
        table.iter().any(|(key, item)| match item {
            Item::Table(inner) => within(inner),
            Item::Value(Value::InlineTable(inner)) => within(&inner.clone().into_table()),
            _ => key == "ca" || key == "client",
        })
    }
    let document = Document::parse(text).map_err(Unmergeable::Parse)?;
    Ok(within(document.as_table()))
}

fn host_header(relay: &str) -> String {
    format!("[host.{}]", quoted(relay))
}

fn quoted(text: &str) -> String {
    // A basic string: names and URLs are checked before, this only keeps a slip from breaking the file.
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\"").replace(char::is_control, ""))
}

fn block(entry: &Entry, server: Option<&str>, newline: &str) -> String {
    let server = server.map(|url| format!("server = {}\n\n", quoted(url))).unwrap_or_default();
    format!(
        "{MARKER}{}\n{server}{}\ncapabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"1s\"\n",
        entry.mirror,
        host_header(&entry.relay)
    )
    .replace('\n', newline)
}

/// The line after the last root-level key, or the beginning: before every table, after every key that belongs to none.
fn insertion_point(text: &str, root: &Table) -> usize {
    match last_root_value(root) {
        Some(end) => text[end..].find('\n').map_or(text.len(), |newline| end + newline + 1),
        None if text.starts_with(BOM) => BOM.len_utf8(),
        None => 0,
    }
}

fn last_root_value(table: &Table) -> Option<usize> {
    table
        .iter()
        .filter_map(|(_, item)| match item {
            Item::Value(value) => value.span().map(|span| span.end),
            Item::Table(dotted) if dotted.is_dotted() => last_root_value(dotted),
            _ => None,
        })
        .max()
}

/// The whole lines, without the last newline, that hold these bytes.
fn lines_of(text: &str, start: usize, end: usize) -> Option<std::ops::Range<usize>> {
    let first =
        text.get(..start)?.rfind('\n').map_or(if text.starts_with(BOM) { BOM.len_utf8() } else { 0 }, |n| n + 1);
    let last = end + text.get(end..)?.find('\n').unwrap_or(text.len() - end);
    Some(first..last)
}

fn comment_out(lines: &str) -> String {
    lines.split_inclusive('\n').flat_map(|line| [KEPT, line]).collect()
}

/// The index after our block, which begins at line `start`: comment, `server`, header and the table's keys.
fn end_of_block(lines: &[&str], start: usize) -> usize {
    let line = |i: usize| lines.get(i).map_or("", |line| line.trim());
    let is_server = |i: usize| line(i).starts_with("server") && line(i).contains('=');
    let is_header = |i: usize| line(i).starts_with("[host.\"http://");
    let mut i = start;
    if line(i).starts_with(MARKER) {
        i += 1;
        if is_server(i) {
            i += 1;
            if line(i).is_empty() && is_header(i + 1) {
                i += 1;
            }
        }
    }
    if is_header(i) {
        i += 1;
        while i < lines.len() && !line(i).is_empty() && !line(i).starts_with(['#', '[']) {
            i += 1;
        }
    }
    i
}

fn newline_of(text: &str) -> &'static str {
    match text.find('\n') {
        Some(at) if text[..at].ends_with('\r') => "\r\n",
        _ => "\n",
    }
}

fn trailing_newline(text: &str) -> usize {
    match text.strip_suffix('\n') {
        Some(rest) if newline_of(text) == "\r\n" && rest.ends_with('\r') => 2,
        Some(_) => 1,
        None => 0,
    }
}

#[cfg(test)]
mod tests;
