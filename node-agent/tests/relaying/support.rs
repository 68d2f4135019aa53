//! The relay before stand-ins, and a runtime that sees every byte and how the connection ends.

pub(crate) use super::stand_in::{Cache, Reply, SERVICE, Step};

use super::stand_in::LONG;
use breakwater_crds::{RelayKey, relay_token};
use breakwater_node_agent::known::{Endpoint, Trust};
use breakwater_node_agent::plan::CacheAddress;
use breakwater_node_agent::registry_host::RegistryHost;
use breakwater_node_agent::relay::{Relay, Route, Standing, Trusting, View};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

/// A relay with one route, to `docker.io`.
pub(crate) struct Running {
    pub(crate) relay: Relay,
    pub(crate) address: SocketAddr,
    pub(crate) stop: CancellationToken,
    pub(crate) task: tokio::task::JoinHandle<()>,
    trusting: Mutex<Trusting>,
}

impl Running {
    /// Starts a relay with no route.
    pub(crate) async fn bare() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (relay, stop) = (Relay::default(), CancellationToken::new());
        let task = tokio::spawn(relay.clone().serve(listener, stop.clone()));
        Self { relay, address, stop, task, trusting: Mutex::default() }
    }

    /// Starts a relay before this cache and waits until the cache has answered.
    pub(crate) async fn before(cache: &Cache) -> Self {
        let running = Self::bare().await;
        running.route(&[cache.address], &cache.ca);
        running.until(|view| view.standing == Standing::In).await;
        running
    }

    pub(crate) fn route(&self, addresses: &[SocketAddr], ca: &str) {
        self.routes(&[("docker.io", addresses, ca)]);
    }

    /// As `route`, of a mirror without a fallback.
    pub(crate) fn route_only_way(&self, addresses: &[SocketAddr], ca: &str) {
        self.set_routes(&[("docker.io", addresses, ca)], true);
    }

    /// Routes registries to the Pods of caches, by the CA of each.
    pub(crate) fn routes(&self, routes: &[(&str, &[SocketAddr], &str)]) {
        self.set_routes(routes, false);
    }

    fn set_routes(&self, routes: &[(&str, &[SocketAddr], &str)], is_only_way: bool) {
        let route = |(registry, addresses, ca): &(&str, &[SocketAddr], &str)| {
            let endpoints = addresses
                .iter()
                .enumerate()
                .map(|(i, address)| Endpoint { terminating: false, pod: format!("{SERVICE}-{i}"), address: *address })
                .collect();
            let trust = Trust { ca: (*ca).to_owned(), key: key() };
            let cache = CacheAddress { service: SERVICE.into(), endpoints, is_only_way };
            let tls = self.trusting.lock().unwrap().only(ca).unwrap();
            let route = Route::new(&cache, &trust, tls).unwrap();
            (RegistryHost::parse(registry).unwrap(), Some(Arc::new(route)))
        };
        self.relay.set_routes(routes.iter().map(route).collect());
    }

    /// Waits until every Pod answers.
    pub(crate) async fn until_all_in(&self) {
        self.until(|view| view.answering == view.pods).await;
    }

    pub(crate) fn view(&self) -> View {
        self.relay.views()["docker.io"].clone()
    }

    /// Waits for a change of what the relay tells of the cache.
    pub(crate) async fn until(&self, holds: impl Fn(&View) -> bool) {
        let wait = async {
            while !holds(&self.view()) {
                self.relay.changed().await;
            }
        };
        timeout(LONG, wait).await.unwrap_or_else(|_| panic!("still {:?}", self.view()));
    }

    /// Asks as a runtime does, over a connection of its own.
    pub(crate) async fn ask(&self, request: &str) -> Answer {
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        read(&mut stream).await
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.ask(&get(path)).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A request that ends its connection.
pub(crate) fn get(path: &str) -> String {
    format!("GET {path} HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")
}

fn key() -> RelayKey {
    RelayKey::parse(&"0a".repeat(32)).unwrap()
}

pub(crate) fn token() -> String {
    relay_token(&key(), SERVICE)
}

/// An answer as it came over the wire.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
    /// How the connection ended.
    pub(crate) end: End,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    Fin,
    Reset,
}

/// Reads to the end of the connection.
pub(crate) async fn read(stream: &mut TcpStream) -> Answer {
    let mut bytes = Vec::new();
    let end = match timeout(LONG, stream.read_to_end(&mut bytes)).await.expect("the relay neither answers nor closes") {
        Ok(_) => End::Fin,
        Err(_) => End::Reset,
    };
    let split = bytes.windows(4).position(|four| four == b"\r\n\r\n").map_or(bytes.len(), |at| at + 4);
    let head = String::from_utf8_lossy(&bytes[..split]).to_lowercase();
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_default();
    Answer { status, head, body: bytes[split..].to_vec(), end }
}
