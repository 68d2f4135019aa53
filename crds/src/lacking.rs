//! What the definition that an API server has lacks of ours, as one of an older version does. Pure.
//!
//! A server-side apply with a field that the definition does not declare is refused as a whole.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, CustomResourceDefinitionVersion, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fmt;

/// More than a person would read in one line.
const MOST_NAMED: usize = 8;

/// Fields of ours that a definition does not have, as paths: `status.summary`, `spec.alternates[].url`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Lacking(BTreeSet<String>);

impl Lacking {
    /// What `served` lacks of `ours`, in the version that ours has.
    #[must_use]
    pub fn of(ours: &CustomResourceDefinition, served: &CustomResourceDefinition) -> Self {
        let mut lacking = Self::default();
        for version in &ours.spec.versions {
            let served = served.spec.versions.iter().find(|served| served.name == version.name);
            if let Some(ours) = schema(version) {
                lacking.compare("", ours, served.and_then(schema));
            }
        }
        lacking
    }

    /// Adds what an API server names where it refuses a server-side apply: who may not read definitions learns of theirs so. Says
    /// whether that was anything new.
    pub fn learn(&mut self, refusal: &str) -> bool {
        let before = self.len();
        let lines = refusal.lines().filter_map(|line| line.strip_suffix(": field not declared in schema"));
        self.0.extend(lines.filter_map(|line| line.rsplit(' ').next()?.strip_prefix('.')).map(without_keys));
        self.len() > before
    }

    /// Whether the definition has all that ours has.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many fields it lacks.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Takes from an object what the API server would not store.
    pub fn take_from(&self, object: &mut Value) {
        if !self.is_empty() {
            self.take("", object);
        }
    }

    fn take(&self, path: &str, value: &mut Value) {
        match value {
            Value::Object(fields) => fields.retain(|name, value| {
                let path = joined(path, name);
                self.take(&path, value);
                !self.0.contains(&path)
            }),
            Value::Array(items) => items.iter_mut().for_each(|item| self.take(&format!("{path}[]"), item)),
            _ => {}
        }
    }

    fn compare(&mut self, path: &str, ours: &JSONSchemaProps, served: Option<&JSONSchemaProps>) {
        if served.is_some_and(|served| served.x_kubernetes_preserve_unknown_fields == Some(true)) {
            return;
        }
        for (name, field) in ours.properties.iter().flatten() {
            let path = joined(path, name);
            match served.and_then(|served| served.properties.as_ref()?.get(name)) {
                Some(served) => self.compare(&path, field, Some(served)),
                None => drop(self.0.insert(path)),
            }
        }
        if let (Some(ours), Some(served)) = (items(ours), served.and_then(items)) {
            self.compare(&format!("{path}[]"), ours, Some(served));
        }
    }
}

impl fmt::Display for Lacking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<_> = self.0.iter().take(MOST_NAMED).map(String::as_str).collect();
        write!(f, "{}", named.join(", "))?;
        match self.len().saturating_sub(MOST_NAMED) {
            0 => Ok(()),
            more => write!(f, " and {more} more"),
        }
    }
}

/// `a[k="v"].b` as `a[].b`.
fn without_keys(path: &str) -> String {
    let mut parts = path.split('[');
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |path, part| format!("{path}[]{}", part.rsplit(']').next().unwrap_or_default()))
}

fn joined(path: &str, name: &str) -> String {
    if path.is_empty() { name.to_owned() } else { format!("{path}.{name}") }
}

fn schema(version: &CustomResourceDefinitionVersion) -> Option<&JSONSchemaProps> {
    version.schema.as_ref()?.open_api_v3_schema.as_ref()
}

fn items(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(items) => Some(items),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::yaml::definitions;
    use serde_json::json;

    /// Our definition of mirrors without these fields.
    fn without(fields: &[&str]) -> CustomResourceDefinition {
        let mut value = serde_json::to_value(&definitions()[0]).unwrap();
        for field in fields {
            let (parent, name) = field.rsplit_once('/').unwrap();
            let path = format!("/spec/versions/0/schema/openAPIV3Schema/properties/{parent}");
            value.pointer_mut(&path).unwrap().as_object_mut().unwrap().remove(name).unwrap();
        }
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn what_an_older_definition_lacks_is_named_and_taken_out() {
        let [ours, _] = definitions();
        assert!(Lacking::of(&ours, &ours).is_empty());
        let served = without(&[
            "status/properties/summary",
            "status/properties/images/properties/exposed/items/properties/reason",
            "spec/properties/alternates",
        ]);
        let lacking = Lacking::of(&ours, &served);
        assert_eq!(lacking.to_string(), "spec.alternates, status.images.exposed[].reason, status.summary");
        let mut object = json!({"spec": {"registry": "a", "alternates": [1]},
            "status": {"summary": {"nodes": "1/1"}, "images": {"inUse": 1, "exposed": [{"image": "a", "reason": "b"}]}}});
        lacking.take_from(&mut object);
        let left = json!({"spec": {"registry": "a"}, "status": {"images": {"inUse": 1, "exposed": [{"image": "a"}]}}});
        assert_eq!(object, left);
        assert!(Lacking::of(&served, &ours).is_empty(), "a newer definition lacks nothing");
    }

    #[test]
    fn what_an_api_server_refuses_is_named_as_it_would_be_from_the_definition() {
        let mut lacking = Lacking::default();
        assert!(!lacking.learn("the server is currently unable to handle the request"));
        assert!(lacking.learn(
            "failed to create typed patch object (/n; breakwater.dev/v1alpha1, Kind=MirrorNode): .status.summary: field not declared in schema"
        ));
        let two = "failed to create typed patch object (/n; breakwater.dev/v1alpha1, Kind=MirrorNode): errors:\n  \
            .status.summary: field not declared in schema\n  .status.inactive[registry=\"a.example:5000\"].reason: field not declared in schema";
        assert!(lacking.learn(two) && !lacking.learn(two));
        assert_eq!(lacking.to_string(), "status.inactive[].reason, status.summary");
    }

    #[test]
    fn many_fields_are_counted() {
        let served = without(&["spec/properties"]);
        let lacking = Lacking::of(&definitions()[0], &served);
        assert!(lacking.to_string().contains(&format!(" and {} more", lacking.len() - MOST_NAMED)), "{lacking}");
    }
}
