//! Sizes and spans of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::{Error as _, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A number of bytes: `8MiB`, `1.5 GB`, `4096`. Powers of 1024 with an `i`, of 1000 without.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

const UNITS: [(&str, u64); 11] = [
    ("", 1),
    ("b", 1),
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("pib", 1 << 50),
];

impl FromStr for Size {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wrong = || format!("{text:?} is not a size such as 8MiB, 500MB or 4096");
        let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let unit = unit.trim().to_ascii_lowercase();
        let (_, factor) = UNITS.iter().find(|(name, _)| *name == unit).ok_or_else(wrong)?;
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(*factor).map(Self).ok_or_else(wrong);
        }
        let bytes = number.parse::<f64>().map_err(|_| wrong())? * *factor as f64;
        // Beyond 2^53 a fraction of a byte is not what anybody means.
        if bytes.is_finite() && (0.0..9.0e15).contains(&bytes) { Ok(Self(bytes as u64)) } else { Err(wrong()) }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, factor) in [("TiB", 1u64 << 40), ("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)] {
            if self.0 >= factor && self.0.is_multiple_of(factor) {
                return write!(f, "{}{name}", self.0 / factor);
            }
        }
        write!(f, "{}", self.0)
    }
}

/// A span of time: `30s`, `5m`, `1h 30m`, `250ms`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        humantime::parse_duration(text.trim())
            .map(Self)
            .map_err(|_| format!("{text:?} is not a span of time such as 30s, 5m or 250ms"))
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        humantime::format_duration(self.0).fmt(f)
    }
}

/// Reads a text or, for sizes, a plain number; writes the text.
macro_rules! serde_as_text {
    ($name:ident, $expecting:literal, $from_number:expr) => {
        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $name;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($expecting)
                    }
                    fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<$name, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_u64<E: serde::de::Error>(self, number: u64) -> Result<$name, E> {
                        let from_number: fn(u64) -> Result<$name, String> = $from_number;
                        from_number(number).map_err(E::custom)
                    }
                }
                deserializer.deserialize_any(Text).map_err(D::Error::custom)
            }
        }
    };
}

serde_as_text!(Size, "a size such as 8MiB", |number| Ok(Size(number)));
serde_as_text!(Span, "a span of time such as 30s", |number| Err(format!("{number} lacks its unit, such as {number}s")));

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes() {
        for (text, bytes, shown) in [
            ("8MiB", 8 << 20, "8MiB"),
            ("8 mib", 8 << 20, "8MiB"),
            ("1.5KiB", 1536, "1536"),
            ("500MB", 500_000_000, "500000000"),
            ("4096", 4096, "4KiB"),
            ("0", 0, "0"),
            ("2TiB", 2 << 40, "2TiB"),
        ] {
            let size: Size = text.parse().unwrap();
            assert_eq!(size, Size(bytes), "{text}");
            assert_eq!(size.to_string(), shown);
            assert_eq!(size.to_string().parse(), Ok(size));
        }
        for bad in ["", "MiB", "-1", "1 parsec", "1.2.3", "99999999999999TiB", "1e99TiB", "9999999999.5TiB"] {
            assert!(bad.parse::<Size>().is_err(), "{bad}");
        }
    }

    #[test]
    fn spans() {
        for text in ["30s", "5m", "250ms", "1h 30m", "7days"] {
            let span: Span = text.parse().unwrap();
            assert_eq!(span.to_string(), text);
        }
        for bad in ["", "5", "soon", "-1s"] {
            assert!(bad.parse::<Span>().is_err(), "{bad}");
        }
    }

    #[test]
    fn in_yaml() {
        let read = |text: &str| serde_saphyr::from_str::<Vec<Size>>(text);
        assert_eq!(read("[8MiB, 4096, '1KiB']").unwrap(), [Size(8 << 20), Size(4096), Size(1024)]);
        assert!(read("[true]").is_err());
        assert_eq!(serde_saphyr::from_str::<Vec<Span>>("[30s]").unwrap(), [Span(Duration::from_secs(30))]);
        let error = serde_saphyr::from_str::<Vec<Span>>("[30]").unwrap_err().to_string();
        assert!(error.contains("30 lacks its unit"), "{error}");
    }
}
