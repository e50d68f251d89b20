//! A real registry: the one that Debian has as `docker-registry`.

use std::net::TcpListener;

use tempfile::TempDir;

use super::{Ask, Process, Tool, wait_for};

/// A running registry on plain HTTP.
pub(crate) struct Registry {
    _process: Process,
    _home: TempDir,
    authority: String,
}

impl Registry {
    /// Starts one, if it is installed.
    pub(crate) fn start() -> Option<Self> {
        let tool = Tool::find("docker-registry")?;
        let home = tempfile::tempdir().expect("a temporary directory");
        // It cannot tell which port it took; one that was free a moment ago has to do.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port");
        let file = home.path().join("registry.yaml");
        let storage = home.path().join("storage");
        let config = format!(
            "version: 0.1\nlog: {{level: warn}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{free}'}}\n",
            storage.display()
        );
        std::fs::write(&file, config).expect("a writable directory");
        let process = Process::start("docker-registry", home.path(), tool.command().arg("serve").arg(&file));
        wait_for("docker-registry", || std::net::TcpStream::connect(free).ok());
        let registry = Self { _process: process, _home: home, authority: free.to_string() };
        assert_eq!(Ask::get(&format!("{}/v2/", registry.url())).send().status, 200);
        Some(registry)
    }

    /// `HOST:PORT`.
    pub(crate) fn authority(&self) -> &str {
        &self.authority
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.authority)
    }
}
