//! What an answer is worth: right, allowed, late, wrong or none. Pure.

use std::ops::Range;
use std::time::Duration;

use crate::cache::End;
use crate::cache::client::Seen;

/// What an answer has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Must {
    /// The content, whole and right.
    Serve,
    /// That, or an error by which a runtime goes on to the next host, or the right bytes and then a cut.
    ServeOrFail,
}

/// The worth of one cell, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// Right bytes, soon.
    Ok,
    /// 404 or 5xx, soon, where the content could not be had.
    Refused,
    /// Right bytes, then a closed connection, where the rest could not be had.
    Cut,
    /// What it had to be, but late.
    Slow,
    /// Upstream was asked far more often than one client needs.
    Storm,
    /// No answer, or one that ends the pull though the content could be had.
    Error,
    /// No end within the limit.
    Hang,
    /// Bytes that are not the content's.
    Wrong,
}

impl Verdict {
    /// The word in the table.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Cut => "cut",
            Self::Slow => "slow",
            Self::Storm => "storm",
            Self::Error => "error",
            Self::Hang => "hang",
            Self::Wrong => "WRONG",
        }
    }

    /// Whether a mirror passes with it.
    pub fn passes(self) -> bool {
        self <= Self::Cut
    }
}

/// What is expected of one answer.
#[derive(Clone, Debug)]
pub struct Expected<'a> {
    /// The content.
    pub truth: &'a [u8],
    /// What is to be had.
    pub must: Must,
    /// By when, for the answer to be no slow one.
    pub soon: Duration,
    /// Whether only the header was asked for.
    pub is_head: bool,
    /// The part that was asked for.
    pub range: Option<Range<usize>>,
    /// Whether upstream sends wrong bytes: who streams finds out at the end, and must cut then.
    pub is_forged: bool,
}

impl Expected<'_> {
    /// Judges what was seen.
    pub fn judge(&self, seen: &Seen) -> Verdict {
        let Some(status) = seen.status else {
            return if seen.hung { Verdict::Hang } else { Verdict::Error };
        };
        let verdict = match status {
            200 | 206 => self.content(status, seen),
            404 | 500..=599 if seen.hung => Verdict::Hang,
            404 | 500..=599 if self.must == Must::ServeOrFail => Verdict::Refused,
            _ => Verdict::Error,
        };
        if verdict.passes() && seen.took > self.soon { Verdict::Slow } else { verdict }
    }

    fn content(&self, status: u16, seen: &Seen) -> Verdict {
        let truth = match &self.range {
            Some(range) if status == 206 => &self.truth[range.clone()],
            _ => self.truth,
        };
        if self.is_head {
            let length = seen.header("content-length").and_then(|length| length.parse().ok());
            // Upstream may not have said how long it is.
            return if length.is_none_or(|length: usize| length == truth.len()) { Verdict::Ok } else { Verdict::Wrong };
        }
        let is_cut = !matches!(seen.end, None | Some(End::Complete)) && seen.body.len() < truth.len();
        let is_right = truth.starts_with(&seen.body) || (self.is_forged && is_cut);
        if !is_right {
            return Verdict::Wrong;
        }
        let is_whole = seen.body.len() == truth.len();
        match seen.end {
            None => Verdict::Hang,
            Some(End::Complete) if is_whole => Verdict::Ok,
            // A part that claims to be the whole.
            Some(End::Complete) => Verdict::Wrong,
            Some(_) if self.must == Must::ServeOrFail => Verdict::Cut,
            Some(_) => Verdict::Error,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(status: u16, body: &[u8], end: Option<End>) -> Seen {
        Seen { status: Some(status), body: body.to_vec(), end, hung: end.is_none(), ..Seen::default() }
    }

    fn judged(must: Must, seen: &Seen) -> Verdict {
        let soon = Duration::from_secs(1);
        Expected { truth: b"content", must, soon, is_head: false, range: Some(1..3), is_forged: false }.judge(seen)
    }

    #[test]
    fn answers_are_told_apart() {
        let whole = Some(End::Complete);
        let cut = Some(End::CutByFin);
        for (answer, served, failed) in [
            (seen(200, b"content", whole), Verdict::Ok, Verdict::Ok),
            (seen(206, b"on", whole), Verdict::Ok, Verdict::Ok),
            (seen(206, b"co", whole), Verdict::Wrong, Verdict::Wrong),
            (seen(200, b"cont", whole), Verdict::Wrong, Verdict::Wrong),
            (seen(200, b"cont", cut), Verdict::Error, Verdict::Cut),
            (seen(200, b"cont{", cut), Verdict::Wrong, Verdict::Wrong),
            (seen(200, b"cont", None), Verdict::Hang, Verdict::Hang),
            (seen(503, b"{}", whole), Verdict::Error, Verdict::Refused),
            (seen(429, b"{}", whole), Verdict::Error, Verdict::Error),
            (Seen::default(), Verdict::Error, Verdict::Error),
            (Seen { hung: true, ..Seen::default() }, Verdict::Hang, Verdict::Hang),
        ] {
            assert_eq!(judged(Must::Serve, &answer), served, "{answer:?}");
            assert_eq!(judged(Must::ServeOrFail, &answer), failed, "{answer:?}");
        }
        let late = Seen { took: Duration::from_secs(2), ..seen(200, b"content", whole) };
        assert_eq!(judged(Must::Serve, &late), Verdict::Slow);
    }
}
