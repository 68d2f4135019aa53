//! The other replicas of this cache: a miss asks them before upstream, with `Cache-Control: only-if-cached`, so that none
//! of them ever asks upstream on another's behalf. All are asked at once (replica.rs, in the words of wire.rs) and the
//! first who has it serves it. What one gets from a registry it tells the others, who fetch it from it (replicate.rs): its
//! loss is no loss then.

mod address;
mod replica;
mod replicate;
mod trust;
mod wire;

use std::{sync::Arc, time::Duration};

use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{
    HeaderValue, Method,
    header::{AGE, CACHE_CONTROL, CONTENT_TYPE, LINK, RANGE},
};
use reqwest::Response;
use rustix::rand::{GetRandomFlags, getrandom};

pub use self::{
    address::{AddressInvalid, PeerAddress},
    replica::Resort,
    replicate::News,
    trust::{PeersInvalid, Trust},
    wire::{ACCESS, PEER, PUBLIC},
};
use self::{
    replica::{Heard, Question, Reason, Replica},
    replicate::Backlog,
    wire::{headers, is_private, list_path, tag_record, text},
};
use crate::{
    background::Background,
    digest::{Algorithm, Digest},
    fading::Fading,
    list_page::ListPage,
    manifest::{self, Manifest},
    metrics::Metrics,
    reference::{Reference, RepositoryName, Tag},
    respond,
    route::List,
    store::{Store, tags::TagRecord},
    upstream::{BlobStream, FetchedManifest, MOST_LIST_BYTES, stated_length},
};

/// For the header of an answer with content.
const HEADER: Duration = Duration::from_secs(1);
/// For what a tag means: an answer may be at hand already.
const TAG: Duration = Duration::from_millis(300);
/// For the whole of a manifest or a list.
const MANIFEST: Duration = Duration::from_secs(2);

/// Who has been told that something is not here goes on to upstream: on the busiest machine this long after.
const SENT_ON: Duration = Duration::from_millis(500);

/// The other replicas. The list may hold this one too: it finds that out by asking.
pub struct Peers {
    replicas: Vec<Arc<Replica>>,
    /// What each has not been told yet.
    backlogs: Vec<Arc<Backlog>>,
    /// What another has just been told is not here.
    sent_on: Fading<Digest, ()>,
    id: String,
}

impl Peers {
    /// Asks nobody yet.
    pub fn new(
        addresses: Vec<PeerAddress>,
        trust: Trust,
        (store, metrics): (&Arc<Store>, &Arc<Metrics>),
        background: &Background,
    ) -> Arc<Self> {
        let (id, trust) = (fresh_id(), Arc::new(trust));
        let headers = headers(&id);
        let replica = |address| Replica::new(address, Arc::clone(&trust), headers.clone(), background.clone());
        let replicas: Vec<_> = addresses.into_iter().map(replica).collect();
        let backlog = |replica| Backlog::keep(Arc::clone(replica), Arc::clone(store), Arc::clone(metrics), background);
        let backlogs = replicas.iter().map(backlog).collect();
        Arc::new(Self { replicas, backlogs, sent_on: Fading::new(SENT_ON), id })
    }

    /// Whether this is the only replica.
    pub fn is_empty(&self) -> bool {
        self.replicas.is_empty()
    }

    /// Tells all replicas, in the background, what has come from a registry and is kept here.
    pub fn tell(&self, news: &News) {
        self.backlogs.iter().for_each(|backlog| backlog.add(news.clone()));
    }

    /// Whether a replica may not know what was told at `time`, in milliseconds since 1970: it or this one was away since.
    pub fn may_have_missed(&self, time: u64) -> bool {
        self.replicas.iter().any(|replica| time <= replica.found_at())
    }

    /// Whether it is this replica that asks.
    pub fn is_itself(&self, who: &str) -> bool {
        self.id == who
    }

    /// Whether this replica goes first where both begin to look for `digest`: the same answer at both, and for each
    /// digest another one.
    pub fn goes_before(&self, other: &str, digest: &Digest) -> bool {
        let rank = |id: &str| Digest::of(Algorithm::Sha256, format!("{id} {digest}").as_bytes());
        rank(&self.id).hex() > rank(other).hex()
    }

    /// A replica that asked is told that `digest` is neither here nor coming. Who asks here a moment later must not take
    /// it for one that lets others go first.
    pub fn send_on(&self, digest: &Digest) {
        self.sent_on.put(digest.clone(), ());
    }

