//! A scripted upstream registry on loopback: a registry, its token service and its CDN, each on a port of its own, which
//! show any fault on command and record every request.
//!
//! It knows nothing of Breakwater. It runs on its own thread, so a test that blocks never looks like a slow registry.
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "a harness fails its test by panicking")]

mod access;
mod answer;
pub mod content;
mod deliver;
mod fault;
mod front;
mod listener;
mod lists;
mod record;
mod state;
mod wire;

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;

pub use access::{Account, Scheme};
pub use content::{Blob, Content, Image};
pub use fault::{Fault, On};
pub use front::{Front, Handshake};
pub use record::Recorded;
pub use state::Role;

use state::Shared;

/// How long [`Upstream::wait_for`] waits before the test fails.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running scripted registry. Dropping it closes every port.
#[derive(Debug)]
pub struct Upstream {
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

/// A place in the record of requests: what came later is found by [`Upstream::requests_since`].
#[derive(Clone, Copy, Debug)]
pub struct Cursor(usize);

impl Upstream {
    /// Starts an empty, healthy registry that asks for no credentials.
    pub async fn start() -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST).await
    }

    /// The same, at another of this machine's addresses.
    pub async fn start_at(address: Ipv4Addr) -> Self {
        let (stop, stopped) = oneshot::channel();
        let (ready, shared) = oneshot::channel();
        let thread = std::thread::Builder::new()
            .name("upstream".to_owned())
            .spawn(move || listener::run(address, ready, stopped))
            .expect("a thread for the upstream");
        Self { shared: shared.await.expect("the upstream's ports"), stop: Some(stop), thread: Some(thread) }
    }

    /// The registry's address.
    pub fn address(&self) -> SocketAddr {
        self.shared.addresses.registry
    }

    /// The registry's host and port, as image names would write it.
    pub fn host(&self) -> String {
        self.address().to_string()
    }

    /// The registry's base URL.
    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    /// Holds a blob in a repository.
    pub fn put_blob(&self, repository: &str, blob: &Blob) {
        self.shared.store().put_blob(repository, blob);
    }

    /// Holds a manifest in a repository, by digest only.
    pub fn put_manifest(&self, repository: &str, manifest: &Blob) {
        self.shared.store().put_manifest(repository, manifest);
    }

    /// Holds a manifest and points a tag at it.
    pub fn tag(&self, repository: &str, tag: &str, manifest: &Blob) {
        self.shared.store().tag(repository, tag, manifest);
    }

    /// Holds an image completely and points a tag at its manifest.
    pub fn push(&self, repository: &str, tag: &str, image: &Image) {
        for blob in image.blobs() {
            self.put_blob(repository, blob);
        }
        self.tag(repository, tag, &image.manifest);
    }

    /// Holds an index with all its images and points a tag at it.
    pub fn push_index(&self, repository: &str, tag: &str, index: &Blob, images: &[&Image]) {
        for image in images {
            image.blobs().for_each(|blob| self.put_blob(repository, blob));
            self.put_manifest(repository, &image.manifest);
        }
        self.tag(repository, tag, index);
    }

    /// Takes a tag away; its manifest stays.
    pub fn untag(&self, repository: &str, tag: &str) {
        self.shared.store().untag(repository, tag);
    }

    /// Asks for credentials from now on, by this scheme. No account at all means that anonymous callers may read.
    pub fn require(&self, scheme: Scheme, accounts: &[Account]) {
        self.shared.access().require(scheme, accounts);
    }

    /// Names the token service by this host in place of its address.
    pub fn name_token_service(&self, host: &str) {
        let port = self.shared.addresses.tokens.port();
        self.shared.access().realm = format!("{host}:{port}");
    }

    /// The token service's address.
    pub fn token_service(&self) -> SocketAddr {
        self.shared.addresses.tokens
    }

    /// Makes every token issued so far worthless.
    pub fn revoke_tokens(&self) {
        self.shared.access().revoke();
    }

    /// How long a token issued from now on is good for.
    pub fn token_lifetime(&self, lifetime: Duration) {
        self.shared.access().lifetime = lifetime;
    }

    /// Answers blob requests with a redirect to the CDN, which rejects any request that shows credentials.
    pub fn redirect_blobs(&self) {
        self.shared.store().redirect_blobs = true;
    }

    /// Announces this remaining rate limit with every manifest.
    pub fn announce_rate_limit(&self, remaining: u32) {
        self.shared.store().rate_limit = Some(remaining);
    }

    /// Answers 404 under `/referrers/`, as a registry from before that API.
    pub fn lack_referrers(&self) {
        self.shared.store().lacks_referrers = true;
    }

    /// Shows a fault from now until [`Upstream::heal`].
    pub async fn fault(&self, on: On, fault: Fault) {
        self.shared.add_fault(on, fault, None).await;
    }

    /// Shows a fault to the next `times` matching requests.
    pub async fn fault_times(&self, times: usize, on: On, fault: Fault) {
        self.shared.add_fault(on, fault, Some(times)).await;
    }

    /// Shows a fault to every other matching request, the next one first.
    pub fn fault_every_other(&self, on: On, fault: Fault) {
        self.shared.rules().add_alternating(on, fault);
    }

    /// Ends every fault: closed ports open again on the same numbers and stalled bodies go on. What was swallowed before
    /// stays swallowed.
    pub async fn heal(&self) {
        self.shared.heal().await;
    }

    /// Every request so far, oldest first.
    pub fn requests(&self) -> Vec<Recorded> {
        self.shared.log.borrow().clone()
    }

    /// The present end of the record.
    pub fn mark(&self) -> Cursor {
        Cursor(self.shared.log.borrow().len())
    }

    /// The requests that came after the mark.
    pub fn requests_since(&self, mark: Cursor) -> Vec<Recorded> {
        self.shared.log.borrow()[mark.0..].to_vec()
    }

    /// The requests after the mark for content; a cache may ping `/v2/` and fetch tokens as it likes.
    pub fn content_requests_since(&self, mark: Cursor) -> Vec<Recorded> {
        let mut requests = self.requests_since(mark);
        requests.retain(Recorded::asks_for_content);
        requests
    }

    /// Body bytes sent for requests whose path ends so, on the registry or on the CDN.
    pub fn bytes_sent(&self, path_end: &str) -> u64 {
        let log = self.shared.log.borrow();
        log.iter().filter(|request| request.path.ends_with(path_end)).map(|request| request.bytes_sent).sum()
    }

    /// Waits until the record of requests satisfies the condition.
    pub async fn wait_for(&self, what: &str, condition: impl Fn(&[Recorded]) -> bool) {
        let mut log = self.shared.log.subscribe();
        let met = async {
            loop {
                // Judged on a copy: the condition may look at the record again, and the record's lock is not reentrant.
                let requests = log.borrow_and_update().clone();
                if condition(&requests) {
                    return;
                }
                let _ = log.changed().await;
            }
        };
        let waited = tokio::time::timeout(PATIENCE, met).await;
        assert!(waited.is_ok(), "the upstream never saw: {what}");
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // Its runtime ends at once when the stop channel closes; a panic there has been printed already.
            let _ = thread.join();
        }
    }
}
