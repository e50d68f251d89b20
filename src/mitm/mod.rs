//! Looking inside TLS where the operator asked for it: which hosts, with whose certificates, and the handshake.
//!
//! `CONNECT host:port` -> [`Policy`]: tunnel (the default), or intercept -> the proxy sees a [`ClientHello`] that we can
//! answer -> [`Interceptor::accept`] ends the TLS with a leaf certificate for that host, minted on the way and signed by this
//! installation's own [`CertificateAuthority`] -> plaintext, which the proxy handles like any other request.
//!
//! **Only hosts in `proxy.intercept.hosts` are ever intercepted. The CA's key signs and does nothing else; it is readable
//! by its owner only. No leaf outlives its CA or 199 days.**

mod authority;
mod files;
mod hello;
mod interceptor;
mod leaf;
mod policy;

pub use authority::{Certificate, CertificateAuthority};
pub use files::CaError;
pub use hello::ClientHello;
#[cfg(feature = "fuzzing")]
pub use hello::fuzz_client_hello;
pub use interceptor::Interceptor;
pub use policy::Policy;
