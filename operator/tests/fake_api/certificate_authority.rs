//! The authority is only ever created, never overwritten, whatever the API server answers.

use crate::server::{Calls, client, failure};
use breakwater_operator::pki::keeper::{Keeper, NoAuthority, Trust};
use breakwater_operator::pki::{Authority, SecretData};
use serde_json::{Value, json};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

fn secret(data: &SecretData) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "breakwater-ca"}, "data": data})
}

fn authority() -> SecretData {
    Authority::create(jiff::Timestamp::now()).unwrap()
}

struct Kept {
    trust: Trust,
    calls: Calls,
    touched: Arc<Notify>,
    task: JoinHandle<()>,
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A keeper over an API server with this script, after its first look.
async fn keep(script: Vec<(u16, Value)>) -> Kept {
    let (client, calls) = client(script);
    let (keeper, mut trust) = Keeper::new(&client, "breakwater-system", "breakwater-nodes");
    let touched = Arc::new(Notify::new());
    let task = tokio::spawn(keeper.run(touched.clone()));
    tokio::time::timeout(Duration::from_secs(10), trust.changed()).await.unwrap().unwrap();
    Kept { trust, calls, touched, task }
}

#[tokio::test]
async fn of_two_operators_that_make_one_the_first_wins() {
    let theirs = authority();
    let not_found = (404, failure(404, "NotFound"));
    let exists = (409, failure(409, "AlreadyExists"));
    let clock = (201, stamped(jiff::Timestamp::now()));
    let kept = keep(vec![not_found, clock, exists, (200, secret(&theirs))]).await;
    let bundle = kept.trust.borrow().as_ref().unwrap().bundle().to_owned();
    assert_eq!(bundle.as_bytes(), theirs["ca.crt"].0);
    let path = "/api/v1/namespaces/breakwater-system/secrets";
    let get = format!("GET {path}/breakwater-ca");
    let expected = [get.clone(), format!("POST {path}"), format!("POST {path}"), get];
    assert_eq!(kept.calls.all()[..4], expected);
}

#[tokio::test]
async fn a_damaged_one_is_left_as_it_is() {
    let mut damaged = authority();
    damaged.remove("ca.key");
    let kept = keep(vec![(200, secret(&damaged))]).await;
    assert!(matches!(kept.trust.borrow().as_ref().unwrap_err().as_ref(), NoAuthority::Damaged(_)));
    assert_eq!(kept.calls.writes(), [""; 0]);
}

#[tokio::test]
async fn one_that_cannot_be_read_is_not_made_anew() {
    let kept = keep(vec![(403, failure(403, "Forbidden"))]).await;
    assert!(matches!(kept.trust.borrow().as_ref().unwrap_err().as_ref(), NoAuthority::Api(_)));
    assert_eq!(kept.calls.writes(), [""; 0]);
}

#[tokio::test]
async fn one_that_is_known_outlives_failing_reads_and_is_put_back_when_it_vanishes() {
    let known = authority();
    let relay = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "breakwater-relay"},
                       "data": {"ca.crt": known["ca.crt"], "relay.key": known["relay.key"]}});
    let script = vec![
        (200, secret(&known)),
        (200, relay.clone()),
        (403, failure(403, "Forbidden")),
        (404, failure(404, "NotFound")),
        (201, secret(&known)),
        (200, relay),
    ];
    let mut kept = keep(script).await;
    for calls in [3, 6] {
        kept.touched.notify_one();
        let looked = async {
            while kept.calls.all().len() < calls {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), looked).await.unwrap();
        assert!(kept.trust.borrow().is_ok());
    }
    assert!(!kept.trust.has_changed().unwrap(), "the same authority is no news");
    assert_eq!(kept.calls.writes(), ["POST /api/v1/namespaces/breakwater-system/secrets"]);
    let _ = kept.trust.borrow_and_update();
}

/// One that is nine years old by this clock.
fn old_authority() -> SecretData {
    Authority::create(jiff::Timestamp::now() - jiff::SignedDuration::from_hours(9 * 365 * 24)).unwrap()
}

fn stamped(time: jiff::Timestamp) -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x", "creationTimestamp": time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()}})
}

#[tokio::test]
async fn a_successor_is_published_beside_the_authority() {
    let old = old_authority();
    let mut both = old.clone();
    let bundle = [old["ca.crt"].0.clone(), authority()["ca.crt"].0.clone()].concat();
    both.insert("ca.crt".to_owned(), k8s_openapi::ByteString(bundle.clone()));
    both.insert("next.key".to_owned(), authority()["ca.key"].clone());
    let kept = keep(vec![(200, secret(&old)), (201, stamped(jiff::Timestamp::now())), (200, secret(&both))]).await;
    assert_eq!(kept.trust.borrow().as_ref().unwrap().bundle().as_bytes(), bundle);
    let path = "/api/v1/namespaces/breakwater-system/secrets";
    assert_eq!(kept.calls.writes(), [format!("POST {path}"), format!("PATCH {path}/breakwater-ca")]);
}

#[tokio::test]
async fn a_clock_that_is_ahead_and_a_conflict_leave_the_authority_in_force() {
    let old = old_authority();
    let years_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(5 * 365 * 24);
    for answers in [
        vec![(201, stamped(years_ago))],
        vec![(403, failure(403, "Forbidden"))],
        vec![(201, stamped(jiff::Timestamp::now())), (409, failure(409, "Conflict"))],
    ] {
        let steps = answers.len();
        let kept = keep([vec![(200, secret(&old))], answers].concat()).await;
        assert_eq!(kept.trust.borrow().as_ref().unwrap().bundle().as_bytes(), old["ca.crt"].0);
        assert_eq!(kept.calls.writes().len(), steps);
    }
}

#[tokio::test]
async fn a_clock_that_is_ahead_makes_no_authority_of_the_future() {
    let theirs = authority();
    let a_year_ago = jiff::Timestamp::now() - jiff::SignedDuration::from_hours(400 * 24);
    let script = vec![(404, failure(404, "NotFound")), (201, stamped(a_year_ago)), (201, secret(&theirs))];
    let kept = keep(script).await;
    let made: Value = serde_json::from_str(&kept.calls.bodies()[2]).unwrap();
    let data: SecretData = serde_json::from_value(made["data"].clone()).unwrap();
    let ends = Authority::parse(&data, a_year_ago).unwrap().ends();
    assert!(ends < jiff::Timestamp::now() + jiff::SignedDuration::from_hours(9 * 365 * 24), "{ends}");
}
