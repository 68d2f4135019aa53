//! Why a file of the node is not as wanted.

use crate::hosts_toml::Unmergeable;
use crate::registries_conf::Unfit;
use breakwater_crds::conditions::reason;
use rustix::io::Errno;
use std::io;

/// Why a file is not as wanted.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// Something in the way that we do not touch.
    #[error("{0}")]
    Unsafe(&'static str),
    /// The foreign file is not UTF-8.
    #[error("hosts.toml is not UTF-8 text")]
    NotText,
    /// The foreign file cannot be merged.
    #[error("hosts.toml: {0}")]
    Merge(#[source] Unmergeable),
    /// A drop-in of registries.conf would not do.
    #[error("{0}")]
    Registries(#[source] Unfit),
    /// A `hosts.toml` would make containerd ignore the certificates it uses now.
    #[error(
        "{0} holds certificates that containerd would ignore beside a new hosts.toml; add a hosts.toml that names them"
    )]
    Certificates(&'static str),
    /// Somebody else wrote it between our look and our write; theirs counts.
    #[error("hosts.toml was changed by somebody else at the same moment; trying again")]
    Changed,
    /// What is mounted or opened as the runtime's folder is that no more.
    #[error("the node's folder was removed or replaced while the agent ran; the agent starts anew to see the new one")]
    Replaced,
    /// The operating system refused.
    #[error("cannot {action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

impl Fault {
    pub(super) fn io(action: &'static str) -> impl Fn(Errno) -> Self {
        move |errno| Self::Io { action, source: errno.into() }
    }

    pub(super) fn plain_io(action: &'static str) -> impl Fn(io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// Without a record of what is to be given back, nothing is changed.
    pub(super) fn unrecorded(error: &io::Error) -> Self {
        Self::again("record in --state-dir what hosts.toml was", error)
    }

    /// What went wrong once and stops several registries.
    pub(crate) fn again(action: &'static str, error: &io::Error) -> Self {
        Self::Io { action, source: again(error) }
    }

    /// The same fault, for each registry that it stops.
    pub(crate) fn repeated(&self) -> Self {
        match self {
            Self::Io { action, source } => Self::again(action, source),
            Self::Replaced => Self::Replaced,
            _ => Self::Unsafe("the folder certs.d cannot be used"),
        }
    }

    /// The reason for the API.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        match self {
            Self::Unsafe(_) => reason::UNSAFE_PATH,
            Self::NotText | Self::Merge(_) | Self::Registries(_) => reason::FOREIGN_FILE_INVALID,
            Self::Certificates(_) => reason::CERTIFICATES_WITHOUT_HOSTS,
            Self::Changed | Self::Replaced | Self::Io { .. } => reason::WRITE_FAILED,
        }
    }
}

/// The same error once more.
pub(crate) fn again(error: &io::Error) -> io::Error {
    error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error)
}
