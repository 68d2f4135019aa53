//! One row on its stage: an upstream and a mirror of its own, content that was pulled, content that was not, and the fault.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::task::JoinSet;

use super::matrix::{FileFault, Injection, Row, VolumeFault};
use super::mirror::{Mirror, MirrorSpec, Place, own_address, prepare};
use super::names::{self, Names};
use super::volume::{Medium, Namespace};
use crate::cache::client::Request;
use crate::upstream::{Blob, Content, Fault, Image, On, Scheme, Upstream};

/// The repository of what was pulled before the fault.
pub(super) const WARM: &str = "library/warm";
/// Each kind of miss has its own, so that what a mirror remembers of one does not answer for another.
pub(super) const COLD: [&str; 6] = ["cold/tag", "cold/blob", "cold/head", "cold/crowd", "cold/flight", "cold/after"];
/// What containerd takes.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, */*";
const LAYER: usize = 700_000;
const PULL_LIMIT: Duration = Duration::from_secs(20);
const FLAP: Duration = Duration::from_secs(1);

/// One row's stage.
pub(super) struct Scene {
    pub(super) upstream: Arc<Upstream>,
    pub(super) mirror: Mirror,
    pub(super) warm: Image,
    /// What the tag points at after it moved.
    pub(super) moved: Image,
    /// Of each repository in [`COLD`], tagged `v1`.
    pub(super) cold: Vec<Image>,
    names: Option<Names>,
    flapping: JoinSet<()>,
    // Last, so that all that lives in it has ended.
    _folder: TempDir,
}

impl Scene {
    /// Starts everything and pulls the warm image.
    pub(super) async fn set(row: &Row, spec: &MirrorSpec) -> Result<Self> {
        let upstream = Upstream::start().await;
        upstream.require(Scheme::Bearer, &[]);
        if row.redirects {
            upstream.redirect_blobs();
        }
        let [warm, moved] = [1, 2].map(|seed| Content::image(seed, &[LAYER]));
        upstream.push(WARM, "v1", &warm);
        let cold: Vec<_> = COLD.iter().zip(10..).map(|(_, seed)| Content::image(seed, &[LAYER])).collect();
        for (repository, image) in COLD.iter().zip(&cold) {
            upstream.push(repository, "v1", image);
        }
        let folder = tempfile::tempdir().context("make a folder for a mirror")?;
        let address = own_address();
        let has = |kind: fn(&Injection) -> bool| row.injections.iter().any(kind);
        let names = match spec.by_name || has(|injection| matches!(injection, Injection::Names(_))) {
            true => Some(Names::start(address, folder.path()).await?),
            false => None,
        };
        if names.is_some() {
            upstream.name_token_service(names::TOKENS);
        }
        let place = place(row, folder.path(), address, names.as_ref(), &upstream)?;
        let mirror = Mirror::start(spec, place).await?;
        let mut scene = Self {
            upstream: Arc::new(upstream),
            mirror,
            warm,
            moved,
            cold,
            names,
            flapping: JoinSet::new(),
            _folder: folder,
        };
        if let Err(error) = scene.pull_warm().await {
            return Err(error.context(scene.mirror.output()));
        }
        if has(|injection| matches!(injection, Injection::File(_))) {
            scene.await_file().await?;
        }
        Ok(scene)
    }

    pub(super) fn get(&self, path: &str) -> Request {
        Request::get(self.mirror.place.listen(), path).header("Accept", ACCEPT)
    }

    pub(super) fn head(&self, path: &str) -> Request {
        Request::head(self.mirror.place.listen(), path).header("Accept", ACCEPT)
    }

    async fn pull_warm(&mut self) -> Result<()> {
        let paths = [format!("/v2/{WARM}/manifests/v1"), self.warm.manifest.manifest_path(WARM)];
        for path in paths.into_iter().chain(self.warm.blobs().map(|blob| blob.blob_path(WARM))) {
            let seen = self.get(&path).observe(PULL_LIMIT).await;
            let asked = self.upstream.requests().into_iter().map(|request| request.method + " " + &request.path);
            let asked = asked.collect::<Vec<_>>().join(", ");
            let status = seen.status;
            ensure!(
                status == Some(200) && !seen.hung,
                "{path} cannot be pulled while all is well: {status:?}, upstream saw {asked}"
            );
        }
        Ok(())
    }

