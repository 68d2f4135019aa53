//! The columns of the matrix: what is asked of a mirror before, during and after a fault, in this order.

use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::Result;
use futures::future::join_all;
use tokio::task::JoinHandle;

use super::judge::{Expected, Must, Verdict};
use super::matrix::{Injection, Row};
use super::mirror::MirrorSpec;
use super::scene::{COLD, Scene, WARM};
use crate::cache::client::{Request, Seen};
use crate::upstream::{Blob, Cursor, Fault, Image, On};

/// The columns' names.
pub const COLUMNS: [&str; 13] = [
    "warm tag",
    "digest",
    "blob",
    "HEAD",
    "range",
    "miss tag",
    "miss blob",
    "miss HEAD",
    "50 clients",
    "in flight",
    "restart",
    "after",
    "on disk",
];

/// No answer takes longer than this without being called a hang; a body of a miss may.
const LIMIT: Duration = Duration::from_secs(10);
const BODY_LIMIT: Duration = Duration::from_secs(25);
/// What needs nobody else: at once, and the machine's noise.
const WARM_SOON: Duration = Duration::from_secs(1);
/// Upstream may be asked first.
const TAG_SOON: Duration = Duration::from_millis(2500);
/// A body that upstream dropped is over by then, one way or the other.
const FLIGHT_SOON: Duration = Duration::from_secs(18);
/// From the start of the process to its first right answer.
const READY_SOON: Duration = Duration::from_millis(2500);
/// From the end of the fault to the first pull of something new.
const BACK_SOON: Duration = Duration::from_secs(4);
const BACK_LIMIT: Duration = Duration::from_secs(25);
const CROWD: usize = 50;

/// One cell.
#[derive(Clone, Copy, Debug)]
pub struct Cell {
    /// What the answer is worth.
    pub verdict: Verdict,
    /// How long it took.
    pub took: Duration,
    /// Requests for the content that upstream saw meanwhile.
    pub requests: usize,
    /// Bytes of it that upstream sent.
    pub bytes: u64,
}

/// A row's cells in the order of [`COLUMNS`]; `None` where a cell does not apply.
pub async fn play(row: &Row, spec: &MirrorSpec) -> Result<Vec<Option<Cell>>> {
    let mut scene = Scene::set(row, spec).await?;
    let flight = depart(&scene, row).await;
    let struck = Instant::now();
    scene.begin(row).await?;
    if row.injections.iter().any(|injection| matches!(injection, Injection::Kill)) {
        await_port(&scene).await;
    }
    let tag = warm_tag(&scene, row).await;
    let mut cells = vec![Some(tag)];
    cells.extend(warm(&scene, row).await.map(Some));
    cells.extend(misses(&scene, row).await.map(Some));
    cells.push(Some(crowd(&scene, row).await));
    cells.push(Some(land(&scene, row, flight, struck).await));
    cells.push(match Scene::can_restart(row) {
        true => Some(restart(&mut scene, row).await?),
        false => None,
    });
    scene.end(row).await?;
    cells.push(Some(after(&scene).await));
    let is_honest = scene.lies_on_disk().is_empty();
    let verdict = if is_honest { Verdict::Ok } else { Verdict::Wrong };
    cells.push(Some(Cell { verdict, took: Duration::ZERO, requests: 0, bytes: 0 }));
    Ok(cells)
}

/// A download that is half way when the fault begins: upstream's body has stopped there, and stays so.
async fn depart(scene: &Scene, row: &Row) -> (Cursor, JoinHandle<Seen>) {
    let layer = &scene.cold[4].layers[0];
    let half = layer.len() / 2;
    let on = if row.redirects { On::Cdn } else { On::Path(layer.hex().to_owned()) };
    scene.upstream.fault_times(1, on, Fault::StallAt(half)).await;
    let mark = scene.upstream.mark();
    let reading = tokio::spawn(scene.get(&layer.blob_path(COLD[4])).observe(BODY_LIMIT + LIMIT));
    let deadline = Instant::now() + LIMIT;
    while scene.upstream.bytes_sent(&layer.digest) < half && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // What was sent is given a moment to arrive.
    tokio::time::sleep(Duration::from_millis(50)).await;
    (mark, reading)
}

