//! Sends an answer as the fault in force wants it: late, cut, slow, wrong or not at all.

use std::io::{self, Write};
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use jiff::{SignedDuration, Timestamp};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::sync::watch;

use super::answer::{Answer, Target, claiming, flipped, without_range};
use super::fault::Fault;
use super::record::Recorded;
use super::state::{Role, Shared};
use super::wire::response_head;

/// Written to the socket at once: small enough for byte-exact cuts to matter, large enough to be fast.
const SLICE: usize = 64 * 1024;
/// A dripping body gets its share this often.
const DRIP: Duration = Duration::from_millis(20);

/// How the body's end is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cut {
    Reset,
    Close,
    Stall,
}

#[derive(Debug, Default)]
struct Plan {
    head_pause: Option<Duration>,
    cut: Option<(u64, Cut)>,
    bytes_per_second: Option<u64>,
    chunked: bool,
}

/// What a request met when it came.
pub(super) struct Met {
    pub(super) fault: Option<Fault>,
    /// Tells of the healings since.
    pub(super) healings: watch::Receiver<u64>,
}

/// Whether the connection can take another request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum After {
    KeepAlive,
    Close,
}

/// Answers one request.
pub(super) async fn deliver(
    stream: &mut TcpStream,
    shared: &Shared,
    request: &Recorded,
    place: usize,
    met: Met,
) -> io::Result<After> {
    let fault = met.fault.as_ref();
    if matches!(fault, Some(Fault::Silence)) {
        // Swallowed: only the peer ends this, by closing.
        swallow(stream).await?;
        return Ok(After::Close);
    }
    match fault {
        Some(Fault::Raw(bytes)) => {
            stream.write_all(bytes).await?;
            return Ok(After::Close);
        }
        Some(Fault::Endless(head, piece)) => {
            stream.write_all(head).await?;
            loop {
                shared.count(place, piece.len() as u64);
                stream.write_all(piece).await?;
            }
        }
        _ => {}
    }
    let answer = compose(shared, request, fault);
    let plan = plan(fault);
    let head = response_head(&answer, plan.chunked);
    match plan.head_pause {
        Some(pause) => {
            for byte in head {
                stream.write_all(&[byte]).await?;
                tokio::time::sleep(pause).await;
            }
        }
        None => stream.write_all(&head).await?,
    }
    if request.method == "HEAD" {
        return Ok(After::KeepAlive);
    }
    let is_short = answer.claimed_length.is_some();
    let after = send_body(stream, shared, place, answer.body, &plan, met.healings).await?;
    Ok(if is_short { After::Close } else { after })
}

async fn swallow(stream: &mut TcpStream) -> io::Result<()> {
    let mut ignored = [0; 1024];
    loop {
        stream.readable().await?;
        match stream.try_read(&mut ignored) {
            Ok(0) => return Ok(()),
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
            Ok(_) | Err(_) => {}
        }
    }
}

fn compose(shared: &Shared, request: &Recorded, fault: Option<&Fault>) -> Answer {
    match fault {
        Some(Fault::Html) => {
            let page = "<html><body>Please log in to the hotel's network</body></html>";
            return Answer::ok("text/html", page);
        }
        Some(Fault::Status(401)) => {
            return challenge(shared, Target::parse(&request.path).map(|target| target.repository));
        }
        Some(Fault::Status(status)) => return Answer::refusal(*status, status_code(*status)),
        Some(Fault::TooManyRequests(retry)) => {
            let refusal = Answer::refusal(429, "TOOMANYREQUESTS");
            return match retry {
                Some(seconds) => refusal.with("Retry-After", &seconds.to_string()),
                None => refusal,
            };
        }
        Some(Fault::RedirectTo(location)) => return Answer::redirect(location),
        Some(Fault::HugeToken(size)) => return Answer::token(&"x".repeat(*size), Duration::from_secs(300)),
        _ => {}
    }
    let ranged = matches!(fault, Some(Fault::IgnoreRange)).then(|| without_range(request));
    let answer = healthy(shared, ranged.as_ref().unwrap_or(request));
    match fault {
        Some(Fault::WrongBytes) => flipped(answer),
        Some(Fault::ClaimTotal(total)) => claiming(answer, *total),
        Some(Fault::NoDigest) => answer.without("Docker-Content-Digest").without("ETag"),
        Some(Fault::Gzip) => gzipped(answer),
        Some(Fault::ClockSkew(seconds)) => skewed(answer, request.role, *seconds),
        _ => answer,
    }
}

