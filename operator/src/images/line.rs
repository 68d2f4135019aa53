//! One exchange with one replica of a cache: GET or PUT its pins by TLS, with the operator's token. Client I/O; the answers are hostile
//! input.

use super::wanted::Pin;
use crate::exchange::{ExchangeFailed, exchange};
use crate::pki::Authority;
use crate::text::one_line;
use breakwater_crds::names::cache_server_name;
use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HOST};
use hyper::http::Error as RequestError;
use hyper::{Method, Request, StatusCode};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

const PATH: &str = "/v1/pins";
/// A cache that has just started may look at its disk for 20 s before it answers.
const DEADLINE: Duration = Duration::from_secs(25);
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);
/// 10,000 images with messages.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
const MAX_MESSAGE: usize = 200;

/// What a replica says of one pin.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct PinReport {
    pub(super) image: String,
    #[serde(default)]
    pub(super) platforms: Vec<String>,
    state: State,
    #[serde(default)]
    bytes: u64,
    #[serde(default)]
    total_bytes: u64,
    #[serde(default)]
    pub(super) error: Option<String>,
    #[serde(default)]
    pub(super) message: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum State {
    Complete,
    Partial,
    Missing,
}

impl PinReport {
    /// Whether all of it is there and stays. An image that is not made for every platform of the nodes cannot run on the others, so what
    /// there is of it is all; where platforms were chosen, each of them counts.
    pub(super) fn is_held(&self, platforms_are_chosen: bool) -> bool {
        let is_all_there_is = !platforms_are_chosen
            && self.error.as_deref() == Some("NoSuchPlatform")
            && self.total_bytes > 0
            && self.bytes == self.total_bytes;
        self.state == State::Complete || is_all_there_is
    }

    /// Whether it is on its way, and nothing is in the way.
    pub(super) fn is_filling(&self) -> bool {
        self.state != State::Complete && self.error.is_none()
    }

    /// Whether it speaks of this pin.
    pub(super) fn is_of(&self, pin: &Pin) -> bool {
        self.image == pin.image && self.platforms == pin.platforms
    }
}

/// Why a replica did not answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum AskFailed {
    #[error("its Secret has no token for the operator")]
    NoToken,
    #[error("no answer in time")]
    Timeout,
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error("does not prove to be the cache")]
    Tls(#[source] std::io::Error),
    #[error("cannot build the request")]
    Request(#[source] RequestError),
    #[error(transparent)]
    Exchange(ExchangeFailed),
    #[error("answered {0}: {1}")]
    Status(StatusCode, String),
    #[error("answered something else than pins")]
    Json(#[source] serde_json::Error),
}

/// A replica, and what it takes to speak to it.
pub(super) struct Line {
    pub(super) address: SocketAddr,
    /// Name of its cache, which its certificate proves.
    pub(super) cache: String,
    pub(super) token: String,
    pub(super) tls: Arc<ClientConfig>,
}

#[derive(Deserialize, Serialize)]
struct Images<T> {
    images: Vec<T>,
}

impl Line {
    /// The state of the pins, in the order of its list.
    pub(super) async fn get(self) -> Result<Vec<PinReport>, AskFailed> {
        self.ask(Method::GET, Bytes::new()).await
    }

    /// Replaces its list.
    pub(super) async fn put(self, pins: &[Pin]) -> Result<Vec<PinReport>, AskFailed> {
        let body = serde_json::to_vec(&Images { images: pins.iter().collect() }).map_err(AskFailed::Json)?;
        self.ask(Method::PUT, body.into()).await
    }

    async fn ask(self, method: Method, body: Bytes) -> Result<Vec<PinReport>, AskFailed> {
        let answered = tokio::time::timeout(DEADLINE, self.exchange(method, body)).await;
        let (status, body) = answered.unwrap_or(Err(AskFailed::Timeout))?;
        if status != StatusCode::OK {
            let said = one_line(&String::from_utf8_lossy(&body), MAX_MESSAGE);
            return Err(AskFailed::Status(status, said));
        }
        parse(&body)
    }

    async fn exchange(self, method: Method, body: Bytes) -> Result<(StatusCode, Bytes), AskFailed> {
        let name = cache_server_name(&self.cache);
        let connecting = tokio::time::timeout(CONNECT_DEADLINE, TcpStream::connect(self.address));
        let stream = connecting.await.map_err(|_| AskFailed::Timeout)?.map_err(AskFailed::Connect)?;
        let server = ServerName::try_from(name.clone())
            .map_err(|error| AskFailed::Tls(std::io::Error::new(std::io::ErrorKind::InvalidInput, error)))?;
        let stream = TlsConnector::from(self.tls).connect(server, stream).await.map_err(AskFailed::Tls)?;
        let request = Request::builder()
            .method(method)
            .uri(PATH)
            .header(HOST, name)
            .header(AUTHORIZATION, format!("Bearer {}", self.token))
            .header(CONTENT_TYPE, "application/json")
            .body(Full::new(body))
            .map_err(AskFailed::Request)?;
        exchange(stream, request, MAX_ANSWER).await.map_err(AskFailed::Exchange)
    }
}

fn parse(body: &[u8]) -> Result<Vec<PinReport>, AskFailed> {
    let Images { mut images } = serde_json::from_slice::<Images<PinReport>>(body).map_err(AskFailed::Json)?;
    for report in &mut images {
        report.platforms.sort();
        report.message = report.message.take().map(|message| one_line(&message, MAX_MESSAGE));
    }
    Ok(images)
}

/// How caches are trusted: by Breakwater's own authority alone.
pub(super) fn tls(authority: &Authority) -> Option<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(authority.bundle().as_bytes()) {
        roots.add(certificate.ok()?).ok()?;
    }
    Some(Arc::new(ClientConfig::builder().with_root_certificates(roots).with_no_client_auth()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn an_answer_is_read() {
        let reports = parse(
            br#"{"images":[{"image":"library/nginx:1.27","platforms":["linux/arm64","linux/amd64"],"state":"partial",
                 "digest":null,"bytes":5,"totalBytes":9,"error":"dns","message":"upstream's\nname"}]}"#,
        )
        .unwrap();
        assert_eq!(reports[0].platforms, ["linux/amd64", "linux/arm64"]);
        assert_eq!(reports[0].message.as_deref(), Some("upstream's name"));
        assert!(!reports[0].is_held(false) && !reports[0].is_filling());
        // A cache that is older says less, a newer one more.
        for answer in [
            r#"{"images":[{"image":"a","state":"complete"}]}"#,
            r#"{"images":[{"image":"a","state":"complete","aNewField":1}],"aNewField":{}}"#,
        ] {
            assert!(parse(answer.as_bytes()).unwrap()[0].is_held(false), "{answer}");
        }
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }
}
