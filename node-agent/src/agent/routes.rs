//! The relay's routes for a plan. No I/O.

use crate::known::Trust;
use crate::plan::{Plan, Planned};
use crate::registry_host::RegistryHost;
use crate::relay::{Route, Trusting};
use breakwater_crds::names;
use std::collections::BTreeMap;
use std::sync::Arc;

type Routes = BTreeMap<RegistryHost, Option<Arc<Route>>>;

/// A route for each planned mirror whose cache is known, and whether caches can be trusted at all.
pub(super) fn routes(plan: &Plan, trust: Option<&Trust>, trusting: &mut Trusting) -> (Routes, Result<(), String>) {
    let missing = || format!("Secret {} has not been seen yet", names::RELAY_SECRET);
    let trust = trust.ok_or_else(missing).and_then(|trust| match trusting.only(&trust.ca) {
        Ok(tls) => Ok((trust, tls)),
        Err(error) => Err(error.to_string()),
    });
    let route = |planned: &Planned| {
        let (trust, tls) = trust.as_ref().ok()?;
        let made = Route::new(planned.cache.as_ref()?, trust, tls.clone());
        made.inspect_err(|error| tracing::warn!(registry = %planned.wanted.registry, %error, "no way to the cache"))
            .ok()
    };
    let routes =
        plan.mirrors.iter().map(|planned| (planned.wanted.registry.clone(), route(planned).map(Arc::new))).collect();
    (routes, trust.map(drop))
}
