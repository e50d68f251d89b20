//! `dfctl`, and the page at `http://damselfly.local/`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use crate::harness::{
    Ask, Authority, Daemon, Done, Fleet, Origin, Page, Process, Tool, binary, exchange, random, run, sha256_hex,
    skipped,
};

fn dfctl(arguments: &[&str]) -> Done {
    let mut command = Process::command(binary("dfctl"));
    command.args(arguments);
    run(&mut command)
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

#[test]
fn the_page_says_what_to_trust() {
    let daemon = Daemon::plan("h1").start();
    let page = daemon.get("http://damselfly.local/");
    assert_eq!(page.status, 200);
    let der = daemon.get("http://damselfly.local/ca.crt").body;
    let words = text(&page.body);
    assert!(words.contains(&sha256_hex(&der)) && words.contains("dfctl ca install"), "{words}");
    assert_eq!(text(&daemon.get("http://damselfly.local/ca.pem").body), daemon.ca());
    assert_eq!(daemon.get("http://DAMSELFLY.local./nothing").status, 404);
    let (refused, _) = exchange(
        daemon.proxy(),
        "POST http://damselfly.local/ HTTP/1.1\r\nHost: damselfly.local\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
    );
    assert!(text(&refused).starts_with("HTTP/1.1 405 "), "{}", text(&refused));
}

#[test]
fn a_download_is_explained_by_task_and_by_url() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    origin.put("/big.bin", Page::file(random(9 * 1024 * 1024, 301)));
    let url = origin.url("/big.bin");
    let task = fleet.hosts[0].get(&url).line("x-dragonfly-task-id").to_string();
    fleet.hosts[1].get(&url);
    let scheduler = fleet.scheduler.http.to_string();
    for what in [&task, &format!("{url}?signature=secret")] {
        let said = dfctl(&["explain", what, "--scheduler", &scheduler]);
        let words = text(&said.output);
        assert!(said.ok && words.contains(&task) && words.contains("on 127.0.0.1-h2:"), "{what}: {words}");
        assert!(!words.contains("secret"), "{words}");
    }
    let json = dfctl(&["explain", &task, "--scheduler", &scheduler, "-o", "json"]);
    let json: serde_json::Value = serde_json::from_slice(&json.output).expect("JSON");
    assert_eq!((json["id"].as_str(), json["peerCount"].as_u64()), (Some(&*task), Some(2)), "{json}");
    let unknown = dfctl(&["explain", &origin.url("/other.bin"), "--scheduler", &scheduler]);
    assert!(!unknown.ok && unknown.errors.contains("knows no task of"), "{}", unknown.errors);
    let absent = dfctl(&["explain", &task, "--scheduler", "127.0.0.1:1"]);
    assert!(!absent.ok && absent.errors.contains("--scheduler names another"), "{}", absent.errors);
    let nonsense = dfctl(&["explain", "app:latest", "--scheduler", &scheduler]);
    assert!(!nonsense.ok && nonsense.errors.contains("64 hex digits"), "{}", nonsense.errors);
}

#[test]
fn the_page_is_for_those_who_may_use_the_proxy() {
    let auth = serde_json::json!({ "username": "u", "password": "p" });
    let daemon = Daemon::plan("h1").set("proxy.server.basicAuth", auth).start();
    assert_eq!(daemon.get("http://damselfly.local/ca.pem").status, 407);
}

