//! Durations as Go writes them (`1m30s`, `168h`, `1.5h`): the grammar of command line and schema alike. Pure.

use std::time::Duration;

/// Why a text is no duration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum DurationInvalid {
    /// Not a sequence of numbers, each with a unit.
    #[error("must be a duration such as 90s, 1m30s or 168h")]
    Syntax,
    /// More than a hundred years: surely a slip.
    #[error("must not exceed 876000h")]
    TooLong,
}

const LONGEST: f64 = 876_000.0 * 3600.0;

/// Reads a duration; `0` needs no unit.
pub fn parse(text: &str) -> Result<Duration, DurationInvalid> {
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut rest = text;
    let mut seconds = 0.0;
    while !rest.is_empty() {
        let number_len = rest.find(|c: char| !c.is_ascii_digit() && c != '.').ok_or(DurationInvalid::Syntax)?;
        let (number, after) = rest.split_at(number_len);
        let unit_len = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(unit_len);
        let value: f64 = number.parse().map_err(|_| DurationInvalid::Syntax)?;
        seconds += value * seconds_per(unit).ok_or(DurationInvalid::Syntax)?;
        rest = after;
    }
    if text.is_empty() {
        return Err(DurationInvalid::Syntax);
    }
    if seconds > LONGEST {
        return Err(DurationInvalid::TooLong);
    }
    // Whole nanoseconds, so that 300ms is not 299.999999ms.
    Ok(Duration::from_nanos((seconds * 1e9).round() as u64))
}

fn seconds_per(unit: &str) -> Option<f64> {
    Some(match unit {
        "ns" => 1e-9,
        "us" | "µs" => 1e-6,
        "ms" => 1e-3,
        "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn examples() {
        assert_eq!(parse("1m"), Ok(Duration::from_secs(60)));
        assert_eq!(parse("168h"), Ok(Duration::from_secs(604_800)));
        assert_eq!(parse("1m30s"), Ok(Duration::from_secs(90)));
        assert_eq!(parse("300ms"), Ok(Duration::from_millis(300)));
        assert_eq!(parse("1.5h"), Ok(Duration::from_secs(5400)));
        assert_eq!(parse("0"), Ok(Duration::ZERO));
        for bad in ["", "1", "m", "1d", "-1s", "1s2", "1 s", "1..5s", "."] {
            assert_eq!(parse(bad), Err(DurationInvalid::Syntax), "{bad}");
        }
        assert_eq!(parse("999999999h"), Err(DurationInvalid::TooLong));
    }

    proptest! {
        #[test]
        fn never_panics(text in ".*") {
            let _ = parse(&text);
        }

        #[test]
        fn hours_and_seconds(hours in 0u32..876_000, seconds in 0u32..3600) {
            let total = u64::from(hours) * 3600 + u64::from(seconds);
            prop_assume!(total <= 876_000 * 3600);
            prop_assert_eq!(parse(&format!("{hours}h{seconds}s")), Ok(Duration::from_secs(total)));
        }
    }
}
