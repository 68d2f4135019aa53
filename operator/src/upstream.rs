//! Asks each cache what it knows of its upstream, in the background. Plain HTTP to Pod addresses; the answers are hostile input.

use crate::exchange::{ExchangeFailed, exchange};
use crate::fleet::pod_is_ready;
use crate::text::one_line;
use crate::watches::Stores;
use breakwater_crds::names::{ADMIN_PORT, LABEL_INSTANCE};
use bytes::Bytes;
use http_body_util::Empty;
use hyper::http::Error as RequestError;
use hyper::{Request, StatusCode};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use serde::Deserialize;
use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

const ASK_EVERY: Duration = Duration::from_secs(5);
/// A cache that has just started, or not answered, is asked sooner.
const ASK_AGAIN: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(250);
const DEADLINE: Duration = Duration::from_secs(1);
const MAX_AT_ONCE: usize = 16;
const MAX_ANSWER: usize = 64 * 1024;
/// After so many silent tries what the cache said before is no longer believed.
const FAILURES_UNTIL_UNKNOWN: u32 = 3;
const MAX_MESSAGE: usize = 300;

/// What a cache says of its upstream.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamReport {
    /// Whether it answers; none before it was first spoken to.
    pub reachable: Option<bool>,
    /// Since when that holds.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// What went wrong, in one line.
    #[serde(default)]
    pub message: Option<String>,
    /// Whether it accepts the credentials; none without credentials.
    #[serde(default)]
    pub credentials_accepted: Option<bool>,
    /// Pulls left in its rate limit window.
    #[serde(default)]
    pub rate_limit_remaining: Option<i64>,
    /// Bytes of content in the cache.
    #[serde(default)]
    pub cached_bytes: Option<u64>,
}

/// The reports, by cache.
pub type Reports = watch::Receiver<Arc<HashMap<String, UpstreamReport>>>;

#[derive(Debug, thiserror::Error)]
enum AskFailed {
    #[error("no answer in time")]
    Timeout,
    #[error("cannot connect")]
    Connect(#[source] std::io::Error),
    #[error(transparent)]
    Exchange(ExchangeFailed),
    #[error("cannot build the request")]
    Request(#[source] RequestError),
    #[error("answered {0}")]
    Status(StatusCode),
    #[error("answered something else than a report")]
    Json(#[source] serde_json::Error),
}

struct Target {
    address: SocketAddr,
    due: Instant,
    failures: u32,
    asking: bool,
}

/// Keeps the reports up to date until it is dropped; calls `changed` with the name of each cache whose report is news.
pub async fn keep_reports(
    stores: Stores,
    publish: watch::Sender<Arc<HashMap<String, UpstreamReport>>>,
    changed: impl Fn(&str) + Send + 'static,
) {
    let mut targets: HashMap<String, Target> = HashMap::new();
    let mut asking = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                follow_pods(&mut targets, &stores.all_cache_pods());
                forget_others(&publish, &targets);
                ask_due(&mut targets, &mut asking);
            }
            Some(Ok(answer)) = asking.join_next() => {
                if let Some((cache, report)) = take(&mut targets, answer) && store(&publish, &cache, report) {
                    changed(&cache);
                }
            }
        }
    }
}

/// One target per cache that has an address: the first of its Pods that is ready, or else the first. A new address is asked
/// at once.
fn follow_pods(targets: &mut HashMap<String, Target>, pods: &[Arc<Pod>]) {
    let mut addresses = HashMap::new();
    let mut pods = pods.to_vec();
    pods.sort_by_key(|pod| (!pod_is_ready(pod), pod.name_any()));
    for pod in pods.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
        if let (Some(address), Some(cache)) = (address, pod.labels().get(LABEL_INSTANCE)) {
            addresses.entry(cache.clone()).or_insert_with(|| SocketAddr::new(address, ADMIN_PORT));
        }
    }
    targets.retain(|cache, _| addresses.contains_key(cache));
    for (cache, address) in addresses {
        let target = targets.entry(cache).or_insert_with(|| Target::new(address));
        if target.address != address {
            *target = Target::new(address);
        }
    }
}