#[test]
fn one_authority_serves_a_fleet() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("fleet");
    let name = dir.to_str().unwrap();
    let made = dfctl(&["ca", "create", "--dir", name]);
    assert!(made.ok, "{}", made.errors);
    let (cert, key) = (dir.join("ca.pem"), dir.join("ca.key"));
    let pem = fs::read_to_string(&cert).unwrap();
    assert_eq!(fs::metadata(&key).unwrap().permissions().mode() & 0o777, 0o600);
    let again = dfctl(&["ca", "create", "--dir", name]);
    assert!(!again.ok && again.errors.contains("is there already"), "{}", again.errors);
    assert_eq!(fs::read_to_string(&cert).unwrap(), pem, "the first one is untouched");

    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    origin.put("/page", Page::plain("hello"));
    for host in ["h1", "h2"] {
        let daemon = Daemon::plan(host)
            .intercept("127.0.0.1")
            .trusted_upstream(&origin.authority(), authority.pem())
            .set("proxy.server.caCert", cert.to_str().unwrap())
            .set("proxy.server.caKey", key.to_str().unwrap())
            .start();
        let answer = Ask::get(&origin.url("/page")).via(daemon.proxy()).trust(&pem).send();
        answer.assert_is(b"hello");
        assert!(!daemon.data("ca.pem").exists(), "the daemon made an authority although one is configured");
        let proxy = daemon.proxy().to_string();
        let shown = dfctl(&["--proxy", &proxy, "ca", "show"]);
        assert_eq!(text(&shown.output), pem, "{}", shown.errors);
        let shown = dfctl(&["--proxy", &proxy, "ca", "show", "-o", "json"]);
        let shown: serde_json::Value = serde_json::from_slice(&shown.output).unwrap();
        assert_eq!((shown["pem"].as_str(), shown["sha256"].as_str().map(str::len)), (Some(&*pem), Some(64)));
    }
}

#[test]
fn without_a_daemon_its_directory_is_read_and_without_both_it_says_so() {
    let mut daemon = Daemon::plan("h1").start();
    let (data, pem) = (daemon.data(""), daemon.ca());
    let proxy = daemon.proxy().to_string();
    daemon.stop();
    let shown = dfctl(&["--data-dir", data.to_str().unwrap(), "--proxy", &proxy, "ca", "show"]);
    assert_eq!(text(&shown.output), pem, "{}", shown.errors);
    let empty = tempfile::tempdir().unwrap();
    let none = dfctl(&["--data-dir", empty.path().to_str().unwrap(), "--proxy", &proxy, "ca", "show"]);
    assert!(!none.ok && none.errors.contains("--cert FILE"), "{}", none.errors);
    let wrong = empty.path().join("wrong.pem");
    fs::write(&wrong, Authority::new().client_certificate().0).unwrap();
    let none = dfctl(&["ca", "show", "--cert", wrong.to_str().unwrap()]);
    assert!(!none.ok && none.errors.contains("not the certificate of a CA"), "{}", none.errors);
}

#[test]
fn each_systems_store_is_found_and_left_as_it_was() {
    let daemon = Daemon::plan("h1").start();
    let proxy = daemon.proxy().to_string();
    for (anchors, file, command) in [
        ("etc/pki/ca-trust/source/anchors", "damselfly.pem", "update-ca-trust extract"),
        ("usr/local/share/ca-certificates", "damselfly.crt", "update-ca-certificates"),
    ] {
        let root = tempfile::tempdir().unwrap();
        let name = root.path().to_str().unwrap();
        let refused = dfctl(&["--proxy", &proxy, "ca", "install", "--root", name]);
        assert!(!refused.ok && refused.errors.contains("ca-certificates"), "{}", refused.errors);
        fs::create_dir_all(root.path().join(anchors)).unwrap();
        let place = root.path().join(anchors).join(file);
        let said = dfctl(&["--proxy", &proxy, "ca", "install", "--root", name, "--dry-run"]);
        assert!(said.ok && !place.exists(), "{}", said.errors);
        for _ in 0..2 {
            let done = dfctl(&["--proxy", &proxy, "ca", "install", "--root", name]);
            assert!(done.ok, "{}", done.errors);
            assert_eq!(fs::read_to_string(&place).unwrap(), daemon.ca());
            let words = text(&done.output);
            for named in [command, "keytool", "NODE_EXTRA_CA_CERTS", "REQUESTS_CA_BUNDLE"] {
                assert!(words.contains(named), "{named}: {words}");
            }
        }
        for left in ["removed", "nothing to take out"] {
            let done = dfctl(&["ca", "uninstall", "--root", name]);
            assert!(done.ok && text(&done.output).contains(left), "{}", text(&done.output));
            assert!(!place.exists());
        }
    }
}

