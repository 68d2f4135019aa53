//! What a healthy registry answers: content by tag and digest, ranges, redirects. Pure: no socket and no fault is known here.

use std::collections::HashMap;
use std::net::SocketAddr;

use bytes::Bytes;
use serde_json::json;

use super::content::Blob;
use super::lists;
use super::record::Recorded;

/// A response before any fault touches it.
#[derive(Clone, Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) headers: Vec<(String, String)>,
    pub(super) body: Bytes,
    /// The length in the header, where it is not that of the body.
    pub(super) claimed_length: Option<u64>,
}

impl Answer {
    pub(super) fn ok(media_type: &str, body: impl Into<Bytes>) -> Self {
        let answer = Self { status: 200, headers: Vec::new(), body: body.into(), claimed_length: None };
        answer.with("Content-Type", media_type)
    }

    pub(super) fn refusal(status: u16, code: &str) -> Self {
        let body = json!({"errors": [{"code": code, "message": "scripted"}]});
        let answer = Self::ok("application/json", body.to_string());
        Self { status, ..answer }
    }

    pub(super) fn redirect(location: &str) -> Self {
        let answer = Self::ok("text/plain", "");
        Self { status: 307, ..answer }.with("Location", location)
    }

    pub(super) fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    pub(super) fn without(mut self, name: &str) -> Self {
        self.headers.retain(|(key, _)| !key.eq_ignore_ascii_case(name));
        self
    }
}

#[derive(Debug, Default)]
struct Repository {
    manifests: HashMap<String, Blob>,
    tags: HashMap<String, String>,
    blobs: HashMap<String, Blob>,
}

/// Everything the registry holds.
#[derive(Debug, Default)]
pub(super) struct Store {
    repositories: HashMap<String, Repository>,
    pub(super) redirect_blobs: bool,
    pub(super) rate_limit: Option<u32>,
    pub(super) lacks_referrers: bool,
}

/// The parts of `/v2/<repository>/<kind>/<reference>`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Target<'a> {
    pub(super) repository: &'a str,
    kind: &'a str,
    reference: &'a str,
}

impl<'a> Target<'a> {
    pub(super) fn parse(path: &'a str) -> Option<Self> {
        let (rest, reference) = path.strip_prefix("/v2/")?.rsplit_once('/')?;
        let (repository, kind) = rest.rsplit_once('/')?;
        Some(Self { repository, kind, reference })
    }
}

