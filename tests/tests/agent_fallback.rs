//! Pulls under the faults that cost most, on two versions of containerd, within the bounds of docs/fallback.md. `make fallback`
//! plays all of them.
#![cfg(feature = "cluster")]

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use breakwater_tests::fallback::{self, Fault, Replicas, report};
use breakwater_tests::toolchain::{Runtime, Toolchain};

/// What other tests beside this one may add to a pull.
const NOISE: Duration = Duration::from_millis(1500);

/// Plays faults until they are as promised, each at most twice: the machine may have been busy.
async fn hold(series: &'static str, faults: &[(Fault, Replicas)]) -> Result<()> {
    Toolchain::ready().await?;
    let runtime = tokio::task::spawn_blocking(move || Runtime::of(series)).await.context("build containerd")??;
    let mut left = faults.to_vec();
    for is_last in [false, true] {
        let cells = fallback::run(&runtime, &left, |cell| println!("{}", report::line(&runtime, cell))).await?;
        let missed: Vec<_> = cells.iter().filter_map(|cell| Some((cell, cell.complaint(NOISE)?))).collect();
        ensure!(!is_last || missed.is_empty(), "{missed:#?}");
        left = missed.iter().map(|(cell, _)| (cell.fault, cell.replicas)).collect();
        if left.is_empty() {
            break;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cache_or_agent_costs_a_new_containerd_no_more_than_promised() -> Result<()> {
    let faults = [
        (Fault::Refused, Replicas::One),
        (Fault::BlackHoled, Replicas::BothOfTwo),
        (Fault::Silent, Replicas::FirstOfTwo),
        (Fault::Stalling, Replicas::One),
        (Fault::WrongManifests, Replicas::One),
        (Fault::AgentStopped, Replicas::One),
    ];
    hold("2.4", &faults).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_broken_cache_or_agent_costs_an_old_containerd_no_more_than_promised() -> Result<()> {
    let faults = [
        (Fault::Silent, Replicas::One),
        (Fault::Stalling, Replicas::BothOfTwo),
        (Fault::Resetting, Replicas::One),
        (Fault::Expired, Replicas::FirstOfTwo),
        (Fault::AgentKilled, Replicas::One),
        (Fault::NoApiServer, Replicas::One),
    ];
    hold("1.7", &faults).await
}