impl Target {
    fn new(address: SocketAddr) -> Self {
        Self { address, due: Instant::now(), failures: 0, asking: false }
    }
}

/// A cache without a Pod says nothing.
fn forget_others(publish: &watch::Sender<Arc<HashMap<String, UpstreamReport>>>, targets: &HashMap<String, Target>) {
    publish.send_if_modified(|reports| {
        let gone = reports.keys().any(|cache| !targets.contains_key(cache));
        if gone {
            Arc::make_mut(reports).retain(|cache, _| targets.contains_key(cache));
        }
        gone
    });
}

struct Answer {
    cache: String,
    /// Who was asked.
    address: SocketAddr,
    said: Result<UpstreamReport, AskFailed>,
}

fn ask_due(targets: &mut HashMap<String, Target>, asking: &mut JoinSet<Answer>) {
    let now = Instant::now();
    for (cache, target) in targets.iter_mut().filter(|(_, target)| !target.asking && target.due <= now) {
        if asking.len() >= MAX_AT_ONCE {
            return;
        }
        target.asking = true;
        let (cache, address) = (cache.clone(), target.address);
        asking.spawn(async move {
            let said = tokio::time::timeout(DEADLINE, ask(address)).await.unwrap_or(Err(AskFailed::Timeout));
            Answer { cache, address, said }
        });
    }
}

/// Takes note of an answer: the cache, and the report to publish, if that changes. What a Pod says that is not asked any more is no news
/// of its successor.
fn take(targets: &mut HashMap<String, Target>, answer: Answer) -> Option<(String, Option<UpstreamReport>)> {
    let Answer { cache, address, said } = answer;
    let target = targets.get_mut(&cache).filter(|target| target.address == address)?;
    let report = settle(target, &cache, said)?;
    Some((cache, report))
}

/// Sets when to ask again. The inner option is the report to publish: none once the cache has been silent for too long.
fn settle(
    target: &mut Target,
    cache: &str,
    answer: Result<UpstreamReport, AskFailed>,
) -> Option<Option<UpstreamReport>> {
    target.asking = false;
    match answer {
        Ok(report) => {
            target.failures = 0;
            target.due = Instant::now() + if report.reachable.is_none() { ASK_AGAIN } else { ASK_EVERY };
            Some(Some(report))
        }
        Err(error) => {
            tracing::debug!(%cache, error = %crate::error_chain(&error), "cache did not report");
            target.failures = target.failures.saturating_add(1);
            target.due = Instant::now() + ASK_AGAIN;
            (target.failures >= FAILURES_UNTIL_UNKNOWN).then_some(None)
        }
    }
}

fn store(
    publish: &watch::Sender<Arc<HashMap<String, UpstreamReport>>>,
    cache: &str,
    report: Option<UpstreamReport>,
) -> bool {
    publish.send_if_modified(|reports| {
        if reports.get(cache) == report.as_ref() {
            return false;
        }
        let reports = Arc::make_mut(reports);
        match report {
            Some(report) => reports.insert(cache.to_owned(), report),
            None => reports.remove(cache),
        };
        true
    })
}

async fn ask(address: SocketAddr) -> Result<UpstreamReport, AskFailed> {
    let stream = TcpStream::connect(address).await.map_err(AskFailed::Connect)?;
    let request = Request::get("/v1/upstream")
        .header(hyper::header::HOST, address.to_string())
        .body(Empty::<Bytes>::new())
        .map_err(AskFailed::Request)?;
    match exchange(stream, request, MAX_ANSWER).await.map_err(AskFailed::Exchange)? {
        (StatusCode::OK, body) => parse(&body),
        (status, _) => Err(AskFailed::Status(status)),
    }
}

