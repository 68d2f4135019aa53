//! What upstream still allows us: `ratelimit-*` and 429 with `Retry-After`. Does no I/O; callers report what they saw.
//!
//! Tags that are at hand stop being asked for before the budget is used up, so that what is left goes to misses. A miss is
//! always tried, as its client has nothing to lose, but not again where upstream has just said 429.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use http::{HeaderMap, header::RETRY_AFTER};
use jiff::Timestamp;

use crate::reference::RepositoryName;

/// Upstream says 429 and not for how long.
const DEFAULT_WAIT: Duration = Duration::from_secs(30);
/// A longer `Retry-After` is a slip, or reaches beyond what we should believe.
const LONGEST_WAIT: Duration = Duration::from_secs(3600);
/// The same for the end of a window.
const LONGEST_RESET: Duration = Duration::from_secs(86_400);
/// Misses of a repository are tried again this soon: its other content may be allowed.
const MISS_WAIT: Duration = Duration::from_secs(5);
/// Below a tenth of the limit, what is left is for misses; the same below this where upstream names no limit.
const SPARE: u64 = 5;
/// Nobody says how the budget stands while nobody asks, so one question in this time at least is let through.
const ASK_EVERY: Duration = Duration::from_secs(60);
const MOST_REPOSITORIES: usize = 10_000;

/// What is asked for: many registries count manifests and not blobs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Counted {
    /// Manifests and lists.
    Manifests,
    /// Blobs.
    Blobs,
}

/// How the budget stands, as upstream last said.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RateLimit {
    /// Pulls allowed in a window.
    pub limit: Option<u64>,
    /// Pulls still allowed in this one.
    pub remaining: Option<u64>,
    /// Time until there are more, where upstream says so.
    pub reset: Option<Duration>,
}

/// The budget of one upstream.
#[derive(Default)]
pub(super) struct Budget(Mutex<State>);

#[derive(Default)]
struct State {
    limit: Option<u64>,
    remaining: Option<u64>,
    window: Option<Duration>,
    reset: Option<Instant>,
    /// From then on what is left is not known: the window that it is of is over.
    over: Option<Instant>,
    /// Nothing that is at hand is asked for until then.
    wait_until: Option<Instant>,
    /// When the last question was let through in spite of a small budget.
    scouted: Option<Instant>,
    refused: HashMap<(RepositoryName, Counted), Instant>,
}

impl Budget {
    /// Whether upstream may be asked for what is at hand already.
    pub(super) fn allows_revalidation(&self) -> bool {
        self.lock().allows_revalidation(Instant::now())
    }

    /// Whether a miss may be tried.
    pub(super) fn allows_miss(&self, repository: &RepositoryName, counted: Counted) -> bool {
        let until = self.lock().refused.get(&(repository.clone(), counted)).copied();
        until.is_none_or(|until| until <= Instant::now())
    }

    /// Upstream answered with these headers.
    pub(super) fn read(&self, headers: &HeaderMap) {
        self.lock().read(headers, Instant::now());
    }

    /// Upstream answered a question that counts, and not with 429.
    pub(super) fn granted(&self) {
        self.lock().granted(Instant::now());
    }

    /// Upstream answered 429.
    pub(super) fn refused(&self, repository: &RepositoryName, counted: Counted, headers: &HeaderMap) {
        let wait = retry_after(headers, Timestamp::now()).unwrap_or(DEFAULT_WAIT).min(LONGEST_WAIT);
        self.lock().refuse(repository, counted, wait, Instant::now());
    }

