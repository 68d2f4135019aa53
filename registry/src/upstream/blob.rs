//! Blobs on their way: headers turned into offsets and sizes, bodies into pieces. Knows nothing of where they are written.

use std::time::Duration;

use bytes::Bytes;
use http::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE},
};
use reqwest::Response;
use tokio::sync::OwnedSemaphorePermit;

use super::{Upstream, exchange::Ask};
use crate::{
    digest::Digest,
    failure::Failure,
    metrics::{Phase, Timer},
    range::parse_content_range,
    reference::RepositoryName,
};

/// Between two pieces of a body. Shorter than the relay's patience, so that a stall is mended before it cuts us off.
const IDLE: Duration = Duration::from_secs(6);

/// How a body ends too early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Broken {
    /// By a reset or a close.
    Off,
    /// Nothing has come for too long.
    Stalled,
}

/// A blob on its way.
pub struct BlobStream {
    /// Offset of the first byte that comes: what was asked for, or 0 if the source ignores ranges.
    pub start: u64,
    /// Size of the whole blob, if the source says so.
    pub total: Option<u64>,
    /// Whether a login was needed.
    pub is_private: bool,
    response: Response,
    /// Of a registry: its place among the bodies, and the time it takes.
    _held: Option<(OwnedSemaphorePermit, Timer)>,
}

impl BlobStream {
    /// Reads the header of an answer to a request from `offset` on. `Ok(None)`: there is nothing at `offset`.
    pub fn of(response: Response, offset: u64, is_private: bool) -> Result<Option<Self>, Failure> {
        let stated = |name| response.headers().get(name).and_then(|value| value.to_str().ok());
        let (start, total) = match response.status() {
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(None),
            StatusCode::PARTIAL_CONTENT => {
                let (start, total) =
                    stated(CONTENT_RANGE).and_then(parse_content_range).ok_or(Failure::InvalidResponse)?;
                if start != offset {
                    return Err(Failure::InvalidResponse);
                }
                (start, total)
            }
            _ => (0, response.content_length()),
        };
        Ok(Some(Self { start, total, is_private, response, _held: None }))
    }

    /// The next piece, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        match tokio::time::timeout(IDLE, self.response.chunk()).await {
            Ok(Ok(piece)) => Ok(piece),
            Ok(Err(_)) => Err(Broken::Off),
            Err(_) => Err(Broken::Stalled),
        }
    }
}

impl Upstream {
    /// Asks for a blob's size; `None` if upstream has it but does not say.
    pub async fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        let answer = self.ask(Ask::new(Method::HEAD, repository, format!("blobs/{digest}"))).await?;
        Ok(stated_length(&answer.response))
    }

    /// Begins to fetch a blob, from `offset` on where upstream can do that. `Ok(None)`: there is nothing at `offset`.
    pub async fn get_blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
    ) -> Result<Option<BlobStream>, Failure> {
        let answer = self.ask(Ask::new(Method::GET, repository, format!("blobs/{digest}")).from(offset)).await?;
        let stream = BlobStream::of(answer.response, offset, answer.is_private)?;
        let held = Some((answer.place, self.metrics.timer(Phase::body)));
        Ok(stream.map(|stream| BlobStream { _held: held, ..stream }))
    }
}

/// The length in the header: that of the content, also where no body follows.
pub fn stated_length(response: &Response) -> Option<u64> {
    response.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}
