//! How soon a watch may begin again, so that no component presses an API server that struggles. Pure; time is passed in.
//!
//! Not left to the client library: its watcher forgets every failure as soon as it begins to list anew, and begins a watch that
//! ended at once without any pause.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

/// What has lasted this long was no failure: the next one begins at once.
const LASTED: Duration = Duration::from_secs(5);
/// The first pause, doubled with each failure; at most as much again is added, or all who failed together would come back together.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LAST_PAUSE: Duration = Duration::from_secs(5);

/// When each list and each watch of one process began last.
#[derive(Debug, Default)]
pub struct Pace(HashMap<Beginning, Run>);

/// A watcher lists, then watches; either may fail for itself.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Beginning {
    path: String,
    watches: bool,
}

#[derive(Debug)]
struct Run {
    began: Instant,
    pause: Duration,
}

impl Pace {
    /// How long a watcher's request has to wait. The further pages of a list never do.
    pub fn wait(&mut self, path: &str, query: &str, now: Instant) -> Duration {
        let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
        if has("continue") {
            return Duration::ZERO;
        }
        let beginning = Beginning { path: path.to_owned(), watches: has("watch") };
        let (pause, wait) = match self.0.get(&beginning) {
            Some(run) if now.saturating_duration_since(run.began) < LASTED => {
                let pause = (run.pause * 2).clamp(FIRST_PAUSE, LAST_PAUSE);
                let until = run.began + pause + random_part(pause);
                (pause, until.saturating_duration_since(now))
            }
            _ => (Duration::ZERO, Duration::ZERO),
        };
        self.0.insert(beginning, Run { began: now + wait, pause });
        wait
    }
}

/// A part of `most` that is another one each time.
fn random_part(most: Duration) -> Duration {
    most.mul_f64(RandomState::new().hash_one(()) as f64 / u64::MAX as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "&limit=500";
    const WATCH: &str = "watch=true&timeoutSeconds=290&allowWatchBookmarks=true&resourceVersion=1";

    /// The pauses of a watcher whose every request takes this long, in milliseconds.
    fn pauses(pace: &mut Pace, query: &str, lasts: Duration, now: &mut Instant) -> [u128; 5] {
        std::array::from_fn(|_| {
            let wait = pace.wait("/api/v1/pods", query, *now);
            *now += wait + lasts;
            wait.as_millis()
        })
    }

    #[test]
    fn what_fails_at_once_is_begun_ever_more_seldom_and_what_lasted_at_once() {
        for query in [LIST, WATCH] {
            let (mut pace, mut now) = (Pace::default(), Instant::now());
            let [first, second, third, fourth, fifth] = pauses(&mut pace, query, Duration::ZERO, &mut now);
            assert_eq!(first, 0);
            assert!((1000..=2000).contains(&second), "{second}");
            assert!((2000..=4000).contains(&third), "{third}");
            assert!((4000..=8000).contains(&fourth), "{fourth}");
            assert!((5000..=10_000).contains(&fifth), "{fifth}");
            // The pause itself is no sign of life, however long it is; five seconds of a watch are.
            assert!(pauses(&mut pace, query, Duration::ZERO, &mut now).iter().all(|pause| *pause >= 5000));
            now += LASTED;
            assert_eq!(pauses(&mut pace, query, LASTED, &mut now), [0; 5]);
        }
    }

    #[test]
    fn lists_watches_and_collections_keep_a_pace_each_and_pages_none() {
        let (mut pace, now) = (Pace::default(), Instant::now());
        for (path, query) in [("/api/v1/pods", LIST), ("/api/v1/pods", WATCH), ("/api/v1/nodes", LIST)] {
            assert_eq!(pace.wait(path, query, now), Duration::ZERO);
        }
        for _ in 0..3 {
            assert_eq!(pace.wait("/api/v1/pods", "&limit=500&continue=x", now), Duration::ZERO);
        }
        assert!(pace.wait("/api/v1/pods", LIST, now) >= FIRST_PAUSE);
    }
}