async fn land(scene: &Scene, row: &Row, (mark, reading): (Cursor, JoinHandle<Seen>), struck: Instant) -> Cell {
    let left = BODY_LIMIT.saturating_sub(struck.elapsed());
    let hung = Seen { hung: true, status: Some(200), ..Seen::default() };
    let mut seen = match tokio::time::timeout(left, reading).await {
        Ok(Ok(seen)) => seen,
        _ => hung,
    };
    // From the beginning of the fault on, not from that of the request.
    seen.took = if seen.hung { BODY_LIMIT } else { seen.took };
    let layer = &scene.cold[4].layers[0];
    let is_local = row.injections.iter().any(|injection| matches!(injection, Injection::Kill | Injection::Volume(_)));
    let must = if is_local { Must::ServeOrFail } else { row.miss };
    let soon = row.soon.max(FLIGHT_SOON);
    let mut verdict = Expected { must, ..missed(row, layer, soon) }.judge(&seen);
    if is_local && seen.status.is_none() && !seen.hung {
        // Killed before the header: its client saw the connection end.
        verdict = Verdict::Cut;
    }
    cell(scene, mark, layer, verdict, seen.took)
}

fn expected(content: &Blob, must: Must, soon: Duration) -> Expected<'_> {
    Expected { truth: &content.bytes, must, soon, is_head: false, range: None, is_forged: false }
}

fn missed<'a>(row: &Row, content: &'a Blob, soon: Duration) -> Expected<'a> {
    let is_forged =
        row.injections.iter().any(|injection| matches!(injection, Injection::Upstream(_, Fault::WrongBytes)));
    Expected { is_forged, ..expected(content, row.miss, soon) }
}

/// With what upstream saw of it since the mark.
fn cell(scene: &Scene, mark: Cursor, content: &Blob, verdict: Verdict, took: Duration) -> Cell {
    let mut requests = scene.upstream.requests_since(mark);
    requests.retain(|request| request.path.contains(content.hex()));
    let bytes = requests.iter().map(|request| request.bytes_sent).sum();
    Cell { verdict, took, requests: requests.len(), bytes }
}

async fn ask(scene: &Scene, request: Request, limit: Duration, expected: &Expected<'_>, content: &Blob) -> Cell {
    let mark = scene.upstream.mark();
    let seen = request.observe(limit).await;
    cell(scene, mark, content, expected.judge(&seen), seen.took)
}

fn worst(cells: impl IntoIterator<Item = Cell>) -> Cell {
    let none = Cell { verdict: Verdict::Ok, took: Duration::ZERO, requests: 0, bytes: 0 };
    cells.into_iter().fold(none, |sum, cell| Cell {
        verdict: sum.verdict.max(cell.verdict),
        took: sum.took.max(cell.took),
        requests: sum.requests + cell.requests,
        bytes: sum.bytes + cell.bytes,
    })
}

/// Twice: the first may have to find out, the second should know.
async fn warm_tag(scene: &Scene, row: &Row) -> Cell {
    let mark = scene.upstream.mark();
    let has_moved = row.injections.iter().any(|injection| matches!(injection, Injection::TagMoves));
    let image = if has_moved { &scene.moved } else { &scene.warm };
    let path = format!("/v2/{WARM}/manifests/v1");
    let expected = expected(&image.manifest, row.tag, TAG_SOON);
    let mut cells = Vec::new();
    for _ in 0..2 {
        cells.push(ask(scene, scene.get(&path), LIMIT, &expected, &image.manifest).await);
    }
    let mut requests = scene.upstream.requests_since(mark);
    requests.retain(|request| request.path.starts_with(&format!("/v2/{WARM}/")));
    let bytes = requests.iter().map(|request| request.bytes_sent).sum();
    Cell { requests: requests.len(), bytes, ..worst(cells) }
}

async fn warm(scene: &Scene, row: &Row) -> [Cell; 4] {
    let (manifest, layer) = (&scene.warm.manifest, &scene.warm.layers[0]);
    let path = layer.blob_path(WARM);
    let right = expected(layer, row.warm, WARM_SOON);
    let of_manifest = expected(manifest, row.warm, WARM_SOON);
    let by_digest = ask(scene, scene.get(&manifest.manifest_path(WARM)), LIMIT, &of_manifest, manifest).await;
    let blob = ask(scene, scene.get(&path), LIMIT, &right, layer).await;
    let expected = Expected { is_head: true, ..right.clone() };
    let head = ask(scene, scene.head(&path), LIMIT, &expected, layer).await;
    let expected = Expected { range: Some(300_000..400_000), ..right };
    let range = ask(scene, scene.get(&path).range("300000-399999"), LIMIT, &expected, layer).await;
    [by_digest, blob, head, range]
}

