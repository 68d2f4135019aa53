//! One question to upstream: permit, redirects, and what the answer's status means.

use std::time::Instant;

use http::{
    HeaderMap, HeaderValue, Method, StatusCode,
    header::{ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONTENT_ENCODING, CONTENT_TYPE, RANGE},
};
use reqwest::{Request, Response, Url};
use tracing::debug;

use super::{
    Upstream,
    auth::Permit,
    budget::Counted,
    challenge::{self, Challenge},
    places::Place,
    redirect::{self, MOST_HOPS, is_same_origin},
    transport::HEADERS,
};
use crate::{failure::Failure, reference::RepositoryName};

/// What to ask.
pub(super) struct Ask<'a> {
    method: Method,
    repository: &'a RepositoryName,
    path: String,
    query: &'a [(String, String)],
    headers: HeaderMap,
}

impl<'a> Ask<'a> {
    /// `path` is below `/v2/<repository>/`.
    pub(super) fn new(method: Method, repository: &'a RepositoryName, path: String) -> Self {
        // Digests are of the bytes as stored, so nothing may encode them on the way.
        let headers = HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static("identity"))]);
        Self { method, repository, path, query: &[], headers }
    }

    fn counted(&self) -> Counted {
        if self.path.starts_with("blobs/") { Counted::Blobs } else { Counted::Manifests }
    }

    fn is_for_body(&self) -> bool {
        self.method == Method::GET && self.counted() == Counted::Blobs
    }

    pub(super) fn accept(mut self, types: &'static str) -> Self {
        self.headers.insert(ACCEPT, HeaderValue::from_static(types));
        self
    }

    pub(super) fn query(mut self, query: &'a [(String, String)]) -> Self {
        self.query = query;
        self
    }

    pub(super) fn from(mut self, offset: u64) -> Self {
        if offset > 0
            && let Ok(value) = HeaderValue::try_from(format!("bytes={offset}-"))
        {
            self.headers.insert(RANGE, value);
        }
        self
    }
}

/// An answer of status 200 or, to a question for a blob, 206 or 416.
pub(super) struct Answer {
    pub(super) response: Response,
    /// Whether a login was needed.
    pub(super) is_private: bool,
    /// Held until the body has been read.
    pub(super) place: Place,
}

impl Upstream {
    /// Asks, and turns whatever is no answer into a failure.
    pub(super) async fn ask(&self, ask: Ask<'_>) -> Result<Answer, Failure> {
        self.refusals.check(ask.repository, &ask.path)?;
        if !self.budget.allows_miss(ask.repository, ask.counted()) {
            return Err(Failure::TooManyRequests);
        }
        let answer = self.ask_with_permit(&ask).await;
        if let Err(failure) = &answer {
            debug!(registry = %self.registry, repository = %ask.repository, path = ask.path, reason = failure.category(), "upstream fails");
        }
        match answer {
            Ok(_) | Err(Failure::NotFound) => self.contact.good(),
            Err(failure) => self.refusals.remember(ask.repository, &ask.path, failure),
        }
        answer
    }

    async fn ask_with_permit(&self, ask: &Ask<'_>) -> Result<Answer, Failure> {
        let (place, deadline) = if ask.is_for_body() {
            (self.places.body().await?, Instant::now() + HEADERS)
        } else {
            let deadline = Instant::now() + HEADERS;
            (self.places.small(deadline).await?, deadline)
        };
        // Twice at most: without a permit or with one that has expired, and once more with what upstream asks for.
        for is_last in [false, true] {
            let permit =
                tokio::time::timeout_at(deadline.into(), self.auth.permit(&self.transport, ask.repository)).await;
            let (permit, lacking) = match permit.map_err(|_| Failure::TokenService)? {
                Ok(permit) => (permit, None),
                // What upstream asked for may have been for another repository, or hold no more: it says so itself.
                Err(failure) if !is_last => (Permit::none(), Some(failure)),
                Err(failure) => return Err(failure),
            };
            let (response, is_own) = self.follow(ask, &permit, deadline).await?;
            if !is_own || response.status() != StatusCode::UNAUTHORIZED {
                match lacking {
                    Some(_) if response.status().is_success() => self.auth.forget_realm(),
                    // What strangers are told (often 404) says nothing.
                    Some(failure) => return Err(failure),
                    None => {}
                }
                if permit.is_private && is_own && response.status().is_success() {
                    self.auth.judged(true);
                }
                let is_private = permit.is_private;
                return judge(response, is_own, ask.counted()).map(|response| Answer { response, is_private, place });
            }
            let challenge = challenge::parse(response.headers());
            self.auth.reject(ask.repository);
            if permit.header.is_some() && challenge == Some(Challenge::Basic) {
                // Showing the same login again would only lock the account.
                self.auth.judged(false);
                return Err(Failure::Refused);
            }
            match (challenge, lacking) {
                (Some(challenge), Some(failure)) if self.auth.is_known(&challenge) => return Err(failure),
                (Some(challenge), _) if !is_last => self.auth.learn(challenge, Some(ask.repository)),
                (_, lacking) => return Err(lacking.unwrap_or(Failure::Refused)),
            }
        }
        Err(Failure::Refused)
    }

