//! What the Pods of one cache know of its upstream, as one report. Pure.

use super::UpstreamReport;

/// What those say that were heard; None where nobody was.
///
/// Who has not spoken to the upstream yet knows nothing of it. Where the others differ, the last change counts: each finds out when
/// it next asks. It has been so since the first of those who say so found out.
pub(super) fn report<'a>(said: impl Iterator<Item = &'a UpstreamReport>) -> Option<UpstreamReport> {
    let said: Vec<_> = said.collect();
    let last = *said.iter().max_by_key(|report| (report.reachable.is_some(), report.since))?;
    let agreeing = said.iter().filter(|report| report.reachable == last.reachable);
    Some(UpstreamReport {
        since: agreeing.filter_map(|report| report.since).min(),
        credentials_accepted: said.iter().filter_map(|report| report.credentials_accepted).min(),
        rate_limit_remaining: said.iter().filter_map(|report| report.rate_limit_remaining).min(),
        cached_bytes: said.iter().filter_map(|report| report.cached_bytes).max(),
        ..last.clone()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(reachable: Option<bool>, since: i64) -> UpstreamReport {
        let since = reachable.map(|_| jiff::Timestamp::from_second(since).unwrap());
        UpstreamReport { reachable, since, ..UpstreamReport::default() }
    }

    #[test]
    fn who_knows_counts_and_of_those_who_differ_the_last_change() {
        let (unknown, down, down_later, up) =
            (said(None, 0), said(Some(false), 10), said(Some(false), 20), said(Some(true), 15));
        let cases: [(&[&UpstreamReport], Option<&UpstreamReport>); 6] = [
            (&[], None),
            (&[&unknown], Some(&unknown)),
            (&[&unknown, &down], Some(&down)),
            (&[&down_later, &down, &unknown], Some(&down)),
            (&[&up, &down], Some(&up)),
            (&[&up, &down_later], Some(&down_later)),
        ];
        for (number, (pods, together)) in cases.into_iter().enumerate() {
            assert_eq!(report(pods.iter().copied()).as_ref(), together, "case {number}");
        }
    }

    #[test]
    fn of_credentials_and_limits_the_worst_is_told_and_of_content_the_most() {
        let of = |accepted, remaining, bytes| UpstreamReport {
            credentials_accepted: accepted,
            rate_limit_remaining: remaining,
            cached_bytes: bytes,
            ..UpstreamReport::default()
        };
        let pods = [of(None, None, Some(1)), of(Some(true), Some(9), Some(5)), of(Some(false), Some(3), None)];
        assert_eq!(report(pods.iter()), Some(of(Some(false), Some(3), Some(5))));
    }
}
