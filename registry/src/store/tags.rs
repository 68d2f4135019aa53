//! What tags mean, as upstream last said.

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::{read, write::Writer};
use crate::{
    digest::Digest,
    recent::{Changes, Recent},
    reference::{RepositoryName, Tag},
};

/// What a tag points to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Target {
    /// The manifest.
    #[serde(serialize_with = "write_digest", deserialize_with = "read_digest")]
    pub digest: Digest,
    /// Its media type.
    pub media_type: String,
    /// Its size.
    pub size: u64,
}

/// `_tags/<tag>`
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TagRecord {
    /// What upstream last said.
    pub current: Target,
    /// What it said before that.
    #[serde(default)]
    pub previous: Option<Target>,
    /// The last target before these that was completely here.
    pub last_complete: Option<Target>,
    /// When upstream last said so, in milliseconds since 1970.
    pub validated_at: u64,
    /// Upstream's validator.
    pub etag: Option<String>,
    /// Upstream's last word is that there is no such tag.
    #[serde(default)]
    pub is_gone: bool,
}

impl TagRecord {
    /// The time for `validated_at`.
    pub fn now() -> u64 {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
    }

    /// Whether upstream said so less than this ago.
    pub fn is_within(&self, tag_ttl: Duration) -> bool {
        !self.is_gone && self.age().is_some_and(|age| age < tag_ttl)
    }

    /// Time since upstream last said so; `None` if that lies in the future, as after a clock was set back.
    pub fn age(&self) -> Option<Duration> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
        now.checked_sub(Duration::from_millis(self.validated_at))
    }
}

/// All tags.
pub struct Tags {
    repositories: PathBuf,
    writer: Writer,
    changes: Changes,
    recent: Recent<(RepositoryName, Tag), TagRecord>,
}

impl Tags {
    pub(super) fn new(repositories: PathBuf, writer: Writer) -> Self {
        let changes = Changes::default();
        Self { repositories, writer, recent: Recent::new(changes.clone()), changes }
    }

    fn path(&self, repository: &RepositoryName, tag: &Tag) -> PathBuf {
        self.repositories.join(repository.as_str()).join("_tags").join(tag.as_str())
    }

    /// The record; a broken one is none.
    pub fn get(&self, repository: &RepositoryName, tag: &Tag) -> Option<TagRecord> {
        let seen = self.recent.begin();
        let record: TagRecord = read::small(&self.path(repository, tag))?;
        self.recent.put(seen, (repository.clone(), tag.clone()), record.clone(), 0);
        Some(record)
    }

    /// The record, if it was read a moment ago; does no I/O.
    pub fn get_recent(&self, repository: &RepositoryName, tag: &Tag) -> Option<TagRecord> {
        self.recent.get(&(repository.clone(), tag.clone()))
    }

    /// Puts a record in place.
    pub fn put(&self, repository: &RepositoryName, tag: &Tag, record: &TagRecord) -> io::Result<()> {
        let written = self.writer.record(&self.path(repository, tag), &serde_json::to_vec(record)?);
        self.changes.note();
        written
    }
}

fn write_digest<S: Serializer>(digest: &Digest, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(digest)
}

fn read_digest<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Digest, D::Error> {
    String::deserialize(deserializer)?.parse().map_err(de::Error::custom)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn any_bytes_are_a_record_or_none(bytes: Vec<u8>, cut in 0usize..200) {
            let _ = serde_json::from_slice::<TagRecord>(&bytes);
            let hex = "0".repeat(64);
            let whole = format!(r#"{{"current":{{"digest":"sha256:{hex}","mediaType":"a/b","size":1}},"validatedAt":1}}"#);
            // Records are not synced: after a power loss any part of one may be there.
            let part = whole.get(..cut.min(whole.len())).unwrap_or(&whole);
            let read = serde_json::from_str::<TagRecord>(part).ok();
            prop_assert_eq!(read.is_some(), part.len() == whole.len());
            if let Some(record) = read {
                let again: TagRecord = serde_json::from_slice(&serde_json::to_vec(&record).unwrap()).unwrap();
                prop_assert_eq!(again, record);
            }
        }
    }
}
