//! Connections that the firewall redirects, in a network namespace of their own.

use std::process::Command;

use crate::harness::{Daemon, Process, skipped, wait_for};

/// A namespace, gone when this is dropped.
struct Namespace(String);

impl Namespace {
    /// None where that is not possible here.
    fn new() -> Option<Self> {
        let name = format!("exact{}", std::process::id());
        let all = ["ip", "iptables", "curl", "python3"];
        if let Some(missing) = all.iter().find(|tool| Command::new(tool).arg("--version").output().is_err()) {
            skipped(missing);
            return None;
        }
        if !Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success()) {
            skipped("network namespaces");
            return None;
        }
        Some(Self(name))
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Process::command("ip");
        command.args(["netns", "exec", &self.0, program]);
        command
    }

    fn run(&self, line: &str) -> String {
        let mut words = line.split(' ');
        let output = self.command(words.next().unwrap_or_default()).args(words).output().expect("ip netns exec");
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
    }
}

const ORIGIN: &str = "import http.server as h
class H(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = (self.path + ' ' + self.headers['Host'] + ' ' + str(self.headers['Via'])).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
h.HTTPServer(('127.0.0.1', 8055), H).serve_forever()";

#[test]
fn redirected_http_goes_to_its_host() {
    let Some(space) = Namespace::new() else { return };
    space.run("ip link set lo up");
    space.run("ip addr add 192.0.2.10/32 dev lo");
    let plan = Daemon::plan("h1").set("proxy.transparent.port", 4003).set("proxy.allow[]", "127.0.0.1:8055");
    let home = plan.data();
    let inner = plan.command();
    let mut outer = space.command(&inner.get_program().to_string_lossy());
    outer.args(inner.get_args());
    let mut daemon = Process::start("redirected", home.parent().expect("a directory"), &mut outer);
    daemon.wait_for_file(&home.join("addresses.json"));
    let mut python = space.command("python3");
    let _origin = Process::start("origin", home.parent().expect("a directory"), python.args(["-c", ORIGIN]));
    let curl = |url: &str, host: &str| {
        let output = space.command("curl").args(["-s", "-m", "20", "-H", &format!("Host: {host}"), url]).output();
        String::from_utf8_lossy(&output.expect("curl").stdout).into_owned()
    };
    wait_for("the origin", || curl("http://127.0.0.1:8055/up", "x").contains("/up").then_some(()));
    space.run("iptables -t nat -A OUTPUT -d 192.0.2.10 -p tcp --dport 80 -j REDIRECT --to-ports 4003");
    let answer = curl("http://192.0.2.10/a?b=c", "127.0.0.1:8055");
    assert!(answer.starts_with("/a?b=c 127.0.0.1:8055 1.1 damselfly"), "{answer}");
    assert_eq!(curl("http://127.0.0.1:4003/", "127.0.0.1:8055"), "", "the port itself leads nowhere");
    space.run("iptables -t nat -F OUTPUT");
}
