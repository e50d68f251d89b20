//! A registry of the tests' own: the OCI distribution protocol, pull and push, with the kinds of access that real
//! registries have, and counters of all that it was asked for.
//!
//! Up to three servers belong to one registry, as in the field: the registry itself, the token endpoint, and the store
//! that blobs are fetched from with signed URLs.

mod access;
mod answer;
mod client;
mod content;
mod serve;
mod state;

use std::net::IpAddr;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::net::TcpListener;

pub(crate) use client::{Puller, ask_for_token, challenge_parameter};
pub(crate) use state::{Kind, Knobs, Seen, TokenEndpoint};

use super::image::MANIFEST;
use super::{Answer, Ask, Authority, Image, block_on, spawn};
use state::{Places, State};

/// The port that a name without one means.
const HTTPS: u16 = 443;

/// The registry's name in challenges. Its comma is meant: a parser that splits at commas asks for another service.
pub(crate) const SERVICE: &str = "registry.test, the tests' own";

/// A user and a password, for `Authorization`.
pub(crate) fn basic(user: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{user}:{password}")))
}

/// The token that a token endpoint has answered with, for `Authorization`.
#[track_caller]
pub(crate) fn token_of(answer: &Answer) -> String {
    let json: serde_json::Value = serde_json::from_slice(&answer.body).expect("JSON");
    let token = json.get("token").or(json.get("access_token")).and_then(|token| token.as_str());
    format!("Bearer {}", token.expect("a token"))
}

/// Who may pull.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Anybody, without a word.
    Open,
    /// Anybody with a token, which anybody gets; pushing wants a user.
    AnonymousToken,
    /// Users, by name and password at each request.
    Basic,
    /// Users, with a token that they get for their password.
    UserToken,
}

/// A registry to be started.
#[derive(Clone)]
pub(crate) struct RegistryPlan {
    access: Access,
    host: IpAddr,
    port: u16,
    store_host: Option<IpAddr>,
    token_port: bool,
    relative: bool,
    client_certificate: bool,
    authority: Option<Arc<Authority>>,
}

impl RegistryPlan {
    /// Listens on this address instead of 127.0.0.1, and on the port that registries have.
    pub(crate) fn host(mut self, host: IpAddr) -> Self {
        (self.host, self.port) = (host, HTTPS);
        self
    }

    /// Speaks TLS, with certificates of this authority.
    pub(crate) fn tls(mut self, authority: &Arc<Authority>) -> Self {
        self.authority = Some(Arc::clone(authority));
        self
    }

    /// Answers only clients that show a certificate of its own authority; others get 403.
    pub(crate) fn client_certificate(mut self) -> Self {
        self.client_certificate = true;
        self
    }

    /// The token endpoint has a port of its own.
    pub(crate) fn token_port(mut self) -> Self {
        self.token_port = true;
        self
    }

    /// Blobs are behind signed URLs on this other host.
    pub(crate) fn store(mut self, host: IpAddr) -> Self {
        self.store_host = Some(host);
        self
    }

    /// Its URLs are relative: of uploads, of blobs, of the next page.
    pub(crate) fn relative(mut self) -> Self {
        self.relative = true;
        self
    }

    pub(crate) fn start(self) -> TestRegistry {
        let listen = |host: IpAddr, port: u16| block_on(TcpListener::bind((host, port))).expect("a free port");
        let scheme = if self.authority.is_some() { "https" } else { "http" };
        let registry = listen(self.host, self.port);
        let token = self.token_port.then(|| listen(self.host, 0));
        let store = self.store_host.map(|host| listen(host, 0));
        let authority = |listener: &TcpListener| {
            let address = listener.local_addr().expect("an address");
            if address.port() == HTTPS { address.ip().to_string() } else { address.to_string() }
        };
        let places = Places {
            scheme,
            registry: authority(&registry),
            token: authority(token.as_ref().unwrap_or(&registry)),
            store: store.as_ref().map(authority),
        };
        let state = State::new(self.access, self.relative, self.client_certificate, places);
        let state = Arc::new(state);
        let tls = self.authority.as_ref().map(|authority| {
            let names = [self.host.to_string(), "localhost".to_owned()].into_iter();
            let names = names.chain(self.store_host.map(|host| host.to_string())).collect();
            authority.server_config_for(names, self.client_certificate).into()
        });
        let servers = [Some(registry), token, store].into_iter().flatten();
        let servers = servers.map(|listener| spawn(serve::accept(listener, tls.clone(), Arc::clone(&state)))).collect();
        TestRegistry { state, servers }
    }
}

/// A running registry.
pub(crate) struct TestRegistry {
    state: Arc<State>,
    servers: Vec<tokio::task::JoinHandle<()>>,
}

impl TestRegistry {
    pub(crate) fn plan(access: Access) -> RegistryPlan {
        RegistryPlan {
            access,
            host: IpAddr::from([127, 0, 0, 1]),
            port: 0,
            store_host: None,
            token_port: false,
            relative: false,
            client_certificate: false,
            authority: None,
        }
    }

    /// `HOST:PORT`, or `HOST` alone where that is enough.
    pub(crate) fn authority(&self) -> &str {
        &self.state.places.registry
    }

