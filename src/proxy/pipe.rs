//! Two connections made one: bytes both ways, untouched, until both ends are done or nothing moves any more.
//!
//! Between two plain TCP connections the kernel moves the bytes (`splice`); they never come here. Either way they go as
//! fast as the limit of what is passed on allows.

use std::io;
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::io::Errno;
use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::gate::IoStream;
use crate::limit::{Class, Flow, Wait};

/// How long nothing may move once the process is ending.
const HURRY: Duration = Duration::from_secs(2);
/// Bytes in flight per direction, where they come here.
const BUFFER: usize = 64 * 1024;
/// Bytes in flight per direction, where the kernel moves them. As many are asked for at once.
const KERNEL_BUFFER: usize = 1024 * 1024;

/// Carries bytes between the two, each end's close to the other, until both directions are closed. Gives up when nothing
/// has come from either for `idle` (if there is a limit), or only [`HURRY`] once `draining`. The bytes are `flow`'s; `down`
/// counts what `server` sent.
pub(super) async fn pipe<C, S>(
    client: &mut C,
    server: &mut S,
    idle: Option<Duration>,
    flow: &Flow,
    draining: impl Future<Output = ()>,
    down: &AtomicU64,
) -> io::Result<()>
where
    C: IoStream,
    S: IoStream,
{
    let clock = Clock { start: Instant::now(), last: AtomicU64::new(0) };
    tokio::select! {
        result = carry(client, server, flow, &clock, down) => result,
        () = clock.quiet_for(idle.unwrap_or_default()), if idle.is_some() => Err(io::ErrorKind::TimedOut.into()),
        () = async { draining.await; clock.quiet_for(HURRY).await } => Err(io::ErrorKind::TimedOut.into()),
    }
}

async fn carry<C: IoStream, S: IoStream>(
    client: &mut C,
    server: &mut S,
    flow: &Flow,
    clock: &Clock,
    down: &AtomicU64,
) -> io::Result<()> {
    let uncounted = AtomicU64::new(0);
    if let (Some(near), Some(far)) = (client.tcp(), server.tcp()) {
        let (up, back) = (one_way(near, far, flow, clock, &uncounted), one_way(far, near, flow, clock, down));
        return tokio::try_join!(up, back).map(|_| ());
    }
    let mut client = ActivityTracked { stream: client, clock, count: &uncounted, flow, wait: None, allowed: 0 };
    let mut server = ActivityTracked { stream: server, clock, count: down, flow, wait: None, allowed: 0 };
    tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER).await.map(|_| ())
}

/// Carries bytes from `source` until it has no more, and tells `sink` so.
async fn one_way(
    source: &TcpStream,
    sink: &TcpStream,
    flow: &Flow,
    clock: &Clock,
    count: &AtomicU64,
) -> io::Result<()> {
    loop {
        source.readable().await?;
        // A tunnel in which nothing moves has none.
        let pipe = KernelPipe::take()?;
        loop {
            let most = flow.at_most(&[Class::PassThrough], KERNEL_BUFFER as u64) as usize;
            let taken = match source.try_io(Interest::READABLE, || pipe.fill(source, most)) {
                Ok(0) => {
                    // It may be gone already.
                    let _ = SockRef::from(sink).shutdown(Shutdown::Write);
                    return Ok(());
                }
                Ok(taken) => taken,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            };
            clock.tick();
            if let Some(wait) = flow.owe(Class::PassThrough, taken as u64) {
                wait.await;
                clock.tick();
            }
            let mut left = taken;
            while left > 0 {
                left -= sink.async_io(Interest::WRITABLE, || pipe.empty(sink, left)).await?;
            }
            count.fetch_add(taken as u64, Ordering::Relaxed);
            // Two fast ends never make this wait by themselves.
            tokio::task::consume_budget().await;
        }
        pipe.give_back();
    }
}

/// A pipe of the kernel's, through which one connection's bytes go to another.
struct KernelPipe {
    from: OwnedFd,
    into: OwnedFd,
}

/// Empty pipes that nobody uses. A user may have so many large ones and no more.
static SPARE: Mutex<Vec<KernelPipe>> = Mutex::new(Vec::new());
const MAX_SPARE: usize = 32;

impl KernelPipe {
    /// A spare one, or a new one.
    fn take() -> io::Result<Self> {
        if let Some(spare) = SPARE.lock().unwrap_or_else(PoisonError::into_inner).pop() {
            return Ok(spare);
        }
        let (from, into) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A small one works too.
        let _ = fcntl_setpipe_size(&into, KERNEL_BUFFER);
        Ok(Self { from, into })
    }

    /// Only an empty one.
    fn give_back(self) {
        let mut spare = SPARE.lock().unwrap_or_else(PoisonError::into_inner);
        if spare.len() < MAX_SPARE {
            spare.push(self);
        }
    }

