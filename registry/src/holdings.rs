//! What the store holds of a repository, and whether the repository may have it. Does disk I/O, asks nobody.

use std::{collections::BTreeSet, io, os::unix::fs::FileExt, time::SystemTime};

use crate::{
    digest::Digest,
    manifest::{self, Manifest, Named},
    reference::RepositoryName,
    serve::BLOB_TYPE,
    store::{
        Store,
        blobs::StoredBlob,
        links::{Kind, Link},
    },
    upstream::FetchedManifest,
};

/// A blob, seen from one repository.
pub enum Holding {
    /// Here, and the repository has it.
    Hit(StoredBlob),
    /// Here, but only upstream knows whether this repository has it.
    Unproven(StoredBlob),
    /// In this repository that digest is a manifest.
    IsManifest,
    /// Not here.
    Absent {
        /// Whether the repository is known to have it all the same.
        is_linked: bool,
    },
}

/// Looks for a blob. A blob that is here belongs to every repository that links it or, if public, to any.
pub fn blob(store: &Store, repository: &RepositoryName, digest: &Digest) -> Holding {
    let link = store.links.get(repository, digest);
    let blob = store.blobs.open(digest);
    if let Some(Link { kind: Kind::Manifest, is_hearsay, .. }) = link
        && !(is_hearsay && blob.as_ref().is_some_and(|blob| !is_manifest(blob)))
    {
        return Holding::IsManifest;
    }
    let Some(mut blob) = blob else { return Holding::Absent { is_linked: link.is_some() } };
    match link {
        // A blob that was hashed in this boot has the right size.
        Some(link) if !blob.is_verified && link.size.is_some_and(|size| size != blob.size) => {
            blob.is_disputed = true;
            Holding::Hit(blob)
        }
        Some(_) => Holding::Hit(blob),
        None if !blob.is_public => Holding::Unproven(blob),
        None if is_manifest(&blob) => Holding::IsManifest,
        None => Holding::Hit(blob),
    }
}

fn is_manifest(blob: &StoredBlob) -> bool {
    read_small(blob).is_some_and(|bytes| manifest::recognise(&bytes).is_some())
}

/// Looks for a manifest. Its bytes are hashed each time they are read: they are few, and everything hangs on them.
pub fn manifest(store: &Store, repository: &RepositoryName, digest: &Digest) -> Option<(Manifest, StoredBlob)> {
    let seen = store.recent_manifests.begin();
    let link = store.links.get(repository, digest);
    if link.as_ref().is_some_and(|link| link.kind == Kind::Blob) {
        return None;
    }
    let blob = store.blobs.open(digest)?;
    if link.is_none() && !blob.is_public {
        return None;
    }
    let bytes = read_small(&blob)?;
    if Digest::of(digest.algorithm(), &bytes) != *digest {
        store.blobs.set_aside(digest, Some(&blob.file));
        return None;
    }
    let media_type = link.map(|link| link.media_type).or_else(|| manifest::recognise(&bytes))?;
    let found = Manifest { digest: digest.clone(), media_type, bytes: bytes.into() };
    let (key, size) = ((repository.clone(), digest.clone()), found.bytes.len());
    store.recent_manifests.put(seen, key, (found.clone(), blob.stored), size);
    Some((found, blob))
}

/// A manifest that `manifest` found a moment ago, and since when it is here; does no I/O.
pub fn recent_manifest(store: &Store, repository: &RepositoryName, digest: &Digest) -> Option<(Manifest, SystemTime)> {
    store.recent_manifests.get(&(repository.clone(), digest.clone()))
}

fn read_small(blob: &StoredBlob) -> Option<Vec<u8>> {
    let size = usize::try_from(blob.size).ok().filter(|size| *size <= manifest::MOST_BYTES)?;
    let mut bytes = vec![0; size];
    blob.file.read_exact_at(&mut bytes, 0).ok()?;
    Some(bytes)
}

