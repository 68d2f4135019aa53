//! The relay after a pause: what the Pod failed at is asked of it again before a runtime has to.

use super::misbehaviour::{HIT, half};
use super::one_pod::{blob, blob_of, cache, digest_of};
use super::support::{Cache, Reply, Running, Step};
use breakwater_node_agent::relay::Standing;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Longer than the first pause and what nodes are spread over.
pub(super) const PAUSE: Duration = Duration::from_secs(66);
const MOMENT: Duration = Duration::from_millis(20);
/// What trials and probes need between two leaps.
pub(super) const BREATH: Duration = Duration::from_millis(300);
pub(super) const LONG: Duration = Duration::from_secs(30);

/// Lets so much time go by for the relay in a moment.
pub(super) async fn skip(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

/// What a Pod has beside the content that it fails at.
static OTHER: [u8; 1_000_000] = [9; 1_000_000];

type Fault = fn(&str, &[u8]) -> Reply;

/// A Pod that has this blob and another, and one fault while it is ill.
struct Patient {
    cache: Cache,
    relay: Running,
    path: String,
    other: String,
    is_ill: Arc<AtomicBool>,
}

impl Patient {
    /// One that has done something well before it fell ill.
    async fn new(content: &[u8], fault: Fault) -> Self {
        let patient = Self::unknown(content, fault).await;
        patient.is_ill.store(false, Ordering::SeqCst);
        assert_eq!(patient.relay.get(&patient.other).await.status, 200);
        patient.is_ill.store(true, Ordering::SeqCst);
        patient
    }

    /// One of whom nothing is known.
    async fn unknown(content: &[u8], fault: Fault) -> Self {
        let [path, other_path] = [content, &OTHER].map(blob_of);
        let (content, is_other) = (content.to_vec(), other_path.split('?').next().unwrap().to_owned());
        let is_ill = Arc::new(AtomicBool::new(true));
        let seen = is_ill.clone();
        let cache = cache(move |head| match (seen.load(Ordering::SeqCst), head.contains(&is_other)) {
            (true, _) => fault(head, &content),
            (false, true) => Reply::new(200, HIT, &OTHER),
            (false, false) => Reply::new(200, HIT, &content),
        })
        .await;
        let relay = Running::before(&cache).await;
        Self { cache, relay, path, other: other_path, is_ill }
    }

    fn mend(&self) {
        self.is_ill.store(false, Ordering::SeqCst);
    }

    /// Is pulled from, and found out.
    async fn fail(&self) {
        self.relay.get(&self.path).await;
        self.relay.until(|view| view.standing == Standing::Out).await;
    }

    /// Lets the first pause go by, and what is tried after it.
    async fn be_tried(&self) {
        let asked = self.cache.requests().len();
        skip(PAUSE).await;
        self.cache.until_requested(asked + 1).await;
        until_tried().await;
    }

    /// Lets pauses go by until this is so.
    async fn until(&self, holds: impl Fn() -> bool) {
        let began = Instant::now();
        while !holds() {
            assert!(began.elapsed() < LONG, "{:?}, asked for {:?}", self.relay.view(), self.cache.requests());
            skip(PAUSE).await;
            tokio::time::sleep(BREATH).await;
        }
    }
}

fn stalls(_: &str, content: &[u8]) -> Reply {
    Reply::steps(content.len(), vec![Step::Send(content[..content.len() / 2].to_vec()), Step::Stall]).with(HIT)
}

fn breaks_off(head: &str, content: &[u8]) -> Reply {
    half(head, content.len(), Step::Close)
}

fn lies(_: &str, _: &[u8]) -> Reply {
    Reply::new(200, HIT, &OTHER)
}

fn hangs(_: &str, _: &[u8]) -> Reply {
    Reply { head: String::new(), steps: vec![Step::Stall] }
}

/// Plays the fault on this content alone.
fn alone(head: &str, content: &[u8], fault: Fault) -> Reply {
    match head.contains(&digest_of(content)) {
        true => fault(head, content),
        false => Reply::new(200, HIT, &OTHER),
    }
}

fn holds_back(head: &str, _: &[u8]) -> Reply {
    match head.contains("only-if-cached") {
        true => Reply::new(504, "", b""),
        false => Reply { head: String::new(), steps: vec![Step::Stall] },
    }
}

/// Longer for the relay than any trial here, and shorter than the next pause.
pub(super) async fn until_tried() {
    for _ in 0..26 {
        skip(Duration::from_millis(500)).await;
        tokio::time::sleep(MOMENT).await;
    }
}

#[tokio::test]
async fn a_pod_is_asked_by_runtimes_again_once_it_does_well_what_it_failed_at() {
    let (large, small) = (vec![7; 1 << 20], b"small".to_vec());
    let faults: [(Vec<u8>, Fault); 6] = [
        (large.clone(), stalls),
        (small.clone(), stalls),
        (large.clone(), breaks_off),
        (large, lies),
        (small.clone(), lies),
        (small, hangs),
    ];
    for (number, (content, fault)) in faults.into_iter().enumerate() {
        let patient = Patient::new(&content, fault).await;
        let Patient { cache, relay, path, .. } = &patient;
        patient.fail().await;
        patient.be_tried().await;
        let tried = cache.requests().len();
        assert_eq!(relay.get(path).await.status, 503, "fault {number}");
        assert_eq!(cache.requests().len(), tried, "fault {number}: nothing is asked of it meanwhile");
        patient.mend();
        patient.until(|| relay.view().standing == Standing::In && relay.view().trouble.is_none()).await;
        assert_eq!(relay.get(path).await.body, content, "fault {number}");
    }
}

#[tokio::test]
async fn a_pod_that_fails_at_one_content_alone_is_asked_for_all_other() {
    let faults: [Fault; 3] = [
        |head, content| alone(head, content, stalls),
        |head, content| alone(head, content, breaks_off),
        |head, content| alone(head, content, hangs),
    ];
    for (number, fault) in faults.into_iter().enumerate() {
        let content = vec![7; 1 << 20];
        let patient = Patient::new(&content, fault).await;
        let Patient { cache, relay, path, other, .. } = &patient;
        patient.fail().await;
        patient.until(|| relay.view().standing == Standing::In).await;
        assert_eq!(relay.get(other).await.status, 200, "fault {number}");
        let asked = cache.requests().len();
        assert_eq!(relay.get(path).await.status, 503, "fault {number}");
        assert_eq!(cache.requests().len(), asked, "fault {number}: it is not asked for what it fails at");
        patient.mend();
        let began = Instant::now();
        while relay.get(path).await.body != content {
            assert!(began.elapsed() < LONG, "fault {number}");
            skip(PAUSE).await;
            tokio::time::sleep(BREATH).await;
        }
    }
}

#[tokio::test]
async fn who_failed_at_the_first_thing_asked_of_him_is_tried_before_any_pull_of_another() {
    let faults: [(Fault, bool); 2] = [(stalls, false), (|head, content| alone(head, content, stalls), true)];
    for (fault, is_alone) in faults {
        let patient = Patient::unknown(&vec![7; 1 << 20], fault).await;
        let Patient { cache, relay, other, .. } = &patient;
        patient.fail().await;
        patient.be_tried().await;
        let (tried, began) = (cache.requests().len(), Instant::now());
        assert_eq!(relay.get(other).await.status, 503);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        // It is tried with that now, and not after the next pause.
        cache.until_requested(tried + 1).await;
        until_tried().await;
        assert!(cache.requests()[tried..].iter().any(|head| other.starts_with(head.split(' ').nth(1).unwrap())));
        if is_alone {
            relay.until(|view| view.standing == Standing::In).await;
        }
        assert_eq!(relay.get(other).await.status, if is_alone { 200 } else { 503 });
    }
}

#[tokio::test]
async fn an_upstream_that_stalls_tells_nothing_of_a_pod_that_fails_at_what_it_has() {
    static IS_FETCHING: AtomicBool = AtomicBool::new(false);
    for is_fetching in [false, true] {
        IS_FETCHING.store(is_fetching, Ordering::SeqCst);
        let patient = Patient::new(&vec![7; 1 << 20], |head, content| {
            let is_cold = head.contains(&digest_of(b"cold"));
            match is_cold && head.contains("only-if-cached") && !IS_FETCHING.load(Ordering::SeqCst) {
                true => Reply::new(504, "", b""),
                false if is_cold => Reply::steps(1 << 20, vec![Step::Stall]),
                false => alone(head, content, stalls),
            }
        })
        .await;
        let Patient { relay, other, .. } = &patient;
        patient.fail().await;
        assert_eq!(relay.get(&blob("cold")).await.status, 503);
        patient.be_tried().await;
        relay.until(|view| view.standing == Standing::In).await;
        assert_eq!(relay.get(other).await.body, OTHER);
    }
}

#[tokio::test]
async fn of_a_pod_that_fails_far_into_a_body_only_shorter_ones_are_asked_for_until_a_longer_one_comes_well() {
    static LONGER: [u8; 3 << 20] = [8; 3 << 20];
    let faults: [(Fault, bool); 2] = [
        (
            |head, content| match head.contains(&digest_of(&LONGER)) {
                true => Reply::new(200, HIT, &LONGER),
                false => alone(head, content, stalls),
            },
            true,
        ),
        (
            |head, content| match head.contains(&digest_of(&LONGER)) {
                true => stalls(head, &LONGER),
                false => alone(head, content, stalls),
            },
            false,
        ),
    ];
    for (fault, is_alone) in faults {
        let patient = Patient::new(&vec![7; 4 << 20], fault).await;
        let Patient { relay, other, .. } = &patient;
        patient.fail().await;
        patient.until(|| relay.view().standing == Standing::In).await;
        assert_eq!(relay.get(other).await.body, OTHER);
        let longer_path = blob_of(&LONGER);
        let began = Instant::now();
        assert_eq!(relay.get(&longer_path).await.status, 503);
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
        until_tried().await;
        relay.until(|view| (view.standing == Standing::In) == is_alone).await;
        assert_eq!(relay.get(&longer_path).await.status, if is_alone { 200 } else { 503 });
    }
}

#[tokio::test]
async fn a_late_pod_is_asked_to_fetch_again_once_it_answers_in_time() {
    let patient = Patient::new(b"small", holds_back).await;
    let Patient { cache, relay, path, other, .. } = &patient;
    relay.get(path).await;
    let asked = cache.requests().len();
    skip(PAUSE).await;
    cache.until_requested(asked + 1).await;
    assert!(!cache.requests()[asked].contains("only-if-cached"), "it is tried as a runtime asks");
    until_tried().await;
    let began = Instant::now();
    assert_eq!(relay.get(other).await.status, 503);
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    patient.mend();
    let began = Instant::now();
    loop {
        assert!(began.elapsed() < LONG, "{:?}", cache.requests());
        skip(PAUSE).await;
        tokio::time::sleep(BREATH).await;
        relay.get(path).await;
        if cache.requests().last().is_some_and(|head| !head.contains("only-if-cached")) {
            break;
        }
    }
}

#[tokio::test]
async fn who_is_away_when_he_is_to_be_tried_is_tried_once_he_is_back() {
    let mut patient = Patient::new(b"small", lies).await;
    patient.relay.get(&patient.path).await;
    patient.relay.until(|view| view.standing == Standing::Out).await;
    patient.cache.die();
    skip(PAUSE).await;
    assert_eq!(patient.relay.get(&patient.path).await.status, 503);
    patient.mend();
    patient.cache.revive().await;
    patient.relay.until(|view| view.standing == Standing::In).await;
    assert_eq!(patient.relay.get(&patient.path).await.body, b"small");
}

#[tokio::test]
async fn a_cache_whose_answers_are_of_no_use_is_told_of_and_asked_all_the_same() {
    let faults: [Fault; 5] = [
        |_, _| Reply::new(500, "", b""),
        |_, _| Reply::new(404, "", b""),
        |_, _| Reply::new(206, HIT, b"small"),
        |_, _| Reply { head: String::new(), steps: vec![Step::Close] },
        |_, _| Reply { head: format!("HTTP/1.1 200 OK\r\n{HIT}connection: close\r\n\r\n"), steps: vec![Step::Close] },
    ];
    for fault in faults {
        for is_pulled in [true, false] {
            let patient = Patient::new(b"small", fault).await;
            let Patient { cache, relay, path, .. } = &patient;
            for _ in 0..5 {
                assert_eq!((relay.view().uselessness, relay.get(path).await.status == 200), (None, false));
            }
            relay.until(|view| view.uselessness.is_some() && view.standing == Standing::In).await;
            let asked = cache.requests().len();
            assert_ne!(relay.get(path).await.status, 200);
            assert_eq!(cache.requests().len(), asked + 1, "any other answer would be a gain");
            patient.mend();
            if is_pulled {
                assert_eq!(relay.get(path).await.body, b"small");
            } else {
                skip(PAUSE).await;
            }
            relay.until(|view| view.uselessness.is_none()).await;
        }
    }
}

#[tokio::test]
async fn who_lies_now_and_then_is_not_believed_over_one_right_answer() {
    static TIMES: AtomicUsize = AtomicUsize::new(0);
    let patient = Patient::unknown(&vec![7; 1 << 20], |head, content| match TIMES.fetch_add(1, Ordering::SeqCst) % 4 {
        0 => lies(head, content),
        _ => Reply::new(200, HIT, content),
    })
    .await;
    patient.fail().await;
    patient.be_tried().await;
    assert_eq!((patient.relay.view().standing, patient.cache.requests().len()), (Standing::Out, 5));
    patient.mend();
    patient.until(|| patient.relay.view().standing == Standing::In).await;
    assert_eq!(patient.cache.requests().len(), 5 + 16, "so often it came right");
}

#[tokio::test]
async fn who_says_why_he_has_nothing_is_of_use() {
    let patient = Patient::new(b"small", |_, _| Reply::new(504, "Cache-Status: breakwater; fwd=miss\r\n", b"")).await;
    for _ in 0..10 {
        assert_eq!((patient.relay.view().uselessness, patient.relay.get(&patient.path).await.status), (None, 503));
    }
}

#[tokio::test]
async fn what_has_come_to_the_disk_since_says_nothing_of_the_upstream() {
    let [first, wanted] = ["first", "wanted"].map(blob);
    let (is_there, is_mended) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let (there, mended, cached) = (is_there.clone(), is_mended.clone(), first.clone());
    let cache = cache(move |head| {
        let body = if head.contains(&cached) { "first" } else { "wanted" };
        match (head.contains(&cached) && there.load(Ordering::SeqCst), mended.load(Ordering::SeqCst)) {
            (true, _) => Reply::new(200, HIT, body.as_bytes()),
            (false, true) => Reply::new(200, "", body.as_bytes()),
            (false, false) => Reply::steps(body.len(), vec![Step::Send(body.as_bytes()[..1].to_vec()), Step::Stall]),
        }
    })
    .await;
    let relay = Running::before(&cache).await;
    assert_eq!(relay.get(&first).await.status, 503);
    is_there.store(true, Ordering::SeqCst);
    assert_eq!((relay.get(&wanted).await.status, relay.get(&first).await.status), (503, 200));
    skip(PAUSE).await;
    until_tried().await;
    // The leaps may have cost a probe its answer.
    relay.until(|view| view.standing == Standing::In).await;
    let began = Instant::now();
    assert_eq!((relay.get(&wanted).await.status, relay.get(&first).await.status), (503, 200));
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    is_mended.store(true, Ordering::SeqCst);
    let began = Instant::now();
    while relay.get(&wanted).await.status != 200 {
        assert!(began.elapsed() < LONG, "{:?}", cache.requests());
        skip(PAUSE).await;
        tokio::time::sleep(BREATH).await;
    }
}
