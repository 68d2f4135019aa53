//! Asks one Pod again and again whether it lives, so that requests need not find out.

use super::health::Standing;
use super::replica::Replica;
use crate::spread::random_part;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

const TIMEOUT: Duration = Duration::from_secs(1);
const SETTLED: Duration = Duration::from_secs(2);
const WATCHFUL: Duration = Duration::from_secs(1);
/// However often traffic asks for a look, there is this much between two.
const LEAST: Duration = Duration::from_millis(200);

/// Probes for as long as the task lives.
pub(super) async fn probe_forever(replica: Arc<Replica>) {
    loop {
        let started = Instant::now();
        let sign = replica.probe(TIMEOUT).await;
        replica.witness(sign.as_ref().copied());
        replica.forgive();
        replica.tidy();
        let pause = match replica.standing() {
            Standing::In if replica.is_settled() => SETTLED,
            // Whether that was an accident is found out as fast as traffic would find it out.
            Standing::In => LEAST,
            _ => WATCHFUL,
        };
        // Nodes that started together do not probe together for ever.
        let pause = pause - random_part(pause * 3 / 20);
        sleep(LEAST).await;
        tokio::select! {
            () = sleep_until(started + pause) => {}
            () = replica.look_now.notified() => {}
        }
    }
}