/// Keeps a manifest, and links what it names: layers that came by way of another repository are then hits here too.
pub fn keep_manifest(store: &Store, repository: &RepositoryName, fetched: &FetchedManifest) -> io::Result<()> {
    let FetchedManifest { manifest, is_private, etag: _ } = fetched;
    store.keep_small(&manifest.digest, &manifest.bytes, !is_private)?;
    let size = Some(manifest.bytes.len() as u64);
    let link = Link { kind: Kind::Manifest, media_type: manifest.media_type.clone(), size, is_hearsay: false };
    store.links.put(repository, &manifest.digest, &link)?;
    let names = manifest::names(&manifest.bytes);
    for (kind, named) in [(Kind::Manifest, names.manifests), (Kind::Blob, names.blobs)] {
        for Named { digest, media_type, size, platform: _ } in named {
            let link = Link { kind, media_type, size: Some(size), is_hearsay: kind == Kind::Manifest };
            let is_hearsay = || store.links.get(repository, &digest).is_some_and(|known| known.is_hearsay);
            // What an image names as a layer is one, whatever an index has called it.
            if kind == Kind::Blob && is_hearsay() {
                store.links.put(repository, &digest, &link)?;
            } else {
                store.links.add(repository, &digest, &link)?;
            }
        }
    }
    Ok(())
}

/// Links a blob that was served from a repository, unless it is linked already; gives the size that its link has now.
pub fn link_blob(
    store: &Store,
    repository: &RepositoryName,
    digest: &Digest,
    size: Option<u64>,
) -> io::Result<Option<u64>> {
    let link = Link { kind: Kind::Blob, media_type: BLOB_TYPE.to_owned(), size, is_hearsay: false };
    store.links.add(repository, digest, &link)
}

/// For which platforms an image is completely here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Coverage {
    /// A single image, complete.
    Everything,
    /// An index, complete for these.
    Platforms(BTreeSet<String>),
}

impl Coverage {
    /// Whether nobody loses who could be served by `elder`.
    pub fn covers(&self, elder: &Self) -> bool {
        match (self, elder) {
            (Self::Everything, _) => true,
            (Self::Platforms(_), Self::Everything) => self.is_useful(),
            (Self::Platforms(mine), Self::Platforms(theirs)) => mine.is_superset(theirs),
        }
    }

    /// Whether anything can be pulled.
    pub fn is_useful(&self) -> bool {
        match self {
            Self::Everything => true,
            Self::Platforms(platforms) => !platforms.is_empty(),
        }
    }
}

/// How much of an image is here.
pub fn coverage(store: &Store, repository: &RepositoryName, digest: &Digest) -> Coverage {
    let nothing = || Coverage::Platforms(BTreeSet::new());
    let Some((found, _)) = manifest(store, repository, digest) else { return nothing() };
    let names = manifest::names(&found.bytes);
    if names.manifests.is_empty() {
        return if has_all(store, &names.blobs) { Coverage::Everything } else { nothing() };
    }
    let is_here = |entry: &Named| {
        manifest(store, repository, &entry.digest)
            .is_some_and(|(child, _)| has_all(store, &manifest::names(&child.bytes).blobs))
    };
    let here = names.manifests.iter().filter(|entry| is_here(entry));
    Coverage::Platforms(here.map(|entry| entry.platform.clone().unwrap_or_default()).collect())
}

/// The blobs of an image that are not here, for the platforms of which there is a manifest here; `None` where there is none.
pub fn missing(store: &Store, repository: &RepositoryName, digest: &Digest) -> Option<Vec<Digest>> {
    let names_of = |digest: &Digest| Some(manifest::names(&manifest(store, repository, digest)?.0.bytes));
    let names = names_of(digest)?;
    let images = if names.manifests.is_empty() {
        vec![names]
    } else {
        names.manifests.iter().filter_map(|entry| names_of(&entry.digest)).collect()
    };
    let absent = |blob: &Named| !store.blobs.has(&blob.digest, Some(blob.size));
    let blobs = |image: manifest::Names| image.blobs.into_iter().filter(absent).map(|blob| blob.digest);
    (!images.is_empty()).then(|| images.into_iter().flat_map(blobs).collect())
}

