use std::net::{IpAddr, Ipv4Addr};

use super::*;

fn load_text(text: &str) -> Result<Loaded, UsageError> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("a.yaml");
    std::fs::write(&path, text).unwrap();
    load(&Flags { config: Some(path), ..Flags::default() })
}

#[test]
fn nothing_configured_is_a_host_alone_on_loopback() {
    let config = load_text("").unwrap().config;
    assert_eq!(config.scheduler, Scheduler::Embedded);
    assert_eq!(config.listen.proxy, "127.0.0.1:4001".parse().unwrap());
    assert_eq!(config.listen.admin, "127.0.0.1:4003".parse().unwrap());
    assert_eq!(config.listen.peer, "127.0.0.1:4000".parse().unwrap());
    assert_eq!(config.listen.data, "127.0.0.1:4005".parse().unwrap());
    assert_eq!(config.host.ip, IpAddr::V4(Ipv4Addr::LOCALHOST));
    assert!(config.listen.socket.ends_with(SOCKET));
    assert!(!config.host.seed);
}

#[test]
fn with_a_scheduler_peers_reach_the_host() {
    let text = "scheduler:\n  addrs: [sched.example:8002]\nhost:\n  ip: 192.0.2.7\n";
    let config = load_text(text).unwrap().config;
    assert_eq!(config.listen.peer, "192.0.2.7:4000".parse().unwrap());
    assert_eq!(config.listen.data, "192.0.2.7:4005".parse().unwrap());
    assert_eq!(config.listen.proxy, "127.0.0.1:4001".parse().unwrap(), "the proxy is for this host only");
    assert!(matches!(config.scheduler, Scheduler::Remote { addrs, .. } if addrs == ["sched.example:8002"]));
    let config = load_text("scheduler:\n  addrs: ['127.0.0.1:8002']\n").unwrap().config;
    assert_eq!(config.host.ip, IpAddr::V4(Ipv4Addr::LOCALHOST), "the address that faces the scheduler");
    assert!(config.host.looked_for);
    for beside in ["['127.0.0.1:8002', '192.0.2.1:8002']", "['a.example:8002']"] {
        let text = format!("host:\n  ip: 127.0.0.1\nscheduler:\n  addrs: {beside}\n");
        assert!(!load_text(&text).unwrap().config.host.looked_for, "{beside}: the others may be on this host too");
    }
}

