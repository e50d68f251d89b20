//! Streams of many kinds through the gate: what passes, what is parked, and what is refused.

use super::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const IDLE: Duration = Duration::from_secs(60);

/// A gate behind which the test is the library, and the client's end.
fn gate(read: &[u8]) -> (Gate, UnixStream, Arc<ConnControl>) {
    let (near, client) = UnixStream::pair().unwrap();
    let control = ConnControl::new(Budget::new(usize::MAX));
    (Gate::new(Box::new(near), read.to_vec(), control.clone(), IDLE), client, control)
}

async fn read_once(gate: &mut Gate) -> String {
    let mut buf = vec![0; 4096];
    let read = gate.read(&mut buf).await.unwrap();
    String::from_utf8(buf[..read].to_vec()).unwrap()
}

#[tokio::test]
async fn the_library_never_reads_two_requests_in_one() {
    let requests = [
        "GET /1 HTTP/1.1\r\nHost: a\r\n\r\n",
        "POST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n",
        "hello",
        "POST /3 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n",
        "2\r\nhi\r\n0\r\n\r\n",
        "GET /4 HTTP/1.1\r\nHost: a\r\n\r\n",
    ];
    let (mut all, mut client, control) = gate(requests.concat().as_bytes());
    for request in requests {
        assert_eq!(read_once(&mut all).await, request, "all at once");
    }
    client.shutdown().await.unwrap();
    let mut buf = [0; 9];
    let early = tokio::time::timeout(Duration::from_millis(20), all.read(&mut buf)).await;
    assert!(early.is_err(), "answers are under way");
    (0..4).for_each(|_| control.ended());
    assert_eq!(read_once(&mut all).await, "", "the end is seen");

    let (mut split, mut client, _) = gate(b"");
    for request in requests {
        for byte in request.bytes() {
            client.write_all(&[byte]).await.unwrap();
        }
        let mut got = String::new();
        while got.len() < request.len() {
            got += &read_once(&mut split).await;
        }
        assert_eq!(got, request, "byte by byte");
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_is_parked_only_between_two_requests() {
    let (near, mut client) = UnixStream::pair().unwrap();
    let control = ConnControl::new(Budget::new(usize::MAX));
    let mut gate = Gate::new(Box::new(near), b"GET / HTTP/1.1\r\nHost: a\r\n\r\n".to_vec(), control.clone(), IDLE);
    assert!(read_once(&mut gate).await.starts_with("GET / "));
    let mut byte = [0];
    let early = tokio::time::timeout(10 * PARK_AFTER, gate.read(&mut byte)).await;
    assert!(early.is_err(), "the answer is under way");
    control.answered(false);
    gate.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
    control.ended();
    let early = tokio::time::timeout(10 * PARK_AFTER, gate.read(&mut byte)).await;
    assert!(early.is_err(), "it has not gone out");
    gate.flush().await.unwrap();
    client.write_all(b"G").await.unwrap();
    let early = tokio::time::timeout(10 * PARK_AFTER, gate.read(&mut byte)).await;
    assert!(early.is_err(), "a head has begun");
    client.write_all(b"ET /2 HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_once(&mut gate).await.starts_with("GET /2 "));
    control.ended();
    let asked = Instant::now();
    assert_eq!(gate.read(&mut byte).await.unwrap(), 0, "as if the client had closed");
    assert_eq!(asked.elapsed(), PARK_AFTER);
    gate.shutdown().await.unwrap();
    drop(gate);
    let mut io = control.take_parked().expect("the connection");
    client.write_all(b"more").await.unwrap();
    let mut more = [0; 4];
    io.read_exact(&mut more).await.unwrap();
    io.write_all(b"back").await.unwrap();
    client.read_exact(&mut [0; 19]).await.unwrap();
    client.read_exact(&mut more).await.unwrap();
    assert_eq!(&more, b"back", "neither end was closed");
}

#[tokio::test]
async fn a_refused_head_becomes_a_request_that_says_so_and_the_last_one() {
    let (mut gate, mut client, control) = gate(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client
        .write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n")
        .await
        .unwrap();
    client.write_all(b"0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    assert!(read_once(&mut gate).await.starts_with("GET / HTTP/1.1\r\nHost: a\r\n"));
    let refusal = read_once(&mut gate).await;
    let value = refusal.lines().find_map(|line| line.strip_prefix("x-damselfly-verdict: ")).unwrap();
    let mut request = Request::get("/").header(VERDICT, value).body(()).unwrap();
    assert_eq!(control.read_notes(&mut request).unwrap().status(), 400);
    assert_eq!(ConnControl::new(Budget::new(usize::MAX)).read_notes(&mut request), None, "another connection's");
    let mut request = Request::get("/").header(VERDICT, "0 too large").body(()).unwrap();
    assert_eq!(control.read_notes(&mut request), None, "a client's invention");
    client.shutdown().await.unwrap();
    let mut nothing = [0; 9];
    let more = tokio::time::timeout(std::time::Duration::from_millis(50), gate.read(&mut nothing)).await;
    assert!(more.is_err(), "nothing of what follows is handed over");
}

#[tokio::test]
async fn what_follows_an_upgrade_waits_for_the_answer() {
    const UPGRADE: &str = "GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n";
    const SMUGGLED: &str =
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n";
    let (mut gate, _client, control) = gate(format!("{UPGRADE}{SMUGGLED}").as_bytes());
    assert_eq!(read_once(&mut gate).await, UPGRADE);
    let mut buf = [0; 9];
    let early = tokio::time::timeout(Duration::from_millis(20), gate.read(&mut buf)).await;
    assert!(early.is_err(), "nothing is read before the answer");
    control.answered(false);
    assert_eq!(gate.requests, 1);
    let refusal = read_once(&mut gate).await;
    assert!(refusal.contains(VERDICT.as_str()), "the next request is judged like any other: {refusal}");

    let (mut gate, _client, control) = super::tests::gate(format!("{UPGRADE}{SMUGGLED}").as_bytes());
    assert_eq!(read_once(&mut gate).await, UPGRADE);
    control.answered(true);
    assert_eq!(gate.into_parts().1, SMUGGLED.as_bytes(), "it is another protocol's");
}

#[tokio::test]
async fn two_empty_lines_are_forgiven_and_no_more() {
    const GET: &str = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
    for (lines, good) in [(0, true), (1, true), (2, true), (3, false), (1 << 20, false)] {
        let (mut gate, mut client, _) = gate(b"");
        let sent = tokio::spawn(async move {
            let _ = client.write_all(format!("{}{GET}", "\r\n".repeat(lines)).as_bytes()).await;
            client
        });
        assert_eq!(read_once(&mut gate).await == GET, good, "{lines}");
        assert!(gate.held.len() < 2 * READ);
        drop(gate);
        sent.await.unwrap();
    }
    let (mut gate, mut client, _) = gate(b"");
    for byte in format!("\r\n\r\n{GET}").bytes() {
        client.write_all(&[byte]).await.unwrap();
    }
    assert_eq!(read_once(&mut gate).await, GET, "byte by byte");
}

#[tokio::test]
async fn a_body_that_is_framed_wrongly_is_the_end() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for body in ["5\nhello", "5\r\nhelloX", "zz\r\n", "0\r\nA\n\r\n"] {
        let (mut gate, _client, _) = gate(format!("{head}{body}").as_bytes());
        assert_eq!(read_once(&mut gate).await, head);
        let error = gate.read(&mut [0; 99]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidData, "{body:?}");
    }
}

#[tokio::test]
async fn the_library_gets_targets_that_it_can_read() {
    for (line, want) in [
        ("GET /a<b HTTP/1.1", "GET /a%3Cb HTTP/1.1\r\nHost: a\r\n\r\n"),
        ("GET /a|b HTTP/1.1", "GET /a|b HTTP/1.1\r\nHost: a\r\n\r\n"),
    ] {
        let (mut gate, _client, _) = gate(format!("{line}\r\nHost: a\r\n\r\nnext").as_bytes());
        assert_eq!(read_once(&mut gate).await, want);
        assert_eq!(gate.into_parts().1, b"next");
    }
    let (mut gate, _client, control) = gate(b"OPTIONS http://a HTTP/1.1\r\nHost: a\r\n\r\n");
    let head = read_once(&mut gate).await;
    let note = head.lines().find_map(|line| line.strip_prefix("x-damselfly-verdict: ")).unwrap();
    let mut request = Request::options("http://a").header(VERDICT, note).body(()).unwrap();
    assert_eq!(control.read_notes(&mut request), None);
    assert!(request.headers().is_empty() && request.extensions().get::<WholeServer>().is_some());
}

#[tokio::test]
async fn interim_answers_go_between_two_answers() {
    let (mut gate, mut client, control) = gate(b"");
    let mut headers = HeaderMap::new();
    headers.insert("link", "</a>".parse().unwrap());
    headers.insert("connection", "x".parse().unwrap());
    gate.write_all(b"first").await.unwrap();
    control.inform(StatusCode::EARLY_HINTS, &headers);
    gate.write_all(b"-end").await.unwrap();
    gate.flush().await.unwrap();
    control.inform(StatusCode::EARLY_HINTS, &headers);
    gate.write_all(b"second").await.unwrap();
    drop(gate);
    let mut all = String::new();
    client.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "first-endHTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\nsecond");
}

#[tokio::test]
async fn what_was_not_handed_over_comes_out_with_the_connection() {
    let (mut gate, mut client, _) = gate(b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\nearly");
    assert!(read_once(&mut gate).await.ends_with("\r\n\r\n"));
    let (mut inner, held) = gate.into_parts();
    assert_eq!(held, b"early");
    client.write_all(b"later").await.unwrap();
    let mut later = [0; 5];
    inner.read_exact(&mut later).await.unwrap();
    assert_eq!(&later, b"later");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_takes_nothing_is_given_up() {
    let (mut gate, mut client, control) = gate(b"");
    let begun = tokio::time::Instant::now();
    let late = tokio::spawn(async move {
        tokio::time::sleep(IDLE / 2).await;
        client.read_exact(&mut vec![0; 1 << 20]).await.unwrap();
        client
    });
    let error = gate.write_all(&vec![0; 8 << 20]).await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    assert_eq!(begun.elapsed().as_secs(), (IDLE + IDLE / 2).as_secs(), "as long as it takes something it is served");
    assert!(control.is_broken());
    drop(late);
}

#[tokio::test(start_paused = true)]
async fn a_client_that_has_closed_its_side_is_given_up_when_nothing_comes_for_it() {
    let (mut gate, mut client, _) = gate(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n");
    client.shutdown().await.unwrap();
    let begun = tokio::time::Instant::now();
    read_once(&mut gate).await;
    let mut buf = [0; 9];
    assert!(tokio::time::timeout(HALF_CLOSED / 2, gate.read(&mut buf)).await.is_err());
    gate.write_all(b"half").await.unwrap();
    let error = gate.read(&mut buf).await.unwrap_err();
    assert_eq!((begun.elapsed().as_secs(), error.kind()), (90, io::ErrorKind::TimedOut));
}

#[tokio::test]
async fn a_broken_connection_ends_with_a_reset() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for broken in [false, true] {
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let control = ConnControl::new(Budget::new(usize::MAX));
        let mut gate = Gate::new(Box::new(listener.accept().await.unwrap().0), Vec::new(), control.clone(), IDLE);
        gate.write_all(b"HTTP/1.0 200 OK\r\n\r\nhal").await.unwrap();
        if broken {
            control.reset_on_close();
        }
        gate.shutdown().await.unwrap();
        drop(gate);
        let end = client.read_to_end(&mut Vec::new()).await.map_err(|error| error.kind());
        assert_eq!(end.is_err_and(|kind| kind == io::ErrorKind::ConnectionReset), broken);
    }
}
