//! The listener for `/healthz`, `/readyz`, `/metrics` and `/log-level`. Knows nothing of mirrors.

use crate::metrics::Metrics;
use crate::telemetry::LogLevel;
use bytes::Bytes;
use futures::FutureExt;
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::task::{AbortHandle, JoinSet};

/// A caller that takes longer to send its headers is cut off.
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// So is one that takes longer to read its answer.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(30);
/// A log level is a word.
const MAX_BODY: usize = 64;
/// Kubelet and Prometheus need a handful, and each for one answer.
const MAX_CONNECTIONS: usize = 64;

/// Whether the operator is ready: it has found its API, and leads or stands by.
#[derive(Clone, Debug, Default)]
pub struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// From now on `/readyz` says yes.
    pub fn set(&self) {
        self.0.store(true, Ordering::Release);
    }
}

/// Binds `address`; where IPv6 is off, every address means every IPv4 address.
///
/// # Errors
/// The address is taken or not ours.
pub async fn bind(address: SocketAddr) -> io::Result<TcpListener> {
    match TcpListener::bind(address).await {
        Err(_) if address.is_ipv6() && address.ip().is_unspecified() => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    }
}

/// What the listener tells of.
#[derive(Clone, Debug)]
pub struct Admin {
    /// Whether the operator is ready.
    pub readiness: Readiness,
    /// What it counts.
    pub metrics: Arc<Metrics>,
    /// What it logs.
    pub log_level: LogLevel,
}

/// Answers until it is dropped; its connections end with it. Where there are too many, the eldest makes room: a probe is answered at
/// once, while who holds a connection for long is no probe.
pub async fn serve(listener: TcpListener, admin: Admin) {
    let (mut connections, mut open) = (JoinSet::new(), VecDeque::<AbortHandle>::new());
    loop {
        while connections.try_join_next().is_some() {}
        let Ok((stream, peer)) = listener.accept().await else {
            // Out of file descriptors: the ones in use must end first.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        open.retain(|connection| !connection.is_finished());
        if open.len() >= MAX_CONNECTIONS {
            open.pop_front().inspect(AbortHandle::abort);
        }
        let admin = admin.clone();
        open.push_back(connections.spawn(async move {
            one_answer(stream, |request| answer(request, &admin, peer.ip())).await;
        }));
    }
}

/// Within a deadline; what went wrong is the caller's own affair.
async fn one_answer<F>(stream: impl AsyncRead + AsyncWrite + Unpin, answer: impl Fn(Request<Incoming>) -> F)
where
    F: Future<Output = Response<Full<Bytes>>>,
{
    let service = service_fn(|request| answer(request).map(Ok::<_, Infallible>));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    drop(tokio::time::timeout(CONNECTION_TIMEOUT, served).await);
}

async fn answer(request: Request<Incoming>, admin: &Admin, peer: IpAddr) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let (status, text) = match (request.method(), path.as_str()) {
        (&Method::GET | &Method::HEAD, path) => read(path, admin),
        (&Method::PUT, "/log-level") => set_log_level(request, admin, peer).await,
        _ => (StatusCode::METHOD_NOT_ALLOWED, "only GET and HEAD, and PUT /log-level\n".to_owned()),
    };
    let content_type = match path.as_str() {
        "/metrics" => "application/openmetrics-text; version=1.0.0; charset=utf-8",
        _ => "text/plain; charset=utf-8",
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response.headers_mut().insert(hyper::header::CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
    response
}

fn read(path: &str, admin: &Admin) -> (StatusCode, String) {
    match path {
        "/healthz" => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" if admin.readiness.0.load(Ordering::Acquire) => (StatusCode::OK, "ok\n".to_owned()),
        "/readyz" => (StatusCode::SERVICE_UNAVAILABLE, "starting\n".to_owned()),
        "/metrics" => match admin.metrics.encode() {
            Ok(text) => (StatusCode::OK, text),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, String::new()),
        },
        "/log-level" => (StatusCode::OK, format!("{}\n", admin.log_level.get())),
        _ => (StatusCode::NOT_FOUND, "not found\n".to_owned()),
    }
}

/// From the Pod's own network alone, which a port-forward comes from: who may open one may also change the Deployment's level.
async fn set_log_level(request: Request<Incoming>, admin: &Admin, peer: IpAddr) -> (StatusCode, String) {
    if !may_set(peer) {
        return (StatusCode::FORBIDDEN, "only from loopback: use kubectl port-forward\n".to_owned());
    }
    let body = Limited::new(request.into_body(), MAX_BODY).collect();
    let Ok(Ok(body)) = tokio::time::timeout(HEADER_TIMEOUT, body).await else {
        return (StatusCode::BAD_REQUEST, "must be a level alone\n".to_owned());
    };
    let level = String::from_utf8_lossy(&body.to_bytes()).trim().to_owned();
    match admin.log_level.set(&level) {
        Ok(()) => (StatusCode::OK, format!("{level}\n")),
        Err(refused) => (StatusCode::BAD_REQUEST, format!("{refused}\n")),
    }
}

/// A socket of every address sees callers of IPv4 as IPv6.
fn may_set(peer: IpAddr) -> bool {
    peer.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test(start_paused = true)]
    async fn who_reads_no_answer_is_cut_off() {
        let (mut caller, ours) = tokio::io::duplex(1024);
        caller.write_all(b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let begun = tokio::time::Instant::now();
        one_answer(ours, async |_| Response::new(Full::new(Bytes::from(vec![b'x'; 1 << 20])))).await;
        assert!(begun.elapsed() >= HEADER_TIMEOUT && begun.elapsed() <= CONNECTION_TIMEOUT, "{:?}", begun.elapsed());
    }

    #[test]
    fn the_log_level_is_set_from_loopback_alone() {
        for (peer, expected) in [
            ("127.0.0.1", true),
            ("::1", true),
            ("::ffff:127.0.0.1", true),
            ("10.244.0.7", false),
            ("::ffff:10.244.0.7", false),
            ("fd00::1", false),
        ] {
            assert_eq!(may_set(peer.parse().unwrap()), expected, "{peer}");
        }
    }
}
