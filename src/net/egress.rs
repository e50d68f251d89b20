//! The way out through another proxy (a company's), where origins cannot be reached directly.
//!
//! Plain HTTP is asked of it in absolute form, everything else goes through a `CONNECT`. Which hosts are reached without
//! it is said as everywhere: names with all below them, networks, `*`. This host's loopback always is.
//!
//! **Its password goes to it and to nobody else.** Addresses of destinations are its to find, so only names and literal
//! addresses are checked against the destination policy.

use std::fmt;
use std::net::IpAddr;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http::HeaderValue;
use http::uri::Authority;
use ipnet::IpNet;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::error::NetError;
use super::policy::bare;

/// The port of a proxy whose URL names none, as curl has it.
const DEFAULT_PORT: u16 = 1080;
/// The most bytes of its answer to a `CONNECT`.
const MAX_ANSWER: usize = 16 * 1024;

/// A proxy.
#[derive(Clone, PartialEq, Eq)]
pub struct EgressProxy {
    /// Its name or address.
    pub(super) host: String,
    /// Its port.
    pub(super) port: u16,
    /// What it is told in `Proxy-Authorization`.
    pub(super) authorization: Option<HeaderValue>,
}

impl EgressProxy {
    /// From `[http://][USER:PASSWORD@]HOST[:PORT][/]`.
    ///
    /// # Errors
    /// It is nothing of the kind; the text says what is wrong, without the password.
    pub fn parse(text: &str) -> Result<Self, String> {
        let rest = match text.split_once("://") {
            Some(("http", rest)) => rest,
            Some((scheme, _)) => return Err(format!("a proxy is spoken to in http, not in {scheme}")),
            None => text,
        };
        let rest = rest.trim_end_matches('/');
        let (user, place) = rest.rsplit_once('@').map_or((None, rest), |(user, place)| (Some(user), place));
        let place: Authority = place.parse().map_err(|_| "it is not HOST:PORT".to_owned())?;
        let proxy = Self {
            host: bare(place.host()).to_owned(),
            port: place.port_u16().unwrap_or(DEFAULT_PORT),
            authorization: None,
        };
        if proxy.host.is_empty() {
            return Err("it names no host".into());
        }
        let Some(user) = user else { return Ok(proxy) };
        let (name, password) = user.split_once(':').unwrap_or((user, ""));
        let plain = |text| percent_decode_str(text).decode_utf8_lossy().into_owned();
        Ok(proxy.with_password(&plain(name), &plain(password)))
    }

    /// The same, asked with this user and password.
    #[must_use]
    pub fn with_password(self, user: &str, password: &str) -> Self {
        let mut value =
            HeaderValue::try_from(format!("Basic {}", BASE64_STANDARD.encode(format!("{user}:{password}"))));
        if let Ok(value) = &mut value {
            value.set_sensitive(true);
        }
        Self { authorization: value.ok(), ..self }
    }
}

impl fmt::Debug for EgressProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

/// Which way out there is for which destination; by default none but the direct one.
#[derive(Clone, Debug, Default)]
pub struct Egress {
    /// For plain HTTP.
    pub http: Option<EgressProxy>,
    /// For everything else.
    pub other: Option<EgressProxy>,
    /// What is reached directly.
    pub direct: Vec<Direct>,
}

impl Egress {
    /// As the variables `HTTP_PROXY`, `HTTPS_PROXY`, `ALL_PROXY` and `NO_PROXY` say, in small letters or in capitals.
    ///
    /// # Errors
    /// One of them cannot be understood; the text says which.
    pub fn from_env(var: impl Fn(&str) -> Option<String>) -> Result<Self, String> {
        let find = |name: &str| {
            let value = var(&name.to_lowercase()).or_else(|| var(name));
            value.filter(|value| !value.trim().is_empty())
        };
        let proxy = |name: &str| {
            let text = find(name).or_else(|| find("ALL_PROXY"));
            text.map(|text| EgressProxy::parse(text.trim()).map_err(|why| format!("{name}: {why}"))).transpose()
        };
        let direct = find("NO_PROXY").unwrap_or_default();
        Ok(Self {
            http: proxy("HTTP_PROXY")?,
            other: proxy("HTTPS_PROXY")?,
            direct: direct.split([',', ' ']).filter_map(Direct::parse).collect(),
        })
    }

    /// The proxy for a destination; `plain` for plain HTTP.
    pub(super) fn find(&self, host: &str, port: u16, plain: bool) -> Option<&EgressProxy> {
        let proxy = if plain { &self.http } else { &self.other };
        proxy.as_ref().filter(|_| !self.is_direct(bare(host), port))
    }

    fn is_direct(&self, host: &str, port: u16) -> bool {
        let loopback = match host.parse::<IpAddr>() {
            Ok(ip) => ip.to_canonical().is_loopback(),
            Err(_) => host.eq_ignore_ascii_case("localhost"),
        };
        loopback || self.direct.iter().any(|direct| direct.names(host, port))
    }
}

/// What is reached directly: `*`, `NAME[:PORT]` with all names below it, `IP[:PORT]`, or `IP/BITS`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Direct {
    place: Place,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Any,
    Network(IpNet),
    Name(String),
}

