//! A connection's bytes: gives up on a peer that takes none of them, and closes so that the last words arrive. Knows
//! nothing of HTTP.

use std::{
    future::Future,
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep, sleep},
};

/// A peer that says more than this after the last words is not listened to.
const MOST_UNREAD: usize = 1 << 20;
/// So long may it take to read the last words.
const LINGER: Duration = Duration::from_secs(1);

/// A stream that waits for its peer, but not for ever.
pub(super) struct Socket<S> {
    stream: S,
    /// So long may the peer take nothing at all.
    patience: Duration,
    /// Kept once made: a slow reader arms it for each frame.
    timer: Option<Pin<Box<Sleep>>>,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Open,
    /// The peer has yet to take what it was sent.
    Full,
    /// Our end is closed; so many bytes were read and thrown away since.
    Closed(usize),
}

impl<S> Socket<S> {
    pub(super) fn new(stream: S, patience: Duration) -> Self {
        Self { stream, patience, timer: None, state: State::Open }
    }

    fn arm(&mut self, wait: Duration) {
        match &mut self.timer {
            Some(timer) => timer.as_mut().reset(Instant::now() + wait),
            None => self.timer = Some(Box::pin(sleep(wait))),
        }
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        self.timer.as_mut().is_some_and(|timer| timer.as_mut().poll(cx).is_ready())
    }

    /// Watches what the peer takes.
    fn watch<T>(&mut self, cx: &mut Context<'_>, wrote: Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        if wrote.is_ready() {
            self.state = State::Open;
            return wrote;
        }
        if self.state == State::Open {
            self.arm(self.patience);
            self.state = State::Full;
        }
        if self.is_over(cx) { Poll::Ready(Err(io::ErrorKind::TimedOut.into())) } else { Poll::Pending }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Socket<S> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncWrite for Socket<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write(cx, buf);
        self.watch(cx, wrote)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let wrote = Pin::new(&mut self.stream).poll_write_vectored(cx, bufs);
        self.watch(cx, wrote)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(cx);
        self.watch(cx, flushed)
    }

    /// Closing with unread bytes would be a reset, which takes the last words with it: what the peer still says is read
    /// and thrown away until it closes too, for a moment.
    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !matches!(self.state, State::Closed(_)) {
            ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
            self.state = State::Closed(0);
            self.arm(LINGER);
        }
        let mut unread = [0; 4096];
        while let State::Closed(count) = self.state {
            let mut buf = ReadBuf::new(&mut unread);
            let is_there = match Pin::new(&mut self.stream).poll_read(cx, &mut buf) {
                // Nothing is unread: there is no reason to linger.
                Poll::Pending if count == 0 || self.is_over(cx) => false,
                Poll::Pending => return Poll::Pending,
                Poll::Ready(read) => read.is_ok() && !buf.filled().is_empty(),
            };
            if !is_there || count > MOST_UNREAD {
                return Poll::Ready(Ok(()));
            }
            self.state = State::Closed(count + buf.filled().len());
        }
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn a_peer_that_takes_nothing_is_given_up() {
        let (ours, _theirs) = duplex(10);
        let mut socket = Socket::new(ours, Duration::from_millis(30));
        let error = socket.write_all(&[0; 11]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }

    #[tokio::test]
    async fn a_slow_peer_is_waited_for_as_long_as_it_takes_a_byte_in_time() {
        let (ours, mut theirs) = duplex(1);
        let mut socket = Socket::new(ours, Duration::from_secs(5));
        let reading = async {
            let mut all = Vec::new();
            while all.len() < 20 {
                sleep(Duration::from_millis(1)).await;
                all.push(theirs.read_u8().await.unwrap());
            }
            all
        };
        let (wrote, read) = tokio::join!(socket.write_all(&[7; 20]), reading);
        assert!(wrote.is_ok());
        assert_eq!(read, [7; 20]);
    }

    #[tokio::test]
    async fn what_the_peer_still_says_is_read_until_it_closes() {
        let (ours, mut theirs) = duplex(16);
        let mut socket = Socket::new(ours, Duration::from_secs(5));
        theirs.write_all(&[1; 16]).await.unwrap();
        let talking = async {
            theirs.write_all(&[1; 1000]).await.unwrap();
            theirs.shutdown().await.unwrap();
        };
        let (closed, ()) = tokio::join!(socket.shutdown(), talking);
        assert!(closed.is_ok());
    }

    #[tokio::test]
    async fn a_peer_that_said_all_is_not_waited_for() {
        let (ours, _theirs) = duplex(16);
        let closed = tokio::time::timeout(LINGER / 2, async { Socket::new(ours, LINGER).shutdown().await }).await;
        assert!(closed.is_ok());
    }
}
