//! HTTP/1.1 as bytes: reads one request head, writes one response head. Request bodies do not occur here.

use std::io;

use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::answer::Answer;
use super::record::Recorded;
use super::state::Role;

const HEAD_LIMIT: usize = 64 * 1024;

/// Reads the next request's head from a connection; `None` when the peer closed it in between.
pub(super) async fn read_request(
    stream: &mut TcpStream,
    pending: &mut Vec<u8>,
    role: Role,
    connection: u64,
) -> io::Result<Option<Recorded>> {
    loop {
        if let Some(end) = find(pending, b"\r\n\r\n") {
            let rest = pending.split_off(end + 4);
            let head = std::mem::replace(pending, rest);
            let head = String::from_utf8_lossy(&head[..end]).into_owned();
            return Ok(Some(parse(&head, role, connection)));
        }
        if pending.len() > HEAD_LIMIT || stream.read_buf(pending).await? == 0 {
            return Ok(None);
        }
    }
}

fn parse(head: &str, role: Role, connection: u64) -> Recorded {
    let mut lines = head.split("\r\n");
    let mut first = lines.next().unwrap_or_default().split(' ');
    let method = first.next().unwrap_or_default().to_owned();
    let target = first.next().unwrap_or_default();
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let headers = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    Recorded { role, connection, method, path: path.to_owned(), query: query.to_owned(), headers, bytes_sent: 0 }
}

/// The head of a response, with a length or as chunks.
pub(super) fn response_head(answer: &Answer, chunked: bool) -> Vec<u8> {
    let mut head = format!("HTTP/1.1 {} scripted\r\n", answer.status);
    for (name, value) in &answer.headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if chunked {
        head.push_str("Transfer-Encoding: chunked\r\n\r\n");
    } else {
        let length = answer.claimed_length.unwrap_or(answer.body.len() as u64);
        head.push_str(&format!("Content-Length: {length}\r\n\r\n"));
    }
    head.into_bytes()
}

/// Where a needle begins.
pub(crate) fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
