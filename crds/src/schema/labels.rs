//! Schemas of labels and of what selects by them, with the rules that a real API server holds for its own kinds. Knows no kind of ours.

use schemars::{Schema, json_schema};
use serde_json::{Value, json};

/// A name of at most 63 characters, after a DNS name and a slash if it has a prefix. As text of a CEL string.
pub(super) const LABEL_KEY: &str = "^([a-z0-9]([a-z0-9.-]*[a-z0-9])?/)?[A-Za-z0-9]([A-Za-z0-9._-]{0,61}[A-Za-z0-9])?$";
const LABEL_VALUE: &str = "^([A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?)?$";
/// A DNS name and a slash, then 63 characters.
pub(super) const MOST_OF_KEY: u32 = 317;

/// Operators of label selectors.
pub(super) const OPERATORS: &[&str] = &["In", "NotIn", "Exists", "DoesNotExist"];
/// What an operator wants of `values`.
pub(super) const VALUES_FIT: &str = "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 \
                                     : !has(self.values) || self.values.size() == 0";

/// `LabelSelector` with so many requirements of so many values; `of_labels` is the description of `matchLabels`.
pub(super) fn selector(of_labels: &str, most_requirements: u32, most_values: u32) -> Schema {
    let requirement = requirement(
        OPERATORS,
        most_values,
        &json!({
            "rule": VALUES_FIT,
            "message": "must have values with In and NotIn, and none with Exists and DoesNotExist",
        }),
        &value(),
    );
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "description": of_labels,
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": value(),
                "x-kubernetes-validations": [keys()],
            },
            "matchExpressions": {
                "description": "Further requirements; all of them must hold.",
                "type": "array",
                "maxItems": most_requirements,
                "items": requirement,
            },
        },
    })
}

/// One requirement on a label.
pub(super) fn requirement(operators: &[&str], most_values: u32, values_fit: &Value, value: &Value) -> Value {
    json!({
        "type": "object",
        "required": ["key", "operator"],
        "properties": {
            "key": key("The label's key."),
            "operator": {
                "description": "How the label's value relates to `values`.",
                "type": "string",
                "enum": operators,
            },
            "values": {
                "description": "The values to compare with.",
                "type": "array",
                "maxItems": most_values,
                "items": value,
            },
        },
        "x-kubernetes-validations": [values_fit],
    })
}

/// A label's key.
pub(super) fn key(description: &str) -> Value {
    json!({
        "description": description,
        "type": "string",
        "minLength": 1,
        "maxLength": MOST_OF_KEY,
        "x-kubernetes-validations": [{
            "rule": format!("self.matches('{LABEL_KEY}')"),
            "message": "must be a label's key: letters, digits, -, _ and ., such as pool or topology.kubernetes.io/zone",
        }],
    })
}

/// A label's value.
pub(super) fn value() -> Value {
    json!({
        "type": "string",
        "maxLength": 63,
        "x-kubernetes-validations": [{
            "rule": format!("self.matches('{LABEL_VALUE}')"),
            "message": "must be a label's value: letters, digits, -, _ and ., beginning and ending with a letter or digit",
        }],
    })
}

/// The rule for a map by label keys, which names the first that is none: the API server prints no map. Nothing bounds the length of a
/// key, so only a short one is looked at and named.
pub(super) fn keys() -> Value {
    let is_key = format!("(key.size() <= {MOST_OF_KEY} && key.matches('{LABEL_KEY}'))");
    let advice = "must have labels' keys: letters, digits, -, _ and ., such as pool or topology.kubernetes.io/zone";
    json!({
        "rule": format!("self.all(key, {is_key})"),
        "message": advice,
        "messageExpression": format!("'{}, and not ' + self.filter(key, !{is_key})[0]", advice.replace('\'', "\\'")),
    })
}
