//! Which way requests of many kinds go.

use super::*;
use http::Request;
use regex::Regex;

const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

/// A world with one rule, one intercepted host and a default registry.
fn routes() -> Routes {
    let rule = Rule {
        regex: Regex::new("/ruled/").unwrap(),
        use_tls: true,
        redirect: Some("mirror:81".parse().unwrap()),
        filtered_query_params: vec!["s".into()],
    };
    let config = Config { id: "me".into(), rules: vec![rule], ..Config::default() };
    let policy = Policy::new(vec!["looked.example".parse().unwrap()]);
    let certified = Upstream { host: "certified.example".into(), cert_pem: Some(Vec::new()), ..Upstream::default() };
    let mirror = Mirror::new(Some("https://registry.example")).unwrap();
    Routes { config, policy, mirror, upstreams: vec![certified] }
}

fn route_from(ingress: &Ingress, method: &str, uri: &str, lines: &[(&str, &str)]) -> Route {
    let mut request = Request::builder().method(method).uri(uri);
    for (name, value) in lines {
        request = request.header(*name, *value);
    }
    classify(&request.body(()).unwrap().into_parts().0, &routes(), ingress)
}

fn route(method: &str, uri: &str, lines: &[(&str, &str)]) -> Route {
    route_from(&Ingress::default(), method, uri, lines)
}

/// A route in short: its kind and where it goes.
fn short(route: &Route) -> String {
    match route {
        Route::Reject(fault) => format!("reject {}", fault.status().as_u16()),
        Route::Ping => "ping".into(),
        Route::Challenge => "challenge".into(),
        Route::Token(_) => "token".into(),
        Route::Page => "page".into(),
        Route::Tunnel(Endpoint { host, port }) => format!("tunnel {host} {port}"),
        Route::Intercept(Endpoint { host, port }) => format!("intercept {host} {port}"),
        Route::Forward(target, bypass) => format!("forward {} {}", bypass.as_str(), target.uri),
        Route::Inspect(target, _) => format!("inspect {}", target.uri),
        Route::Probe(target, _) => format!("probe {}", target.uri),
        Route::Blob(target, _, _) => format!("blob {}", target.uri),
        Route::Manifest(target, None) => format!("tag {}", target.uri),
        Route::Manifest(target, Some(_)) => format!("manifest {}", target.uri),
    }
}

