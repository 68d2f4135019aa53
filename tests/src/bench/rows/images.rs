//! A cold image: eight layers at once, as a whole node pulls them.

use anyhow::Result;

use super::super::Bench;
use super::super::load;
use super::super::peers::{self, Kind, Peer};
use super::super::report::{Table, ratio};

const LAYERS: u64 = 8;
const LAYER: usize = 16 << 20;
const TURNS: u64 = 3;
/// Of all eight connections together 128 MiB/s.
const LIMIT: u64 = 16 << 20;

pub(in super::super) fn full_speed(bench: &Bench) -> Result<Table> {
    let lines =
        pull(bench, &bench.upstream, &[Kind::Relay, Kind::Breakwater, Kind::NginxCache, Kind::Distribution], 100)?;
    Ok(table("Cold image of 8 x 16 MiB at full speed", "at most 1.15x the bare relay", "vs bare relay", lines))
}

pub(in super::super) fn throttled(bench: &Bench) -> Result<Table> {
    let upstream = peers::upstream(bench.content.root(), Some(LIMIT))?;
    let lines =
        pull(bench, &upstream, &[Kind::NginxFiles, Kind::Breakwater, Kind::NginxCache, Kind::Distribution], 200)?;
    Ok(table("Cold image of 8 x 16 MiB over 128 MiB/s", "at most 1.02x without a cache", "vs direct", lines))
}

/// The best of some turns of each, each with layers that were never pulled before. nginx's files stand for upstream itself.
fn pull(bench: &Bench, upstream: &Peer, kinds: &[Kind], seed: u64) -> Result<Vec<(Kind, f64, f64)>> {
    let mut best: Vec<_> = kinds.iter().map(|kind| (*kind, f64::MAX, f64::MAX)).collect();
    let layers = |turn: u64| -> Result<Vec<String>> {
        (0..LAYERS).map(|layer| bench.content.blob(seed + turn * LAYERS + layer, LAYER)).collect()
    };
    for turn in 0..TURNS {
        let paths = layers(turn)?;
        for (kind, wall, cpu) in &mut best {
            let peer = bench.programs.start(*kind, upstream.address, bench.content.root())?;
            let address = if *kind == Kind::NginxFiles { upstream.address } else { peer.address };
            let before = peer.process.cpu();
            let load = load::run(address, paths.len(), paths.clone())?;
            *wall = wall.min(load.elapsed.as_secs_f64());
            *cpu = cpu.min((peer.process.cpu() - before).as_secs_f64());
        }
    }
    Ok(best)
}

fn table(title: &str, goal: &'static str, mark: &'static str, best: Vec<(Kind, f64, f64)>) -> Table {
    let limit = best[0].1;
    let line = |(kind, wall, cpu): (Kind, f64, f64)| {
        let direct = kind == Kind::NginxFiles;
        let title = if direct { "direct" } else { kind.title() };
        let cpu = if direct { "-".to_owned() } else { format!("{:.0} ms", cpu * 1e3) };
        (title.to_owned(), vec![format!("{wall:.3} s"), ratio(wall, limit), cpu])
    };
    Table {
        title: title.to_owned(),
        goal,
        columns: vec!["wall", mark, "CPU"],
        lines: best.into_iter().map(line).collect(),
    }
}
