//! Credentials: to the origin that they are meant for, and nowhere else. Each process looks through its own log for
//! [`SECRET`] when a test ends; this one plants it wherever a credential can stand.

use crate::harness::{Ask, Fleet, Kind, MIB, Origin, Page, SECRET, Scheduler, all, random};

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
