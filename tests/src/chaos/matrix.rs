//! The rows of the matrix: each fault with what a mirror must still do while it lasts. Pure.

use std::time::Duration;

use super::judge::Must::{self, Serve, ServeOrFail};
use super::names::NameFault;
use crate::upstream::{Fault, On};

/// Longer than this, and a runtime would have done better without the mirror: 5 s, and the machine's noise.
const MISS_SOON: Duration = Duration::from_secs(6);

/// What happens.
#[derive(Clone, Debug)]
pub enum Injection {
    /// Upstream shows a fault to every request.
    Upstream(On, Fault),
    /// Upstream shows it to every other request.
    EveryOther(On, Fault),
    /// Upstream shows it for a second, then not for a second, and so on.
    Flapping(On, Fault),
    /// Upstream points the tag at another image.
    TagMoves,
    /// The name server fails.
    Names(NameFault),
    /// The mirror's volume fails.
    Volume(VolumeFault),
    /// The file that holds a blob is tampered with.
    File(FileFault),
    /// The mirror is killed while it writes a blob.
    Kill,
}

/// What happens to the volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VolumeFault {
    /// Nothing more fits (ENOSPC).
    Full,
    /// Every access fails (EIO).
    Dead,
    /// Every write waits.
    Frozen,
}

/// What happens to a blob's file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileFault {
    /// Its second half is gone.
    Truncate,
    /// One byte is another.
    Flip,
    /// It is empty.
    Empty,
    /// It is gone.
    Remove,
}

/// A fault, and what must go on.
#[derive(Clone, Debug)]
pub struct Row {
    /// Its name in the table.
    pub name: &'static str,
    /// What it does, in a sentence.
    pub what: &'static str,
    /// What happens, all at once.
    pub injections: Vec<Injection>,
    /// Whether upstream redirects blobs to its CDN.
    pub redirects: bool,
    /// Of a tag that was pulled before.
    pub tag: Must,
    /// Of content that was pulled before, by digest.
    pub warm: Must,
    /// Of content that was not pulled before.
    pub miss: Must,
    /// By when a miss has to be over.
    pub soon: Duration,
}

impl Row {
    fn new(name: &'static str, what: &'static str, injection: Injection) -> Self {
        let injections = vec![injection];
        Self { name, what, injections, redirects: false, tag: Serve, warm: Serve, miss: ServeOrFail, soon: MISS_SOON }
    }

    /// Whether it needs mounts or port 53.
    pub fn needs_root(&self) -> bool {
        self.injections.iter().any(|injection| matches!(injection, Injection::Names(_) | Injection::Volume(_)))
    }

    fn and(mut self, injection: Injection) -> Self {
        self.injections.push(injection);
        self
    }

    fn redirected(self) -> Self {
        Self { redirects: true, ..self }
    }

    /// The content can be had all the same.
    fn harmless(self) -> Self {
        Self { miss: Serve, ..self }
    }

    /// Bytes come, with pauses in between.
    fn patient(self) -> Self {
        Self { soon: Duration::from_secs(22), ..self }
    }

    /// What was pulled before may be lost, but never answered wrong.
    fn losing(self) -> Self {
        Self { tag: ServeOrFail, warm: ServeOrFail, ..self }
    }
}

/// All rows.
pub fn rows() -> Vec<Row> {
    [connections(), answers(), tokens(), redirects(), bodies(), names(), unsteady(), local()].concat()
}

fn upstream(name: &'static str, what: &'static str, on: On, fault: Fault) -> Row {
    Row::new(name, what, Injection::Upstream(on, fault))
}

fn connections() -> Vec<Row> {
    vec![
        upstream("refuse", "Upstream's port is closed.", On::Everything, Fault::Refuse),
        upstream(
            "black hole",
            "Packets to upstream vanish: no connection comes about.",
            On::Everything,
            Fault::BlackHole,
        ),
        upstream("silence", "Upstream takes requests and never answers.", On::Registry, Fault::Silence),
        upstream(
            "slow loris",
            "Upstream's headers come one byte every 500 ms.",
            On::Registry,
            Fault::SlowHeader(Duration::from_millis(500)),
        ),
    ]
}

fn answers() -> Vec<Row> {
    vec![
        upstream("500", "Upstream answers 500.", On::Registry, Fault::Status(500)),
        upstream("503", "Upstream answers 503.", On::Registry, Fault::Status(503)),
        upstream("429", "Upstream answers 429 and no more.", On::Registry, Fault::TooManyRequests(None)),
        upstream(
            "429 in 60 s",
            "Upstream answers 429 with Retry-After: 60.",
            On::Registry,
            Fault::TooManyRequests(Some(60)),
        ),
        upstream("401 loop", "Upstream answers 401 to every token.", On::Registry, Fault::Status(401)),
        upstream("403", "Upstream answers 403.", On::Registry, Fault::Status(403)),
        upstream("HTML 200", "Upstream answers everything with 200 and a page of HTML.", On::Registry, Fault::Html),
        upstream("wrong digest", "Upstream's bodies have a byte flipped.", On::Registry, Fault::WrongBytes),
        upstream("no digest", "Upstream sends no Docker-Content-Digest.", On::Registry, Fault::NoDigest).harmless(),
        upstream(
            "clock skew",
            "Upstream's clock is a day behind, in Date and in its tokens.",
            On::Everything,
            Fault::ClockSkew(-86_400),
        )
        .harmless(),
        upstream("gzip", "Upstream compresses bodies unasked.", On::Registry, Fault::Gzip),
        Row::new("tag moves", "Upstream points the tag at another image.", Injection::TagMoves).harmless(),
    ]
}

