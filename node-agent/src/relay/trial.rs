//! What a Pod failed at is asked of it again before any pull depends on it: the half-open state of a circuit breaker
//! (<https://learn.microsoft.com/azure/architecture/patterns/circuit-breaker>), with a request of our own in place of somebody's.

use super::ask::{Content, Kind};
use super::audit::Audit;
use super::awake::{self, Time};
use super::cache::{HEADERS, Unserved};
use super::connect::{ConnectFault, Connection};
use super::fitness;
use super::origin::{self, Origin};
use super::patience::{STALL, due};
use super::patient::Patient;
use super::portion::Portion;
use super::replica::Replica;
use super::request;
use super::resume::Source;
use super::verify;
use http::{HeaderMap, Method, Response, StatusCode};
use hyper::body::Incoming;
use std::future::poll_fn;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// Headers that come this soon make a pull slow in nobody's eyes; ...
const SOON: Duration = Duration::from_secs(1);
/// ... and so do failures that come this soon: a pull may meet a handful.
const AT_ONCE: Duration = Duration::from_millis(40);
/// What a Pod has comes this soon over a fresh connection, and as fast as is due.
const PROMPTLY: Duration = Duration::from_millis(300);
/// A body that broke off is read this much further.
const FURTHER: u64 = 256 * 1024;
/// What takes no more than this is tried more often.
const LITTLE: u64 = 4 * 1024 * 1024;
/// Of content that is tried for comparison, no more is read than this.
const CONTROL: u64 = 16 * 1024 * 1024;
/// Who sent a wrong body may send right ones between: it must come right so often, or until so much of it came.
const RIGHT_TIMES: usize = 16;
const RIGHT_BYTES: u64 = 32 * 1024 * 1024;
/// A body that has come steadily for so long comes well, ...
const STEADILY: Duration = Duration::from_secs(60);
/// ... but whether it is the right one shows at its end.
const LONGEST: Duration = Duration::from_secs(3600);

/// What is asked again.
#[derive(Debug)]
pub(super) struct Trial {
    pub(super) content: Arc<Content>,
    pub(super) part: Part,
    /// Where that came from at which it failed. What has come to its disk since tells nothing of its upstream.
    pub(super) origin: Origin,
    /// Of other content, tried to compare.
    is_control: bool,
}

/// What it shows that something goes well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// That all is well which is tried.
    All,
    /// That it has come to the disk meanwhile, and nothing of the upstream.
    OfTheDisk,
    /// That less is well than came well of the other.
    Short,
}

#[derive(Clone, Debug)]
pub(super) enum Part {
    /// Headers, as a runtime asks for them.
    Headers(Method),
    /// The same of who is only asked after another while they come late, which costs nobody anything.
    Soon(Method),
    /// What it has, as soon as others have theirs.
    Promptly,
    /// Whether it has it.
    Own(Method),
    /// Headers of use, or such as a cache of ours sends.
    Sense(Method),
    /// The body up to there, or all of it where it ends before. One that is shorter than what was sent before the fault tells nothing
    /// of longer ones.
    Body { sent: u64, until: u64 },
    /// All of the body, of who sent a wrong one.
    Right,
    /// All of the body, where another Pod of the cache sent a wrong one.
    Honest,
}

impl Trial {
    fn of(content: &Arc<Content>, part: Part, origin: Origin) -> Self {
        Self { content: content.clone(), part, origin, is_control: false }
    }

