//! What a client says first in a TLS handshake, read without answering it.

use std::io;
use std::time::Duration;

use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::time::timeout;

/// How long a client may take for its hello.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The longest hello that is read: with post-quantum key shares they have some 2 KiB.
const MAX_HELLO: usize = 64 * 1024;
/// How much is read at once.
const READ: usize = 4 * 1024;

/// A client's hello, as far as it matters who should answer it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ClientHello {
    /// The name of the server that the client wants, if it says one.
    pub server_name: Option<String>,
    /// The protocols that it offers; none: it does not say.
    pub protocols: Vec<Vec<u8>>,
}

impl ClientHello {
    /// Reads the hello off `stream`, of which `read` was read already. All bytes that were read come back; without a
    /// hello where they are none that can be understood.
    ///
    /// # Errors
    /// The client says nothing more, or too slowly.
    pub async fn read<S>(stream: &mut S, read: Vec<u8>) -> io::Result<(Option<Self>, Vec<u8>)>
    where
        S: AsyncRead + Unpin + ?Sized,
    {
        match timeout(TIMEOUT, read_hello(stream, read)).await {
            Ok(result) => result,
            Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "the client's TLS hello took too long")),
        }
    }

    /// Whether we can answer in the place of `host`: the client means this host, and speaks HTTP as far as it says.
    pub fn is_answerable(&self, host: &str) -> bool {
        let named = |name: &str| name.trim_end_matches('.').eq_ignore_ascii_case(host.trim_end_matches('.'));
        let http = |protocol: &Vec<u8>| matches!(&protocol[..], b"h2" | b"http/1.1");
        self.server_name.as_deref().is_none_or(named) && (self.protocols.is_empty() || self.protocols.iter().any(http))
    }
}

async fn read_hello<S>(stream: &mut S, mut read: Vec<u8>) -> io::Result<(Option<ClientHello>, Vec<u8>)>
where
    S: AsyncRead + Unpin + ?Sized,
{
    let mut acceptor = Acceptor::default();
    let mut fed = 0;
    loop {
        while fed < read.len() {
            let Ok(taken @ 1..) = acceptor.read_tls(&mut &read[fed..]) else { return Ok((None, read)) };
            fed += taken;
            match acceptor.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    let hello = ClientHello {
                        server_name: hello.server_name().map(str::to_owned),
                        protocols: hello.alpn().into_iter().flatten().map(<[u8]>::to_vec).collect(),
                    };
                    return Ok((Some(hello), read));
                }
                Err(_) => return Ok((None, read)),
            }
        }
        if read.len() > MAX_HELLO {
            return Ok((None, read));
        }
        let mut more = [0; READ];
        match stream.read(&mut more).await? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => read.extend_from_slice(&more[..count]),
        }
    }
}

/// Nothing that a client says first is lost, and what is read of it does not depend on how it comes.
#[cfg(feature = "fuzzing")]
pub fn fuzz_client_hello(bytes: &[u8]) {
    use futures_util::FutureExt as _;

    let read = |before: usize| {
        let mut rest = &bytes[before..];
        let hello = read_hello(&mut rest, bytes[..before].to_vec()).now_or_never().expect("the bytes are there");
        hello.ok().map(|(hello, read)| {
            assert_eq!([&read[..], rest].concat(), bytes);
            hello
        })
    };
    let hello = read(0);
    for cut in [1, bytes.len() / 2, bytes.len()] {
        assert_eq!(read(cut.min(bytes.len())), hello, "cut at {cut}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    use rustls::crypto::aws_lc_rs;
    use rustls::{ClientConfig, ClientConnection, RootCertStore};
    use rustls_pki_types::ServerName;
    use tokio::io::AsyncWriteExt as _;

    fn hello(name: &str, protocols: &[&str]) -> Vec<u8> {
        let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.as_bytes().to_vec()).collect();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = ClientConnection::new(Arc::new(config), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    #[tokio::test]
    async fn a_hello_is_read_however_it_comes_and_nothing_is_lost() {
        let bytes = hello("a.example", &["h2", "acme-tls/1"]);
        let want = ClientHello {
            server_name: Some("a.example".into()),
            protocols: vec![b"h2".to_vec(), b"acme-tls/1".to_vec()],
        };
        for cut in [0, 1, 5, 40, bytes.len()] {
            let (mut near, mut far) = tokio::io::duplex(7);
            let rest = bytes[cut..].to_vec();
            let sent = tokio::spawn(async move {
                let _ = far.write_all(&rest).await;
                far
            });
            let (got, read) = ClientHello::read(&mut near, bytes[..cut].to_vec()).await.unwrap();
            assert_eq!(got.as_ref(), Some(&want), "{cut}");
            assert_eq!(read, bytes, "{cut}");
            drop(near);
            sent.await.unwrap();
        }
        let (mut near, _far) = tokio::io::duplex(7);
        let (got, read) = ClientHello::read(&mut near, b"\x16\x03\x01\x00\x05hello".to_vec()).await.unwrap();
        assert_eq!((got, &read[..]), (None, &b"\x16\x03\x01\x00\x05hello"[..]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_or_endless_hello_is_given_up() {
        let (mut near, mut far) = tokio::io::duplex(1 << 20);
        let error = ClientHello::read(&mut near, hello("a.example", &[])[..9].to_vec()).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // A handshake message that claims 16 MiB.
        let record = [&b"\x16\x03\x01\x40\x00\x01\xff\xff\xff"[..], &vec![0; (1 << 14) - 4]].concat();
        far.write_all(&record.repeat(8)).await.unwrap();
        let (got, read) = ClientHello::read(&mut near, Vec::new()).await.unwrap();
        assert!(got.is_none() && read.len() <= MAX_HELLO + READ, "{}", read.len());
    }

    #[test]
    fn who_is_to_answer_is_told_by_the_hello() {
        for (name, protocols, host, want) in [
            (Some("a.example"), &["h2"][..], "a.example", true),
            (Some("A.example"), &[], "a.example.", true),
            (None, &["http/1.1", "x"], "a.example", true),
            (Some("b.example"), &["h2"], "a.example", false),
            (Some("a.example"), &["acme-tls/1"], "a.example", false),
            (Some("a.example"), &["http/1.0"], "a.example", false),
            (None, &[], "192.0.2.1", true),
        ] {
            let hello = ClientHello {
                server_name: name.map(str::to_owned),
                protocols: protocols.iter().map(|protocol| protocol.as_bytes().to_vec()).collect(),
            };
            assert_eq!(hello.is_answerable(host), want, "{name:?} {protocols:?} {host}");
        }
    }
}
