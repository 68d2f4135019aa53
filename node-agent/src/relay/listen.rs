//! The loopback listener: accepts, bounds and ends the runtime's connections. Knows nothing of registries.

use super::body::RelayBody;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

/// With this much for the runtime to take, no more is asked of the cache. No head of a request is larger either.
const WAITING: usize = 16 * 1024;
const CONNECTIONS: usize = 1024;
/// Beyond the cap some are told so, for the sake of the liveness probe; beyond these, connections are closed.
const TURNED_AWAY: usize = 64;
const HEADER_READ: Duration = Duration::from_secs(15);
/// Running downloads may go on this long after a stop.
const DRAIN: Duration = Duration::from_secs(15);
/// A peer that still sends gets this long to see that we closed.
const LINGER: Duration = Duration::from_millis(500);

/// Whether a connection came while there was room.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Room {
    /// There was.
    Enough,
    /// There was none: only the health is told.
    None,
}

/// What answers requests.
pub(super) trait Answer: Send + Sync + 'static {
    fn answer(&self, request: Request<Incoming>, room: Room) -> impl Future<Output = Response<RelayBody>> + Send;
}

/// Serves until told to stop, then lets running downloads finish for a while.
pub(super) async fn serve<A: Answer>(listener: TcpListener, answer: Arc<A>, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => break,
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) if connections.len() < CONNECTIONS + TURNED_AWAY => {
                    let room = if connections.len() < CONNECTIONS { Room::Enough } else { Room::None };
                    connections.spawn(connection(stream, answer.clone(), room, stop.clone()));
                }
                Ok(_) => {}
                Err(error) => {
                    tracing::warn!(%error, "relay cannot accept a connection");
                    sleep(Duration::from_millis(100)).await;
                }
            },
        }
    }
    drop(listener);
    let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::info!(
            connections = connections.len(),
            "relay stops with downloads running; the runtime resumes them elsewhere"
        );
        connections.shutdown().await;
    }
}

async fn connection<A: Answer>(stream: TcpStream, answer: Arc<A>, room: Room, stop: CancellationToken) {
    let service = service_fn(|request| {
        let answer = answer.clone();
        async move { Ok::<_, Infallible>(answer.answer(request, room).await) }
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_READ)
        .max_buf_size(WAITING)
        .keep_alive(room == Room::Enough)
        .serve_connection(TokioIo::new(stream), service);
    let ended = tokio::select! {
        ended = &mut connection => ended,
        () = stop.cancelled() => {
            std::pin::Pin::new(&mut connection).graceful_shutdown();
            (&mut connection).await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "relay connection ended early");
        close(connection.into_parts().io.into_inner()).await;
    }
}

/// Closes by FIN. With bytes of the peer unread the kernel would send RST instead, after which containerd does not resume.
async fn close(mut stream: TcpStream) {
    let farewell = async {
        stream.shutdown().await?;
        let mut rest = [0; 4096];
        while stream.read(&mut rest).await? > 0 {}
        std::io::Result::Ok(())
    };
    // Whatever went wrong here, dropping the stream ends it.
    drop(timeout(LINGER, farewell).await);
}
