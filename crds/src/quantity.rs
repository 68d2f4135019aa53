//! Kubernetes quantities as whole numbers. Pure.
//! <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

/// A quantity of bytes, rounded up as Kubernetes does; None for what is no quantity, negative, or more than 16Ei.
#[must_use]
pub fn bytes(quantity: &Quantity) -> Option<u64> {
    let text = quantity.0.strip_prefix('+').unwrap_or(&quantity.0);
    let end = text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len());
    let (number, suffix) = text.split_at(end);
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let digits = format!("{whole}{fraction}");
    if digits.is_empty() || digits.len() > 24 {
        return None;
    }
    let (numerator, denominator) = scale(suffix)?;
    let denominator = denominator.checked_mul(10_u128.checked_pow(u32::try_from(fraction.len()).ok()?)?)?;
    let scaled = digits.parse::<u128>().ok()?.checked_mul(numerator)?;
    u64::try_from(scaled.div_ceil(denominator)).ok()
}

/// What a suffix multiplies by, as a fraction.
fn scale(suffix: &str) -> Option<(u128, u128)> {
    let power = |letters: &str, base: u128| {
        let at = letters.find(suffix.chars().next()?)?;
        Some((base.pow(u32::try_from(at).ok()? + 1), 1))
    };
    match suffix {
        "" => Some((1, 1)),
        "n" => Some((1, 1_000_000_000)),
        "u" => Some((1, 1_000_000)),
        "m" => Some((1, 1000)),
        "k" => Some((1000, 1)),
        _ if suffix.len() == 2 && suffix.ends_with('i') => power("KMGTPE", 1024),
        _ if suffix.len() == 1 => power(" MGTPE", 1000).filter(|_| suffix != " "),
        _ => {
            let exponent: i32 = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
            let power = 10_u128.checked_pow(exponent.unsigned_abs()).filter(|_| exponent.abs() <= 18)?;
            Some(if exponent < 0 { (1, power) } else { (power, 1) })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table() {
        for (text, expected) in [
            ("0", Some(0)),
            ("100Mi", Some(100 << 20)),
            ("50Gi", Some(50 << 30)),
            ("1.5Ki", Some(1536)),
            ("2k", Some(2000)),
            ("2M", Some(2_000_000)),
            ("1E", Some(1_000_000_000_000_000_000)),
            ("1e3", Some(1000)),
            ("15E2", Some(1500)),
            ("1500m", Some(2)),
            ("5e-1", Some(1)),
            ("1e+3", Some(1000)),
            ("+1Gi", Some(1 << 30)),
            ("104857600000000u", Some(100 << 20)),
            ("1n", Some(1)),
            (".5Gi", Some(512 << 20)),
            ("", None),
            (".", None),
            ("Gi", None),
            ("-1Gi", None),
            ("1.2.3", None),
            ("1gi", None),
            ("1K", None),
            ("1 ", None),
            ("1e", None),
            ("1e99", None),
            ("99999Ei", None),
        ] {
            assert_eq!(bytes(&Quantity(text.into())), expected, "{text}");
        }
    }
}
