//! `make images`: builds the OCI image archive and prints its path as the last line.

fn main() -> anyhow::Result<()> {
    let archive = breakwater_tests::release::image_archive()?;
    eprintln!(
        "load it on each node: ctr -n k8s.io images import <archive>; or push it: skopeo copy oci-archive:<archive> docker://..."
    );
    println!("{}", archive.display());
    Ok(())
}