    /// The last byte may arrive a moment before the file has its name.
    async fn await_file(&self) -> Result<()> {
        let wait = async {
            while self.files_of(&self.warm.layers[0]).is_empty() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(PULL_LIMIT, wait).await.context("no file holds the blob that was pulled")
    }

    /// Where on disk a blob is, whatever the file's name.
    pub(super) fn files_of(&self, blob: &Blob) -> Vec<PathBuf> {
        let holds = |path: &Path| {
            let is_as_long = std::fs::metadata(path).is_ok_and(|metadata| metadata.len() == blob.len());
            is_as_long && std::fs::read(path).is_ok_and(|bytes| bytes == blob.bytes)
        };
        files(&self.mirror.place.visible_data()).into_iter().filter(|path| holds(path)).collect()
    }

    /// Lets the fault begin.
    pub(super) async fn begin(&mut self, row: &Row) -> Result<()> {
        // Tokens at hand would hide that the token service is gone.
        self.upstream.revoke_tokens();
        for injection in &row.injections {
            match injection.clone() {
                Injection::Upstream(on, fault) => self.upstream.fault(on, fault).await,
                Injection::EveryOther(on, fault) => self.upstream.fault_every_other(on, fault),
                Injection::Flapping(on, fault) => self.flap(on, fault),
                Injection::TagMoves => self.upstream.push(WARM, "v1", &self.moved),
                Injection::Names(fault) => self.names.as_ref().context("a name server")?.set(Some(fault)),
                Injection::Volume(fault) => self.strike(fault)?,
                Injection::File(fault) => self.tamper(fault)?,
                Injection::Kill => {
                    self.mirror.kill();
                    self.mirror.spawn()?;
                }
            }
        }
        Ok(())
    }

    fn flap(&mut self, on: On, fault: Fault) {
        let upstream = Arc::clone(&self.upstream);
        self.flapping.spawn(async move {
            loop {
                upstream.fault(on.clone(), fault.clone()).await;
                tokio::time::sleep(FLAP).await;
                upstream.heal().await;
                tokio::time::sleep(FLAP).await;
            }
        });
    }

    fn namespace(&self) -> Result<&Namespace> {
        self.mirror.place.namespace.as_ref().context("a volume needs a namespace")
    }

    fn strike(&self, fault: VolumeFault) -> Result<()> {
        match fault {
            VolumeFault::Full => self.namespace()?.fill(),
            VolumeFault::Dead => self.namespace()?.shut_down(),
            VolumeFault::Frozen => self.namespace()?.freeze(),
        }
    }

    fn tamper(&self, fault: FileFault) -> Result<()> {
        for path in self.files_of(&self.warm.layers[0]) {
            let mut bytes = self.warm.layers[0].bytes.to_vec();
            let middle = bytes.len() / 2;
            match fault {
                FileFault::Truncate => bytes.truncate(middle),
                FileFault::Flip => bytes[middle] ^= 1,
                FileFault::Empty => bytes.clear(),
                FileFault::Remove => {
                    std::fs::remove_file(&path).context("remove a blob's file")?;
                    continue;
                }
            }
            // In place, as a failing disk would: the inode stays.
            std::fs::write(&path, bytes).context("tamper with a blob's file")?;
        }
        Ok(())
    }

    /// Whether the mirror can be killed and started while the fault lasts: not while its writes hang in the kernel.
    pub(super) fn can_restart(row: &Row) -> bool {
        !row.injections.iter().any(|injection| matches!(injection, Injection::Volume(VolumeFault::Frozen)))
    }

    /// Lets the fault end. A mirror that ended by itself is started again, as its supervisor would.
    pub(super) async fn end(&mut self, row: &Row) -> Result<()> {
        self.flapping.shutdown().await;
        for injection in &row.injections {
            match injection {
                Injection::Volume(VolumeFault::Full) => self.namespace()?.make_room()?,
                Injection::Volume(VolumeFault::Frozen) => self.namespace()?.thaw()?,
                Injection::Volume(VolumeFault::Dead) => {
                    self.mirror.kill();
                    self.namespace()?.repair()?;
                    self.mirror.spawn()?;
                }
                Injection::Names(_) => self.names.as_ref().context("a name server")?.set(None),
                _ => {}
            }
        }
        self.upstream.heal().await;
        if self.mirror.has_ended() {
            self.mirror.kill();
            self.mirror.spawn()?;
        }
        Ok(())
    }

    /// Files under a digest's name that hold something else; names as in an OCI layout or as distribution has them.
    pub(super) fn lies_on_disk(&self) -> Vec<PathBuf> {
        let mut lies = files(&self.mirror.place.visible_data());
        lies.retain(|path| {
            let name = |path: Option<&Path>| path?.file_name()?.to_str().map(str::to_owned);
            let own =
                name(Some(path)).filter(|_| name(path.parent().and_then(Path::parent)).as_deref() == Some("sha256"));
            let digest = match name(Some(path)).as_deref() {
                Some("data") => name(path.parent()),
                _ => own,
            };
            let is_other = |hex: String| {
                std::fs::read(path)
                    .is_ok_and(|bytes| crate::upstream::content::sha256(&bytes) != format!("sha256:{hex}"))
            };
            digest.filter(|hex| hex.len() == 64).is_some_and(is_other)
        });
        lies
    }
}

fn place(
    row: &Row,
    folder: &Path,
    address: std::net::Ipv4Addr,
    names: Option<&Names>,
    upstream: &Upstream,
) -> Result<Place> {
    let data = prepare(folder)?;
    let medium = row.injections.iter().find_map(|injection| match injection {
        Injection::Volume(VolumeFault::Full) => Some(Medium::Small),
        Injection::Volume(VolumeFault::Dead | VolumeFault::Frozen) => Some(Medium::Disk),
        _ => None,
    });
    let namespace = match (medium, names) {
        (None, None) => None,
        (medium, names) => Some(Namespace::start(medium, &data, names.map(Names::resolv_conf))?),
    };
    let host = names.map_or_else(|| upstream.address().ip().to_string(), |_| names::UPSTREAM.to_owned());
    let upstream = format!("http://{host}:{}", upstream.address().port());
    Ok(Place { folder: folder.to_owned(), upstream, address, namespace })
}

/// All files below a folder; what cannot be read is not there.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(&folder).into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                Ok(kind) if kind.is_file() => found.push(entry.path()),
                _ => {}
            }
        }
    }
    found
}
