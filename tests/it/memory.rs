//! What a daemon does not hold for clients that wait.

use std::io::{Read as _, Write as _};

use crate::harness::{Daemon, Origin, Page, connect, read_head};

#[test]
fn a_connection_that_was_idle_for_long_is_still_a_connection() {
    let origin = Origin::start();
    origin.put("/page", Page::plain("hello"));
    let daemon = Daemon::plan("h1").start();
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", origin.url("/page"));
    let mut client = connect(daemon.proxy());
    for _ in 0..2 {
        client.write_all(request.as_bytes()).expect("written");
        assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "));
        client.read_exact(&mut [0; 5]).expect("the body");
        // Longer than anything is kept ready for it.
        std::thread::sleep(std::time::Duration::from_secs(6));
    }
    client.write_all(format!("{request}{request}").as_bytes()).expect("written");
    for _ in 0..2 {
        assert!(read_head(&mut client).starts_with("HTTP/1.1 200 "), "two in one piece");
        client.read_exact(&mut [0; 5]).expect("the body");
    }
}
