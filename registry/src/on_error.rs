//! What is done when upstream fails and an older answer is at hand: one rule per class of failure. Pure.

use std::str::FromStr;

use crate::failure::{Class, Failure};

/// What to do with an older answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Serve it.
    ServeStale,
    /// Serve the failure: 404 where upstream has it not or refuses it, else 503.
    Deny,
}

/// One `CLASS=ACTION` of the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    class: Class,
    action: Action,
}

/// Why a text is no rule.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "must be CLASS=serve-stale or CLASS=deny, with CLASS one of unreachable, server-error, too-many-requests, \
     invalid-response, token-service, unauthorized, not-found"
)]
pub struct RuleInvalid;

impl FromStr for Rule {
    type Err = RuleInvalid;

    fn from_str(text: &str) -> Result<Self, RuleInvalid> {
        let (class, action) = text.split_once('=').ok_or(RuleInvalid)?;
        let class = Class::ALL.into_iter().find(|known| known.as_str() == class).ok_or(RuleInvalid)?;
        let action = match action {
            "serve-stale" => Action::ServeStale,
            "deny" => Action::Deny,
            _ => return Err(RuleInvalid),
        };
        Ok(Self { class, action })
    }
}

/// The rules in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OnError([Action; Class::ALL.len()]);

impl Default for OnError {
    /// An outage is survived; what upstream has deleted is gone.
    fn default() -> Self {
        Self([Action::ServeStale; Class::ALL.len()]).with(&Rule { class: Class::NotFound, action: Action::Deny })
    }
}

impl OnError {
    /// The defaults, overruled by `rules`; of two for one class the later holds.
    pub fn of(rules: &[Rule]) -> Self {
        rules.iter().fold(Self::default(), |on_error, rule| on_error.with(rule))
    }

    fn with(mut self, rule: &Rule) -> Self {
        self.0[rule.class as usize] = rule.action;
        self
    }

    /// Whether an older answer is served in place of `failure`. What is no failure of upstream's hides nothing.
    pub fn serves_stale(&self, failure: Failure) -> bool {
        failure.class().is_none_or(|class| self.0[class as usize] == Action::ServeStale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(texts: &[&str]) -> OnError {
        OnError::of(&texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<_>>())
    }

    #[test]
    fn only_a_deletion_is_believed_by_default() {
        let defaults = OnError::default();
        assert!(!defaults.serves_stale(Failure::NotFound));
        for failure in [Failure::Refused, Failure::TooManyRequests, Failure::Dns, Failure::Disk] {
            assert!(defaults.serves_stale(failure), "{failure:?}");
        }
    }

    #[test]
    fn each_class_has_its_rule_and_the_last_word_counts() {
        for class in Class::ALL {
            let denied = rules(&[&format!("{}=serve-stale", class.as_str()), &format!("{}=deny", class.as_str())]);
            for other in Class::ALL {
                let is_default_deny = other == Class::NotFound;
                let expected = if other == class || is_default_deny { Action::Deny } else { Action::ServeStale };
                assert_eq!(denied.0[other as usize], expected, "{class:?} {other:?}");
            }
        }
        assert!(rules(&["not-found=serve-stale"]).serves_stale(Failure::NotFound));
    }

    #[test]
    fn a_rule_says_how_it_is_written() {
        for bad in ["", "not-found", "NotFound=deny", "not-found=stale", "dns=deny", "not-found=deny="] {
            assert_eq!(bad.parse::<Rule>(), Err(RuleInvalid), "{bad}");
        }
    }
}
