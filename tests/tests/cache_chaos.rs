//! The published matrix of faults, run against the cache: every cell must pass.

use breakwater_tests::chaos::{self, MirrorSpec, Row, matrix};

const AT_ONCE: usize = 8;

async fn all_pass(rows: Vec<Row>) {
    let table = chaos::run(&MirrorSpec::ours(), rows, AT_ONCE, |_| ()).await;
    let failures = table.failures();
    assert!(failures.is_empty(), "{}\n{}", table.summary(), failures.join("\n"));
}

#[tokio::test]
async fn every_cell_passes() {
    all_pass(matrix::rows().into_iter().filter(|row| !row.needs_root()).collect()).await;
}

#[cfg(feature = "cluster")]
#[tokio::test]
async fn every_cell_passes_where_volumes_and_name_servers_fail() {
    all_pass(matrix::rows().into_iter().filter(Row::needs_root).collect()).await;
}
