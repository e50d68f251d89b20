//! Mutual TLS on the gRPC ports of a fleet: members, strangers, and certificates that are replaced.

use std::path::PathBuf;

use damselfly_api::dfdaemon::SyncPiecesRequest;
use damselfly_api::dfdaemon::dfdaemon_upload_client::DfdaemonUploadClient;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, ServerName};

use crate::harness::{
    Daemon, DaemonPlan, MIB, Origin, Page, Process, Scheduler, binary, block_on, client_config, exchange, random, run,
    wait_for,
};

/// The certificates of a fleet, as `dfctl certs` makes them.
struct Certificates(tempfile::TempDir);

impl Certificates {
    fn new() -> Self {
        let this = Self(tempfile::tempdir().expect("a temporary directory"));
        this.dfctl(&["ca"]);
        this
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).expect("a file of dfctl certs")
    }

    fn dfctl(&self, arguments: &[&str]) {
        let mut command = Process::command(binary("dfctl"));
        let done = run(command.arg("certs").args(arguments).arg("--dir").arg(self.0.path()));
        assert!(done.ok, "{}", done.errors);
    }

    /// `security` of a member of this name, whose certificate is made.
    fn security(&self, name: &str, require: bool) -> serde_json::Value {
        self.dfctl(&["member", "--name", name]);
        serde_json::json!({
            "caCert": self.path("fleet-ca.pem"),
            "cert": self.path(&format!("{name}.pem")),
            "key": self.path(&format!("{name}.key")),
            "requireTLS": require,
        })
    }

    fn scheduler(&self, require: bool) -> Scheduler {
        let config = serde_json::json!({ "security": self.security("scheduler", require) });
        Scheduler::start_with(&config.to_string())
    }
}

fn plan(name: &str, scheduler: &Scheduler) -> DaemonPlan {
    Daemon::plan(name).scheduler(scheduler)
}

/// Has one host download a file, then another, and says what the second one cost the origin.
fn second_costs(first: &Daemon, second: &Daemon, seed: u64) -> u64 {
    let origin = Origin::start();
    let file = random(13 * MIB, seed);
    origin.put("/big.bin", Page::file(file.clone()));
    let url = origin.url("/big.bin");
    first.get(&url).assert_is(&file);
    let sent = origin.sent("/big.bin");
    second.get(&url).assert_is(&file);
    origin.sent("/big.bin") - sent
}

fn wait_for_log(process: &Process, what: &str) {
    wait_for(what, || process.log().contains(what).then_some(()));
}

#[test]
fn members_share_where_only_members_are_heard_and_strangers_are_told_why() {
    let certificates = Certificates::new();
    let scheduler = certificates.scheduler(true);
    let member = |name: &str| plan(name, &scheduler).set("security", certificates.security(name, true)).start();
    let (h1, h2) = (member("h1"), member("h2"));
    assert!(second_costs(&h1, &h2, 960) < 64 << 10, "{}", h2.process.log());

    // Who shows nothing, to the scheduler and to a host, downloads from the origin.
    let stranger = plan("h3", &scheduler).start();
    assert!(second_costs(&h1, &stranger, 961) >= 13 * MIB as u64);
    wait_for_log(&stranger.process, "only members of this fleet are heard");
    let refused = block_on(async {
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", h1.peer_address())).expect("a URL");
        let mut host = DfdaemonUploadClient::new(endpoint.connect().await.expect("a connection"));
        host.sync_pieces(SyncPiecesRequest::default()).await.expect_err("a refusal")
    });
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    assert!(refused.message().contains("security.cert"), "{refused}");

    // A plain request for a piece.
    let (said, _) = exchange(h1.data_address(), [0; 70]);
    assert!(String::from_utf8_lossy(&said).contains("only members of this fleet are heard"), "{said:?}");

    // So does a member of another fleet.
    let others = Certificates::new();
    let other = plan("h4", &scheduler).set("security", others.security("h4", true)).start();
    assert!(second_costs(&h1, &other, 962) >= 13 * MIB as u64);
    wait_for_log(&other.process, "no mutual TLS with a member of the fleet");
}

#[test]
fn where_it_is_not_required_plain_hosts_are_served() {
    let certificates = Certificates::new();
    // A scheduler and a plain host know nothing of it; the member shows its certificate to those who have one.
    let scheduler = certificates.scheduler(false);
    let member = plan("h1", &scheduler).set("security", certificates.security("h1", false)).start();
    let plain = plan("h2", &scheduler).start();
    assert!(second_costs(&member, &plain, 970) < 64 << 10, "{}", plain.process.log());
    assert!(second_costs(&plain, &member, 971) < 64 << 10, "{}", member.process.log());
}

#[test]
fn a_member_speaks_for_no_other_host() {
    let certificates = Certificates::new();
    let scheduler = certificates.scheduler(true);
    let security = certificates.security("h1", false);
    let h1 = plan("h1", &scheduler).set("security", security).set("upload.server.requireTLS", true).start();
    let liar = plan("h2", &scheduler).set("security", certificates.security("other", true)).start();
    assert!(second_costs(&h1, &liar, 980) >= 13 * MIB as u64);
    wait_for_log(&liar.process, "the certificate says other");
}

#[test]
fn a_certificate_that_is_replaced_is_taken_over() {
    let certificates = Certificates::new();
    let scheduler = certificates.scheduler(true);
    let h1 = plan("h1", &scheduler).set("security", certificates.security("h1", true)).start();
    certificates.security("test", true);
    let shown = || {
        let identity = (certificates.read("test.pem"), certificates.read("test.key"));
        let config = client_config(certificates.read("fleet-ca.pem").as_bytes(), Some(&identity));
        block_on(async {
            let stream = tokio::net::TcpStream::connect(h1.peer_address()).await.expect("a connection");
            let name = ServerName::try_from("h1").expect("a name");
            let stream = tokio_rustls::TlsConnector::from(config).connect(name, stream).await.expect("a TLS session");
            stream.get_ref().1.peer_certificates().and_then(|all| all.first()).map(|leaf| leaf.to_vec())
        })
    };
    let now =
        || CertificateDer::from_pem_slice(certificates.read("h1.pem").as_bytes()).expect("a certificate").to_vec();
    let first = now();
    assert_eq!(shown(), Some(first.clone()));
    certificates.dfctl(&["member", "--name", "h1", "--renew"]);
    assert_ne!(now(), first);
    wait_for("the new certificate", || (shown() == Some(now())).then_some(()));
    // What cannot be used changes nothing.
    std::fs::write(certificates.path("h1.pem"), "no certificate").expect("a writable directory");
    wait_for("the warning", || {
        shown().expect("a certificate");
        h1.process.log().contains("the certificate of before is used on").then_some(())
    });
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let certificates = Certificates::new();
    let plan = Daemon::plan("h1").set("security", certificates.security("h1", false));
    std::fs::write(certificates.path("h1.key"), "no key").expect("a writable directory");
    let done = run(&mut plan.command());
    assert!(!done.ok && done.errors.contains("h1.key"), "{}", done.errors);
}
