//! How long an answer may take before the question is hedged: asked over fresh connections as well. Pure; time is passed in.
//!
//! A hedge costs the cache handshakes. One that is busy must not be made busier by all nodes at once for that, so with who answers late it
//! begins later.

use std::time::Duration;

/// Much longer than an idle cache takes, ...
const SOON: Duration = Duration::from_millis(200);
/// ... and this is waited for a busy one: less than what shows that nobody is there.
const LATE: Duration = Duration::from_millis(800);

/// When the questions to one cache are hedged.
#[derive(Debug)]
pub(super) struct Hedge(Duration);

impl Default for Hedge {
    fn default() -> Self {
        Self(SOON)
    }
}

impl Hedge {
    /// So long after a question.
    pub(super) fn after(&self) -> Duration {
        self.0
    }

    /// An answer took this long. One that came soon does not take back at once what a late one showed.
    pub(super) fn heard(&mut self, after: Duration) {
        self.0 = (after * 2).max(self.0 / 2).clamp(SOON, LATE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_answers_late_is_hedged_later_until_he_has_answered_soon_for_a_while() {
        let mut hedge = Hedge::default();
        let after = [1, 1, 350, 1, 600, 500, 1, 1, 1, 350].map(|millis| {
            hedge.heard(Duration::from_millis(millis));
            hedge.after().as_millis()
        });
        assert_eq!(after, [200, 200, 700, 350, 800, 800, 400, 200, 200, 700]);
    }
}
