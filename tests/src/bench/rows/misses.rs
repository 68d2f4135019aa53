//! Misses of single blobs: many clients at once, a slow upstream, many small ones.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::Bench;
use super::super::load::{self, Load};
use super::super::peers::{self, Kind};
use super::super::report::{Table, milliseconds, ratio};

const CACHES: [Kind; 3] = [Kind::Breakwater, Kind::NginxCache, Kind::Distribution];
const MEBIBYTE: u64 = 1 << 20;
/// Longer than any blob here takes to be fetched.
const DOWNLOAD: Duration = Duration::from_secs(120);
const SECOND_CLIENT: Duration = Duration::from_millis(300);

pub(in super::super) fn herd(bench: &Bench) -> Result<Table> {
    let path = bench.content.blob(2, 64 << 20)?;
    let paths = || std::iter::repeat_n(path.clone(), 32);
    let files = bench.programs.start(Kind::NginxFiles, bench.upstream.address, bench.content.root())?;
    load::get(files.address, &path)?;
    let mark = load::run(files.address, 32, paths())?;
    let line = |title: &str, load: &Load, bytes: f64| {
        let wall = load.elapsed.as_secs_f64();
        let values = vec![
            format!("{bytes:.2}x"),
            format!("{wall:.2} s"),
            ratio(wall, mark.elapsed.as_secs_f64()),
            milliseconds(load.first_byte()),
        ];
        (title.to_owned(), values)
    };
    let mut lines = vec![line("nginx, warm", &mark, 0.0)];
    for kind in CACHES {
        let peer = bench.programs.start(kind, bench.upstream.address, bench.content.root())?;
        let before = bench.upstream.sent_bytes()?;
        let load = load::run(peer.address, 32, paths())?;
        let bytes = settled(bench, before)? as f64 / (64.0 * MEBIBYTE as f64);
        lines.push(line(kind.title(), &load, bytes));
    }
    Ok(Table {
        title: "32 clients, one cold 64 MiB blob".to_owned(),
        goal: "upstream bytes 1x, wall at most 1.2x the same warm at nginx, median first byte at most 50 ms",
        columns: vec!["upstream bytes", "wall", "vs nginx warm", "first byte, median"],
        lines,
    })
}

pub(in super::super) fn first_byte(bench: &Bench) -> Result<Table> {
    let upstream = peers::upstream(bench.content.root(), Some(8 * MEBIBYTE))?;
    let path = bench.content.blob(3, 16 << 20)?;
    let mut lines = Vec::new();
    for kind in CACHES {
        let peer = bench.programs.start(kind, upstream.address, bench.content.root())?;
        // Connections and code are warm, the blob is not.
        load::get(peer.address, &bench.content.blob(4, 1024)?)?;
        let before = upstream.sent_bytes()?;
        let (address, again) = (peer.address, path.clone());
        let first = thread::spawn(move || load::get(address, &again));
        thread::sleep(SECOND_CLIENT);
        let second = load::get(address, &path)?;
        let first = first.join().ok().context("the first client ended early")??;
        thread::sleep(SECOND_CLIENT);
        let bytes = (upstream.sent_bytes()? - before) as f64 / (16.0 * MEBIBYTE as f64);
        let times = [first.first_byte(), second.first_byte()].map(milliseconds);
        lines.push((kind.title().to_owned(), times.into_iter().chain([format!("{bytes:.2}x")]).collect()));
    }
    Ok(Table {
        title: "Miss of 16 MiB from an upstream of 8 MiB/s".to_owned(),
        goal: "first byte within 5 ms; the same for a second client 300 ms later, and upstream bytes 1x",
        columns: vec!["first byte", "second client's", "upstream bytes"],
        lines,
    })
}

pub(in super::super) fn small(bench: &Bench) -> Result<Table> {
    const COUNT: u64 = 20_000;
    let paths = (0..COUNT).map(|seed| bench.content.blob(1000 + seed, 1024)).collect::<Result<Vec<_>>>()?;
    let mut measured = Vec::new();
    for kind in CACHES {
        let peer = bench.programs.start(kind, bench.upstream.address, bench.content.root())?;
        let cpu = peer.process.cpu();
        let load = load::run(peer.address, 8, paths.iter().cloned())?;
        let cpu = (peer.process.cpu() - cpu).as_secs_f64() * 1e6 / COUNT as f64;
        measured.push((kind, load, cpu));
    }
    let mark = measured.iter().find(|(kind, ..)| *kind == Kind::NginxCache).map(|(_, load, _)| load.rate());
    let mark = mark.context("nginx was not measured")?;
    let line = |(kind, load, cpu): &(Kind, Load, f64)| {
        let (rate, p99) = (load.rate(), milliseconds(load.whole_at(0.99)));
        (kind.title().to_owned(), vec![format!("{rate:.0}"), ratio(rate, mark), format!("{cpu:.0} µs"), p99])
    };
    Ok(Table {
        title: "20,000 cold blobs of 1 KiB, 8 workers".to_owned(),
        goal: "at least 0.77x nginx proxy_cache's rate: 8,000 per second where that does 10,400",
        columns: vec!["blobs/s", "vs nginx proxy_cache", "CPU per blob", "p99"],
        lines: measured.iter().map(line).collect(),
    })
}

/// Upstream bytes since `before`, once a download that its clients have left is over as well.
fn settled(bench: &Bench, before: u64) -> Result<u64> {
    let mut last = bench.upstream.sent_bytes()?;
    let began = Instant::now();
    loop {
        ensure!(began.elapsed() < DOWNLOAD, "a download that nobody waits for is still under way after {DOWNLOAD:?}");
        thread::sleep(Duration::from_millis(500));
        let now = bench.upstream.sent_bytes()?;
        if now == last {
            return Ok(now - before);
        }
        last = now;
    }
}
