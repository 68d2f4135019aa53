//! Hits: what every server has in its cache already.

use std::time::Duration;

use anyhow::{Context, Result};

use super::super::Bench;
use super::super::content::tag_path;
use super::super::load::{self, Load};
use super::super::peers::{Kind, Peer};
use super::super::report::{Table, milliseconds, ratio};

/// Servers take turns, so that a busy moment of the machine meets all of them.
const TURNS: usize = 3;
const TURN: Duration = Duration::from_secs(2);
const GIBIBYTE: f64 = 1073741824.0;

/// What a server did in all its turns.
struct Work {
    title: &'static str,
    turns: Vec<Load>,
    cpu: Duration,
}

pub(in super::super) fn manifest(bench: &Bench) -> Result<Table> {
    let path = bench.content.manifest()?;
    requests(bench, "Manifest hit by digest, 32 connections", &path)
}

pub(in super::super) fn tag(bench: &Bench) -> Result<Table> {
    bench.content.manifest()?;
    requests(bench, "Manifest hit by tag within its TTL, 32 connections", &tag_path())
}

fn requests(bench: &Bench, title: &str, path: &str) -> Result<Table> {
    let kinds = [Kind::NginxFiles, Kind::Breakwater, Kind::NginxCache, Kind::Distribution];
    let done = take_turns(bench, &kinds, path, 32)?;
    let per_request = |work: &Work| work.cpu.as_secs_f64() * 1e6 / work.count();
    let (rate, cost) = (done[0].best_rate(), per_request(&done[0]));
    let line = |work: &Work| {
        let p99 = work.turns.iter().map(|turn| turn.whole_at(0.99)).min().unwrap_or_default();
        let values = vec![
            format!("{:.0}", work.best_rate()),
            ratio(work.best_rate(), rate),
            milliseconds(p99),
            format!("{:.1} µs", per_request(work)),
            ratio(per_request(work), cost),
        ];
        (work.title.to_owned(), values)
    };
    Ok(Table {
        title: title.to_owned(),
        goal: "at least 0.9x nginx's requests/s, p99 at most 2x, CPU per request at most 1.2x",
        columns: vec!["requests/s", "vs nginx", "p99", "CPU per request", "vs nginx"],
        lines: done.iter().map(line).collect(),
    })
}

pub(in super::super) fn blob(bench: &Bench) -> Result<Table> {
    let path = bench.content.blob(1, 256 << 20)?;
    let kinds = [Kind::NginxFiles, Kind::NginxFilesRead, Kind::Breakwater, Kind::NginxCache, Kind::Distribution];
    let done = take_turns(bench, &kinds, &path, 8)?;
    let speed = |work: &Work| {
        let speeds = work.turns.iter().map(|turn| turn.bytes as f64 / GIBIBYTE / turn.elapsed.as_secs_f64());
        speeds.fold(0.0, f64::max)
    };
    let per_gibibyte = |work: &Work| {
        let bytes: u64 = work.turns.iter().map(|turn| turn.bytes).sum();
        work.cpu.as_secs_f64() / (bytes as f64 / GIBIBYTE)
    };
    let (mark, cost) = (speed(&done[0]), per_gibibyte(&done[0]));
    let line = |work: &Work| {
        let values = vec![
            format!("{:.2}", speed(work)),
            ratio(speed(work), mark),
            format!("{:.0} ms", per_gibibyte(work) * 1e3),
            ratio(per_gibibyte(work), cost),
        ];
        (work.title.to_owned(), values)
    };
    Ok(Table {
        title: "256 MiB blob hit, 8 connections".to_owned(),
        goal: "at least 1.2x nginx's GiB/s, CPU per GiB at most 1.0x",
        columns: vec!["GiB/s", "vs nginx", "CPU per GiB", "vs nginx"],
        lines: done.iter().map(line).collect(),
    })
}

fn take_turns(bench: &Bench, kinds: &[Kind], path: &str, connections: usize) -> Result<Vec<Work>> {
    let start = |kind: &Kind| bench.programs.start(*kind, bench.upstream.address, bench.content.root());
    let peers: Vec<Peer> = kinds.iter().map(start).collect::<Result<_>>()?;
    for peer in &peers {
        load::get(peer.address, path).with_context(|| format!("fill {}", peer.kind.title()))?;
    }
    // What a miss leaves to be done in the background is not the hit's cost.
    std::thread::sleep(Duration::from_secs(1));
    let mut done: Vec<Work> =
        kinds.iter().map(|kind| Work { title: kind.title(), turns: Vec::new(), cpu: Duration::ZERO }).collect();
    for _ in 0..TURNS {
        for (peer, work) in peers.iter().zip(&mut done) {
            let before = peer.process.cpu();
            work.turns.push(load::run(peer.address, connections, load::repeat(path, TURN))?);
            work.cpu += peer.process.cpu() - before;
        }
    }
    Ok(done)
}

impl Work {
    fn count(&self) -> f64 {
        self.turns.iter().map(|turn| turn.samples.len()).sum::<usize>() as f64
    }

    /// Of the turn that was disturbed least.
    fn best_rate(&self) -> f64 {
        self.turns.iter().map(Load::rate).fold(0.0, f64::max)
    }
}
