//! Interception of TLS: certificate authority, leaf certificates, and which hosts are intercepted.
