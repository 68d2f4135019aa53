//! A client that sees what others hide: how each body ended, when each byte came. It corrects nothing.

mod observe;

use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::Value;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;

pub use observe::Seen;

use super::PATIENCE;
use super::identity::Connector;

/// How a body ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// As long as its header promised.
    Complete,
    /// Closed in order before that: a client takes it for an unexpected end and resumes.
    CutByFin,
    /// Reset before that.
    CutByReset,
}

/// A response read to its end.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The status.
    pub status: u16,
    headers: Vec<(String, String)>,
    /// The body as far as it came.
    pub body: Vec<u8>,
    /// How it ended.
    pub end: End,
    /// From the request's last byte to the header's last byte.
    pub header_after: Duration,
    /// From the request's last byte to the end of the body.
    pub took: Duration,
}

impl Answer {
    /// The value of a header, its name given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }

    /// `Cache-Status`, empty when it is missing.
    pub fn cache_status(&self) -> &str {
        self.header("cache-status").unwrap_or_default()
    }

    /// All headers but `Date`, `Age` and `Cache-Status`, which tell of the moment and not of the content.
    pub fn content_headers(&self) -> Vec<(String, String)> {
        let mut headers = self.headers.clone();
        headers.retain(|(name, _)| !["date", "age", "cache-status"].contains(&name.as_str()));
        headers.sort();
        headers
    }

    /// The code of the first error in an OCI error body.
    pub fn error_code(&self) -> String {
        let body: Value = serde_json::from_slice(&self.body).unwrap_or_default();
        body["errors"][0]["code"].as_str().unwrap_or_default().to_owned()
    }
}

/// A request that has not been sent.
pub struct Request {
    address: SocketAddr,
    connector: Option<Connector>,
    head: String,
    method: String,
    body: Vec<u8>,
}

impl Request {
    /// A GET of anything that speaks HTTP without TLS.
    pub fn get(address: SocketAddr, path: &str) -> Self {
        Self::new(address, None, "GET", path)
    }

    /// A HEAD of the same.
    pub fn head(address: SocketAddr, path: &str) -> Self {
        Self::new(address, None, "HEAD", path)
    }

    pub(super) fn new(address: SocketAddr, connector: Option<Connector>, method: &str, path: &str) -> Self {
        Self {
            address,
            connector,
            head: format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\n"),
            method: method.to_owned(),
            body: Vec::new(),
        }
    }

    /// Adds a header.
    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.head.push_str(&format!("{name}: {value}\r\n"));
        self
    }

    /// Sends a body along.
    pub fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = body.into();
        let length = self.body.len().to_string();
        self.header("Content-Length", &length)
    }

    /// Asks for part of a body.
    pub fn range(self, range: &str) -> Self {
        self.header("Range", &format!("bytes={range}"))
    }

    /// Sends it and reads the whole answer.
    pub async fn answer(self) -> Answer {
        self.send().await.rest().await
    }

    /// The same, `None` where no answer comes because the connection is refused or ends.
    pub async fn try_answer(self) -> Option<Answer> {
        let reading = within("a header", self.try_send()).await.ok()?;
        Some(reading.rest().await)
    }

    /// Sends it and waits for the header of the answer.
    pub async fn send(self) -> Reading {
        let head = self.head.lines().next().unwrap_or_default().to_owned();
        let sent = within(&head, self.try_send()).await;
        sent.unwrap_or_else(|error| panic!("{head}: no answer: {error}"))
    }

    async fn try_send(self) -> io::Result<Reading> {
        let tcp = TcpStream::connect(self.address).await?;
        tcp.set_nodelay(true)?;
        let mut stream: Box<dyn Stream> = match self.connector {
            Some((connector, name)) => Box::new(connector.connect(name, tcp).await?),
            None => Box::new(tcp),
        };
        let head = format!("{}Connection: close\r\n\r\n", self.head);
        stream.write_all(head.as_bytes()).await?;
        stream.write_all(&self.body).await?;
        // TLS may hold back what it could not send at once.
        stream.flush().await?;
        let sent = Instant::now();
        let mut pending = Vec::new();
        let end = loop {
            if let Some(end) = pending.windows(4).position(|window| window == b"\r\n\r\n") {
                break end;
            }
            if stream.read_buf(&mut pending).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        };
        let body = pending.split_off(end + 4);
        let (status, headers) = parse_head(&pending[..end]).ok_or(io::ErrorKind::InvalidData)?;
        let bodiless = self.method == "HEAD" || status == 204 || status == 304;
        let length = value(&headers, "content-length").and_then(|length| length.parse().ok());
        Ok(Reading {
            status,
            length: if bodiless { Some(0) } else { length },
            headers,
            stream,
            pending: body,
            received: 0,
            sent,
            header_after: sent.elapsed(),
        })
    }
}

impl std::fmt::Debug for Request {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Request({:?})", self.head)
    }
}

/// Both halves of a connection, with or without TLS.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Stream for T {}

