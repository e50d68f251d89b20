//! This installation's certificate authority: made once, then loaded.

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    PKCS_ECDSA_P256_SHA256, PublicKeyData as _, SerialNumber,
};
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use sha2::{Digest as _, Sha256};
use tracing::info;

use super::files::{self, CaError};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// How long a CA of ours lives. Long, because trusting it is manual work on every client.
const LIFE: Duration = Duration::from_secs(3650 * 24 * 60 * 60);
/// Certificates begin before they are made, for clients whose clocks are behind.
pub(super) const BACKDATE: Duration = Duration::from_secs(2 * 24 * 60 * 60);

/// A CA certificate and the key that signs leaf certificates.
pub struct CertificateAuthority {
    pub(super) issuer: Issuer<'static, KeyPair>,
    pub(super) der: CertificateDer<'static>,
    pub(super) not_after: SystemTime,
    pem: String,
}

impl CertificateAuthority {
    /// The CA of `ca.pem` and `ca.key` in `dir`; made there if there is none.
    ///
    /// # Errors
    /// The files cannot be read or written, others can read the key, or they are no CA.
    pub fn load_or_create(dir: &Path) -> Result<Self, CaError> {
        let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
        match (cert.exists(), key.exists()) {
            (true, true) => Self::load(&cert, &key),
            (true, false) => Err(CaError::KeyMissing { cert, key }),
            // A key without a certificate is what a crash leaves; nobody can trust that CA yet.
            (false, _) => {
                let ca = Self::write_new(dir)?;
                info!(certificate = %cert.display(), "made a certificate authority for the hosts to be intercepted");
                Ok(ca)
            }
        }
    }

    /// Makes a CA for a fleet: `ca.pem` and `ca.key` in `dir`, where neither may be.
    ///
    /// # Errors
    /// There is one already, or the files cannot be written.
    pub fn create(dir: &Path) -> Result<Self, CaError> {
        match ["ca.pem", "ca.key"].map(|name| dir.join(name)).into_iter().find(|file| file.exists()) {
            Some(path) => Err(CaError::Exists { path }),
            None => Self::write_new(dir),
        }
    }

    /// An authority that is kept nowhere: nobody can trust it.
    ///
    /// # Errors
    /// The system has no randomness.
    pub fn for_this_process() -> Result<Self, CaError> {
        Ok(Self::generate()?.0)
    }

    fn write_new(dir: &Path) -> Result<Self, CaError> {
        files::make_dir(dir)?;
        let (ca, secret) = Self::generate()?;
        files::write(&dir.join("ca.key"), 0o600, &secret)?;
        files::write(&dir.join("ca.pem"), 0o644, &ca.pem)?;
        Ok(ca)
    }

    /// The operator's own CA (`proxy.server.caCert` and `caKey`).
    ///
    /// # Errors
    /// The files cannot be read, others can read the key, or they are no CA.
    pub fn load(cert: &Path, key: &Path) -> Result<Self, CaError> {
        let secret = files::read(key, true)?;
        let pem = files::read(cert, false)?;
        let bad_key =
            || CaError::Invalid { path: key.into(), why: "it is no private key in PEM that we can use".into() };
        let pair = KeyPair::from_pem(&secret).map_err(|_| bad_key())?;
        Self::from_parts(pem, pair).map_err(|why| CaError::Invalid { path: cert.into(), why })
    }

    /// The certificate in PEM: what clients must trust.
    pub fn pem(&self) -> &str {
        &self.pem
    }

    fn generate() -> Result<(Self, String), CaError> {
        let make = |error: rcgen::Error| CaError::Make(error.to_string());
        let pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(make)?;
        let now = SystemTime::now();
        let serial = serial()?;
        // Two installations' CAs must be told apart in a trust store.
        let mark: String = serial.to_bytes().iter().take(4).map(|byte| format!("{byte:02x}")).collect();
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "Damselfly");
        name.push(DnType::CommonName, format!("Damselfly local CA {mark}"));
        let mut params = CertificateParams::default();
        params.not_before = (now - BACKDATE).into();
        params.not_after = (now + LIFE).into();
        params.serial_number = Some(serial);
        params.distinguished_name = name;
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let pem = params.self_signed(&pair).map_err(make)?.pem();
        let secret = pair.serialize_pem();
        Ok((Self::from_parts(pem, pair).map_err(CaError::Make)?, secret))
    }

    /// From a certificate that may come from anywhere: checked here, so that a wrong pair is found at the start and not
    /// by every client.
    fn from_parts(pem: String, pair: KeyPair) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| "it is no certificate in PEM")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| "it is no X.509 certificate")?;
        if !parsed.is_ca() {
            return Err("it is not the certificate of a CA".into());
        }
        if parsed.public_key().raw != pair.subject_public_key_info() {
            return Err("the configured key is not the key of this certificate".into());
        }
        let end = u64::try_from(parsed.validity().not_after.timestamp()).unwrap_or(0);
        let not_after = UNIX_EPOCH + Duration::from_secs(end);
        if not_after < SystemTime::now() + DAY {
            return Err("it has expired or is about to".into());
        }
        let issuer = Issuer::from_ca_cert_der(&der, pair).map_err(|error| format!("it cannot be used: {error}"))?;
        Ok(Self { issuer, der, not_after, pem })
    }
}

/// What can be said of a CA's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate alone, in PEM.
    pub pem: String,
    /// Whose it is.
    pub subject: String,
    /// The SHA-256 of its DER in hex: what people compare.
    pub sha256: String,
    /// When it ends.
    pub not_after: String,
}

impl Certificate {
    /// Reads the first certificate of a text, which has to be a CA's.
    ///
    /// # Errors
    /// It is none; the text says why.
    pub fn of_pem(text: &str) -> Result<Self, String> {
        let der = CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| "it is no certificate in PEM")?;
        let (_, parsed) = x509_parser::parse_x509_certificate(&der).map_err(|_| "it is no X.509 certificate")?;
        if !parsed.is_ca() {
            return Err("it is not the certificate of a CA".into());
        }
        let begin = text.find("-----BEGIN CERTIFICATE-----").ok_or("it is no certificate in PEM")?;
        let end = text[begin..].find("-----END CERTIFICATE-----").ok_or("it is no certificate in PEM")?;
        Ok(Self {
            pem: format!("{}\n", &text[begin..begin + end + "-----END CERTIFICATE-----".len()]),
            subject: parsed.subject().to_string(),
            sha256: fingerprint(&der),
            not_after: parsed.validity().not_after.to_string(),
        })
    }
}

/// The SHA-256 of a certificate, in hex.
pub(super) fn fingerprint(der: &[u8]) -> String {
    Sha256::digest(der).iter().map(|byte| format!("{byte:02x}")).collect()
}

impl std::fmt::Debug for CertificateAuthority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CertificateAuthority").field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// A serial number of its own for each certificate: browsers refuse two of one issuer with the same.
pub(super) fn serial() -> Result<SerialNumber, CaError> {
    let mut bytes = [0; 16];
    let random = aws_lc_rs::default_provider().secure_random;
    random.fill(&mut bytes).map_err(|_| CaError::Make("no random numbers".into()))?;
    // Positive, and of this length always.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}
