//! The page that this proxy answers itself: who sees it goes through the proxy, and finds the certificate to trust there.

use bytes::Bytes;
use http::{HeaderValue, Method, Response, StatusCode, Uri, header, request};
use http_body_util::{BodyExt as _, Full};

use super::fault::Fault;
use crate::mitm::Interceptor;
use crate::net::Body;

/// The host of the page. Nobody but this proxy knows the name.
pub const HOST: &str = "damselfly.local";

/// Whether a URL is the page's.
pub(super) fn is_meant(uri: &Uri) -> bool {
    uri.host().is_some_and(|host| host.trim_end_matches('.').eq_ignore_ascii_case(HOST))
}

/// What stands at the path that is asked for.
pub(super) fn answer(parts: &request::Parts, interceptor: &Interceptor) -> Response<Body> {
    if !matches!(parts.method, Method::GET | Method::HEAD) {
        return Fault::client(StatusCode::METHOD_NOT_ALLOWED, "This page can be read only.").into_response();
    }
    let (kind, content) = match parts.uri.path() {
        "/" => ("text/plain; charset=utf-8", Bytes::from(text(&interceptor.authority_fingerprint()))),
        "/ca.pem" => ("application/x-pem-file", Bytes::from(interceptor.authority_pem().to_owned())),
        // Browsers and phones offer to install it.
        "/ca.crt" => ("application/x-x509-ca-cert", Bytes::copy_from_slice(interceptor.authority_der())),
        _ => return Fault::client(StatusCode::NOT_FOUND, "There are /, /ca.pem and /ca.crt here.").into_response(),
    };
    let length = content.len();
    let body = if parts.method == Method::HEAD { Bytes::new() } else { content };
    let mut response = Response::new(Full::new(body).map_err(|never| match never {}).boxed_unsync());
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}

fn text(fingerprint: &str) -> String {
    format!(
        "\
This is Damselfly: your request went through its proxy.

The TLS of hosts in proxy.intercept.hosts is looked into, and signed for by this
proxy's own certificate authority. Clients of these hosts have to trust it; all
other TLS passes untouched.

    http://{HOST}/ca.pem    the certificate in PEM
    http://{HOST}/ca.crt    the same in DER, for browsers and phones
    SHA-256 {fingerprint}

On this host      dfctl ca install          (dfctl ca uninstall takes it back)
In this shell     eval \"$(dfctl env)\"       (eval \"$(dfctl env --unset)\")

By hand
Debian, Ubuntu, Alpine
    cp ca.pem /usr/local/share/ca-certificates/damselfly.crt && update-ca-certificates
RHEL, Fedora
    cp ca.pem /etc/pki/ca-trust/source/anchors/damselfly.pem && update-ca-trust extract
Java
    keytool -importcert -cacerts -storepass changeit -noprompt -alias damselfly -file ca.pem
Node
    NODE_EXTRA_CA_CERTS=ca.pem
Python (a bundle of the system's authorities and ca.pem)
    SSL_CERT_FILE=bundle.pem REQUESTS_CA_BUNDLE=bundle.pem
docker
    cp ca.pem /etc/docker/certs.d/REGISTRY/ca.crt
"
    )
}
