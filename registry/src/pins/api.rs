//! `/v1/pins` as HTTP: PUT replaces the list, GET tells the state of each pin. Errors are in the distribution spec's form.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde::Serialize;
use tokio::sync::oneshot;

use super::{
    Pins,
    board::Shown,
    list::{self, ListInvalid},
    status::Status,
};
use crate::{
    body::{self, Body},
    failure::Failure,
    respond,
    store::blocking,
};

/// Where the API is.
pub const PATH: &str = "/v1/pins";
const MOST_BYTES: usize = 4 * 1024 * 1024;
/// For the body to come. One that is too large is read all the same: a client that is cut off while it sends never sees why.
const BODY: Duration = Duration::from_secs(30);
/// For the answer, which waits for a look at the disk when there are new pins or the process has just started.
const PATIENCE: Duration = Duration::from_secs(20);

/// Why a request is not fulfilled.
#[derive(Debug, thiserror::Error)]
enum Refused {
    #[error("{PATH} takes GET, HEAD and PUT")]
    Method,
    #[error("the list is larger than {} MiB", MOST_BYTES >> 20)]
    TooLarge,
    #[error("the body did not come in full within {BODY:?}")]
    Incomplete,
    #[error(transparent)]
    Invalid(ListInvalid),
    #[error("{0}: the pins are as before")]
    NotKept(Failure),
    #[error("the pins are still being looked up; ask again soon")]
    NotYet,
    #[error("the list in pins.json is damaged: PUT it again; nothing is evicted until then")]
    Lost,
}

#[derive(Serialize)]
struct Answer<'a> {
    images: Vec<&'a Status>,
}

impl Pins {
    /// Answers one request. Whether its sender may ask is for the caller to know.
    pub async fn answer<B>(&self, request: Request<B>) -> Response<Body>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin,
    {
        let done = match *request.method() {
            Method::GET | Method::HEAD => Ok(()),
            Method::PUT if will_be_too_large(&request) => Err(Refused::TooLarge),
            Method::PUT => self.put(request.into_body()).await,
            _ => Err(Refused::Method),
        };
        let json = match done {
            Ok(()) => self.tell().await,
            Err(refused) => Err(refused),
        };
        json.map_or_else(|refused| refuse(&refused), answer)
    }

    /// Replaces the list; when this returns it is on disk, and what is here of it is protected.
    async fn put<B>(&self, body: B) -> Result<(), Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin,
    {
        let bytes = tokio::time::timeout(BODY, read(body)).await.map_err(|_| Refused::Incomplete)??;
        let registry = self.registry.clone();
        let parsed = blocking(move || list::parse(&bytes, &registry)).await;
        let pins = parsed.ok_or(Refused::NotKept(Failure::Stopping))?.map_err(Refused::Invalid)?;
        let (done, answer) = oneshot::channel();
        let accepted = async {
            self.lists.send((pins, done)).await.map_err(|_| Failure::Stopping)?;
            answer.await.map_err(|_| Failure::Stopping)?
        };
        let accepted = tokio::time::timeout(PATIENCE, accepted).await.map_err(|_| Refused::NotYet)?;
        accepted.map_err(Refused::NotKept)
    }

    async fn tell(&self) -> Result<Vec<u8>, Refused> {
        let images = match self.board.shown(PATIENCE).await {
            Shown::Known(images) => images,
            Shown::NotYet => return Err(Refused::NotYet),
            Shown::Lost => return Err(Refused::Lost),
        };
        // Thousands of them take their time.
        let json =
            blocking(move || serde_json::to_vec(&Answer { images: images.iter().map(|image| &**image).collect() }));
        json.await.and_then(Result::ok).ok_or(Refused::NotYet)
    }
}

/// Who waits to be told to go on need not send what is too large.
fn will_be_too_large<B: http_body::Body>(request: &Request<B>) -> bool {
    request.headers().contains_key(header::EXPECT) && request.body().size_hint().lower() > MOST_BYTES as u64
}

async fn read<B>(mut body: B) -> Result<Bytes, Refused>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let (mut bytes, mut is_too_large) = (BytesMut::new(), false);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refused::Incomplete)?.into_data() else { continue };
        is_too_large |= bytes.len() + data.len() > MOST_BYTES;
        if !is_too_large {
            bytes.extend_from_slice(&data);
        }
    }
    if is_too_large { Err(Refused::TooLarge) } else { Ok(bytes.freeze()) }
}

fn answer(json: Vec<u8>) -> Response<Body> {
    let mut response = Response::new(Body::default());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response.headers_mut().insert(header::CONTENT_LENGTH, json.len().into());
    *response.body_mut() = body::whole(json.into());
    response
}

fn refuse(refused: &Refused) -> Response<Body> {
    let mut headers = HeaderMap::new();
    let (status, code) = match refused {
        Refused::Method => {
            headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, PUT"));
            (StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED")
        }
        Refused::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "SIZE_INVALID"),
        Refused::Incomplete | Refused::Invalid(_) => (StatusCode::BAD_REQUEST, "PINS_INVALID"),
        Refused::NotKept(_) | Refused::NotYet | Refused::Lost => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    respond::error(status, code, &refused.to_string(), headers)
}