    fn fill(&self, source: &TcpStream, most: usize) -> io::Result<usize> {
        moved(splice(source, None, &self.into, None, most, FLAGS))
    }

    fn empty(&self, sink: &TcpStream, left: usize) -> io::Result<usize> {
        moved(splice(&self.from, None, sink, None, left, FLAGS))
    }
}

const FLAGS: SpliceFlags = SpliceFlags::MOVE.union(SpliceFlags::NONBLOCK);

/// The result of a system call that may have been interrupted.
fn moved(result: Result<usize, Errno>) -> io::Result<usize> {
    match result {
        // To wait for readiness once more is as good.
        Err(Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
        result => Ok(result?),
    }
}

/// When bytes last came, in milliseconds since the start.
struct Clock {
    start: Instant,
    last: AtomicU64,
}

impl Clock {
    fn tick(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    async fn quiet_for(&self, idle: Duration) {
        loop {
            let until = self.start + Duration::from_millis(self.last.load(Ordering::Relaxed)) + idle;
            if Instant::now() >= until {
                return;
            }
            tokio::time::sleep_until(until).await;
        }
    }
}

/// A stream whose incoming bytes are seen and counted, and whose outgoing ones wait for the limit.
struct ActivityTracked<'a, T> {
    stream: &'a mut T,
    clock: &'a Clock,
    count: &'a AtomicU64,
    flow: &'a Flow,
    /// What waits to go out, and how many bytes that is; and how many may go already.
    wait: Option<(Wait, usize)>,
    allowed: usize,
}

impl<T> ActivityTracked<'_, T> {
    /// How many of so many bytes may go out.
    fn poll_allowed(&mut self, cx: &mut Context<'_>, bytes: usize) -> Poll<usize> {
        if self.allowed == 0 && self.wait.is_none() {
            let part = self.flow.at_most(&[Class::PassThrough], bytes as u64);
            match self.flow.ask(Class::PassThrough, part) {
                Some(wait) => self.wait = Some((wait, part as usize)),
                None => self.allowed = part as usize,
            }
        }
        if let Some((wait, part)) = &mut self.wait {
            ready!(Pin::new(wait).poll(cx));
            self.allowed = *part;
            self.wait = None;
            self.clock.tick();
        }
        Poll::Ready(self.allowed.min(bytes))
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for ActivityTracked<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut *self.stream).poll_read(cx, buf))?;
        self.clock.tick();
        self.count.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for ActivityTracked<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let part = ready!(self.poll_allowed(cx, bytes.len()));
        let written = ready!(Pin::new(&mut *self.stream).poll_write(cx, &bytes[..part]))?;
        self.allowed -= written.min(self.allowed);
        Poll::Ready(Ok(written))
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut *self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use super::*;
    use crate::limit::{Limit, Limiter, Priority};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
    use tokio::net::TcpListener;

    const IDLE: Duration = Duration::from_secs(60);

    impl IoStream for DuplexStream {
        fn abort(&self) {}
    }

    fn unlimited() -> Flow {
        Limiter::default().flow(Priority::default())
    }

    /// A million bytes a second.
    fn limited() -> Flow {
        let limiter = Limiter::default();
        limiter.set(Class::PassThrough, Limit { total: NonZeroU64::new(1_000_000), per_flow: None });
        limiter.flow(Priority::default())
    }

    #[tokio::test(start_paused = true)]
    async fn both_directions_share_the_limit() {
        let (mut client, mut near) = duplex(1 << 20);
        let (mut far, mut server) = duplex(1 << 20);
        let (begun, flow) = (Instant::now(), limited());
        let piped = tokio::spawn(async move {
            let down = AtomicU64::new(0);
            pipe(&mut near, &mut far, Some(IDLE), &flow, std::future::pending(), &down).await
        });
        let (up, back) = (vec![1; 700_000], vec![2; 300_000]);
        client.write_all(&up).await.unwrap();
        client.shutdown().await.unwrap();
        server.write_all(&back).await.unwrap();
        server.shutdown().await.unwrap();
        let (mut got_up, mut got_back) = (Vec::new(), Vec::new());
        let (one, other) = tokio::join!(server.read_to_end(&mut got_up), client.read_to_end(&mut got_back));
        one.and(other).unwrap();
        assert!(got_up == up && got_back == back);
        piped.await.unwrap().unwrap();
        let millis = begun.elapsed().as_millis();
        assert!((970..=1030).contains(&millis), "{millis} ms");
    }

    #[tokio::test]
    async fn what_the_kernel_carries_is_limited_too() {
        let (mut client, mut near) = tcp_pair().await;
        let (mut far, mut server) = tcp_pair().await;
        let (begun, flow) = (Instant::now(), limited());
        let piped = tokio::spawn(async move {
            let down = AtomicU64::new(0);
            pipe(&mut near, &mut far, Some(IDLE), &flow, std::future::pending(), &down).await
        });
        client.write_all(&[7; 400_000]).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        server.read_to_end(&mut got).await.unwrap();
        // A machine that is busy makes it later, never earlier.
        assert!(begun.elapsed() >= Duration::from_millis(388), "{:?}", begun.elapsed());
        assert_eq!(got, [7; 400_000]);
        drop(server);
        piped.await.unwrap().unwrap();
    }

    async fn tcp_pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let near = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn the_kernel_carries_between_plain_connections() {
        let (mut client, mut near) = tcp_pair().await;
        let (mut far, mut server) = tcp_pair().await;
        let piped = tokio::spawn(async move {
            let down = AtomicU64::new(0);
            let ended = pipe(&mut near, &mut far, Some(IDLE), &unlimited(), std::future::pending(), &down).await;
            (ended, down.into_inner())
        });
        let bytes: Vec<u8> = (0..5_000_000u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
        let (up, back) = (bytes.clone(), bytes.iter().rev().copied().collect::<Vec<u8>>());
        let (sent, expected) = (back.clone(), back.clone());
        let echo = tokio::spawn(async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            // A while in which nothing moves but one side is closed.
            server.write_all(&sent).await.unwrap();
            server.shutdown().await.unwrap();
            got
        });
        client.write_all(&up).await.unwrap();
        client.shutdown().await.unwrap();
        let mut got = Vec::new();
        client.read_to_end(&mut got).await.unwrap();
        assert!(got == expected, "{} bytes came back", got.len());
        assert!(echo.await.unwrap() == bytes);
        let (ended, down) = piped.await.unwrap();
        assert!(ended.is_ok());
        assert_eq!(down, back.len() as u64);
    }

    #[tokio::test]
    async fn a_reset_ends_the_kernels_pipe() {
        let (client, mut near) = tcp_pair().await;
        let (mut far, server) = tcp_pair().await;
        server.set_zero_linger().unwrap();
        drop(server);
        let ended =
            pipe(&mut near, &mut far, Some(IDLE), &unlimited(), std::future::pending(), &AtomicU64::new(0)).await;
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        drop(client);
    }

    #[tokio::test(start_paused = true)]
    async fn each_direction_closes_by_itself() {
        let (mut client, mut near) = duplex(8);
        let (mut far, mut server) = duplex(8);
        let piped = tokio::spawn(async move {
            let down = AtomicU64::new(0);
            pipe(&mut near, &mut far, Some(IDLE), &unlimited(), std::future::pending(), &down).await.unwrap();
            down.into_inner()
        });
        client.write_all(b"question").await.unwrap();
        client.shutdown().await.unwrap();
        let mut asked = String::new();
        server.read_to_string(&mut asked).await.unwrap();
        assert_eq!(asked, "question");
        server.write_all(b"long answer").await.unwrap();
        server.shutdown().await.unwrap();
        let mut answer = String::new();
        client.read_to_string(&mut answer).await.unwrap();
        assert_eq!(answer, "long answer");
        assert_eq!(piped.await.unwrap(), 11);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_in_which_nothing_moves_is_given_up() {
        let (mut client, mut near) = duplex(8);
        let (mut far, _server) = duplex(8);
        let begun = Instant::now();
        let never = std::future::pending();
        let piped = tokio::spawn(async move {
            pipe(&mut near, &mut far, Some(IDLE), &unlimited(), never, &AtomicU64::new(0)).await
        });
        tokio::time::sleep(IDLE / 2).await;
        client.write_all(b"x").await.unwrap();
        assert_eq!(piped.await.unwrap().unwrap_err().kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), IDLE + IDLE / 2);
    }

    #[tokio::test(start_paused = true)]
    async fn a_pipe_without_a_limit_stays() {
        let (mut client, mut near) = duplex(8);
        let (mut far, mut server) = duplex(8);
        let never = std::future::pending();
        tokio::spawn(async move { pipe(&mut near, &mut far, None, &unlimited(), never, &AtomicU64::new(0)).await });
        tokio::time::sleep(Duration::from_secs(24 * 60 * 60)).await;
        client.write_all(b"x").await.unwrap();
        let mut got = [0; 1];
        server.read_exact(&mut got).await.unwrap();
        assert_eq!(&got, b"x");
    }

    #[tokio::test(start_paused = true)]
    async fn an_ending_process_does_not_wait_for_a_quiet_pipe() {
        let (_client, mut near) = duplex(8);
        let (mut far, _server) = duplex(8);
        let begun = Instant::now();
        let draining = tokio::time::sleep(IDLE / 2);
        pipe(&mut near, &mut far, Some(IDLE), &unlimited(), draining, &AtomicU64::new(0)).await.unwrap_err();
        assert_eq!(begun.elapsed(), IDLE / 2, "it had been quiet for longer than that");
    }
}
