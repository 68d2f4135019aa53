//! The start of most contract tests: content at an upstream, and a cache that has not seen it.

use super::Cache;
use crate::upstream::{Blob, Content, Image, Upstream};

/// A blob of this size.
pub async fn blob(repository: &str, size: usize) -> (Upstream, Cache, Blob) {
    let upstream = Upstream::start().await;
    let blob = Content::blob(1, size);
    upstream.put_blob(repository, &blob);
    let cache = Cache::start(&upstream).await;
    (upstream, cache, blob)
}

/// An image with layers of these sizes, tagged `v1`.
pub async fn image(repository: &str, layers: &[usize]) -> (Upstream, Cache, Image) {
    let upstream = Upstream::start().await;
    let image = Content::image(1, layers);
    upstream.push(repository, "v1", &image);
    let cache = Cache::start(&upstream).await;
    (upstream, cache, image)
}
