//! Replicas of one cache that know each other, and what they asked of upstream.
#![allow(clippy::expect_used, reason = "a harness fails its test by panicking")]

use super::Cache;
use crate::ports::free_address;
use crate::upstream::{Account, Blob, Content, Scheme, Upstream};

/// Ports that were free a moment ago: replicas must know each other's before they start.
pub fn ports<const N: usize>() -> [u16; N] {
    [(); N].map(|()| free_address().expect("a free port").port())
}

/// A replica on `own` that knows all `ports`, its own too, as replicas of a StatefulSet do.
pub async fn replica(upstream: &Upstream, own: u16, ports: &[u16], flags: &[(&str, &str)]) -> Cache {
    let mut cache = Cache::of(upstream).port(own);
    for port in ports {
        cache = cache.flag("--peer", &format!("127.0.0.1:{port}"));
    }
    for (name, value) in flags {
        cache = cache.flag(name, value);
    }
    cache.start().await
}

/// Two replicas that know each other.
pub async fn two(upstream: &Upstream) -> (Cache, Cache) {
    let both = ports::<2>();
    (replica(upstream, both[0], &both, &[]).await, replica(upstream, both[1], &both, &[]).await)
}

/// How often upstream was asked for it.
pub fn downloads(upstream: &Upstream, blob: &Blob) -> usize {
    let requests = upstream.requests();
    requests.iter().filter(|request| request.method == "GET" && request.path.ends_with(&blob.digest)).count()
}

/// An upstream with a blob in `team/secret` that only a login opens, and a folder for `--credentials-dir` with that login.
pub async fn private() -> (Upstream, Blob, tempfile::TempDir) {
    let upstream = Upstream::start().await;
    let secret = Content::blob(1, 1000);
    upstream.put_blob("team/secret", &secret);
    upstream.require(Scheme::Basic, &[Account::new("team/secret", "robot", "hunter2")]);
    let logins = tempfile::tempdir().expect("a folder");
    let key = format!("{}/team", upstream.host());
    let auths = serde_json::json!({"auths": {key: {"username": "robot", "password": "hunter2"}}});
    std::fs::write(logins.path().join(".dockerconfigjson"), auths.to_string()).expect("logins");
    (upstream, secret, logins)
}
