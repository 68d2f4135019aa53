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

/// The request to pull one.
#[derive(Clone, PartialEq, prost::Message)]
struct PullImage {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

/// Other requests and all answers: what they hold is of no interest.
#[derive(Clone, PartialEq, prost::Message)]
struct Empty {}

/// A connection to a runtime.
#[derive(Debug, Clone)]
pub(super) struct Cri(Grpc<Channel>);

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

    /// Pulls an image; the error is what the runtime says.
    pub(super) async fn pull(&self, reference: &str, limit: Duration) -> Result<()> {
        let mut grpc = self.0.clone();
        let path = PathAndQuery::from_static("/runtime.v1.ImageService/PullImage");
        let image = Some(ImageSpec { image: reference.to_owned() });
        let pulling = async {
            grpc.ready().await.context("reach the runtime")?;
            let asked = Request::new(PullImage { image });
            let answered = grpc.unary::<_, Empty, _>(asked, path, ProstCodec::default()).await;
            answered.map(drop).map_err(|status| anyhow!("{}", status.message()))
        };
        let ended = tokio::time::timeout(limit, pulling).await;
        ended.unwrap_or_else(|_| Err(anyhow!("not pulled within {limit:?}")))
    }
}