#[test]
fn a_shell_that_takes_its_environment_goes_through_the_proxy_and_trusts_it() {
    let (Some(curl), Some(_)) = (Tool::find("curl"), Tool::find("sh")) else { return };
    drop(curl);
    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    origin.put("/page", Page::plain("hello"));
    let plan = Daemon::plan("h1").intercept("127.0.0.1");
    let daemon = plan.trusted_upstream(&origin.authority(), authority.pem()).start();
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("it's here");
    let python = "python3 -c \"import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen(sys.argv[1]).read())\"";
    for client in ["curl -sS", python] {
        if client == python && Tool::find("python3").is_none() {
            continue;
        }
        // The origin is on loopback, which goes without the proxy by default.
        let script =
            format!("eval \"$(\"$1\" --proxy \"$2\" env --dir \"$3\")\"; unset no_proxy NO_PROXY; {client} \"$4\"");
        let mut shell = Process::command("sh");
        shell.args(["-ec", &script, "sh"]).arg(binary("dfctl")).arg(daemon.proxy().to_string()).arg(&dir);
        let done = run(shell.arg(origin.url("/page")));
        assert_eq!(text(&done.output), "hello", "{client}: {}", done.errors);
    }
    assert!(fs::read_to_string(dir.join("ca-bundle.pem")).unwrap().len() > daemon.ca().len() + 10_000, "all of them");
    let mut shell = Process::command("sh");
    let script = "eval \"$(\"$1\" --proxy \"$2\" env --dir \"$3\")\"; eval \"$(\"$1\" env --unset)\"; env";
    shell.args(["-ec", script, "sh"]).arg(binary("dfctl")).arg(daemon.proxy().to_string()).arg(&dir);
    let left = text(&run(&mut shell).output);
    assert!(!left.contains(&daemon.proxy().to_string()) && !left.contains("ca-bundle.pem"), "{left}");
}

/// The system's own store, seen by nobody but the shell that changes it.
#[test]
fn the_systems_store_trusts_it_until_it_is_taken_out() {
    let tools = ["unshare", "mount", "curl", "update-ca-certificates"];
    if tools.iter().any(|tool| Tool::find(tool).is_none()) {
        return;
    }
    if !Path::new("/usr/local/share/ca-certificates").is_dir() {
        return skipped("the store of Debian");
    }
    let authority = Authority::new();
    let origin = Origin::start_tls(&authority);
    origin.put("/page", Page::plain("hello"));
    let plan = Daemon::plan("h1").intercept("127.0.0.1");
    let daemon = plan.trusted_upstream(&origin.authority(), authority.pem()).start();
    let home = tempfile::tempdir().unwrap();
    let script = "cp -a /etc/ssl/certs \"$4/certs\"; mkdir \"$4/local\"
        mount --bind \"$4/certs\" /etc/ssl/certs; mount --bind \"$4/local\" /usr/local/share/ca-certificates
        ask() { curl -s -x \"http://$2\" \"$3\" || echo refused; }
        ask \"$@\"; echo; \"$1\" --proxy \"$2\" ca install >&2; ask \"$@\"; echo
        \"$1\" ca uninstall >&2; ask \"$@\"; ls \"$4/local\"";
    let mut shell = Process::command("unshare");
    shell.args(["--mount", "sh", "-ec", script, "sh"]).arg(binary("dfctl")).arg(daemon.proxy().to_string());
    let done = run(shell.arg(origin.url("/page")).arg(home.path()));
    if done.errors.contains("unshare failed") {
        return skipped("mount namespaces");
    }
    assert_eq!(text(&done.output), "refused\n\nhello\nrefused\n", "{}", done.errors);
}
