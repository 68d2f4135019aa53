//! From the start of a process to its first hit, with a full cache on disk.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aws_lc_rs::digest::{SHA256, digest};

use super::super::Bench;
use super::super::content::tag_path;
use super::super::load;
use super::super::peers::Kind;
use super::super::report::{Table, milliseconds};

const TURNS: usize = 5;
/// A disk that makes files slowly gets fewer.
const FILL_LIMIT: Duration = Duration::from_secs(150);
const START_LIMIT: Duration = Duration::from_secs(30);

pub(in super::super) fn twenty_thousand(bench: &Bench) -> Result<Table> {
    let mut lines = Vec::new();
    for kind in [Kind::Breakwater, Kind::NginxCache, Kind::Distribution] {
        lines.push((kind.title().to_owned(), vec![milliseconds(starts(bench, kind, 20_000)?.0)]));
    }
    Ok(table("Start to first hit, 20,000 blobs on disk", lines))
}

pub(in super::super) fn million(bench: &Bench) -> Result<Table> {
    let (time, count) = starts(bench, Kind::Breakwater, 1_000_000)?;
    Ok(table(
        &format!("Start to first hit, {count} blobs on disk"),
        vec![("breakwater".to_owned(), vec![milliseconds(time)])],
    ))
}

fn table(title: &str, lines: Vec<(String, Vec<String>)>) -> Table {
    Table { title: title.to_owned(), goal: "at most 20 ms", columns: vec!["exec to first hit"], lines }
}

/// The median of some starts over `count` blobs, and how many there were time for.
fn starts(bench: &Bench, kind: Kind, count: u64) -> Result<(Duration, u64)> {
    let path = bench.content.manifest()?;
    let folder = tempfile::tempdir().context("make a folder for a cache")?;
    let data = folder.path().join("data");
    let (mut times, mut filled) = (Vec::new(), 0);
    for turn in 0..=TURNS {
        let own = tempfile::tempdir_in(folder.path()).context("make a folder for a cache")?;
        let began = Instant::now();
        let mut peer = bench.programs.launch(kind, bench.upstream.address, bench.content.root(), own, &data)?;
        while !load::is_served(peer.address, &path) {
            peer.process.still_runs()?;
            ensure!(began.elapsed() < START_LIMIT, "{} does not start", kind.title());
            std::thread::sleep(Duration::from_micros(200));
        }
        times.push(began.elapsed());
        if turn == 0 {
            load::get(peer.address, &tag_path())?;
            drop(peer);
            filled = fill(kind, &data, count)?;
            times.clear();
        }
    }
    times.sort_unstable();
    Ok((times[TURNS / 2], filled))
}

/// Puts blobs where the cache keeps them, as many as there is time for.
fn fill(kind: Kind, data: &Path, count: u64) -> Result<u64> {
    let end = Instant::now() + FILL_LIMIT;
    for number in 0..count {
        if Instant::now() > end {
            return Ok(number);
        }
        let bytes = number.to_le_bytes();
        let hex = hex::encode(digest(&SHA256, &bytes));
        let path = match kind {
            Kind::Distribution => data.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2])),
            Kind::NginxCache => data.join(format!("{}/{}/{}", &hex[31..32], &hex[29..31], &hex[..32])),
            _ => data.join(format!("blobs/sha256/{}/{hex}", &hex[..2])),
        };
        if let Err(error) = fs::write(&path, bytes) {
            ensure!(error.kind() == std::io::ErrorKind::NotFound, "write {}: {error}", path.display());
            fs::create_dir_all(path.parent().context("a file without a folder")?)?;
            fs::write(&path, bytes)?;
        }
    }
    Ok(count)
}
