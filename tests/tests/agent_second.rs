//! The real agent, and a second one on the same node: the first keeps what it wrote.

use std::time::Duration;

use anyhow::{Context, Result};
use breakwater_tests::agent::remembering::{Remembering, SERVICE};
use breakwater_tests::agent::token;
use breakwater_tests::cache::Identity;
use tokio::time::{Instant, sleep};

const REGISTRY: &str = "registry.test";
const START_LIMIT: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread")]
async fn a_second_agent_ends_and_takes_nothing_with_it() -> Result<()> {
    let (identity, _folder) = Identity::with_token(&token(SERVICE)?);
    let agent = Remembering::start(REGISTRY, ([127, 0, 0, 1], 1).into(), &identity.authority())?;
    let deadline = Instant::now() + START_LIMIT;
    while agent.hosts_toml(REGISTRY).is_none() {
        assert!(Instant::now() < deadline, "the first agent writes nothing");
        sleep(Duration::from_millis(50)).await;
    }
    let written = agent.hosts_toml(REGISTRY).context("read what it wrote")?;
    // It finds the port taken, and would give every file back, were the first one not there.
    let (said, has_failed) = agent.another().await?;
    assert!(has_failed && said.contains("another agent works with"), "{said}");
    assert_eq!(agent.hosts_toml(REGISTRY), Some(written));
    Ok(())
}
