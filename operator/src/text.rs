//! What people read, in words: errors, what others say, times and amounts. Pure.

use jiff::{SignedDuration, Timestamp};
use std::time::Duration;

/// An error and its sources in one line.
#[must_use]
pub fn error_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let said = cause.to_string();
        // Some libraries repeat their source in their own message.
        if !text.contains(&said) {
            text.push_str(": ");
            text.push_str(&said);
        }
        source = cause.source();
    }
    text
}

/// The text without control characters, and not longer than `max` characters: it goes into statuses and Events.
pub(crate) fn one_line(text: &str, max: usize) -> String {
    let clean: String = text.trim().chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if clean.chars().count() <= max {
        return clean;
    }
    let mut cut: String = clean.chars().take(max.saturating_sub(1)).collect();
    cut.push('…');
    cut
}

/// A duration as people write it: `1m`, `168h`, `1m30s`, `1500ms`.
pub(crate) fn duration(duration: Duration) -> String {
    if duration.subsec_nanos() != 0 {
        return format!("{}ms", duration.as_millis());
    }
    let (hours, minutes, seconds) = (duration.as_secs() / 3600, duration.as_secs() / 60 % 60, duration.as_secs() % 60);
    let mut text = String::new();
    for (amount, unit) in [(hours, 'h'), (minutes, 'm'), (seconds, 's')] {
        if amount > 0 {
            text.push_str(&format!("{amount}{unit}"));
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

/// A point in time for people: `09:02Z`, with the date once it is a day old.
pub(crate) fn clock(time: Timestamp, now: Timestamp) -> String {
    let format =
        if now.duration_since(time).abs() < SignedDuration::from_hours(24) { "%H:%MZ" } else { "%Y-%m-%d %H:%MZ" };
    time.strftime(format).to_string()
}

/// Bytes as a quantity of two digits or so: one that moved with every pull would rewrite the status all day.
pub(crate) fn quantity(bytes: u64) -> String {
    let units = ["", "Ki", "Mi", "Gi", "Ti", "Pi"];
    let mut amount = bytes as f64;
    let mut unit = 0;
    while amount >= 1024.0 && unit + 1 < units.len() {
        amount /= 1024.0;
        unit += 1;
    }
    let digits = usize::from(amount < 10.0 && unit > 0);
    format!("{amount:.digits$}{}", units[unit])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_is_one_line_of_bounded_length() {
        assert_eq!(one_line(" connect\ntimeout ", 20), "connect timeout");
        assert_eq!(one_line(&"é".repeat(10), 4), "ééé…");
    }

    #[test]
    fn durations_are_written_as_people_do() {
        let text = |ms: u64| duration(Duration::from_millis(ms));
        assert_eq!(text(60_000), "1m");
        assert_eq!(text(168 * 3_600_000), "168h");
        assert_eq!(text(5_400_000), "1h30m");
        assert_eq!(text(90_000), "1m30s");
        assert_eq!(text(1_500), "1500ms");
        assert_eq!(text(0), "0s");
    }

    #[test]
    fn bytes_are_rounded_quantities() {
        let check = |bytes: u64, expected: &str| assert_eq!(quantity(bytes), expected);
        check(0, "0");
        check(1023, "1023");
        check(1536, "1.5Ki");
        check(31 << 30, "31Gi");
        check((31 << 30) + 5_000_000, "31Gi");
        check(9_800_000_000, "9.1Gi");
    }

    #[test]
    fn times_carry_their_date_once_they_are_old() {
        let at = |text: &str| text.parse::<Timestamp>().unwrap();
        assert_eq!(clock(at("2026-11-21T09:02:08Z"), at("2026-11-21T10:00:00Z")), "09:02Z");
        assert_eq!(clock(at("2026-11-19T09:02:08Z"), at("2026-11-21T10:00:00Z")), "2026-11-19 09:02Z");
        assert_eq!(clock(at("2027-11-21T09:02:08Z"), at("2026-11-21T10:00:00Z")), "2027-11-21 09:02Z");
    }
}
