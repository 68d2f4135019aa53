//! One HTTP request over one connection, with a bounded answer. Client I/O; the caller connects, and sets the deadline.

use bytes::Bytes;
use http_body_util::{BodyExt, Limited};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExchangeFailed {
    /// The other side does not speak HTTP, or not to the end.
    #[error("cannot speak HTTP")]
    Http(#[source] hyper::Error),
    /// The body broke off, or is too long.
    #[error("cannot read the answer")]
    Body,
}

/// Sends the request and reads the whole answer, of at most `most` bytes.
///
/// # Errors
/// There is no answer that can be read.
pub async fn exchange<S, B>(stream: S, request: Request<B>, most: usize) -> Result<(StatusCode, Bytes), ExchangeFailed>
where
    S: AsyncRead + AsyncWrite + Unpin,
    B: hyper::body::Body + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(ExchangeFailed::Http)?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(ExchangeFailed::Http)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), most).collect().await.map_err(|_| ExchangeFailed::Body)?;
        Ok((status, body.to_bytes()))
    };
    // The connection is driven here and not in a task of its own, so that it ends with the answer or the deadline.
    tokio::pin!(connection);
    tokio::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        driven = &mut connection => {
            driven.map_err(ExchangeFailed::Http)?;
            answer.await
        }
    }
}
