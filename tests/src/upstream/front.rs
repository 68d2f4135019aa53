//! A TLS listener in front of the scripted registry, with a certificate as good or bad as the test wants it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair, date_time_ymd};
use rustls::ServerConfig;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// What a client meets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Handshake {
    /// A certificate of the authority.
    Good,
    /// One of the authority that has expired.
    Expired,
    /// One of another authority.
    Untrusted,
    /// One for another name.
    OtherName,
    /// The connection is taken and nothing is said.
    Stalled,
}

/// A running TLS listener. Dropping it closes the port.
#[derive(Debug)]
pub struct Front {
    address: SocketAddr,
    authority: String,
    handshake: Arc<Mutex<Handshake>>,
    _task: JoinSet<()>,
}

struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = parameters.self_signed(&key).expect("an authority").pem();
        Self { issuer: Issuer::new(parameters, key), pem }
    }

    fn acceptor(&self, name: &str, is_expired: bool) -> TlsAcceptor {
        let key = KeyPair::generate().expect("a key");
        let mut leaf = CertificateParams::new(vec![name.to_owned()]).expect("a name");
        if is_expired {
            leaf.not_before = date_time_ymd(2020, 1, 1);
            leaf.not_after = date_time_ymd(2021, 1, 1);
        }
        let leaf = leaf.signed_by(&key, &self.issuer).expect("a certificate");
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("the provider knows TLS 1.2 and 1.3")
            .with_no_client_auth()
            .with_single_cert(vec![leaf.der().clone()], key)
            .expect("a certificate with its key");
        TlsAcceptor::from(Arc::new(config))
    }
}

impl Front {
    /// Leads to `registry`, with a good certificate for 127.0.0.1.
    pub async fn start(registry: SocketAddr) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a port on loopback");
        let address = listener.local_addr().expect("a bound socket has an address");
        let (authority, stranger) = (Authority::new(), Authority::new());
        let acceptors = [
            authority.acceptor("127.0.0.1", false),
            authority.acceptor("127.0.0.1", true),
            stranger.acceptor("127.0.0.1", false),
            authority.acceptor("other.example.com", false),
        ];
        let handshake = Arc::new(Mutex::new(Handshake::Good));
        let mut task = JoinSet::new();
        let chosen = Arc::clone(&handshake);
        task.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let chosen = *chosen.lock().unwrap_or_else(PoisonError::into_inner);
                match acceptors.get(chosen as usize) {
                    Some(acceptor) => drop(connections.spawn(lead(acceptor.clone(), stream, registry))),
                    None => drop(connections.spawn(async move {
                        // Held until the peer gives up.
                        let _ = tokio::io::copy(&mut { stream }, &mut tokio::io::sink()).await;
                    })),
                }
            }
        });
        Self { address, authority: authority.pem, handshake, _task: task }
    }

    /// Its base URL.
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The authority's certificate in PEM.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// What new connections meet from now on.
    pub fn shake(&self, handshake: Handshake) {
        *self.handshake.lock().unwrap_or_else(PoisonError::into_inner) = handshake;
    }
}

/// Errors mean that one side went away, which is its right.
async fn lead(acceptor: TlsAcceptor, stream: TcpStream, registry: SocketAddr) {
    let Ok(mut near) = acceptor.accept(stream).await else { return };
    if let Ok(mut far) = TcpStream::connect(registry).await {
        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
    }
}