fn healthy(shared: &Shared, request: &Recorded) -> Answer {
    match request.role {
        Role::Tokens => shared.access().issue(request),
        Role::Cdn => shared.store().cdn_answer(request),
        Role::Registry => {
            let target = Target::parse(&request.path);
            let repository = target.map(|target| target.repository);
            if shared.access().admits(request, repository) {
                shared.store().answer(request, shared.addresses.cdn)
            } else {
                challenge(shared, repository)
            }
        }
    }
}

fn challenge(shared: &Shared, repository: Option<&str>) -> Answer {
    let challenge = shared.access().challenge(repository);
    Answer::refusal(401, "UNAUTHORIZED").with("WWW-Authenticate", &challenge)
}

fn status_code(status: u16) -> &'static str {
    match status {
        403 => "DENIED",
        404 => "MANIFEST_UNKNOWN",
        _ => "UNKNOWN",
    }
}

fn gzipped(answer: Answer) -> Answer {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(&answer.body).expect("memory takes all bytes");
    let body = encoder.finish().expect("memory takes all bytes");
    let answer = answer.with("Content-Encoding", "gzip");
    Answer { body: body.into(), ..answer }
}

/// As a host would answer whose clock is off.
fn skewed(answer: Answer, role: Role, seconds: i64) -> Answer {
    let now = Timestamp::now() + SignedDuration::from_secs(seconds);
    let answer = answer.with("Date", &now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
    match serde_json::from_slice::<serde_json::Value>(&answer.body) {
        Ok(mut token) if role == Role::Tokens && token.is_object() => {
            token["issued_at"] = now.to_string().into();
            Answer { body: token.to_string().into(), ..answer }
        }
        _ => answer,
    }
}

fn plan(fault: Option<&Fault>) -> Plan {
    let mut plan = Plan::default();
    match fault {
        Some(Fault::SlowHeader(pause)) => plan.head_pause = Some(*pause),
        Some(Fault::ResetAt(offset)) => plan.cut = Some((*offset, Cut::Reset)),
        Some(Fault::TruncateAt(offset)) => plan.cut = Some((*offset, Cut::Close)),
        Some(Fault::StallAt(offset)) => plan.cut = Some((*offset, Cut::Stall)),
        Some(Fault::Drip(rate)) => plan.bytes_per_second = Some(*rate),
        Some(Fault::Chunked) => plan.chunked = true,
        _ => {}
    }
    plan
}

async fn send_body(
    stream: &mut TcpStream,
    shared: &Shared,
    place: usize,
    mut body: Bytes,
    plan: &Plan,
    mut healings: watch::Receiver<u64>,
) -> io::Result<After> {
    if let Some((offset, cut)) = plan.cut
        && offset < body.len() as u64
    {
        let before = body.split_to(usize::try_from(offset).unwrap_or(usize::MAX));
        send_slices(stream, shared, place, before, plan).await?;
        match cut {
            Cut::Reset => {
                stream.set_zero_linger()?;
                return Ok(After::Close);
            }
            Cut::Close => return Ok(After::Close),
            Cut::Stall => {
                let _ = healings.changed().await;
            }
        }
    }
    send_slices(stream, shared, place, body, plan).await?;
    if plan.chunked {
        stream.write_all(b"0\r\n\r\n").await?;
    }
    Ok(After::KeepAlive)
}

async fn send_slices(
    stream: &mut TcpStream,
    shared: &Shared,
    place: usize,
    mut body: Bytes,
    plan: &Plan,
) -> io::Result<()> {
    let share = plan.bytes_per_second.map(|rate| (rate / 50).max(1));
    let slice = share.map_or(SLICE, |share| usize::try_from(share).unwrap_or(SLICE));
    // Ticks that were late are made up for, or a busy machine would make a slow body slower still.
    let mut ticks = share.map(|_| tokio::time::interval(DRIP));
    while !body.is_empty() {
        let part = body.split_to(slice.min(body.len()));
        // Counted first: who has received it all finds it all counted.
        shared.count(place, part.len() as u64);
        if plan.chunked {
            stream.write_all(format!("{:x}\r\n", part.len()).as_bytes()).await?;
        }
        stream.write_all(&part).await?;
        if plan.chunked {
            stream.write_all(b"\r\n").await?;
        }
        if let Some(ticks) = &mut ticks {
            ticks.tick().await;
        }
    }
    Ok(())
}
