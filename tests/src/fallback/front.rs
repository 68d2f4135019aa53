//! The way from the relay to one real cache, which goes wrong on command. Healthy, it passes bytes on and reads none. With a fault
//! it ends the TLS connection itself, with the cache's own certificate, and asks the real cache for what it then spoils.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::server::TlsStream;

use crate::accept;
use crate::cache::Identity;

/// How a slow cache's bytes come: 1 KiB/s.
const DRIP: (usize, Duration) = (256, Duration::from_millis(250));

/// How it goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// Not at all.
    Through,
    /// Whoever connects is taken, and told nothing any more.
    Silent,
    /// The certificate has expired.
    Expired,
    /// The cache is shown another token.
    OtherToken,
    /// Every body stops half way.
    Stall,
    /// Every body ends half way, in order.
    Truncate,
    /// Every body ends half way, by a reset.
    Reset,
    /// A byte of every manifest is wrong.
    WrongManifest,
    /// A byte of every blob is wrong.
    WrongBlob,
    /// Every body comes at 1 KiB a second.
    Slow,
}

/// A cache's address as the relay knows it.
#[derive(Debug)]
pub(super) struct Front {
    way: watch::Sender<Way>,
    _task: JoinSet<()>,
}

/// What every connection needs.
#[derive(Debug, Clone)]
struct Behind {
    cache: SocketAddr,
    identity: Identity,
    way: watch::Receiver<Way>,
}

impl Front {
    /// Stands before `cache`, which has this identity.
    pub(super) fn start(listener: TcpListener, cache: SocketAddr, identity: Identity) -> Self {
        let (way, ways) = watch::channel(Way::Through);
        let behind = Behind { cache, identity, way: ways };
        let mut task = JoinSet::new();
        task.spawn(accept::each(listener, move |stream| {
            let behind = behind.clone();
            // Errors mean that one side went away, which is its right.
            async move { drop(behind.meet(stream).await) }
        }));
        Self { way, _task: task }
    }

    /// Goes wrong in this way from now on, on connections that are open as well.
    pub(super) fn go(&self, way: Way) {
        self.way.send_replace(way);
    }
}

impl Behind {
    async fn meet(mut self, mut near: TcpStream) -> Result<()> {
        let way = *self.way.borrow_and_update();
        match way {
            Way::Through => {
                let mut far = TcpStream::connect(self.cache).await?;
                let changed = tokio::select! {
                    ended = copy_bidirectional(&mut near, &mut far) => return Ok(ended.map(drop)?),
                    changed = self.way.wait_for(|way| *way != Way::Through) => changed.map(|way| *way)?,
                };
                if changed == Way::Silent {
                    hold(near).await;
                }
                Ok(())
            }
            Way::Silent => {
                hold(near).await;
                Ok(())
            }
            _ => {
                let near = self.identity.acceptor(way == Way::Expired).accept(near).await?;
                self.converse(BufReader::new(near)).await
            }
        }
    }

    /// One request after the other, each as the way is then.
    async fn converse(mut self, mut near: BufReader<TlsStream<TcpStream>>) -> Result<()> {
        loop {
            let head = tokio::select! {
                head = read_head(&mut near) => head?,
                // The next connection meets the cache itself.
                _ = self.way.wait_for(|way| *way == Way::Through) => return Ok(()),
            };
            let Some(head) = head else { return Ok(()) };
            let way = *self.way.borrow_and_update();
            if way == Way::Silent {
                hold(near).await;
                return Ok(());
            }
            let (connector, name) = self.identity.connector();
            let far = TcpStream::connect(self.cache).await?;
            let mut far = BufReader::new(connector.connect(name, far).await?);
            far.write_all(asked(&head, way).as_bytes()).await?;
            let answer = read_head(&mut far).await?.context("the cache closed")?;
            near.write_all(answer.replace("connection: close\r\n", "").as_bytes()).await?;
            let length = if head.starts_with("HEAD ") { 0 } else { length(&answer) };
            pass(&mut far, &mut near, length, way, &head).await?;
            near.flush().await?;
        }
    }
}

/// Takes what comes and says nothing, until the other side gives up.
async fn hold(mut near: impl AsyncRead + Unpin) {
    let _ = tokio::io::copy(&mut near, &mut tokio::io::sink()).await;
}

/// Passes a body on as it is to arrive.
async fn pass(
    far: &mut (impl AsyncRead + Unpin),
    near: &mut BufReader<TlsStream<TcpStream>>,
    length: u64,
    way: Way,
    head: &str,
) -> Result<()> {
    let whole = length > 0;
    let wrong = match way {
        Way::WrongManifest => head.contains("/manifests/"),
        Way::WrongBlob => head.contains("/blobs/"),
        _ => false,
    };
    match way {
        Way::Stall | Way::Truncate | Way::Reset if whole => {
            tokio::io::copy(&mut far.take(length / 2), near).await?;
            near.flush().await?;
            match way {
                Way::Stall => hold(near).await,
                Way::Reset => near.get_ref().get_ref().0.set_zero_linger()?,
                _ => {}
            }
            anyhow::bail!("broke off on command")
        }
        Way::Slow => drip(far, near, length).await?,
        _ if wrong && whole => {
            tokio::io::copy(&mut far.take(length / 2), near).await?;
            near.write_all(&[!far.read_u8().await?]).await?;
            tokio::io::copy(&mut far.take(length - length / 2 - 1), near).await?;
        }
        _ => drop(tokio::io::copy(&mut far.take(length), near).await?),
    }
    Ok(())
}

async fn drip(
    far: &mut (impl AsyncRead + Unpin),
    near: &mut BufReader<TlsStream<TcpStream>>,
    length: u64,
) -> io::Result<()> {
    let (mut left, mut drop) = (length, [0; DRIP.0]);
    while left > 0 {
        let size = left.min(DRIP.0 as u64);
        let part = &mut drop[..usize::try_from(size).unwrap_or(DRIP.0)];
        far.read_exact(part).await?;
        near.write_all(part).await?;
        near.flush().await?;
        left -= size;
        tokio::time::sleep(DRIP.1).await;
    }
    Ok(())
}

/// The head of one message with its empty line; None at the end.
async fn read_head(stream: &mut (impl AsyncBufReadExt + Unpin)) -> io::Result<Option<String>> {
    let mut head = String::new();
    loop {
        if stream.read_line(&mut head).await? == 0 {
            return Ok(None);
        }
        if head.ends_with("\r\n\r\n") {
            return Ok(Some(head));
        }
    }
}

/// The request as the cache gets it, over a connection of its own.
fn asked(head: &str, way: Way) -> String {
    let kept = |line: &&str| !(way == Way::OtherToken && line.to_ascii_lowercase().starts_with("authorization:"));
    let lines: String = head.trim_end().split_inclusive("\r\n").filter(kept).collect();
    let token = if way == Way::OtherToken { "authorization: Bearer another\r\n" } else { "" };
    format!("{}\r\n{token}connection: close\r\n\r\n", lines.trim_end())
}

fn length(head: &str) -> u64 {
    let header = |line: &str| line.to_ascii_lowercase().strip_prefix("content-length:").map(str::to_owned);
    head.lines().find_map(header).and_then(|value| value.trim().parse().ok()).unwrap_or_default()
}