    /// How the budget stands.
    pub(super) fn state(&self) -> RateLimit {
        self.lock().rate_limit(Instant::now())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn allows_revalidation(&mut self, now: Instant) -> bool {
        match self.wait_until {
            Some(until) if now < until => return false,
            // The wait is over: one asks, the others see how that goes.
            Some(_) => {}
            None if !self.is_low(now) => return true,
            None => {}
        }
        let pause = if self.wait_until.is_some() { MISS_WAIT } else { self.refill() };
        let is_due = self.scouted.is_none_or(|at| now.duration_since(at) >= pause);
        if is_due {
            self.scouted = Some(now);
        }
        is_due
    }

    fn rate_limit(&self, now: Instant) -> RateLimit {
        let ends = self.wait_until.max(self.reset);
        let reset = ends.map(|end| end.saturating_duration_since(now)).filter(|left| !left.is_zero());
        RateLimit { limit: self.limit, remaining: self.remaining(now), reset }
    }

    fn remaining(&self, now: Instant) -> Option<u64> {
        self.remaining.filter(|_| self.over.is_none_or(|over| now < over))
    }

    fn is_low(&self, now: Instant) -> bool {
        let low = |remaining: u64| match self.limit {
            Some(limit) => remaining < limit.div_ceil(10),
            None => remaining < SPARE,
        };
        self.remaining(now).is_some_and(low)
    }

    /// In which time one pull comes back, on average.
    fn refill(&self) -> Duration {
        let share = self.window.zip(self.limit).map(|(window, limit)| window.as_secs() / limit.max(1));
        share.map_or(ASK_EVERY, Duration::from_secs).clamp(ASK_EVERY, LONGEST_WAIT)
    }

    fn read(&mut self, headers: &HeaderMap, now: Instant) {
        let field = |name: &str| headers.get(name).and_then(|value| Field::parse(value.to_str().ok()?));
        if let Some(limit) = field("ratelimit-limit") {
            self.limit = Some(limit.value);
            self.window = limit.window.or(self.window);
        }
        let Some(remaining) = field("ratelimit-remaining") else { return };
        self.remaining = Some(remaining.value);
        self.window = remaining.window.or(self.window);
        let reset = field("ratelimit-reset").map(|field| Duration::from_secs(field.value).min(LONGEST_RESET));
        self.reset = reset.map(|reset| now + reset);
        self.over = Some(now + reset.or(self.window).unwrap_or(LONGEST_RESET).min(LONGEST_RESET));
        if self.is_low(now) {
            // The first reading of a small budget is fresh: nobody needs to ask at once whether it holds.
            self.scouted = self.scouted.or(Some(now));
        } else {
            self.scouted = None;
        }
    }

    fn refuse(&mut self, repository: &RepositoryName, counted: Counted, wait: Duration, now: Instant) {
        self.wait_until = self.wait_until.max(Some(now + wait));
        self.refused.retain(|_, until| *until > now);
        if self.refused.len() < MOST_REPOSITORIES {
            self.refused.insert((repository.clone(), counted), now + wait.min(MISS_WAIT));
        }
    }

    fn granted(&mut self, now: Instant) {
        if self.wait_until.is_some_and(|until| until <= now) {
            self.wait_until = None;
        }
    }
}

/// `76;w=21600`
struct Field {
    value: u64,
    window: Option<Duration>,
}

impl Field {
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.split(';').map(str::trim);
        let value = parts.next()?.parse().ok()?;
        let window = parts.find_map(|part| part.strip_prefix("w=")?.parse().ok()).map(Duration::from_secs);
        Some(Self { value, window })
    }
}

