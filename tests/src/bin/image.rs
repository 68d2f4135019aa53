//! `make images`: builds the OCI image archive and prints its path as the last line.

use std::process::ExitCode;

fn main() -> ExitCode {
    match breakwater_tests::release::image_archive() {
        Ok(archive) => {
            let archive = archive.display();
            eprintln!("load it on each node: ctr -n k8s.io images import {archive}");
            eprintln!("or push it: skopeo copy oci-archive:{archive} docker://...");
            println!("{archive}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
