//! What a registry has, whom it knows, and how it is told to misbehave.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU16, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use bytes::Bytes;

use super::super::{Gate, SECRET, digest, sha256_hex};
use super::Access;

/// What a request is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Ping,
    TokenGet,
    TokenPost,
    ManifestHead,
    ManifestGet,
    ManifestPut,
    BlobHead,
    BlobGet,
    StoreHead,
    StoreGet,
    Upload,
    Tags,
    Other,
}

/// A request that came, and what was sent for it.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) kind: Kind,
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    pub(crate) headers: http::HeaderMap,
    pub(super) status: Arc<AtomicU16>,
    pub(super) sent: Arc<AtomicU64>,
}

impl Seen {
    /// Every value of a header of the request.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        self.headers.get_all(name).iter().filter_map(|value| value.to_str().ok()).collect()
    }

    /// The status that it was answered with; 0 where it was not.
    pub(crate) fn status(&self) -> u16 {
        self.status.load(Ordering::SeqCst)
    }

    /// The bytes of the body that were sent.
    pub(crate) fn sent(&self) -> u64 {
        self.sent.load(Ordering::SeqCst)
    }
}

/// How the token endpoint behaves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TokenEndpoint {
    Good,
    /// Connections are dropped.
    Down,
    /// 200, with a page for people.
    Html,
    /// 429, to come back after so many seconds.
    TooMany(u64),
    /// 429, and not a word of when to come back.
    TooManyUnsaid,
}

/// How a registry is told to behave.
#[derive(Clone, Debug)]
pub(crate) struct Knobs {
    pub(crate) token_endpoint: TokenEndpoint,
    /// Holds back the token endpoint's answers.
    pub(crate) token_gate: Option<Gate>,
    pub(crate) token_lifetime: Duration,
    /// The challenge's realm, in place of the true one.
    pub(crate) realm: Option<String>,
    /// The challenge comes with odd spacing, after other schemes, in other letters.
    pub(crate) odd_challenge: bool,
    /// Headers of each answer with a blob.
    pub(crate) blob_headers: Vec<(String, String)>,
    /// Holds back the answers with manifests.
    pub(crate) manifest_gate: Option<Gate>,
    /// Headers of every answer.
    pub(crate) headers: Vec<(String, String)>,
    /// Sends of each blob only as much as the gate lets through.
    pub(crate) blob_gate: Option<Gate>,
    /// Callers who may not pull are shown a page to sign in at, with this status, and no challenge.
    pub(crate) sign_in: Option<u16>,
    /// HEAD of a blob is 405.
    pub(crate) refuses_head: bool,
    /// The registry itself answers everything with this status.
    pub(crate) fails: Option<u16>,
    /// Connections are dropped, of the registry and of its store.
    pub(crate) down: bool,
    /// Tags in one page of the list.
    pub(crate) page_size: usize,
}

impl Default for Knobs {
    fn default() -> Self {
        Self {
            token_endpoint: TokenEndpoint::Good,
            token_gate: None,
            token_lifetime: Duration::from_secs(300),
            realm: None,
            odd_challenge: false,
            blob_headers: Vec::new(),
            manifest_gate: None,
            headers: Vec::new(),
            blob_gate: None,
            sign_in: None,
            refuses_head: false,
            fails: None,
            down: false,
            page_size: 100,
        }
    }
}

/// Where a registry's servers are.
pub(super) struct Places {
    pub(super) scheme: &'static str,
    pub(super) registry: String,
    pub(super) token: String,
    pub(super) store: Option<String>,
}

pub(super) struct State {
    pub(super) access: Access,
    pub(super) relative: bool,
    pub(super) client_certificate: bool,
    pub(super) places: Places,
    knobs: Mutex<Knobs>,
    store: Mutex<Store>,
    pub(super) seen: Mutex<Vec<Seen>>,
    pub(super) broken_handshakes: AtomicUsize,
    pub(super) at_token: AtomicUsize,
    pub(super) most_at_token: AtomicUsize,
}

impl State {
    pub(super) fn new(access: Access, relative: bool, client_certificate: bool, places: Places) -> Self {
        Self {
            access,
            relative,
            client_certificate,
            places,
            knobs: Mutex::default(),
            store: Mutex::default(),
            seen: Mutex::default(),
            broken_handshakes: AtomicUsize::new(0),
            at_token: AtomicUsize::new(0),
            most_at_token: AtomicUsize::new(0),
        }
    }

