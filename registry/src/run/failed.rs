//! Why the cache could not start. Each message names the flag and the mend.

use std::{io, path::PathBuf};

use reqwest::Url;
use rustls_pki_types::pem;

use crate::{
    peer::PeersInvalid,
    registry_host::RegistryHost,
    server::Unbound,
    store::Unusable,
    tls::TlsInvalid,
    tokens::TokensUnreadable,
    upstream::{ProxyInvalid, TransportInvalid},
};

/// Why the cache could not start. Each message names the flag and the mend.
#[derive(Debug, thiserror::Error)]
pub enum StartFailed {
    /// The folder.
    #[error(transparent)]
    Store(Unusable),
    /// An address.
    #[error(transparent)]
    Listen(Unbound),
    /// The TLS listener.
    #[error(transparent)]
    Tls(TlsInvalid),
    /// Its tokens.
    #[error(transparent)]
    Tokens(TokensUnreadable),
    /// A CA file.
    #[error("--ca-file: cannot read {path}; it must hold certificates in PEM")]
    CaFile {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: pem::Error,
    },
    /// A certificate in a CA file.
    #[error("--ca-file: {path} holds a certificate that cannot be used")]
    CaCertificate {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
    /// The proxy.
    #[error(transparent)]
    Proxy(ProxyInvalid),
    /// The HTTP client.
    #[error(transparent)]
    Client(TransportInvalid),
    /// What is needed to speak to the other replicas.
    #[error(transparent)]
    Peers(PeersInvalid),
    /// The host of an alternate is odd.
    #[error("--alternate: {0} has a host that no image name could hold")]
    Alternate(Url),
    /// The default URL of a registry whose name is odd.
    #[error("--upstream-registry: {0} gives no URL; set --upstream-url")]
    Url(RegistryHost),
    /// Signals.
    #[error("cannot wait for signals")]
    Signals(#[source] io::Error),
}
