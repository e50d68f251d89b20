//! Leaf certificates: one per host, all with one key that lives in this process only.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use super::authority::{BACKDATE, CertificateAuthority, serial};
use super::files::CaError;

/// How long a leaf is good for, with [`BACKDATE`]: clients refuse much longer ones.
const LIFE: Duration = Duration::from_secs(199 * 24 * 60 * 60);
/// The longest common name that X.520 allows.
const MAX_COMMON_NAME: usize = 64;

/// Makes leaves.
pub(super) struct LeafIssuer {
    ca: CertificateAuthority,
    pair: KeyPair,
    signer: Arc<dyn rustls::sign::SigningKey>,
}

impl LeafIssuer {
    /// With a fresh key.
    pub(super) fn new(ca: CertificateAuthority) -> Result<Self, CaError> {
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|error| CaError::Make(error.to_string()))?;
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pair.serialize_der()));
        let signer = aws_lc_rs::sign::any_supported_type(&key).map_err(|error| CaError::Make(error.to_string()))?;
        Ok(Self { ca, pair, signer })
    }

    /// Who signs.
    pub(super) const fn authority(&self) -> &CertificateAuthority {
        &self.ca
    }

    /// A certificate for `host`, a name or an IP address (without brackets), as of now.
    pub(super) fn leaf(&self, host: &str) -> Result<CertifiedKey, CaError> {
        let make = |error: rcgen::Error| CaError::Make(error.to_string());
        let name = match host.parse::<IpAddr>() {
            Ok(ip) => SanType::IpAddress(ip),
            Err(_) => SanType::DnsName(host.try_into().map_err(make)?),
        };
        let now = SystemTime::now();
        let mut subject = DistinguishedName::new();
        if host.len() <= MAX_COMMON_NAME {
            subject.push(DnType::CommonName, host);
        }
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now - BACKDATE + LIFE).min(self.ca.not_after).into();
        params.serial_number = Some(serial()?);
        params.subject_alt_names = vec![name];
        params.distinguished_name = subject;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        let leaf = params.signed_by(&self.pair, &self.ca.issuer).map_err(make)?;
        let chain = vec![leaf.der().clone(), self.ca.der.clone()];
        Ok(CertifiedKey::new(chain, Arc::clone(&self.signer)))
    }
}