    /// Begins to fetch a blob from one of the replicas `among` all that has it, or that is fetching it from upstream. As a last resort
    /// those are asked as well that have stalled.
    pub async fn blob(
        &self,
        repository: &RepositoryName,
        digest: &Digest,
        offset: u64,
        among: impl Fn(usize) -> bool,
        resort: Resort,
    ) -> Option<(usize, BlobStream)> {
        if self.is_empty() {
            return None;
        }
        let path = format!("/v2/{repository}/blobs/{digest}");
        let mut question = Question { resort, ..self.question_of(digest, Method::GET, path) };
        if offset > 0 {
            question.headers.insert(RANGE, HeaderValue::try_from(format!("bytes={offset}-")).ok()?);
        }
        let (index, response) = self.first(&question, among).await?;
        let is_private = is_private(&response);
        let waits = text(&response, &respond::CACHE_STATUS).is_some_and(|status| status.ends_with("; collapsed"));
        let mut stream = BlobStream::of(response, offset, is_private).ok().flatten()?;
        stream.is_passed_on = waits;
        let replica = Arc::clone(&self.replicas[index]);
        let is_worth_waiting_for = move || -> BoxFuture<'static, bool> {
            let replica = Arc::clone(&replica);
            Box::pin(async move {
                if waits {
                    return replica.is_there().await;
                }
                // It has everything: there is no excuse.
                replica.leave_alone(Reason::Stalls);
                false
            })
        };
        Some((index, stream.doubted_by(is_worth_waiting_for)))
    }

    /// A replica sent wrong bytes.
    pub fn lied(&self, index: usize) {
        if let Some(replica) = self.replicas.get(index) {
            replica.leave_alone(Reason::Lies);
        }
    }

    /// A replica sends what it has, but too little at a time.
    pub fn drips(&self, index: usize) {
        if let Some(replica) = self.replicas.get(index) {
            replica.leave_alone(Reason::Stalls);
        }
    }

    /// Asks for a blob's size.
    pub async fn blob_size(&self, repository: &RepositoryName, digest: &Digest) -> Option<u64> {
        let question = self.question(Method::HEAD, format!("/v2/{repository}/blobs/{digest}"));
        stated_length(&self.first(&question, |_| true).await?.1)
    }

    /// Fetches a manifest. Who sends anything else than that content, or nothing more, is left alone, and the others are
    /// asked.
    pub async fn manifest(&self, repository: &RepositoryName, digest: &Digest) -> Option<(usize, FetchedManifest)> {
        let question = self.question_of(digest, Method::GET, format!("/v2/{repository}/manifests/{digest}"));
        let mut tried = Vec::new();
        loop {
            let (index, response) = self.first(&question, |index| !tried.contains(&index)).await?;
            match manifest_in(response, digest).await {
                Ok(fetched) => return Some((index, fetched)),
                Err(reason) => self.replicas[index].leave_alone(reason),
            }
            tried.push(index);
        }
    }

    /// What a tag means to the replica that has last heard it from upstream, and when that was.
    pub async fn tag(&self, repository: &RepositoryName, tag: &Tag) -> Option<TagRecord> {
        let path = format!("/v2/{repository}/manifests/{}", Reference::Tag(tag.clone()));
        let mut question = Question { patience: TAG, ..self.question(Method::HEAD, path) };
        question.headers.insert(CACHE_CONTROL, HeaderValue::from_static("only-if-cached, max-stale"));
        let answers: Vec<_> = self.ask(&question, |_| true).collect().await;
        let records = answers.iter().filter_map(|(_, heard)| match heard {
            Heard::Content(response) => tag_record(response),
            Heard::Elsewhere | Heard::Nothing => None,
        });
        records.max_by_key(|record| record.validated_at)
    }

    /// A page of a list, and how long ago upstream sent it.
    pub async fn list(&self, repository: &RepositoryName, list: &List) -> Option<(ListPage, Duration)> {
        let mut question = self.question(Method::GET, list_path(repository, list));
        question.headers.insert(CACHE_CONTROL, HeaderValue::from_static("only-if-cached, max-stale"));
        let (_, response) = self.first(&question, |_| true).await?;
        if stated_length(&response).is_none_or(|length| length > MOST_LIST_BYTES as u64) {
            return None;
        }
        // In whole seconds, and a list must not get younger on its way to and fro.
        let age = Duration::from_secs(text(&response, &AGE)?.parse::<u64>().ok()?.saturating_add(1));
        let (media_type, link) = (text(&response, &CONTENT_TYPE)?, text(&response, &LINK));
        let filters = text(&response, &respond::FILTERS_APPLIED);
        let body = tokio::time::timeout(MANIFEST, response.bytes()).await.ok()?.ok()?;
        Some((ListPage { media_type, link, filters, body }, age))
    }

    fn question(&self, method: Method, path: String) -> Question {
        let (headers, resort) = (headers(&self.id), Resort::First);
        Question { method, path, headers, patience: HEADER, others_are_ahead: false, resort }
    }

    fn question_of(&self, digest: &Digest, method: Method, path: String) -> Question {
        Question { others_are_ahead: self.sent_on.get(digest).is_some(), ..self.question(method, path) }
    }

    /// The first answer with content. Where one gets it from another in turn, that one may have begun after it was asked:
    /// so all are asked once more.
    async fn first(&self, question: &Question, among: impl Fn(usize) -> bool) -> Option<(usize, Response)> {
        for _ in 0..2 {
            let mut is_elsewhere = false;
            let mut asking = self.ask(question, &among);
            while let Some((index, heard)) = asking.next().await {
                match heard {
                    Heard::Content(response) => return Some((index, response)),
                    Heard::Elsewhere => is_elsewhere = true,
                    Heard::Nothing => {}
                }
            }
            if !is_elsewhere {
                break;
            }
        }
        None
    }

    /// Asks all replicas that are not left alone now.
    fn ask(
        &self,
        question: &Question,
        among: impl Fn(usize) -> bool,
    ) -> FuturesUnordered<impl Future<Output = (usize, Heard)>> {
        let all = self.replicas.iter().enumerate();
        let willing = all.filter(|(index, replica)| replica.is_asked(question.resort) && among(*index));
        willing.map(|(index, replica)| async move { (index, replica.ask(question).await) }).collect()
    }
}

