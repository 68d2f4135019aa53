//! Why a pull could not be served as asked: one vocabulary for policies, `Cache-Status` and metrics. Pure.
//!
//! A failure is shared by many waiting readers, so it carries no source: the error itself is logged where it arose.

/// What went wrong, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum Failure {
    /// Upstream says that there is no such thing.
    #[error("upstream does not have it")]
    NotFound,
    /// Upstream answers 401: nobody vouches for us.
    #[error("upstream refuses access")]
    Refused,
    /// Upstream answers 403: this one thing is not for us, as scanners of registries withhold single images.
    #[error("upstream denies this one")]
    Denied,
    /// Upstream answers 429.
    #[error("upstream's rate limit is used up")]
    TooManyRequests,
    /// Upstream answers 5xx.
    #[error("upstream answers with a server error")]
    ServerError,
    /// Upstream's name cannot be resolved.
    #[error("upstream's name cannot be resolved")]
    Dns,
    /// No connection: refused, unreachable or reset.
    #[error("connection to upstream refused")]
    Connect,
    /// No connection in time.
    #[error("connect timeout")]
    ConnectTimeout,
    /// The TLS handshake failed.
    #[error("TLS handshake with upstream failed")]
    Tls,
    /// No response header in time.
    #[error("no answer from upstream in time")]
    HeaderTimeout,
    /// A connection that was up ended before the answer.
    #[error("upstream closed the connection without an answer")]
    Disconnected,
    /// The body broke off or stalled and could not be resumed.
    #[error("upstream's body broke off")]
    BrokenBody,
    /// The token service fails.
    #[error("upstream's token service fails")]
    TokenService,
    /// An answer that no registry should give.
    #[error("upstream's answer is invalid")]
    InvalidResponse,
    /// A manifest or list beyond what any registry may send.
    #[error("upstream's answer is too large: a manifest may have 4 MiB, a list 8 MiB")]
    TooLarge,
    /// A redirect or realm leads to an address that upstream must not send us to.
    #[error("upstream leads to a forbidden address")]
    ForbiddenAddress,
    /// The place that upstream redirects to does not have the content.
    #[error("the place upstream redirects to fails")]
    Redirect,
    /// The content does not match its digest.
    #[error("upstream's content does not match its digest")]
    WrongDigest,
    /// The part asked for is not here in time; the download goes on.
    #[error("that part is not here yet")]
    NotYet,
    /// Our disk fails or is full.
    #[error("the cache's disk fails")]
    Disk,
    /// Nothing complete is here and upstream has been away for longer than the allowed staleness.
    #[error("the cached answer is older than allowed")]
    TooStale,
    /// The cache is shutting down.
    #[error("the cache is shutting down")]
    Stopping,
}

impl Failure {
    /// The name for `Cache-Status`, logs and metrics.
    pub fn category(self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Refused | Self::Denied => "unauthorized",
            Self::TooManyRequests => "too_many_requests",
            Self::ServerError => "server_error",
            Self::Dns => "dns",
            Self::Connect => "connect_refused",
            Self::ConnectTimeout => "connect_timeout",
            Self::Tls => "tls",
            Self::HeaderTimeout => "header_timeout",
            Self::Disconnected => "disconnected",
            Self::BrokenBody => "broken_body",
            Self::TokenService => "token_service",
            Self::InvalidResponse => "invalid_response",
            Self::TooLarge => "too_large",
            Self::ForbiddenAddress => "forbidden_address",
            Self::Redirect => "redirect",
            Self::WrongDigest => "wrong_digest",
            Self::NotYet => "not_yet",
            Self::Disk => "disk",
            Self::TooStale => "too_stale",
            Self::Stopping => "stopping",
        }
    }

    /// The rule of `--on-error` that applies; `None` if the failure is ours and says nothing of upstream.
    pub fn class(self) -> Option<Class> {
        Some(match self {
            Self::Dns
            | Self::Connect
            | Self::ConnectTimeout
            | Self::Tls
            | Self::HeaderTimeout
            | Self::Disconnected
            | Self::BrokenBody => Class::Unreachable,
            Self::ServerError => Class::ServerError,
            Self::TooManyRequests => Class::TooManyRequests,
            Self::InvalidResponse | Self::TooLarge | Self::ForbiddenAddress | Self::Redirect | Self::WrongDigest => {
                Class::InvalidResponse
            }
            Self::TokenService => Class::TokenService,
            Self::Refused | Self::Denied => Class::Unauthorized,
            Self::NotFound => Class::NotFound,
            Self::NotYet | Self::Disk | Self::TooStale | Self::Stopping => return None,
        })
    }

    /// Whether the client is told 404. All else is 503: the runtime then goes on to the next host without delay.
    pub fn is_absence(self) -> bool {
        matches!(self, Self::NotFound | Self::Refused | Self::Denied)
    }

    /// Whether no HTTP answer came at all.
    pub fn is_silence(self) -> bool {
        self.is_unconnected() || matches!(self, Self::HeaderTimeout | Self::Disconnected)
    }

    /// Whether no connection came about, which says something of the host and not of one repository.
    pub fn is_unconnected(self) -> bool {
        matches!(self, Self::Dns | Self::Connect | Self::ConnectTimeout | Self::Tls)
    }
}

/// The failures of upstream that `--on-error` tells apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// No answer: DNS, connection, TLS, time-outs.
    Unreachable,
    /// 5xx.
    ServerError,
    /// 429, or a budget that is nearly used up.
    TooManyRequests,
    /// Something that no registry should answer.
    InvalidResponse,
    /// No token to be had.
    TokenService,
    /// 401 or 403.
    Unauthorized,
    /// 404.
    NotFound,
}

impl Class {
    /// All of them, in the order of their declaration.
    pub const ALL: [Self; 7] = [
        Self::Unreachable,
        Self::ServerError,
        Self::TooManyRequests,
        Self::InvalidResponse,
        Self::TokenService,
        Self::Unauthorized,
        Self::NotFound,
    ];

    /// As on the command line.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unreachable => "unreachable",
            Self::ServerError => "server-error",
            Self::TooManyRequests => "too-many-requests",
            Self::InvalidResponse => "invalid-response",
            Self::TokenService => "token-service",
            Self::Unauthorized => "unauthorized",
            Self::NotFound => "not-found",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_failure_of_upstream_has_one_class() {
        for (class, failures) in [
            (
                Some(Class::Unreachable),
                &[
                    Failure::Dns,
                    Failure::Connect,
                    Failure::ConnectTimeout,
                    Failure::Tls,
                    Failure::HeaderTimeout,
                    Failure::Disconnected,
                    Failure::BrokenBody,
                ][..],
            ),
            (Some(Class::ServerError), &[Failure::ServerError]),
            (Some(Class::TooManyRequests), &[Failure::TooManyRequests]),
            (
                Some(Class::InvalidResponse),
                &[Failure::InvalidResponse, Failure::ForbiddenAddress, Failure::Redirect, Failure::WrongDigest],
            ),
            (Some(Class::TokenService), &[Failure::TokenService]),
            (Some(Class::Unauthorized), &[Failure::Refused, Failure::Denied]),
            (Some(Class::NotFound), &[Failure::NotFound]),
            (None, &[Failure::NotYet, Failure::Disk, Failure::TooStale, Failure::Stopping]),
        ] {
            for failure in failures {
                assert_eq!(failure.class(), class, "{failure:?}");
            }
        }
    }

    #[test]
    fn classes_are_counted_in_their_order() {
        for (place, class) in Class::ALL.into_iter().enumerate() {
            assert_eq!(class as usize, place);
        }
    }
}
