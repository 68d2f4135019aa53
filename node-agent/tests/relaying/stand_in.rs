//! A TLS server that stands for a cache where the real one cannot show the fault. It plays a script, request by request.

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::ServerConfig;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::task::AbortOnDropHandle;

pub(crate) const SERVICE: &str = "cache-docker-io";
pub(crate) const LONG: Duration = Duration::from_secs(30);

/// What the cache does with one request.
#[derive(Clone)]
pub(crate) struct Reply {
    pub(crate) head: String,
    pub(crate) steps: Vec<Step>,
}

/// One step of an answer after its head.
#[derive(Clone)]
pub(crate) enum Step {
    Send(Vec<u8>),
    /// This many MiB, as fast as they are taken.
    Flood(usize),
    /// Nothing, until the test says so.
    Wait(Arc<Notify>),
    /// Nothing for so long.
    Pause(Duration),
    /// Nothing, for ever.
    Stall,
    /// A byte a second, for ever.
    Drip,
    /// Ends the connection, by FIN.
    Close,
    /// Ends the connection, by RST.
    Reset,
}

impl Reply {
    pub(crate) fn new(status: u16, headers: &str, body: &[u8]) -> Self {
        let head = format!("HTTP/1.1 {status} X\r\n{headers}content-length: {}\r\n\r\n", body.len());
        Self { head, steps: vec![Step::Send(body.to_vec())] }
    }

    pub(crate) fn steps(length: usize, steps: Vec<Step>) -> Self {
        Self { head: format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n"), steps }
    }

    /// The same with these headers, each with its end of line.
    pub(crate) fn with(mut self, headers: &str) -> Self {
        self.head = self.head.replacen("\r\n", &format!("\r\n{headers}"), 1);
        self
    }
}

type Script = dyn Fn(&str) -> Reply + Send + Sync;

/// The stand-in for a cache.
pub(crate) struct Cache {
    pub(crate) address: SocketAddr,
    pub(crate) ca: String,
    acceptor: TlsAcceptor,
    script: Arc<Script>,
    state: Arc<State>,
    task: Option<AbortOnDropHandle<()>>,
    /// Keeps its port from others while it is dead.
    kept: Option<TcpSocket>,
}

#[derive(Default)]
struct State {
    requests: Mutex<Vec<String>>,
    /// Another one came.
    asked: Notify,
    connections: AtomicUsize,
    sent: AtomicU64,
    /// As a stopped process: connections are taken from the backlog and nothing else happens.
    frozen: AtomicBool,
    /// Connections before this one lead nowhere any more.
    lost: AtomicUsize,
}

impl Cache {
    /// Serves by script; `/v2/` is answered with 200 unless `base` says otherwise.
    pub(crate) async fn start(script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        let (acceptor, ca) = tls();
        Self::listen(acceptor, ca, Arc::new(script)).await
    }

    /// Another Pod of the same cache, which plays this.
    pub(crate) async fn beside(&self, script: impl Fn(&str) -> Reply + Send + Sync + 'static) -> Self {
        Self::listen(self.acceptor.clone(), self.ca.clone(), Arc::new(script)).await
    }

    /// Another Pod of the same cache.
    pub(crate) async fn replica(&self) -> Self {
        Self::listen(self.acceptor.clone(), self.ca.clone(), self.script.clone()).await
    }

    async fn listen(acceptor: TlsAcceptor, ca: String, script: Arc<Script>) -> Self {
        let socket = at("127.0.0.1:0".parse().unwrap());
        let address = socket.local_addr().unwrap();
        let listener = socket.listen(64).unwrap();
        let state = Arc::new(State::default());
        let task = tokio::spawn(serve(listener, acceptor.clone(), script.clone(), state.clone()));
        Self { address, ca, acceptor, script, state, task: Some(AbortOnDropHandle::new(task)), kept: None }
    }

    /// Every request but the probes: the head as it came.
    pub(crate) fn requests(&self) -> Vec<String> {
        let all = self.state.requests.lock().unwrap();
        all.iter().filter(|head| !head.starts_with("GET /v2/ ")).cloned().collect()
    }

    /// Waits until so many requests came.
    pub(crate) async fn until_requested(&self, times: usize) {
        let wait = async {
            while self.requests().len() < times {
                self.state.asked.notified().await;
            }
        };
        timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{:?}", self.requests()));
    }

