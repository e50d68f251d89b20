//! A certificate authority of the test's own.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

/// Signs certificates for origins.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

impl Authority {
    /// The name that stands as issuer in what this authority signs.
    pub(crate) const NAME: &'static str = "Origin Test CA";

    pub(crate) fn new() -> Self {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, Self::NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), pem }
    }

    /// The authority's own certificate.
    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    /// What a server on the loopback address needs.
    pub(crate) fn server_config(&self) -> Arc<rustls::ServerConfig> {
        self.server_config_for(vec!["localhost".into(), "127.0.0.1".into()], false)
    }

    /// What a server of these names needs. It may ask clients for a certificate of this authority, which they may leave
    /// out: what they are told then is the server's to say.
    pub(crate) fn server_config_for(&self, names: Vec<String>, asks_clients: bool) -> Arc<rustls::ServerConfig> {
        let (certificate, key) = self.sign(names);
        let builder = rustls::ServerConfig::builder_with_provider(provider());
        let builder = builder.with_safe_default_protocol_versions().expect("versions");
        let builder = if asks_clients {
            let mut roots = rustls::RootCertStore::empty();
            roots.add_parsable_certificates(CertificateDer::pem_slice_iter(self.pem.as_bytes()).flatten());
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider());
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().expect("an authority"))
        } else {
            builder.with_no_client_auth()
        };
        let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key that was just made");
        let config = builder.with_single_cert(vec![certificate.der().clone()], key);
        Arc::new(config.expect("the key belongs to the certificate"))
    }

    /// The certificate and the key of a server of these names, in PEM.
    pub(crate) fn certificate_for(&self, names: &[&str]) -> (String, String) {
        let (certificate, key) = self.sign(names.iter().map(|&name| name.to_owned()).collect());
        (certificate.pem(), key.serialize_pem())
    }

    /// The certificate and the key of a client, in PEM.
    pub(crate) fn client_certificate(&self) -> (String, String) {
        let (certificate, key) = self.sign(vec!["client.test".into()]);
        (certificate.pem(), key.serialize_pem())
    }

    fn sign(&self, names: Vec<String>) -> (rcgen::Certificate, KeyPair) {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(names).expect("valid names");
        params.use_authority_key_identifier_extension = true;
        let certificate = params.signed_by(&key, &self.issuer).expect("a signature");
        (certificate, key)
    }
}

/// What a client needs that trusts only the authority in `pem`, and shows a certificate with its key, in PEM.
pub(crate) fn client_config(pem: &[u8], identity: Option<&(String, String)>) -> Arc<rustls::ClientConfig> {
    let mut roots = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        roots.add(certificate.expect("a certificate in PEM")).expect("a usable authority");
    }
    let config = rustls::ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots);
    let config = match identity {
        None => config.with_no_client_auth(),
        Some((certificate, key)) => {
            let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).expect("a certificate in PEM");
            let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).expect("a key in PEM");
            config.with_client_auth_cert(vec![certificate], key).expect("the key belongs to the certificate")
        }
    };
    Arc::new(config)
}

fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
