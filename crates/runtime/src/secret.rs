//! Texts that are read from the configuration and never printed.

use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// What stands for a secret where the configuration is printed.
const REDACTED: &str = "<redacted>";

/// A secret. **Neither `Debug` nor `Serialize` shows it.**
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// The secret itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(REDACTED)
    }
}

impl Serialize for Secret {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(if self.0.is_empty() { "" } else { REDACTED })
    }
}

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        if text == REDACTED {
            return Err(D::Error::custom("this is a printed configuration: put the secret itself here"));
        }
        Ok(Self(text))
    }
}

/// The fewest characters of a fleet's token.
const SHORTEST: usize = 16;

/// What a fleet's members show each other: `security`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Security {
    /// The token itself.
    pub token: Option<Secret>,
    /// A file that holds it.
    pub token_file: Option<PathBuf>,
}

impl Security {
    /// The fleet's token, if there is one.
    ///
    /// # Errors
    /// The key at fault, and why.
    pub fn token(&self) -> Result<Option<Secret>, (&'static str, String)> {
        let (key, token) = match (&self.token, &self.token_file) {
            (None, None) => return Ok(None),
            (Some(token), None) => ("security.token", token.clone()),
            (None, Some(path)) => ("security.tokenFile", read(path).map_err(|why| ("security.tokenFile", why))?),
            (Some(_), Some(_)) => {
                return Err(("security.tokenFile", "there is a security.token, too: keep one".into()));
            }
        };
        let text = token.reveal();
        if text.len() < SHORTEST || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            let why = format!(
                "must be {SHORTEST} or more printable ASCII characters without spaces, such as those of `openssl rand -hex 32`"
            );
            return Err((key, why));
        }
        Ok(Some(token))
    }
}

fn read(path: &Path) -> Result<Secret, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("{} cannot be read: {error}", path.display()))?;
    Ok(Secret(text.trim().to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn security(token: Option<&str>, file: Option<&Path>) -> Security {
        Security { token: token.map(|token| Secret(token.into())), token_file: file.map(Path::to_owned) }
    }

    #[test]
    fn a_token_comes_from_the_configuration_or_from_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "0123456789abcdef\n").unwrap();
        let token = Some(Secret("0123456789abcdef".into()));
        assert_eq!(security(None, None).token(), Ok(None));
        assert_eq!(security(Some("0123456789abcdef"), None).token(), Ok(token.clone()));
        assert_eq!(security(None, Some(file.path())).token(), Ok(token));
        let key = |security: Security| security.token().unwrap_err().0;
        assert_eq!(key(security(Some(""), None)), "security.token");
        assert_eq!(key(security(Some("with a space in it"), None)), "security.token");
        assert_eq!(key(security(Some("0123456789abcdef"), Some(file.path()))), "security.tokenFile");
        assert_eq!(key(security(None, Some(Path::new("/nowhere")))), "security.tokenFile");
        let shown = format!("{:?}", security(Some("0123456789abcdef"), None));
        assert!(!shown.contains("0123"), "{shown}");
    }
}
