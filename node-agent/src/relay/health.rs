//! Whether a cache is to be asked: a state machine with hysteresis. Pure; time is passed in.
//!
//! Only what shows that nobody answers counts against a cache: connect, TLS and probe failures. Any HTTP answer is a living
//! cache.

use std::time::Duration;
use tokio::time::Instant;

/// This many failures ...
const FAILURES: usize = 3;
/// ... within this time take a cache out.
const FAILING: Duration = Duration::from_secs(3);
/// This many successes in a row ...
const SUCCESSES: u32 = 3;
/// ... and this time since it went out bring it back.
const PENANCE: Duration = Duration::from_secs(10);

/// How a cache stands with this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Not asked yet.
    Unknown,
    /// Has never answered.
    Unproven,
    /// Answers.
    In,
    /// Answered once and stopped.
    Out,
}

/// The evidence about one cache.
#[derive(Debug)]
pub(super) struct Health {
    standing: Standing,
    /// Times of the latest failures with no success after them, oldest first, at most [`FAILURES`].
    failures: Vec<Instant>,
    successes: u32,
    out_since: Option<Instant>,
}

impl Default for Health {
    fn default() -> Self {
        Self { standing: Standing::Unknown, failures: Vec::new(), successes: 0, out_since: None }
    }
}

impl Health {
    /// The verdict.
    #[must_use]
    pub(super) fn standing(&self) -> Standing {
        self.standing
    }

    /// Whether nothing asks for closer attention: the cache is in and its last sign was good.
    #[must_use]
    pub(super) fn is_settled(&self) -> bool {
        self.standing == Standing::In && self.failures.is_empty()
    }

    /// The cache answered.
    pub(super) fn succeed(&mut self, now: Instant) {
        self.failures.clear();
        self.successes = self.successes.saturating_add(1);
        let waited = self.out_since.is_none_or(|since| now.duration_since(since) >= PENANCE);
        match self.standing {
            Standing::Unknown | Standing::Unproven => self.standing = Standing::In,
            Standing::Out if waited && self.successes >= SUCCESSES => {
                self.standing = Standing::In;
                self.out_since = None;
            }
            Standing::In | Standing::Out => {}
        }
    }

    /// Lets a cache in whose last sign was good: no other is left to be asked. Whether it was out.
    pub(super) fn readmit(&mut self) -> bool {
        let is_back = self.standing == Standing::Out && self.successes > 0;
        if is_back {
            self.standing = Standing::In;
            self.out_since = None;
        }
        is_back
    }

    /// Nobody answered.
    pub(super) fn fail(&mut self, now: Instant) {
        self.successes = 0;
        self.failures.push(now);
        if self.failures.len() > FAILURES {
            self.failures.remove(0);
        }
        let failing = self.failures.len() == FAILURES && now.duration_since(self.failures[0]) <= FAILING;
        match self.standing {
            Standing::Unknown => self.standing = Standing::Unproven,
            Standing::In if failing => {
                self.standing = Standing::Out;
                self.out_since = Some(now);
            }
            Standing::In | Standing::Unproven | Standing::Out => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Signs as `+` and `-` at seconds, and `!` where no other is left; what the cache's standing is after each.
    fn check(signs: &[(f64, char)], expected: &[Standing]) {
        let start = Instant::now();
        let mut health = Health::default();
        let standings: Vec<_> = signs
            .iter()
            .map(|(at, sign)| {
                let now = start + Duration::from_secs_f64(*at);
                match sign {
                    '+' => health.succeed(now),
                    '!' => _ = health.readmit(),
                    _ => health.fail(now),
                }
                health.standing()
            })
            .collect();
        assert_eq!(standings, expected, "{signs:?}");
    }

    use Standing::{In, Out, Unproven};

    #[test]
    fn the_first_answer_lets_a_cache_in() {
        check(&[(0.0, '+')], &[In]);
        check(
            &[(0.0, '-'), (1.0, '-'), (2.0, '-'), (3.0, '-'), (3.1, '+')],
            &[Unproven, Unproven, Unproven, Unproven, In],
        );
    }

    #[test]
    fn three_failures_in_three_seconds_take_it_out() {
        check(&[(0.0, '+'), (1.0, '-'), (2.5, '-'), (4.0, '-')], &[In, In, In, Out]);
        check(&[(0.0, '+'), (1.0, '-'), (2.5, '-'), (4.1, '-')], &[In, In, In, In]);
        check(&[(0.0, '+'), (1.0, '-'), (3.9, '-'), (4.1, '-'), (5.0, '-')], &[In, In, In, In, Out]);
        check(&[(0.0, '+'), (1.0, '-'), (1.1, '-'), (1.2, '+'), (1.3, '-')], &[In, In, In, In, In]);
    }

    #[test]
    fn it_comes_back_after_three_answers_and_ten_seconds() {
        let out = [(0.0, '+'), (0.1, '-'), (0.2, '-'), (0.3, '-')];
        let fell = [In, In, In, Out];
        let then = |signs: &[(f64, char)], expected: &[Standing]| {
            check(&[&out[..], signs].concat(), &[&fell[..], expected].concat());
        };
        then(&[(1.0, '+'), (2.0, '+'), (3.0, '+'), (10.2, '+'), (10.3, '+')], &[Out, Out, Out, Out, In]);
        then(&[(11.0, '+'), (12.0, '+'), (13.0, '+')], &[Out, Out, In]);
        then(
            &[(11.0, '+'), (12.0, '+'), (12.5, '-'), (13.0, '+'), (14.0, '+'), (15.0, '+')],
            &[Out, Out, Out, Out, Out, In],
        );
    }

    #[test]
    fn where_no_other_is_left_one_answer_brings_it_back() {
        let out = [(0.0, '+'), (0.1, '-'), (0.2, '-'), (0.3, '-'), (0.4, '!')];
        let then = [(1.0, '+'), (1.1, '-'), (1.2, '!'), (1.3, '+'), (1.4, '!')];
        check(&[&out[..], &then].concat(), &[In, In, In, Out, Out, Out, Out, Out, Out, In]);
    }

    #[test]
    fn only_a_good_last_sign_settles() {
        let now = Instant::now();
        let mut health = Health::default();
        assert!(!health.is_settled());
        health.succeed(now);
        assert!(health.is_settled());
        health.fail(now);
        assert!(!health.is_settled());
    }
}