    /// Sends the request and follows redirects; also says whether the answer is upstream's own.
    async fn follow(&self, ask: &Ask<'_>, permit: &Permit, deadline: Instant) -> Result<(Response, bool), Failure> {
        let origin = self.transport.origin();
        let mut url = self.url(ask);
        for _ in 0..=MOST_HOPS {
            let is_own = is_same_origin(&url, origin);
            let mut request = Request::new(ask.method.clone(), url.clone());
            *request.headers_mut() = ask.headers.clone();
            if let Some(header) = permit.header.clone().filter(|_| is_own) {
                request.headers_mut().insert(AUTHORIZATION, header);
            }
            let response = self.transport.send(request, Some(ask.repository), deadline).await?;
            if is_own {
                self.account(ask, &response);
            }
            match redirect::next(response.status(), response.headers(), &url)? {
                // It would only send us here again.
                Some(next) if next == url => return Err(Failure::InvalidResponse),
                Some(next) => url = next,
                None => return Ok((response, is_own)),
            }
        }
        Err(Failure::InvalidResponse)
    }

    fn url(&self, ask: &Ask<'_>) -> Url {
        let mut url = self.transport.origin().clone();
        url.set_path(&format!("/v2/{}/{}", ask.repository, ask.path));
        if !ask.query.is_empty() {
            url.query_pairs_mut().extend_pairs(ask.query);
        }
        url
    }

    /// What upstream's own answer says of our budget. Blobs that it lets through say nothing: few registries count them.
    fn account(&self, ask: &Ask<'_>, response: &Response) {
        self.budget.read(response.headers());
        match (response.status(), ask.counted()) {
            (StatusCode::TOO_MANY_REQUESTS, counted) => {
                self.budget.refused(ask.repository, counted, response.headers());
            }
            (status, Counted::Manifests) if status.is_success() => self.budget.granted(),
            _ => {}
        }
    }
}

/// What a final status means. A redirect's target that refuses (an expired URL, a purged object) says nothing of the
/// repository. Parts are only asked for of blobs.
fn judge(response: Response, is_own: bool, counted: Counted) -> Result<Response, Failure> {
    let is_encoded = response
        .headers()
        .get(CONTENT_ENCODING)
        .is_some_and(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    match response.status().as_u16() {
        200 | 206 if is_encoded || is_page(response.headers()) => Err(Failure::InvalidResponse),
        200 => Ok(response),
        206 | 416 if counted == Counted::Blobs => Ok(response),
        429 => Err(Failure::TooManyRequests),
        500.. => Err(Failure::ServerError),
        404 | 410 if is_own => Err(Failure::NotFound),
        401 if is_own => Err(Failure::Refused),
        403 if is_own => Err(Failure::Denied),
        401 | 403 | 404 | 410 => Err(Failure::Redirect),
        _ => Err(Failure::InvalidResponse),
    }
}

/// What a captive portal answers to anything.
pub(super) fn is_page(headers: &HeaderMap) -> bool {
    let media_type = headers.get(CONTENT_TYPE).map(HeaderValue::as_bytes).unwrap_or_default();
    media_type.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"text/html"))
}

/// `<https://host/v2/x/tags/list?last=b>; rel="next"` without its host, so that the next page is asked of us too.
pub(super) fn relative_link(link: &str) -> Option<String> {
    let (target, parameters) = link.strip_prefix('<')?.split_once('>')?;
    if target.starts_with('/') && !target.starts_with("//") {
        return Some(link.to_owned());
    }
    let url: Url = target.parse().ok()?;
    let query = url.query().map(|query| format!("?{query}")).unwrap_or_default();
    Some(format!("<{}{query}>{parameters}", url.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lose_their_host() {
        let relative = r#"</v2/x/tags/list?last=b>; rel="next""#;
        assert_eq!(relative_link(relative).as_deref(), Some(relative));
        assert_eq!(relative_link(r#"<https://a/v2/x/tags/list?last=b>; rel="next""#).as_deref(), Some(relative));
        assert_eq!(relative_link("nonsense"), None);
        assert_eq!(relative_link("<nonsense>; x"), None);
    }
}
