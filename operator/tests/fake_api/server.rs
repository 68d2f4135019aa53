//! A fake API server as a tower service: for the conflicts and failures that a real one does not give on demand.

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::Client;
use kube::client::Body;
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::{Arc, Mutex};

/// What was asked: `GET /path`.
#[derive(Clone, Default)]
pub(crate) struct Calls(Arc<Mutex<Vec<(String, String)>>>);

impl Calls {
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(call, _)| call.clone()).collect()
    }

    /// What was sent with each.
    pub(crate) fn bodies(&self) -> Vec<String> {
        self.0.lock().unwrap().iter().map(|(_, body)| body.clone()).collect()
    }

    pub(crate) fn writes(&self) -> Vec<String> {
        self.all().into_iter().filter(|call| !call.starts_with("GET")).collect()
    }
}

/// A client whose calls are answered one after the other by `script`; later ones get 500.
pub(crate) fn client(script: Vec<(u16, Value)>) -> (Client, Calls) {
    let (calls, script) = (Calls::default(), Arc::new(Mutex::new(VecDeque::from(script))));
    let seen = calls.clone();
    let service = tower::service_fn(move |request: Request<Body>| {
        let (seen, script) = (seen.clone(), script.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
            let body = String::from_utf8_lossy(&body).into_owned();
            seen.0.lock().unwrap().push((format!("{} {}", parts.method, parts.uri.path()), body));
            let (code, answer) = script.lock().unwrap().pop_front().unwrap_or((500, failure(500, "InternalError")));
            let mut response = Response::new(Body::from(answer.to_string().into_bytes()));
            *response.status_mut() = StatusCode::from_u16(code).unwrap();
            assert!([Method::GET, Method::POST, Method::PATCH].contains(&parts.method), "{}", parts.method);
            Ok::<_, Infallible>(response)
        }
    });
    (Client::new(service, "default"), calls)
}

pub(crate) fn failure(code: u16, reason: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": reason})
}
