//! Prints one CustomResourceDefinition as YAML, `crdgen registrymirrors` or `crdgen mirrornodes`, or both for people: `crdgen reference`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    if wanted == "reference" {
        print!("{}", breakwater_crds::reference::page(&breakwater_crds::yaml::definitions()));
        return ExitCode::SUCCESS;
    }
    let Some(definition) = breakwater_crds::yaml::definitions().into_iter().find(|crd| crd.spec.names.plural == wanted)
    else {
        eprintln!("error: must name one of registrymirrors, mirrornodes, reference");
        return ExitCode::from(2);
    };
    match breakwater_crds::yaml::document(&definition) {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("error: {wanted}: {error}");
            ExitCode::FAILURE
        }
    }
}
