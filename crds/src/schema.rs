//! Schemas of Kubernetes' own types, bounded and without their essays. The types themselves stay Kubernetes' own.
//!
//! They refuse what the API server would refuse of the Pod that is made from them, so that it is said at `kubectl apply`.

mod affinity;
mod labels;

pub(crate) use affinity::affinity;

use labels::{LABEL_KEY, MOST_OF_KEY, keys, value};
use schemars::{Schema, SchemaGenerator, json_schema};

/// A quantity as every other controller publishes it, but for negative ones.
const QUANTITY: &str =
    r"^\+?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// The nodes' `LabelSelector`.
pub(crate) fn node_labels(_: &mut SchemaGenerator) -> Schema {
    labels::selector("Labels that a node must have, with these values.", 32, 64)
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
                "minimum": 0,
                "x-kubernetes-int-or-string": true,
            },
            "x-kubernetes-validations": [{
                "rule": "self.all(name, name in ['cpu', 'memory', 'ephemeral-storage'] || name.startsWith('hugepages-') || \
                         name.contains('/'))",
                "message": "must be of cpu, memory, ephemeral-storage, hugepages-SIZE or a resource with a domain, such as example.com/gpu",
            }],
        })
    };
    json_schema!({
        "type": "object",
        "properties": {
            "requests": list("What the scheduler sets aside: `cpu: 100m`, `memory: 128Mi`."),
            "limits": list("What the container may use at most."),
        },
        "x-kubernetes-validations": [{
            "rule": "!has(self.requests) || !has(self.limits) || ['cpu', 'memory', 'ephemeral-storage'].all(name, \
                     !(name in self.requests) || !(name in self.limits) || \
                     quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) <= 0)",
            "fieldPath": ".requests",
            "message": "must not exceed limits: lower the request, or raise its limit",
            "messageExpression": "'must not exceed limits: lower ' + ['cpu', 'memory', 'ephemeral-storage'].filter(name, \
                     name in self.requests && name in self.limits && \
                     quantity(string(self.requests[name])).compareTo(quantity(string(self.limits[name]))) > 0)[0] + \
                     ', or raise its limit'",
        }],
    })
}

/// A Pod's `nodeSelector`.
pub(crate) fn node_selector(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 64,
        "additionalProperties": value(),
        "x-kubernetes-validations": [keys()],
    })
}

/// A Pod's `tolerations`, with the rules that a real API server holds for Pods.
pub(crate) fn tolerations(_: &mut SchemaGenerator) -> Schema {
    let mut taint_value = value();
    taint_value["description"] = "The taint's value, with Equal.".into();
    json_schema!({
        "type": "array",
        "maxItems": 32,
        "items": {
            "type": "object",
            "properties": {
                "key": {
                    "description": "The taint's key; none with Exists is every taint.",
                    "type": "string",
                    "maxLength": MOST_OF_KEY,
                    "x-kubernetes-validations": [{
                        "rule": format!("self == '' || self.matches('{LABEL_KEY}')"),
                        "message": "must be a taint's key: letters, digits, -, _ and ., such as pool or example.com/pool",
                    }],
                },
                "operator": {
                    "description": "How the taint's value relates to `value`. Default: Equal.",
                    "type": "string",
                    "enum": ["Equal", "Exists"],
                },
                "value": taint_value,
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
