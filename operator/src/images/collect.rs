//! Watches whatever runs Pods and publishes which images are in use. Client I/O; knows nothing of mirrors.

use super::reference::ImageName;
use super::usage::Usage;
use super::workload::Workload;
use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt};
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment, StatefulSet};
use k8s_openapi::api::batch::v1::{CronJob, Job};
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher::{Config, Event, watcher};
use kube::{Api, Client, Resource};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

/// Roll-outs change many objects at once; one look per burst is enough.
const PAUSE: Duration = Duration::from_secs(1);

/// The images in use, and of each whether a new node needs it before it can pull through Breakwater. Nothing is published before all
/// watches are filled: a shorter list would take protection from images that are in use.
pub type InUse = Option<Arc<BTreeMap<ImageName, bool>>>;

/// A step of one watch: says whether other images are in use now.
type Step = Box<dyn FnOnce(&mut Usage) -> bool + Send>;
type Steps = BoxStream<'static, (usize, Step)>;

/// Keeps `publish` up to date until it is dropped. The client is a [`paced`](crate::watches::paced) one.
pub async fn collect(client: Client, publish: watch::Sender<InUse>) {
    let watches = [
        steps::<Pod>(&client),
        steps::<Deployment>(&client),
        steps::<StatefulSet>(&client),
        steps::<DaemonSet>(&client),
        steps::<Job>(&client),
        steps::<CronJob>(&client),
    ];
    follow(watches, PAUSE, publish).await;
}

async fn follow<const KINDS: usize>(
    watches: [BoxStream<'static, Step>; KINDS],
    pause: Duration,
    publish: watch::Sender<InUse>,
) {
    let mut usages: [Usage; KINDS] = std::array::from_fn(|_| Usage::default());
    let numbered =
        |(kind, steps): (usize, BoxStream<'static, Step>)| -> Steps { steps.map(move |step| (kind, step)).boxed() };
    let mut all: SelectAll<Steps> = watches.into_iter().enumerate().map(numbered).collect();
    let mut due: Option<Instant> = None;
    loop {
        tokio::select! {
            step = all.next() => match step {
                Some((kind, step)) => {
                    if step(&mut usages[kind]) {
                        due = due.or(Some(Instant::now() + pause));
                    }
                }
                None => return,
            },
            () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                due = None;
                publish.send_if_modified(|in_use| {
                    let joined = join(&usages).map(Arc::new);
                    let is_news = *in_use != joined;
                    *in_use = joined;
                    is_news
                });
            }
        }
    }
}

fn join(usages: &[Usage]) -> Option<BTreeMap<ImageName, bool>> {
    let mut joined = BTreeMap::new();
    for usage in usages {
        for uses in usage.sets()? {
            for image in uses.images.iter().filter_map(|image| ImageName::parse(image)) {
                *joined.entry(image).or_default() |= uses.is_node_bootstrap;
            }
        }
    }
    Some(joined)
}

/// Watches one kind in all namespaces, without end: a watch that fails is begun again, at the client's pace.
fn steps<K>(client: &Client) -> BoxStream<'static, Step>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Send + 'static,
{
    let events = watcher(Api::<Workload<K>>::all(client.clone()), Config::default());
    as_steps(events.filter_map(async |event| match event {
        Ok(event) => Some(event),
        Err(error) => {
            let kind = K::kind(&());
            tracing::warn!(%kind, error = %crate::error_chain(&error), "watch of images in use interrupted, beginning again");
            None
        }
    }))
}

fn as_steps<K>(events: impl Stream<Item = Event<Workload<K>>> + Send + 'static) -> BoxStream<'static, Step>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Send + 'static,
{
    events.map(|event| Box::new(move |usage: &mut Usage| usage.apply(event)) as Step).boxed()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::parse;
    use futures::stream;

    fn pod(uid: &str, image: &str) -> Workload<Pod> {
        parse(&format!("{{metadata: {{uid: {uid}}}, spec: {{containers: [{{image: '{image}'}}]}}}}"))
    }

    fn listed(objects: Vec<Workload<Pod>>) -> BoxStream<'static, Step> {
        let inits = objects.into_iter().map(Event::InitApply);
        as_steps(stream::iter(std::iter::once(Event::Init).chain(inits).chain([Event::InitDone])))
    }

    #[tokio::test]
    async fn nothing_is_published_before_every_watch_is_filled() {
        let pause = Duration::from_millis(5);
        let (publish, mut in_use) = watch::channel(None);
        let unfilled =
            as_steps(stream::iter([Event::Init, Event::InitApply(pod("b", "b:1"))]).chain(stream::pending()));
        let task = tokio::spawn(follow([listed(vec![pod("a", "a:1")]), unfilled], pause, publish));
        assert!(tokio::time::timeout(pause * 20, in_use.changed()).await.is_err());
        task.abort();

        let (publish, mut in_use) = watch::channel(None);
        let both = [listed(vec![pod("a", "a:1"), pod("x", "Not An Image")]), listed(vec![pod("b", "ghcr.io/b:1")])];
        let task = tokio::spawn(follow(both.map(|steps| steps.chain(stream::pending()).boxed()), pause, publish));
        tokio::time::timeout(Duration::from_secs(20), in_use.changed()).await.unwrap().unwrap();
        let names: Vec<_> = in_use.borrow().iter().flat_map(|it| it.keys()).map(ToString::to_string).collect();
        assert_eq!(names, ["docker.io/library/a:1", "ghcr.io/b:1"]);
        task.abort();
    }
}
