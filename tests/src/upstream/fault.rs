//! The faults that a registry can be told to show, and the requests they apply to. Pure: acting on them is `deliver`'s part.

use std::time::Duration;

use bytes::Bytes;

use super::record::Recorded;
use super::state::Role;

/// One way of going wrong. Offsets count from the start of each response body.
#[derive(Clone, Debug)]
pub enum Fault {
    /// The port is closed and its connections with it.
    Refuse,
    /// Packets to the port vanish: no connection comes about, requests on open ones are never answered.
    BlackHole,
    /// The request is read and never answered, not even after the fault has ended.
    Silence,
    /// The header comes one byte at a time with this pause, for ever if need be.
    SlowHeader(Duration),
    /// The connection is reset after so many bytes of the body.
    ResetAt(u64),
    /// The connection is closed in order after so many bytes, though the header promised more.
    TruncateAt(u64),
    /// The body pauses after so many bytes until the fault ends.
    StallAt(u64),
    /// The body comes at this many bytes a second.
    Drip(u64),
    /// A byte in the middle of the body is flipped; all lengths stay right.
    WrongBytes,
    /// 200 with a page of HTML, as captive portals answer.
    Html,
    /// This status with an OCI error body; 401 brings a challenge, each time anew.
    Status(u16),
    /// 429, with a `Retry-After` of so many seconds.
    TooManyRequests(Option<u32>),
    /// 307 to this URL.
    RedirectTo(String),
    /// `Range` is ignored: 200 with the whole body.
    IgnoreRange,
    /// The header says that the content has this many bytes in all; what follows is the truth, and then the end.
    ClaimTotal(u64),
    /// No `Docker-Content-Digest`.
    NoDigest,
    /// `Transfer-Encoding: chunked` in place of a length.
    Chunked,
    /// The body is compressed and says so, asked for or not.
    Gzip,
    /// These bytes in place of an answer, and then the end of the connection.
    Raw(Bytes),
    /// The first bytes, and then the second again and again for as long as they are taken.
    Endless(Bytes, Bytes),
    /// The token service hands out a token of this many bytes.
    HugeToken(usize),
    /// The clock is off by so many seconds: `Date`, and the time at which tokens say they were issued.
    ClockSkew(i64),
}

impl Fault {
    /// Whether there must be a body for it to show.
    fn is_of_body(&self) -> bool {
        matches!(self, Self::ResetAt(_) | Self::TruncateAt(_) | Self::StallAt(_) | Self::Drip(_))
    }
}

/// Which requests a fault applies to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum On {
    /// All requests on all ports.
    Everything,
    /// All requests on the registry's port.
    Registry,
    /// All requests on the token service's port.
    Tokens,
    /// All requests on the CDN's port.
    Cdn,
    /// Manifests.
    Manifests,
    /// Blobs, on the registry's port.
    Blobs,
    /// The ping, `/v2/`.
    Ping,
    /// Paths that contain this text.
    Path(String),
}

impl On {
    /// Whether a whole port is meant.
    pub(super) fn covers(&self, role: Role) -> bool {
        match self {
            Self::Everything => true,
            Self::Registry => role == Role::Registry,
            Self::Tokens => role == Role::Tokens,
            Self::Cdn => role == Role::Cdn,
            Self::Manifests | Self::Blobs | Self::Ping | Self::Path(_) => false,
        }
    }

    fn matches(&self, request: &Recorded) -> bool {
        let registry = request.role == Role::Registry;
        match self {
            Self::Manifests => registry && request.is_manifest(),
            Self::Blobs => registry && request.is_blob(),
            Self::Ping => registry && request.path == "/v2/",
            Self::Path(text) => request.path.contains(text),
            whole => whole.covers(request.role),
        }
    }
}

/// A fault in force.
#[derive(Debug)]
struct Rule {
    on: On,
    fault: Fault,
    remaining: Option<usize>,
    /// Whether every other request is spared, and whether the next one is.
    alternates: Option<bool>,
}

/// All faults in force; the newest that matches wins.
#[derive(Debug, Default)]
pub(super) struct Rules(Vec<Rule>);

impl Rules {
    pub(super) fn add(&mut self, on: On, fault: Fault, remaining: Option<usize>) {
        self.0.push(Rule { on, fault, remaining, alternates: None });
    }

    /// A fault that the first request meets, the second does not, and so on.
    pub(super) fn add_alternating(&mut self, on: On, fault: Fault) {
        self.0.push(Rule { on, fault, remaining: None, alternates: Some(false) });
    }

    pub(super) fn clear(&mut self) {
        self.0.clear();
    }

    /// The fault that this request meets, counted down if it is bounded.
    pub(super) fn take(&mut self, request: &Recorded) -> Option<Fault> {
        let has_body = request.method != "HEAD";
        let applies = |rule: &Rule| rule.on.matches(request) && (has_body || !rule.fault.is_of_body());
        let met = self.0.iter().rposition(applies)?;
        let fault = self.0[met].fault.clone();
        if let Some(spared) = &mut self.0[met].alternates {
            *spared = !*spared;
            if !*spared {
                return None;
            }
        }
        if let Some(remaining) = &mut self.0[met].remaining {
            *remaining -= 1;
            if *remaining == 0 {
                self.0.remove(met);
            }
        }
        Some(fault)
    }
}