impl Direct {
    /// One entry of `NO_PROXY`; what cannot be understood is none, as everybody has it.
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        if text == "*" {
            return Some(Self { place: Place::Any, port: None });
        }
        if let Ok(net) = text.parse::<IpNet>() {
            return Some(Self { place: Place::Network(net.trunc()), port: None });
        }
        if let Ok(ip) = bare(text).parse::<IpAddr>() {
            return Some(Self { place: Place::Network(ip.to_canonical().into()), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().ok()?)),
            None => (text, None),
        };
        let host = bare(host.trim_start_matches("*.").trim_start_matches('.'));
        let place = match host.parse::<IpAddr>() {
            Ok(ip) => Place::Network(ip.to_canonical().into()),
            Err(_) if host.is_empty() => return None,
            Err(_) => Place::Name(host.to_ascii_lowercase()),
        };
        Some(Self { place, port })
    }

    fn names(&self, host: &str, port: u16) -> bool {
        self.port.is_none_or(|own| own == port)
            && match &self.place {
                Place::Any => true,
                Place::Network(net) => host.parse::<IpAddr>().is_ok_and(|ip| net.contains(&ip.to_canonical())),
                Place::Name(name) => {
                    let host = host.to_ascii_lowercase();
                    host.strip_suffix(name.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
                }
            }
    }
}

/// Has `proxy`, at the other end of `stream`, connect to `host:port`.
pub(super) async fn open_tunnel(
    stream: &mut TcpStream,
    proxy: &EgressProxy,
    host: &str,
    port: u16,
) -> Result<(), NetError> {
    let host = if host.contains(':') { format!("[{}]", bare(host)) } else { host.to_owned() };
    let fail = |why: String| NetError::Egress { proxy: format!("{proxy:?}"), to: format!("{host}:{port}"), why };
    let mut request = format!("CONNECT {host}:{port} HTTP/1.1\r\nHost: {host}:{port}\r\n").into_bytes();
    if let Some(authorization) = &proxy.authorization {
        request.extend_from_slice(b"Proxy-Authorization: ");
        request.extend_from_slice(authorization.as_bytes());
        request.extend_from_slice(b"\r\n");
    }
    request.extend_from_slice(b"\r\n");
    let broken = |error: std::io::Error| fail(format!("the connection broke: {error}"));
    stream.write_all(&request).await.map_err(broken)?;
    let mut answer = Vec::with_capacity(256);
    // What comes behind its answer is the destination's.
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_ANSWER {
            return Err(fail("its answer is too long".into()));
        }
        answer.push(stream.read_u8().await.map_err(broken)?);
    }
    let line = String::from_utf8_lossy(&answer).lines().next().unwrap_or_default().to_owned();
    match line.split(' ').nth(1).and_then(|status| status.parse::<u16>().ok()) {
        Some(200..=299) => Ok(()),
        Some(407) => Err(fail("it asks for a user name and a password: set proxy.egress".into())),
        Some(status) => Err(fail(format!("it answered {status}"))),
        None => Err(fail("its answer is not HTTP".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proxies_are_read_as_everybody_writes_them() {
        for (text, host, port, authorization) in [
            ("http://proxy.example:3128", "proxy.example", 3128, None),
            ("http://proxy.example:3128/", "proxy.example", 3128, None),
            ("proxy.example:3128", "proxy.example", 3128, None),
            ("http://proxy.example", "proxy.example", 1080, None),
            ("http://[2001:db8::1]:8080", "2001:db8::1", 8080, None),
            ("http://ann:p%40ss@proxy.example:1", "proxy.example", 1, Some("Basic YW5uOnBAc3M=")),
        ] {
            let proxy = EgressProxy::parse(text).unwrap();
            assert_eq!((proxy.host.as_str(), proxy.port), (host, port), "{text}");
            assert_eq!(proxy.authorization.as_ref().map(|value| value.to_str().unwrap()), authorization, "{text}");
            assert!(!format!("{proxy:?}").contains("p@ss") && !format!("{proxy:?}").contains("YW5"));
        }
        for text in ["https://proxy.example", "socks5://a:1", "http://", "http://:80", "http://a b"] {
            assert!(EgressProxy::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn the_environment_says_which_way() {
        let env = |name: &str| match name {
            "http_proxy" => Some("http://small.example:1".to_owned()),
            "HTTP_PROXY" => Some("http://large.example:1".into()),
            "ALL_PROXY" => Some("all.example:2".into()),
            "NO_PROXY" => Some("example.com, .internal 10.0.0.0/8,[::2],host:8080,,1.2.3.4".into()),
            _ => None,
        };
        let egress = Egress::from_env(env).unwrap();
        for (host, port, plain, way) in [
            ("a.example", 80, true, Some("small.example:1")),
            ("a.example", 443, false, Some("all.example:2")),
            ("example.com", 80, true, None),
            ("A.Example.com.", 80, true, None),
            ("badexample.com", 80, true, Some("small.example:1")),
            ("x.internal", 80, true, None),
            ("10.1.2.3", 443, false, None),
            ("11.1.2.3", 443, false, Some("all.example:2")),
            ("[::2]", 443, false, None),
            ("host", 8080, true, None),
            ("host", 80, true, Some("small.example:1")),
            ("1.2.3.4", 80, true, None),
            ("127.0.0.1", 80, true, None),
            ("localhost", 80, true, None),
            ("[::1]", 80, true, None),
        ] {
            let found = egress.find(host, port, plain).map(|proxy| format!("{proxy:?}"));
            assert_eq!(found.as_deref(), way, "{host}:{port}");
        }
        let everything = |name: &str| (name == "NO_PROXY").then(|| "*".to_owned()).or_else(|| env(name));
        assert_eq!(Egress::from_env(everything).unwrap().find("a.example", 80, true), None);
        assert!(Egress::from_env(|_| None).unwrap().find("a.example", 80, true).is_none());
        assert!(Egress::from_env(|_| Some("ftp://x".into())).unwrap_err().starts_with("HTTP_PROXY: "));
    }
}