/// Seconds, or a date (RFC 9110, section 10.2.3).
fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = jiff::fmt::rfc2822::parse(text).ok()?.timestamp();
    Some(Duration::from_secs(date.as_second().saturating_sub(now.as_second()).try_into().unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    fn headers(fields: &[(&'static str, &str)]) -> HeaderMap {
        let field = |(name, value): &(&'static str, &str)| {
            (HeaderName::from_static(name), HeaderValue::try_from(*value).unwrap())
        };
        fields.iter().map(field).collect()
    }

    fn hub(remaining: &str) -> HeaderMap {
        headers(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", remaining)])
    }

    fn repository() -> RepositoryName {
        "library/app".parse().unwrap()
    }

    #[test]
    fn the_last_tenth_is_for_misses() {
        let now = Instant::now();
        let mut state = State::default();
        assert!(state.allows_revalidation(now));
        state.read(&hub("10;w=21600"), now);
        assert!(state.allows_revalidation(now));
        state.read(&hub("9;w=21600"), now);
        assert!(!state.allows_revalidation(now));
        // A window of six hours gives one of a hundred back in 216 s.
        let later = now + Duration::from_secs(216);
        assert!(!state.allows_revalidation(later - Duration::from_secs(1)));
        assert!(state.allows_revalidation(later));
        assert!(!state.allows_revalidation(later), "one scout, no herd");
        state.read(&hub("90"), later);
        assert!(state.allows_revalidation(later));
    }

    #[test]
    fn a_reset_that_has_passed_ends_a_small_budget() {
        let now = Instant::now();
        let mut state = State::default();
        state.read(&headers(&[("ratelimit-remaining", "0"), ("ratelimit-reset", "30")]), now);
        assert!(!state.allows_revalidation(now + Duration::from_secs(29)));
        assert!(state.allows_revalidation(now + Duration::from_secs(30)));
    }

    #[test]
    fn what_was_left_of_a_window_that_is_over_is_not_known() {
        let now = Instant::now();
        let check = |fields: &[(&'static str, &str)], window: u64| {
            let mut state = State::default();
            state.read(&headers(fields), now);
            let remaining = |after: u64| state.rate_limit(now + Duration::from_secs(after)).remaining;
            assert_eq!((remaining(window - 1), remaining(window)), (Some(3), None), "{fields:?}");
        };
        check(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "3;w=21600")], 21_600);
        check(&[("ratelimit-limit", "100;w=21600"), ("ratelimit-remaining", "3"), ("ratelimit-reset", "30")], 30);
        check(&[("ratelimit-remaining", "3;w=99999999999999")], 86_400);
        check(&[("ratelimit-remaining", "3")], 86_400);
    }

    #[test]
    fn a_429_is_obeyed_and_then_tried_by_one() {
        let now = Instant::now();
        let mut state = State::default();
        state.refuse(&repository(), Counted::Manifests, Duration::from_secs(60), now);
        assert!(!state.allows_revalidation(now + Duration::from_secs(59)));
        let over = now + Duration::from_secs(60);
        assert!(state.allows_revalidation(over));
        assert!(!state.allows_revalidation(over));
        state.granted(over);
        assert!(state.allows_revalidation(over));
    }

    #[test]
    fn a_miss_waits_for_no_retry_after_but_five_seconds_in_its_repository() {
        let budget = Budget::default();
        budget.refused(&repository(), Counted::Manifests, &headers(&[("retry-after", "3600")]));
        assert!(!budget.allows_miss(&repository(), Counted::Manifests));
        assert!(budget.allows_miss(&repository(), Counted::Blobs));
        assert!(budget.allows_miss(&"library/other".parse().unwrap(), Counted::Manifests));
        let left = budget.state().reset.unwrap();
        assert!(left > Duration::from_secs(3590) && left <= LONGEST_WAIT, "{left:?}");
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now = "1994-11-06T08:49:07Z".parse().unwrap();
        let read = |text| retry_after(&headers(&[("retry-after", text)]), now);
        assert_eq!(read("120"), Some(Duration::from_secs(120)));
        assert_eq!(read("Sun, 06 Nov 1994 08:49:37 GMT"), Some(Duration::from_secs(30)));
        assert_eq!(read("Sun, 06 Nov 1994 08:40:00 GMT"), Some(Duration::ZERO));
        assert_eq!(read("soon"), None);
    }

    proptest! {
        #[test]
        fn nothing_upstream_says_breaks_it(value in "[ -~]{0,24}", limit in any::<u64>(), remaining in any::<u64>()) {
            let budget = Budget::default();
            let (limit, remaining) = (format!("{limit};w={remaining}"), remaining.to_string());
            for text in [&value, &remaining] {
                budget.read(&headers(&[("ratelimit-limit", &limit), ("ratelimit-remaining", text), ("ratelimit-reset", text)]));
                budget.refused(&repository(), Counted::Blobs, &headers(&[("retry-after", text)]));
                budget.allows_revalidation();
                budget.state();
            }
        }
    }
}
