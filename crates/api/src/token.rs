//! Who may take part in a fleet: who shows its token with every call.
//!
//! The token travels as `authorization: Bearer TOKEN`, in clear where the connection is.

use std::fmt;
use std::sync::Arc;

use tonic::metadata::{Ascii, MetadataValue};
use tonic::service::Interceptor;
use tonic::{Request, Status};

/// Shows the fleet's token with every call, where there is one.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct ShowToken(Option<MetadataValue<Ascii>>);

impl ShowToken {
    /// Shows this token: printable ASCII. Another text is not shown, and then refused.
    pub fn new(token: Option<&str>) -> Self {
        let value = token.and_then(|token| MetadataValue::try_from(format!("Bearer {token}")).ok());
        Self(value.map(|mut value| {
            value.set_sensitive(true);
            value
        }))
    }
}

impl fmt::Debug for ShowToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "ShowToken(..)" } else { "ShowToken(none)" })
    }
}

impl Interceptor for ShowToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(value) = &self.0 {
            request.metadata_mut().insert("authorization", value.clone());
        }
        Ok(request)
    }
}

/// Refuses calls that do not show the fleet's token, where there is one.
#[derive(Clone, Default)]
pub struct DemandToken(Option<Arc<blake3::Hash>>);

impl DemandToken {
    /// Demands this token.
    pub fn new(token: Option<&str>) -> Self {
        Self(token.map(|token| Arc::new(blake3::hash(format!("Bearer {token}").as_bytes()))))
    }
}

impl fmt::Debug for DemandToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "DemandToken(..)" } else { "DemandToken(none)" })
    }
}

impl Interceptor for DemandToken {
    fn call(&mut self, request: Request<()>) -> Result<Request<()>, Status> {
        let Some(wanted) = &self.0 else { return Ok(request) };
        match request.metadata().get("authorization") {
            // Hashes are compared in constant time.
            Some(shown) if blake3::hash(shown.as_bytes()) == **wanted => Ok(request),
            Some(_) => {
                Err(Status::unauthenticated("not the token of this fleet: compare security.token on both hosts"))
            }
            None => Err(Status::unauthenticated("this fleet asks for a token: set security.token")),
        }
    }
}

#[cfg(test)]
mod tests {
    use tonic::Code;

    use super::*;

    fn refused(shown: Option<&str>, demanded: Option<&str>) -> Option<Code> {
        let request = ShowToken::new(shown).call(Request::new(())).unwrap();
        DemandToken::new(demanded).call(request).err().map(|status| status.code())
    }

    #[test]
    fn only_the_same_token_passes() {
        assert_eq!(refused(None, None), None);
        assert_eq!(refused(Some("a"), None), None, "who has one speaks with those that have none");
        assert_eq!(refused(Some("a"), Some("a")), None);
        for shown in [None, Some("b"), Some(""), Some("aa"), Some("A")] {
            assert_eq!(refused(shown, Some("a")), Some(Code::Unauthenticated), "{shown:?}");
        }
        assert!(!format!("{:?} {:?}", ShowToken::new(Some("xyz")), DemandToken::new(Some("xyz"))).contains("xyz"));
    }
}
