//! Schemas of Kubernetes' own types, bounded and without their essays. The types themselves stay Kubernetes' own.

use schemars::{Schema, SchemaGenerator, json_schema};

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