fn has_all(store: &Store, blobs: &[Named]) -> bool {
    blobs.iter().all(|blob| store.blobs.has(&blob.digest, Some(blob.size)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;
    use crate::digest::Algorithm;

    const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
    const IMAGE: &str = "application/vnd.oci.image.manifest.v1+json";

    fn opened(folder: &TempDir) -> Store {
        Store::open(folder.path().to_owned(), &"docker.io".parse().unwrap(), "1Gi".parse().unwrap()).unwrap()
    }

    fn layer() -> (Digest, Vec<u8>) {
        let bytes = vec![7; 1 << 20];
        (Digest::of(Algorithm::Sha256, &bytes), bytes)
    }

    fn keep(store: &Store, repository: &RepositoryName, document: &serde_json::Value) {
        let bytes = document.to_string().into_bytes();
        let digest = Digest::of(Algorithm::Sha256, &bytes);
        let manifest = Manifest { digest, media_type: "a/b".to_owned(), bytes: bytes.into() };
        keep_manifest(store, repository, &FetchedManifest { manifest, is_private: false, etag: None }).unwrap();
    }

    fn index_of(digest: &Digest, media_type: &str) -> serde_json::Value {
        let entry = json!({"digest": digest.to_string(), "mediaType": media_type, "size": 1 << 20});
        json!({"schemaVersion": 2, "manifests": [entry]})
    }

    fn image_of(digest: &Digest, size: u64) -> serde_json::Value {
        json!({"schemaVersion": 2, "layers": [{"digest": digest.to_string(), "mediaType": LAYER, "size": size}]})
    }

    #[test]
    fn a_manifest_that_lies_about_a_size_costs_nobody_a_blob() {
        let (folder, liar) = (tempfile::tempdir().unwrap(), "evil/app".parse().unwrap());
        let (digest, bytes) = layer();
        let store = opened(&folder);
        store.keep_small(&digest, &bytes, true).unwrap();
        keep(&store, &liar, &image_of(&digest, 10));
        // As after a reboot: nobody knows what was verified.
        let path = folder.path().join("blobs/sha256").join(&digest.hex()[..2]).join(digest.hex());
        std::fs::File::options().write(true).open(path).unwrap().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert!(matches!(blob(&store, &liar, &digest), Holding::Hit(_)));
        assert!(store.blobs.has(&digest, None));
    }

    #[test]
    fn what_an_index_lists_beside_manifests_are_blobs() {
        // As build tools keep their caches: an index of layers.
        let (folder, name) = (tempfile::tempdir().unwrap(), "library/app".parse().unwrap());
        let (store, (digest, _)) = (opened(&folder), layer());
        keep(&store, &name, &index_of(&digest, LAYER));
        assert!(matches!(blob(&store, &name, &digest), Holding::Absent { is_linked: true }));
    }

    #[test]
    fn an_index_that_takes_a_layer_for_a_manifest_is_not_believed() {
        let (folder, name) = (tempfile::tempdir().unwrap(), "library/app".parse().unwrap());
        let (store, (digest, bytes)) = (opened(&folder), layer());
        keep(&store, &name, &index_of(&digest, IMAGE));
        assert!(matches!(blob(&store, &name, &digest), Holding::IsManifest), "so far nobody knows better");
        store.keep_small(&digest, &bytes, true).unwrap();
        assert!(matches!(blob(&store, &name, &digest), Holding::Hit(_)), "it is no manifest");
        let (other, (digest, _)) = (tempfile::tempdir().unwrap(), layer());
        let store = opened(&other);
        keep(&store, &name, &index_of(&digest, IMAGE));
        keep(&store, &name, &image_of(&digest, 1 << 20));
        assert!(
            matches!(blob(&store, &name, &digest), Holding::Absent { is_linked: true }),
            "an image has it as a layer"
        );
    }
}
