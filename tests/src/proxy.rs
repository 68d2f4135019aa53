//! A forward proxy on loopback: tunnels by CONNECT, forwards plain requests, asks for a login if told to, and records what it
//! was asked for. It resolves names from a table, as a proxy has its own idea of them.
#![allow(clippy::expect_used, reason = "a harness fails its test by panicking")]

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::OwnedReadHalf;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::accept;

/// A running proxy. Dropping it closes the port.
#[derive(Debug)]
pub struct Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    _task: JoinSet<()>,
}

#[derive(Debug)]
struct Shared {
    login: Option<String>,
    names: HashMap<String, SocketAddr>,
    asked: Mutex<Vec<String>>,
}

impl Proxy {
    /// A proxy that takes this `user:password` only, if any, and knows these names with their ports.
    pub async fn start(login: Option<&str>, names: &[(&str, SocketAddr)]) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let login = login.map(|login| format!("Basic {}", BASE64_STANDARD.encode(login)));
        let names = names.iter().map(|(name, address)| ((*name).to_owned(), *address)).collect();
        let shared = Arc::new(Shared { login, names, asked: Mutex::default() });
        let mut task = JoinSet::new();
        let known = Arc::clone(&shared);
        task.spawn(accept::each(listener, move |stream| {
            let shared = Arc::clone(&known);
            // Errors mean that one side went away, which is its right.
            async move { drop(serve(stream, &shared).await) }
        }));
        Self { address, shared, _task: task }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The hosts with ports that it was asked for, one for each request or tunnel.
    pub fn asked(&self) -> Vec<String> {
        self.shared.asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Shared {
    /// Notes the host that a request is for and gives its address, unless the login is wrong.
    fn admit(&self, head: &str, host: &str) -> Option<SocketAddr> {
        let shown = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then_some(value)
        });
        if self.login.is_some() && shown != self.login.as_deref() {
            return None;
        }
        self.asked.lock().unwrap_or_else(PoisonError::into_inner).push(host.to_owned());
        self.names.get(host).copied().or_else(|| host.parse().ok())
    }
}

/// The host with its port in `CONNECT host:1` or `GET http://host:1/path`.
fn host(head: &str) -> &str {
    let target = head.split(' ').nth(1).unwrap_or_default();
    target.trim_start_matches("http://").split('/').next().unwrap_or_default()
}

/// As the registry is to see it: the proxy's login is for the proxy.
fn plain(head: &str) -> String {
    let head = head.replacen(&format!("http://{}", host(head)), "", 1);
    head.split_inclusive("\r\n").filter(|line| !line.to_ascii_lowercase().starts_with("proxy-")).collect()
}

async fn serve(stream: TcpStream, shared: &Shared) -> io::Result<()> {
    let (mut near, mut back) = stream.into_split();
    let mut pending = Vec::new();
    let Some(head) = read_head(&mut near, &mut pending).await? else { return Ok(()) };
    let Some(address) = shared.admit(&head, host(&head)) else {
        let refusal = "HTTP/1.1 407 scripted\r\nProxy-Authenticate: Basic\r\nContent-Length: 0\r\n\r\n";
        return back.write_all(refusal.as_bytes()).await;
    };
    let (mut answer, mut request) = TcpStream::connect(address).await?.into_split();
    if head.starts_with("CONNECT ") {
        back.write_all(b"HTTP/1.1 200 scripted\r\n\r\n").await?;
        tokio::try_join!(tokio::io::copy(&mut near, &mut request), tokio::io::copy(&mut answer, &mut back))?;
        return Ok(());
    }
    let there = async {
        let mut head = head;
        loop {
            let plain = plain(&head);
            request.write_all(plain.as_bytes()).await?;
            match read_head(&mut near, &mut pending).await? {
                Some(next) => head = next,
                None => return io::Result::Ok(()),
            }
            // A client keeps its connection for one host; each of its requests counts.
            shared.admit(&head, host(&head));
        }
    };
    tokio::select! {
        done = there => done,
        done = tokio::io::copy(&mut answer, &mut back) => done.map(drop),
    }
}

/// One request's head with its empty line; requests through here have no bodies.
async fn read_head(stream: &mut OwnedReadHalf, pending: &mut Vec<u8>) -> io::Result<Option<String>> {
    loop {
        if let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
            let rest = pending.split_off(end + 4);
            let head = std::mem::replace(pending, rest);
            return Ok(Some(String::from_utf8_lossy(&head).into_owned()));
        }
        if stream.read_buf(pending).await? == 0 {
            return Ok(None);
        }
    }
}
