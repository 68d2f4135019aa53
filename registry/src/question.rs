//! Questions to upstream that must not keep a client waiting: shared by all who ask the same, in the way only for as long
//! as the answer at hand allows, going on behind. Knows neither what is asked nor what is kept.

use std::{
    future::Future,
    hash::Hash,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{access, background::Background, coalesce::Coalesce, fading::Fading, failure::Failure, upstream::Upstream};

/// How long a question may be in the way of an answer that is at hand. It counts from the question's begin, so whoever
/// comes later waits less or not at all.
const BUDGET: Duration = Duration::from_millis(1500);
/// The same after a recent failure.
const BUDGET_AFTER_FAILURE: Duration = Duration::from_secs(1);
/// Without an answer at hand: as long as the client waits.
const PATIENCE: Duration = Duration::from_millis(4500);
/// A question that has just failed is not repeated while an answer is at hand.
const PAUSE: Duration = Duration::from_secs(1);
/// A failing upstream answers for this long to who asks for a digest, so that a client that comes back at once goes on to
/// upstream.
const REMEMBER: Duration = Duration::from_secs(5);
/// A failure of this age still says how the next question will fare.
const RECENT: Duration = Duration::from_secs(30);

/// The last failure of a question.
#[derive(Clone, Copy)]
struct Failed {
    began: Instant,
    at: Instant,
    failure: Failure,
}

/// All questions of one kind.
pub struct Questions<K, V> {
    upstream: Arc<Upstream>,
    asking: Coalesce<K, Result<V, Failure>>,
    failures: Arc<Fading<K, Failed>>,
    memory: Duration,
    has_other_sources: bool,
}

impl<K, V> Questions<K, V>
where
    K: Clone + Eq + Hash + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// What names mean now. Questions go on in the `background`. With other sources an answer may come although
    /// upstream is away.
    pub fn of_names(upstream: &Arc<Upstream>, background: &Background, has_other_sources: bool) -> Self {
        let (upstream, asking) = (Arc::clone(upstream), Coalesce::new(background.clone()));
        let failures = Arc::new(Fading::new(RECENT));
        Self { upstream, asking, failures, memory: Duration::ZERO, has_other_sources }
    }

    /// The same for content, which never changes: a failure is repeated for some seconds without asking.
    pub fn of_content(upstream: &Arc<Upstream>, background: &Background, has_other_sources: bool) -> Self {
        Self { memory: REMEMBER, ..Self::of_names(upstream, background, has_other_sources) }
    }

    /// Waits for the question of `key`, if it is being asked.
    pub fn asking(&self, key: &K) -> Option<impl Future<Output = ()> + use<K, V>> {
        let waiter = self.asking.find(key)?;
        Some(async move { drop(waiter.result().await) })
    }

    /// Asks by `work`, unless someone else is asking already.
    pub async fn ask<F>(&self, key: K, has_answer: bool, work: impl FnOnce() -> F) -> Result<V, Failure>
    where
        F: Future<Output = Result<V, Failure>> + Send + 'static,
    {
        let away = self.upstream.is_away();
        if let Some(failure) = away.filter(|_| !self.has_other_sources) {
            return Err(failure);
        }
        let failed = self.failures.get(&key);
        let pause = if has_answer { PAUSE } else { self.memory };
        if let Some(Failed { began, at, failure }) = failed
            && at.elapsed() < pause
            && (has_answer || !(failure.is_absence() || self.upstream.last_return() > Some(began)))
        {
            return Err(failure);
        }
        if has_answer && !self.upstream.may_revalidate() {
            return Err(Failure::TooManyRequests);
        }
        let patience = match has_answer {
            false => PATIENCE,
            true if failed.is_some() || self.upstream.failed_recently() => BUDGET_AFTER_FAILURE,
            true => BUDGET,
        };
        let (failures, name, upstream) = (Arc::clone(&self.failures), key.clone(), Arc::clone(&self.upstream));
        // An open breaker fails as fast as our memory does, but lets others be asked that may be back.
        let is_worth_asking = self.has_other_sources && !self.memory.is_zero();
        let waiter = self.asking.join(key, || {
            let work = work();
            async move {
                let began = Instant::now();
                let result = work.await;
                match &result {
                    Ok(_) => failures.remove(&name),
                    Err(_) if is_worth_asking && upstream.is_cut_off() => {}
                    Err(failure) => failures.put(name, Failed { began, at: Instant::now(), failure: *failure }),
                }
                result
            }
        });
        let begin = if has_answer { waiter.began } else { Instant::now() };
        match access::for_upstream(tokio::time::timeout_at((begin + patience).into(), waiter.result())).await {
            Ok(result) => result.unwrap_or(Err(Failure::Stopping)),
            Err(_) => Err(Failure::HeaderTimeout),
        }
    }
}
