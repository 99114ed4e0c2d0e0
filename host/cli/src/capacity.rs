//! Capacities as users write them: `1000`, `64MiB`, `5%`.

use std::fmt;
use std::str::FromStr;

/// How large a cache is: a number of its unit (entries or bytes), or a share of what a trace asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Capacity {
    written: String,
    size: Size,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Size {
    Absolute(u64),
    /// A share of `parts / whole`, kept as decimals so that it is rounded once and exactly.
    Share {
        parts: u64,
        whole: u64,
    },
}

/// Why some words are no capacity.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is no capacity; give a number from 1 up (1000, 10k, 64MiB), or a share of the trace's unique keys \
     (0.1%, 10%), or several, separated by commas"
)]
pub struct NotACapacity(String);

impl FromStr for Capacity {
    type Err = NotACapacity;

    fn from_str(written: &str) -> Result<Self, NotACapacity> {
        let size = match written.strip_suffix('%') {
            Some(share) => share_of(share),
            None => absolute(written),
        };
        let size = size.ok_or_else(|| NotACapacity(written.into()))?;
        Ok(Capacity { written: written.into(), size })
    }
}

fn digits(text: &str) -> Option<u64> {
    let text = text.replace('_', "");
    let digits = !text.is_empty() && text.bytes().all(|c| c.is_ascii_digit());
    digits.then(|| text.parse().ok()).flatten()
}

fn share_of(text: &str) -> Option<Size> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, ""));
    if (whole.is_empty() && decimals.is_empty()) || decimals.len() > 15 {
        return None;
    }
    let scale = 10u64.pow(decimals.len() as u32);
    let part = |text: &str| if text.is_empty() { Some(0) } else { digits(text) };
    let parts = part(whole)?.checked_mul(scale)?.checked_add(part(decimals)?)?;
    (parts > 0).then_some(Size::Share { parts, whole: 100 * scale })
}

fn absolute(text: &str) -> Option<Size> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit: u64 = match text[number.len()..].to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1000,
        "m" | "mb" => 1000 * 1000,
        "g" | "gb" => 1000 * 1000 * 1000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        _ => return None,
    };
    digits(number)?.checked_mul(unit).filter(|&size| size > 0).map(Size::Absolute)
}

impl Capacity {
    /// The capacity for a trace whose unique keys are, or weigh, `unique`: a share is rounded to the nearest whole number
    /// (half away from zero), and is at least 1.
    pub fn of(&self, unique: u64) -> u64 {
        match self.size {
            Size::Absolute(size) => size,
            Size::Share { parts, whole } => {
                let (parts, whole) = (u128::from(parts) * u128::from(unique), u128::from(whole));
                u64::try_from((2 * parts + whole) / (2 * whole)).unwrap_or(u64::MAX).max(1)
            }
        }
    }

    /// Whether the trace must be read to know it.
    pub fn is_share(&self) -> bool {
        matches!(self.size, Size::Share { .. })
    }
}

impl fmt::Display for Capacity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_units_and_shares() {
        for (written, unique, size) in [
            ("1000", 5, 1000),
            ("1_000", 5, 1000),
            ("10k", 5, 10_000),
            ("64MiB", 5, 64 << 20),
            ("2gb", 5, 2_000_000_000),
            ("0.1%", 186_880, 187),
            ("1%", 186_880, 1869),
            ("10%", 7075, 708),
            ("5%", 10, 1),
            ("4.999%", 10, 1),
            ("50%", 5, 3),
            ("0.1%", 3, 1),
            ("100%", 762_543, 762_543),
            (".5%", 1000, 5),
            ("33.333333333333333%", 3, 1),
            ("200%", u64::MAX, u64::MAX),
        ] {
            assert_eq!(written.parse::<Capacity>().unwrap().of(unique), size, "{written} of {unique}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for written in
            ["", "%", "0", "0%", "0.000%", "-1", "1e3", "1.5", "k", "10q", ".%", "+5", "99999999999999999999"]
        {
            assert!(written.parse::<Capacity>().is_err(), "{written}");
        }
    }
}
