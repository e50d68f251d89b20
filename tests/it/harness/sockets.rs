//! Listening sockets that outlive the processes they are passed to, as systemd keeps them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use rustix::io::{FdFlags, fcntl_setfd};

use super::Process;

/// The sockets, by their names. They listen for as long as this lives.
#[derive(Default)]
pub(crate) struct Sockets(Vec<(String, OwnedFd)>);

impl Sockets {
    /// Listens on a TCP port of loopback.
    pub(crate) fn tcp(&mut self, name: &str) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        self.0.push((name.into(), listener.into()));
        address
    }

    /// Listens on a Unix socket.
    pub(crate) fn unix(&mut self, name: &str, path: &Path) {
        std::fs::create_dir_all(path.parent().expect("a directory")).expect("a writable directory");
        self.0.push((name.into(), UnixListener::bind(path).expect("a free path").into()));
    }

    /// The same command, to which the sockets are passed from descriptor 3 on.
    pub(crate) fn pass_to(&self, command: &Command) -> Command {
        let mut script = String::from("exec");
        for (number, (_, socket)) in self.0.iter().enumerate() {
            // Other processes that this one starts may get them too; they do nothing with them.
            fcntl_setfd(socket, FdFlags::empty()).expect("an open socket");
            // High numbers first: the sockets' own may be the ones that are wanted.
            script.push_str(&format!(" {}<&{}", 500 + number, socket.as_raw_fd()));
        }
        script.push_str("; exec");
        for number in 0..self.0.len() {
            script.push_str(&format!(" {}<&{} {}<&-", 3 + number, 500 + number, 500 + number));
        }
        script.push_str("; export LISTEN_PID=$$; exec \"$0\" \"$@\"");
        let names: Vec<_> = self.0.iter().map(|(name, _)| name.as_str()).collect();
        let mut passing = Process::command("bash");
        passing.arg("-c").arg(script).arg(command.get_program()).args(command.get_args());
        passing.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_FDNAMES", names.join(":"));
        passing
    }
}
