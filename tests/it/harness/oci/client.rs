//! A client of registries and mirrors as podman and skopeo are: it pings, follows the ping's challenge, and brings the
//! token that it gets.

use std::collections::BTreeMap;

use bytes::Bytes;
use regex::Regex;

use super::super::image::MANIFEST;
use super::super::{Answer, Ask, Image, digest};
use super::basic;

/// A client of one registry or mirror.
pub(crate) struct Puller {
    base: String,
    repository: String,
    user: Option<(String, String)>,
    /// What goes into `Authorization`, by what it is for.
    tokens: BTreeMap<&'static str, Option<String>>,
}

impl Puller {
    /// Of a repository at `http://HOST:PORT`.
    pub(crate) fn new(base: &str, repository: &str) -> Self {
        Self { base: base.into(), repository: repository.into(), user: None, tokens: BTreeMap::new() }
    }

    /// Logs in as this user where it is asked to.
    pub(crate) fn user(mut self, user: &str, password: &str) -> Self {
        self.user = Some((user.into(), password.into()));
        self
    }

    /// The URL of something of the repository.
    pub(crate) fn url(&self, what: &str) -> String {
        format!("{}/v2/{}/{what}", self.base, self.repository)
    }

    /// GETs something of the repository.
    pub(crate) fn get(&mut self, what: &str) -> Answer {
        let ask = Ask::get(&self.url(what));
        self.send(ask, "pull")
    }

    /// Makes a request with the token for what it does; gives the refusal where there is none.
    pub(crate) fn send(&mut self, ask: Ask, action: &'static str) -> Answer {
        if !self.tokens.contains_key(action) {
            match self.log_in(action) {
                Ok(token) => _ = self.tokens.insert(action, token),
                Err(refusal) => return *refusal,
            }
        }
        match &self.tokens[action] {
            Some(token) => ask.header("Authorization", token).send(),
            None => ask.send(),
        }
    }

    /// What is to be brought, as the ping says.
    fn log_in(&self, action: &str) -> Result<Option<String>, Box<Answer>> {
        let ping = Ask::get(&format!("{}/v2/", self.base)).send();
        if ping.status == 200 {
            return Ok(None);
        }
        let challenge = ping.line("www-authenticate");
        if challenge.starts_with("Basic ") {
            return Ok(self.user.as_ref().map(|(user, password)| basic(user, password)));
        }
        let ask = ask_for_token(challenge, &format!("repository:{}:{action}", self.repository));
        let ask = match &self.user {
            Some((user, password)) => ask.header("Authorization", &basic(user, password)),
            None => ask,
        };
        let answer = ask.send();
        if answer.status == 200 { Ok(Some(super::token_of(&answer))) } else { Err(Box::new(answer)) }
    }

    /// Pulls an image by its tag, and panics unless it is this one.
    #[track_caller]
    pub(crate) fn pull(&mut self, image: &Image, tag: &str) {
        self.get(&format!("manifests/{tag}")).assert_is(&image.manifest);
        self.get(&format!("manifests/{}", digest(&image.manifest))).assert_is(&image.manifest);
        for blob in [&image.config, &image.layer] {
            self.get(&format!("blobs/{}", digest(blob))).assert_is(blob);
        }
    }

    /// Pushes an image, a blob in two pieces, and tells where it was sent on the way.
    #[track_caller]
    pub(crate) fn push(&mut self, image: &Image, tag: &str) -> Vec<String> {
        let mut places = Vec::new();
        let uploads = self.url("blobs/uploads/");
        for blob in [&image.layer, &image.config] {
            let mut step = |method: &str, url: &str, body: &Bytes, status: u16| {
                let answer = self.send(Ask::new(method, url).body(body), "pull,push");
                assert_eq!(answer.status, status, "{method} {url}: {:?}", answer.body);
                let place = url::Url::parse(url).and_then(|url| url.join(answer.line("location"))).expect("a URL");
                places.push(place.to_string());
                place
            };
            let begun = step("POST", &uploads, &Bytes::new(), 202);
            let first = step("PATCH", begun.as_str(), &blob.slice(..100), 202);
            let mut second = step("PATCH", first.as_str(), &blob.slice(100..), 202);
            second.query_pairs_mut().append_pair("digest", &digest(blob));
            step("PUT", second.as_str(), &Bytes::new(), 201);
        }
        let ask = Ask::new("PUT", &self.url(&format!("manifests/{tag}"))).header("Content-Type", MANIFEST);
        let answer = self.send(ask.body(&image.manifest), "pull,push");
        assert_eq!(answer.status, 201);
        places
    }
}

/// The request for a token to which a challenge sends.
#[track_caller]
pub(crate) fn ask_for_token(challenge: &str, scope: &str) -> Ask {
    let parameter = |name| challenge_parameter(challenge, name);
    assert!(challenge.starts_with("Bearer "), "{challenge}");
    let mut url = url::Url::parse(&parameter("realm").expect("a realm")).expect("a URL");
    if let Some(service) = parameter("service") {
        url.query_pairs_mut().append_pair("service", &service);
    }
    url.query_pairs_mut().append_pair("scope", &parameter("scope").unwrap_or_else(|| scope.to_owned()));
    Ask::get(url.as_str())
}

/// A parameter of a challenge.
pub(crate) fn challenge_parameter(challenge: &str, name: &str) -> Option<String> {
    let pattern = Regex::new(&format!("(?i)[ ,]{name}=\"([^\"]*)\"")).expect("a valid expression");
    pattern.captures(challenge).map(|found| found[1].to_owned())
}
