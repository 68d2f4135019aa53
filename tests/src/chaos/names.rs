//! A name server for one mirror, on a loopback address of its own, that can deny or swallow what it is asked.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result};
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::cluster::dns::{Table, answer};

/// The name under which upstream is known.
pub(super) const UPSTREAM: &str = "registry.chaos.test";
/// The name of its token service: some mirrors trust one in their upstream's domain only.
pub(super) const TOKENS: &str = "tokens.chaos.test";

/// How it treats questions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NameFault {
    /// There is no such name.
    NoSuchName,
    /// No answer.
    Silence,
}

/// A running name server.
#[derive(Debug)]
pub(super) struct Names {
    fault: Arc<Mutex<Option<NameFault>>>,
    resolv_conf: PathBuf,
    _task: JoinSet<()>,
}

impl Names {
    pub(super) async fn start(address: Ipv4Addr, folder: &Path) -> Result<Self> {
        let socket = UdpSocket::bind(SocketAddr::from((address, 53))).await;
        let socket = socket.context("listen on port 53 of a loopback address: this needs root")?;
        let resolv_conf = folder.join("resolv.conf");
        std::fs::write(&resolv_conf, format!("nameserver {address}\n")).context("write resolv.conf")?;
        let fault = Arc::new(Mutex::new(None));
        let mut task = JoinSet::new();
        task.spawn(serve(socket, Arc::clone(&fault)));
        Ok(Self { fault, resolv_conf, _task: task })
    }

    pub(super) fn resolv_conf(&self) -> &Path {
        &self.resolv_conf
    }

    pub(super) fn set(&self, fault: Option<NameFault>) {
        *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}

async fn serve(socket: UdpSocket, fault: Arc<Mutex<Option<NameFault>>>) {
    let known = Table::from([UPSTREAM, TOKENS].map(|name| (name.to_owned(), Ipv4Addr::LOCALHOST)));
    let mut buffer = [0; 1500];
    loop {
        // An error here is a former answer that could not be delivered.
        let Ok((length, peer)) = socket.recv_from(&mut buffer).await else { continue };
        let fault = *fault.lock().unwrap_or_else(PoisonError::into_inner);
        let answer = match fault {
            None => answer(&buffer[..length], &known),
            Some(NameFault::NoSuchName) => answer(&buffer[..length], &Table::new()),
            Some(NameFault::Silence) => None,
        };
        if let Some(answer) = answer {
            let _ = socket.send_to(&answer, peer).await;
        }
    }
}
