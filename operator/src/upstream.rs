//! Asks the Pods of each cache what they know of its upstream, in the background. Plain HTTP to Pod addresses; the answers are hostile
//! input.

mod together;

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
use std::collections::{HashMap, HashSet};
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

/// A Pod that is asked.
struct Target {
    cache: String,
    due: Instant,
    failures: u32,
    asking: bool,
    /// What it said last, as long as that is believed.
    said: Option<UpstreamReport>,
}

type Targets = HashMap<SocketAddr, Target>;

/// Keeps the reports up to date until it is dropped; calls `changed` with the name of each cache whose report is news.
pub async fn keep_reports(
    stores: Stores,
    publish: watch::Sender<Arc<HashMap<String, UpstreamReport>>>,
    changed: impl Fn(&str) + Send + 'static,
) {
    let mut targets = Targets::new();
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
                if let Some(cache) = take(&mut targets, answer) && store(&publish, &cache, heard(&targets, &cache)) {
                    changed(&cache);
                }
            }
        }
    }
}

/// The Pods of each cache that are ready, or else the first that has an address. A new one is asked at once.
fn follow_pods(targets: &mut Targets, pods: &[Arc<Pod>]) {
    let mut pods = pods.to_vec();
    pods.retain(|pod| pod.metadata.deletion_timestamp.is_none());
    pods.sort_by_key(|pod| (!pod_is_ready(pod), pod.name_any()));
    let (mut asked, mut addresses) = (HashSet::new(), HashMap::new());
    for pod in &pods {
        let address = pod.status.as_ref().and_then(|status| status.pod_ip.as_deref()?.parse::<IpAddr>().ok());
        if let (Some(address), Some(cache)) = (address, pod.labels().get(LABEL_INSTANCE))
            && (asked.insert(cache) || pod_is_ready(pod))
        {
            addresses.insert(SocketAddr::new(address, ADMIN_PORT), cache);
        }
    }
    targets.retain(|address, target| addresses.get(address).is_some_and(|cache| **cache == target.cache));
    for (address, cache) in addresses {
        targets.entry(address).or_insert_with(|| Target::new(cache));
    }
}

impl Target {
    fn new(cache: &str) -> Self {
        Self { cache: cache.to_owned(), due: Instant::now(), failures: 0, asking: false, said: None }
    }
}

/// A cache without a Pod says nothing.
fn forget_others(publish: &watch::Sender<Arc<HashMap<String, UpstreamReport>>>, targets: &Targets) {
    let caches: HashSet<_> = targets.values().map(|target| target.cache.as_str()).collect();
    publish.send_if_modified(|reports| {
        let gone = reports.keys().any(|cache| !caches.contains(cache.as_str()));
        if gone {
            Arc::make_mut(reports).retain(|cache, _| caches.contains(cache.as_str()));
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

fn ask_due(targets: &mut Targets, asking: &mut JoinSet<Answer>) {
    let now = Instant::now();
    for (address, target) in targets.iter_mut().filter(|(_, target)| !target.asking && target.due <= now) {
        if asking.len() >= MAX_AT_ONCE {
            return;
        }
        target.asking = true;
        let (cache, address) = (target.cache.clone(), *address);
        asking.spawn(async move {
            let said = tokio::time::timeout(DEADLINE, ask(address)).await.unwrap_or(Err(AskFailed::Timeout));
            Answer { cache, address, said }
        });
    }
}

/// Takes note of an answer: the cache, if something may be news of it. What a Pod says that is not asked any more is no news of its
/// successor.
fn take(targets: &mut Targets, answer: Answer) -> Option<String> {
    let Answer { cache, address, said } = answer;
    let target = targets.get_mut(&address).filter(|target| target.cache == cache)?;
    target.settle(said).then_some(cache)
}

/// What all Pods of the cache say together.
fn heard(targets: &Targets, cache: &str) -> Option<UpstreamReport> {
    let pods = targets.values().filter(|target| target.cache == cache);
    together::report(pods.filter_map(|target| target.said.as_ref()))
}

impl Target {
    /// Sets when to ask again, and what is believed: nothing once it has been silent for too long. Whether that may be news.
    fn settle(&mut self, answer: Result<UpstreamReport, AskFailed>) -> bool {
        self.asking = false;
        match answer {
            Ok(report) => {
                self.failures = 0;
                self.due = Instant::now() + if report.reachable.is_none() { ASK_AGAIN } else { ASK_EVERY };
                self.said = Some(report);
                true
            }
            Err(error) => {
                tracing::debug!(cache = self.cache, error = %crate::error_chain(&error), "cache did not report");
                self.failures = self.failures.saturating_add(1);
                self.due = Instant::now() + ASK_AGAIN;
                let is_silent = self.failures >= FAILURES_UNTIL_UNKNOWN;
                self.said.take_if(|_| is_silent);
                is_silent
            }
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
        let address: SocketAddr = "127.0.0.1:1".parse().unwrap();
        let mut targets = Targets::from([(address, Target::new("present"))]);
        let mut said = |cache: &str| {
            take(&mut targets, Answer { cache: cache.to_owned(), address, said: Ok(UpstreamReport::default()) })
        };
        assert_eq!((said("former"), said("present").as_deref()), (None, Some("present")));
    }

    #[test]
    fn all_pods_that_are_ready_are_asked_or_one() {
        let pod = |name: &str, address: &str, is_ready: bool| -> Arc<Pod> {
            let status = if is_ready { "True" } else { "False" };
            let pod = serde_json::json!({
                "metadata": {"name": name, "labels": {LABEL_INSTANCE: "c"}},
                "status": {"podIP": address, "conditions": [{"type": "Ready", "status": status}]},
            });
            Arc::new(serde_json::from_value(pod).unwrap())
        };
        let mut targets = Targets::new();
        let mut asked = |pods: &[Arc<Pod>]| {
            follow_pods(&mut targets, pods);
            let mut asked: Vec<_> = targets.keys().map(|address| address.ip().to_string()).collect();
            asked.sort();
            asked
        };
        let [one, two, three] = ["10.0.0.1", "10.0.0.2", "10.0.0.3"];
        assert_eq!(asked(&[pod("c-0", one, false), pod("c-1", two, true), pod("c-2", three, true)]), [two, three]);
        assert_eq!(asked(&[pod("c-0", one, false), pod("c-1", two, false)]), [one]);
        assert_eq!(asked(&[]), [""; 0]);
    }

    #[test]
    fn a_silent_cache_is_believed_for_a_while() {
        let mut target = Target::new("c");
        for _ in 0..2 {
            assert!(target.settle(Ok(UpstreamReport::default())));
            for is_believed in [true, true, false] {
                let is_news = target.settle(Err(AskFailed::Timeout));
                assert_eq!((target.said.is_some(), is_news), (is_believed, !is_believed));
            }
        }
    }
}