#[test]
fn mistakes_name_the_file_the_key_and_the_reason() {
    for (text, expected) in [
        ("host:\n  ip: 0.0.0.0\n", "a.yaml: host.ip: 0.0.0.0 is not"),
        ("host:\n  ip: 127.0.0.1\nscheduler:\n  addrs: ['192.0.2.1:8002']\n", "a.yaml: host.ip: other hosts"),
        ("host:\n  ip: ::1\nscheduler:\n  addrs: ['192.0.2.1:1', '[2001:db8::1]:1']\n", "a.yaml: host.ip: other hosts"),
        ("host:\n  hostname: a b\n", "a.yaml: host.hostname: "),
        ("host:\n  ip: here\n", "a.yaml: host.ip: "),
        ("log:\n  format: xml\n", "a.yaml: log.format: "),
        ("log:\n  level: a=b=c\n", "a.yaml: log.level: "),
        ("log:\n  level: loud\n", "a.yaml: log.level: "),
        ("proxy:\n  server:\n    ip: 0.0.0.0\n", "a.yaml: proxy.server.ip: 0.0.0.0 is not loopback"),
        ("scheduler:\n  addrs: [nowhere]\n", "a.yaml: scheduler.addrs: \"nowhere\" is not HOST:PORT"),
        ("scheduler:\n  addrs: ['http://a:1']\n", "a.yaml: scheduler.addrs: "),
        ("scheduler:\n  addrs: ['a:1']\n  embedded: true\n", "a.yaml: scheduler.embedded: "),
        ("scheduler:\n  embedded: false\n", "a.yaml: scheduler.addrs: is empty"),
        ("gc:\n  policy:\n    diskHighThresholdPercent: 0\n", "a.yaml: gc.policy.diskHighThresholdPercent: 0"),
        ("gc:\n  policy:\n    diskLowThresholdPercent: 99\n", "a.yaml: gc.policy.diskLowThresholdPercent: 99"),
        ("gc:\n  interval: 0s\n", "a.yaml: gc.interval: "),
        ("gc:\n  policy:\n    taskTTL: 5\n", "a.yaml: gc.policy.taskTTL: "),
        ("download:\n  concurrentPieceCount: 0\n", "a.yaml: download.concurrentPieceCount: "),
        ("download:\n  concurrentPieces: 9\n", "a.yaml: download.concurrentPieces: unknown key"),
        ("proxy:\n  deny: [a.example, 'http://b']\n", "a.yaml: proxy.deny[1]: "),
        ("proxy:\n  upstreams:\n    - host: ''\n", "a.yaml: proxy.upstreams[0].host: "),
        ("proxy:\n  upstreams:\n    - host: h\n      scheme: ftp\n", "a.yaml: proxy.upstreams[0].scheme: "),
        (
            "proxy:\n  upstreams:\n    - host: h\n      caCert: /nowhere\n",
            "a.yaml: proxy.upstreams[0].caCert: /nowhere",
        ),
        (
            "proxy:\n  upstreams:\n    - host: h\n      caCert: /etc/hostname\n",
            "a.yaml: proxy.upstreams[0].caCert: /etc/h",
        ),
        ("proxy:\n  upstreams:\n    - host: h\n      key: /k\n", "a.yaml: proxy.upstreams[0]: cert and key"),
        ("proxy:\n  headTimeout: 0s\n", "a.yaml: proxy.headTimeout: "),
        ("proxy:\n  rules:\n    - regex: '('\n", "a.yaml: proxy.rules[0].regex: error: unclosed group"),
        ("proxy:\n  rules:\n    - regex: x\n      redirect: http://y\n", "a.yaml: proxy.rules[0].redirect: "),
        ("proxy:\n  rules:\n    - useTLS: true\n", "a.yaml: proxy.rules[0].regex: has no value"),
        ("proxy:\n  p2p:\n    suffixes: ['']\n", "a.yaml: proxy.p2p.suffixes[0]: "),
        ("proxy:\n  registryMirror:\n    addr: 'a b'\n", "a.yaml: proxy.registryMirror.addr: "),
        ("proxy:\n  registryMirror:\n    cert: /x\n", "a.yaml: proxy.registryMirror.cert: "),
        ("proxy:\n  intercept:\n    hosts: ['a*']\n", "a.yaml: proxy.intercept.hosts[0]: "),
        ("proxy:\n  server:\n    caKey: /k\n", "a.yaml: proxy.server: caCert and caKey"),
        ("proxy:\n  server:\n    basicAuth: {username: a}\n", "a.yaml: proxy.server.basicAuth.password: "),
        ("download:\n  stallTimeout: 0s\n", "a.yaml: download.stallTimeout: "),
        ("download:\n  bandwidthLimit: 1KiB\n", "a.yaml: download.bandwidthLimit: 1024 is less than the 16384 bytes"),
        ("upload:\n  bandwidthLimitPerTask: 1\n", "a.yaml: upload.bandwidthLimitPerTask: 1 is less than"),
        ("proxy:\n  passThroughBandwidthLimit: fast\n", "a.yaml: proxy.passThroughBandwidthLimit: "),
        ("upload:\n  server:\n    cert: /x\n", "a.yaml: upload.server.cert: not supported"),
        ("security:\n  enable: true\n", "a.yaml: security.enable: not supported"),
        ("security:\n  cert: /x\n", "a.yaml: security.caCert: has no value"),
        ("upload:\n  server:\n    requireTLS: true\n", "a.yaml: upload.server.requireTLS: needs security.caCert"),
        ("security:\n  requireTLS: true\n", "a.yaml: security.requireTLS: needs security.caCert"),
        ("security:\n  token: x\n", "a.yaml: security.token: must be 16 or more"),
        ("security:\n  tokenFile: /nowhere\n", "a.yaml: security.tokenFile: /nowhere cannot be read"),
    ] {
        let error = load_text(text).unwrap_err().to_string();
        assert!(error.contains(expected), "{text:?}: {error}");
    }
    let path = format!("download:\n  server:\n    socketPath: /{}\n", "x".repeat(107));
    assert!(load_text(&path).unwrap_err().to_string().contains("longer than the 107 bytes"));
}

