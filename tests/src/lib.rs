//! The test harness: real clusters, real and scripted upstream registries, and the project's own binaries as processes.
//!
//! Start at [`cluster`] for what a node is made of and at [`upstream`] for the faults a registry can be told to show.

mod accept;
pub mod agent;
pub mod api_proxy;
pub mod api_scene;
pub mod api_stage;
pub mod bench;
pub mod binaries;
pub mod cache;
pub mod chaos;
pub mod cluster;
pub mod demo;
pub mod direct;
pub mod distribution;
pub mod fallback;
pub mod gitops;
pub mod images;
pub mod operator;
pub mod outcome;
pub mod page;
mod ports;
pub mod product;
pub mod proxy;
pub mod release;
pub mod scale;
pub mod toolchain;
pub mod upstream;
