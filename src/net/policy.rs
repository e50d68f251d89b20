//! Which destinations a client may make us connect to. Pure.
//!
//! **An address is checked, never only a name**: a name may resolve to anything. Addresses of machines' metadata
//! services, and those that are no single host, are denied unless an `allow` pattern names them.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

use ipnet::IpNet;

use super::error::ConfigError;

/// Where nobody is sent by default: "this" host, link-local (most clouds' metadata services), the metadata services
/// that are elsewhere (AWS, Alibaba, Azure, Google, Oracle, Scaleway), multicast, broadcast.
const DENIED: [&str; 15] = [
    "0.0.0.0/8",
    "169.254.0.0/16",
    "224.0.0.0/4",
    "255.255.255.255/32",
    "::/128",
    "fe80::/10",
    "ff00::/8",
    "fd00:ec2::/32",
    "fd20:ce::254/128",
    "fd00:c1::a9fe:a9fe/128",
    "fd00:42::42/128",
    "100.100.100.100/32",
    "100.100.100.200/32",
    "168.63.129.16/32",
    "192.0.0.192/32",
];
/// Ports that nobody is sent to by default: mail, what a stolen proxy is used for.
const DENIED_PORTS: [u16; 1] = [25];

/// One entry of an `allow`, `deny` or `intercept` list: `HOST[:PORT]`, `*.HOST[:PORT]`, `IP[:PORT]`, `[IP]:PORT` or
/// `IP/BITS`. `*` alone is every host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    host: Host,
    port: Option<u16>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Host {
    Any,
    Name(String),
    /// Everything below a name; with the dot in front.
    Below(String),
    Network(IpNet),
}

impl Pattern {
    /// Whether the host as it was named, `host:port`, is meant. Networks match IP literals.
    pub fn names(&self, host: &str, port: u16) -> bool {
        let host = bare(host);
        self.port.is_none_or(|own| own == port)
            && match &self.host {
                Host::Any => true,
                Host::Name(name) => name.eq_ignore_ascii_case(host),
                Host::Below(suffix) => {
                    host.len() > suffix.len()
                        && host.is_char_boundary(host.len() - suffix.len())
                        && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
                }
                Host::Network(net) => host.parse::<IpAddr>().is_ok_and(|ip| net.contains(&ip.to_canonical())),
            }
    }

    /// Whether every host is meant.
    pub fn is_any_host(&self) -> bool {
        match &self.host {
            Host::Any => true,
            Host::Network(net) => net.prefix_len() == 0,
            Host::Name(_) | Host::Below(_) => false,
        }
    }

    /// Whether the address is in the pattern's network.
    pub fn contains(&self, address: SocketAddr) -> bool {
        self.port.is_none_or(|own| own == address.port())
            && matches!(&self.host, Host::Network(net) if net.contains(&address.ip()))
    }
}

