//! `make images`: builds the OCI image archive and prints its path as the last line.

use std::process::ExitCode;

use breakwater_tests::{outcome, release};

fn main() -> ExitCode {
    outcome::code(release::image_archive().map(|archive| {
        let archive = archive.display();
        eprintln!("load it on each node: ctr -n k8s.io images import {archive}");
        eprintln!("or push it: skopeo copy oci-archive:{archive} docker://...");
        println!("{archive}");
        true
    }))
}
