//! Sizes and rates as people write them.

use std::fmt;
use std::str::FromStr;

/// Bytes: `200MB`, `64MiB`, or a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size(pub(crate) u64);

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)];
        let units =
            units.into_iter().chain([("GB", 1_000_000_000), ("MB", 1_000_000), ("KB", 1_000), ("B", 1), ("", 1)]);
        parse(text, units).map(Self).ok_or_else(|| format!("{text} is no size: write 200MB or 64MiB"))
    }
}

/// Bits per second: `200Mbit`, `2Gbit`, `16Kbit`.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub(crate) struct Rate(pub(crate) f64);

impl Rate {
    pub(crate) const fn mbit(rate: f64) -> Self {
        Self(rate * 1e6)
    }

    pub(crate) fn bytes_per_second(self) -> f64 {
        self.0 / 8.0
    }

    /// How long so many bytes take.
    pub(crate) fn seconds_for(self, bytes: u64) -> f64 {
        bytes as f64 / self.bytes_per_second()
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let units = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("Kbit", 1_000), ("bit", 1)];
        let rate = parse(text, units.into_iter()).filter(|&rate| rate > 0);
        rate.map(|rate| Self(rate as f64)).ok_or_else(|| format!("{text} is no rate: write 200Mbit"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            rate if rate >= 1e6 => write!(f, "{} Mbit/s", trimmed(rate / 1e6)),
            rate => write!(f, "{} Kbit/s", trimmed(rate / 1e3)),
        }
    }
}

fn trimmed(number: f64) -> String {
    let text = format!("{number:.1}");
    text.strip_suffix(".0").map_or(text.clone(), str::to_owned)
}

fn parse(text: &str, mut units: impl Iterator<Item = (&'static str, u64)>) -> Option<u64> {
    units.find_map(|(unit, scale)| {
        let number: f64 = text.trim().strip_suffix(unit)?.trim().parse().ok()?;
        (number.is_finite() && number >= 0.0).then_some((number * scale as f64) as u64)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_rates_are_read_as_written() {
        for (text, bytes) in [("200MB", 200_000_000), ("1.5GiB", 3 << 29), ("64 KiB", 65536), ("7", 7), ("7B", 7)] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
        for (text, bits) in [("200Mbit", 2e8), ("2Gbit", 2e9), ("16Kbit", 16e3), ("0.5Mbit", 5e5)] {
            assert_eq!(text.parse(), Ok(Rate(bits)), "{text}");
        }
        for text in ["", "fast", "-1MB", "MB", "infMB"] {
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        for text in ["", "10", "0Mbit", "10MB"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
        }
        assert_eq!(Rate::mbit(12.5).to_string(), "12.5 Mbit/s");
        assert_eq!(Rate(16e3).to_string(), "16 Kbit/s");
    }
}
