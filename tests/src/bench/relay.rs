//! The bare relay: the least that a pull-through cache does for a miss. It hashes and writes what it passes on, and knows
//! no digest, no second reader and no failure.

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Context, Result};
use aws_lc_rs::digest::{Context as Hash, SHA256};

static NEXT: AtomicU64 = AtomicU64::new(0);

/// Relays until it is killed.
///
/// # Errors
/// Fails when it cannot listen.
pub fn run(upstream: SocketAddr, listen: SocketAddr, folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| format!("make {}", folder.display()))?;
    let listener = TcpListener::bind(listen).with_context(|| format!("listen on {listen}"))?;
    std::thread::scope(|scope| {
        for client in listener.incoming().flatten() {
            // A connection that breaks is the load generator's to notice.
            scope.spawn(move || relay(&client, upstream, folder));
        }
    });
    Ok(())
}

fn relay(mut client: &TcpStream, upstream: SocketAddr, folder: &Path) -> Result<()> {
    let origin = TcpStream::connect(upstream)?;
    for stream in [client, &origin] {
        stream.set_nodelay(true)?;
    }
    let (mut requests, mut answers) = (BufReader::new(client), BufReader::with_capacity(256 * 1024, &origin));
    loop {
        let request = head(&mut requests)?;
        if request.is_empty() {
            return Ok(());
        }
        (&origin).write_all(&request)?;
        let answer = head(&mut answers)?;
        let text = String::from_utf8_lossy(&answer).to_ascii_lowercase();
        let length = text.lines().find_map(|line| line.strip_prefix("content-length:")?.trim().parse().ok());
        client.write_all(&answer)?;
        let mut left: u64 = length.context("an answer without Content-Length")?;
        let mut file = File::create(folder.join(NEXT.fetch_add(1, Ordering::Relaxed).to_string()))?;
        let mut hash = Hash::new(&SHA256);
        let mut buffer = vec![0; 256 * 1024];
        while left > 0 {
            let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
            let count = answers.read(&mut buffer[..most])?;
            anyhow::ensure!(count > 0, "upstream closed early");
            file.write_all(&buffer[..count])?;
            hash.update(&buffer[..count]);
            client.write_all(&buffer[..count])?;
            left -= count as u64;
        }
        let _ = hash.finish();
    }
}

fn head(stream: &mut impl BufRead) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if stream.read_until(b'\n', &mut head)? == 0 {
            return Ok(Vec::new());
        }
    }
    Ok(head)
}
