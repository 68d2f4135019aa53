//! The process itself: output kept for the failing test, addresses read from it, signals. It knows no HTTP.

use std::net::SocketAddr;
use std::process::Stdio;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use tokio::io::{AsyncBufReadExt, AsyncRead, BufReader};
use tokio::process::{Child, Command};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::binaries;

/// A started cache, ready or not.
#[derive(Debug)]
pub(super) struct Process {
    child: Child,
    pid: u32,
    output: Output,
    readers: JoinSet<()>,
}

/// What was printed, both streams line by line; the number of lines is watched.
#[derive(Clone, Debug, Default)]
struct Output(Arc<Mutex<String>>, Arc<watch::Sender<usize>>);

impl Process {
    pub(super) fn start(arguments: &[String], environment: &[(String, String)], most_files: Option<u32>) -> Self {
        let binary = binaries::binary(binaries::REGISTRY);
        let mut command = match most_files {
            None => Command::new(binary),
            Some(most) => {
                let mut shell = Command::new("sh");
                shell.args(["-c", &format!("ulimit -n {most} && exec \"$0\" \"$@\"")]).arg(binary);
                shell
            }
        };
        let mut child = command
            .args(arguments)
            .env_remove("RUST_LOG")
            .envs(environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .expect("the cache starts");
        let output = Output::default();
        let mut readers = JoinSet::new();
        readers.spawn(output.clone().follow(child.stdout.take().expect("stdout is piped")));
        readers.spawn(output.clone().follow(child.stderr.take().expect("stderr is piped")));
        let pid = child.id().expect("the cache has just been started");
        Self { child, pid, output, readers }
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn output(&self) -> String {
        self.output.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The addresses of the pull and of the admin listener, as printed.
    pub(super) async fn addresses(&mut self, deadline: Instant) -> (SocketAddr, SocketAddr) {
        let mut lines = self.output.1.subscribe();
        loop {
            lines.mark_unchanged();
            let printed = self.output();
            let found = |phrase: &str| printed.lines().find_map(|line| address_after(line, phrase));
            if let (Some(address), Some(admin)) = (found("listening on http"), found("admin on http")) {
                return (address, admin);
            }
            tokio::select! {
                _ = lines.changed() => {}
                ended = self.child.wait() => panic!("the cache ended at start, {ended:?}:\n{}", self.output()),
                () = tokio::time::sleep_until(deadline.into()) => panic!("the cache printed no addresses:\n{printed}"),
            }
        }
    }

    pub(super) fn signal(&self, signal: Signal) {
        let pid = i32::try_from(self.pid).ok().and_then(Pid::from_raw).expect("a process id");
        rustix::process::kill_process(pid, signal).expect("the cache can be signalled");
    }

    pub(super) async fn kill(&mut self) {
        self.child.kill().await.expect("the cache can be killed");
        self.drain().await;
    }

    pub(super) async fn terminate(&mut self, patience: Duration) -> Option<i32> {
        self.signal(Signal::TERM);
        self.exited(patience).await
    }

    /// Waits for its end; gives its exit code, `None` when a signal ended it.
    pub(super) async fn exited(&mut self, patience: Duration) -> Option<i32> {
        let Ok(status) = tokio::time::timeout(patience, self.child.wait()).await else {
            panic!("the cache did not end in time:\n{}", self.output());
        };
        self.drain().await;
        status.expect("the cache can be waited for").code()
    }

    /// The last lines may still be in the pipes when the process is gone.
    async fn drain(&mut self) {
        while self.readers.join_next().await.is_some() {}
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the cache printed ---\n{}---", self.output());
        }
    }
}

impl Output {
    async fn follow(self, stream: impl AsyncRead + Unpin) {
        let mut lines = BufReader::new(stream).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            let mut text = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            text.push_str(&line);
            text.push('\n');
            drop(text);
            self.1.send_modify(|lines| *lines += 1);
        }
    }
}

/// `... <phrase>://ADDRESS ...`, whether the phrase ends in `http` and the line says `https` or not.
fn address_after(line: &str, phrase: &str) -> Option<SocketAddr> {
    let (_, rest) = line.split_once(phrase)?;
    let (_, rest) = rest.split_once("://")?;
    let end = rest.find(|letter: char| !(letter.is_ascii_hexdigit() || ".:[]".contains(letter)));
    rest[..end.unwrap_or(rest.len())].trim_end_matches('.').parse().ok()
}
