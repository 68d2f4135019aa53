//! Asks one Pod again and again whether it lives, so that requests need not find out.

use super::replica::Replica;
use std::hash::{BuildHasher, RandomState};
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
        let pause = jittered(if replica.is_settled() { SETTLED } else { WATCHFUL });
        sleep(LEAST).await;
        tokio::select! {
            () = sleep_until(started + pause) => {}
            () = replica.look_now.notified() => {}
        }
    }
}

/// 85 to 100 %: nodes that started together do not probe together for ever.
fn jittered(pause: Duration) -> Duration {
    let random = RandomState::new().hash_one(()) % 1000;
    pause - pause.mul_f64(0.15 * random as f64 / 1000.0)
}
