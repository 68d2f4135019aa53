//! How one certificate authority follows another. No I/O.
//!
//! A successor is put into the bundle long before it signs, so that every agent and cache trusts it by then. Nothing is taken out
//! of the bundle but what has run out, so leaves of both are trusted while they are replaced.

use super::authority::{self, AuthorityInvalid, Identity};
use super::{IssueFailed, SKEW, SecretData, plus, text, value};
use breakwater_crds::names::{CA_CERTIFICATE_KEY, CA_NEXT_PRIVATE_KEY, CA_PRIVATE_KEY};
use jiff::{SignedDuration, Timestamp};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

/// Twice the life of a leaf, so that none is cut short by the end of what signed it.
const SUCCESSOR_BEFORE_END: SignedDuration = SignedDuration::from_hours(2 * 365 * 24);
/// Agents and caches that are away for this long still trust the successor when it begins to sign.
const PUBLISHED_BEFORE_USE: SignedDuration = SignedDuration::from_hours(7 * 24);
/// Where the end is nearer than that, as after a long absence, the successor signs from so long before it,
const LAST_MOMENT: SignedDuration = SignedDuration::from_hours(24);
/// but not before agents and caches had time to read it.
const PUBLISHED_AT_LEAST: SignedDuration = SignedDuration::from_mins(10);

/// The Secret's data after the step that is due, if one is. Damage is no step: only a person can mend it.
///
/// # Errors
/// A successor was due and no key could be made.
pub fn due(data: &SecretData, now: Timestamp) -> Result<Option<SecretData>, IssueFailed> {
    let Some(present) = Present::of(data) else { return Ok(None) };
    let Some(next) = &present.next else {
        if present.signing.end.duration_since(now) >= SUCCESSOR_BEFORE_END {
            return Ok(present.without_expired(data, now));
        }
        let published = publish(data, now)?;
        // Nothing that has run out is trusted by anyone, so there is nobody to wait for.
        return Ok(Some(if present.signing.end <= now { promote(&published).unwrap_or(published) } else { published }));
    };
    Ok(if now >= in_use_from(&present.signing, next) { promote(data) } else { present.without_expired(data, now) })
}

/// From when on a published successor signs.
fn in_use_from(signing: &Identity, next: &Identity) -> Timestamp {
    let published = plus(next.begin, SKEW);
    let usual = plus(published, PUBLISHED_BEFORE_USE).min(plus(signing.end, -LAST_MOMENT));
    usual.max(plus(published, PUBLISHED_AT_LEAST)).min(signing.end)
}

/// Adds a successor that does not sign yet.
fn publish(data: &SecretData, now: Timestamp) -> Result<SecretData, IssueFailed> {
    let (certificate, key) = authority::self_signed(now)?;
    let bundle = text(data, CA_CERTIFICATE_KEY).unwrap_or_default().trim_end();
    let mut data = data.clone();
    data.insert(CA_CERTIFICATE_KEY.to_owned(), value(&format!("{bundle}\n{certificate}")));
    data.insert(CA_NEXT_PRIVATE_KEY.to_owned(), value(&key));
    Ok(data)
}

/// Lets the successor sign.
fn promote(data: &SecretData) -> Option<SecretData> {
    let mut data = data.clone();
    let key = data.remove(CA_NEXT_PRIVATE_KEY)?;
    data.insert(CA_PRIVATE_KEY.to_owned(), key);
    Some(data)
}

/// The authorities that a Secret holds.
struct Present {
    signing: Identity,
    next: Option<Identity>,
}

impl Present {
    fn of(data: &SecretData) -> Option<Self> {
        let certificates = authority::certificates(text(data, CA_CERTIFICATE_KEY)?).ok()?;
        let find = |name: &str| -> Option<Result<Identity, AuthorityInvalid>> {
            let key = KeyPair::from_pem(text(data, name)?).map_err(|_| AuthorityInvalid::PrivateKey);
            Some(key.and_then(|key| Ok(authority::belonging(certificates.clone(), &key)?.1)))
        };
        let signing = find(CA_PRIVATE_KEY)?.ok()?;
        Some(Self { signing, next: find(CA_NEXT_PRIVATE_KEY).transpose().ok()? })
    }

