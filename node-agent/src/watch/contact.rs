//! Whether the watches work, all together: told when one fails in a new way and when all work again, not with every attempt.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// The watches that fail, and how.
#[derive(Debug, Default)]
pub(super) struct Contact(Mutex<BTreeMap<&'static str, String>>);

impl Contact {
    /// A watch failed. Whether that is news: an API server that is away fails all of them alike.
    pub(super) fn lost(&self, kind: &'static str, error: &str) -> bool {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let is_news = !failing.values().any(|known| known == error);
        failing.insert(kind, error.to_owned());
        is_news
    }

    /// A watch works. Whether that makes all of them work again.
    pub(super) fn found(&self, kind: &'static str) -> bool {
        let mut failing = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        failing.remove(kind).is_some() && failing.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_is_told_once_and_its_end_once() {
        let contact = Contact::default();
        assert!(!contact.found("Nodes"), "nothing was lost");
        let told = ["Nodes", "Secrets", "Nodes", "Secrets"].map(|kind| contact.lost(kind, "refused"));
        assert_eq!(told, [true, false, false, false]);
        assert!(contact.lost("Secrets", "forbidden") && !contact.lost("Secrets", "forbidden"));
        assert_eq!(["Nodes", "Secrets", "Secrets"].map(|kind| contact.found(kind)), [false, true, false]);
    }
}
