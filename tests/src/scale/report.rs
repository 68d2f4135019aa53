//! The figures as a table. Pure.

use std::time::Duration;

use super::{Figures, Load, Memory};

/// A rate below this is shown with those of other requests.
const RARE: f64 = 0.05;

/// What stands below the page's heading.
#[must_use]
pub fn markdown(figures: &Figures) -> String {
    let Figures { plan, settled, restarted, memory, steady, steady_memory, effects, .. } = figures;
    let Figures { churn, churn_memory, outage, outage_memory, .. } = figures;
    let size = plan.size;
    let mut rows = vec![
        ("first start, until every mirror is Ready and its images survive".to_owned(), seconds(*settled)),
        ("later start, until the operator knows how every image fares".to_owned(), seconds(*restarted)),
        ("memory after that start".to_owned(), peak(*memory)),
        ("steady: processors".to_owned(), format!("{:.3}", steady.processors)),
        ("steady: memory".to_owned(), peak(*steady_memory)),
        ("steady: requests to the API server".to_owned(), rate(steady)),
    ];
    for (what, times) in effects {
        rows.push((format!("effect: {what}"), median_and_most(times)));
    }
    let writes =
        churn.requests.iter().find(|(what, _)| what.ends_with("registrymirrors/status")).map_or(0.0, |(_, rate)| *rate);
    rows.extend([
        (format!("{} MirrorNodes change per second: processors", plan.churn), format!("{:.2}", churn.processors)),
        ("the same: memory".to_owned(), peak(*churn_memory)),
        (
            "the same: writes of each mirror's status".to_owned(),
            format!("{:.2} per 5 s", writes * 5.0 / size.mirrors as f64),
        ),
        ("no cache answers any node: from the last agent's word to every mirror's status".to_owned(), seconds(*outage)),
        ("the same: memory".to_owned(), peak(*outage_memory)),
    ]);
    let rows: String = rows.into_iter().map(|(what, figure)| format!("| {what} | {figure} |\n")).collect();
    format!(
        "{} mirrors, {} nodes, {} Pods of {} Deployments with {} images, and an agent's Pod on each node.\n\n| what | figure |\n|---|---|\n{rows}",
        size.mirrors,
        size.nodes,
        size.pods,
        size.apps(),
        2 * size.apps()
    )
}

fn seconds(time: Duration) -> String {
    format!("{:.1} s", time.as_secs_f64())
}

fn peak(memory: Memory) -> String {
    let mib = |bytes: u64| bytes.div_ceil(1 << 20);
    format!("{} MiB, at most {} MiB until then", mib(memory.now), mib(memory.peak))
}

fn median_and_most(times: &[Duration]) -> String {
    let mut times = times.to_vec();
    times.sort();
    let most = times.last().copied().unwrap_or_default();
    format!("{}, at most {}", seconds(times.get(times.len() / 2).copied().unwrap_or_default()), seconds(most))
}

fn rate(load: &Load) -> String {
    let all: f64 = load.requests.iter().map(|(_, rate)| rate).sum();
    let named: Vec<_> = load
        .requests
        .iter()
        .filter(|(_, rate)| *rate >= RARE)
        .map(|(what, rate)| format!("{rate:.2} {what}"))
        .collect();
    let named = if named.is_empty() { String::new() } else { format!(" ({})", named.join(", ")) };
    format!("{all:.2} per second{named}")
}
