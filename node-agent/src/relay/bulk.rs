//! Bytes of a Pod in bulk: with one look at the socket as much is received as is wanted, since each look costs the processor as much
//! as some KiB do. Memory is held only for bytes that are here. Knows nothing of HTTP.

use bytes::{Buf, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_util::rt::TokioIo;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;

/// More than the largest record of TLS.
const RECORD: usize = 17 * 1024;

/// A socket from which more is received at once than TLS takes at once.
#[derive(Debug)]
pub(super) struct Wire {
    stream: TcpStream,
    /// What was received and not yet taken.
    ahead: BytesMut,
    /// How much is received at once.
    most: usize,
}

impl Wire {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { stream, ahead: BytesMut::new(), most: RECORD }
    }

    /// So much is about to be read. Where that is more than a record, the last one's end is received with it.
    fn expect(&mut self, bytes: usize) {
        let beyond = if bytes > RECORD { RECORD } else { 0 };
        self.most = (bytes + beyond).saturating_sub(self.ahead.len()).max(RECORD);
    }

    /// Keeps no more memory than needed for what was not taken.
    fn settle(&mut self) {
        self.ahead = BytesMut::from(&self.ahead[..]);
    }
}

impl AsyncRead for Wire {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, ahead, most } = &mut *self;
        if ahead.is_empty() {
            let mut received = BytesMut::with_capacity(*most);
            ready!(pin!(stream.read_buf(&mut received)).poll(cx))?;
            *ahead = received;
        }
        let taken = ahead.len().min(buf.remaining());
        buf.put_slice(&ahead[..taken]);
        ahead.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// The same within TLS, for hyper.
#[derive(Debug)]
pub(super) struct Bulk(TokioIo<TlsStream<Wire>>);

impl Bulk {
    pub(super) fn new(stream: TlsStream<Wire>) -> Self {
        Self(TokioIo::new(stream))
    }

    fn wire(&mut self) -> &mut Wire {
        self.0.inner_mut().get_mut().0
    }
}

impl Read for Bulk {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        self.wire().expect(buf.remaining());
        let read = Pin::new(&mut self.0).poll_read(cx, buf);
        self.wire().settle();
        read
    }
}

impl Write for Bulk {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn what_is_wanted_comes_at_once_and_no_memory_stays() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut sender = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut wire = Wire::new(listener.accept().await.unwrap().0);
        let sent: Vec<u8> = (0..2 * RECORD).map(|place| (place % 251) as u8).collect();
        sender.write_all(&sent).await.unwrap();
        while wire.stream.peek(&mut vec![0; sent.len()]).await.unwrap() < sent.len() {}

        let mut came = vec![0; 4096];
        wire.expect(RECORD + 1);
        wire.read_exact(&mut came).await.unwrap();
        assert_eq!(wire.ahead.len(), sent.len() - came.len());
        wire.settle();
        came.resize(sent.len(), 0);
        wire.read_exact(&mut came[4096..]).await.unwrap();
        assert!(came == sent);
        wire.settle();
        assert_eq!(wire.ahead.capacity(), 0);
    }
}
