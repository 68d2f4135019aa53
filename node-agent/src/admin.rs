//! The admin listener: health and metrics, nothing else. Its health speaks for the relay: whoever probes it learns whether a
//! pull would be answered.

use crate::metrics::{self, Now, Tally};
use crate::relay::Relay;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch::Receiver;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// Within the second that the kubelet's probe waits.
const RELAY_ANSWERS: Duration = Duration::from_millis(700);
const CONNECTION: Duration = Duration::from_secs(30);
/// Connections from this node, and from anywhere else: no stranger is to take the place of the kubelet's probe.
const NEAR: usize = 32;
const FAR: usize = 64;

/// What the admin listener tells about.
#[derive(Clone)]
pub struct Admin {
    /// The relay itself.
    pub relay: Relay,
    /// The main loop's last turn.
    pub tally: Receiver<Tally>,
}

/// Serves until dropped.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let (admin, rooms) = (Arc::new(admin), Rooms::default());
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                // Without room the connection is closed.
                Ok((stream, peer)) => if let Some(room) = rooms.enter(peer.ip()) {
                    connections.spawn(connection(stream, admin.clone(), room));
                },
                Err(error) => {
                    tracing::warn!(%error, "admin listener cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
}

/// How many connections there may be.
struct Rooms {
    near: Arc<Semaphore>,
    far: Arc<Semaphore>,
}

impl Default for Rooms {
    fn default() -> Self {
        Self { near: Arc::new(Semaphore::new(NEAR)), far: Arc::new(Semaphore::new(FAR)) }
    }
}

impl Rooms {
    /// Room for a connection of this peer, if there is any.
    fn enter(&self, peer: IpAddr) -> Option<OwnedSemaphorePermit> {
        let room = if peer.to_canonical().is_loopback() { &self.near } else { &self.far };
        room.clone().try_acquire_owned().ok()
    }
}

async fn connection(stream: TcpStream, admin: Arc<Admin>, _room: OwnedSemaphorePermit) {
    let service = service_fn(|request| {
        let admin = admin.clone();
        async move { Ok::<_, Infallible>(admin.answer(&request).await) }
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CONNECTION)
        .serve_connection(TokioIo::new(stream), service);
    // A peer that takes its answer slower than this gets none; what went wrong is its own affair.
    drop(timeout(CONNECTION, served).await);
}

impl Admin {
    async fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.method() != Method::GET && request.method() != Method::HEAD {
            return text(StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD are served\n");
        }
        match request.uri().path() {
            "/healthz" => self.health(false).await,
            "/readyz" => self.health(true).await,
            "/metrics" => self.metrics(),
            _ => text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics\n"),
        }
    }

    /// A relay that listens must answer. One that cannot listen harms no pull and is mended by no restart, so it is told by
    /// readiness alone.
    async fn health(&self, must_listen: bool) -> Response<Full<Bytes>> {
        let listening = self.tally.borrow().listening;
        match listening {
            Some(address) if !answers(address).await => text(StatusCode::SERVICE_UNAVAILABLE, "the relay hangs\n"),
            None if !self.relay.beats() => text(StatusCode::SERVICE_UNAVAILABLE, "the main loop hangs\n"),
            None if must_listen => text(StatusCode::SERVICE_UNAVAILABLE, "the relay's port is taken\n"),
            _ => text(StatusCode::OK, "ok\n"),
        }
    }

    fn metrics(&self) -> Response<Full<Bytes>> {
        let (views, traffic) = (self.relay.views(), self.relay.traffic());
        let told = metrics::text(&Now { tally: &self.tally.borrow(), views: &views, traffic: &traffic });
        match told {
            Ok(told) => typed(StatusCode::OK, "application/openmetrics-text; version=1.0.0; charset=utf-8", told),
            Err(_) => text(StatusCode::INTERNAL_SERVER_ERROR, "metrics cannot be written\n"),
        }
    }
}

/// Asks the relay as a runtime would, over a connection of its own.
async fn answers(relay: SocketAddr) -> bool {
    let asked = timeout(RELAY_ANSWERS, async {
        let mut stream = TcpStream::connect(relay).await?;
        stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: relay\r\nconnection: close\r\n\r\n").await?;
        let mut begin = [0; 12];
        stream.read_exact(&mut begin).await?;
        io::Result::Ok(begin == *b"HTTP/1.1 200")
    });
    matches!(asked.await, Ok(Ok(true)))
}

fn text(status: StatusCode, words: &'static str) -> Response<Full<Bytes>> {
    typed(status, "text/plain; charset=utf-8", words)
}

fn typed(status: StatusCode, media_type: &'static str, bytes: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(bytes.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(media_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_leave_room_for_the_kubelets_probe() {
        let rooms = Rooms::default();
        let from = |peer: &str| rooms.enter(peer.parse().unwrap());
        let strangers: Vec<_> = (0..FAR).map(|_| from("10.0.0.7").unwrap()).collect();
        assert!(from("10.0.0.7").is_none() && from("fd00::7").is_none());
        assert!(from("127.0.0.1").is_some() && from("::ffff:127.0.0.1").is_some() && from("::1").is_some());
        drop(strangers);
        assert!(from("10.0.0.7").is_some());
    }
}
