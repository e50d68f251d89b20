//! `dfctl certs`: the authority of a fleet, and the certificates of its members.
//!
//! **Nothing is written over**, but for a member's own pair when it is renewed. The authority's key is needed only here: it
//! stays where the certificates are made.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use damselfly_runtime::UsageError;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

const CA_CERT: &str = "fleet-ca.pem";
const CA_KEY: &str = "fleet-ca.key";
const DAY: Duration = Duration::from_secs(24 * 3600);
/// How long the authority is good for.
const CA_DAYS: u32 = 3650;
/// Clocks of hosts differ.
const BACKDATED: Duration = Duration::from_secs(3600);

/// What to make.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make a fleet's authority: fleet-ca.pem, which every member is given, and fleet-ca.key, which stays here
    Ca {
        /// Where to; it must not have one
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Make a member's certificate and key, NAME.pem and NAME.key, signed by the authority in the directory
    Member {
        /// Where the authority is
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
        /// The member's name: host.hostname of a daemon; of a scheduler any other
        #[arg(long, value_name = "NAME")]
        name: String,
        /// Where to put them [default: where the authority is]
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
        /// For how many days the certificate is good
        #[arg(long, default_value_t = 365, value_name = "DAYS", value_parser = clap::value_parser!(u32).range(1..=3650))]
        days: u32,
        /// Put a new pair in the place of one that is there
        #[arg(long)]
        renew: bool,
    },
}

pub(super) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Ca { dir } => authority(dir),
        Command::Member { dir, name, out, days, renew } => {
            member(dir, name, out.as_deref().unwrap_or(dir), *days, *renew)
        }
    }
}

fn authority(dir: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
    let (cert, key) = (dir.join(CA_CERT), dir.join(CA_KEY));
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name = named("Damselfly fleet");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_DAYS);
    write_new(&key, 0o600, &pair.serialize_pem())?;
    write_new(&cert, 0o644, &params.self_signed(&pair)?.pem())?;
    println!("made {} and {} (keep the key secret: who has it can make members)", cert.display(), key.display());
    println!("then, for each host and scheduler: dfctl certs member --dir {} --name NAME", dir.display());
    Ok(())
}

fn member(dir: &Path, name: &str, out: &Path, days: u32, renew: bool) -> anyhow::Result<()> {
    let is_label = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    if name.is_empty() || name.starts_with(['.', '-']) || !name.chars().all(is_label) {
        return Err(UsageError::new(format!("--name: {name:?} is not a host name")).into());
    }
    let read = |name| {
        let path = dir.join(name);
        fs::read_to_string(&path)
            .with_context(|| format!("{}: make the authority first: dfctl certs ca", path.display()))
    };
    let authority = KeyPair::from_pem(&read(CA_KEY)?).context("the authority's key")?;
    let issuer = Issuer::from_ca_cert_pem(&read(CA_CERT)?, authority).context("the authority's certificate")?;
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec![name.to_owned()]).context("the name")?;
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    valid_for(&mut params, days);
    let signed = params.signed_by(&pair, &issuer).context("signing")?;
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let (cert, key) = (out.join(format!("{name}.pem")), out.join(format!("{name}.key")));
    let write = if renew { replace } else { write_new };
    write(&key, 0o600, &pair.serialize_pem())?;
    write(&cert, 0o644, &signed.pem())?;
    println!("made {} and {}, good for {days} days; in its configuration:", cert.display(), key.display());
    let ca = dir.join(CA_CERT);
    println!("security:\n  caCert: {}\n  cert: {}\n  key: {}", ca.display(), cert.display(), key.display());
    Ok(())
}

fn named(name: &str) -> DistinguishedName {
    let mut full = DistinguishedName::new();
    full.push(DnType::CommonName, name);
    full
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    (params.not_before, params.not_after) = ((now - BACKDATED).into(), (now + DAY * days).into());
}

fn write_new(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let file = OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let mut file = file.with_context(|| format!("writing {}", path.display()))?;
    file.write_all(text.as_bytes()).with_context(|| format!("writing {}", path.display()))
}

/// Puts a whole file in the place of one: who reads it meanwhile reads one or the other.
fn replace(path: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let mut fresh = path.as_os_str().to_owned();
    fresh.push(".new");
    let fresh = PathBuf::from(fresh);
    let _ = fs::remove_file(&fresh);
    write_new(&fresh, mode, text)?;
    fs::rename(&fresh, path).with_context(|| format!("writing {}", path.display()))
}
