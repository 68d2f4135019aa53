//! Connections to wherever a request goes: names, TCP, TLS and the proxy in between. Knows nothing of what is asked.

use std::{
    error::Error,
    io,
    net::SocketAddr,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{Uri, uri::Scheme};
use hyper_util::{
    client::legacy::connect::{Connected, Connection, HttpConnector, proxy::Tunnel},
    rt::TokioIo,
};
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::timeout,
};
use tokio_rustls::TlsConnector;
use tower::Service;

use super::{proxy::ProxyUrl, resolver::Resolver};
use crate::metrics::{Metrics, Phase};

/// For name, TCP, proxy and TLS together.
const CONNECT: Duration = Duration::from_secs(2);
/// A silent peer is asked by the kernel whether it is still there, as often and as many times.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
const KEEP_ALIVE_RETRIES: u32 = 3;
/// What was sent and is not acknowledged for so long breaks the connection.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);
/// So much is read at once before other tasks get their turn. A peer that sends faster than its answers are understood
/// (interim ones without end, for one) would otherwise keep a thread, and with it the timers that end its time.
const MOST_AT_ONCE: usize = 256 * 1024;

type BoxError = Box<dyn Error + Send + Sync>;

/// Makes connections for an HTTP client.
#[derive(Clone)]
pub(super) struct Connector {
    direct: Direct,
    proxy: Option<ProxyUrl>,
    metrics: Arc<Metrics>,
}

/// Connects to where a URI says, without any proxy.
#[derive(Clone)]
struct Direct {
    tcp: HttpConnector<Resolver>,
    tls: TlsConnector,
}

impl Connector {
    pub(super) fn new(resolver: Resolver, tls: ClientConfig, proxy: Option<ProxyUrl>, metrics: Arc<Metrics>) -> Self {
        let mut tcp = HttpConnector::new_with_resolver(resolver);
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_keepalive(Some(KEEP_ALIVE));
        tcp.set_keepalive_interval(Some(KEEP_ALIVE));
        tcp.set_keepalive_retries(Some(KEEP_ALIVE_RETRIES));
        tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
        // Shared out among the addresses of a name, so that one that is dead leaves time for the next.
        tcp.set_connect_timeout(Some(CONNECT));
        Self { direct: Direct { tcp, tls: TlsConnector::from(Arc::new(tls)) }, proxy, metrics }
    }

    async fn connect(self, to: Uri) -> Result<TokioIo<Stream>, BoxError> {
        let Self { mut direct, proxy, .. } = self;
        let Some(proxy) = proxy else { return direct.call(to).await };
        if to.scheme() == Some(&Scheme::HTTPS) {
            let tls = direct.tls.clone();
            let mut tunnel = Tunnel::new(proxy.uri(), direct);
            if let Some(login) = proxy.login() {
                tunnel = tunnel.with_auth(login);
            }
            let tunnelled = tunnel.call(to.clone()).await?.into_inner();
            return secured(&tls, &to, tunnelled).await.map(TokioIo::new);
        }
        let mut stream = direct.call(proxy.uri()).await?;
        stream.inner_mut().is_proxy = true;
        Ok(stream)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (this, metrics) = (self.clone(), Arc::clone(&self.metrics));
        Box::pin(async move {
            let connected = metrics.time(Phase::connect, timeout(CONNECT, this.connect(to))).await;
            connected.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
        })
    }
}

impl Service<Uri> for Direct {
    type Response = TokioIo<Stream>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Self { mut tcp, tls } = self.clone();
        Box::pin(async move {
            let tcp = tcp.call(to.clone()).await?.into_inner();
            let peer = tcp.peer_addr().ok();
            let plain = Stream::new(tcp, peer);
            let stream = if to.scheme() == Some(&Scheme::HTTPS) { secured(&tls, &to, plain).await? } else { plain };
            Ok(TokioIo::new(stream))
        })
    }
}

async fn secured(tls: &TlsConnector, to: &Uri, stream: Stream) -> Result<Stream, BoxError> {
    let host = to.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
    let peer = stream.peer;
    Ok(Stream::new(tls.connect(ServerName::try_from(host)?, stream).await?, peer))
}

/// What a connection leads to, as an extension of its answers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer(pub(super) SocketAddr);

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

/// A connection that lets others have their turn.
pub(super) struct Stream {
    io: Box<dyn Duplex>,
    peer: Option<SocketAddr>,
    /// Whether requests must name the host that they are for.
    is_proxy: bool,
    /// Read since the last pause.
    at_once: usize,
}

impl Stream {
    fn new(io: impl Duplex + 'static, peer: Option<SocketAddr>) -> Self {
        Self { io: Box::new(io), peer, is_proxy: false, at_once: 0 }
    }
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        let connected = Connected::new().proxy(self.is_proxy);
        match self.peer {
            Some(peer) => connected.extra(Peer(peer)),
            None => connected,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let so_far = std::mem::take(&mut self.at_once);
        if so_far >= MOST_AT_ONCE {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut self.io).poll_read(cx, buf))?;
        self.at_once = so_far + buf.filled().len() - before;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;
    use tokio::io::AsyncReadExt;

    use super::*;

    #[tokio::test]
    async fn a_peer_that_never_pauses_is_made_to() {
        let mut stream = Stream::new(tokio::io::join(tokio::io::repeat(7), tokio::io::sink()), None);
        let mut buffer = vec![0; MOST_AT_ONCE];
        assert_eq!(stream.read(&mut buffer).now_or_never().map(Result::ok), Some(Some(MOST_AT_ONCE)));
        assert!(stream.read(&mut buffer).now_or_never().is_none());
        assert_eq!(stream.read(&mut buffer).now_or_never().map(Result::ok), Some(Some(MOST_AT_ONCE)));
    }
}
