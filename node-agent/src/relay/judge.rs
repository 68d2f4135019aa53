//! When a Pod is tried, and what follows from how that goes. How it is tried is the trial's affair.

use super::cache::Unserved;
use super::replica::Replica;
use super::suspended::Suspended;
use super::trial::{Part, Told, Trial};
use crate::spread::random_part;
use http::StatusCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Nodes that met the same fault at the same moment try it apart.
const SPREAD: Duration = Duration::from_secs(5);
/// Between two trials, whatever came of the first.
const AGAIN: Duration = Duration::from_secs(1);

/// Tries a Pod whenever one of its pauses is over, for as long as the task lives.
pub(super) async fn try_forever(replica: Arc<Replica>, suspended: Arc<Mutex<Suspended>>) {
    // Drawn once for each: of many draws the least would count.
    let mut drawn = (None, Duration::ZERO);
    loop {
        let Some((due, trial)) = replica.next_trial() else {
            replica.accused.notified().await;
            continue;
        };
        if drawn.0 != Some(due) {
            let is_to_come = due > Instant::now();
            drawn = (Some(due), if is_to_come { random_part(SPREAD) } else { Duration::ZERO });
        }
        tokio::select! {
            () = sleep_until(due + drawn.1) => {}
            () = replica.accused.notified() => continue,
        }
        replica.until_in().await;
        match judge(&replica, &trial).await {
            Verdict::Well => {
                // Before the Pod is asked for it, or whoever asks first would still be sent away.
                if let Some(blob) = trial.content.blob() {
                    suspended.lock().unwrap_or_else(PoisonError::into_inner).lift(blob);
                }
                replica.acquitted(&trial);
            }
            Verdict::Unproven => replica.acquitted(&trial),
            Verdict::Away => {}
            Verdict::Alone(fault) => replica.withheld(&trial, false, &fault),
            Verdict::Beyond(fault) => replica.withheld(&trial, true, &fault),
            Verdict::Ill(fault) => replica.convicted(&trial, true, &fault),
            Verdict::Unsettled(fault) => replica.convicted(&trial, false, &fault),
            Verdict::Liar => replica.found_lying(&trial),
        }
        sleep(AGAIN).await;
    }
}

enum Verdict {
    /// It does that well, or nothing tells otherwise.
    Well,
    /// Nothing is known that speaks against it.
    Unproven,
    /// Nobody is there.
    Away,
    /// It fails at that one content; other content comes well, as far as is known.
    Alone(Unserved),
    /// It fails at that, and other content comes well that is no longer than what came of it.
    Beyond(Unserved),
    /// It fails at that, and at other content too.
    Ill(Unserved),
    /// It fails at that, and nothing else tells whether at that alone.
    Unsettled(Unserved),
    /// It sends something else, as another Pod did.
    Liar,
}

async fn judge(replica: &Arc<Replica>, trial: &Trial) -> Verdict {
    let tried = trial.run(replica).await;
    match (tried, &trial.part) {
        (Ok(Told::All), _) => Verdict::Well,
        (Err(Unserved::Connect(fault)), _) if fault.is_absence() => Verdict::Away,
        (Err(Unserved::OtherContent), Part::Honest) => Verdict::Liar,
        // Whatever else it fails at is found out where it is wanted.
        (_, Part::Honest) => Verdict::Unproven,
        // Who sent wrong bytes, and has them no more, shows with others that the right ones come.
        (Err(gone @ Unserved::Status(StatusCode::NOT_FOUND)), Part::Right) => match compare(replica, trial).await {
            Comparison::Well => Verdict::Well,
            Comparison::Ill(fault) => Verdict::Ill(fault),
            Comparison::Nothing | Comparison::WellSoFar => Verdict::Unsettled(gone),
        },
        // Otherwise it is trusted with nothing until it sends the right ones, and who is only asked last loses nothing by it.
        (Err(fault), Part::Right | Part::Soon(_) | Part::Promptly) => Verdict::Ill(fault),
        (tried, _) => match (compare(replica, trial).await, tried) {
            (Comparison::Ill(fault), _) => Verdict::Ill(fault),
            (_, Ok(_)) => Verdict::Well,
            (Comparison::Well, Err(fault)) => Verdict::Alone(fault),
            (Comparison::WellSoFar, Err(fault)) => Verdict::Beyond(fault),
            // There is no such thing any more, and nothing tells that other content fails.
            (Comparison::Nothing, Err(Unserved::Status(StatusCode::NOT_FOUND))) => Verdict::Unproven,
            // Whatever is wanted next is compared, and no pull waits for it meanwhile.
            (Comparison::Nothing, Err(fault)) => Verdict::Unsettled(fault),
        },
    }
}

/// How other content goes.
enum Comparison {
    /// There is none that tells.
    Nothing,
    /// All of it goes well, as far as it goes, which is not as far as the other came.
    WellSoFar,
    /// All of it goes well.
    Well,
    Ill(Unserved),
}

async fn compare(replica: &Arc<Replica>, trial: &Trial) -> Comparison {
    let mut comparison = Comparison::Nothing;
    for control in replica.controls(trial) {
        match control.run(replica).await {
            // One that was read so often is enough.
            Ok(Told::All) if matches!(trial.part, Part::Right) => return Comparison::Well,
            Ok(Told::All) => comparison = Comparison::Well,
            // What was wanted and has come to its disk did come, if nobody knows how fast.
            Ok(Told::OfTheDisk) if trial.is_of_bodies() => comparison = Comparison::Well,
            Ok(Told::Short) if matches!(comparison, Comparison::Nothing) => comparison = Comparison::WellSoFar,
            // This is how the cache says why it has it no more, ...
            Ok(Told::OfTheDisk | Told::Short) | Err(Unserved::Status(_)) => {}
            // ... and so much says who is not there.
            Err(Unserved::Connect(fault)) if fault.is_absence() => {}
            Err(fault) => return Comparison::Ill(fault),
        }
    }
    comparison
}
