//! When a Pod is tried, and what follows from how that goes. How it is tried is the trial's affair.

use super::cache::Unserved;
use super::replica::Replica;
use super::trial::{Part, Trial};
use crate::spread::random_part;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Nodes that met the same fault at the same moment try it apart.
const SPREAD: Duration = Duration::from_secs(5);
/// Between two trials, whatever came of the first.
const AGAIN: Duration = Duration::from_secs(1);

/// Tries a Pod whenever one of its pauses is over, for as long as the task lives.
pub(super) async fn try_forever(replica: Arc<Replica>) {
    loop {
        let Some((due, trial)) = replica.next_trial() else {
            replica.accused.notified().await;
            continue;
        };
        let spread = if due > Instant::now() { random_part(SPREAD) } else { Duration::ZERO };
        tokio::select! {
            () = sleep_until(due + spread) => {}
            () = replica.accused.notified() => continue,
        }
        replica.until_in().await;
        match judge(&replica, &trial).await {
            Verdict::Well => replica.acquitted(&trial),
            Verdict::Away => {}
            Verdict::Alone(fault) => replica.withheld(&trial, &fault),
            Verdict::Ill(fault) => replica.convicted(&trial, &fault),
            Verdict::Liar => replica.found_lying(&trial),
        }
        sleep(AGAIN).await;
    }
}

enum Verdict {
    /// It does that well, or nothing tells otherwise.
    Well,
    /// Nobody is there.
    Away,
    /// It fails at that one content; other content comes well, as far as is known.
    Alone(Unserved),
    /// It fails at that, and at other content too.
    Ill(Unserved),
    /// It sends something else, as another Pod did.
    Liar,
}

async fn judge(replica: &Arc<Replica>, trial: &Trial) -> Verdict {
    let tried = trial.run(replica).await;
    match (tried, &trial.part) {
        (Ok(origin), _) if trial.is_told_by(origin) => Verdict::Well,
        (Err(Unserved::Connect(fault)), _) if fault.is_absence() => Verdict::Away,
        (Err(Unserved::OtherContent), Part::Honest) => Verdict::Liar,
        // Whatever else it fails at is found out where it is wanted.
        (_, Part::Honest) => Verdict::Well,
        // Who sent wrong bytes is trusted with nothing until he sends the right ones, and who is only asked last loses nothing by it.
        (Err(fault), Part::Right | Part::Soon(_)) => Verdict::Ill(fault),
        (tried, part) => {
            let controls = replica.controls(trial);
            match (compare(replica, &controls).await, tried) {
                (Some(Err(fault)), _) => Verdict::Ill(fault),
                (_, Ok(_)) => Verdict::Well,
                (Some(Ok(())), Err(fault)) => Verdict::Alone(fault),
                // Of a body that does not come the content may be at fault; that nothing is answered says more of who does not.
                (None, Err(fault)) if matches!(part, Part::Body(_)) && !controls.is_empty() => Verdict::Alone(fault),
                // With nothing to compare, whatever is wanted next is compared, and no pull waits for it meanwhile.
                (None, Err(fault)) => Verdict::Ill(fault),
            }
        }
    }
}

/// Whether other content goes well, all of it that tells.
async fn compare(replica: &Arc<Replica>, controls: &[Trial]) -> Option<Result<(), Unserved>> {
    let mut told = None;
    for control in controls {
        match control.run(replica).await {
            Ok(origin) if control.is_told_by(origin) => told = Some(Ok(())),
            // It has come to the disk, or the cache says why it has it no more.
            Ok(_) | Err(Unserved::Status(_)) => {}
            Err(fault) => return Some(Err(fault)),
        }
    }
    told
}
