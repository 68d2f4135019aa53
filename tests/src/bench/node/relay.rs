//! What the relay costs: idle, under load, and with readers that take their time.

use std::io::Read;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use super::super::load::{self, Load};
use super::Figure;
use super::scene::Scene;
use crate::release::NodePath;

const GIBIBYTE: f64 = 1073741824.0;
const MEBIBYTE: f64 = 1048576.0;
const BLOB: usize = 256 << 20;
/// Beyond what the relay always looks at, ...
const LAYER: usize = 5 << 20;
/// ... and more than it remembers: a runtime that asks again for what it was just given is looked at more closely.
const LAYERS: u64 = 320;
const IDLE: Duration = Duration::from_secs(30);
/// Relay and cache take turns, so that a busy moment of the machine meets both.
const TURNS: usize = 4;
const TURN: Duration = Duration::from_secs(4);
const CONNECTIONS: usize = 4;
const STREAMS: usize = 64;
const TICK: Duration = Duration::from_millis(50);
/// 1 MiB/s.
const SLOWLY: usize = (1 << 20) / 20;

pub(super) fn figures(programs: &NodePath) -> Result<Vec<Figure>> {
    let scene = Scene::set(programs)?;
    let path = scene.warm_blob(1, BLOB)?;
    let layers = (2..2 + LAYERS).map(|seed| scene.warm_blob(seed, LAYER)).collect::<Result<Vec<_>>>()?;
    let mut figures = idle(&scene);
    figures.extend(throughput(&scene, &layers)?);
    let fast =
        most_memory(&scene, || load::run(scene.relay, STREAMS, load::repeat(&scene.relayed(&path), TURN)).map(drop))?;
    figures.push(Figure::new("relay: memory with 64 streams, as fast as they come", fast, "MiB", 24.0));
    for (what, per_tick) in
        [("relay: memory with 64 streams at 1 MiB/s", SLOWLY), ("relay: memory with 64 streams whose readers pause", 0)]
    {
        let most = most_memory(&scene, || read_slowly(&scene, &scene.relayed(&path), per_tick))?;
        figures.push(Figure::new(what, most, "MiB", 24.0));
    }
    Ok(figures)
}

fn idle(scene: &Scene) -> Vec<Figure> {
    let before = scene.agent.cpu();
    thread::sleep(IDLE);
    let share = (scene.agent.cpu() - before).as_secs_f64() / IDLE.as_secs_f64() * 100.0;
    vec![
        Figure::new("idle: memory", scene.agent.memory() as f64 / MEBIBYTE, "MiB", 12.0),
        Figure::new("idle: processor time, of one processor", share, "%", 0.5),
    ]
}

fn throughput(scene: &Scene, layers: &[String]) -> Result<Vec<Figure>> {
    let (mut direct, mut relay, mut cpu, mut bytes) = (0.0_f64, 0.0_f64, Duration::ZERO, 0);
    let (mut plain, mut relayed) =
        (layers.iter().cloned().cycle(), layers.iter().map(|path| scene.relayed(path)).cycle());
    let speed = |load: &Load| load.bytes as f64 / GIBIBYTE / load.elapsed.as_secs_f64();
    for _ in 0..TURNS {
        direct = direct.max(speed(&load::run(scene.cache, CONNECTIONS, load::lasting(TURN, &mut plain))?));
        let before = scene.agent.cpu();
        let load = load::run(scene.relay, CONNECTIONS, load::lasting(TURN, &mut relayed))?;
        cpu += scene.agent.cpu() - before;
        bytes += load.bytes;
        relay = relay.max(speed(&load));
    }
    let per_gibibyte = cpu.as_secs_f64() / (bytes as f64 / GIBIBYTE);
    Ok(vec![
        Figure::new("relay: processor time per GiB, TLS included", per_gibibyte, "s", 0.6),
        Figure::new("relay: throughput", relay, "GiB/s", None),
        Figure::new("the cache without TLS and without a relay: throughput", direct, "GiB/s", None),
        Figure::new("relay: throughput, compared with that", relay / direct, "x", None),
    ])
}

/// The most memory that the agent holds meanwhile.
fn most_memory(scene: &Scene, work: impl FnOnce() -> Result<()> + Send) -> Result<f64> {
    let most = thread::scope(|scope| {
        let work = scope.spawn(work);
        let mut most = 0;
        while !work.is_finished() {
            most = most.max(scene.agent.memory());
            thread::sleep(TICK);
        }
        work.join().ok().context("the load ended early")?.map(|()| most)
    })?;
    Ok(most as f64 / MEBIBYTE)
}

/// Readers that take so much at a time, for a while.
fn read_slowly(scene: &Scene, path: &str, per_tick: usize) -> Result<()> {
    let readers = load::open_readers(scene.relay, path, STREAMS)?;
    let (began, mut buffer) = (Instant::now(), vec![0; per_tick]);
    while began.elapsed() < TURN {
        for mut reader in &readers {
            // Nothing there yet, or less than its share: it is slow.
            let _ = reader.read(&mut buffer);
        }
        thread::sleep(TICK);
    }
    Ok(())
}
