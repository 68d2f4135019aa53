//! The operator as its operating system sees it, and as the API server counts it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use kube::Client;

use crate::bench::process;

/// Memory of a process.
#[derive(Clone, Copy, Debug, Default)]
pub struct Memory {
    /// Resident now.
    pub now: u64,
    /// At most until now.
    pub peak: u64,
}

/// Requests that the API server has answered, by `VERB resource`.
pub(super) type Requests = BTreeMap<String, f64>;

/// What a process does in some time.
pub(super) struct Window {
    pid: u32,
    began: Instant,
    processor: Duration,
    requests: Requests,
}

/// What was measured in a window.
#[derive(Clone, Debug)]
pub struct Load {
    /// How long.
    pub time: Duration,
    /// Processors in use, on average.
    pub processors: f64,
    /// Requests per second, by `VERB resource`, the most frequent first.
    pub requests: Vec<(String, f64)>,
}

pub(super) fn memory(pid: u32) -> Result<Memory> {
    let path = format!("/proc/{pid}/status");
    let status = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let field = |name: &str| {
        let line =
            status.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("{path} has no {name}"))?;
        let kib: u64 = line.trim().trim_end_matches(" kB").parse().with_context(|| format!("read {name}"))?;
        Ok::<_, anyhow::Error>(kib * 1024)
    };
    Ok(Memory { now: field("VmRSS:")?, peak: field("VmHWM:")? })
}

impl Window {
    pub(super) async fn open(pid: u32, client: &Client) -> Result<Self> {
        let requests = requests(client).await?;
        Ok(Self { pid, began: Instant::now(), processor: process::processor_time(pid), requests })
    }

    /// Requests that `is_ours` leaves out were made by the harness.
    pub(super) async fn close(self, client: &Client, is_ours: impl Fn(&str) -> bool) -> Result<Load> {
        let time = self.began.elapsed();
        let processors = (process::processor_time(self.pid) - self.processor).as_secs_f64() / time.as_secs_f64();
        let later = requests(client).await?;
        let rate = |(what, count): (&String, &f64)| {
            let made = count - self.requests.get(what).unwrap_or(&0.0);
            (what.clone(), made / time.as_secs_f64())
        };
        let mut requests: Vec<_> = later.iter().map(rate).filter(|(what, rate)| *rate > 0.0 && is_ours(what)).collect();
        requests.sort_by(|(_, a), (_, b)| b.total_cmp(a));
        Ok(Load { time, processors, requests })
    }
}

/// What the API server has counted until now. A watch counts when it ends.
async fn requests(client: &Client) -> Result<Requests> {
    let request = http::Request::get("/metrics").body(Vec::new()).context("make a request")?;
    let text = client.request_text(request).await.context("ask for the API server's metrics")?;
    let mut requests = Requests::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("apiserver_request_total{")) {
        let Some((labels, count)) = line.rsplit_once("} ") else { continue };
        let label = |name: &str| {
            let value = labels.split(',').find_map(|label| label.strip_prefix(name)?.strip_prefix("=\""));
            value.map_or("", |value| value.trim_end_matches('"'))
        };
        let (verb, resource, part) = (label("verb"), label("resource"), label("subresource"));
        let slash = if part.is_empty() { "" } else { "/" };
        *requests.entry(format!("{verb} {resource}{slash}{part}")).or_default() += count.parse().unwrap_or(0.0);
    }
    Ok(requests)
}
