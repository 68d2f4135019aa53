//! Pulls by the Container Runtime Interface, as the kubelet does; the agent's client is not used, because it is what is tested.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use http::uri::PathAndQuery;
use tonic::Request;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic_prost::ProstCodec;

#[derive(Clone, PartialEq, prost::Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

/// The request to pull one, or to tell of it.
#[derive(Clone, PartialEq, prost::Message)]
struct OfImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// What the runtime has under a name.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageStatus {
    #[prost(message, optional, tag = "1")]
    image: Option<Image>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Image {
    #[prost(bool, tag = "8")]
    pinned: bool,
}

/// Other requests and answers: what they hold is of no interest.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// A connection to a runtime.
#[derive(Debug, Clone)]
pub struct Cri(Grpc<Channel>);

impl Cri {
    pub(super) async fn connect(socket: &Path) -> Result<Self> {
        let endpoint = Endpoint::from_shared(format!("unix://{}", socket.display())).context("name a socket")?;
        let channel = endpoint.connect().await.with_context(|| format!("connect to {}", socket.display()))?;
        Ok(Self(Grpc::new(channel)))
    }

    /// Whether it serves the interface already.
    pub(super) async fn is_ready(&self) -> bool {
        let mut grpc = self.0.clone();
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Version");
        grpc.ready().await.is_ok()
            && grpc.unary::<_, Empty, _>(Request::new(Empty {}), path, ProstCodec::default()).await.is_ok()
    }

    /// Whether the kubelet is told not to remove an image; None while there is no such image.
    ///
    /// # Errors
    /// Fails with what the runtime says.
    pub async fn is_pinned(&self, reference: &str) -> Result<Option<bool>> {
        let mut grpc = self.0.clone();
        let path = PathAndQuery::from_static("/runtime.v1.ImageService/ImageStatus");
        grpc.ready().await.context("reach the runtime")?;
        let asked = Request::new(OfImage { image: Some(ImageSpec { image: reference.to_owned() }) });
        let answered = grpc.unary::<_, ImageStatus, _>(asked, path, ProstCodec::default()).await;
        let status = answered.map_err(|status| anyhow!("{}", status.message()))?;
        Ok(status.into_inner().image.map(|image| image.pinned))
    }

    /// Pulls an image; the error is what the runtime says.
    ///
    /// # Errors
    /// Fails with that, or when `limit` has passed.
    pub async fn pull(&self, reference: &str, limit: Duration) -> Result<()> {
        let mut grpc = self.0.clone();
        let path = PathAndQuery::from_static("/runtime.v1.ImageService/PullImage");
        let image = Some(ImageSpec { image: reference.to_owned() });
        let pulling = async {
            grpc.ready().await.context("reach the runtime")?;
            let asked = Request::new(OfImage { image });
            let answered = grpc.unary::<_, Empty, _>(asked, path, ProstCodec::default()).await;
            answered.map(drop).map_err(|status| anyhow!("{}", status.message()))
        };
        let ended = tokio::time::timeout(limit, pulling).await;
        ended.unwrap_or_else(|_| Err(anyhow!("not pulled within {limit:?}")))
    }
}
