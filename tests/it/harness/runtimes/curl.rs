//! curl in a script, as one pulls an image by hand.

use std::path::PathBuf;
use std::process::Command;

use serde_json::Value;

use super::super::oci::challenge_parameter;
use super::super::tools::{Tool, run};
use super::super::{contains, digest};
use super::{Pull, Runtime, Way, clean};

/// curl, and a directory for what it gets.
pub(crate) struct Curl {
    tool: Tool,
    home: tempfile::TempDir,
}

/// What curl has got.
struct Got {
    status: String,
    headers: String,
    body: Vec<u8>,
}

impl Got {
    fn line(&self, name: &str) -> Option<&str> {
        let mut lines = self.headers.lines().filter_map(|line| line.split_once(':'));
        lines.find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value.trim())
    }
}

impl Curl {
    pub(crate) fn find() -> Option<Self> {
        Some(Self { tool: Tool::find("curl")?, home: tempfile::tempdir().expect("a temporary directory") })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn get(&self, pull: &Pull<'_>, url: &str, authorization: Option<&str>) -> Result<Got, String> {
        let mut command: Command = self.tool.command();
        clean(&mut command, self.home.path());
        command.args(["--silent", "--show-error", "--location", "--max-time", "60", "--noproxy", ""]);
        command.arg("--dump-header").arg(self.path("headers")).arg("--output").arg(self.path("body"));
        command.args(["--write-out", "%{http_code}", "--header", "Accept: */*"]);
        match pull.way {
            Way::Proxy => {
                _ = command.arg("--proxy").arg(pull.host.proxy.to_string()).arg("--cacert").arg(&pull.host.ca)
            }
            Way::Direct => _ = command.arg("--cacert").arg(pull.registry_ca),
            Way::Mirror | Way::Port => {}
        }
        if let Some(value) = authorization {
            command.arg("--header").arg(format!("Authorization: {value}"));
        }
        let done = run(command.arg(url));
        if !done.ok {
            return Err(format!("{url}: {}", done.errors));
        }
        let read = |name| std::fs::read(self.path(name)).unwrap_or_default();
        Ok(Got {
            status: String::from_utf8_lossy(&done.output).into_owned(),
            headers: String::from_utf8_lossy(&read("headers")).into_owned(),
            body: read("body"),
        })
    }

    /// What a challenge wants to be brought.
    fn log_in(&self, pull: &Pull<'_>, challenge: &str, repository: &str) -> Result<Option<String>, String> {
        let user = pull.user.map(|(user, password)| super::super::basic(user, password));
        if challenge.starts_with("Basic ") {
            return Ok(user);
        }
        let parameter = |name| challenge_parameter(challenge, name).ok_or(format!("no {name} in {challenge}"));
        let mut url = url::Url::parse(&parameter("realm")?).map_err(|error| error.to_string())?;
        url.query_pairs_mut().append_pair("service", &parameter("service")?);
        url.query_pairs_mut().append_pair("scope", &format!("repository:{repository}:pull"));
        let got = self.get(pull, url.as_str(), user.as_deref())?;
        let token = serde_json::from_slice::<Value>(&got.body).ok();
        let token = token.as_ref().and_then(|json| json["token"].as_str());
        Ok(Some(format!("Bearer {}", token.ok_or(format!("no token, but {}", got.status))?)))
    }
}

impl Runtime for Curl {
    fn pull(&mut self, pull: &Pull<'_>) -> Result<(), String> {
        let (base, repository) = match pull.way {
            Way::Port => (format!("http://{}", pull.mirror_port()), pull.repository.to_owned()),
            Way::Mirror => (format!("http://{}", pull.host.proxy), format!("{}/{}", pull.registry, pull.repository)),
            Way::Proxy | Way::Direct => (format!("https://{}", pull.registry), pull.repository.to_owned()),
        };
        let ping = self.get(pull, &format!("{base}/v2/"), None)?;
        let authorization = match ping.line("www-authenticate") {
            Some(challenge) if ping.status == "401" => self.log_in(pull, challenge, &repository)?,
            _ => None,
        };
        let image = pull.image;
        let manifest = format!("manifests/{}", pull.tag);
        let by_digest = [&image.config, &image.layer].map(|blob| (format!("blobs/{}", digest(blob)), blob));
        for (what, wanted) in [(manifest, &image.manifest)].into_iter().chain(by_digest) {
            let got = self.get(pull, &format!("{base}/v2/{repository}/{what}"), authorization.as_deref())?;
            if got.status != "200"
                || got.body.len() != wanted.len()
                || !contains(&got.body, &wanted[..64.min(wanted.len())])
            {
                return Err(format!("{what}: {} with {} bytes", got.status, got.body.len()));
            }
            if digest(&got.body) != digest(wanted) {
                return Err(format!("{what}: other bytes"));
            }
        }
        Ok(())
    }

    fn push(&mut self, _: &Pull<'_>, _: &str) -> Result<(), String> {
        Err("nobody pushes with curl".into())
    }
}
