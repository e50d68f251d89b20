//! Listening sockets that a process did not make itself: those that a supervisor keeps for it (systemd's socket
//! activation, `LISTEN_FDS`), and those that the process before gives to its successor ([`crate::takeover`]).
//!
//! A socket that outlives the process is what makes a restart unnoticed: who connects meanwhile waits in its queue.
//!
//! **A socket serves the listener whose configured address it has**, whoever opened it: what the configuration says of
//! an address, such as who may reach it, was checked for that address. Its name (`FileDescriptorName=`) has to be given
//! only where the configuration leaves the port to the system.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use listenfd::ListenFd;
use rustix::net::{AddressFamily, SocketType, sockopt};

/// One listening socket.
#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Tcp(listener) => listener.as_fd(),
            Self::Unix(listener) => listener.as_fd(),
        }
    }
}

impl TryFrom<OwnedFd> for Socket {
    type Error = io::Error;

    fn try_from(socket: OwnedFd) -> io::Result<Self> {
        let listens = sockopt::socket_acceptconn(&socket)? && sockopt::socket_type(&socket)? == SocketType::STREAM;
        match sockopt::socket_domain(&socket)? {
            AddressFamily::INET | AddressFamily::INET6 if listens => Ok(Self::Tcp(socket.into())),
            AddressFamily::UNIX if listens => Ok(Self::Unix(socket.into())),
            _ => Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no listening stream socket")),
        }
    }
}

#[derive(Debug)]
struct Named {
    name: String,
    socket: Socket,
}

/// The sockets that this process was given. Who needs one takes it out.
#[derive(Debug, Default)]
pub struct Inherited {
    sockets: Vec<Named>,
}

impl Inherited {
    /// Those that a supervisor passed to this process. To be called while the process has one thread: it takes the
    /// variables out of the environment.
    ///
    /// # Errors
    /// What is no listening socket.
    pub fn from_environment() -> io::Result<Self> {
        let names = std::env::var("LISTEN_FDNAMES").unwrap_or_default();
        let mut names = names.split(':');
        let mut passed = ListenFd::from_env();
        let mut sockets = Vec::new();
        for index in 0..passed.len() {
            let name = names.next().unwrap_or_default().to_owned();
            let socket = match passed.take_tcp_listener(index) {
                Ok(listener) => listener.map(|listener| Socket::try_from(OwnedFd::from(listener))),
                Err(_) => passed.take_unix_listener(index)?.map(|listener| Socket::try_from(OwnedFd::from(listener))),
            };
            if let Some(socket) = socket.transpose()? {
                sockets.push(Named { name, socket });
            }
        }
        Ok(Self { sockets })
    }

    /// Adds a socket that another process gave to this one.
    pub(crate) fn add(&mut self, name: String, socket: OwnedFd) -> io::Result<()> {
        self.sockets.push(Named { name, socket: socket.try_into()? });
        Ok(())
    }

    /// The TCP socket for the listener `name`, which is configured to listen at `at`.
    ///
    /// # Errors
    /// The system's.
    pub fn tcp(&mut self, name: &str, at: SocketAddr) -> io::Result<Option<TcpListener>> {
        let fits = |named: &Named, by_name: bool| match &named.socket {
            Socket::Tcp(listener) => listener.local_addr().is_ok_and(|found| {
                found == at || (by_name && at.port() == 0 && named.name == name && found.ip() == at.ip())
            }),
            Socket::Unix(_) => false,
        };
        let found = self.sockets.iter().position(|named| fits(named, false));
        let found = found.or_else(|| self.sockets.iter().position(|named| fits(named, true)));
        let Some(Named { socket: Socket::Tcp(listener), .. }) = found.map(|at| self.sockets.remove(at)) else {
            return Ok(None);
        };
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }

    /// The Unix socket that listens at this path.
    ///
    /// # Errors
    /// The system's.
    pub fn unix(&mut self, path: &Path) -> io::Result<Option<UnixListener>> {
        let is_it = |named: &Named| matches!(&named.socket, Socket::Unix(it) if path_of(it).as_deref() == Some(path));
        let found = self.sockets.iter().position(is_it);
        let Some(Named { socket: Socket::Unix(listener), .. }) = found.map(|at| self.sockets.remove(at)) else {
            return Ok(None);
        };
        listener.set_nonblocking(true)?;
        Ok(Some(listener))
    }

    /// What nobody took: names and addresses, for a warning. A client that connects there is never answered as long as
    /// somebody else keeps the socket open.
    pub fn left(&self) -> Vec<String> {
        let describe = |Named { name, socket }: &Named| match socket {
            Socket::Tcp(listener) => match listener.local_addr() {
                Ok(addr) => format!("{name} ({addr})"),
                Err(_) => name.clone(),
            },
            Socket::Unix(listener) => match path_of(listener) {
                Some(path) => format!("{name} ({})", path.display()),
                None => name.clone(),
            },
        };
        self.sockets.iter().map(describe).collect()
    }
}

fn path_of(listener: &UnixListener) -> Option<PathBuf> {
    listener.local_addr().ok()?.as_pathname().map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        (listener, addr)
    }

    fn given(sockets: Vec<(&str, OwnedFd)>) -> Inherited {
        let mut inherited = Inherited::default();
        sockets.into_iter().for_each(|(name, socket)| inherited.add(name.into(), socket).unwrap());
        inherited
    }

    #[test]
    fn a_socket_serves_the_listener_whose_address_it_has() {
        let [(one, at_one), (two, at_two), (three, at_three)] = [listener(), listener(), listener()];
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let mut all = given(vec![("dfdaemon.socket", one.into()), ("proxy", two.into()), ("mirror", three.into())]);
        let mut take = |name, at| all.tcp(name, at).unwrap().map(|found| found.local_addr().unwrap());
        assert_eq!(take("peer", any), None, "a port that the system chooses is found by its name alone");
        assert_eq!(take("proxy", "127.0.0.2:0".parse().unwrap()), None, "the name alone does not move it elsewhere");
        assert_eq!(take("peer", at_one), Some(at_one));
        assert_eq!(take("peer", at_one), None, "it was taken");
        assert_eq!(take("proxy", any), Some(at_two));
        assert_eq!(all.left(), [format!("mirror ({at_three})")]);
    }

    #[test]
    fn a_unix_socket_is_found_by_its_path_and_what_is_no_listener_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let mut all = given(vec![("", UnixListener::bind(&path).unwrap().into())]);
        assert!(all.unix(&dir.path().join("b.sock")).unwrap().is_none());
        assert!(all.unix(&path).unwrap().is_some());
        let udp = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        assert!(all.add("x".into(), udp.into()).is_err());
    }
}
