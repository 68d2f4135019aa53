//! The real agent before the real cache: nobody is cut off for the time that he or the agent took.

use std::time::Duration;

use anyhow::Result;
use breakwater_tests::agent::remembering::{Remembering, SERVICE};
use breakwater_tests::agent::token;
use breakwater_tests::cache::{Cache, End, Identity, Reading, Request};
use breakwater_tests::upstream::{Content, Upstream};
use futures::future::join_all;
use tokio::time::{Instant, sleep};

/// More than the relay waits for a body in any case.
const LONG: Duration = Duration::from_secs(17);
/// More than all the sockets between hold.
const SIZE: usize = 32 << 20;
const READERS: usize = 4;
const START_LIMIT: Duration = Duration::from_secs(20);

/// Has readers begin a blob that the cache has on its disk, does something meanwhile, and lets them read the rest.
async fn check(meanwhile: impl AsyncFnOnce(&Remembering) -> Result<()>) -> Result<()> {
    let upstream = Upstream::start().await;
    let blob = Content::blob(1, SIZE);
    upstream.put_blob("team/app", &blob);
    let (identity, _folder) = Identity::with_token(&token(SERVICE)?);
    let cache = Cache::of(&upstream).identity(identity.clone()).start().await;
    let agent = Remembering::start(&upstream.host(), cache.address(), &identity.authority())?;
    let path = format!("{}?ns={}", blob.blob_path("team/app"), upstream.host());
    let deadline = Instant::now() + START_LIMIT;
    while Request::head(agent.relay(), &path).try_answer().await.is_none_or(|answer| answer.status != 200) {
        assert!(Instant::now() < deadline, "the relay does not serve");
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(Request::get(agent.relay(), &path).answer().await.status, 200);
    cache.await_kept("team/app", &blob).await;
    let begin = async |_| {
        let mut reading: Reading = Request::get(agent.relay(), &path).send().await;
        assert_eq!(reading.read(100_000).await, blob.bytes[..100_000]);
        reading
    };
    let readings = join_all((0..READERS).map(begin)).await;
    meanwhile(&agent).await?;
    for end in join_all(readings.into_iter().map(|reading| reading.rest_equals(&blob.bytes))).await {
        assert_eq!(end, End::Complete);
    }
    assert_eq!(Request::head(agent.relay(), &path).answer().await.status, 200, "nothing was held against the cache");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_pause_longer_than_any_limit_get_the_rest() -> Result<()> {
    check(async |_| {
        sleep(LONG).await;
        Ok(())
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stood_still_goes_on() -> Result<()> {
    check(async |agent| {
        agent.freeze(true)?;
        sleep(LONG).await;
        agent.freeze(false)
    })
    .await
}
