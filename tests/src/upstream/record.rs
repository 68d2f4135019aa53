//! What the upstream remembers of a request. It judges nothing.

use super::state::Role;

/// One request as it arrived, and how much of the answer went out.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// Which port it came to.
    pub role: Role,
    /// The number of its connection, counted over all ports.
    pub connection: u64,
    /// The method.
    pub method: String,
    /// The path without the query.
    pub path: String,
    /// The query without `?`.
    pub query: String,
    /// Header names in lower case, with values.
    pub headers: Vec<(String, String)>,
    /// Bytes of a body that were handed to the socket so far.
    pub bytes_sent: u64,
}

impl Recorded {
    /// The value of a header, its name given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut headers = self.headers.iter();
        headers.find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// Whether it asks for a manifest or a blob, and not for a ping or a token.
    pub fn asks_for_content(&self) -> bool {
        self.is_manifest() || self.is_blob()
    }

    /// Whether it asks for a manifest.
    pub fn is_manifest(&self) -> bool {
        self.path.contains("/manifests/")
    }

    /// Whether it asks for a blob, at the registry or at the CDN.
    pub fn is_blob(&self) -> bool {
        self.role == Role::Cdn || self.path.contains("/blobs/")
    }
}