fn tokens() -> Vec<Row> {
    vec![
        upstream("tokens down", "The token service's port is closed.", On::Tokens, Fault::Refuse),
        upstream("tokens hang", "The token service takes requests and never answers.", On::Tokens, Fault::Silence),
        upstream("tokens 500", "The token service answers 500.", On::Tokens, Fault::Status(500)),
    ]
}

fn redirects() -> Vec<Row> {
    let row = |name, what, on, fault| upstream(name, what, on, fault).redirected();
    vec![
        row("dead CDN", "Upstream redirects blobs to a host that refuses.", On::Cdn, Fault::Refuse),
        row("CDN hangs", "Upstream redirects blobs to a host that never answers.", On::Cdn, Fault::Silence),
        row("expired URL", "The URL that upstream redirects to has expired: 403.", On::Cdn, Fault::Status(403)),
    ]
}

fn bodies() -> Vec<Row> {
    let blobs = |name, what, fault| upstream(name, what, On::Blobs, fault);
    vec![
        blobs("RST at 200 KB", "Each body of a blob is reset after 200 KB.", Fault::ResetAt(200_000)).harmless(),
        blobs("RST at 1 KB", "Each body of a blob is reset after 1 KB.", Fault::ResetAt(1000)),
        blobs(
            "short body",
            "Each body of a blob ends after 200 KB, whatever its length header says.",
            Fault::TruncateAt(200_000),
        )
        .harmless(),
        blobs("stall", "Each body of a blob stops after 200 KB and never goes on.", Fault::StallAt(200_000)).patient(),
        blobs("slow body", "Blobs come at 200 KB/s.", Fault::Drip(200_000)).harmless(),
        blobs("no ranges", "Upstream ignores Range.", Fault::IgnoreRange).harmless(),
        blobs("chunked", "Blobs come in chunks, without a length.", Fault::Chunked).harmless(),
    ]
}

fn names() -> Vec<Row> {
    vec![
        Row::new("NXDOMAIN", "Upstream's name does not exist.", Injection::Names(NameFault::NoSuchName)),
        Row::new("DNS silent", "The name server never answers.", Injection::Names(NameFault::Silence)),
    ]
}

fn unsteady() -> Vec<Row> {
    let every_other = |name, what, fault| Row::new(name, what, Injection::EveryOther(On::Registry, fault));
    let flapping = |name, what, fault| Row::new(name, what, Injection::Flapping(On::Registry, fault));
    vec![
        every_other("5xx flaps", "Every other request is answered 503.", Fault::Status(503)),
        every_other("silence flaps", "Every other request is never answered.", Fault::Silence),
        flapping("port flaps", "Upstream's port is closed every other second.", Fault::Refuse),
        flapping("503 by seconds", "Upstream answers 503 every other second.", Fault::Status(503)),
        upstream("503 + tokens", "Upstream answers 503 and its token service hangs.", On::Registry, Fault::Status(503))
            .and(Injection::Upstream(On::Tokens, Fault::Silence)),
    ]
}

fn local() -> Vec<Row> {
    let file = |name, what, fault| Row::new(name, what, Injection::File(fault));
    let volume = |name, what, fault| Row::new(name, what, Injection::Volume(fault));
    let refuse = || Injection::Upstream(On::Everything, Fault::Refuse);
    vec![
        file("truncated file", "A blob's file loses its second half.", FileFault::Truncate).harmless(),
        file("flipped byte", "A byte of a blob's file is another.", FileFault::Flip).harmless(),
        file("emptied file", "A blob's file is emptied.", FileFault::Empty).harmless(),
        file("removed file", "A blob's file is removed.", FileFault::Remove).harmless(),
        file("flipped + refuse", "A byte of a blob's file is another, and upstream is gone.", FileFault::Flip)
            .and(refuse())
            .losing(),
        volume("disk full", "Nothing more fits on the volume (ENOSPC).", VolumeFault::Full),
        volume("disk dead", "Every access to the volume fails (EIO).", VolumeFault::Dead).losing(),
        volume("writes hang", "Every write to the volume waits.", VolumeFault::Frozen),
        Row::new("kill -9", "The mirror is killed while it writes a blob.", Injection::Kill).harmless(),
        Row::new(
            "kill -9 + refuse",
            "The mirror is killed while it writes a blob, and upstream is gone.",
            Injection::Kill,
        )
        .and(refuse()),
    ]
}
