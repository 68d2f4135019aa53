//! The schema of a Pod's `affinity`: Kubernetes' own, with the bounds and rules that it has for Pods. Knows no kind of ours.

use super::labels::{self, OPERATORS, VALUES_FIT};
use k8s_openapi::api::core::v1::Affinity;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

/// Of what no Pod has more than a few.
const MOST_TERMS: u32 = 16;
const MOST_VALUES: u32 = 32;

/// The schema, each description cut to its first sentence.
pub(crate) fn affinity(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Affinity::json_schema(generator);
    if let Some(object) = schema.as_object_mut() {
        object.values_mut().for_each(shorten_descriptions);
        for (name, field) in object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
            bound(name, field);
        }
    }
    schema
}

/// Gives a field, and those below it, the rules that go with its name: a name means the same wherever it stands in an affinity.
fn bound(name: &str, field: &mut Value) {
    match name {
        "labelSelector" | "namespaceSelector" => {
            let of_labels = "Labels that must be there, with these values.";
            replace(field, &labels::selector(of_labels, MOST_TERMS, MOST_VALUES).to_value());
            return;
        }
        "matchExpressions" => return replace(field, &json!({"maxItems": MOST_TERMS, "items": node_requirement()})),
        "matchFields" => return replace(field, &json!({"maxItems": 1, "items": by_name()})),
        "matchLabelKeys" | "mismatchLabelKeys" => {
            return replace(field, &json!({"maxItems": MOST_TERMS, "items": labels::key("A label's key.")}));
        }
        "namespaces" => return replace(field, &json!({"maxItems": MOST_TERMS, "items": namespace()})),
        "topologyKey" => {
            return replace(field, &labels::key("The label that makes a place of nodes with the same value."));
        }
        "weight" => return replace(field, &json!({"minimum": 1, "maximum": 100})),
        "nodeSelectorTerms" => replace(field, &json!({"minItems": 1, "maxItems": MOST_TERMS})),
        _ if field["type"] == "array" => replace(field, &json!({"maxItems": MOST_TERMS})),
        _ => {}
    }
    if let Some(items) = field.get_mut("items") {
        bound_fields(items);
    }
    bound_fields(field);
}

fn bound_fields(object: &mut Value) {
    for (name, field) in object.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        bound(name, field);
    }
}

/// Puts these keys into a schema; what it says else stays.
fn replace(schema: &mut Value, keys: &Value) {
    for (key, value) in keys.as_object().into_iter().flatten() {
        schema[key] = value.clone();
    }
}

fn node_requirement() -> Value {
    let rule = format!(
        "self.operator in ['Gt', 'Lt'] ? has(self.values) && self.values.size() == 1 && self.values[0].matches('^-?[0-9]+$') \
         : {VALUES_FIT}"
    );
    let message =
        "must have values with In and NotIn, one whole number with Gt and Lt, and none with Exists and DoesNotExist";
    let operators = [OPERATORS, &["Gt", "Lt"]].concat();
    let value = json!({"type": "string", "maxLength": 63});
    labels::requirement(&operators, MOST_VALUES, &json!({"rule": rule, "message": message}), &value)
}

/// The one field of a node that can be matched is its name.
fn by_name() -> Value {
    json!({
        "type": "object",
        "required": ["key", "operator", "values"],
        "properties": {
            "key": {"description": "The field.", "type": "string", "enum": ["metadata.name"]},
            "operator": {"description": "How it relates to `values`.", "type": "string", "enum": ["In", "NotIn"]},
            "values": {
                "description": "The name of one node.",
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {"type": "string", "maxLength": 253},
            },
        },
    })
}

fn namespace() -> Value {
    json!({
        "type": "string",
        "maxLength": 63,
        "x-kubernetes-validations": [{
            "rule": "self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')",
            "message": "must be the name of a namespace: lower-case letters, digits and -",
        }],
    })
}

fn shorten_descriptions(schema: &mut Value) {
    match schema {
        Value::Object(fields) => {
            if let Some(Value::String(text)) = fields.get_mut("description") {
                *text = first_sentence(text).to_owned();
            }
            fields.values_mut().for_each(shorten_descriptions);
        }
        Value::Array(items) => items.iter_mut().for_each(shorten_descriptions),
        _ => {}
    }
}

/// Up to a full stop before a capital; `i.e.` ends none.
fn first_sentence(text: &str) -> &str {
    let ends = text.match_indices(". ").map(|(at, _)| at + 1);
    let end = ends.into_iter().find(|end| text[end + 1..].starts_with(char::is_uppercase));
    end.map_or(text, |end| &text[..end])
}
