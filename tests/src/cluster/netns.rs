//! The way from the harness into a cluster's network: sockets made in its namespace, used by this process.
//!
//! A socket belongs to the namespace of the thread that made it, for good. So a short-lived thread moves itself there,
//! makes the socket and hands it over; no address of the cluster exists on the host.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::accept;

const CONNECT_LIMIT: Duration = Duration::from_secs(5);

/// A network namespace.
#[derive(Debug, Clone)]
pub(super) struct NetworkNamespace(Arc<File>);

impl NetworkNamespace {
    pub(super) fn of_process(pid: u32) -> Result<Self> {
        let file = File::open(format!("/proc/{pid}/ns/net")).context("open a network namespace")?;
        Ok(Self(Arc::new(file)))
    }

    async fn within<T: Send + 'static>(&self, make: impl FnOnce() -> std::io::Result<T> + Send + 'static) -> Result<T> {
        let namespace = Arc::clone(&self.0);
        let (send, receive) = tokio::sync::oneshot::channel();
        // Not from a pool: the thread stays in the namespace and must end.
        std::thread::spawn(move || {
            let made = move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(std::io::Error::from)
                .and_then(|()| make());
            // Nobody waits for it any more.
            let _ = send.send(made);
        });
        receive
            .await
            .map_err(|_| anyhow!("a socket's maker ended early"))?
            .context("make a socket in the cluster's network")
    }

    pub(super) async fn connect(&self, address: SocketAddrV4) -> Result<tokio::net::TcpStream> {
        let stream = self
            .within(move || {
                let stream = TcpStream::connect_timeout(&SocketAddr::V4(address), CONNECT_LIMIT)?;
                stream.set_nonblocking(true)?;
                Ok(stream)
            })
            .await
            .with_context(|| format!("connect to {address}"))?;
        tokio::net::TcpStream::from_std(stream).context("take over a connection")
    }

    pub(super) async fn listen(&self, address: SocketAddrV4) -> Result<TcpListener> {
        let listener = self
            .within(move || {
                let listener = std::net::TcpListener::bind(address)?;
                listener.set_nonblocking(true)?;
                Ok(listener)
            })
            .await
            .with_context(|| format!("listen on {address}"))?;
        TcpListener::from_std(listener).context("take over a listener")
    }

    pub(super) async fn bind_udp(&self, address: SocketAddrV4) -> Result<tokio::net::UdpSocket> {
        let socket = self
            .within(move || {
                let socket = UdpSocket::bind(address)?;
                socket.set_nonblocking(true)?;
                Ok(socket)
            })
            .await
            .with_context(|| format!("listen on {address}"))?;
        tokio::net::UdpSocket::from_std(socket).context("take over a socket")
    }
}

/// A port on the host's loopback that leads to an address in the cluster; closed when dropped.
#[derive(Debug)]
pub struct Forward {
    local: SocketAddr,
    _task: JoinSet<()>,
}

impl Forward {
    pub(super) async fn start(namespace: NetworkNamespace, target: SocketAddrV4) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("listen on loopback")?;
        let local = listener.local_addr().context("learn the port")?;
        let mut task = JoinSet::new();
        task.spawn(accept::each(listener, move |mut near| {
            let namespace = namespace.clone();
            async move {
                // A failure shows to the client as a closed connection, as it would without the detour.
                if let Ok(mut far) = namespace.connect(target).await {
                    let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                }
            }
        }));
        Ok(Self { local, _task: task })
    }

    /// The address to connect to on the host.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.local
    }
}
