//! Connections that the firewall redirects, in network namespaces of their own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Authority, Daemon, DaemonPlan, Process, Tool, skipped, wait_for};

/// The user that the daemon runs as where the rules tell it by that.
const USER: &str = "51871";
/// Where the origins are, besides loopback.
const V4: &str = "192.0.2.10";
const V6: &str = "fd00:d::10";

/// A namespace, gone when this is dropped.
struct Namespace(String);

impl Namespace {
    /// None where that is not possible here.
    fn new(label: &str, tools: &[&str]) -> Option<Self> {
        let name = format!("{label}{}", std::process::id());
        let all = ["ip", "curl", "python3"];
        if all.iter().chain(tools).any(|tool| Tool::find(tool).is_none()) {
            return None;
        }
        if !Command::new("ip").args(["netns", "add", &name]).status().is_ok_and(|status| status.success()) {
            skipped("network namespaces");
            return None;
        }
        let space = Self(name);
        fs::create_dir_all(space.etc()).expect("a writable /etc");
        let hosts = format!("127.0.0.1 localhost\n{V4} origin.example blind.example\n{V6} origin6.example\n");
        fs::write(space.etc().join("hosts"), hosts).expect("a writable /etc");
        space.run("ip link set lo up");
        Some(space)
    }

    /// What stands in `/etc` in there.
    fn etc(&self) -> PathBuf {
        Path::new("/etc/netns").join(&self.0)
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

    /// What a URL gives; nothing where it fails.
    fn curl(&self, arguments: &[&str]) -> String {
        let output = self.command("curl").args(["-s", "-m", "20"]).args(arguments).output();
        String::from_utf8_lossy(&output.expect("curl").stdout).into_owned()
    }

    /// Starts a daemon in there, in front of whose command these words stand.
    fn start(&self, plan: &DaemonPlan, before: &[&str]) -> Process {
        let (home, inner) = (plan.data(), plan.command());
        let mut outer = self.command("env");
        outer.args(before).arg(inner.get_program()).args(inner.get_args());
        let mut daemon = Process::start("redirected", home.parent().expect("a directory"), &mut outer);
        daemon.wait_for_file(&home.join("addresses.json"));
        daemon
    }

    /// Starts an origin in there: `/echo…` says what was asked for, every other path is a file below `root`.
    fn origin(&self, root: &Path, listen: &[&str], certificate: Option<&(String, String)>) -> Process {
        if let Some((certificate, key)) = certificate {
            fs::write(root.join("../origin.pem"), format!("{certificate}{key}")).expect("a writable directory");
        }
        let mut python = self.command("python3");
        let origin = Process::start("origin", root, python.args(["-c", ORIGIN]).arg(root).args(listen));
        for at in listen {
            let (scheme, host) = at.split_once('=').unwrap_or(("http", at));
            let url = format!("{scheme}://{host}/echo/up");
            wait_for("the origin", || self.curl(&["-k", &url]).contains("/up").then_some(()));
        }
        origin
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "delete", &self.0]).status();
        let _ = fs::remove_dir_all(self.etc());
    }
}