impl FromStr for Pattern {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fail = |why| ConfigError::Pattern { text: text.into(), why };
        if let Ok(net) = text.parse::<IpNet>() {
            return Ok(Self { host: Host::Network(net.trunc()), port: None });
        }
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self { host: Host::Network(IpNet::from(ip.to_canonical())), port: None });
        }
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.ends_with(']') => {
                (host, Some(port.parse::<u16>().map_err(|_| fail("the port is not a number"))?))
            }
            _ => (text, None),
        };
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        if let Some(address) = bracketed {
            let ip: IpAddr = address.parse().map_err(|_| fail("there is no IPv6 address in the brackets"))?;
            return Ok(Self { host: Host::Network(IpNet::from(ip.to_canonical())), port });
        }
        if let Ok(ip) = host.parse::<Ipv4Addr>() {
            return Ok(Self { host: Host::Network(IpNet::from(IpAddr::V4(ip))), port });
        }
        let host = match host.strip_prefix("*.") {
            _ if host == "*" => Host::Any,
            Some(name) if is_name(name) => Host::Below(format!(".{name}")),
            None if is_name(host) => Host::Name(bare(host).to_ascii_lowercase()),
            _ => return Err(fail("a name has letters, digits, dots, hyphens and underscores only")),
        };
        Ok(Self { host, port })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => f.write_str("*")?,
            Host::Name(name) => f.write_str(name)?,
            Host::Below(suffix) => write!(f, "*{suffix}")?,
            Host::Network(net) => write!(f, "{net}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn is_name(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// A host without an IPv6 literal's brackets and a name's final dot.
pub(super) fn bare(host: &str) -> &str {
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    host.strip_suffix('.').unwrap_or(host)
}

/// Which destinations are open; by default all but the built-in denials.
#[derive(Clone, Debug, Default)]
pub struct DestinationPolicy {
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
    no_loopback: bool,
}

impl DestinationPolicy {
    /// What `allow` names is open, whatever `deny` and the built-in list say of it.
    pub const fn new(allow: Vec<Pattern>, deny: Vec<Pattern>) -> Self {
        Self { allow, deny, no_loopback: false }
    }

    /// The same for what other hosts ask of this one: our loopback is ours alone, and what they call so is theirs.
    #[must_use]
    pub(super) fn for_others(&self) -> Self {
        Self { no_loopback: true, ..self.clone() }
    }

    /// Whether a client may be led to `host:port` by somebody else, who finds its address.
    ///
    /// # Errors
    /// It may not; the text says why.
    pub(super) fn check_name(&self, host: &str, port: u16) -> Result<(), String> {
        match host.parse::<IpAddr>() {
            Ok(ip) => self.check(host, SocketAddr::new(ip, port)),
            // An address that no rule but those on names and ports can speak of.
            Err(_) => self.check(host, SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), port)),
        }
    }

    /// Whether a client that named `host` may be connected to `address`, one of its addresses.
    ///
    /// # Errors
    /// It may not; the text says why.
    pub fn check(&self, host: &str, address: SocketAddr) -> Result<(), String> {
        let address = SocketAddr::new(real(address.ip()), address.port());
        let meant = |pattern: &&Pattern| pattern.names(host, address.port()) || pattern.contains(address);
        if self.allow.iter().any(|pattern| meant(&pattern)) {
            return Ok(());
        }
        if let Some(pattern) = self.deny.iter().find(meant) {
            return Err(format!("it is denied as {pattern}"));
        }
        if self.no_loopback && address.ip().is_loopback() {
            return Err("other hosts may not ask for what is on this host's loopback".into());
        }
        if DENIED_PORTS.contains(&address.port()) {
            return Err(format!("port {} is denied by default", address.port()));
        }
        // The texts are constants which a test parses.
        let network = DENIED.iter().find(|net| net.parse::<IpNet>().is_ok_and(|net| net.contains(&address.ip())));
        network.map_or(Ok(()), |network| Err(format!("it is denied by default as {network}")))
    }
}

