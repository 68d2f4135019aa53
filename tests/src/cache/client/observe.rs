//! An exchange that may go wrong in any way without failing the test: what was seen of it within a limit.

use std::time::{Duration, Instant};

use super::{End, Request, unchunked, value};

/// What was seen of an exchange.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// The status, if a header came.
    pub status: Option<u16>,
    /// The headers, their names in lower case.
    pub headers: Vec<(String, String)>,
    /// The body as far as it came.
    pub body: Vec<u8>,
    /// How it ended; `None` if it had not when the limit was reached, or if no header came.
    pub end: Option<End>,
    /// Whether it went on until the limit.
    pub hung: bool,
    /// From before the connect to the header's last byte.
    pub header_after: Option<Duration>,
    /// From before the connect to the end, or to the limit.
    pub took: Duration,
}

impl Seen {
    /// The value of a header, its name given in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        value(&self.headers, name)
    }
}

impl Request {
    /// Sends it and reads what comes for no longer than `limit`.
    pub async fn observe(self, limit: Duration) -> Seen {
        let began = Instant::now();
        let mut seen = Seen::default();
        let hung = tokio::time::timeout(limit, self.follow(began, &mut seen)).await.is_err();
        Seen { hung, took: began.elapsed(), ..seen }
    }

    async fn follow(self, began: Instant, seen: &mut Seen) {
        let Ok(mut reading) = self.try_send().await else { return };
        seen.status = Some(reading.status);
        seen.headers.clone_from(&reading.headers);
        seen.header_after = Some(began.elapsed());
        seen.end = loop {
            match reading.part(1 << 20).await {
                Ok(part) if part.is_empty() => break Some(reading.orderly_end()),
                Ok(part) => seen.body.extend(part),
                Err(_) => break Some(End::CutByReset),
            }
        };
        if reading.is_chunked() {
            seen.body = unchunked(&seen.body);
        }
    }
}