const ORIGIN: &str = "import http.server as h, os, socket, ssl, sys, threading
root = sys.argv[1]
class H(h.SimpleHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def __init__(self, *a):
        super().__init__(*a, directory=root)
    def do_GET(self):
        with open(os.path.join(root, '../seen'), 'a') as f:
            f.write(self.path + ' ' + str(self.headers['Via']) + chr(10))
        if not self.path.startswith('/echo'):
            return super().do_GET()
        body = (self.path + ' ' + self.headers['Host'] + ' ' + str(self.headers['Via'])).encode()
        self.send_response(200)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
class S(h.ThreadingHTTPServer):
    daemon_threads = True
    def __init__(self, host, port):
        self.address_family = socket.AF_INET6 if ':' in host else socket.AF_INET
        super().__init__((host, port), H)
servers = []
for at in sys.argv[2:]:
    scheme, _, at = at.rpartition('=')
    host, _, port = at.rpartition(':')
    server = S(host.strip('[]'), int(port))
    if scheme == 'https':
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(os.path.join(root, '../origin.pem'))
        server.socket = context.wrap_socket(server.socket, server_side=True)
    servers.append(threading.Thread(target=server.serve_forever))
[s.start() for s in servers]";

/// A directory that the origin serves, in one that everybody can look into.
fn shelf() -> (tempfile::TempDir, PathBuf) {
    let home = tempfile::tempdir().expect("a temporary directory");
    let root = home.path().join("root");
    fs::create_dir(&root).expect("a writable directory");
    (home, root)
}

#[test]
fn redirected_http_goes_to_its_host() {
    let Some(space) = Namespace::new("exact", &["iptables"]) else { return };
    space.run("ip addr add 192.0.2.10/32 dev lo");
    let plan = Daemon::plan("h1").set("proxy.transparent.port", 4003).set("proxy.allow[]", "127.0.0.1:8055");
    let _daemon = space.start(&plan, &[]);
    let (_home, root) = shelf();
    let _origin = space.origin(&root, &["127.0.0.1:8055"], None);
    space.run("iptables -t nat -A OUTPUT -d 192.0.2.10 -p tcp --dport 80 -j REDIRECT --to-ports 4003");
    let answer = space.curl(&["-H", "Host: 127.0.0.1:8055", "http://192.0.2.10/echo?b=c"]);
    assert!(answer.starts_with("/echo?b=c 127.0.0.1:8055 1.1 damselfly"), "{answer}");
    let own = space.curl(&["-H", "Host: 127.0.0.1:8055", "http://127.0.0.1:4003/"]);
    assert_eq!(own, "", "the port itself leads nowhere");
}

/// The rules of `contrib/nftables`, as they are but for the user's name.
#[test]
fn the_rules_take_http_and_tls_of_both_families_until_they_are_taken_out() {
    let Some(space) = Namespace::new("rules", &["nft", "setpriv"]) else { return };
    space.run(&format!("ip addr add {V4}/32 dev lo"));
    space.run(&format!("ip addr add {V6}/128 dev lo nodad"));
    let authority = Authority::new();
    let names = ["origin.example", "origin6.example", "blind.example", V4];
    let certificate = authority.certificate_for(&names);
    let (home, root) = shelf();
    let [http4, http6] = [format!("{V4}:80"), format!("[{V6}]:80")];
    let [tls4, tls6] = [format!("https={V4}:443"), format!("https=[{V6}]:443")];
    let _origin = space.origin(&root, &[&http4, &http6, &tls4, &tls6], Some(&certificate));

    let mut plan = Daemon::plan("h1").set("proxy.transparent.port", 4003).set("proxy.transparent.ip", "::");
    for host in ["origin.example", "origin6.example"] {
        plan = plan.intercept(host).trusted_upstream(&format!("{host}:443"), authority.pem());
    }
    let place = plan.data().parent().expect("a directory").to_owned();
    drop(plan.command());
    assert!(Command::new("chown").args(["-R", USER]).arg(&place).status().expect("chown").success());
    let (user, group) = (format!("--reuid={USER}"), format!("--regid={USER}"));
    let _daemon = space.start(&plan, &["setpriv", &user, &group, "--clear-groups"]);
    let ours = plan.data().join("ca.pem");
    let theirs = home.path().join("authority.pem");
    fs::write(&theirs, authority.pem()).expect("a writable directory");
    let (ours, theirs) = (ours.to_string_lossy(), theirs.to_string_lossy());

    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/contrib/nftables/damselfly.nft");
    let text = fs::read_to_string(rules).expect("the rules").replace("\"dfdaemon\"", USER);
    let file = home.path().join("rules.nft");
    fs::write(&file, text).expect("a writable directory");
    space.run(&format!("nft -f {}", file.display()));
    for url in ["http://origin.example/echo/a", "http://origin6.example/echo/a"] {
        let answer = space.curl(&[url]);
        assert!(answer.contains("/echo/a origin") && answer.contains(" 1.1 damselfly"), "{url}: {answer:?}");
    }
    for url in ["https://origin.example/echo/b", "https://origin6.example/echo/b"] {
        let answer = space.curl(&["--cacert", &ours, "--http1.1", url]);
        assert!(answer.contains(" 1.1 damselfly"), "{url} is looked into: {answer:?}");
        assert_eq!(space.curl(&["--cacert", &theirs, url]), "", "{url}: the leaf is ours");
    }
    let blind = space.curl(&["--cacert", &theirs, "https://blind.example/echo/c"]);
    assert_eq!(blind, "/echo/c blind.example None", "what is not listed goes on as it is");

    if Tool::find("git").is_some() {
        clone_with_git(&space, &root);
    }
    if Tool::find("apt-get").is_some() {
        update_with_apt(&space, home.path(), &root);
    }
    let seen = fs::read_to_string(home.path().join("seen")).expect("requests");
    let past: Vec<&str> = seen.lines().filter(|line| !line.starts_with("/echo") && line.ends_with(" None")).collect();
    assert!(past.is_empty(), "requests that went past the proxy: {past:?}");

    space.run("nft delete table inet damselfly");
    assert_eq!(space.curl(&["http://origin.example/echo/d"]), "/echo/d origin.example None");
    let direct = space.curl(&["--cacert", &theirs, "https://origin.example/echo/d"]);
    assert_eq!(direct, "/echo/d origin.example None");
}

fn clone_with_git(space: &Namespace, root: &Path) {
    let script = "cd \"$0\"; git init -q work; cd work; git config user.email a@b; git config user.name a
        git commit -q --allow-empty -m first; cd ..; git clone -q --bare work repo.git; git -C repo.git update-server-info
        git clone -q http://origin.example/repo.git clone; git -C clone log --format=%s";
    let output = space.command("sh").args(["-ec", script]).arg(root).output().expect("sh");
    assert_eq!(String::from_utf8_lossy(&output.stdout), "first\n", "{}", String::from_utf8_lossy(&output.stderr));
}

fn update_with_apt(space: &Namespace, home: &Path, root: &Path) {
    let (list, state) = (home.join("sources.list"), home.join("apt"));
    fs::create_dir_all(root.join("apt")).expect("a writable directory");
    fs::create_dir_all(state.join("lists/partial")).expect("a writable directory");
    let package = "Package: hello\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nFilename: ./hello.deb\nSize: 1\n\
                   SHA256: 6b86b273ff34fce19d6b804eff5a3f5747ada4eaa22f1d49c01e52ddb7875b4b\nDescription: x\n";
    fs::write(root.join("apt/Packages"), package).expect("a writable directory");
    fs::write(&list, "deb [trusted=yes allow-insecure=yes] http://origin.example/apt ./\n")
        .expect("a writable directory");
    let mut apt = space.command("apt-get");
    apt.args(["-q", "-o", "APT::Sandbox::User=root", "-o", "Dir::Etc::sourceparts=-", "-o", "Dir::Etc::main=-"]);
    apt.args(["-o", "Dir::Etc::parts=-", "-o", "APT::Update::Post-Invoke-Success::="]);
    for (key, value) in [("Dir::Etc::sourcelist", &list), ("Dir::State", &state), ("Dir::Cache", &state)] {
        apt.arg("-o").arg(format!("{key}={}", value.display()));
    }
    let output = apt.arg("update").output().expect("apt-get");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let lists = fs::read_dir(state.join("lists")).expect("lists").flatten();
    assert!(lists.map(|file| file.file_name()).any(|name| name.to_string_lossy().contains("_Packages")), "apt's list");
}

/// A client whose traffic this host routes, taken as it is with `TPROXY`.
#[test]
fn what_is_taken_with_tproxy_keeps_its_destination() {
    let Some(router) = Namespace::new("tproxy", &["iptables", "ip6tables"]) else { return };
    let Some(client) = Namespace::new("client", &[]) else { return };
    let (near, far) = (format!("tr{}", std::process::id()), format!("tc{}", std::process::id()));
    let made = Command::new("ip")
        .args(["link", "add", &near, "netns", &router.0, "type", "veth", "peer", "name", &far, "netns", &client.0])
        .status();
    if !made.is_ok_and(|status| status.success()) {
        return skipped("veth");
    }
    for (space, link, v4, v6) in
        [(&router, &near, "198.51.100.1/24", "fd00:c::1/64"), (&client, &far, "198.51.100.2/24", "fd00:c::2/64")]
    {
        space.run(&format!("ip addr add {v4} dev {link}"));
        space.run(&format!("ip addr add {v6} dev {link} nodad"));
        space.run(&format!("ip link set {link} up"));
    }
    client.run("ip route add default via 198.51.100.1");
    client.run("ip -6 route add default via fd00:c::1");
    router.run(&format!("ip addr add {V4}/32 dev lo"));
    router.run(&format!("ip addr add {V6}/128 dev lo nodad"));
    let (_home, root) = shelf();
    let _origin = router.origin(&root, &[&format!("{V4}:80"), &format!("[{V6}]:80")], None);
    for (family, tool, any) in [("-4", "iptables", "0.0.0.0/0"), ("-6", "ip6tables", "::/0")] {
        router.run(&format!("ip {family} rule add fwmark 1 lookup 100"));
        router.run(&format!("ip {family} route add local {any} dev lo table 100"));
        let rule =
            format!("-t mangle -A PREROUTING -i {near} -p tcp --dport 80 -j TPROXY --on-port 4003 --tproxy-mark 1");
        let done = router.command(tool).args(rule.split(' ')).output().expect("ip netns exec");
        if !done.status.success() {
            return skipped(&format!("TPROXY of {tool}"));
        }
    }
    let plan = Daemon::plan("h1").set("proxy.transparent.port", 4003).set("proxy.transparent.ip", "::");
    let _daemon = router.start(&plan, &[]);
    for host in ["origin.example", "origin6.example"] {
        let answer = client.curl(&[&format!("http://{host}/echo/x")]);
        assert!(answer.starts_with(&format!("/echo/x {host} 1.1 damselfly")), "{host}: {answer:?}");
    }
}
