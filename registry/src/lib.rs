//! Breakwater's cache: a pull-through cache of one registry that goes on serving while the registry is down.
//!
//! Start with `pull`: it tells the story of a pull. `run` wires the parts together.

pub mod access;
pub mod admin;
pub mod args;
pub mod background;
pub mod body;
pub mod coalesce;
pub mod digest;
mod download;
pub mod duration;
pub mod fading;
pub mod failure;
pub mod flight;
pub mod holdings;
pub mod list_page;
pub mod lists;
pub mod manifest;
pub mod metrics;
pub mod on_error;
pub mod peer;
pub mod pins;
pub mod progress;
pub mod pull;
pub mod question;
pub mod range;
pub mod recent;
pub mod reference;
pub mod registry_host;
pub mod respond;
pub mod route;
pub mod run;
pub mod secret;
pub mod sendfile;
pub mod serve;
pub mod server;
pub mod source;
pub mod store;
pub mod tag;
pub mod telemetry;
pub mod tls;
pub mod tokens;
pub mod upkeep;
pub mod upstream;
pub mod verify;
pub mod watched;