    /// How many probes came.
    pub(crate) fn probes(&self) -> usize {
        self.state.requests.lock().unwrap().iter().filter(|head| head.starts_with("GET /v2/ ")).count()
    }

    /// Waits until so many did.
    pub(crate) async fn until_probed(&self, times: usize) {
        let wait = async {
            while self.probes() < times {
                self.state.asked.notified().await;
            }
        };
        timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{} probes", self.probes()));
    }

    pub(crate) fn connections(&self) -> usize {
        self.state.connections.load(Ordering::SeqCst)
    }

    pub(crate) fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }

    /// Whatever comes over the connections that stand is lost, without a word.
    pub(crate) fn lose_connections(&self) {
        self.state.lost.store(self.connections(), Ordering::SeqCst);
    }

    pub(crate) fn freeze(&self, frozen: bool) {
        self.state.frozen.store(frozen, Ordering::SeqCst);
    }

    /// Closes the port and every connection.
    pub(crate) fn die(&mut self) {
        self.kept = Some(at(self.address));
        self.task = None;
    }

    /// Opens the port again.
    pub(crate) async fn revive(&mut self) {
        let listener = self.kept.take().expect("it has died").listen(64).unwrap();
        let served = serve(listener, self.acceptor.clone(), self.script.clone(), self.state.clone());
        self.task = Some(AbortOnDropHandle::new(tokio::spawn(served)));
    }
}

/// A socket at this address, which may have another one of ours.
fn at(address: SocketAddr) -> TcpSocket {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_reuseaddr(true).unwrap();
    socket.set_reuseport(true).unwrap();
    socket.bind(address).unwrap();
    socket
}

fn tls() -> (TlsAcceptor, String) {
    let mut authority = CertificateParams::new(Vec::new()).unwrap();
    authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority_key = KeyPair::generate().unwrap();
    let ca = authority.self_signed(&authority_key).unwrap();
    let key = KeyPair::generate().unwrap();
    let leaf = CertificateParams::new(vec![format!("{SERVICE}.breakwater-system.svc")]).unwrap();
    let leaf = leaf.signed_by(&key, &Issuer::new(authority, authority_key)).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)
        .unwrap();
    (TlsAcceptor::from(Arc::new(config)), ca.pem())
}

async fn serve(listener: TcpListener, acceptor: TlsAcceptor, script: Arc<Script>, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, script, state) = (acceptor.clone(), script.clone(), state.clone());
        connections.spawn(async move {
            if state.frozen.load(Ordering::SeqCst) {
                return std::future::pending().await;
            }
            if let Ok(stream) = acceptor.accept(stream).await {
                let number = state.connections.fetch_add(1, Ordering::SeqCst);
                drop(converse(stream, number, script, &state).await);
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(
    mut stream: TlsStream<TcpStream>,
    number: usize,
    script: Arc<Script>,
    state: &State,
) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
        }
        if state.frozen.load(Ordering::SeqCst) || number < state.lost.load(Ordering::SeqCst) {
            return std::future::pending().await;
        }
        let head = String::from_utf8(head).unwrap();
        state.requests.lock().unwrap().push(head.clone());
        state.asked.notify_one();
        let reply = script(&head);
        stream.write_all(reply.head.as_bytes()).await?;
        for step in reply.steps {
            match step {
                Step::Send(bytes) => stream.write_all(&bytes).await?,
                Step::Flood(mebibytes) => {
                    let chunk = vec![7; 64 * 1024];
                    for _ in 0..mebibytes * 16 {
                        stream.write_all(&chunk).await?;
                        state.sent.fetch_add(chunk.len() as u64, Ordering::SeqCst);
                    }
                }
                Step::Wait(until) => {
                    stream.flush().await?;
                    until.notified().await;
                }
                Step::Pause(pause) => {
                    stream.flush().await?;
                    tokio::time::sleep(pause).await;
                }
                Step::Stall => {
                    stream.flush().await?;
                    std::future::pending::<()>().await;
                }
                Step::Drip => loop {
                    stream.write_all(b".").await?;
                    stream.flush().await?;
                    tokio::time::sleep(Duration::from_secs(1)).await;
                },
                Step::Close => return stream.shutdown().await,
                Step::Reset => {
                    stream.flush().await?;
                    stream.get_ref().0.set_zero_linger()?;
                    return Ok(());
                }
            }
        }
        stream.flush().await?;
    }
}