#[test]
fn every_kind_of_request_has_its_way() {
    let blob = format!("/v2/library/x/blobs/{DIGEST}");
    let manifest = format!("/v2/library/x/manifests/{DIGEST}");
    let credentials = [("authorization", "x")];
    for (method, uri, lines, want) in [
        ("GET", "http://a/b", &[][..], "inspect http://a/b"),
        ("GET", "http://damselfly.local/ca.pem", &[], "page"),
        ("POST", "http://Damselfly.Local.:8080/", &[], "page"),
        ("GET", "http://damselfly.local.example/", &[], "inspect http://damselfly.local.example/"),
        ("GET", "http://u:p@a/b", &[], "forward credentials http://a/b"),
        ("HEAD", "http://a/b.iso", &[], "forward method http://a/b.iso"),
        ("POST", "http://a/b.iso", &[], "forward method http://a/b.iso"),
        ("GET", "http://a/b.iso?x", &[], "probe http://a/b.iso?x"),
        ("GET", "https://a/b.iso", &[("range", "bytes=1-")], "probe https://a/b.iso"),
        ("GET", "http://a/b", &[("range", "bytes=1-")], "forward range-form http://a/b"),
        ("GET", "http://a/b.iso", &[("range", "bytes=1-2,4-5")], "forward range-form http://a/b.iso"),
        ("GET", "http://a/b", &[("range", "bytes=1-2,4-5")], "forward range-form http://a/b"),
        ("GET", "http://a/b", &[("x-dragonfly-use-p2p", "TRUE")], "probe http://a/b"),
        ("GET", "http://a/b.iso", &[("x-dragonfly-use-p2p", "false")], "forward disabled http://a/b.iso"),
        ("GET", "http://a/b.iso", &credentials, "forward credentials http://a/b.iso"),
        ("GET", "http://a/b.iso", &[("cookie", "x")], "forward credentials http://a/b.iso"),
        ("GET", "http://a/b.iso", &[("cache-control", "no-store")], "forward cache-control http://a/b.iso"),
        ("GET", "http://a/b.iso", &[("content-length", "1")], "forward body http://a/b.iso"),
        ("GET", "http://a/b.iso", &[("content-length", "0")], "probe http://a/b.iso"),
        ("GET", "http://a/b.iso", &[("connection", "upgrade"), ("upgrade", "ws")], "forward upgrade http://a/b.iso"),
        ("GET", "http://a/ruled/b?s=1", &[], "probe https://mirror:81/ruled/b?s=1"),
        ("GET", "http://a/ruled/b", &credentials, "probe https://mirror:81/ruled/b"),
        ("HEAD", "http://a/ruled/b", &[], "forward method https://mirror:81/ruled/b"),
        ("PUT", "http://a/ruled/b", &[], "forward method http://a/ruled/b"),
        ("GET", &format!("https://r{blob}"), &[], &format!("blob https://r{blob}")),
        (
            "GET",
            &format!("https://r{blob}"),
            &[("range", "bytes=1-2,4-5")],
            &format!("forward range-form https://r{blob}"),
        ),
        (
            "GET",
            &format!("https://r{blob}"),
            &[("if-none-match", "x")],
            &format!("forward conditional https://r{blob}"),
        ),
        ("GET", &format!("https://r{blob}"), &credentials, &format!("blob https://r{blob}")),
        ("GET", &format!("https://r{blob}?sig=x&sv=1"), &[], &format!("forward signed-url https://r{blob}?sig=x&sv=1")),
        ("GET", "http://a/b.iso?access_token=x", &[], "forward secret-query http://a/b.iso?access_token=x"),
        ("GET", "http://a/b.iso?X-Amz-Signature=x", &[], "probe http://a/b.iso?X-Amz-Signature=x"),
        ("GET", "http://a/ruled/b?token=1", &[], "forward secret-query https://mirror:81/ruled/b?token=1"),
        ("GET", &blob, &[], &format!("blob https://registry.example{blob}")),
        ("HEAD", &blob, &[], &format!("forward method https://registry.example{blob}")),
        ("GET", &manifest, &credentials, &format!("manifest https://registry.example{manifest}")),
        ("HEAD", &manifest, &[], &format!("manifest https://registry.example{manifest}")),
        ("GET", &manifest, &[("if-none-match", "x")], &format!("inspect https://registry.example{manifest}")),
        ("GET", "https://r/v2/x/manifests/1", &[], "tag https://r/v2/x/manifests/1"),
        ("HEAD", "/v2/x/manifests/1?ns=r", &[], "tag https://r/v2/x/manifests/1"),
        ("PUT", "/v2/x/manifests/1?ns=r", &[], "forward method https://r/v2/x/manifests/1"),
        ("GET", "/v2/", &[], "challenge"),
        ("GET", "/v2/", &credentials, "ping"),
        ("GET", "/token?scope=x", &[], "token"),
        ("POST", "/token?ns=r", &[], "token"),
        ("GET", "/token?ns=http://r", &[], "reject 400"),
        ("GET", "/", &[], "reject 404"),
        ("GET", "ftp://a/b", &[], "reject 400"),
        ("GET", "http://a/b", &[("via", "1.1 me")], "reject 508"),
        ("GET", "http://a/b.iso", &[("x-dragonfly-piece-length", "7")], "reject 400"),
        ("CONNECT", "a:443", &[], "tunnel a 443"),
        ("CONNECT", "a:22", &[], "tunnel a 22"),
        ("CONNECT", "[::1]:8443", &[], "tunnel ::1 8443"),
        ("CONNECT", "looked.example:443", &[], "intercept looked.example 443"),
        ("CONNECT", "a:25", &[], "reject 403"),
        ("CONNECT", "a", &[], "reject 400"),
        ("CONNECT", "a:0", &[], "reject 400"),
    ] {
        assert_eq!(short(&route(method, uri, lines)), want, "{method} {uri} {lines:?}");
    }
}

#[test]
fn a_registry_is_there_even_if_nobody_says_which() {
    let routes = Routes { mirror: Mirror::default(), ..routes() };
    for (uri, want) in [
        ("/v2/", "challenge"),
        ("/v2/x/manifests/1", "tag https://registry-1.docker.io/v2/x/manifests/1"),
        ("/v2/quay.io/x/tags/list", "inspect https://quay.io/v2/x/tags/list"),
    ] {
        let parts = Request::get(uri).body(()).unwrap().into_parts().0;
        assert_eq!(short(&classify(&parts, &routes, &Ingress::default())), want, "{uri}");
    }
    let parts = Request::get("/v2/").header("authorization", "Bearer x").body(()).unwrap().into_parts().0;
    assert_eq!(short(&classify(&parts, &routes, &Ingress::default())), "ping");
}

