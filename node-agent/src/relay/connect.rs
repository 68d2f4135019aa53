//! Connections to a cache's Pods: TLS with Breakwater's CA alone, a small pool, every wait bounded.

use super::route::Route;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_rustls::TlsConnector;
use tokio_util::task::AbortOnDropHandle;

const CONNECT: Duration = Duration::from_secs(1);
/// A busy machine is slower at arithmetic than at connecting.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Below the 60 s and more after which servers close idle connections.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS: usize = 16;
/// Bounds the memory of one connection, whoever is slow.
pub(super) const BUFFER: usize = 64 * 1024;

/// Why nobody answered.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectFault {
    #[error("{address}: connect: {source}")]
    Connect { address: SocketAddr, source: io::Error },
    #[error("{address}: TLS handshake: {source}")]
    Handshake { address: SocketAddr, source: io::Error },
    #[error("{address}: {source}")]
    Http { address: SocketAddr, source: hyper::Error },
    #[error("{address}: no answer within {0:?}", .after)]
    Silent { address: SocketAddr, after: Duration },
    #[error("{address}: the cache refuses this node's token ({status})")]
    Refused { address: SocketAddr, status: http::StatusCode },
}

impl ConnectFault {
    /// Whether it shows that nobody is there. A connection that breaks before the headers may be about that one request.
    pub(super) fn is_absence(&self) -> bool {
        matches!(self, Self::Connect { .. } | Self::Handshake { .. })
    }
}

/// One connection; closed when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    route: Arc<Route>,
    address: SocketAddr,
    _driver: AbortOnDropHandle<()>,
}

impl Connection {
    /// Opens a connection to one Pod.
    pub(super) async fn open(route: &Arc<Route>, address: SocketAddr) -> Result<Self, ConnectFault> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = timeout(CONNECT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|_| Err(late()))
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| ConnectFault::Connect { address, source })?;
        let tls = TlsConnector::from(route.tls.clone()).connect(route.server_name.clone(), stream);
        let stream = timeout(HANDSHAKE, tls)
            .await
            .unwrap_or_else(|_| Err(late()))
            .map_err(|source| ConnectFault::Handshake { address, source })?;
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(BUFFER)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|source| ConnectFault::Http { address, source })?;
        // How it ends is told to whoever reads from it.
        let driver = tokio::spawn(async move { drop(connection.await) });
        Ok(Self { sender, route: route.clone(), address, _driver: AbortOnDropHandle::new(driver) })
    }

    /// Sends a request and waits for the headers; the caller bounds the wait.
    pub(super) async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, ConnectFault> {
        self.sender.send_request(request).await.map_err(|source| ConnectFault::Http { address: self.address, source })
    }
}

/// Idle connections of one cache.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Vec<(Connection, Instant)>>);

impl Pool {
    /// A connection of this route that can take a request now. Others are closed on the way.
    pub(super) fn take(&self, route: &Arc<Route>) -> Option<Connection> {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        idle.retain(|(connection, since)| {
            !connection.sender.is_closed() && since.elapsed() < IDLE && Arc::ptr_eq(&connection.route, route)
        });
        let ready = idle.iter().rposition(|(connection, _)| connection.sender.is_ready())?;
        Some(idle.remove(ready).0)
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn put(&self, connection: Connection) {
        let mut idle = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if idle.len() < IDLE_CONNECTIONS && !connection.sender.is_closed() {
            idle.push((connection, Instant::now()));
        }
    }
}
