//! How long an answer may take before it is doubted whether any will come. Pure; time is passed in.
//!
//! A doubt costs the cache handshakes. One that is busy must not be made busier by all nodes at once for that, so who answers late is
//! doubted later.

use std::time::Duration;

/// Much longer than an idle cache takes, ...
pub(super) const SOON: Duration = Duration::from_millis(200);
/// ... and this is waited for a busy one: less than what shows that nobody is there.
const LATE: Duration = Duration::from_millis(800);

/// How long one cache's answer is waited for without a doubt.
#[derive(Debug)]
pub(super) struct Doubt(Duration);

impl Default for Doubt {
    fn default() -> Self {
        Self(SOON)
    }
}

impl Doubt {
    pub(super) fn begins_after(&self) -> Duration {
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
    fn who_answers_late_is_doubted_later_until_he_has_answered_soon_for_a_while() {
        let mut doubt = Doubt::default();
        let after = [1, 1, 350, 1, 600, 500, 1, 1, 1, 350].map(|millis| {
            doubt.heard(Duration::from_millis(millis));
            doubt.begins_after().as_millis()
        });
        assert_eq!(after, [200, 200, 700, 350, 800, 800, 400, 200, 200, 700]);
    }
}