    pub(super) fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().expect("no panic with the lock")
    }

    pub(super) fn knobs(&self) -> MutexGuard<'_, Knobs> {
        self.knobs.lock().expect("no panic with the lock")
    }

    pub(super) fn token_url(&self) -> String {
        format!("{}://{}/token", self.places.scheme, self.places.token)
    }
}

/// A token that was given out.
pub(super) struct Token {
    pub(super) user: Option<String>,
    /// Repositories, with what may be done there.
    scopes: Vec<Scope>,
    expires: Instant,
}

/// A repository, with what is to be done there.
pub(super) type Scope = (String, Vec<String>);

impl Token {
    pub(super) fn allows(&self, repository: &str, action: &str) -> bool {
        self.scopes.iter().any(|(own, actions)| own == repository && actions.iter().any(|own| own == action))
    }
}

#[derive(Default)]
pub(super) struct Store {
    /// By repository and digest.
    blobs: BTreeMap<(String, String), Bytes>,
    /// By repository and tag or digest, with their media types.
    manifests: BTreeMap<(String, String), (String, Bytes)>,
    /// Uploads under way, by their names.
    pub(super) uploads: BTreeMap<String, Vec<u8>>,
    pub(super) users: BTreeMap<String, String>,
    /// What a user may not touch.
    pub(super) forbidden: BTreeSet<(String, String)>,
    pub(super) tokens: BTreeMap<String, Token>,
    /// Users by the refresh tokens that they were given.
    pub(super) refresh: BTreeMap<String, String>,
    /// Signatures of an earlier generation are no longer good.
    pub(super) generation: u64,
    names: u64,
}

impl Store {
    /// A name that was not there before.
    pub(super) fn fresh_name(&mut self) -> String {
        self.names += 1;
        format!("{:08x}-{:016x}", self.names, fastrand::u64(..))
    }

    pub(super) fn put_blob(&mut self, repository: &str, blob: Bytes) {
        self.blobs.insert((repository.into(), digest(&blob)), blob);
    }

    pub(super) fn blob(&self, repository: &str, digest: &str) -> Option<Bytes> {
        self.blobs.get(&(repository.into(), digest.into())).cloned()
    }

    /// The blob of this digest, in whichever repository it is.
    pub(super) fn any_blob(&self, digest: &str) -> Option<Bytes> {
        self.blobs.iter().find(|((_, own), _)| own == digest).map(|(_, blob)| blob.clone())
    }

    pub(super) fn put_manifest(&mut self, repository: &str, reference: &str, media_type: &str, manifest: Bytes) {
        for reference in [reference, &digest(&manifest)] {
            let key = (repository.to_owned(), reference.to_owned());
            self.manifests.insert(key, (media_type.into(), manifest.clone()));
        }
    }

    pub(super) fn manifest(&self, repository: &str, reference: &str) -> Option<(String, Bytes)> {
        self.manifests.get(&(repository.into(), reference.into())).cloned()
    }

    /// The tags of a repository, in their order.
    pub(super) fn tags(&self, repository: &str) -> Vec<String> {
        let all = self.manifests.keys().filter(|(own, reference)| own == repository && !reference.contains(':'));
        all.map(|(_, tag)| tag.clone()).collect()
    }

    /// Gives out a token. It contains [`SECRET`]: it may stand in no log.
    pub(super) fn issue(&mut self, user: Option<&str>, scopes: Vec<Scope>, lifetime: Duration) -> String {
        let name = format!("{SECRET}-{}", self.fresh_name());
        let token = Token { user: user.map(Into::into), scopes, expires: Instant::now() + lifetime };
        self.tokens.insert(name.clone(), token);
        name
    }

    /// A token that is still good.
    pub(super) fn live_token(&self, name: &str) -> Option<&Token> {
        self.tokens.get(name).filter(|token| token.expires > Instant::now())
    }

    /// Whether user and password belong together.
    pub(super) fn knows(&self, user: &str, password: &str) -> bool {
        self.users.get(user).is_some_and(|own| own == password)
    }

    /// The signature of a blob's URL. It contains [`SECRET`]: it may stand in no log.
    pub(super) fn signature(&self, method: &http::Method, digest: &str, expires: &str) -> String {
        let signed = format!("{} {method} {digest} {expires}", self.generation);
        format!("{SECRET}-{}", sha256_hex(signed.as_bytes()))
    }
}