#[test]
fn a_proxy_for_others_needs_a_password_or_a_word() {
    let server = "proxy:\n  server:\n    ip: 0.0.0.0\n";
    let loaded = load_text(&format!("{server}    allowUnauthenticated: true\n")).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    let loaded = load_text(&format!("{server}    basicAuth: {{username: a, password: b}}\n")).unwrap();
    assert!(loaded.warnings.is_empty());
}

#[test]
fn looking_into_the_tls_of_every_host_costs_a_warning() {
    for (hosts, warns) in
        [("\"*\"", true), ("a.example, \"*:443\"", true), ("\"::/0\"", true), ("\"*.example.org\"", false)]
    {
        let loaded = load_text(&format!("proxy:\n  intercept:\n    hosts: [{hosts}]\n")).unwrap();
        assert_eq!(loaded.warnings.iter().any(|warning| warning.contains("proxy.intercept.hosts")), warns, "{hosts}");
    }
}

#[test]
fn a_file_of_dragonflys_client_1_5_10_is_read() {
    let text = "download:\n  backToSourceConcurrentPieceCount: 4\n  concurrentPieceCount: 8\n  protocol: tcp\n\
                storage:\n  writebackMode: true\n  server:\n    tcpPort: 4005\n    tcpFastopen: false\n\
                gc:\n  interval: 900s\n  policy:\n    taskTTL: 720h\n    pageCacheIdleTimeout: 10m\n\
                proxy:\n  server:\n    port: 4001\n    requestRateLimit: 4000\n  rules:\n    - regex: blobs/sha256.*\n      schedulingPolicy: always\n\
                security:\n  enable: false\n  caCert: /etc/x\n";
    let loaded = load_text(text).unwrap();
    assert!(loaded.config.member.is_none());
    assert_eq!(loaded.warnings.len(), 1, "{:?}", loaded.warnings);
    for key in [
        "download.backToSourceConcurrentPieceCount",
        "storage.writebackMode",
        "storage.server.tcpFastopen",
        "gc.policy.pageCacheIdleTimeout",
        "proxy.server.requestRateLimit",
        "proxy.rules.0.schedulingPolicy",
        "security",
    ] {
        assert!(loaded.warnings[0].contains(key), "{key}: {:?}", loaded.warnings);
    }
}

#[test]
fn limits_of_bandwidth_are_read_as_dragonfly_writes_them() {
    let text = "download:\n  bandwidthLimit: 10GB\n  backToSourceBandwidthLimit: 50MiB\n  bandwidthLimitPerTask: 0\n\
                upload:\n  bandwidthLimit: 1 GiB\nproxy:\n  passThroughBandwidthLimitPerRequest: 2MB\n";
    let loaded = load_text(text).unwrap();
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
    let limits = loaded.config.limits;
    let shown = [limits.download, limits.back_to_source, limits.upload, limits.pass_through]
        .map(|limit| (limit.total.map_or(0, u64::from), limit.per_flow.map_or(0, u64::from)));
    assert_eq!(shown, [(10_000_000_000, 0), (50 << 20, 0), (1 << 30, 0), (0, 2_000_000)]);
    assert_eq!(load_text("").unwrap().config.limits, crate::limit::Limits::default());
}

