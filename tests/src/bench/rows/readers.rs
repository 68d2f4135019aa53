//! Readers that take their time: what they hold of a server's memory, and whether anybody beside them notices.

use std::io::Read;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::super::Bench;
use super::super::load;
use super::super::peers::{Kind, Peer};
use super::super::report::{Table, mebibytes, milliseconds};

const KINDS: [Kind; 4] = [Kind::NginxFiles, Kind::Breakwater, Kind::NginxCache, Kind::Distribution];
const TICK: Duration = Duration::from_millis(50);

pub(in super::super) fn slow(bench: &Bench) -> Result<Table> {
    let path = bench.content.blob(1, 256 << 20)?;
    let mut lines = Vec::new();
    for peer in warm(bench, &path)? {
        let readers: Vec<TcpStream> = load::open_readers(peer.address, &path, 256)?;
        let (mut most, cpu) = (0, peer.process.cpu());
        let began = Instant::now();
        let mut buffer = vec![0; (1 << 20) / 20];
        for tick in 1..=100 {
            for mut reader in &readers {
                // Nothing there yet, or less than its share: it is slow.
                let _ = reader.read(&mut buffer);
            }
            most = most.max(peer.process.memory());
            std::thread::sleep((began + TICK * tick).saturating_duration_since(Instant::now()));
        }
        let cpu = peer.process.cpu() - cpu;
        let share = cpu.as_secs_f64() / began.elapsed().as_secs_f64() * 100.0;
        lines.push((peer.kind.title().to_owned(), vec![mebibytes(most), format!("{share:.0} %")]));
    }
    Ok(Table {
        title: "256 readers at 1 MiB/s of a 256 MiB blob".to_owned(),
        goal: "at most 40 MiB of resident memory",
        columns: vec!["resident memory", "CPU"],
        lines,
    })
}

pub(in super::super) fn paused(bench: &Bench) -> Result<Table> {
    let path = bench.content.blob(1, 256 << 20)?;
    let small = bench.content.manifest()?;
    let mut lines = Vec::new();
    for peer in warm(bench, &path)? {
        load::get(peer.address, &small)?;
        let readers = load::open_readers(peer.address, &path, 1000)?;
        std::thread::sleep(Duration::from_secs(3));
        let memory = peer.process.memory();
        let hits = load::run(peer.address, 1, std::iter::repeat_n(small.clone(), 500))?;
        drop(readers);
        let times = [hits.whole_at(0.5), hits.whole_at(0.99)].map(milliseconds);
        lines.push((peer.kind.title().to_owned(), [mebibytes(memory)].into_iter().chain(times).collect()));
    }
    Ok(Table {
        title: "1000 paused readers of a 256 MiB blob, and small hits beside them".to_owned(),
        goal: "at most 64 MiB of resident memory, a small hit in less than 1 ms",
        columns: vec!["resident memory", "hit, median", "hit, p99"],
        lines,
    })
}

/// One server after the other, with the blob in its cache.
fn warm(bench: &Bench, path: &str) -> Result<Vec<Peer>> {
    let start = |kind: Kind| {
        let peer = bench.programs.start(kind, bench.upstream.address, bench.content.root())?;
        load::get(peer.address, path)?;
        Ok(peer)
    };
    let peers = KINDS.into_iter().map(start).collect();
    std::thread::sleep(Duration::from_secs(1));
    peers
}
