//! An origin on loopback, plain and over TLS: a thread for each connection.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::aws_lc_rs;
use rustls::{ServerConfig, ServerConnection, StreamOwned};
use rustls_pki_types::PrivateKeyDer;

use crate::{MIB, Result};

/// The length of a small answer, and of a medium one.
const SMALL: u64 = 1024;
const MEDIUM: u64 = MIB;

/// A running origin; its threads end with the process.
pub(crate) struct Origin {
    pub(crate) plain: SocketAddr,
    pub(crate) tls: SocketAddr,
    /// Who signed for it, in PEM.
    pub(crate) authority: String,
}

impl Origin {
    /// One whose `/large` has this length.
    pub(crate) fn start(length: u64) -> Result<Self> {
        let (plain, tls) = (TcpListener::bind("127.0.0.1:0")?, TcpListener::bind("127.0.0.1:0")?);
        let (config, authority) = certified()?;
        let origin = Self { plain: plain.local_addr()?, tls: tls.local_addr()?, authority };
        std::thread::spawn(move || {
            for stream in plain.incoming().flatten() {
                let _ = std::thread::Builder::new().stack_size(256 << 10).spawn(move || {
                    stream.set_nodelay(true)?;
                    let mut writer = stream.try_clone()?;
                    converse(&mut BufReader::new(stream), &mut writer, length)
                });
            }
        });
        std::thread::spawn(move || {
            for stream in tls.incoming().flatten() {
                let config = Arc::clone(&config);
                std::thread::spawn(move || secure(stream, config, length));
            }
        });
        Ok(origin)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.plain)
    }
}

fn secure(stream: TcpStream, config: Arc<ServerConfig>, length: u64) -> Result<()> {
    stream.set_nodelay(true)?;
    let mut stream = StreamOwned::new(ServerConnection::new(config)?, stream);
    while let Some(path) = head(&mut BufReader::with_capacity(1, &mut stream))? {
        answer(&mut stream, &path, length)?;
    }
    Ok(())
}

fn converse(reader: &mut BufReader<TcpStream>, writer: &mut TcpStream, length: u64) -> Result<()> {
    while let Some(path) = head(reader)? {
        answer(writer, &path, length)?;
    }
    Ok(())
}

/// The path that the next request names; `None` behind the last.
fn head<R: Read>(reader: &mut BufReader<R>) -> Result<Option<String>> {
    let (mut path, mut line) = (None, String::new());
    while reader.read_line(&mut line)? > 0 && line != "\r\n" {
        path = path.or_else(|| line.split(' ').nth(1).map(str::to_owned));
        line.clear();
    }
    Ok(path)
}

fn answer(writer: &mut impl Write, path: &str, length: u64) -> Result<()> {
    static BYTES: [u8; 256 * 1024] = [b'x'; 256 * 1024];
    let mut left = if path.ends_with("/large") {
        length
    } else if path.ends_with("/medium") {
        MEDIUM
    } else {
        SMALL
    };
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nCache-Control: private\r\nContent-Length: {left}\r\n\r\n"
    );
    let mut first = head.into_bytes();
    let with_head = left.min(SMALL);
    first.extend_from_slice(&BYTES[..with_head as usize]);
    left -= with_head;
    writer.write_all(&first)?;
    while left > 0 {
        let run = left.min(BYTES.len() as u64);
        writer.write_all(&BYTES[..run as usize])?;
        left -= run;
    }
    writer.flush()?;
    Ok(())
}

fn certified() -> Result<(Arc<ServerConfig>, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let pem = params.self_signed(&key)?.pem();
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(vec!["localhost".to_owned(), "127.0.0.1".to_owned()])?;
    params.use_authority_key_identifier_extension = true;
    let leaf = params.signed_by(&key, &issuer)?;
    let key = PrivateKeyDer::try_from(key.serialize_der())?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((Arc::new(config), pem))
}
