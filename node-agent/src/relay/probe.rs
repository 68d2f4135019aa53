//! Asks one Pod again and again whether it lives, so that requests need not find out.
//!
//! A cache that answers is asked over one connection that is kept. That costs both sides a fraction of a handshake, so it can be often,
//! and a cache that is killed closes it at once. What is amiss there is no more than a doubt, and hedged: whether nobody is there, fresh connections
//! tell. They are tried now and then in any case, as a certificate that expired or a listener that takes nobody shows only there.

use super::awake::{self, Time};
use super::connect::{ConnectFault, Connection};
use super::health::Standing;
use super::hedge::Hedge;
use super::portion::Portion;
use super::replica::Replica;
use crate::spread::random_part;
use futures::FutureExt;
use futures::future::select_ok;
use http::{Request, header};
use http_body_util::Empty;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep, sleep_until};

/// Who gives no answer in this time is not there.
const PATIENCE: Duration = Duration::from_secs(1);
/// From one answer over the kept connection to the next question: with the hedge and the patience, less than two seconds.
const OFTEN: Duration = Duration::from_millis(500);
/// Of all connections that a cache with thousands of nodes sees, these are the dear ones. Traffic tells sooner what only they show.
const RENEWED: Duration = Duration::from_secs(10);
/// Fresh connections to a cache that answers and keeps none open.
const SETTLED: Duration = Duration::from_secs(2);
const WATCHFUL: Duration = Duration::from_secs(1);
/// However often traffic asks for a look, there is this much between two.
const LEAST: Duration = Duration::from_millis(200);
/// A hedge is two fresh connections. The second begins this much later, when a living cache has long answered the first.
const SECOND: Duration = Duration::from_millis(100);
/// For the few bytes after the headers, which came: a connection where they do not is not kept, and that is all.
const REST: Duration = Duration::from_millis(100);

/// Probes for as long as the task lives.
pub(super) async fn probe_forever(replica: Arc<Replica>) {
    let (mut hedge, mut is_to_keep) = (Hedge::default(), true);
    loop {
        let began = Instant::now();
        let fresh = look(&replica).await;
        tend(&replica);
        sleep(LEAST).await;
        let pause = match (replica.standing(), fresh) {
            (Standing::In, Ok(connection)) if is_to_keep && replica.is_settled() => {
                is_to_keep = attend(&replica, connection, &mut hedge).await;
                continue;
            }
            (Standing::In, _) if replica.is_settled() => SETTLED,
            // Whether that was an accident is found out as fast as traffic would find it out.
            (Standing::In, _) => LEAST,
            _ => WATCHFUL,
        };
        is_to_keep = true;
        tokio::select! {
            () = sleep_until(began + jittered(pause)) => {}
            () = replica.look_now.notified() => {}
        }
    }
}

/// Nodes that started together do not probe together for ever.
fn jittered(pause: Duration) -> Duration {
    pause - random_part(pause * 3 / 20)
}

fn tend(replica: &Replica) {
    replica.forgive();
    replica.tidy();
}

/// Asks over this connection, and each that takes its place, until a look is due. Says whether the connection of that may be kept as well: a
/// cache that closed this one may be short of places, and must not be pressed for one all the time.
async fn attend(replica: &Replica, mut kept: Connection, hedge: &mut Hedge) -> bool {
    let renewal = || sleep(jittered(RENEWED)).then(|()| look(replica));
    let mut renewed = pin!(renewal());
    loop {
        tokio::select! {
            () = sleep(jittered(OFTEN)) => {}
            () = kept.ended() => return false,
            () = replica.look_now.notified() => return true,
            // Beside the questions: should the cache hang at this very moment, they tell sooner.
            looked = &mut renewed => match looked {
                Ok(connection) => {
                    kept = connection;
                    renewed.set(renewal());
                    continue;
                }
                Err(_) => return true,
            }
        }
        match ask(replica, kept, hedge).await {
            Ok(connection) if replica.is_settled() => kept = connection,
            Ok(_) => return true,
            Err(_) => return false,
        }
        tend(replica);
    }
}

/// Asks over this connection. Where no answer comes soon, fresh ones are tried beside it, and whichever answers first is kept: any
/// answer, however late, is a living cache.
async fn ask(replica: &Replica, kept: Connection, hedge: &mut Hedge) -> Result<Connection, ConnectFault> {
    let asked = Instant::now();
    let mut time = Time::new(PATIENCE);
    let mut answer = question(replica, kept, &mut time).boxed();
    let answered = match awake::wait(hedge.after(), &mut answer).await {
        Some(answered) => answered,
        None => {
            let late = answer.map(|answered| answered.inspect_err(|fault| take_silence(replica, fault)));
            let second = sleep(SECOND).then(|()| look(replica));
            select_ok([late.boxed(), look(replica).boxed(), second.boxed()]).await.map(|(first, _)| first)
        }
    };
    if answered.is_ok() {
        hedge.heard(asked.elapsed());
    }
    answered
}

/// Of a kept connection, only silence shows that nobody is there: a cache may close it whenever it likes.
fn take_silence(replica: &Replica, fault: &ConnectFault) {
    if matches!(fault, ConnectFault::Silent { .. }) {
        replica.witness(Err(fault));
    }
}

/// Asks over a fresh connection whether anybody is there, and takes the answer into account.
async fn look(replica: &Replica) -> Result<Connection, ConnectFault> {
    let mut time = Time::new(PATIENCE);
    let opened = time.wait(Duration::ZERO, Connection::open(&replica.route(), replica.address, Portion::small())).await;
    let looked = match opened.unwrap_or_else(|| Err(silent(replica))) {
        Ok(connection) => question(replica, connection, &mut time).await,
        Err(fault) => Err(fault),
    };
    replica.witness(looked.as_ref().map(|_| ()));
    looked
}

/// Asks over this connection whether anybody is there; gives it back for the next question.
async fn question(replica: &Replica, mut connection: Connection, time: &mut Time) -> Result<Connection, ConnectFault> {
    let (route, address) = (replica.route(), replica.address);
    let base = Request::get("/v2/")
        .header(header::HOST, &route.host)
        .header(header::AUTHORIZATION, &route.authorization)
        .body(Empty::new())
        .unwrap_or_default();
    let answered = time.wait(Duration::ZERO, connection.send(base)).await;
    let answer = answered.unwrap_or_else(|| Err(silent(replica)))?;
    let status = answer.status();
    if status == 401 || status == 403 {
        return Err(ConnectFault::Refused { address, status });
    }
    // Without its end the connection takes no further question, which shows by itself.
    let _ = awake::wait(REST, connection.read_rest(answer.into_body())).await;
    Ok(connection)
}

fn silent(replica: &Replica) -> ConnectFault {
    ConnectFault::Silent { address: replica.address, after: PATIENCE }
}
