//! What a registry was asked for, read from its access log.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The access log of one listener.
#[derive(Debug, Clone)]
pub struct AccessLog {
    path: PathBuf,
}

/// A point in an access log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cursor(u64);

/// One request that was answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// `GET`, `HEAD` and so on.
    pub method: String,
    /// With the query, such as `/v2/team/app/manifests/1`.
    pub path: String,
    /// The status of the answer.
    pub status: u16,
    /// Bytes of the answer's body.
    pub bytes: u64,
    /// Who asked, as it calls itself: `containerd/v2.4.2`, `breakwater-registry/0.1.0`.
    pub agent: String,
}

impl AccessLog {
    pub(super) fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// The point after the last request that was written down. A request is written down when its answer has ended.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn now(&self) -> Result<Cursor> {
        let metadata = fs::metadata(&self.path).with_context(|| format!("look at {}", self.path.display()))?;
        Ok(Cursor(metadata.len()))
    }

    /// All requests after a point.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn since(&self, cursor: Cursor) -> Result<Vec<Request>> {
        let bytes = fs::read(&self.path).with_context(|| format!("read {}", self.path.display()))?;
        let start = usize::try_from(cursor.0).unwrap_or(usize::MAX).min(bytes.len());
        let text = String::from_utf8_lossy(&bytes[start..]);
        Ok(text.lines().filter_map(parse_line).collect())
    }

    /// All requests so far.
    ///
    /// # Errors
    /// Fails when the log cannot be read.
    pub fn all(&self) -> Result<Vec<Request>> {
        self.since(Cursor(0))
    }
}

/// A line of the Apache combined log format; other lines are the registry's own words.
fn parse_line(line: &str) -> Option<Request> {
    let (_, rest) = line.split_once("] \"")?;
    let (request, rest) = rest.split_once("\" ")?;
    let mut words = request.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    words.next().filter(|protocol| protocol.starts_with("HTTP/"))?;
    let mut fields = rest.split(' ');
    Some(Request {
        method: method.to_owned(),
        path: path.to_owned(),
        status: fields.next()?.parse().ok()?,
        bytes: fields.next()?.parse().ok()?,
        agent: line.trim_end().strip_suffix('"')?.rsplit_once('"')?.1.to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_from_other_lines() {
        let line = r#"10.80.1.1 - - [19/Nov/2026:10:00:00 +0000] "GET /v2/a/manifests/1?ns=x HTTP/1.1" 200 523 "" "containerd/2.4.2""#;
        let expected = Request {
            method: "GET".to_owned(),
            path: "/v2/a/manifests/1?ns=x".to_owned(),
            status: 200,
            bytes: 523,
            agent: "containerd/2.4.2".to_owned(),
        };
        assert_eq!(parse_line(line), Some(expected));
        assert_eq!(parse_line(r#"time="2026" level=warning msg="no [secret] "given"""#), None);
        assert_eq!(parse_line(""), None);
    }
}