async fn misses(scene: &Scene, row: &Row) -> [Cell; 3] {
    let layer = |index: usize| &scene.cold[index].layers[0];
    let manifest = &scene.cold[0].manifest;
    let tag = format!("/v2/{}/manifests/v1", COLD[0]);
    let of_tag = expected(manifest, row.miss, row.soon);
    let of_blob = missed(row, layer(1), row.soon);
    let of_head = Expected { is_head: true, ..expected(layer(2), row.miss, row.soon) };
    let cells = tokio::join!(
        ask(scene, scene.get(&tag), LIMIT, &of_tag, manifest),
        ask(scene, scene.get(&layer(1).blob_path(COLD[1])), BODY_LIMIT, &of_blob, layer(1)),
        ask(scene, scene.head(&layer(2).blob_path(COLD[2])), LIMIT, &of_head, layer(2)),
    );
    cells.into()
}

/// Many clients at once for one blob that is not there.
async fn crowd(scene: &Scene, row: &Row) -> Cell {
    let layer = &scene.cold[3].layers[0];
    let expected = missed(row, layer, row.soon + WARM_SOON);
    let mark = scene.upstream.mark();
    let path = layer.blob_path(COLD[3]);
    let all = join_all((0..CROWD).map(|_| scene.get(&path).observe(BODY_LIMIT))).await;
    let verdict = all.iter().map(|seen| expected.judge(seen)).max().unwrap_or(Verdict::Ok);
    let took = all.iter().map(|seen| seen.took).max().unwrap_or_default();
    let cell = cell(scene, mark, layer, verdict, took);
    let is_storm = cell.requests > CROWD / 2 || cell.bytes > layer.len() * 5 / 2;
    Cell { verdict: if is_storm { verdict.max(Verdict::Storm) } else { verdict }, ..cell }
}

/// Killed and started while the fault lasts: the time to the first right answer, and whether the others are right too.
async fn restart(scene: &mut Scene, row: &Row) -> Result<Cell> {
    scene.mirror.kill();
    let began = Instant::now();
    scene.mirror.spawn()?;
    let manifest = &scene.warm.manifest;
    let path = manifest.manifest_path(WARM);
    let expected = expected(manifest, row.warm, LIMIT);
    let mark = scene.upstream.mark();
    let mut first = None;
    while first.is_none() && began.elapsed() < LIMIT && !scene.mirror.has_ended() {
        let seen = scene.get(&path).observe(LIMIT).await;
        first = expected.judge(&seen).passes().then_some(());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let verdict = match first {
        Some(()) if began.elapsed() <= READY_SOON => Verdict::Ok,
        Some(()) => Verdict::Slow,
        None if scene.mirror.has_ended() && row.warm == Must::ServeOrFail => Verdict::Refused,
        None if scene.mirror.has_ended() => Verdict::Error,
        None => Verdict::Hang,
    };
    let ready = cell(scene, mark, manifest, verdict, began.elapsed());
    if !verdict.passes() || scene.mirror.has_ended() {
        return Ok(ready);
    }
    let tag = warm_tag(scene, row).await;
    let others = worst(warm(scene, row).await);
    let verdict = verdict.max(tag.verdict).max(others.verdict);
    Ok(Cell { verdict, requests: ready.requests + others.requests, bytes: ready.bytes + others.bytes, ..ready })
}

/// The first pull of a new image after the fault; it may have to be repeated.
async fn after(scene: &Scene) -> Cell {
    let image: &Image = &scene.cold[5];
    let layer = &image.layers[0];
    let tag = format!("/v2/{}/manifests/v1", COLD[5]);
    let began = Instant::now();
    let mark = scene.upstream.mark();
    let right = async |path: &str, content: &Blob| {
        let seen = scene.get(path).observe(LIMIT).await;
        expected(content, Must::Serve, LIMIT).judge(&seen)
    };
    let wrong = std::cell::Cell::new(false);
    let pulled = until(BACK_LIMIT, async || {
        let verdicts = [right(&tag, &image.manifest).await, right(&layer.blob_path(COLD[5]), layer).await];
        wrong.set(wrong.get() || verdicts.contains(&Verdict::Wrong));
        verdicts.iter().all(|verdict| verdict.passes()).then_some(())
    });
    let verdict = match pulled.await {
        _ if wrong.get() => Verdict::Wrong,
        None => Verdict::Hang,
        Some(()) if began.elapsed() > BACK_SOON => Verdict::Slow,
        Some(()) => Verdict::Ok,
    };
    cell(scene, mark, layer, verdict, began.elapsed())
}

async fn await_port(scene: &Scene) {
    until(LIMIT, async || scene.get("/v2/").observe(LIMIT).await.status.map(drop)).await;
}

/// Tries until something comes of it.
async fn until<T, F: Future<Output = Option<T>>>(limit: Duration, mut attempt: impl FnMut() -> F) -> Option<T> {
    let attempts = async {
        loop {
            if let Some(value) = attempt().await {
                return value;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(limit, attempts).await.ok()
}
