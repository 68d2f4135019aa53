//! Label selectors, parsed once. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use std::collections::BTreeMap;

/// A label selector whose every requirement is understood. Empty selects all.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Operator {
    In(Vec<String>),
    NotIn(Vec<String>),
    Exists,
    DoesNotExist,
}

/// A requirement that no API server would accept either.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectorInvalid {
    /// An unknown operator.
    #[error("operator {0} must be In, NotIn, Exists or DoesNotExist")]
    Operator(String),
    /// `In` and `NotIn` need values.
    #[error("operator {operator} of key {key} must have values")]
    NoValues {
        /// The operator.
        operator: String,
        /// The label's key.
        key: String,
    },
}

impl Selector {
    /// Parses the selector of an object.
    ///
    /// # Errors
    /// A requirement makes no sense.
    pub fn parse(selector: &LabelSelector) -> Result<Self, SelectorInvalid> {
        let labels = selector.match_labels.iter().flatten();
        let mut requirements: Vec<_> = labels
            .map(|(key, value)| Requirement { key: key.clone(), operator: Operator::In(vec![value.clone()]) })
            .collect();
        for expression in selector.match_expressions.iter().flatten() {
            let (key, operator) = (expression.key.clone(), expression.operator.clone());
            let values = expression.values.clone().unwrap_or_default();
            let operator = match operator.as_str() {
                "In" | "NotIn" if values.is_empty() => return Err(SelectorInvalid::NoValues { operator, key }),
                "In" => Operator::In(values),
                "NotIn" => Operator::NotIn(values),
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                _ => return Err(SelectorInvalid::Operator(operator)),
            };
            requirements.push(Requirement { key, operator });
        }
        Ok(Self(requirements))
    }

    /// Whether an object with these labels is selected.
    #[must_use]
    pub fn matches(&self, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().all(|Requirement { key, operator }| {
            let value = labels.get(key);
            match operator {
                Operator::In(values) => value.is_some_and(|value| values.contains(value)),
                Operator::NotIn(values) => value.is_none_or(|value| !values.contains(value)),
                Operator::Exists => value.is_some(),
                Operator::DoesNotExist => value.is_none(),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_select_as_the_api_server_does() {
        let check = |selector: &str, labels: &str, expected: bool| {
            let selector = Selector::parse(&serde_saphyr::from_str(selector).unwrap()).unwrap();
            let labels = serde_saphyr::from_str(labels).unwrap();
            assert_eq!(selector.matches(&labels), expected, "{selector:?} {labels:?}");
        };
        check("{}", "{}", true);
        check("{matchLabels: {a: b}}", "{a: b}", true);
        check("{matchLabels: {a: b}}", "{a: c}", false);
        check("{matchLabels: {a: b}}", "{}", false);
        check("{matchExpressions: [{key: a, operator: In, values: [x, y]}]}", "{a: y}", true);
        check("{matchExpressions: [{key: a, operator: NotIn, values: [x]}]}", "{}", true);
        check("{matchExpressions: [{key: a, operator: NotIn, values: [x]}]}", "{a: x}", false);
        check("{matchExpressions: [{key: a, operator: Exists}]}", "{a: ''}", true);
        check("{matchExpressions: [{key: a, operator: DoesNotExist}]}", "{a: ''}", false);
        check("{matchLabels: {a: b}, matchExpressions: [{key: c, operator: Exists}]}", "{a: b}", false);
    }

    #[test]
    fn nonsense_is_refused() {
        let parse = |text: &str| Selector::parse(&serde_saphyr::from_str(text).unwrap()).unwrap_err();
        assert_eq!(parse("{matchExpressions: [{key: a, operator: Gt}]}"), SelectorInvalid::Operator("Gt".to_owned()));
        assert!(matches!(parse("{matchExpressions: [{key: a, operator: In}]}"), SelectorInvalid::NoValues { .. }));
    }
}
