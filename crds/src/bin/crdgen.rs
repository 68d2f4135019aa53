//! Prints one CustomResourceDefinition as YAML: `crdgen registrymirrors` or `crdgen mirrornodes`.

use std::process::ExitCode;

fn main() -> ExitCode {
    let wanted = std::env::args().nth(1).unwrap_or_default();
    let Some(definition) = breakwater_crds::yaml::definitions().into_iter().find(|crd| crd.spec.names.plural == wanted)
    else {
        eprintln!("error: must name one of registrymirrors, mirrornodes");
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
