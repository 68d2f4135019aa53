//! Kubernetes label selectors against a node's labels. Pure.
//! <https://kubernetes.io/docs/concepts/overview/working-with-objects/labels/#label-selectors>

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, LabelSelectorRequirement};
use std::collections::BTreeMap;

/// Labels of one object.
pub type Labels = BTreeMap<String, String>;

/// Whether the selector selects an object with these labels. An empty selector selects all; an operator that we do not know
/// selects nothing, as the API server would.
#[must_use]
pub fn selects(selector: &LabelSelector, labels: &Labels) -> bool {
    let LabelSelector { match_labels, match_expressions } = selector;
    match_labels.iter().flatten().all(|(key, value)| labels.get(key) == Some(value))
        && match_expressions.iter().flatten().all(|requirement| holds(requirement, labels))
}

fn holds(requirement: &LabelSelectorRequirement, labels: &Labels) -> bool {
    let LabelSelectorRequirement { key, operator, values } = requirement;
    let value = labels.get(key);
    let listed = || value.is_some_and(|value| values.iter().flatten().any(|listed| listed == value));
    match operator.as_str() {
        "In" => listed(),
        // As in Kubernetes, an absent label is in no set.
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, expected: bool) {
        let labels: Labels =
            [("zone", "a"), ("gpu", ""), ("os", "linux")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let selector: LabelSelector = serde_saphyr::from_str(selector).unwrap();
        assert_eq!(selects(&selector, &labels), expected, "{selector:?}");
    }

    #[test]
    fn every_form_of_a_selector() {
        check("{}", true);
        check("{matchLabels: {zone: a, os: linux}}", true);
        check("{matchLabels: {zone: a, os: windows}}", false);
        check("{matchLabels: {absent: ''}}", false);
        check("{matchExpressions: [{key: zone, operator: In, values: [a, b]}]}", true);
        check("{matchExpressions: [{key: zone, operator: In, values: [b]}]}", false);
        check("{matchExpressions: [{key: absent, operator: In, values: ['']}]}", false);
        check("{matchExpressions: [{key: zone, operator: NotIn, values: [b]}]}", true);
        check("{matchExpressions: [{key: zone, operator: NotIn, values: [a]}]}", false);
        check("{matchExpressions: [{key: absent, operator: NotIn, values: [a]}]}", true);
        check("{matchExpressions: [{key: gpu, operator: Exists}]}", true);
        check("{matchExpressions: [{key: gpu, operator: DoesNotExist}]}", false);
        check("{matchExpressions: [{key: absent, operator: DoesNotExist}]}", true);
        check("{matchExpressions: [{key: zone, operator: Gt, values: ['1']}]}", false);
        check("{matchLabels: {zone: a}, matchExpressions: [{key: gpu, operator: DoesNotExist}]}", false);
    }
}
