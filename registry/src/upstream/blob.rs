//! Blobs on their way: headers turned into offsets and sizes, bodies into pieces. Knows nothing of where they are written.

use std::{collections::VecDeque, time::Duration};

use bytes::Bytes;
use futures::future::BoxFuture;
use http::{
    Method, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE},
};
use reqwest::Response;
use tokio::time::Instant;

use super::{Upstream, exchange::Ask, places::Place};
use crate::{
    digest::Digest,
    failure::Failure,
    metrics::{Phase, Timer},
    range::parse_content_range,
    reference::RepositoryName,
};

/// Between two pieces of a body. Shorter than the relay's patience, so that a stall is mended before it cuts us off.
const IDLE: Duration = Duration::from_secs(6);

/// After this long a source that can be asked is asked whether it is still there.
const DOUBT: Duration = Duration::from_secs(1);

type SignOfLife = Box<dyn Fn() -> BoxFuture<'static, bool> + Send + Sync>;

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
    /// Whether it comes no faster than its sender gets it.
    pub is_passed_on: bool,
    response: Response,
    /// Of another replica: whether it is worth waiting for.
    sign_of_life: Option<SignOfLife>,
    /// Pieces that were looked at before their turn.
    ahead: VecDeque<Bytes>,
    /// Of a registry: its place among the bodies, and the time it takes.
    _held: Option<(Place, Timer)>,
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
        let (ahead, sign_of_life) = (VecDeque::new(), None);
        Ok(Some(Self { start, total, is_private, is_passed_on: false, response, ahead, sign_of_life, _held: None }))
    }

    /// The same, given up after a pause unless `sign_of_life` says that it is worth waiting for.
    pub fn doubted_by(self, sign_of_life: impl Fn() -> BoxFuture<'static, bool> + Send + Sync + 'static) -> Self {
        Self { sign_of_life: Some(Box::new(sign_of_life)), ..self }
    }

    /// All of the body, if it comes as one with its header; otherwise nothing is lost.
    pub async fn at_once(&mut self, patience: Duration) -> Option<Vec<Bytes>> {
        let total = self.total?;
        let deadline = Instant::now() + patience;
        let mut length = 0;
        while length < total {
            // A break is met again by whoever asks for the next piece.
            let piece = tokio::time::timeout_at(deadline, self.response.chunk()).await.ok()?.ok()??;
            length += piece.len() as u64;
            self.ahead.push_back(piece);
        }
        (length == total).then(|| self.ahead.drain(..).collect())
    }

    /// The next piece, `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        if let Some(piece) = self.ahead.pop_front() {
            return Ok(Some(piece));
        }
        let given_up = Instant::now() + IDLE;
        loop {
            let until = if self.sign_of_life.is_some() { given_up.min(Instant::now() + DOUBT) } else { given_up };
            match (tokio::time::timeout_at(until, self.response.chunk()).await, &self.sign_of_life) {
                (Ok(Ok(piece)), _) => return Ok(piece),
                (Ok(Err(_)), _) => return Err(Broken::Off),
                (Err(_), Some(sign_of_life)) if until < given_up && sign_of_life().await => {}
                (Err(_), _) => return Err(Broken::Stalled),
            }
        }
    }
}

impl Upstream {
    /// Asks for a blob's size; `None` if upstream has it but does not say.
    pub async fn head_blob(&self, repository: &RepositoryName, digest: &Digest) -> Result<Option<u64>, Failure> {
        match self.ask(Ask::new(Method::HEAD, repository, format!("blobs/{digest}"))).await {
            Ok(answer) => Ok(stated_length(&answer.response)),
            // Some registries know no HEAD: the header of GET says the same.
            Err(Failure::InvalidResponse) => {
                Ok(self.get_blob(repository, digest, 0).await?.and_then(|blob| blob.total))
            }
            Err(failure) => Err(failure),
        }
    }

    /// Whether as many blobs are on their way as may be: others wait.
    pub fn is_crowded(&self) -> bool {
        self.places.are_crowded()
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
