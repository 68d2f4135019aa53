//! The three ports: binds them, opens and closes them on command, and hands each request to `deliver`.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::deliver::{After, Met, deliver};
use super::state::{Addresses, Gate, Role, Shared};
use super::wire::read_request;

/// Connections waiting to be accepted; more than any test opens at once.
const BACKLOG: u32 = 1024;

static CONNECTIONS: AtomicU64 = AtomicU64::new(1);

/// The upstream's thread: serves until `stopped` resolves.
pub(super) fn run(address: Ipv4Addr, ready: oneshot::Sender<Arc<Shared>>, stopped: oneshot::Receiver<()>) {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime for the upstream");
    runtime.block_on(async move {
        let any = SocketAddr::from((address, 0));
        let [registry, tokens, cdn] = std::array::from_fn(|_| bind(any).expect("a port"));
        let address = |socket: &TcpSocket| socket.local_addr().expect("a bound socket has an address");
        let addresses = Addresses { registry: address(&registry), tokens: address(&tokens), cdn: address(&cdn) };
        let shared = Arc::new(Shared::new(addresses));
        let mut ports = JoinSet::new();
        for (role, socket) in [(Role::Registry, registry), (Role::Tokens, tokens), (Role::Cdn, cdn)] {
            ports.spawn(serve(role, socket, Arc::clone(&shared)));
        }
        shared.heal().await;
        if ready.send(shared).is_ok() {
            let _ = stopped.await;
        }
    });
}

fn bind(address: SocketAddr) -> io::Result<TcpSocket> {
    let socket = TcpSocket::new_v4()?;
    socket.set_reuseaddr(true)?;
    socket.set_reuseport(true)?;
    socket.bind(address)?;
    Ok(socket)
}

/// One port. While closed it stays bound, so that nobody else is given its number, and every connect is refused.
async fn serve(role: Role, mut socket: TcpSocket, shared: Arc<Shared>) {
    let address = socket.local_addr().expect("a bound socket has an address");
    let door = shared.door(role);
    let mut wanted = door.wanted.subscribe();
    loop {
        if wanted.wait_for(|gate| *gate != Gate::Closed).await.is_err() {
            return;
        }
        let listener = socket.listen(BACKLOG).expect("a bound socket listens");
        let mut connections = JoinSet::new();
        loop {
            let gate = *wanted.borrow_and_update();
            let _plug = match gate {
                Gate::Closed => break,
                Gate::Open => None,
                Gate::BlackHole => Some(plug(&listener, address).await),
            };
            door.actual.send_replace(gate);
            loop {
                tokio::select! {
                    accepted = listener.accept(), if gate == Gate::Open => {
                        if let Ok((stream, _)) = accepted {
                            connections.spawn(talk(role, stream, Arc::clone(&shared)));
                        }
                    }
                    _ = wanted.changed() => break,
                }
            }
            rustix::net::listen(&listener, BACKLOG.cast_signed()).expect("a listener takes a new backlog");
        }
        // Bound before the listener goes: not for a moment may the kernel give the number to someone's connection.
        socket = bind(address).expect("the port is still ours");
        drop(listener);
        connections.shutdown().await;
        door.actual.send_replace(Gate::Closed);
    }
}

/// Fills the queue of a listener that accepts nothing: the kernel then drops the first packet of whoever comes next.
async fn plug(listener: &TcpListener, address: SocketAddr) -> Option<TcpStream> {
    rustix::net::listen(listener, 0).expect("a listener takes a new backlog");
    let filled = tokio::time::timeout(Duration::from_millis(100), TcpStream::connect(address)).await;
    // A time-out means that it was full already.
    filled.ok().and_then(Result::ok)
}

/// One connection. Errors mean that the peer went away, which is its right.
async fn talk(role: Role, mut stream: TcpStream, shared: Arc<Shared>) {
    let connection = CONNECTIONS.fetch_add(1, Ordering::Relaxed);
    let mut pending = Vec::new();
    let _ = stream.set_nodelay(true);
    while let Ok(Some(request)) = read_request(&mut stream, &mut pending, role, connection).await {
        // Settled before the record shows the request: a test that heals on seeing it does not change its fault, and is heard.
        let met = Met { fault: shared.rules().take(&request), healings: shared.healings.subscribe() };
        let place = shared.record(request.clone());
        match deliver(&mut stream, &shared, &request, place, met).await {
            Ok(After::KeepAlive) => {}
            Ok(After::Close) | Err(_) => return,
        }
    }
}
