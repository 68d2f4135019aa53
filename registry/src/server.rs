//! Listeners and connections: accept, TLS, deadlines, limits and a graceful end. Knows nothing of what is served.

mod socket;

use std::{
    convert::Infallible,
    future::Future,
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use http::{HeaderValue, Request, Response, header::CONNECTION};
use hyper::{
    body::{Body as _, Incoming},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use rustix::process::{Resource, getrlimit};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{Notify, OwnedSemaphorePermit, Semaphore},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{debug, warn};

use self::socket::Socket;
use crate::{
    args::Listen,
    body::Body,
    metrics::{Connections, Held},
    sendfile::{FileStream, Files},
};

const MOST_CONNECTIONS: usize = 8192;
/// A connection that sends a blob needs two, and downloads need some too.
const FILES_PER_CONNECTION: u64 = 3;
/// For the first byte of a connection and for its TLS handshake.
const GREETING: Duration = Duration::from_secs(10);
/// For a request's header, and for an idle connection's next one.
const HEADER: Duration = Duration::from_secs(60);
/// Where places are short, a connection that has not asked anything for this long has to go.
const CROWDED: Duration = Duration::from_secs(1);
/// For a client that takes not one byte of its answer.
const STALL: Duration = Duration::from_secs(300);
/// Per connection, and so what a paused reader holds besides one frame.
const BUFFER: usize = 64 * 1024;
/// The same of what is encrypted and not yet taken: a TLS record, as other servers hold.
const ENCRYPTED: usize = 16 * 1024;
const TLS_HELLO: u8 = 0x16;

tokio::task_local! {
    static CLIENT: SocketAddr;
}

/// Who is at the other end of the connection that the running request came by.
pub fn client() -> Option<SocketAddr> {
    CLIENT.try_with(|client| SocketAddr::new(client.ip().to_canonical(), client.port())).ok()
}

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
    let places = Places { free: Arc::new(Semaphore::new(most_connections())), crowded: Arc::default() };
    loop {
        let accepted = tokio::select! {
            () = stopping.cancelled() => break,
            accepted = accept(&listener, &places) => accepted,
        };
        let Some((stream, client, place)) = accepted else { continue };
        let crowded = Arc::clone(&places.crowded);
        let connection =
            Connection { stopping: stopping.clone(), patience, crowded, _place: place, _held: open.open() };
        let (acceptor, handler) = (acceptor.clone(), handler.clone());
        connections.spawn(CLIENT.scope(client, async move {
            if let Err(error) = connection.run(stream, acceptor, handler).await {
                debug!(%client, %error, "connection ended");
            }
        }));
    }
    // New callers are refused from here on.
    drop(listener);
    connections.close();
    connections.wait().await;
}

struct Places {
    free: Arc<Semaphore>,
    /// Tells connections that somebody waits for a place.
    crowded: Arc<Notify>,
}

/// Not more than there are file descriptors for: a listener without any could not even refuse.
fn most_connections() -> usize {
    let files = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX);
    usize::try_from(files / FILES_PER_CONNECTION).unwrap_or(usize::MAX).min(MOST_CONNECTIONS)
}

/// Waits for a free place first: beyond the limit callers wait in the kernel, and who asks nothing has to make room.
async fn accept(listener: &TcpListener, places: &Places) -> Option<(TcpStream, SocketAddr, OwnedSemaphorePermit)> {
    let place = match Arc::clone(&places.free).try_acquire_owned() {
        Ok(place) => place,
        Err(_) => {
            let mut again = tokio::time::interval(CROWDED);
            let place = Arc::clone(&places.free).acquire_owned();
            let mut place = pin!(place);
            loop {
                tokio::select! {
                    place = place.as_mut() => break place.ok()?,
                    _ = again.tick() => places.crowded.notify_waiters(),
                }
            }
        }
    };
    match listener.accept().await {
        Ok((stream, client)) => Some((stream, client, place)),
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
    #[error("asked nothing while others wait for a place")]
    Crowded,
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
    crowded: Arc<Notify>,
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
                let stream = self
                    .greeting(acceptor.accept_with(stream, |session| session.set_buffer_limit(Some(ENCRYPTED))))
                    .await?;
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
        let (came, has_asked) = (Instant::now(), Arc::new(AtomicBool::new(false)));
        let asks = Arc::clone(&has_asked);
        let service = service_fn(move |request: Request<Incoming>| {
            asks.store(true, Ordering::Relaxed);
            let has_body = !request.body().is_end_stream();
            let answer = handler(request);
            async move {
                let mut answer = answer.await;
                if has_body {
                    // Nobody reads it, and what follows it must not be taken for a request.
                    answer.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
                }
                Ok::<_, Infallible>(answer)
            }
        });
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(HEADER).max_buf_size(BUFFER);
        let stream = TokioIo::new(Socket::new(stream, STALL));
        let mut connection = pin!(builder.serve_connection(stream, service));
        let ended = loop {
            tokio::select! {
                ended = connection.as_mut() => break ended,
                () = self.stopping.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    break tokio::time::timeout(self.patience, connection).await.unwrap_or(Ok(()));
                }
                () = self.crowded.notified() => {
                    if !has_asked.load(Ordering::Relaxed) && came.elapsed() > CROWDED {
                        return Err(Ended::Crowded);
                    }
                    connection.as_mut().graceful_shutdown();
                }
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
