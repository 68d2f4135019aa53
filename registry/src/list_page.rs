//! A page of a list of upstream's, and how it is written down: a line of JSON, then the page as it came. Pure.

use bytes::Bytes;
use serde::{Deserialize, Serialize, de::IgnoredAny};

/// A page of a list, as upstream wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListPage {
    /// Its media type.
    pub media_type: String,
    /// Where the next page is, relative to this registry.
    pub link: Option<String>,
    /// The filters that upstream applied.
    pub filters: Option<String>,
    /// The page.
    pub body: Bytes,
}

#[derive(Deserialize)]
struct Document {
    errors: Option<IgnoredAny>,
}

/// Whether it may be a list: no digest vouches for it, and under a 200 stands an error or a body that was cut at times.
pub fn is_list(body: &[u8]) -> bool {
    serde_json::from_slice::<Document>(body).is_ok_and(|document| document.errors.is_none())
}

/// What is known of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownList {
    /// Upstream sent this page.
    Page(ListPage),
    /// Upstream said that there is no such list.
    Absent,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    /// `None`: there is no such list.
    media_type: Option<String>,
    link: Option<String>,
    filters: Option<String>,
    /// Length of the page: a file that was cut is no record.
    size: usize,
}

impl KnownList {
    /// For the disk.
    pub fn encode(&self) -> serde_json::Result<Vec<u8>> {
        let (head, body) = match self {
            Self::Absent => (Head { media_type: None, link: None, filters: None, size: 0 }, &Bytes::new()),
            Self::Page(ListPage { media_type, link, filters, body }) => {
                let (link, filters) = (link.clone(), filters.clone());
                (Head { media_type: Some(media_type.clone()), link, filters, size: body.len() }, body)
            }
        };
        let mut bytes = serde_json::to_vec(&head)?;
        bytes.push(b'\n');
        bytes.extend_from_slice(body);
        Ok(bytes)
    }

    /// From the disk; `None` if it is broken.
    pub fn decode(bytes: Vec<u8>) -> Option<Self> {
        let end = bytes.iter().position(|byte| *byte == b'\n')?;
        let Head { media_type, link, filters, size } = serde_json::from_slice(&bytes[..end]).ok()?;
        let body = Bytes::from(bytes).slice(end + 1..);
        if body.len() != size {
            return None;
        }
        Some(match media_type {
            None => Self::Absent,
            Some(media_type) => Self::Page(ListPage { media_type, link, filters, body }),
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_is_read(media_type in ".*", link in any::<Option<String>>(), body in any::<Vec<u8>>()) {
            let page = KnownList::Page(ListPage { media_type, link, filters: None, body: body.into() });
            let bytes = page.encode().unwrap();
            prop_assert_eq!(KnownList::decode(bytes.clone()), Some(page));
            for cut in 0..bytes.len() {
                prop_assert_eq!(KnownList::decode(bytes[..cut].to_vec()), None);
            }
        }

        #[test]
        fn never_panics(bytes in any::<Vec<u8>>()) {
            KnownList::decode(bytes);
        }
    }

    #[test]
    fn an_absence() {
        assert_eq!(KnownList::decode(KnownList::Absent.encode().unwrap()), Some(KnownList::Absent));
    }
}
