//! The published matrix of faults, run against the cache: every cell must pass.

use breakwater_tests::chaos::{self, MirrorSpec, Row, matrix};

/// They share two cores with whatever else runs.
const AT_ONCE: usize = 4;
/// Making a volume stops the clocks of the others.
const VOLUMES_AT_ONCE: usize = 3;

async fn all_pass(rows: Vec<Row>, at_once: usize) {
    let table = chaos::run(&MirrorSpec::ours(), rows, at_once, |_| ()).await;
    let failures = table.failures();
    assert!(failures.is_empty(), "{}\n{}", table.summary(), failures.join("\n"));
}

#[tokio::test]
async fn every_cell_passes() {
    all_pass(matrix::rows().into_iter().filter(|row| !row.needs_root()).collect(), AT_ONCE).await;
}

#[cfg(feature = "cluster")]
#[tokio::test]
async fn every_cell_passes_where_volumes_and_name_servers_fail() {
    all_pass(matrix::rows().into_iter().filter(Row::needs_root).collect(), VOLUMES_AT_ONCE).await;
}
