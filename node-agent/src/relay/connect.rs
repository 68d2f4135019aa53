//! Connections to a cache's Pods: TLS with Breakwater's CA alone, a small pool, every wait bounded.
//!
//! A connection has no task of its own: whoever waits for something of it drives it. Bytes so reach the runtime without a detour
//! over another thread, and a body that nobody reads costs its buffers and no more.

use super::awake;
use super::bulk::{Bulk, Wire};
use super::portion::Portion;
use super::route::Route;
use bytes::Bytes;
use http::{Request, Response};
use http_body::{Body, Frame};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_rustls::TlsConnector;

const CONNECT: Duration = Duration::from_secs(1);
/// A busy machine is slower at arithmetic than at connecting.
const HANDSHAKE: Duration = Duration::from_secs(2);
/// Below the 60 s and more after which servers close idle connections.
const IDLE: Duration = Duration::from_secs(30);
const IDLE_CONNECTIONS: usize = 16;
/// Where connections are forgotten on the way, fresh ones may be as well.
const SHUT: Duration = Duration::from_secs(60);
/// More than an answer that says nothing but that it is one.
const REST: usize = 4 * 1024;

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

type Driver = Box<http1::Connection<Bulk, Empty<Bytes>>>;

/// One connection; closed when dropped.
#[derive(Debug)]
pub(super) struct Connection {
    sender: SendRequest<Empty<Bytes>>,
    /// None once it has ended.
    driver: Option<Driver>,
    route: Arc<Route>,
    address: SocketAddr,
    portion: Portion,
}

impl Connection {
    /// Opens a connection to one Pod.
    pub(super) async fn open(route: &Arc<Route>, address: SocketAddr, portion: Portion) -> Result<Self, ConnectFault> {
        let late = || io::Error::from(io::ErrorKind::TimedOut);
        let stream = awake::wait(CONNECT, TcpStream::connect(address))
            .await
            .unwrap_or_else(|| Err(late()))
            .and_then(|stream| stream.set_nodelay(true).map(|()| stream))
            .map_err(|source| ConnectFault::Connect { address, source })?;
        let tls = TlsConnector::from(route.tls.clone()).connect(route.server_name.clone(), Wire::new(stream));
        let stream = awake::wait(HANDSHAKE, tls)
            .await
            .unwrap_or_else(|| Err(late()))
            .map_err(|source| ConnectFault::Handshake { address, source })?;
        let (sender, driver) = http1::Builder::new()
            .max_buf_size(portion.bytes)
            .handshake(Bulk::new(stream))
            .await
            .map_err(|source| ConnectFault::Http { address, source })?;
        Ok(Self { sender, driver: Some(Box::new(driver)), route: route.clone(), address, portion })
    }

    /// Sends a request and waits for the headers; the caller bounds the wait.
    pub(super) async fn send(&mut self, request: Request<Empty<Bytes>>) -> Result<Response<Incoming>, ConnectFault> {
        let address = self.address;
        let mut answer = pin!(self.sender.send_request(request));
        poll_fn(|cx| {
            drive(&mut self.driver, cx);
            answer.as_mut().poll(cx)
        })
        .await
        .map_err(|source| ConnectFault::Http { address, source })
    }

    /// The next frame of the answer's body.
    pub(super) fn poll_frame(
        &mut self,
        body: &mut Incoming,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        if let Poll::Ready(frame) = Pin::new(&mut *body).poll_frame(cx) {
            return Poll::Ready(frame);
        }
        drive(&mut self.driver, cx);
        Pin::new(body).poll_frame(cx)
    }

    /// Reads what is left of an answer of a few bytes, after which the connection takes the next request. One that is longer ends it.
    pub(super) async fn read_rest(&mut self, mut body: Incoming) {
        let mut came = 0;
        while came <= REST
            && let Some(Ok(frame)) = poll_fn(|cx| self.poll_frame(&mut body, cx)).await
        {
            came += frame.data_ref().map_or(0, Bytes::len);
        }
    }

    /// Waits until it has ended, while nothing is asked over it.
    pub(super) async fn ended(&mut self) {
        poll_fn(|cx| {
            drive(&mut self.driver, cx);
            if self.driver.is_none() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Whether it can take a request now.
    fn is_ready(&mut self) -> bool {
        drive(&mut self.driver, &mut Context::from_waker(Waker::noop()));
        self.driver.is_some() && self.sender.is_ready()
    }
}

/// Does on a connection what can be done now. How it ends is told to whoever waits for an answer.
fn drive(driver: &mut Option<Driver>, cx: &mut Context<'_>) {
    if driver.as_mut().is_some_and(|driver| Pin::new(driver).poll(cx).is_ready()) {
        *driver = None;
    }
}

/// Idle connections to one Pod.
#[derive(Debug, Default)]
pub(super) struct Pool(Mutex<Idle>);

#[derive(Debug, Default)]
struct Idle {
    connections: Vec<(Connection, Instant)>,
    /// Nothing is kept before this.
    shut_until: Option<Instant>,
}

impl Pool {
    /// A connection for this route that can take a request now. Others are closed on the way.
    pub(super) fn take(&self, route: &Arc<Route>) -> Option<Connection> {
        let connections = &mut self.idle().connections;
        tidy(connections, route);
        let best = best(connections.iter().map(|(connection, _)| connection.portion.is_large()))?;
        Some(connections.remove(best).0)
    }

    /// Closes those that are of no use any more.
    pub(super) fn tidy(&self, route: &Arc<Route>) {
        tidy(&mut self.idle().connections, route);
    }

    /// Keeps a connection whose answer was read to its end.
    pub(super) fn put(&self, connection: Connection) {
        let (mut idle, now) = (self.idle(), Instant::now());
        if idle.connections.len() < IDLE_CONNECTIONS && idle.shut_until.is_none_or(|until| now >= until) {
            idle.connections.push((connection, now));
        }
    }

    /// Closes all, and keeps none for a while: one of them led nowhere.
    pub(super) fn shut(&self) {
        *self.idle() = Idle { connections: Vec::new(), shut_until: Some(Instant::now() + SHUT) };
    }

    fn idle(&self) -> MutexGuard<'_, Idle> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Of those that are idle, longest first: the last with large portions, or else the last.
fn best(are_large: impl DoubleEndedIterator<Item = bool> + ExactSizeIterator) -> Option<usize> {
    let last = are_large.len().checked_sub(1);
    are_large.enumerate().rev().find_map(|(place, is_large)| is_large.then_some(place)).or(last)
}

fn tidy(idle: &mut Vec<(Connection, Instant)>, route: &Arc<Route>) {
    idle.retain_mut(|(connection, since)| {
        since.elapsed() < IDLE && connection.route.leads_like(route) && connection.is_ready()
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_portions_are_used_first_and_what_was_used_last() {
        let best = |are_large: &[bool]| best(are_large.iter().copied());
        assert_eq!(best(&[]), None);
        assert_eq!(best(&[false, false]), Some(1));
        assert_eq!(best(&[true, true, false]), Some(1));
    }
}