#[test]
fn a_mirror_port_is_one_registrys_whatever_is_asked_for() {
    let registry = Registry::configured("test", "http://r.example:5000").unwrap();
    let ingress = Ingress { registry: Some(Arc::new(registry)), ..Ingress::default() };
    for (uri, want) in [
        ("/v2/", "challenge"),
        ("/token?service=damselfly&scope=x", "token"),
        ("/token?ns=r.example%3A5000", "token"),
        ("/token?ns=other.example", "inspect http://r.example:5000/token?ns=other.example"),
        ("/v2/quay.io/x/manifests/1?ns=a", "tag http://r.example:5000/v2/quay.io/x/manifests/1?ns=a"),
        ("/files/b.tar?x", "probe http://r.example:5000/files/b.tar?x"),
        ("/token?scope=x", "inspect http://r.example:5000/token?scope=x"),
        ("http://a/b", "inspect http://a/b"),
    ] {
        assert_eq!(short(&route_from(&ingress, "GET", uri, &[])), want, "{uri}");
    }
    let lines = [("authorization", "Bearer x")];
    let want = "forward credentials http://r.example:5000/v2/";
    assert_eq!(short(&route_from(&ingress, "GET", "/v2/", &lines)), want, "whether the token is good");
}

#[test]
fn private_content_is_passed_through_where_the_operator_says_so() {
    let mut routes = routes();
    let blob = format!("/v2/x/blobs/{DIGEST}");
    for (setting, uri, authorization, want) in [
        (
            PrivateContent::Off,
            format!("https://r{blob}"),
            Some("x"),
            format!("forward private-content https://r{blob}"),
        ),
        (PrivateContent::Off, format!("https://r{blob}"), None, format!("blob https://r{blob}")),
        (
            PrivateContent::Off,
            format!("https://certified.example{blob}"),
            None,
            format!("forward private-content https://certified.example{blob}"),
        ),
        (
            PrivateContent::Off,
            "https://certified.example/b.iso".into(),
            None,
            "forward private-content https://certified.example/b.iso".into(),
        ),
        (PrivateContent::Host, format!("https://r{blob}"), Some("x"), format!("blob https://r{blob}")),
        (PrivateContent::Share, format!("https://r{blob}"), Some("x"), format!("blob https://r{blob}")),
    ] {
        routes.config.private_content = setting;
        let mut request = Request::get(&uri);
        if let Some(authorization) = authorization {
            request = request.header("authorization", authorization);
        }
        let parts = request.body(()).unwrap().into_parts().0;
        assert_eq!(short(&classify(&parts, &routes, &Ingress::default())), want, "{setting:?} {uri}");
    }
}

#[test]
fn inside_a_tunnel_the_host_is_the_tunnels() {
    let ingress = Ingress { through: Some((Scheme::HTTPS, "a:8443".parse().unwrap())), ..Ingress::default() };
    for (lines, uri, want) in [
        (&[("host", "a:8443")][..], "/b.iso", "probe https://a:8443/b.iso"),
        (&[], "https://a:8443/b.iso", "probe https://a:8443/b.iso"),
        (&[("host", "other")], "/b.iso", "forward host https://a:8443/b.iso"),
        (&[("host", "a:8443")], "/v2/", "inspect https://a:8443/v2/"),
    ] {
        assert_eq!(short(&route_from(&ingress, "GET", uri, lines)), want, "{lines:?} {uri}");
    }
    let Route::Forward(target, _) = route_from(&ingress, "GET", "/b", &[("host", "other")]) else { panic!() };
    assert!(target.keep_host);
}

#[test]
fn what_is_addressed_to_ourselves_is_meant_for_us() {
    let ingress = Ingress { local: Some("127.0.0.1:4001".parse().unwrap()), ..Ingress::default() };
    for (uri, want) in [
        ("http://127.0.0.1:4001/v2/", "challenge"),
        ("http://localhost:4001/x", "reject 404"),
        ("http://127.0.0.1:4002/x", "inspect http://127.0.0.1:4002/x"),
        ("http://127.0.0.2:4001/x", "inspect http://127.0.0.2:4001/x"),
    ] {
        assert_eq!(short(&route_from(&ingress, "GET", uri, &[])), want, "{uri}");
    }
}

#[test]
fn the_client_has_the_last_word_on_what_it_asks_for() {
    let lines = [("x-dragonfly-tag", " t "), ("x-dragonfly-application", "a"), ("x-dragonfly-piece-length", "4194304")];
    let Route::Probe(_, options) = route("GET", "http://a/ruled/b", &lines) else { panic!() };
    assert_eq!((options.tag.as_str(), options.application.as_str(), options.piece_length), ("t", "a", Some(4 << 20)));
    assert_eq!((options.least, options.filter()), (1, Filter::Named(&["s".into()])));
    let lines = [("x-dragonfly-filtered-query-params", "x, y")];
    let Route::Probe(_, options) = route("GET", "http://a/ruled/b", &lines) else { panic!() };
    assert_eq!(options.filter(), Filter::Named(&["x".into(), "y".into()]));
    let Route::Inspect(_, options) = route("GET", "http://a/b", &[]) else { panic!() };
    assert_eq!((options.least, options.filter()), (8 << 20, Filter::Signatures));
    let long = "t".repeat(MAX_LABEL + 1);
    assert_eq!(short(&route("GET", "http://a/b", &[("x-dragonfly-tag", &long)])), "reject 400");
}
