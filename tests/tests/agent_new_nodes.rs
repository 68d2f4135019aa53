//! What docs/new-nodes.md says of images that are on a node before anything of Breakwater is.
#![cfg(feature = "cluster")]

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use breakwater_tests::agent::Stage;
use breakwater_tests::cluster::until;
use breakwater_tests::fallback::Containerd;
use breakwater_tests::images::{Image, Layer, Run};
use breakwater_tests::toolchain::{Runtime, SERIES, Toolchain};
use tokio::process::Command;

const NAME: &str = "boot.test/agent";
const LIMIT: Duration = Duration::from_secs(10);
/// The others take the label and tell nobody.
const PIN: [&str; 3] = ["2.4", "2.2", "1.7"];

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_image_is_there_and_pinned_where_the_runtime_knows_pins() -> Result<()> {
    Toolchain::ready().await?;
    let of = || SERIES.into_iter().map(Runtime::of).collect::<Result<Vec<_>>>();
    let runtimes = tokio::task::spawn_blocking(of).await.context("build containerd")??;
    let stage = Stage::start().await?;
    let mut layer = Layer::new();
    layer.file("program", b"of the agent", 0o755)?;
    let archive = stage.folder().join("boot.tar");
    Image::new(NAME, "v1", vec![layer], Run::default())?.write_archive(&archive)?;
    let archive = archive.to_str().context("a path that is no text")?;
    let reference = format!("{NAME}:v1");
    let [new, .., old] = runtimes.as_slice() else { bail!("too few versions") };
    for runtime in &runtimes {
        // The nearest that there is: a node has the one of its own version.
        let ctr = if runtime.series.starts_with("2.") { new } else { old }.program.with_file_name("ctr");
        let folder = stage.cluster.state().join(runtime.series);
        let containerd = Containerd::start(stage.cluster.machine(), runtime, &folder, &stage.certs_d()).await?;
        run(&ctr, &containerd, &["import", archive]).await?;
        let known = async || containerd.cri.is_pinned(&reference).await;
        let before = until(LIMIT, "the image to be there", known).await;
        let before = before.with_context(|| format!("containerd {}", runtime.version))?;
        ensure!(!before, "containerd {} pins by itself", runtime.version);
        run(&ctr, &containerd, &["label", &reference, "io.cri-containerd.pinned=pinned"]).await?;
        let pinned = until(LIMIT, "a pin", async || Ok(known().await?.filter(|pinned| *pinned))).await;
        let is_pinned = match &pinned {
            Ok(_) => true,
            Err(error) if error.to_string().contains("in vain") => false,
            Err(_) => return pinned.map(drop).with_context(|| format!("containerd {}", runtime.version)),
        };
        ensure!(is_pinned == PIN.contains(&runtime.series), "containerd {}: {pinned:?}", runtime.version);
    }
    stage.cluster.remove().await
}

/// `ctr images` as docs/new-nodes.md has it.
async fn run(ctr: &Path, containerd: &Containerd, arguments: &[&str]) -> Result<()> {
    let mut command = Command::new(ctr);
    command.arg("--address").arg(containerd.socket()).args(["--namespace", "k8s.io", "images"]).args(arguments);
    let output = command.stdin(Stdio::null()).output().await.context("start ctr")?;
    ensure!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