/// The IPv4 address that an IPv6 address stands for, else the address: mapped (::ffff:0:0/96), translated
/// (64:ff9b::/96 and 64:ff9b:1::/48), compatible (::/96), 6to4 (2002::/16).
fn real(ip: IpAddr) -> IpAddr {
    let IpAddr::V6(v6) = ip.to_canonical() else { return ip.to_canonical() };
    let [.., a, b, c, d] = v6.octets();
    match v6.segments() {
        [0x64, 0xff9b, 0, 0, 0, 0, ..] | [0x64, 0xff9b, 1, ..] => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        [0, 0, 0, 0, 0, 0, high, _] if high > 0 => IpAddr::V4(Ipv4Addr::new(a, b, c, d)),
        [0x2002, high, low, ..] => {
            let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
            IpAddr::V4(Ipv4Addr::new(a, b, c, d))
        }
        _ => IpAddr::V6(v6),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    #[test]
    fn the_default_denials_are_networks() {
        for text in DENIED {
            assert!(text.parse::<IpNet>().is_ok(), "{text}");
        }
    }

    #[test]
    fn addresses_are_judged_whatever_they_are_written_as() {
        for (address, open) in [
            ("127.0.0.1:80", true),
            ("10.0.0.1:443", true),
            ("[2001:db8::1]:443", true),
            ("169.254.169.254:80", false),
            ("[::ffff:169.254.169.254]:80", false),
            ("[64:ff9b::a9fe:a9fe]:80", false),
            ("[fe80::1]:80", false),
            ("[fd00:ec2::254]:80", false),
            ("[fd00:ec2::23]:80", false),
            ("[fd20:ce::254]:80", false),
            ("[fd00:c1::a9fe:a9fe]:80", false),
            ("[fd00:42::42]:80", false),
            ("[fd00:1::254]:80", true),
            ("168.63.129.16:80", false),
            ("[::ffff:168.63.129.16]:80", false),
            ("192.0.0.192:80", false),
            ("[64:ff9b:1::a9fe:a9fe]:80", false),
            ("[::a9fe:a9fe]:80", false),
            ("[2002:a9fe:a9fe::1]:80", false),
            ("[2002:808:808::1]:80", true),
            ("10.0.0.1:25", false),
            ("[2001:db8::1]:25", false),
            ("10.0.0.1:587", true),
            ("0.0.0.0:80", false),
            ("[::]:80", false),
            ("[::1]:80", true),
            ("224.0.0.1:80", false),
            ("[ff02::1]:80", false),
            ("255.255.255.255:80", false),
            ("100.100.100.200:80", false),
        ] {
            let verdict = DestinationPolicy::default().check("a.example", address.parse().unwrap());
            assert_eq!(verdict.is_ok(), open, "{address} {verdict:?}");
        }
    }

    #[test]
    fn allow_wins_over_deny_and_over_the_default() {
        let policy = DestinationPolicy::new(
            patterns(&["169.254.169.254:80", "good.corp.example"]),
            patterns(&["*.corp.example", "10.0.0.0/8", "mail.example:25"]),
        );
        for (host, address, open) in [
            ("x", "169.254.169.254:80", true),
            ("x", "169.254.169.254:81", false),
            ("good.corp.example", "10.1.2.3:443", true),
            ("GOOD.corp.example.", "10.1.2.3:443", true),
            ("bad.Corp.example", "192.0.2.1:443", false),
            ("corp.example", "192.0.2.1:443", true),
            ("x", "10.1.2.3:443", false),
            ("10.1.2.3", "10.1.2.3:443", false),
            ("mail.example", "192.0.2.1:25", false),
            ("mail.example", "192.0.2.1:443", true),
            ("good.corp.example", "192.0.2.1:25", true),
        ] {
            let verdict = policy.check(host, address.parse().unwrap());
            assert_eq!(verdict.is_ok(), open, "{host} {address} {verdict:?}");
        }
    }

    #[test]
    fn our_loopback_is_not_for_others() {
        let allowing = DestinationPolicy::new(patterns(&["127.0.0.1:81"]), Vec::new()).for_others();
        for (address, open) in [
            ("127.0.0.1:80", false),
            ("127.9.9.9:80", false),
            ("[::1]:80", false),
            ("[::ffff:127.0.0.1]:80", false),
            ("[64:ff9b::7f00:1]:80", false),
            ("[::7f00:1]:80", false),
            ("127.0.0.1:81", true),
            ("10.0.0.1:80", true),
        ] {
            assert_eq!(allowing.check("x", address.parse().unwrap()).is_ok(), open, "{address}");
        }
    }

    #[test]
    fn patterns_are_read_and_written() {
        for (text, written) in [
            ("Example.com", "example.com"),
            ("*.example.com:443", "*.example.com:443"),
            ("*", "*"),
            ("*:8443", "*:8443"),
            ("10.1.2.3/8", "10.0.0.0/8"),
            ("10.1.2.3:5000", "10.1.2.3/32:5000"),
            ("[::1]:443", "::1/128:443"),
            ("::1", "::1/128"),
        ] {
            assert_eq!(text.parse::<Pattern>().unwrap().to_string(), written, "{text}");
        }
        for text in ["", "http://x", "a b", "x:y", "a*.b", "user@host", "x:70000", "*.", "host/path"] {
            assert!(text.parse::<Pattern>().is_err(), "{text}");
        }
    }
}
