//! Which hosts' TLS is intercepted. Pure.

use crate::net::Pattern;

/// The hosts of `proxy.intercept.hosts`; none by default.
#[derive(Clone, Debug, Default)]
pub struct Policy {
    hosts: Vec<Pattern>,
}

impl Policy {
    /// Intercepts exactly these.
    pub const fn new(hosts: Vec<Pattern>) -> Self {
        Self { hosts }
    }

    /// Whether a `CONNECT` to `host:port` is intercepted; otherwise it is tunnelled blind.
    pub fn intercepts(&self, host: &str, port: u16) -> bool {
        self.hosts.iter().any(|pattern| pattern.names(host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_listed_is_intercepted() {
        let hosts = [
            "quay.io",
            "*.example.com",
            "10.1.0.0/16",
            "reg.example:5000",
            "[::1]:8443",
            "[2001:db8::1]",
            "2001:db8:1::/48",
        ];
        let policy = Policy::new(hosts.map(|host| host.parse().unwrap()).into());
        for (host, port, intercepts) in [
            ("quay.io", 443, true),
            ("QUAY.io", 8443, true),
            ("quay.io.", 443, true),
            ("cdn.quay.io", 443, false),
            ("notquay.io", 443, false),
            ("a.example.com", 443, true),
            ("a.b.example.com", 443, true),
            ("example.com", 443, false),
            ("badexample.com", 443, false),
            ("10.1.2.3", 443, true),
            ("10.2.2.3", 443, false),
            ("reg.example", 5000, true),
            ("reg.example", 443, false),
            ("::1", 8443, true),
            ("[::1]", 8443, true),
            ("::1", 443, false),
            ("2001:db8::1", 443, true),
            ("[2001:DB8::1]", 8443, true),
            ("2001:db8::2", 443, false),
            ("2001:db8:1:2::3", 443, true),
        ] {
            assert_eq!(policy.intercepts(host, port), intercepts, "{host} {port}");
        }
        assert!(!Policy::default().intercepts("quay.io", 443));
    }
}
