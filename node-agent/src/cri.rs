//! The few calls of the Container Runtime Interface that the agent makes, over the runtime's socket. Each has a deadline.
//! <https://github.com/kubernetes/cri-api/blob/master/pkg/apis/runtime/v1/api.proto>

use http::uri::PathAndQuery;
use prost::Message;
use std::path::Path;
use std::time::Duration;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};
use tonic_prost::ProstCodec;

const CONNECT: Duration = Duration::from_secs(2);
/// A runtime that goes to an upstream which is away would be waited for in vain.
const PULL: Duration = Duration::from_secs(10);
const OTHER: Duration = Duration::from_secs(5);

/// A connection to the runtime.
#[derive(Debug, Clone)]
pub struct Cri {
    grpc: Grpc<Channel>,
    socket: String,
}

/// Why a call came to nothing.
#[derive(Debug, thiserror::Error)]
pub enum CriFault {
    /// Nobody answered in time: this says nothing of what was asked.
    #[error("the container runtime does not answer on {socket}: {why}")]
    Silent {
        /// The socket.
        socket: String,
        /// What the connection said.
        why: String,
    },
    /// The runtime answered with an error.
    #[error("{0}")]
    Refused(String),
}

#[derive(Clone, PartialEq, Message)]
struct ImageSpec {
    #[prost(string, tag = "1")]
    image: String,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct PullImageResponse {
    #[prost(string, tag = "1")]
    image_ref: String,
}

#[derive(Clone, PartialEq, Message)]
struct RemoveImageRequest {
    #[prost(message, optional, tag = "1")]
    image: Option<ImageSpec>,
}

#[derive(Clone, PartialEq, Message)]
struct RemoveImageResponse {}

#[derive(Clone, PartialEq, Message)]
struct VersionRequest {}

#[derive(Clone, PartialEq, Message)]
struct VersionResponse {
    #[prost(string, tag = "2")]
    runtime_name: String,
    #[prost(string, tag = "3")]
    runtime_version: String,
}

impl Cri {
    /// Connects to the runtime's socket.
    ///
    /// # Errors
    /// Nobody listens there.
    pub async fn connect(socket: &Path) -> Result<Self, CriFault> {
        let socket = socket.display().to_string();
        let silent = |error: tonic::transport::Error| {
            let why = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
            CriFault::Silent { socket: socket.clone(), why }
        };
        let endpoint = Endpoint::from_shared(format!("unix://{socket}")).map_err(silent)?;
        let channel = endpoint.connect_timeout(CONNECT).connect().await.map_err(silent)?;
        Ok(Self { grpc: Grpc::new(channel), socket })
    }

    /// Pulls an image, as the kubelet would for a Pod without secrets.
    ///
    /// # Errors
    /// It was not pulled.
    pub async fn pull(&mut self, reference: &str) -> Result<(), CriFault> {
        let image = Some(ImageSpec { image: reference.to_owned() });
        let path = PathAndQuery::from_static("/runtime.v1.ImageService/PullImage");
        self.call::<_, PullImageResponse>(path, PullImageRequest { image }, PULL).await.map(drop)
    }

    /// Removes an image; one that is not there is no error.
    ///
    /// # Errors
    /// It may still be there.
    pub async fn remove(&mut self, reference: &str) -> Result<(), CriFault> {
        let image = Some(ImageSpec { image: reference.to_owned() });
        let path = PathAndQuery::from_static("/runtime.v1.ImageService/RemoveImage");
        self.call::<_, RemoveImageResponse>(path, RemoveImageRequest { image }, OTHER).await.map(drop)
    }

    /// Name and version, as the kubelet puts them into the Node: `containerd://2.4.2`.
    ///
    /// # Errors
    /// The runtime does not say.
    pub async fn version(&mut self) -> Result<String, CriFault> {
        let path = PathAndQuery::from_static("/runtime.v1.RuntimeService/Version");
        let VersionResponse { runtime_name, runtime_version } = self.call(path, VersionRequest {}, OTHER).await?;
        Ok(format!("{runtime_name}://{}", runtime_version.trim_start_matches('v')))
    }

    async fn call<M, R>(&mut self, path: PathAndQuery, message: M, within: Duration) -> Result<R, CriFault>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let Self { grpc, socket } = self;
        let silent = |why: &str| CriFault::Silent { socket: socket.clone(), why: why.to_owned() };
        let mut request = Request::new(message);
        request.set_timeout(within);
        let call = async {
            grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
            grpc.unary(request, path, ProstCodec::default()).await
        };
        match tokio::time::timeout(within, call).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(match status.code() {
                // The interface is not served, or not yet.
                Code::Unavailable | Code::Cancelled | Code::DeadlineExceeded | Code::Unimplemented => {
                    silent(status.message())
                }
                _ => CriFault::Refused(status.message().to_owned()),
            }),
            Err(_) => Err(silent(&format!("no answer within {within:?}"))),
        }
    }
}
