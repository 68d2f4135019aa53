//! Runs the parts of the cache (run/assemble.rs) until a signal, and stops them in order. Asks upstream nothing by itself.

mod assemble;
mod failed;

use std::{
    io,
    sync::Arc,
    time::{Duration, Instant},
};

use futures::future::BoxFuture;
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    net::TcpListener,
    signal::unix::{Signal, SignalKind, signal},
    task::JoinSet,
};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

use self::assemble::{Cache, TlsParts};
pub use self::failed::StartFailed;
use crate::{
    args::Args,
    background::Background,
    body::Body,
    metrics::Listener,
    pins::{self, Pins},
    pull::Pull,
    registry_host::RegistryHost,
    server,
    tokens::{Role, Tokens},
    upkeep,
};

/// Bodies on their way get this long at the end; a relay resumes them elsewhere.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs the cache until SIGTERM or SIGINT; then bodies on their way have some seconds, until the next signal, to end.
pub async fn run(args: Args) -> Result<(), StartFailed> {
    let began = Instant::now();
    let mut signals = Signals::listen().map_err(StartFailed::Signals)?;
    let background = Background::default();
    let Cache { registry, store, upstream, metrics, pull, tag_ttl, admin, plain, secure, admin_socket } =
        Cache::assemble(args, &background).await?;

    announce(plain.as_ref(), secure.as_ref().map(|(listener, _)| listener), &admin_socket, &registry);
    let parts = pins::Parts {
        registry: registry.clone(),
        store: Arc::clone(&store),
        upstream: Arc::clone(&upstream),
        pull: Arc::clone(&pull),
        metrics: Arc::clone(&metrics),
        tag_ttl,
        background: background.clone(),
    };
    let pins = Arc::new(Pins::keep(parts));
    let stopping = CancellationToken::new();
    let mut servers = JoinSet::new();
    if let Some(listener) = plain {
        let (open, handler) = (metrics.connections(Listener::plain), open_to_all(Arc::clone(&pull)));
        servers.spawn(server::serve(listener, None, open, handler, stopping.clone(), DRAIN));
    }
    if let Some((listener, TlsParts { certificate, tokens })) = secure {
        let config = certificate.server_config().map_err(StartFailed::Tls)?;
        background.spawn(certificate.keep_fresh());
        background.spawn(Arc::clone(&tokens).keep_fresh());
        let (open, handler) = (metrics.connections(Listener::tls), open_to_holders(pull, Arc::clone(&pins), tokens));
        servers.spawn(server::serve(listener, Some(config), open, handler, stopping.clone(), DRAIN));
    }
    let handler = move |request: Request<Incoming>| std::future::ready(admin.answer(&request));
    let open = metrics.connections(Listener::admin);
    servers.spawn(server::serve(admin_socket, None, open, handler, stopping.clone(), DRAIN));
    background.spawn(upstream.keep_informed());
    upkeep::start(&store, &background);
    info!(version = env!("CARGO_PKG_VERSION"), %registry, elapsed = ?began.elapsed(), "ready");

    signals.next().await;
    info!(%registry, "stopping");
    stopping.cancel();
    // Downloads go on meanwhile, as bodies on their way may be fed by them.
    tokio::select! {
        () = drained(servers) => {}
        () = signals.next() => info!("told again, stopping at once"),
    }
    background.stop(Duration::from_secs(1)).await;
    upkeep::finish(store).await;
    Ok(())
}

async fn drained(mut servers: JoinSet<()>) {
    while let Some(ended) = servers.join_next().await {
        if let Err(error) = ended {
            error!(%error, "listener ended badly");
        }
    }
}

/// What tells the process to end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// The plain listener: whoever can reach it may pull.
fn open_to_all(pull: Arc<Pull>) -> impl Fn(Request<Incoming>) -> Answering + Clone {
    move |request| {
        let pull = Arc::clone(&pull);
        Box::pin(async move { pull.answer(&request).await })
    }
}

/// The TLS listener: a relay's token opens pulls, the operator's pins.
fn open_to_holders(
    pull: Arc<Pull>,
    pins: Arc<Pins>,
    tokens: Arc<Tokens>,
) -> impl Fn(Request<Incoming>) -> Answering + Clone {
    move |request| {
        let (pull, pins, tokens) = (Arc::clone(&pull), Arc::clone(&pins), Arc::clone(&tokens));
        Box::pin(async move {
            let is_of_pins = request.uri().path() == pins::PATH;
            let role = if is_of_pins { Role::Operator } else { Role::Relay };
            match (tokens.admit(request.headers(), role), is_of_pins) {
                (false, _) => pull.refuse(&request),
                (true, true) => pins.answer(request).await,
                (true, false) => pull.answer(&request).await,
            }
        })
    }
}

type Answering = BoxFuture<'static, Response<Body>>;

/// One line per listener, for people and for scripts that asked for port 0.
fn announce(plain: Option<&TcpListener>, secure: Option<&TcpListener>, admin: &TcpListener, registry: &RegistryHost) {
    let address = |listener: Option<&TcpListener>| listener.and_then(|listener| listener.local_addr().ok());
    for (what, listener) in
        [("listening on http", plain), ("listening on https", secure), ("admin on http", Some(admin))]
    {
        if let Some(address) = address(listener) {
            println!("{what}://{address}");
        }
    }
    if let Some(address) = address(plain) {
        let folder = format!("/etc/containerd/certs.d/{registry}/hosts.toml");
        eprintln!(r#"use it: put [host."http://{address}"] into {folder}, or ask it: curl http://{address}/v2/"#);
    }
}
