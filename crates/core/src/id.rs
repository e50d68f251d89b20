use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

/// The identity of one content to distribute: 32 bytes, written as 64 lower-case hex digits.
///
/// Two hosts that compute the same id mean the same bytes. See [`crate::Identity`] for how it is derived.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId([u8; 32]);

/// A text that is not 64 hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a task id is 64 hex digits")]
pub struct TaskIdError;

impl TaskId {
    /// The id with these bytes.
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The id's bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl FromStr for TaskId {
    type Err = TaskIdError;

    fn from_str(text: &str) -> Result<Self, TaskIdError> {
        parse_hex(text).map(Self).ok_or(TaskIdError)
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_hex(f, &self.0)
    }
}

impl fmt::Debug for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Parses exactly `2 * N` hex digits of either case.
pub(crate) fn parse_hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digits = text.as_bytes();
    if digits.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = (pair[0] as char).to_digit(16)?;
        let low = (pair[1] as char).to_digit(16)?;
        *byte = (high * 16 + low) as u8;
    }
    Some(bytes)
}

pub(crate) fn write_hex(f: &mut fmt::Formatter<'_>, bytes: &[u8]) -> fmt::Result {
    bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
}

macro_rules! text_id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Arc<str>);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                Self(text.into())
            }
        }

        impl From<String> for $name {
            fn from(text: String) -> Self {
                Self(text.into())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

text_id! {
    /// One machine's daemon, as it names itself: `ip-hostname`, with `-seed` for a seed peer. Opaque to everyone else.
    HostId
}

text_id! {
    /// A host's part in ONE task: `ip-hostname-uuid`, with `-seed` for a seed peer. Opaque to everyone else.
    PeerId
}

impl HostId {
    /// The id of the daemon on `hostname` at `ip`, in the form that Dragonfly uses.
    pub fn new(ip: std::net::IpAddr, hostname: &str, seed: bool) -> Self {
        let suffix = if seed { "-seed" } else { "" };
        Self::from(format!("{ip}-{hostname}{suffix}"))
    }
}

impl PeerId {
    /// The id of one part that the daemon on `hostname` at `ip` takes in a task. `random` makes it unique; it is
    /// written in the form of a version 4 UUID (RFC 9562, 5.4).
    pub fn new(ip: std::net::IpAddr, hostname: &str, random: u128, seed: bool) -> Self {
        let suffix = if seed { "-seed" } else { "" };
        Self::from(format!("{ip}-{hostname}-{}{suffix}", uuid(random)))
    }
}

impl PeerId {
    /// Another part of the same daemon in the same task, where the next one may not have the name of the last.
    pub fn renamed(&self, random: u128) -> Self {
        let (name, suffix) = match self.as_str().strip_suffix("-seed") {
            Some(name) => (name, "-seed"),
            None => (self.as_str(), ""),
        };
        let host = name.len().checked_sub(UUID).and_then(|end| name.get(..end)).unwrap_or(name);
        Self::from(format!("{host}{}{suffix}", uuid(random)))
    }
}

/// The length of a UUID.
const UUID: usize = 36;

/// Random bits in the form of a version 4 UUID (RFC 9562, 5.4).
fn uuid(random: u128) -> String {
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let (a, b, c) = (bits >> 96, (bits >> 80) & 0xffff, (bits >> 64) & 0xffff);
    let (d, e) = ((bits >> 48) & 0xffff, bits & 0xffff_ffff_ffff);
    format!("{a:08x}-{b:04x}-{c:04x}-{d:04x}-{e:012x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn task_id_reads_what_it_writes_and_refuses_the_rest() {
        let text = "00ff".repeat(16);
        assert_eq!(text.parse::<TaskId>().unwrap().to_string(), text);
        assert_eq!(text.to_uppercase().parse::<TaskId>().unwrap().to_string(), text);
        for bad in ["", "00", &"0g".repeat(32), &"0".repeat(65), &"é".repeat(32)] {
            assert_eq!(bad.parse::<TaskId>(), Err(TaskIdError), "{bad}");
        }
    }

    #[test]
    fn peer_id_ends_in_a_version_4_uuid() {
        let id = PeerId::new([127, 0, 0, 1].into(), "a", u128::MAX, true);
        assert_eq!(id.as_str(), "127.0.0.1-a-ffffffff-ffff-4fff-bfff-ffffffffffff-seed");
        let id = PeerId::new([127, 0, 0, 1].into(), "a", 0, false);
        assert_eq!(id.as_str(), "127.0.0.1-a-00000000-0000-4000-8000-000000000000");
        assert_eq!(id.renamed(u128::MAX).as_str(), "127.0.0.1-a-ffffffff-ffff-4fff-bfff-ffffffffffff");
        let seed = PeerId::new([127, 0, 0, 1].into(), "a", 0, true);
        assert_eq!(seed.renamed(u128::MAX).as_str(), "127.0.0.1-a-ffffffff-ffff-4fff-bfff-ffffffffffff-seed");
    }
}