fn parse(body: &[u8]) -> Result<UpstreamReport, AskFailed> {
    let mut report: UpstreamReport = serde_json::from_slice(body).map_err(AskFailed::Json)?;
    report.message =
        report.message.map(|message| one_line(&message, MAX_MESSAGE)).filter(|message| !message.is_empty());
    // The API server cannot read every year that there is, and would refuse the whole status.
    report.since = report.since.filter(|since| *since >= Timestamp::UNIX_EPOCH);
    Ok(report)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn a_report_is_read_and_its_message_cleaned() {
        let report = parse(
            br#"{"registry":"docker.io","reachable":false,"since":"2026-11-21T09:02:08Z","message":"connect\ntimeout",
                 "credentialsAccepted":null,"rateLimitRemaining":12,"cachedBytes":123}"#,
        )
        .unwrap();
        assert_eq!(report.reachable, Some(false));
        assert_eq!(report.message.as_deref(), Some("connect timeout"));
        assert_eq!((report.rate_limit_remaining, report.cached_bytes), (Some(12), Some(123)));
        assert_eq!(parse(br#"{"reachable":null}"#).unwrap(), UpstreamReport::default());
        let newer = br#"{"reachable":true,"aNewField":{"x":[1]}}"#;
        assert_eq!(parse(newer).unwrap().reachable, Some(true), "a newer cache says more");
        assert_eq!(parse(b"{}").unwrap(), UpstreamReport::default(), "an older one less");
    }

    #[test]
    fn a_time_that_no_status_can_hold_is_left_out() {
        let since = |text: &str| parse(format!(r#"{{"reachable":false,"since":"{text}"}}"#).as_bytes()).unwrap().since;
        assert_eq!(since("-009999-01-03T00:00:00Z"), None);
        assert_eq!(
            since("9999-12-30T00:00:00Z").map(|since| since.to_string()).as_deref(),
            Some("9999-12-30T00:00:00Z")
        );
    }

    proptest! {
        #[test]
        fn any_answer_is_survived(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }

    /// A cache that sends `answer` to whoever asks.
    async fn cache(answer: String) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let task = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut buffer = [0; 1024];
            let read = stream.read(&mut buffer).await.unwrap();
            assert!(buffer[..read].starts_with(b"GET /v1/upstream HTTP/1.1\r\n"));
            stream.write_all(answer.as_bytes()).await.unwrap();
        });
        (address, task)
    }

    #[tokio::test]
    async fn a_cache_is_asked_over_http() {
        let body = r#"{"reachable":true}"#;
        let length = body.len();
        let (address, task) = cache(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\n\r\n{body}")).await;
        assert_eq!(ask(address).await.unwrap().reachable, Some(true));
        task.await.unwrap();
        let (address, task) = cache("HTTP/1.1 500 Oh\r\ncontent-length: 0\r\n\r\n".to_owned()).await;
        assert!(matches!(ask(address).await, Err(AskFailed::Status(_))));
        task.await.unwrap();
        let long = "x".repeat(MAX_ANSWER + 1);
        let (address, task) = cache(format!("HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n{long}")).await;
        assert!(matches!(ask(address).await, Err(AskFailed::Exchange(ExchangeFailed::Body))));
        let _ = task.await;
    }

    #[test]
    fn a_late_answer_of_a_former_pod_says_nothing_of_the_present_one() {
        let address = |text: &str| -> SocketAddr { text.parse().unwrap() };
        let mut targets = HashMap::from([("c".to_owned(), Target::new(address("127.0.0.2:1")))]);
        targets.get_mut("c").unwrap().asking = true;
        let mut said = |by: &str| {
            let report = UpstreamReport { reachable: Some(true), ..UpstreamReport::default() };
            take(&mut targets, Answer { cache: "c".to_owned(), address: address(by), said: Ok(report) })
        };
        assert_eq!(said("127.0.0.1:1"), None);
        assert!(said("127.0.0.2:1").is_some_and(|(cache, report)| cache == "c" && report.is_some()));
    }

    #[test]
    fn a_silent_cache_is_believed_for_a_while() {
        let mut target = Target::new("127.0.0.1:1".parse().unwrap());
        assert_eq!(settle(&mut target, "c", Err(AskFailed::Timeout)), None);
        assert_eq!(settle(&mut target, "c", Err(AskFailed::Timeout)), None);
        assert_eq!(settle(&mut target, "c", Err(AskFailed::Timeout)), Some(None));
        let report = UpstreamReport { reachable: Some(true), ..UpstreamReport::default() };
        assert_eq!(settle(&mut target, "c", Ok(report.clone())), Some(Some(report)));
        assert_eq!(settle(&mut target, "c", Err(AskFailed::Timeout)), None);
    }
}