#[test]
fn a_file_of_dragonfly_costs_one_warning_line() {
    let text = "manager:\n  addr: http://m:1\ndynconfig:\n  refreshInterval: 5m\nupload:\n  rateLimit: 10GiB\n\
                metrics:\n  server:\n    port: 4002\nproxy:\n  server:\n    port: 4001\n  rules:\n    - regex: blobs/sha256.*\n";
    let loaded = load_text(text).unwrap();
    assert_eq!(loaded.warnings.len(), 1);
    for key in ["manager", "dynconfig", "upload.rateLimit", "metrics"] {
        assert!(loaded.warnings[0].contains(key), "{key}");
    }
}

#[test]
fn what_is_printed_is_whole_reads_back_and_has_no_secret() {
    let text = "proxy:\n  server:\n    basicAuth: {username: someone, password: planted}\n\
                security:\n  token: planted-planted-planted\n";
    let loaded = load_text(text).unwrap();
    let yaml = loaded.effective.to_yaml().unwrap();
    assert!(!yaml.contains("planted"), "{yaml}");
    assert!(yaml.contains("someone"));
    assert!(!format!("{:?}", loaded.effective).contains("planted"), "nor is it in a debug print");
    for derived in ["dataDir", "hostname", "socketPath"] {
        let line = yaml.lines().find(|line| line.trim_start().starts_with(derived)).unwrap();
        assert!(!line.ends_with("null"), "{line}");
    }
    let again = load_text(&yaml).unwrap_err().to_string();
    assert!(again.contains("proxy.server.basicAuth.password: "), "{again}");
}

#[test]
fn what_is_printed_reads_back_as_the_same() {
    let loaded = load_text("proxy:\n  rules:\n    - regex: 'a: b'\nscheduler:\n  addrs: ['127.0.0.1:1']\n").unwrap();
    let again = load_text(&loaded.effective.to_yaml().unwrap()).unwrap();
    assert_eq!(again.effective, loaded.effective);
    assert_eq!(again.config.listen, loaded.config.listen);
}

const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/reference/configuration.md");

#[test]
fn every_key_is_documented_with_its_default_and_no_other() {
    let mut file = File::default();
    file.proxy.rules.push(Default::default());
    file.proxy.upstreams.push(Default::default());
    file.proxy.mirrors.push(Default::default());
    file.proxy.server.basic_auth = Some(Default::default());
    let mut expected = Vec::new();
    keys(&serde_json::to_value(&file).unwrap(), "", &mut expected);

    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let rows: Vec<Vec<&str>> = document
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    for (key, default) in &expected {
        let row = rows.iter().find(|row| row[0] == format!("`{key}`")).unwrap_or_else(|| panic!("{key} has no row"));
        // A list that is too long for a table is described in words.
        if default != "null" && key != "proxy.p2p.suffixes" {
            assert_eq!(row[1], format!("`{default}`"), "{key}");
        }
        assert!(row[2].len() > 10, "{key} is explained");
    }
    let known = |name: &str| expected.iter().any(|(key, _)| *name == format!("`{key}`"));
    let extra: Vec<_> =
        rows.iter().filter(|row| !row[0].starts_with("`--") && !known(row[0])).map(|row| row[0]).collect();
    assert!(extra.is_empty(), "no such keys: {extra:?}");
    for key in foreign::tolerated() {
        assert!(document.contains(&format!("`{key}`")), "{key} is not listed");
    }
    for arg in <Args as clap::CommandFactory>::command().get_arguments() {
        let flag = format!("`--{}", arg.get_long().unwrap_or_default());
        assert!(document.contains(&flag), "{flag} is not listed");
    }
}

/// Every key with its default, lists shown with one item.
fn keys(value: &serde_json::Value, path: &str, found: &mut Vec<(String, String)>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                keys(value, &path, found);
            }
        }
        serde_json::Value::Array(items) if items.iter().any(serde_json::Value::is_object) => {
            keys(&items[0], &format!("{path}[]"), found)
        }
        serde_json::Value::String(text) if text.is_empty() => found.push((path.to_owned(), "\"\"".into())),
        serde_json::Value::String(text) => found.push((path.to_owned(), text.clone())),
        other => found.push((path.to_owned(), other.to_string())),
    }
}
