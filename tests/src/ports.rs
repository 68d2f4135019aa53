//! Ports for programs that cannot be told to choose one.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::sync::atomic::{AtomicU16, Ordering};

use anyhow::{Context, Result};

/// Below those that Linux hands out by itself: nobody else's connection or listener takes one before its program does.
const FIRST: u16 = 10_000;
const COUNT: u16 = 20_000;
/// Ports of its own for each process, so that tests that run side by side do not try the same.
const STRIDE: u32 = 61;

static TAKEN: AtomicU16 = AtomicU16::new(0);

/// An address that was free a moment ago, and that no other call gets.
pub(crate) fn free_address() -> Result<SocketAddr> {
    let own = std::process::id().wrapping_mul(STRIDE);
    let candidates = (0..COUNT).map(|_| {
        let place = own.wrapping_add(u32::from(TAKEN.fetch_add(1, Ordering::Relaxed))) % u32::from(COUNT);
        SocketAddr::from((Ipv4Addr::LOCALHOST, FIRST + u16::try_from(place).unwrap_or_default()))
    });
    let is_free = |address: &SocketAddr| TcpListener::bind(address).is_ok();
    candidates.into_iter().find(is_free).context("find a free port")
}