/// A response whose body is being read. Dropping it closes the connection.
pub struct Reading {
    /// The status.
    pub status: u16,
    headers: Vec<(String, String)>,
    length: Option<u64>,
    stream: Box<dyn Stream>,
    pending: Vec<u8>,
    received: u64,
    sent: Instant,
    header_after: Duration,
}

impl Reading {
    /// The value of a header, its name given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }

    /// From the request's last byte to the header's last byte.
    pub fn header_after(&self) -> Duration {
        self.header_after
    }

    /// Body bytes received so far.
    pub fn received(&self) -> u64 {
        self.received
    }

    /// Reads exactly so many bytes of the body.
    pub async fn read(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(count);
        while bytes.len() < count {
            let part = within("more of the body", self.part(count - bytes.len())).await;
            match part {
                Ok(part) if !part.is_empty() => bytes.extend(part),
                other => panic!("the body ended after {} bytes: {other:?}", self.received),
            }
        }
        bytes
    }

    /// Reads to the end.
    pub async fn rest(mut self) -> Answer {
        let mut body = Vec::new();
        let end = within("the end of the body", async {
            loop {
                match self.part(1 << 20).await {
                    Ok(part) if part.is_empty() => break self.orderly_end(),
                    Ok(part) => body.extend(part),
                    Err(_) => break End::CutByReset,
                }
            }
        })
        .await;
        Answer {
            status: self.status,
            body: if self.is_chunked() { unchunked(&body) } else { body },
            end,
            header_after: self.header_after,
            took: self.sent.elapsed(),
            headers: self.headers,
        }
    }

    /// Reads to the end and compares with the whole body, keeping nothing; fails at the first foreign byte.
    pub async fn rest_equals(mut self, expected: &[u8]) -> End {
        let mut offset = usize::try_from(self.received).unwrap_or(usize::MAX);
        within("the end of the body", async {
            loop {
                match self.part(1 << 20).await {
                    Ok(part) if part.is_empty() => break self.orderly_end(),
                    Ok(part) => {
                        let there = expected.get(offset..offset + part.len());
                        assert!(there == Some(&part[..]), "foreign bytes after {offset}");
                        offset += part.len();
                    }
                    Err(_) => break End::CutByReset,
                }
            }
        })
        .await
    }

    async fn part(&mut self, most: usize) -> io::Result<Vec<u8>> {
        let left = self.length.map_or(u64::MAX, |length| length.saturating_sub(self.received));
        let most = most.min(usize::try_from(left).unwrap_or(usize::MAX));
        let part = if self.pending.is_empty() {
            let mut part = Vec::with_capacity(most.min(256 * 1024));
            if most > 0 {
                (&mut self.stream).take(most as u64).read_buf(&mut part).await?;
            }
            part
        } else {
            let rest = self.pending.split_off(most.min(self.pending.len()));
            std::mem::replace(&mut self.pending, rest)
        };
        self.received += part.len() as u64;
        Ok(part)
    }

    fn is_chunked(&self) -> bool {
        self.header("transfer-encoding") == Some("chunked")
    }

    fn orderly_end(&self) -> End {
        // Without a length the end of the connection is the end of the body.
        match self.length {
            Some(length) if self.received < length => End::CutByFin,
            _ => End::Complete,
        }
    }
}

impl std::fmt::Debug for Reading {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "Reading({}, {} bytes)", self.status, self.received)
    }
}

/// Sends raw bytes to an address and gives everything that comes back until it is closed.
pub async fn exchange_raw(address: SocketAddr, bytes: &[u8]) -> Vec<u8> {
    within("a raw exchange", async {
        let mut stream = TcpStream::connect(address).await?;
        // The peer may close before it has read everything: what it said first still counts.
        let _ = stream.write_all(bytes).await;
        let mut answer = Vec::new();
        let mut part = [0; 4096];
        while let Ok(count @ 1..) = stream.read(&mut part).await {
            answer.extend_from_slice(&part[..count]);
        }
        io::Result::Ok(answer)
    })
    .await
    .expect("a raw exchange")
}

async fn within<T>(what: &str, wait: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, wait).await {
        Ok(value) => value,
        Err(_) => panic!("{what} did not come within {PATIENCE:?}"),
    }
}

fn value<'a>(headers: &'a [(String, String)], name: &str) -> Option<&'a str> {
    headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
}

fn parse_head(head: &[u8]) -> Option<(u16, Vec<(String, String)>)> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers = lines.filter_map(|line| line.split_once(':'));
    let headers = headers.map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()));
    Some((status, headers.collect()))
}

/// The content of whole chunks; the metrics page may come so.
fn unchunked(mut body: &[u8]) -> Vec<u8> {
    let mut content = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|size| usize::from_str_radix(size, 16).ok());
        let Some(chunk) = size.and_then(|size| body.get(end + 2..end + 2 + size)) else {
            break;
        };
        content.extend_from_slice(chunk);
        body = body.get(end + 4 + chunk.len()..).unwrap_or_default();
    }
    content
}
