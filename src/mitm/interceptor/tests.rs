//! With clients that trust nothing but the CA, and with openssl where it is installed.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use x509_parser::extensions::{GeneralName, ParsedExtension};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::*;

fn authority(dir: &Path) -> CertificateAuthority {
    CertificateAuthority::load_or_create(dir).unwrap()
}

fn client(pem: &str, alpn: &[&str]) -> TlsConnector {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()).unwrap();
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn a_client_that_trusts_only_the_ca_accepts_names_and_addresses() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let pem = ca.pem().to_owned();
    let interceptor = Interceptor::new(ca).unwrap();
    for (asked, named, alpn, good) in [
        ("a.example", "a.example", "h2", true),
        ("A.Example.", "a.example", "http/1.1", true),
        ("192.0.2.1", "192.0.2.1", "h2", true),
        ("[2001:db8::1]", "2001:db8::1", "h2", true),
        ("a.example", "b.example", "h2", false),
        ("a.example", "192.0.2.1", "h2", false),
    ] {
        let (near, far) = tokio::io::duplex(1 << 14);
        let name = ServerName::try_from(named.to_owned()).unwrap();
        let connector = client(&pem, &[alpn]);
        let (server, client) = tokio::join!(interceptor.accept(far, asked), connector.connect(name, near));
        assert_eq!(client.is_ok(), good, "{asked} {named} {:?}", client.err());
        if good {
            assert_eq!(server.unwrap().get_ref().1.alpn_protocol(), Some(alpn.as_bytes()));
        }
    }
}

#[test]
fn the_certificates_have_what_strict_clients_ask_for() {
    let dir = tempfile::tempdir().unwrap();
    let ca = authority(dir.path());
    let ca_der = ca.der.clone();
    let issuer = LeafIssuer::new(ca).unwrap();
    let (_, ca) = X509Certificate::from_der(&ca_der).unwrap();
    let basic = ca.basic_constraints().unwrap().unwrap();
    let usage = ca.key_usage().unwrap().unwrap();
    assert!(basic.critical && basic.value.ca);
    assert!(usage.critical && usage.value.key_cert_sign() && usage.value.crl_sign());
    let identifier = |certificate: &X509Certificate<'_>, authority: bool| {
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectKeyIdentifier(id) if !authority => Some(id.0.to_vec()),
            ParsedExtension::AuthorityKeyIdentifier(id) if authority => Some(id.key_identifier.as_ref()?.0.to_vec()),
            _ => None,
        })
    };
    let long = format!("{}.example", "a".repeat(60));
    let mut serials = Vec::new();
    for host in ["a.example", "192.0.2.1", &long] {
        let chain = issuer.leaf(host).unwrap().cert;
        let (_, leaf) = X509Certificate::from_der(&chain[0]).unwrap();
        leaf.verify_signature(Some(ca.public_key())).unwrap();
        assert!(identifier(&leaf, true).is_some());
        assert_eq!(identifier(&leaf, true), identifier(&ca, false));
        assert!(leaf.extended_key_usage().unwrap().unwrap().value.server_auth);
        let names = leaf.subject_alternative_name().unwrap().unwrap();
        // Without a subject, the names are what the certificate is about.
        assert_eq!(names.critical, leaf.subject().iter().count() == 0);
        match &names.value.general_names[..] {
            [GeneralName::DNSName(name)] => assert_eq!(*name, host),
            [GeneralName::IPAddress(ip)] => assert_eq!(*ip, [192, 0, 2, 1]),
            other => panic!("{other:?}"),
        }
        let (begin, end) = (leaf.validity().not_before.timestamp(), leaf.validity().not_after.timestamp());
        assert_eq!((end - begin) / 86400, 199);
        assert!(begin <= x509_parser::time::ASN1Time::now().timestamp() - 2 * 86400 + 60);
        assert_ne!(leaf.public_key().raw, ca.public_key().raw);
        serials.push(leaf.raw_serial().to_vec());
    }
    serials.dedup();
    assert_eq!(serials.len(), 3);
}

#[test]
fn a_leaf_is_minted_once_for_all_ways_to_write_its_host() {
    let dir = tempfile::tempdir().unwrap();
    let interceptor = Interceptor::new(authority(dir.path())).unwrap();
    let first = interceptor.config("a.example").unwrap();
    assert!(Arc::ptr_eq(&first, &interceptor.config("A.example.").unwrap()));
    assert!(!Arc::ptr_eq(&first, &interceptor.config("b.example").unwrap()));
    assert!(interceptor.config("\u{e4}.example").is_err());
}

#[test]
fn the_ca_is_made_once_and_its_key_is_its_owners() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("data");
    let made = authority(&dir).pem().to_owned();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!((mode(&dir), mode(&dir.join("ca.key"))), (0o700, 0o600));
    assert_eq!(authority(&dir).pem(), made);

    fs::set_permissions(dir.join("ca.key"), fs::Permissions::from_mode(0o640)).unwrap();
    let error = CertificateAuthority::load_or_create(&dir).unwrap_err();
    assert!(matches!(error, CaError::Mode { mode: 0o640, .. }) && error.to_string().contains("0640"), "{error}");

    fs::remove_file(dir.join("ca.key")).unwrap();
    assert!(matches!(CertificateAuthority::load_or_create(&dir), Err(CaError::KeyMissing { .. })));
    fs::remove_file(dir.join("ca.pem")).unwrap();
    assert_ne!(authority(&dir).pem(), made);
}

#[test]
fn a_pair_that_is_no_ca_is_refused_at_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let (one, other) = (dir.path().join("one"), dir.path().join("other"));
    authority(&one);
    let issuer = LeafIssuer::new(authority(&other)).unwrap();
    let mixed = CertificateAuthority::load(&one.join("ca.pem"), &other.join("ca.key")).unwrap_err();
    assert!(mixed.to_string().contains("not the key of this certificate"), "{mixed}");

    let leaf = pem(&issuer.leaf("a.example").unwrap().cert[0]);
    fs::write(one.join("leaf.pem"), leaf).unwrap();
    let leaf = CertificateAuthority::load(&one.join("leaf.pem"), &one.join("ca.key")).unwrap_err();
    assert!(leaf.to_string().contains("not the certificate of a CA"), "{leaf}");

    fs::write(one.join("ca.pem"), "nonsense").unwrap();
    assert!(CertificateAuthority::load_or_create(&one).is_err());
}

/// Written out by hand: nothing of ours needs to write a leaf.
fn pem(der: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in der.chunks(3) {
        let word = three.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - three.len()));
        for place in 0..4 {
            let digit = char::from(DIGITS[(word >> (18 - 6 * place) & 63) as usize]);
            text.push(if place <= three.len() { digit } else { '=' });
        }
    }
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

#[test]
fn openssl_accepts_the_chain_strictly() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = LeafIssuer::new(authority(dir.path())).unwrap();
    for (host, option) in [("a.example", "-verify_hostname"), ("192.0.2.1", "-verify_ip")] {
        let leaf = dir.path().join("leaf.x509");
        fs::write(&leaf, pem(&issuer.leaf(host).unwrap().cert[0])).unwrap();
        let mut verify = Command::new("openssl");
        verify.args(["verify", "-x509_strict", "-purpose", "sslserver", option, host, "-CAfile"]);
        verify.arg(dir.path().join("ca.pem")).arg(&leaf);
        match verify.output() {
            Err(_) => return println!("skipped: openssl"),
            Ok(output) => assert!(output.status.success(), "{host} {}", String::from_utf8_lossy(&output.stderr)),
        }
    }
}
