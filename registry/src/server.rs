//! Listeners and connections: accept, TLS, deadlines, limits and a graceful end. Knows nothing of what is served.

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::Arc,
    time::Duration,
};

use http::{Request, Response};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use crate::{
    args::Listen,
    body::Body,
    metrics::{Connections, Held},
    sendfile::{FileStream, Files},
};

const MOST_CONNECTIONS: usize = 8192;
/// For the first byte of a connection and for its TLS handshake.
const GREETING: Duration = Duration::from_secs(10);
/// For a request's header, and for an idle connection's next one.
const HEADER: Duration = Duration::from_secs(60);
/// Per connection, and so what a paused reader holds besides one frame.
const BUFFER: usize = 64 * 1024;
const TLS_HELLO: u8 = 0x16;

/// Why an address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("{flag}: cannot listen on {address}; is another process there?")]
pub struct Unbound {
    flag: &'static str,
    address: String,
    #[source]
    source: io::Error,
}

/// Binds; `flag` is named in the error.
pub async fn bind(flag: &'static str, listen: Listen) -> Result<TcpListener, Unbound> {
    let (address, bound) = match listen {
        Listen::At(address) => (address.to_string(), TcpListener::bind(address).await),
        Listen::Everywhere(port) => {
            // The IPv6 socket takes IPv4 too; without IPv6 there is only IPv4.
            let bound = match TcpListener::bind(SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse => Err(error),
                Err(_) => TcpListener::bind(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await,
                bound => bound,
            };
            (format!(":{port}"), bound)
        }
    };
    bound.map_err(|source| Unbound { flag, address, source })
}

/// Serves connections of `listener` with `handler` until `stopping`; then idle connections are closed at once, and the
/// others after their answer or `patience`.
pub async fn serve<H, F>(
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    open: Connections,
    handler: H,
    stopping: CancellationToken,
    patience: Duration,
) where
    H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let acceptor = tls.map(TlsAcceptor::from);
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, place)) = accepted else { continue };
        let connection = Connection { stopping: stopping.clone(), patience, _place: place, _held: open.open() };
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        connections.spawn(async move {
            if let Err(error) = connection.run(stream, acceptor, handler).await {
                debug!(%error, "connection ended");
            }
        });
    }
    // New callers are refused from here on.
    drop(listener);
    connections.close();
    connections.wait().await;
}

/// Waits for a free place first: beyond the limit callers wait in the kernel.
async fn accept(listener: &TcpListener, places: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let place = Arc::clone(places).acquire_owned().await.ok()?;
    match listener.accept().await {
        Ok((stream, _peer)) => Some((stream, place)),
        Err(error) => {
            // Out of file descriptors, most likely: give the others time to end.
            warn!(%error, "cannot accept");
            tokio::time::sleep(Duration::from_millis(100)).await;
            None
        }
    }
}

/// Why a connection ended early.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("no greeting in time")]
    Greeting,
    #[error("connection broken")]
    Io(#[source] io::Error),
    #[error("TLS on the plain port")]
    TlsOnPlain,
    #[error("{0}")]
    Http(hyper::Error),
}

struct Connection {
    stopping: CancellationToken,
    patience: Duration,
    _place: OwnedSemaphorePermit,
    _held: Held,
}

impl Connection {
    async fn run<H, F>(self, stream: TcpStream, acceptor: Option<TlsAcceptor>, handler: H) -> Result<(), Ended>
    where
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        stream.set_nodelay(true).map_err(Ended::Io)?;
        match acceptor {
            Some(acceptor) => {
                let stream = self.greeting(acceptor.accept(stream)).await?;
                self.http(stream, handler).await
            }
            None => {
                let mut first = [0];
                self.greeting(stream.peek(&mut first)).await?;
                if first == [TLS_HELLO] {
                    return refuse_tls(stream).await;
                }
                let files = Files::default();
                let stream = FileStream::new(stream, files.clone());
                files.within(self.http(stream, handler)).await
            }
        }
    }

    async fn greeting<T>(&self, work: impl Future<Output = io::Result<T>>) -> Result<T, Ended> {
        tokio::select! {
            () = self.stopping.cancelled() => Err(Ended::Greeting),
            done = tokio::time::timeout(GREETING, work) => done.map_err(|_| Ended::Greeting)?.map_err(Ended::Io),
        }
    }

    async fn http<S, H, F>(self, stream: S, handler: H) -> Result<(), Ended>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
        H: Fn(Request<Incoming>) -> F + Clone + Send + Sync + 'static,
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let service = service_fn(move |request| {
            let answer = handler(request);
            async move { Ok::<_, Infallible>(answer.await) }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(BUFFER);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.stopping.cancelled() => {
                connection.as_mut().graceful_shutdown();
                tokio::time::timeout(self.patience, connection).await.unwrap_or(Ok(()))
            }
        };
        ended.map_err(Ended::Http)
    }
}

/// A client that takes this port for TLS gets words it can show. What it sent is read first: closing with unread bytes
/// would be a reset, and the words would be lost.
async fn refuse_tls(mut stream: TcpStream) -> Result<(), Ended> {
    const WORDS: &[u8] = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nContent-Length: 33\r\n\
        Connection: close\r\n\r\nthis port speaks plain HTTP only\n\n";
    let talk = async {
        let mut hello = vec![0; 16 * 1024];
        let _ = stream.read(&mut hello).await?;
        stream.write_all(WORDS).await?;
        stream.shutdown().await?;
        while stream.read(&mut hello).await? > 0 {}
        Ok(())
    };
    match tokio::time::timeout(Duration::from_secs(2), talk).await {
        Ok(Err(error)) => Err(Ended::Io(error)),
        Ok(Ok(())) | Err(_) => Err(Ended::TlsOnPlain),
    }
}
