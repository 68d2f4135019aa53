//! The load generator: a closed loop of GETs on keep-alive connections, one thread, the same for every server. It speaks
//! just enough HTTP/1.1 to count bodies, so that what it costs is little and the same for all.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};

use super::content::MANIFEST_TYPE;

/// A server that answers nothing for so long has failed.
const PATIENCE: Duration = Duration::from_secs(60);
const BUFFER: usize = 256 * 1024;

/// One answer.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    /// From the request to the first byte of the body.
    pub(super) first_byte: Duration,
    /// From the request to the last byte of the body.
    pub(super) whole: Duration,
}

/// What a load came to.
#[derive(Debug, Default)]
pub(super) struct Load {
    pub(super) samples: Vec<Sample>,
    pub(super) bytes: u64,
    pub(super) elapsed: Duration,
}

impl Load {
    /// Answers per second.
    pub(super) fn rate(&self) -> f64 {
        self.samples.len() as f64 / self.elapsed.as_secs_f64()
    }

    /// The latency that this share of the answers kept.
    pub(super) fn whole_at(&self, share: f64) -> Duration {
        at(self.samples.iter().map(|sample| sample.whole).collect(), share)
    }

    /// The median time to the first byte.
    pub(super) fn first_byte(&self) -> Duration {
        at(self.samples.iter().map(|sample| sample.first_byte).collect(), 0.5)
    }
}

fn at(mut times: Vec<Duration>, share: f64) -> Duration {
    times.sort_unstable();
    let place = (times.len() as f64 * share) as usize;
    times.get(place.min(times.len().saturating_sub(1))).copied().unwrap_or_default()
}

/// Asks for `paths` one after the other on each of `connections`, until there are no more.
pub(super) fn run(address: SocketAddr, connections: usize, paths: impl IntoIterator<Item = String>) -> Result<Load> {
    let mut paths = paths.into_iter();
    let poll = epoll::create(CreateFlags::CLOEXEC).context("create an epoll")?;
    let mut clients = Vec::new();
    for place in 0..connections {
        let client = Client::connect(address)?;
        epoll::add(&poll, &client.stream, EventData::new_u64(place as u64), EventFlags::IN)?;
        clients.push(client);
    }
    let (mut load, mut busy) = (Load::default(), 0);
    let began = Instant::now();
    for client in &mut clients {
        busy += usize::from(client.ask(paths.next())?);
    }
    let mut buffer = vec![0; BUFFER];
    let mut events = Vec::<Event>::with_capacity(connections);
    let patience = rustix::time::Timespec { tv_sec: PATIENCE.as_secs() as i64, tv_nsec: 0 };
    while busy > 0 {
        events.clear();
        epoll::wait(&poll, spare_capacity(&mut events), Some(&patience))?;
        ensure!(!events.is_empty(), "no answer within {} s", PATIENCE.as_secs());
        for event in events.drain(..) {
            let Some(client) = clients.get_mut(event.data.u64() as usize) else { continue };
            if let Some((sample, bytes)) = client.hear(&mut buffer)? {
                load.samples.push(sample);
                load.bytes += bytes;
                if !client.ask(paths.next())? {
                    busy -= 1;
                    // A server may close what is idle.
                    epoll::delete(&poll, &client.stream)?;
                }
            }
        }
    }
    load.elapsed = began.elapsed();
    Ok(load)
}

/// The same path again and again, for `duration`.
pub(super) fn repeat(path: &str, duration: Duration) -> impl Iterator<Item = String> + use<> {
    let path = path.to_owned();
    lasting(duration, std::iter::repeat_with(move || path.clone()))
}

/// These paths one after the other, for `duration`.
pub(super) fn lasting<P: Iterator<Item = String>>(
    duration: Duration,
    paths: P,
) -> impl Iterator<Item = String> + use<P> {
    let end = Instant::now() + duration;
    paths.take_while(move |_| Instant::now() < end)
}

