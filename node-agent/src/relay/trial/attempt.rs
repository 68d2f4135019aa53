//! Trying a Pod: one request after another as it would be asked by a pull, and what each answer shows. When a Pod is tried and what
//! follows is not known here.

use super::{LITTLE, Part, Told, Trial};
use crate::relay::ask::Kind;
use crate::relay::audit::Audit;
use crate::relay::awake::{self, Time};
use crate::relay::cache::{HEADERS, Unserved};
use crate::relay::connect::{ConnectFault, Connection};
use crate::relay::fitness;
use crate::relay::origin::{self, Origin};
use crate::relay::patience::{STALL, due};
use crate::relay::patient::Patient;
use crate::relay::portion::Portion;
use crate::relay::replica::Replica;
use crate::relay::request;
use crate::relay::resume::Source;
use crate::relay::verify;
use http::response::Parts;
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
/// Who sent a wrong body may send right ones between: it must come right so often, or until so much of it came.
const RIGHT_TIMES: usize = 16;
const RIGHT_BYTES: u64 = 32 * 1024 * 1024;
/// A body that has come steadily for so long comes well, ...
const STEADILY: Duration = Duration::from_secs(60);
/// ... but whether it is the right one shows at its end.
const LONGEST: Duration = Duration::from_secs(3600);

impl Trial {
    /// Whether it goes well now.
    pub(in crate::relay) async fn run(&self, replica: &Arc<Replica>) -> Result<Told, Unserved> {
        match self.part {
            Part::Right | Part::Honest => {
                awake::wait(LONGEST, self.attempt_often(replica)).await.unwrap_or(Err(Unserved::Stalled))
            }
            _ => awake::wait(STEADILY, self.attempt(replica)).await.unwrap_or(Ok((Told::All, 0))),
        }
        .map(|(told, _)| told)
    }

    /// As often as one right answer may be chance.
    async fn attempt_often(&self, replica: &Arc<Replica>) -> Result<(Told, u64), Unserved> {
        let most = if matches!(self.part, Part::Right) { RIGHT_TIMES } else { 1 };
        let (mut times, mut read) = (0, 0);
        loop {
            let (told, came) = self.attempt(replica).await?;
            (times, read) = (times + 1, read + came);
            if times == most || read >= RIGHT_BYTES {
                return Ok((told, read));
            }
        }
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
        let read = match &self.part {
            Part::Body { .. } | Part::Promptly | Part::Right | Part::Honest => {
                self.read(response, connection, replica).await?
            }
            Part::Sense(method) => self.makes_sense(method, &response.into_parts().0).map(|()| 0)?,
            Part::Headers(_) | Part::Soon(_) | Part::Own(_) if took > self.bound(status) => {
                return Err(Unserved::Slow(took));
            }
            Part::Headers(_) | Part::Soon(_) | Part::Own(_) => 0,
        };
        match self.part {
            Part::Body { sent, .. } if read < sent => Ok((Told::Short, read)),
            Part::Promptly if began.elapsed() > PROMPTLY + due(read) => Err(Unserved::Slow(began.elapsed())),
            _ if self.origin == Origin::Disk || origin == Origin::Upstream => Ok((Told::All, read)),
            _ => Ok((Told::OfTheDisk, read)),
        }
    }

    /// Whether an answer could be a cache's of ours.
    fn makes_sense(&self, method: &Method, answer: &Parts) -> Result<(), Unserved> {
        match fitness::check(method, &self.content, &HeaderMap::new(), answer) {
            Ok(()) if !fitness::could_be_ours(answer.status, &answer.headers) => Err(Unserved::Nonsense(answer.status)),
            // The last is how it says why it has it not.
            Ok(()) | Err(Unserved::Status(_)) => Ok(()),
            Err(fault) => Err(fault),
        }
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

    /// How far a body is read.
    fn until(&self) -> u64 {
        match self.part {
            Part::Body { until, .. } => until,
            Part::Promptly => LITTLE,
            _ => u64::MAX,
        }
    }

    /// How long such headers may take.
    fn bound(&self, status: StatusCode) -> Duration {
        let says_no = status == StatusCode::GATEWAY_TIMEOUT && matches!(self.part, Part::Own(_));
        if status.is_server_error() && !says_no { AT_ONCE } else { SOON }
    }

    /// How much of the body came.
    async fn read(
        &self,
        response: Response<Incoming>,
        connection: Connection,
        replica: &Arc<Replica>,
    ) -> Result<u64, Unserved> {
        let (parts, body) = response.into_parts();
        let origin = Origin::of(&parts.headers);
        // RFC 9111, section 5.2.1.7; what is being fetched just now it has not either.
        let has_it_not =
            parts.status == StatusCode::GATEWAY_TIMEOUT || parts.status.is_success() && origin != Origin::Disk;
        match parts.status {
            _ if has_it_not && matches!(self.part, Part::Promptly) => return Ok(0),
            status if has_it_not && self.is_of_the_disk_alone() => return Err(Unserved::Status(status)),
            StatusCode::OK => {}
            status if origin::is_ours(&parts.headers) => return Err(Unserved::Status(status)),
            status => return Err(Unserved::Nonsense(status)),
        }
        let source = Source { body, replica: replica.clone(), origin, connection: Some(connection) };
        match &self.content.kind {
            Kind::Manifest(_) => {
                let digest = verify::manifest_digest(&self.content, &parts.headers)?;
                verify::read_in_time(source, &digest).await.map(|bytes| bytes.len() as u64)
            }
            Kind::Blob(digest) if verify::is_small(&source) => {
                verify::read_in_time(source, digest).await.map(|bytes| bytes.len() as u64)
            }
            Kind::Blob(_) | Kind::Other => self.read_large(source, self.until()).await,
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
