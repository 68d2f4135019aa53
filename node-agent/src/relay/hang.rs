//! Whose fault it is that headers do not come: a cache tells at once what it has itself, so each Pod that may yet be asked is
//! asked for that alone, side by side. Who answers not even that hangs, and is found out before its turn.

use super::ask::Content;
use super::awake::Time;
use super::conduct::BEARABLE_ITSELF;
use super::connect::Connection;
use super::portion::Portion;
use super::replica::{Replica, is_failure};
use super::request;
use futures::StreamExt;
use futures::future::BoxFuture;
use futures::stream::FuturesUnordered;
use http::{HeaderMap, Method};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Headers that take longer than this are waited for on account of the upstream, ...
const DOUBT: Duration = Duration::from_millis(800);
/// ... or the cache hangs: it tells within this time what it has. It may have to look at a blob's digest first.
pub(super) const OWN_ANSWER: Duration = Duration::from_secs(2);

/// Whether Pods hang, as far as one request can tell.
pub(super) struct HangCheck<'a> {
    pods: &'a [Arc<Replica>],
    method: &'a Method,
    content: &'a Arc<Content>,
    began: Instant,
    /// None until answers are late, which is rare.
    checks: Option<FuturesUnordered<BoxFuture<'a, Option<&'a Replica>>>>,
}

impl<'a> HangCheck<'a> {
    pub(super) fn new(pods: &'a [Arc<Replica>], method: &'a Method, content: &'a Arc<Content>) -> Self {
        Self { pods, method, content, began: Instant::now(), checks: None }
    }

    /// Ends once it is plain that this Pod hangs; never, if it does not.
    pub(super) async fn hangs(&mut self, pod: &Replica) {
        sleep_until(self.began + DOUBT).await;
        let (pods, method, content) = (self.pods, self.method, self.content);
        let begin = |pod: &'a Arc<Replica>| -> BoxFuture<'a, _> { Box::pin(check(pod, method, content)) };
        let checks = self.checks.get_or_insert_with(|| pods.iter().map(begin).collect());
        while let Some(checked) = checks.next().await {
            if let Some(hung) = checked {
                hung.says_nothing(method, content);
                if hung.address == pod.address {
                    return;
                }
            }
        }
        std::future::pending::<()>().await;
    }
}

/// The Pod, if it hangs, or fails as late as makes no difference. Whether anybody is there at all is for the prober to find out.
async fn check<'a>(pod: &'a Replica, method: &Method, content: &Content) -> Option<&'a Replica> {
    let route = pod.route();
    let asked = request::only_if_cached(request::build(&route, method, content, &HeaderMap::new()));
    let mut connection = Connection::open(&route, pod.address, Portion::small()).await.ok()?;
    let mut time = Time::new(OWN_ANSWER);
    let hangs = match time.wait(Duration::ZERO, connection.send(asked)).await {
        None => true,
        Some(answered) => {
            let is_late = OWN_ANSWER.saturating_sub(time.left()) > BEARABLE_ITSELF;
            is_late && is_failure(answered.as_ref().map(http::Response::status))
        }
    };
    hangs.then_some(pod)
}