/// One GET on a connection of its own.
pub(super) fn get(address: SocketAddr, path: &str) -> Result<Load> {
    run(address, 1, [path.to_owned()])
}

/// Whether a GET is answered with 200, without patience for anything else.
pub(super) fn is_served(address: SocketAddr, path: &str) -> bool {
    get(address, path).is_ok()
}

/// A connection whose request has been sent; reading is the caller's business.
fn open(address: SocketAddr, path: &str) -> Result<TcpStream> {
    let mut client = Client::connect(address)?;
    // A thousand paused readers with buffers that grow would fill what the kernel allows all sockets together.
    rustix::net::sockopt::set_socket_recv_buffer_size(&client.stream, 64 * 1024)?;
    client.ask(Some(path.to_owned()))?;
    Ok(client.stream)
}

/// Readers that have asked and read their first bytes.
pub(super) fn open_readers(address: SocketAddr, path: &str, count: usize) -> Result<Vec<TcpStream>> {
    let open_one = |_| {
        let stream = open(address, path)?;
        stream.set_nonblocking(false)?;
        (&stream).read_exact(&mut [0; 1024]).context("read the first bytes")?;
        stream.set_nonblocking(true)?;
        Ok(stream)
    };
    (0..count).map(open_one).collect()
}

struct Client {
    stream: TcpStream,
    asked: Instant,
    head: Vec<u8>,
    /// Bytes of the body still to come; `None` before the end of the head.
    left: Option<u64>,
    length: u64,
    first_byte: Duration,
}

impl Client {
    fn connect(address: SocketAddr) -> Result<Self> {
        let stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
        stream.set_nodelay(true)?;
        stream.set_nonblocking(true)?;
        Ok(Self { stream, asked: Instant::now(), head: Vec::new(), left: None, length: 0, first_byte: Duration::ZERO })
    }

    /// Whether there was something to ask for.
    fn ask(&mut self, path: Option<String>) -> Result<bool> {
        let Some(path) = path else { return Ok(false) };
        let request = format!("GET {path} HTTP/1.1\r\nHost: bench\r\nAccept: {MANIFEST_TYPE}, */*\r\n\r\n");
        self.asked = Instant::now();
        // It is far smaller than a socket's buffer, and that is empty.
        self.stream.write_all(request.as_bytes()).context("send a request")?;
        Ok(true)
    }

    /// Reads what has come; gives the sample once the answer is whole.
    fn hear(&mut self, buffer: &mut [u8]) -> Result<Option<(Sample, u64)>> {
        let count = match self.stream.read(buffer) {
            Ok(0) => bail!("the server closed in the middle of an answer"),
            Ok(count) => count,
            Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
            Err(error) => return Err(error).context("read an answer"),
        };
        let mut body = count as u64;
        if self.left.is_none() {
            let before = self.head.len();
            self.head.extend_from_slice(&buffer[..count]);
            let Some(end) = self.head.windows(4).position(|window| window == b"\r\n\r\n") else { return Ok(None) };
            self.length = content_length(&self.head[..end])?;
            self.left = Some(self.length);
            self.first_byte = Duration::ZERO;
            body = (before + count - end - 4) as u64;
            self.head.clear();
        }
        if body > 0 && self.first_byte.is_zero() {
            self.first_byte = self.asked.elapsed();
        }
        let left = self.left.unwrap_or_default().checked_sub(body).context("more bytes than announced")?;
        self.left = Some(left);
        if left > 0 {
            return Ok(None);
        }
        self.left = None;
        Ok(Some((Sample { first_byte: self.first_byte, whole: self.asked.elapsed() }, self.length)))
    }
}

fn content_length(head: &[u8]) -> Result<u64> {
    let head = std::str::from_utf8(head).context("read a head")?;
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap_or_default();
    ensure!(status.starts_with("HTTP/1.1 200"), "answered {status}");
    let length = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.eq_ignore_ascii_case("content-length").then(|| value.trim().parse().ok())?
    });
    length.context("an answer without Content-Length")
}
