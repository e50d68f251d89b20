//! Credentials: to the origin that they are meant for, and nowhere else. Each process looks through its own log for
//! [`SECRET`] when a test ends; this one plants it wherever a credential can stand.

use std::net::{IpAddr, SocketAddr};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use damselfly_api::scheduler::ListHostsRequest;
use damselfly_api::scheduler::scheduler_client::SchedulerClient;

use crate::harness::{
    Access, Addresses, Ask, Daemon, Fleet, Image, Kind, MIB, Origin, Page, Planted, Puller, SECRET, Scheduler, Tap,
    TestRegistry, all, assert_no_file, basic, block_on, random,
};

const USER: &str = "alice";

#[test]
fn planted_credentials_stand_in_no_log() {
    let origin = Origin::start();
    let fleet = Fleet::start(2);
    let file = random(9 * MIB, 600);
    let bearer = format!("Bearer {SECRET}");
    let queries = [format!("X-Amz-Signature={SECRET}&X-Amz-Security-Token={SECRET}"), format!("token={SECRET}")];
    let paths = ["/page", "/big.bin", "/nameless", "/refused.bin"];
    for (path, query) in paths.iter().flat_map(|path| queries.iter().map(move |query| (*path, query))) {
        let page = Page::file(if path == "/page" { random(100, 1) } else { file.clone() });
        let page = page.header("X-Auth-Token", SECRET);
        // Once with what forbids that it is shared, once as a task.
        let private = query.starts_with("token") && path == "/page";
        let page = if private { page.header("Set-Cookie", &format!("session={SECRET}")) } else { page };
        origin.put(path, if path == "/refused.bin" { page.authorization("Bearer other") } else { page });
        let url = format!("{}?{query}", origin.url(path));
        let asks = fleet.hosts.iter().flat_map(|host| {
            let plain = Ask::get(&url).via(host.proxy());
            let mut loaded = plain.clone().header("Authorization", &bearer).header("X-Api-Key", SECRET);
            loaded = loaded.header("Cookie", &format!("a={SECRET}")).header("Proxy-Authorization", &bearer);
            let named = Ask::get(&url.replacen("http://", &format!("http://user:{SECRET}@"), 1)).via(host.proxy());
            let named = named.header("Host", &origin.authority());
            [plain, loaded, named]
        });
        for answer in all(asks) {
            assert!(matches!(answer.status, 200 | 400 | 401), "{path} {}", answer.status);
        }
        for seen in origin.seen(path) {
            assert!(seen.all("proxy-authorization").is_empty(), "our own credential went to the origin");
        }
    }
    origin.put("/silent.bin", Page::plain("").kind(Kind::Content).cut_after(0));
    let _ = Ask::get(&format!("{}?token={SECRET}", origin.url("/silent.bin"))).via(fleet.hosts[0].proxy()).send();
    let unreachable = format!("http://127.0.0.1:9/x.bin?token={SECRET}");
    assert_eq!(Ask::get(&unreachable).via(fleet.hosts[0].proxy()).send().status, 502);
    for host in &fleet.hosts {
        for page in ["/tasks", "/metrics", "/addresses"] {
            let text = String::from_utf8_lossy(&host.admin(page).body).into_owned();
            assert!(!text.contains(SECRET), "{page} shows a credential: {text}");
        }
    }
    assert_log_is_clean(&fleet.scheduler);
}

fn assert_log_is_clean(scheduler: &Scheduler) {
    let log = scheduler.process.log();
    assert!(!log.contains(SECRET), "the scheduler got to know a credential: {log}");
}

/// Any free port of the loopback address.
const ANY: SocketAddr = SocketAddr::new(IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 0);

/// A host whose peers reach it through taps only: it is announced at one address and listens at another.
struct OverheardHost {
    daemon: Daemon,
    lists: Tap,
    pieces: Tap,
}

impl OverheardHost {
    fn start(name: &str, [announced, listening]: [IpAddr; 2], scheduler: &Tap, registries: &[&str]) -> Self {
        let mut plan = Daemon::plan(name).set("scheduler.addrs[]", scheduler.address().to_string());
        for key in ["upload.server.ip", "storage.server.ip"] {
            plan = plan.set(key, listening.to_string());
        }
        plan = plan.set("host.ip", announced.to_string());
        plan = plan.set("proxy.rules[]", serde_json::json!({ "regex": "/artefacts/" }));
        plan = registries.iter().fold(plan, |plan, registry| plan.plain_upstream(registry));
        let daemon = plan.start();
        let at = |address: SocketAddr| SocketAddr::new(announced, address.port());
        let (lists, pieces) = (daemon.peer_address(), daemon.data_address());
        let (lists, pieces) = (Tap::decoding(at(lists), lists), Tap::start(at(pieces), pieces));
        Self { daemon, lists, pieces }
    }

    fn ask(&self, url: &str) -> Ask {
        Ask::get(url).via(self.daemon.proxy())
    }
}

