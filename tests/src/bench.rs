//! `make bench`: this cache, nginx, nginx `proxy_cache` and distribution, doing the same work for the same load generator
//! in one run. START HERE; each kind of work is a function of [`rows`].
//!
//! Every process gets a folder of its own below the system's temporary folder, and ends with its measurement.

mod content;
mod load;
mod nginx;
pub mod node;
mod peers;
pub(crate) mod process;
pub mod relay;
mod report;
mod rows;

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{release, toolchain::Toolchain};

use content::Content;
use peers::{Peer, Programs};
use report::Table;

/// What every measurement needs.
struct Bench {
    programs: Programs,
    content: Content,
    upstream: Peer,
    _folder: tempfile::TempDir,
}

type Row = fn(&Bench) -> Result<Table>;

/// By the name that selects it.
const ROWS: &[(&str, Row)] = &[
    ("manifest", rows::hits::manifest),
    ("tag", rows::hits::tag),
    ("blob", rows::hits::blob),
    ("slow", rows::readers::slow),
    ("paused", rows::readers::paused),
    ("herd", rows::misses::herd),
    ("first-byte", rows::misses::first_byte),
    ("image", rows::images::full_speed),
    ("image-throttled", rows::images::throttled),
    ("small", rows::misses::small),
    ("start", rows::start::twenty_thousand),
    ("start-million", rows::start::million),
];

/// Measures the named rows, or all; all of them are written to docs/benchmarks.md. `program` is a build of the cache to be
/// measured in place of a fresh one.
///
/// # Errors
/// Fails when a program cannot be built, started or measured.
pub fn run(names: &[String], program: Option<PathBuf>) -> Result<()> {
    if let Some(unknown) = names.iter().find(|name| ROWS.iter().all(|(known, _)| known != name)) {
        let known: Vec<_> = ROWS.iter().map(|(name, _)| *name).collect();
        bail!("no row is called {unknown}; there are {}", known.join(", "));
    }
    Toolchain::install_nginx()?;
    let (distribution, _) = Toolchain::distribution()?;
    let breakwater = program.map_or_else(release::registry, Ok)?;
    let folder = tempfile::tempdir()?;
    let content = Content::create(folder.path().join("content"))?;
    let upstream = peers::upstream(content.root(), None)?;
    let bench = Bench { programs: Programs { breakwater, distribution }, content, upstream, _folder: folder };
    let mut tables = Vec::new();
    for (name, row) in ROWS {
        if names.is_empty() || names.iter().any(|wanted| wanted == name) {
            let table = row(&bench)?;
            println!("{}", table.text());
            tables.push(table);
        }
    }
    if names.is_empty() { report::write(&tables) } else { Ok(()) }
}