    /// The URL of a path of the registry.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("{}://{}{path}", self.state.places.scheme, self.state.places.registry)
    }

    /// `HOST:PORT` of the store behind the signed URLs.
    pub(crate) fn store_authority(&self) -> &str {
        self.state.places.store.as_deref().expect("a registry with a store")
    }

    /// Where tokens are given out.
    pub(crate) fn token_url(&self) -> String {
        self.state.token_url()
    }

    /// `HOST:PORT` of the token endpoint.
    pub(crate) fn token_authority(&self) -> &str {
        &self.state.places.token
    }

    /// `HOST:PORT` of its servers beside the registry itself.
    pub(crate) fn other_authorities(&self) -> impl Iterator<Item = &str> {
        let places = &self.state.places;
        let others = [Some(places.token.as_str()), places.store.as_deref()].into_iter().flatten();
        others.filter(|other| *other != places.registry)
    }

    /// Where a client is sent that wants to do this.
    pub(crate) fn token_url_for(&self, scope: &str) -> String {
        let mut url = url::Url::parse(&self.token_url()).expect("a URL");
        url.query_pairs_mut().append_pair("service", SERVICE).append_pair("scope", scope);
        url.into()
    }

    /// A form for the token endpoint, as OAuth 2 has it.
    pub(crate) fn token_form(&self, fields: &[(&str, &str)]) -> Ask {
        let mut form = url::form_urlencoded::Serializer::new(String::new());
        form.append_pair("service", SERVICE).extend_pairs(fields);
        let ask = Ask::new("POST", &self.token_url()).body(&form.finish().into());
        ask.header("Content-Type", "application/x-www-form-urlencoded")
    }

    /// Makes an image known, as if it had been pushed.
    pub(crate) fn publish(&self, image: &Image, repository: &str, tag: &str) {
        let mut store = self.state.store();
        for blob in [&image.layer, &image.config] {
            store.put_blob(repository, blob.clone());
        }
        store.put_manifest(repository, tag, MANIFEST, image.manifest.clone());
    }

    /// A manifest that it has.
    pub(crate) fn manifest(&self, repository: &str, tag: &str) -> Option<bytes::Bytes> {
        self.state.store().manifest(repository, tag).map(|(_, manifest)| manifest)
    }

    /// Whether it has an image with this configuration, and all the blobs of it.
    pub(crate) fn has_image(&self, repository: &str, tag: &str, config: &[u8]) -> bool {
        let Some(manifest) = self.manifest(repository, tag) else { return false };
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).expect("a manifest in JSON");
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let blobs: Vec<_> = layers.chain([&manifest["config"]]).filter_map(|blob| blob["digest"].as_str()).collect();
        let store = self.state.store();
        blobs.len() > 1
            && manifest["config"]["digest"] == super::digest(config)
            && blobs.iter().all(|digest| store.blob(repository, digest).is_some())
    }

    /// Lets a user in, by this password.
    pub(crate) fn allow(&self, user: &str, password: &str) {
        self.state.store().users.insert(user.into(), password.into());
    }

    /// Takes back all that a user may do, with the tokens that he has.
    pub(crate) fn revoke(&self, user: &str) {
        let mut store = self.state.store();
        store.users.remove(user);
        store.tokens.retain(|_, token| token.user.as_deref() != Some(user));
    }

    /// The user is known, but may do nothing with this repository.
    pub(crate) fn forbid(&self, user: &str, repository: &str) {
        self.state.store().forbidden.insert((user.into(), repository.into()));
    }

    /// A token for pulling from a repository, as the token endpoint gives it to this user or to nobody.
    pub(crate) fn token(&self, user: Option<&str>, repository: &str) -> String {
        let mut store = self.state.store();
        store.issue(user, vec![(repository.into(), vec!["pull".into()])], self.state.knobs().token_lifetime)
    }

    /// Ends the life of every token that was given out.
    pub(crate) fn expire_tokens(&self) {
        self.state.store().tokens.clear();
    }

    /// Ends the life of every signed URL that was given out.
    pub(crate) fn expire_signatures(&self) {
        self.state.store().generation += 1;
    }

    /// Changes how it behaves.
    pub(crate) fn turn(&self, change: impl FnOnce(&mut Knobs)) {
        change(&mut self.state.knobs());
    }

    /// The requests so far.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.state.seen.lock().expect("no panic with the lock").clone()
    }

    /// Forgets the requests so far.
    pub(crate) fn forget(&self) {
        self.state.seen.lock().expect("no panic with the lock").clear();
    }

    /// How many requests of these kinds there were so far.
    pub(crate) fn count(&self, kinds: &[Kind]) -> usize {
        self.seen().iter().filter(|seen| kinds.contains(&seen.kind)).count()
    }

    /// Requests for tokens.
    pub(crate) fn token_requests(&self) -> usize {
        self.count(&[Kind::TokenGet, Kind::TokenPost])
    }

    /// The most requests for tokens that were being answered at the same time.
    pub(crate) fn most_token_requests_at_once(&self) -> usize {
        self.state.most_at_token.load(std::sync::atomic::Ordering::SeqCst)
    }

    /// The bytes of blobs that were sent so far, by the registry and by its store.
    pub(crate) fn blob_bytes(&self) -> u64 {
        let blobs = [Kind::BlobGet, Kind::StoreGet];
        let sent = self.seen().into_iter().filter(|seen| blobs.contains(&seen.kind) && seen.status() < 300);
        sent.map(|seen| seen.sent()).sum()
    }

    /// TLS handshakes that a client broke off: it does not trust the registry's authority.
    pub(crate) fn broken_handshakes(&self) -> usize {
        self.state.broken_handshakes.load(std::sync::atomic::Ordering::SeqCst)
    }
}

impl Drop for TestRegistry {
    fn drop(&mut self) {
        for server in &self.servers {
            server.abort();
        }
    }
}
