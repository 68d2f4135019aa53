//! Schemas of Kubernetes' own types, bounded and without their essays. The types themselves stay Kubernetes' own.

use k8s_openapi::api::core::v1::Affinity;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::Value;

/// A quantity as every other controller publishes it.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// `LabelSelector`, with the operators as an enum and the rule that a real API server holds for its own kinds.
pub(crate) fn label_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "properties": {
            "matchLabels": {
                "description": "Labels that a node must have, with these values.",
                "type": "object",
                "maxProperties": 64,
                "additionalProperties": {"type": "string", "maxLength": 63},
            },
            "matchExpressions": {
                "description": "Further requirements; all of them must hold.",
                "type": "array",
                "maxItems": 32,
                "items": {
                    "type": "object",
                    "required": ["key", "operator"],
                    "properties": {
                        "key": {"description": "The label's key.", "type": "string", "minLength": 1, "maxLength": 317},
                        "operator": {
                            "description": "How the label's value relates to `values`.",
                            "type": "string",
                            "enum": ["In", "NotIn", "Exists", "DoesNotExist"],
                        },
                        "values": {
                            "description": "The values for In and NotIn.",
                            "type": "array",
                            "maxItems": 64,
                            "items": {"type": "string", "maxLength": 63},
                        },
                    },
                    "x-kubernetes-validations": [{
                        "rule": "self.operator in ['In', 'NotIn'] ? has(self.values) && self.values.size() > 0 \
                                 : !has(self.values) || self.values.size() == 0",
                        "message": "must have values with In and NotIn, and none with Exists and DoesNotExist",
                    }],
                },
            },
        },
    })
}

/// `ResourceRequirements` without dynamic resource claims, which a cache has no use for.
pub(crate) fn resources(_: &mut SchemaGenerator) -> Schema {
    let list = |description: &str| {
        json_schema!({
            "description": description,
            "type": "object",
            "maxProperties": 16,
            "additionalProperties": {
                "pattern": QUANTITY,
                "x-kubernetes-int-or-string": true,
            },
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": list("What the scheduler sets aside: `cpu: 100m`, `memory: 128Mi`."),
            "limits": list("What the container may use at most."),
        },
    })
}

/// A Pod's `nodeSelector`.
pub(crate) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": {"type": "string", "maxLength": 63},
    })
}

/// A Pod's `tolerations`, with the rules that a real API server holds for Pods.
pub(crate) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": {"description": "The taint's key; none with Exists is every taint.", "type": "string", "maxLength": 317},
                "operator": {
                    "description": "How the taint's value relates to `value`. Default: Equal.",
                    "type": "string",
                    "enum": ["Equal", "Exists"],
                },
                "value": {"description": "The taint's value, with Equal.", "type": "string", "maxLength": 63},
                "effect": {
                    "description": "The taint's effect; none is every effect.",
                    "type": "string",
                    "enum": ["NoSchedule", "PreferNoSchedule", "NoExecute"],
                },
                "tolerationSeconds": {
                    "description": "How long a NoExecute taint is put up with; none is for ever.",
                    "type": "integer",
                    "format": "int64",
                },
            },
            "x-kubernetes-validations": [
                {
                    "rule": "(has(self.key) && self.key != '') || (has(self.operator) && self.operator == 'Exists')",
                    "message": "must have a key, or operator: Exists, which is every taint",
                },
                {
                    "rule": "!has(self.tolerationSeconds) || (has(self.effect) && self.effect == 'NoExecute')",
                    "message": "must have effect: NoExecute together with tolerationSeconds",
                },
                {
                    "rule": "!has(self.value) || self.value == '' || !has(self.operator) || self.operator == 'Equal'",
                    "message": "must have no value together with operator: Exists",
                },
            ],
        },
    })
}

/// A Pod's `affinity`, each description cut to its first sentence.
pub(crate) fn affinity(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = Affinity::json_schema(generator);
    if let Some(object) = schema.as_object_mut() {
        object.values_mut().for_each(shorten_descriptions);
    }
    schema
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
