//! Reads from a TLS stream as much as there is: the stream itself gives one record at a time, and each would be passed on alone.
//! Knows nothing of HTTP.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// A stream whose reads fill what they are given, as far as bytes are at hand.
#[derive(Debug)]
pub(super) struct Gathered<S>(pub(super) S);

impl<S: AsyncRead + Unpin> AsyncRead for Gathered<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        while buf.remaining() > 0 {
            let so_far = buf.filled().len();
            let read = Pin::new(&mut self.0).poll_read(cx, buf);
            if matches!(read, Poll::Ready(Ok(()))) && buf.filled().len() > so_far {
                continue;
            }
            // An end or an error comes again with the next read.
            return if so_far > before { Poll::Ready(Ok(())) } else { read };
        }
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathered<S> {
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
    use std::collections::VecDeque;
    use tokio::io::AsyncReadExt;

    /// Gives one part at a time.
    struct Parts(VecDeque<io::Result<&'static [u8]>>);

    impl AsyncRead for Parts {
        fn poll_read(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            self.0.pop_front().map_or(Poll::Pending, |part| Poll::Ready(part.map(|part| buf.put_slice(part))))
        }
    }

    #[tokio::test]
    async fn what_is_at_hand_is_read_at_once() {
        let mut gathered = Gathered(Parts([Ok(&b"ab"[..]), Ok(b"cd")].into()));
        let mut buffer = [0; 8];
        assert_eq!(gathered.read(&mut buffer).await.unwrap(), 4, "the rest is not waited for");
        assert_eq!(&buffer[..4], b"abcd");
        for end in [Ok(&b""[..]), Err(io::ErrorKind::ConnectionReset.into())] {
            let is_error = end.is_err();
            gathered.0.0.extend([Ok(&b"ef"[..]), end, Err(io::ErrorKind::ConnectionReset.into())]);
            assert_eq!(gathered.read(&mut buffer).await.unwrap(), 2);
            let told = gathered.read(&mut buffer).await;
            assert!(told.is_err(), "{is_error}");
            gathered.0.0.clear();
        }
    }
}