/// The manifest in an answer, or why its sender is of no use.
async fn manifest_in(response: Response, digest: &Digest) -> Result<FetchedManifest, Reason> {
    let is_private = is_private(&response);
    let media_type = text(&response, &CONTENT_TYPE).ok_or(Reason::Lies)?;
    if stated_length(&response).is_none_or(|length| length > manifest::MOST_BYTES as u64) {
        return Err(Reason::Lies);
    }
    let body = tokio::time::timeout(MANIFEST, response.bytes()).await.map_err(|_| Reason::Stalls)?;
    let bytes = body.map_err(|_| Reason::Silent)?;
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        return Err(Reason::Lies);
    }
    let manifest = Manifest { digest: digest.clone(), media_type, bytes };
    Ok(FetchedManifest { manifest, is_private, etag: None })
}

/// Differs between replicas and between runs: process ids do not, in containers. The kernel gives it at once, where the
/// first random byte of a library for TLS takes tens of milliseconds of a start.
fn fresh_id() -> String {
    let mut bytes = [0; 16];
    match getrandom(&mut bytes, GetRandomFlags::empty()) {
        Ok(_) => hex::encode(bytes),
        Err(_) => format!("{:x}-{:x}", std::process::id(), TagRecord::now()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_replicas_exactly_one_goes_first() {
        let peers = |n: u8| {
            let background = Background::default();
            let (folder, registry) = (tempfile::tempdir().unwrap(), "docker.io".parse().unwrap());
            let store = Arc::new(Store::open(folder.path().to_owned(), &registry, "1Gi".parse().unwrap()).unwrap());
            let parts = (&store, &Arc::new(Metrics::new(&registry)));
            let peers = Peers::new(Vec::new(), Trust::plain(background.clone()).unwrap(), parts, &background);
            assert_eq!(peers.id.len(), 32, "{n}");
            peers
        };
        let (one, other) = (peers(1), peers(2));
        let mut firsts = 0;
        for n in 0..64_u8 {
            let digest = Digest::of(Algorithm::Sha256, &[n]);
            assert_ne!(one.goes_before(&other.id, &digest), other.goes_before(&one.id, &digest));
            assert!(!one.goes_before(&one.id, &digest), "nobody waits for itself");
            firsts += u32::from(one.goes_before(&other.id, &digest));
        }
        assert!((8..56).contains(&firsts), "the load is shared: {firsts}");
    }
}
