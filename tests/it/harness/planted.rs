//! Credentials that a test plants, in every spelling in which they could turn up where they must not.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use regex::bytes::Regex;

use super::{SECRET, basic};

/// Planted credentials, whatever they are written as.
pub(crate) struct Planted(Regex);

impl Planted {
    /// [`SECRET`], by itself and as this user's password in `Authorization`.
    pub(crate) fn of(user: &str) -> Self {
        let coded = basic(user, SECRET)["Basic ".len()..].to_owned();
        let all: Vec<_> = [SECRET, &coded].iter().flat_map(|text| spellings(text.as_bytes())).collect();
        Self(Regex::new(&all.iter().map(|text| regex::escape(text)).collect::<Vec<_>>().join("|")).expect("valid"))
    }

    /// Whether one of them is in these bytes.
    pub(crate) fn is_in(&self, bytes: &[u8]) -> bool {
        self.0.is_match(bytes)
    }
}

/// As it is, in hexadecimal digits, and in base64 at whichever offset.
fn spellings(text: &[u8]) -> Vec<String> {
    let hex = text.iter().map(|byte| format!("{byte:02x}")).collect();
    let mut all = vec![String::from_utf8_lossy(text).into_owned(), hex];
    for offset in 0..3 {
        let shifted = [&vec![0; offset][..], text].concat();
        // Digits at either end hold bits of what stands beside the text.
        let digits = (offset * 8).div_ceil(6)..shifted.len() * 8 / 6;
        for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
            all.push(engine.encode(&shifted)[digits.clone()].to_owned());
        }
    }
    all
}
