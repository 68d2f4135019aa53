//! The operator: turns `RegistryMirror` objects into caches and says how they fare. Start at [`controller`].
//!
//! It never serves a pull: whatever happens to it, caches and nodes go on with what they have.

pub mod apply;
pub mod args;
pub mod build;
pub mod check;
pub mod controller;
pub mod credentials;
pub mod events;
pub mod exchange;
#[cfg(test)]
mod fixture;
pub mod fleet;
pub mod health;
pub mod images;
pub mod lease;
pub mod memory;
pub mod metrics;
pub mod observe;
pub mod pki;
pub mod references;
pub mod report;
pub mod run;
pub mod secrets;
pub mod skew;
pub mod slim;
pub mod startup;
pub mod status;
pub mod telemetry;
pub mod upstream;
pub mod validate;
pub mod watches;

/// An error and its sources in one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some libraries repeat their source in their own message.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}
