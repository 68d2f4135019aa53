//! The programs that a test cluster is made of: built once from their Go modules into a cache folder, or installed from
//! Debian's packages. It knows nothing of clusters.
//!
//! [`Toolchain::ready`] takes minutes the first time and milliseconds afterwards. Concurrent callers, also in other
//! processes, wait for one builder.

mod debian;
mod folder;
mod go;
mod progress;
mod runtimes;

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

pub use folder::cache_folder;
pub use progress::Progress;
pub use runtimes::{Runtime, SERIES};

use go::Module;

const KUBERNETES: Module = Module {
    title: "Kubernetes",
    name: "kubernetes",
    version: "v1.36.3",
    estimate: "about 5 minutes",
    files: &[
        ("go.mod", include_str!("../toolchain/kubernetes/go.mod")),
        ("go.sum", include_str!("../toolchain/kubernetes/go.sum")),
        ("main.go", include_str!("../toolchain/kubernetes/main.go")),
    ],
    packages: &["."],
    // Without a version the kubelet calls itself v0.0.0, which the API server's admission dislikes.
    ldflags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 \
              -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
    tags: "",
    links: &["kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet", "kubectl"],
};

const CONTAINERD: Module = Module {
    title: "containerd",
    name: "containerd",
    version: "v2.4.2",
    estimate: "about 1 minute",
    files: &[
        ("go.mod", include_str!("../toolchain/containerd/go.mod")),
        ("go.sum", include_str!("../toolchain/containerd/go.sum")),
    ],
    packages: &[
        "github.com/containerd/containerd/v2/cmd/containerd",
        "github.com/containerd/containerd/v2/cmd/containerd-shim-runc-v2",
        "github.com/containerd/containerd/v2/cmd/ctr",
    ],
    ldflags: "-s -w -X github.com/containerd/containerd/v2/version.Version=v2.4.2",
    tags: "no_btrfs,no_devmapper,no_zfs",
    links: &[],
};

const DISTRIBUTION: Module = Module {
    title: "the distribution registry",
    name: "distribution",
    version: "v3.1.2",
    estimate: "about 1 minute",
    files: &[
        ("go.mod", include_str!("../toolchain/distribution/go.mod")),
        ("go.sum", include_str!("../toolchain/distribution/go.sum")),
    ],
    packages: &["github.com/distribution/distribution/v3/cmd/registry"],
    ldflags: "-s -w",
    tags: "",
    links: &[],
};

const HELM: Module = Module {
    title: "Helm",
    name: "helm",
    version: "v4.3.1",
    estimate: "about 2 minutes",
    files: &[
        ("go.mod", include_str!("../toolchain/helm/go.mod")),
        ("go.sum", include_str!("../toolchain/helm/go.sum")),
    ],
    packages: &["helm.sh/helm/v4/cmd/helm"],
    ldflags: "-s -w -X helm.sh/helm/v4/internal/version.version=v4.3.1",
    tags: "",
    links: &[],
};

const PROMTOOL: Module = Module {
    title: "promtool",
    name: "promtool",
    version: "v0.313.5",
    estimate: "about 2 minutes",
    files: &[
        ("go.mod", include_str!("../toolchain/promtool/go.mod")),
        ("go.sum", include_str!("../toolchain/promtool/go.sum")),
    ],
    packages: &["github.com/prometheus/prometheus/cmd/promtool"],
    ldflags: "-s -w",
    // Without the discovery of twenty clouds.
    tags: "remove_all_sd",
    links: &[],
};

const ASSESS: Module = Module {
    title: "the health checks of Flux and Argo CD",
    name: "assess",
    version: "v3.2.12",
    estimate: "about 5 minutes",
    files: &[
        ("go.mod", include_str!("../toolchain/assess/go.mod")),
        ("go.sum", include_str!("../toolchain/assess/go.sum")),
        ("main.go", include_str!("../toolchain/assess/main.go")),
    ],
    packages: &["."],
    ldflags: "-s -w",
    tags: "",
    links: &[],
};

/// Every program of a cluster, ready to run.
#[derive(Debug, Clone)]
pub struct Toolchain {
    folders: Vec<PathBuf>,
}

impl Toolchain {
    /// Builds and installs what is missing.
    ///
    /// # Errors
    /// One sentence with the mend when something is missing that cannot be made: Go, root, Debian's apt.
    pub async fn ready() -> Result<Self> {
        tokio::task::spawn_blocking(Self::build).await.context("the toolchain's builder ended early")?
    }

    fn build() -> Result<Self> {
        if !rustix::process::geteuid().is_root() {
            bail!("a test cluster is made of namespaces and mounts and needs root: run this again with `sudo -E`");
        }
        debian::install_missing(debian::CLUSTER)?;
        let folders = [KUBERNETES, CONTAINERD, DISTRIBUTION].iter().map(go::build).collect::<Result<_>>()?;
        Ok(Self { folders })
    }

    /// The distribution registry alone, and its version: for what needs no cluster.
    ///
    /// # Errors
    /// Fails when it cannot be built.
    pub fn distribution() -> Result<(PathBuf, &'static str)> {
        Ok((go::build(&DISTRIBUTION)?.join("registry"), DISTRIBUTION.version))
    }

    /// Helm alone: it renders charts without a cluster.
    ///
    /// # Errors
    /// Fails when it cannot be built.
    pub fn helm() -> Result<PathBuf> {
        Ok(go::build(&HELM)?.join("helm"))
    }

    /// Prometheus' judge of rules.
    ///
    /// # Errors
    /// Fails when it cannot be built.
    pub fn promtool() -> Result<PathBuf> {
        Ok(go::build(&PROMTOOL)?.join("promtool"))
    }

    /// Our program around the code by which Flux and Argo CD judge objects.
    ///
    /// # Errors
    /// Fails when it cannot be built.
    pub fn assess() -> Result<PathBuf> {
        Ok(go::build(&ASSESS)?.join("assess"))
    }

    /// kubectl alone: it renders kustomizations without a cluster.
    ///
    /// # Errors
    /// Fails when it cannot be built.
    pub fn kubectl() -> Result<PathBuf> {
        Ok(go::build(&KUBERNETES)?.join("kubectl"))
    }

    /// Installs nginx, which `make bench` compares the cache with.
    ///
    /// # Errors
    /// One sentence with the mend when it cannot be installed.
    pub fn install_nginx() -> Result<()> {
        debian::install_missing(&["nginx"])
    }

    /// Where a program is that was built from a Go module.
    ///
    /// # Errors
    /// Fails for a program that is none of the toolchain's.
    pub fn program(&self, name: &str) -> Result<PathBuf> {
        self.folders
            .iter()
            .map(|folder| folder.join(name))
            .find(|path| path.exists())
            .with_context(|| format!("the toolchain has no program {name}"))
    }

    /// A `PATH` that finds the built programs first, then the system's, including its `sbin` folders.
    #[must_use]
    pub fn search_path(&self) -> OsString {
        let mut path = OsString::new();
        for folder in &self.folders {
            path.push(folder);
            path.push(":");
        }
        path.push("/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
        path
    }
}

/// The first file of that name in the folders of a `PATH`-like list.
fn find_program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .chain([Path::new("/usr/local/go/bin").join(name)])
        .find(|candidate| candidate.is_file())
}