#[test]
fn planted_credentials_go_to_no_peer_and_to_no_scheduler() {
    let Some(addresses) = Addresses::take(4) else { return };
    let scheduler = Scheduler::start();
    let scheduler_tap = Tap::decoding(ANY, scheduler.grpc);
    let signing = TestRegistry::plan(Access::UserToken).store(IpAddr::from([127, 0, 0, 3])).start();
    let kinds = [(Access::AnonymousToken, 871), (Access::Basic, 872), (Access::UserToken, 873)];
    let registries = kinds.map(|(access, _)| TestRegistry::plan(access).start());
    let mut known: Vec<_> = registries.iter().chain([&signing]).map(TestRegistry::authority).collect();
    known.push(signing.store_authority());
    let address = |number: usize| IpAddr::V4(addresses.all[number]);
    let hosts = [("h1", 0), ("h2", 2)]
        .map(|(name, at)| OverheardHost::start(name, [address(at), address(at + 1)], &scheduler_tap, &known));

    // Through the mirror with a password, which a token of ours may hold; through the proxy with a token.
    let mut contents = Vec::new();
    for (registry, (access, seed)) in
        registries.iter().chain([&signing]).zip(kinds.iter().chain(&[(Access::UserToken, 874)]))
    {
        let image = Image::new(9 * MIB, *seed);
        registry.publish(&image, "team/app", "1");
        registry.allow(USER, SECRET);
        for host in &hosts {
            let base = format!("http://{}", host.daemon.proxy());
            Puller::new(&base, &format!("{}/team/app", registry.authority())).user(USER, SECRET).pull(&image, "1");
            let credential = match access {
                Access::Basic => basic(USER, SECRET),
                _ => format!("Bearer {}", registry.token(Some(USER), "team/app")),
            };
            let ask = host.ask(&registry.url(&image.layer_path("team/app"))).header("Authorization", &credential);
            ask.header("Cookie", &format!("a={SECRET}")).send().assert_is(&image.layer);
        }
        assert!(registry.blob_bytes() < 10 * MIB as u64, "{access:?}: the second host took nothing from its neighbour");
        contents.push(image.layer);
    }
    // An artefact server that a rule names, with a password, keys, cookies, and a signed query.
    let origin = Origin::start();
    let file = random(9 * MIB, 875);
    let page = Page::file(file.clone()).header("Vary", "X-Api-Key, Cookie").authorization(&basic(USER, SECRET));
    origin.put("/artefacts/app", page);
    let url = format!("{}?X-Amz-Signature={SECRET}&X-Amz-Security-Token={SECRET}", origin.url("/artefacts/app"));
    for host in &hosts {
        let ask = host.ask(&url).header("Authorization", &basic(USER, SECRET)).header("X-Api-Key", SECRET);
        let ask = ask.header("Cookie", &format!("a={SECRET}")).header("Proxy-Authorization", &basic(USER, SECRET));
        ask.send().assert_is(&file);
    }
    assert!(origin.sent("/artefacts/app") < 10 * MIB as u64, "the second host took nothing from its neighbour");
    contents.push(file);

    // The taps heard what there was to hear.
    for content in &contents {
        let needle = &content[5 * MIB..5 * MIB + 64];
        assert!(hosts.iter().any(|host| host.pieces.carried(needle)), "no piece went by a tap");
    }
    assert!(hosts.iter().any(|host| host.lists.carried(b"/dfdaemon.v2.DfdaemonUpload/SyncPieces")));
    for call in [&b"/scheduler.v2.Scheduler/AnnouncePeer"[..], b"/scheduler.v2.Scheduler/AnnounceHost", b"/team/app/"] {
        assert!(scheduler_tap.carried(call), "{}", String::from_utf8_lossy(call));
    }

    let planted = Planted::of(USER);
    assert!(!scheduler_tap.any(|said| planted.is_in(said)), "the scheduler was told, or said, a credential");
    for host in &hosts {
        assert!(!host.lists.any(|said| planted.is_in(said)), "a peer was told a credential");
        assert!(!host.pieces.any(|said| planted.is_in(said)), "a credential went with the pieces");
        assert_no_file(&host.daemon.data(""), |bytes| planted.is_in(bytes));
        assert!(!planted.is_in(host.daemon.process.log().as_bytes()), "a log has a credential");
        for page in ["/tasks", "/metrics", "/addresses"] {
            assert!(!planted.is_in(&host.daemon.admin(page).body), "{page} shows a credential");
        }
    }
    assert!(!planted.is_in(scheduler.process.log().as_bytes()), "the scheduler's log has a credential");
    for page in ["/api/v1/tasks", "/api/v1/hosts", "/metrics"] {
        assert!(!planted.is_in(&scheduler.admin(page).body), "{page} of the scheduler shows a credential");
    }
}

/// What the test above would miss: nothing that is said in a header, which the wire has in a code, or in a message.
#[test]
fn a_tap_hears_what_is_planted() {
    let scheduler = Scheduler::start();
    let decoded = Tap::decoding(ANY, scheduler.grpc);
    let raw = Tap::start(ANY, decoded.address());
    let planted = Planted::of(USER);
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", raw.address())).expect("a URL");
    block_on(async {
        let mut client = SchedulerClient::new(endpoint.connect().await.expect("the scheduler"));
        let mut request = tonic::Request::new(ListHostsRequest::default());
        let value = format!("Bearer {SECRET}").parse().expect("a header value");
        request.metadata_mut().insert("authorization", value);
        client.list_hosts(request).await.expect("an answer");
    });
    assert!(decoded.any(|said| planted.is_in(said)));
    assert!(decoded.carried(b"/scheduler.v2.Scheduler/ListHosts"));
    assert!(!raw.any(|bytes| planted.is_in(bytes)), "the wire has it in a code");

    let coded = basic(USER, SECRET);
    let token = URL_SAFE_NO_PAD.encode(format!("registry.example\n{coded}"));
    let twice = STANDARD.encode(format!("a={SECRET}"));
    for said in [SECRET, &coded, &token, &twice, "706c616e7465642d63726564656e7469616c2d37663361"] {
        assert!(planted.is_in(format!("x{said}x").as_bytes()), "{said}");
    }
    assert!(!planted.is_in(b"planted-credential"));
}
