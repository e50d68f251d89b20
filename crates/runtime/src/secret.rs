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
    /// The authority that signs the certificates of the fleet's members.
    pub ca_cert: Option<PathBuf>,
    /// This member's certificate.
    pub cert: Option<PathBuf>,
    /// Its key.
    pub key: Option<PathBuf>,
    /// Whether only members are heard.
    #[serde(rename = "requireTLS")]
    pub require_tls: bool,
}

/// Where a member's certificate is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MemberFiles {
    /// The authority that signs the certificates of the fleet's members.
    pub ca_cert: PathBuf,
    /// This member's certificate.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
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

impl Security {
    /// Whether strangers are refused.
    pub const fn demands(&self) -> bool {
        self.require_tls || self.token.is_some() || self.token_file.is_some()
    }

    /// Goes on as if there were no certificates.
    pub fn forget_certificates(&mut self) {
        (self.ca_cert, self.cert, self.key, self.require_tls) = (None, None, None, false);
    }

    /// Where this member's certificate is, if it has one.
    ///
    /// # Errors
    /// The key at fault, and why.
    pub fn member_files(&self) -> Result<Option<MemberFiles>, (&'static str, String)> {
        let set = |path: &Option<PathBuf>| path.clone().filter(|path| !path.as_os_str().is_empty());
        match (set(&self.ca_cert), set(&self.cert), set(&self.key)) {
            (Some(ca_cert), Some(cert), Some(key)) => Ok(Some(MemberFiles { ca_cert, cert, key })),
            (None, None, None) if self.require_tls => {
                Err(("security.requireTLS", "needs security.caCert, security.cert and security.key".into()))
            }
            (None, None, None) => Ok(None),
            (None, _, _) => Err(("security.caCert", "has no value: set caCert, cert and key, or none of them".into())),
            (_, None, _) => Err(("security.cert", "has no value: set caCert, cert and key, or none of them".into())),
            (_, _, None) => Err(("security.key", "has no value: set caCert, cert and key, or none of them".into())),
        }
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
        Security {
            token: token.map(|token| Secret(token.into())),
            token_file: file.map(Path::to_owned),
            ..Security::default()
        }
    }

    #[test]
    fn a_member_has_all_three_files_or_none() {
        let path = |name: &str| Some(PathBuf::from(name));
        let with = |ca_cert, cert, key, require_tls| {
            Security { ca_cert, cert, key, require_tls, ..Security::default() }.member_files()
        };
        assert_eq!(with(None, path(""), None, false), Ok(None));
        assert!(with(path("a"), path("b"), path("c"), true).unwrap().is_some());
        let key = |found: Result<Option<MemberFiles>, (&'static str, String)>| found.unwrap_err().0;
        assert_eq!(key(with(None, path("b"), path("c"), false)), "security.caCert");
        assert_eq!(key(with(path("a"), None, path("c"), false)), "security.cert");
        assert_eq!(key(with(path("a"), path("b"), None, false)), "security.key");
        assert_eq!(key(with(None, None, None, true)), "security.requireTLS");
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