    /// The data without the certificates of former authorities that have run out; none if there are none.
    fn without_expired(&self, data: &SecretData, now: Timestamp) -> Option<SecretData> {
        const END: &str = "-----END CERTIFICATE-----";
        let bundle = text(data, CA_CERTIFICATE_KEY)?;
        let is_former = |part: &&str| {
            let der = CertificateDer::from_pem_slice(part.as_bytes()).ok();
            let identity = der.as_ref().and_then(authority::identity).map(|(_, identity)| identity);
            identity.is_some_and(|it| it.end <= now && it != self.signing && Some(&it) != self.next.as_ref())
        };
        let kept: String = bundle.split_inclusive(END).filter(|part| !is_former(part)).collect();
        if kept == bundle {
            return None;
        }
        let mut data = data.clone();
        data.insert(CA_CERTIFICATE_KEY.to_owned(), value(kept.trim_start()));
        Some(data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pki::{Authority, Leaf};

    const NOW: i64 = 1_800_000_000;
    const DAY: i64 = 86_400;
    const YEAR: i64 = 365 * DAY;

    fn at(seconds: i64) -> Timestamp {
        Timestamp::from_second(NOW + seconds).unwrap()
    }

    fn fresh() -> SecretData {
        Authority::create(at(0)).unwrap()
    }

    fn count(data: &SecretData) -> usize {
        text(data, CA_CERTIFICATE_KEY).unwrap().matches("BEGIN").count()
    }

    fn key(data: &SecretData) -> &str {
        text(data, CA_PRIVATE_KEY).unwrap()
    }

    fn step(data: &SecretData, seconds: i64) -> SecretData {
        due(data, at(seconds)).unwrap().unwrap()
    }

    #[test]
    fn nothing_is_due_for_eight_years() {
        let data = fresh();
        assert_eq!(due(&data, at(0)).unwrap(), None);
        assert_eq!(due(&data, at(8 * YEAR - DAY)).unwrap(), None);
        assert_eq!(due(&data, at(-20 * YEAR)).unwrap(), None, "a clock that is behind changes nothing");
    }

    #[test]
    fn a_successor_is_trusted_for_a_week_before_it_signs_and_the_elder_until_it_ends() {
        let (first, begin) = (fresh(), 8 * YEAR + DAY);
        let published = step(&first, begin);
        assert_eq!((count(&published), key(&published)), (2, key(&first)), "both are trusted, the elder signs");
        for later in [1, DAY, 7 * DAY - 1] {
            assert_eq!(due(&published, at(begin + later)).unwrap(), None);
        }
        let promoted = step(&published, begin + 7 * DAY);
        assert_eq!(count(&promoted), 2);
        assert_ne!(key(&promoted), key(&first));
        assert_eq!(text(&promoted, "relay.key"), text(&first, "relay.key"), "relay tokens stay");
        assert_eq!(due(&promoted, at(begin + 7 * DAY)).unwrap(), None);

        let names = ["a".to_owned()];
        let signed_by = |data: &SecretData, seconds: i64| Authority::parse(data, at(seconds)).unwrap();
        let old = Leaf::renewed(None, &signed_by(&published, begin), &names, at(begin)).unwrap();
        let new =
            Leaf::renewed(Some(&old), &signed_by(&promoted, begin + 7 * DAY), &names, at(begin + 7 * DAY)).unwrap();
        assert_ne!(old.data().get("tls.crt"), new.data().get("tls.crt"), "its leaves follow at once");

        let after_the_first = 10 * YEAR + DAY;
        let alone = step(&promoted, after_the_first);
        assert_eq!(count(&alone), 1);
        assert!(text(&alone, CA_CERTIFICATE_KEY).unwrap().starts_with("-----BEGIN"));
        assert!(Authority::parse(&alone, at(after_the_first)).is_ok());
    }

    #[test]
    fn after_a_long_absence_there_is_as_much_time_as_is_left() {
        let data = fresh();
        // Three days before the end: trusted for two, in use for the last.
        let begin = 10 * YEAR - 3 * DAY;
        let published = step(&data, begin);
        assert_eq!(due(&published, at(begin + 2 * DAY - 60)).unwrap(), None);
        assert_ne!(key(&step(&published, begin + 2 * DAY)), key(&data));
        // An hour before the end: agents get ten minutes.
        let begin = 10 * YEAR - 3600;
        let published = step(&data, begin);
        assert_eq!(due(&published, at(begin + 9 * 60)).unwrap(), None);
        assert_ne!(key(&step(&published, begin + 11 * 60)), key(&data));
        // A minute before the end: until the end.
        let published = step(&data, 10 * YEAR - 60);
        assert_ne!(key(&step(&published, 10 * YEAR)), key(&data));
        // After the end nobody trusts it any more: at once, and with the same relay key.
        let replaced = step(&data, 11 * YEAR);
        assert_ne!(key(&replaced), key(&data));
        assert_eq!(text(&replaced, "relay.key"), text(&data, "relay.key"));
        assert!(Authority::parse(&replaced, at(11 * YEAR)).is_ok());
        assert_eq!(count(&step(&replaced, 11 * YEAR)), 1, "what has run out goes");
    }

    #[test]
    fn the_same_step_again_is_no_step() {
        let published = step(&fresh(), 8 * YEAR + DAY);
        assert_eq!(due(&published, at(8 * YEAR + DAY)).unwrap(), None);
        let promoted = step(&published, 9 * YEAR);
        assert_eq!(due(&promoted, at(9 * YEAR)).unwrap(), None);
    }

    #[test]
    fn damage_is_left_to_a_person() {
        let good = fresh();
        for (name, bad) in [("ca.crt", ""), ("ca.crt", "x"), ("ca.key", "x"), ("next.key", "x")] {
            let mut data = good.clone();
            data.insert(name.to_owned(), value(bad));
            assert_eq!(due(&data, at(9 * YEAR)).unwrap(), None, "{name} {bad}");
        }
    }
}
