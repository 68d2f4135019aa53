//! Digests that broke off a moment ago. Pure; time is passed in.

use super::ask::Digest;
use std::collections::HashMap;
use std::time::Duration;
use tokio::time::Instant;

/// Whether content of this digest may be asked of the cache, or was cut off a moment ago.
#[derive(Debug, Default)]
pub(super) struct Suspended(HashMap<Digest, Instant>);

impl Suspended {
    /// A runtime that was cut off comes back within moments and must find another host then.
    const FOR: Duration = Duration::from_secs(60);
    const MAX: usize = 4096;

    pub(super) fn suspend(&mut self, digest: Digest, now: Instant) {
        if self.0.len() >= Self::MAX {
            self.0.retain(|_, since| now.duration_since(*since) < Self::FOR);
        }
        if self.0.len() < Self::MAX {
            self.0.insert(digest, now);
        }
    }

    /// A Pod has it and sends it well.
    pub(super) fn lift(&mut self, digest: &Digest) {
        self.0.remove(digest);
    }

    pub(super) fn holds(&mut self, digest: &Digest, now: Instant) -> bool {
        let holds = self.0.get(digest).is_some_and(|since| now.duration_since(*since) < Self::FOR);
        if !holds {
            self.0.remove(digest);
        }
        holds
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_suspended_for_a_minute() {
        let digest = Digest::parse(&format!("sha256:{}", "0".repeat(64))).unwrap();
        let other = Digest::parse(&format!("sha256:{}", "1".repeat(64))).unwrap();
        let (mut suspended, now) = (Suspended::default(), Instant::now());
        suspended.suspend(digest.clone(), now);
        assert!(suspended.holds(&digest, now + Duration::from_secs(59)));
        assert!(!suspended.holds(&other, now));
        assert!(!suspended.holds(&digest, now + Duration::from_secs(60)));
        suspended.suspend(digest.clone(), now);
        suspended.lift(&digest);
        assert!(!suspended.holds(&digest, now));
    }
}
