//! How soon a mirror that the API server has taken is in its file.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use breakwater_crds::RegistryMirror;
use futures::{StreamExt, TryStreamExt, stream};
use kube::Api;
use kube::api::PostParams;
use serde_json::json;

use super::Figure;
use crate::agent::Stage;
use crate::release::NodePath;

const MANY: usize = 100;
const AT_ONCE: usize = 16;
const LIMIT: Duration = Duration::from_secs(30);

pub(super) async fn figures(programs: &NodePath) -> Result<Vec<Figure>> {
    let stage = Stage::start().await?.running(&programs.agent);
    stage.mirrors(&["first.test"]).await?;
    let agent = stage.agent()?;
    stage.written("first.test", LIMIT).await?;
    let mirrors = Api::all(stage.cluster.client());
    let one = apply(&stage, &mirrors, &["one.test".to_owned()]).await?;
    let names: Vec<_> = (0..MANY).map(|number| format!("many-{number}.test")).collect();
    let many = apply(&stage, &mirrors, &names).await?;
    let memory = agent.memory()? as f64 / 1024.0;
    agent.stop().await?;
    stage.cluster.remove().await?;
    Ok(vec![
        Figure::new("one mirror: from applied to written", one.as_secs_f64(), "s", 1.0),
        Figure::new("100 mirrors: from the first applied to the last written", many.as_secs_f64(), "s", 3.0),
        Figure::new("100 mirrors: the most memory that the agent held", memory, "MiB", 32.0),
    ])
}

/// From the first request until the last file is there.
async fn apply(stage: &Stage, mirrors: &Api<RegistryMirror>, registries: &[String]) -> Result<Duration> {
    let began = Instant::now();
    let create = async |registry: &String| {
        let mirror = json!({
            "apiVersion": "breakwater.dev/v1alpha1", "kind": "RegistryMirror",
            "metadata": {"name": registry.replace('.', "-")}, "spec": {"registry": registry},
        });
        let mirror = serde_json::from_value(mirror).context("write a mirror")?;
        mirrors.create(&PostParams::default(), &mirror).await.context("apply a mirror")?;
        anyhow::Ok(())
    };
    stream::iter(registries).map(create).buffer_unordered(AT_ONCE).try_collect::<()>().await?;
    for registry in registries {
        stage.written(registry, LIMIT).await?;
    }
    Ok(began.elapsed())
}
