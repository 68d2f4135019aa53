//! The real agent before the real cache: nobody is cut off, or blamed, for the time that the runtime or the agent took.

use std::time::Duration;

use anyhow::Result;
use breakwater_tests::agent::remembering::{Remembering, SERVICE};
use breakwater_tests::agent::token;
use breakwater_tests::cache::{Cache, End, Identity, Reading, Request};
use breakwater_tests::upstream::{Blob, Content, Fault, On, Upstream};
use futures::future::{join, join_all};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// More than the relay waits for a body in any case.
const LONG: Duration = Duration::from_secs(17);
/// More than all the sockets between hold.
const SIZE: usize = 32 << 20;
const READERS: usize = 4;
/// Verified whole before a byte goes out.
const SMALL: usize = 16 << 10;
/// More than a small body is waited for.
const SHORT: Duration = Duration::from_secs(7);
const REPOSITORY: &str = "team/app";
const START_LIMIT: Duration = Duration::from_secs(20);

/// An upstream, its cache, and an agent that serves.
struct Path {
    upstream: Upstream,
    cache: Cache,
    agent: Remembering,
    _folder: TempDir,
}

impl Path {
    async fn set() -> Result<Self> {
        let upstream = Upstream::start().await;
        let probe = Content::blob(0, 64);
        upstream.put_blob(REPOSITORY, &probe);
        let (identity, folder) = Identity::with_token(&token(SERVICE)?);
        let cache = Cache::of(&upstream).identity(identity.clone()).start().await;
        let agent = Remembering::start(&upstream.host(), cache.address(), &identity.authority())?;
        let path = Self { upstream, cache, agent, _folder: folder };
        let deadline = Instant::now() + START_LIMIT;
        while path.head(&probe).try_answer().await.is_none_or(|answer| answer.status != 200) {
            assert!(Instant::now() < deadline, "the relay does not serve");
            sleep(Duration::from_millis(50)).await;
        }
        Ok(path)
    }

    fn target(&self, blob: &Blob) -> String {
        format!("{}?ns={}", blob.blob_path(REPOSITORY), self.upstream.host())
    }

    fn get(&self, blob: &Blob) -> Request {
        Request::get(self.agent.relay(), &self.target(blob))
    }

    fn head(&self, blob: &Blob) -> Request {
        Request::head(self.agent.relay(), &self.target(blob))
    }
}

/// Has readers begin a blob that the cache has on its disk, does something meanwhile, and lets them read the rest.
async fn check(meanwhile: impl AsyncFnOnce(&Remembering) -> Result<()>) -> Result<()> {
    let path = Path::set().await?;
    let blob = Content::blob(1, SIZE);
    path.upstream.put_blob(REPOSITORY, &blob);
    assert_eq!(path.get(&blob).answer().await.status, 200);
    path.cache.await_kept(REPOSITORY, &blob).await;
    let begin = async |_| {
        let mut reading: Reading = path.get(&blob).send().await;
        assert_eq!(reading.read(100_000).await, blob.bytes[..100_000]);
        reading
    };
    let readings = join_all((0..READERS).map(begin)).await;
    meanwhile(&path.agent).await?;
    for end in join_all(readings.into_iter().map(|reading| reading.rest_equals(&blob.bytes))).await {
        assert_eq!(end, End::Complete);
    }
    assert_eq!(path.head(&blob).answer().await.status, 200, "nothing was held against the cache");
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

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_that_stood_still_waits_on_for_what_it_verifies_whole() -> Result<()> {
    let path = Path::set().await?;
    let [blob, later] = [1, 2].map(|seed| Content::blob(seed, SMALL));
    path.upstream.put_blob(REPOSITORY, &blob);
    path.upstream.put_blob(REPOSITORY, &later);
    path.upstream.fault(On::Blobs, Fault::StallAt(SMALL as u64 / 2)).await;
    let (answer, ()) = join(path.get(&blob).answer(), async {
        path.upstream
            .wait_for("the blob", |requests| requests.iter().any(|one| one.path.ends_with(&blob.digest)))
            .await;
        // The first half is to reach the agent.
        sleep(Duration::from_secs(1)).await;
        path.agent.freeze(true).unwrap();
        sleep(SHORT).await;
        path.agent.freeze(false).unwrap();
        // Whoever counts the time in which he stood still gives up at once.
        sleep(Duration::from_secs(1)).await;
        path.upstream.heal().await;
    })
    .await;
    assert_eq!(answer.status, 200);
    assert!(answer.body == blob.bytes, "other bytes");
    assert_eq!(path.get(&later).answer().await.status, 200, "nothing was held against the cache");
    Ok(())
}
