//! `/v1/pins` as HTTP: PUT replaces the list, GET tells the state of each pin. Errors are in the distribution spec's form.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use serde::Serialize;

use super::{
    Pins,
    kept::Status,
    list::{self, ListInvalid},
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
/// Of a body that is too large so much is still read: a client that is cut off while it sends never sees why.
const MOST_READ: usize = 16 * MOST_BYTES;
/// For the body to come.
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
    Unavailable(Failure),
    #[error("the pins of an earlier run are still being looked up; ask again soon")]
    NotKnown,
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
            Method::PUT => self.put(request.into_body()).await,
            _ => Err(Refused::Method),
        };
        let statuses = match done {
            Ok(()) => self.board.statuses(PATIENCE).await.ok_or(Refused::NotKnown),
            Err(refused) => Err(refused),
        };
        match statuses {
            Ok(statuses) => tell(&Answer { images: statuses.iter().map(|status| &**status).collect() }),
            Err(refused) => refuse(&refused),
        }
    }

    async fn put<B>(&self, body: B) -> Result<(), Refused>
    where
        B: http_body::Body<Data = Bytes> + Send + Unpin,
    {
        let bytes = tokio::time::timeout(BODY, read(body)).await.map_err(|_| Refused::Incomplete)??;
        let registry = self.registry.clone();
        let parsed = blocking(move || list::parse(&bytes, &registry)).await;
        let pins = parsed.ok_or(Refused::Unavailable(Failure::Stopping))?.map_err(Refused::Invalid)?;
        if self.board.has(&pins) {
            return Ok(());
        }
        self.accept(pins, PATIENCE).await.map_err(Refused::Unavailable)
    }
}

async fn read<B>(mut body: B) -> Result<Bytes, Refused>
where
    B: http_body::Body<Data = Bytes> + Unpin,
{
    let (mut bytes, mut length) = (BytesMut::new(), 0);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Refused::Incomplete)?.into_data() else { continue };
        length += data.len();
        if length <= MOST_BYTES {
            bytes.extend_from_slice(&data);
        } else if length > MOST_READ {
            break;
        }
    }
    if length > MOST_BYTES { Err(Refused::TooLarge) } else { Ok(bytes.freeze()) }
}

fn tell(answer: &Answer<'_>) -> Response<Body> {
    let Ok(json) = serde_json::to_vec(answer) else { return refuse(&Refused::Unavailable(Failure::Stopping)) };
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
        Refused::Unavailable(_) | Refused::NotKnown => (StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE"),
    };
    respond::error(status, code, &refused.to_string(), headers)
}
