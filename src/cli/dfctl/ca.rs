//! `dfctl ca`: the authority of a host or of a fleet, and who trusts it.

use std::path::{Path, PathBuf};

use damselfly_runtime::UsageError;
use serde_json::json;

use super::found::Daemon;
use super::stores::Store;
use crate::mitm::CertificateAuthority;

/// What to do with the authority.
#[derive(Debug, clap::Subcommand)]
pub enum Command {
    /// Make an authority that all hosts of a fleet are given: ca.pem and ca.key
    Create {
        /// Where to; it must not have one
        #[arg(long, value_name = "DIR")]
        dir: PathBuf,
    },
    /// Print the certificate in PEM, and on stderr what it is
    Show {
        /// The certificate [default: the running daemon's]
        #[arg(long, value_name = "FILE")]
        cert: Option<PathBuf>,
        /// text or json
        #[arg(short, long, default_value = "text", value_name = "FORMAT")]
        output: Output,
    },
    /// Have this system trust the authority
    Install(Install),
    /// Have this system trust it no more
    Uninstall(Install),
}

/// How something is printed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Output {
    /// For people.
    Text,
    /// For programs.
    Json,
}

/// Where to install, and what.
#[derive(Debug, clap::Args)]
pub struct Install {
    /// The certificate [default: the running daemon's]
    #[arg(long, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// The root of the system that is changed; in another than / no command is run
    #[arg(long, default_value = "/", value_name = "DIR")]
    root: PathBuf,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
}

pub(super) fn run(command: &Command, daemon: &Daemon) -> anyhow::Result<()> {
    match command {
        Command::Create { dir } => create(dir),
        Command::Show { cert, output } => show(daemon, cert.as_deref(), *output),
        Command::Install(install) => add(daemon, install),
        Command::Uninstall(install) => remove(install),
    }
}

fn create(dir: &Path) -> anyhow::Result<()> {
    let dir = std::path::absolute(dir)?;
    CertificateAuthority::create(&dir)?;
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    println!("made {} and {} (keep the key secret: it can sign for every host)", cert.display(), key.display());
    println!("give both to every host of the fleet, and name them in its dfdaemon.yaml:");
    println!("proxy:\n  server:\n    caCert: {}\n    caKey: {}", cert.display(), key.display());
    println!("then, on every host: dfctl ca install");
    Ok(())
}

fn show(daemon: &Daemon, cert: Option<&Path>, output: Output) -> anyhow::Result<()> {
    let (certificate, from) = daemon.certificate(cert)?;
    if output == Output::Json {
        let all = json!({
            "from": from,
            "subject": certificate.subject,
            "sha256": certificate.sha256,
            "notAfter": certificate.not_after,
            "pem": certificate.pem,
        });
        println!("{all:#}");
        return Ok(());
    }
    print!("{}", certificate.pem);
    eprintln!("from {from}: {}\nSHA-256 {}\nuntil {}", certificate.subject, certificate.sha256, certificate.not_after);
    Ok(())
}

fn store(root: &Path) -> anyhow::Result<Store> {
    let none = || {
        UsageError::new(format!(
            "{}: no store of trusted authorities that is known here: install the package ca-certificates",
            root.display()
        ))
    };
    Ok(Store::find(root).ok_or_else(none)?)
}

fn add(daemon: &Daemon, install: &Install) -> anyhow::Result<()> {
    let (certificate, from) = daemon.certificate(install.cert.as_deref())?;
    let store = store(&install.root)?;
    let file = store.add(&certificate.pem, install.dry_run)?;
    let verb = if install.dry_run { "would write" } else { "wrote" };
    println!("{verb} the certificate of {from} (SHA-256 {}) to {}", certificate.sha256, file.display());
    store.refresh(store.refresh_command(), install.dry_run)?;
    println!("\nWhat does not read the system's store:");
    let file = file.display();
    println!("  JVM     keytool -importcert -cacerts -storepass changeit -noprompt -alias damselfly -file {file}");
    println!("  Node    export NODE_EXTRA_CA_CERTS={file}");
    println!("  Python  export REQUESTS_CA_BUNDLE={0} SSL_CERT_FILE={0}", store.bundle());
    println!("  or, for all but the JVM: eval \"$(dfctl env)\"");
    Ok(())
}

fn remove(install: &Install) -> anyhow::Result<()> {
    let store = store(&install.root)?;
    let file = store.file();
    if !store.remove(install.dry_run)? {
        println!("{} is not there: there is nothing to take out", file.display());
        return Ok(());
    }
    println!("{} {}", if install.dry_run { "would remove" } else { "removed" }, file.display());
    store.refresh(store.forget_command(), install.dry_run)?;
    println!("\nA JVM that was told of it: keytool -delete -cacerts -storepass changeit -alias damselfly");
    Ok(())
}