impl Store {
    pub(super) fn put_blob(&mut self, repository: &str, blob: &Blob) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.blobs.insert(blob.digest.clone(), blob.clone());
    }

    pub(super) fn put_manifest(&mut self, repository: &str, manifest: &Blob) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.manifests.insert(manifest.digest.clone(), manifest.clone());
    }

    pub(super) fn tag(&mut self, repository: &str, tag: &str, manifest: &Blob) {
        self.put_manifest(repository, manifest);
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.tags.insert(tag.to_owned(), manifest.digest.clone());
    }

    pub(super) fn untag(&mut self, repository: &str, tag: &str) {
        let repository = self.repositories.entry(repository.to_owned()).or_default();
        repository.tags.remove(tag);
    }

    /// The registry's answer to a request that was let in.
    pub(super) fn answer(&self, request: &Recorded, cdn: SocketAddr) -> Answer {
        if request.path == "/v2/" {
            return Answer::ok("application/json", "{}");
        }
        let Some(target) = Target::parse(&request.path) else {
            return Answer::refusal(404, "UNSUPPORTED");
        };
        let Some(repository) = self.repositories.get(target.repository) else {
            return Answer::refusal(404, "NAME_UNKNOWN");
        };
        match target.kind {
            "manifests" => {
                let digest = repository.tags.get(target.reference).map_or(target.reference, String::as_str);
                match repository.manifests.get(digest) {
                    Some(manifest) => self.manifest(manifest),
                    None => Answer::refusal(404, "MANIFEST_UNKNOWN"),
                }
            }
            "blobs" => match repository.blobs.get(target.reference) {
                Some(blob) if self.redirect_blobs => {
                    Answer::redirect(&format!("http://{cdn}/data/{}?signature=fresh", blob.digest))
                }
                Some(blob) => bytes_answer(blob, request.header("range")),
                None => Answer::refusal(404, "BLOB_UNKNOWN"),
            },
            "tags" if target.reference == "list" => lists::tags(target.repository, &repository.tags, &request.query),
            "referrers" if !self.lacks_referrers => lists::referrers(&repository.manifests, target.reference),
            _ => Answer::refusal(404, "UNSUPPORTED"),
        }
    }

    /// The CDN's answer: a signed URL is the only credential it takes.
    pub(super) fn cdn_answer(&self, request: &Recorded) -> Answer {
        if request.header("authorization").is_some() {
            return Answer::refusal(400, "DENIED");
        }
        let digest = request.path.trim_start_matches("/data/");
        let held = self.repositories.values().find_map(|repository| repository.blobs.get(digest));
        match held {
            Some(blob) if request.query == "signature=fresh" => bytes_answer(blob, request.header("range")),
            Some(_) => Answer::refusal(403, "DENIED"),
            None => Answer::refusal(404, "BLOB_UNKNOWN"),
        }
    }

    fn manifest(&self, manifest: &Blob) -> Answer {
        let answer = Answer::ok(&manifest.media_type, manifest.bytes.clone())
            .with("Docker-Content-Digest", &manifest.digest)
            .with("ETag", &format!("\"{}\"", manifest.digest));
        match self.rate_limit {
            Some(remaining) => answer
                .with("ratelimit-limit", "100;w=21600")
                .with("ratelimit-remaining", &format!("{remaining};w=21600"))
                .with("ratelimit-reset", "3600"),
            None => answer,
        }
    }
}

/// A blob, or the part of it that an open or closed range names.
fn bytes_answer(blob: &Blob, range: Option<&str>) -> Answer {
    let whole = Answer::ok("application/octet-stream", blob.bytes.clone())
        .with("Docker-Content-Digest", &blob.digest)
        .with("Accept-Ranges", "bytes");
    let parsed = range.and_then(|range| {
        let (start, end) = range.strip_prefix("bytes=")?.split_once('-')?;
        let start: usize = start.parse().ok()?;
        let end = end.parse().map_or(blob.bytes.len(), |end: usize| end + 1);
        Some(start..end.min(blob.bytes.len()))
    });
    match parsed {
        Some(range) if range.start < range.end => {
            let header = format!("bytes {}-{}/{}", range.start, range.end - 1, blob.bytes.len());
            let body = blob.bytes.slice(range);
            Answer { status: 206, body, ..whole }.with("Content-Range", &header)
        }
        Some(_) => Answer::refusal(416, "UNSUPPORTED"),
        None => whole,
    }
}

/// The same answer for the whole of the content, as a registry gives it that does not know ranges.
pub(super) fn without_range(request: &Recorded) -> Recorded {
    let mut request = request.clone();
    request.headers.retain(|(name, _)| name != "range");
    request
}

/// The same bytes, said to be the beginning of so many.
pub(super) fn claiming(answer: Answer, total: u64) -> Answer {
    let range = answer.headers.iter().find(|(name, _)| name == "Content-Range").map(|(_, value)| value.clone());
    match range.as_deref().and_then(|range| range.split_once('/')) {
        Some((range, _)) => answer.without("Content-Range").with("Content-Range", &format!("{range}/{total}")),
        None if answer.status == 200 => Answer { claimed_length: Some(total), ..answer },
        None => answer,
    }
}

/// The same lengths and one wrong byte.
pub(super) fn flipped(answer: Answer) -> Answer {
    let mut body = answer.body.to_vec();
    let middle = body.len() / 2;
    if let Some(byte) = body.get_mut(middle) {
        *byte ^= 0x01;
    }
    Answer { body: body.into(), ..answer }
}
