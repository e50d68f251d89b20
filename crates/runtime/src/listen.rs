//! Sockets to listen on. Port 0 lets the system choose; an error names the address, the reason, and the key and flag
//! that change it.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::net::{TcpListener, TcpSocket, UnixListener, UnixStream};

/// Connections that may wait to be accepted.
pub const BACKLOG: u32 = 1024;

/// Why nothing listens there.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {at}: {reason} (set by {setting})")]
pub struct ListenError {
    at: String,
    reason: String,
    setting: String,
    #[source]
    source: io::Error,
}

impl ListenError {
    fn new(at: impl ToString, setting: &str, source: io::Error) -> Self {
        let reason = match source.kind() {
            io::ErrorKind::AddrInUse => "address in use".to_owned(),
            io::ErrorKind::AddrNotAvailable => "this host does not have that address".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => source.to_string(),
        };
        Self { at: at.to_string(), reason, setting: setting.to_owned(), source }
    }

    /// The system's error.
    pub const fn io(&self) -> &io::Error {
        &self.source
    }
}

/// Listens on a TCP address. `setting` names what the user would change, such as
/// `` proxy.server.port or --proxy-addr ``.
pub fn tcp(addr: SocketAddr, setting: &str) -> Result<TcpListener, ListenError> {
    let bound = || {
        let socket = if addr.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        // A restarted daemon must not wait for the connections of the one before to be forgotten.
        socket.set_reuseaddr(true)?;
        socket.bind(addr)?;
        socket.listen(BACKLOG)
    };
    bound().map_err(|error| ListenError::new(addr, setting, error))
}

/// A Unix socket that listens, and whose path goes away with this.
#[derive(Debug)]
pub struct UnixSocket {
    /// Accepts connections.
    pub listener: UnixListener,
    /// Removes the path when dropped.
    pub path: UnixSocketPath,
}

/// The path of a listening Unix socket; removed when dropped, if it still is that socket.
#[derive(Debug)]
pub struct UnixSocketPath {
    path: PathBuf,
    inode: (u64, u64),
    stays: Lent,
}

/// Whether a path is another process's to remove, who goes on listening there. Clones say the same.
#[derive(Clone, Debug)]
pub struct Lent(Arc<AtomicBool>);

impl Lent {
    /// It is, or it is not.
    pub fn new(lent: bool) -> Self {
        Self(Arc::new(AtomicBool::new(lent)))
    }

    /// The other process has left it to this one.
    pub fn end(&self) {
        self.0.store(false, Ordering::Relaxed);
    }

    fn is_lent(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl UnixSocketPath {
    /// The path.
    pub fn as_path(&self) -> &Path {
        &self.path
    }

    /// Leaves it to a process that listens there in this one's place.
    pub fn leave(mut self) {
        self.stays = Lent::new(true);
    }
}

impl Drop for UnixSocketPath {
    fn drop(&mut self) {
        // Another process may have taken the place since: its socket is not ours to remove.
        if !self.stays.is_lent()
            && fs::symlink_metadata(&self.path).is_ok_and(|found| (found.dev(), found.ino()) == self.inode)
        {
            let _ = fs::remove_file(&self.path);
        }
    }
}

/// Listens on a Unix socket with these permissions. A socket that nobody answers on any more is replaced; one that
/// somebody answers on is an error, and so is a file that is no socket.
pub async fn unix(path: &Path, mode: u32, setting: &str) -> Result<UnixSocket, ListenError> {
    let fail = |error| ListenError::new(path.display(), setting, error);
    remove_stale(path).await.map_err(fail)?;
    let listener = UnixListener::bind(path).map_err(fail)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(fail)?;
    inherited_unix(listener, path, Lent::new(false)).map_err(fail)
}

/// A Unix socket at `path` that another process has made; its path `stays` as long as it is that one's.
pub fn inherited_unix(listener: UnixListener, path: &Path, stays: Lent) -> io::Result<UnixSocket> {
    let found = fs::symlink_metadata(path)?;
    let inode = (found.dev(), found.ino());
    Ok(UnixSocket { listener, path: UnixSocketPath { path: path.to_owned(), inode, stays } })
}

async fn remove_stale(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(io::Error::other("there is a file of that name that is no socket"));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path).await {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path),
        Ok(_) => Err(io::ErrorKind::AddrInUse.into()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn port_zero_is_chosen_and_a_taken_port_is_named_with_its_setting() {
        let first = tcp("127.0.0.1:0".parse().unwrap(), "proxy.server.port or --proxy-addr").unwrap();
        let addr = first.local_addr().unwrap();
        assert_ne!(addr.port(), 0);
        let error = tcp(addr, "proxy.server.port or --proxy-addr").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("cannot listen on {addr}: address in use (set by proxy.server.port or --proxy-addr)")
        );
    }

    #[tokio::test]
    async fn an_address_of_another_host_is_refused_plainly() {
        let error = tcp("192.0.2.1:0".parse().unwrap(), "host.ip").unwrap_err();
        assert!(error.to_string().contains("this host does not have that address"), "{error}");
    }

    #[tokio::test]
    async fn a_unix_socket_has_its_mode_and_goes_away() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let socket = unix(&path, 0o660, "download.server.socketPath").await.unwrap();
        assert_eq!(fs::symlink_metadata(&path).unwrap().mode() & 0o777, 0o660);
        let error = unix(&path, 0o660, "download.server.socketPath").await.unwrap_err();
        assert!(error.to_string().contains("address in use"), "{error}");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_stale_unix_socket_is_replaced_and_a_file_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists(), "a listener of std leaves its path behind");
        let socket = unix(&path, 0o600, "key").await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(socket);
        assert!(path.exists(), "what took the socket's place is kept");
        assert!(unix(&path, 0o600, "key").await.unwrap_err().to_string().contains("no socket"));
    }
}