    /// Of who let somebody wait for headers.
    pub(super) fn headers(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Headers(method.clone()), Origin::Upstream)
    }

    /// Of who did so where another can be asked.
    pub(super) fn soon(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Soon(method.clone()), Origin::Disk)
    }

    /// Of who took its time over what it has, again and again.
    pub(super) fn promptly(content: &Arc<Content>) -> Self {
        Self::of(content, Part::Promptly, Origin::Disk)
    }

    /// Of who told not even what it has.
    pub(super) fn own(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Own(method.clone()), Origin::Disk)
    }

    /// Of who talked nonsense.
    pub(super) fn sense(method: &Method, content: &Arc<Content>) -> Self {
        Self::of(content, Part::Sense(method.clone()), Origin::Disk)
    }

    /// Of who sent a body from there as far as this.
    pub(super) fn beyond(reached: u64, content: &Arc<Content>, origin: Origin) -> Self {
        let part = Part::Body { sent: reached.min(CONTROL), until: reached.saturating_add(FURTHER) };
        Self::of(content, part, origin)
    }

    /// Of who sent other content than it should.
    pub(super) fn right(content: &Arc<Content>) -> Self {
        Self::of(content, Part::Right, Origin::Disk)
    }

    /// Of who may do so as well, for all that is known.
    pub(super) fn honest(content: &Arc<Content>) -> Self {
        Self::of(content, Part::Honest, Origin::Disk)
    }

    /// Of who sent hardly any of a small body.
    pub(super) fn whole(content: &Arc<Content>, origin: Origin) -> Self {
        Self::of(content, Part::Body { sent: 0, until: LITTLE }, origin)
    }

    /// The same for other content, of which a part is enough.
    pub(super) fn with(&self, content: &Arc<Content>) -> Self {
        let part = match &self.part {
            Part::Body { sent, until } => Part::Body { sent: *sent, until: CONTROL.min(*until) },
            other => other.clone(),
        };
        Self { content: content.clone(), part, origin: self.origin, is_control: true }
    }

    /// Whether less of the body came from there than a body of this length has.
    pub(super) fn is_short_of(&self, from: Origin, length: u64) -> bool {
        self.origin == from && matches!(self.part, Part::Body { sent, .. } if length > sent)
    }

    /// Whether it is about what is sent, and not only about how soon.
    pub(super) fn is_of_bodies(&self) -> bool {
        matches!(self.part, Part::Own(_) | Part::Body { .. } | Part::Right | Part::Honest)
    }

    /// Whether all nodes of a cluster can ask for so much every other minute.
    pub(super) fn is_cheap(&self) -> bool {
        match self.part {
            Part::Headers(_) | Part::Soon(_) | Part::Promptly | Part::Own(_) | Part::Sense(_) => true,
            Part::Body { until, .. } => until <= LITTLE,
            Part::Right | Part::Honest => false,
        }
    }

    /// Whether it goes well now.
    pub(super) async fn run(&self, replica: &Arc<Replica>) -> Result<Told, Unserved> {
        match self.part {
            Part::Right => awake::wait(LONGEST, self.attempt_often(replica)).await.unwrap_or(Err(Unserved::Stalled)),
            Part::Honest => awake::wait(LONGEST, self.attempt(replica)).await.unwrap_or(Err(Unserved::Stalled)),
            _ => awake::wait(STEADILY, self.attempt(replica)).await.unwrap_or(Ok((Told::All, 0))),
        }
        .map(|(told, _)| told)
    }

    async fn attempt_often(&self, replica: &Arc<Replica>) -> Result<(Told, u64), Unserved> {
        let mut read = 0;
        for _ in 1..RIGHT_TIMES {
            read += self.attempt(replica).await?.1;
            if read >= RIGHT_BYTES {
                break;
            }
        }
        self.attempt(replica).await
    }

    /// What it shows, and how much was read for it.
    async fn attempt(&self, replica: &Arc<Replica>) -> Result<(Told, u64), Unserved> {
        let (began, mut time) = (Instant::now(), Time::new(HEADERS));
        let answered = time.wait(Duration::ZERO, self.ask(replica)).await;
        let took = HEADERS.saturating_sub(time.left());
        let (response, connection) = match answered {
            None => return Err(Unserved::Late),
            Some(Ok(answer)) => answer,
            Some(Err(fault)) if fault.is_absence() => return Err(Unserved::Connect(fault)),
            Some(Err(_)) if took <= AT_ONCE && matches!(self.part, Part::Headers(_) | Part::Soon(_) | Part::Own(_)) => {
                return Ok((Told::All, 0));
            }
            Some(Err(fault)) => return Err(Unserved::Connect(fault)),
        };
        let (status, origin) = (response.status(), Origin::of(response.headers()));
        let mut read = 0;
        match &self.part {
            Part::Body { sent, until } => {
                read = self.read(response, connection, replica, *until).await?;
                if read < *sent {
                    return Ok((Told::Short, read));
                }
            }
            Part::Right | Part::Honest => read = self.read(response, connection, replica, u64::MAX).await?,
            // It has it no more, and said so at once.
            Part::Promptly if status == StatusCode::GATEWAY_TIMEOUT && took <= PROMPTLY => {}
            Part::Promptly => {
                read = self.read(response, connection, replica, LITTLE).await?;
                let took = began.elapsed();
                if took > PROMPTLY + due(read) {
                    return Err(Unserved::Slow(took));
                }
            }
            Part::Sense(method) => {
                match fitness::check(method, &self.content, &HeaderMap::new(), &response.into_parts().0) {
                    // That is how a cache of ours says why it has it not.
                    Ok(()) | Err(Unserved::Status(_)) => {}
                    Err(fault) => return Err(fault),
                }
            }
            _ if took <= self.bound(status) => {}
            _ => return Err(Unserved::Slow(took)),
        }
        let is_all = self.origin == Origin::Disk || origin == Origin::Upstream;
        Ok((if is_all { Told::All } else { Told::OfTheDisk }, read))
    }

    async fn ask(&self, replica: &Replica) -> Result<(Response<Incoming>, Connection), ConnectFault> {
        let route = replica.route();
        let build = |method| request::build(&route, method, &self.content, &HeaderMap::new());
        let asking = match &self.part {
            Part::Headers(method) | Part::Soon(method) | Part::Sense(method) => build(method),
            Part::Own(method) => request::only_if_cached(build(method)),
            _ if self.is_of_the_disk_alone() => request::only_if_cached(build(&Method::GET)),
            Part::Body { .. } | Part::Right | Part::Honest | Part::Promptly => build(&Method::GET),
        };
        let mut connection = Connection::open(&route, replica.address, Portion::small()).await?;
        let response = connection.send(asking).await?;
        Ok((response, connection))
    }

    /// Whether what would have to be fetched tells nothing: of lies, or of whether the Pod fails at what it has.
    fn is_of_the_disk_alone(&self) -> bool {
        let is_body = matches!(self.part, Part::Body { .. });
        matches!(self.part, Part::Honest | Part::Promptly)
            || (self.is_control && is_body && self.origin == Origin::Disk)
    }

    /// How long such headers may take.
    fn bound(&self, status: StatusCode) -> Duration {
        let says_no = status == StatusCode::GATEWAY_TIMEOUT && matches!(self.part, Part::Own(_));
        if status.is_server_error() && !says_no { AT_ONCE } else { SOON }
    }

    async fn read(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        replica: &Arc<Replica>,
        until: u64,
    ) -> Result<u64, Unserved> {
        let (parts, body) = response.into_parts();
        match parts.status {
            StatusCode::OK => {}
            status if status == StatusCode::NOT_FOUND || origin::is_ours(&parts.headers) => {
                return Err(Unserved::Status(status));
            }
            // It has it not (RFC 9111, section 5.2.1.7).
            StatusCode::GATEWAY_TIMEOUT if self.is_of_the_disk_alone() => return Err(Unserved::Status(parts.status)),
            status => return Err(Unserved::Nonsense(status)),
        }
        let origin = Origin::of(&parts.headers);
        let source = Source { body, replica: replica.clone(), origin, connection: Some(connection) };
        match &self.content.kind {
            Kind::Manifest(_) => {
                let digest = verify::manifest_digest(&self.content, &parts.headers)?;
                verify::read_in_time(source, &digest).await.map(|bytes| bytes.len() as u64)
            }
            Kind::Blob(digest) if verify::is_small(&source) => {
                verify::read_in_time(source, digest).await.map(|bytes| bytes.len() as u64)
            }
            Kind::Blob(_) | Kind::Other => self.read_large(source, until).await,
        }
    }

    async fn read_large(&self, source: Source, until: u64) -> Result<u64, Unserved> {
        let mut patient = Patient::new(source, STALL);
        let (mut audit, mut came) = (self.content.blob().map(Audit::new), 0);
        while let Some(frame) = poll_fn(|cx| patient.poll_frame(cx)).await {
            let frame = frame.map_err(Unserved::Cut)?;
            if let Some(data) = frame.data_ref() {
                came += data.len() as u64;
                audit.iter_mut().for_each(|audit| audit.see(data));
            }
            if came > until {
                return Ok(came);
            }
        }
        if audit.is_none_or(Audit::passes) { Ok(came) } else { Err(Unserved::OtherContent) }
    }
}
