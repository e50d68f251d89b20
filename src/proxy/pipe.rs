//! Two connections made one: bytes both ways, untouched, until both ends are done or nothing moves any more.

use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

/// How long nothing may move once the process is ending.
const HURRY: Duration = Duration::from_secs(2);
/// Bytes in flight per direction.
const BUFFER: usize = 64 * 1024;

/// Carries bytes between the two, each end's close to the other, until both directions are closed. Gives up when nothing
/// has come from either for `idle` (if there is a limit), or only [`HURRY`] once `draining`. `down` counts what `server` sent.
pub(super) async fn pipe<C, S>(
    client: &mut C,
    server: &mut S,
    idle: Option<Duration>,
    draining: impl Future<Output = ()>,
    down: &AtomicU64,
) -> io::Result<()>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    let clock = Clock { start: Instant::now(), last: AtomicU64::new(0) };
    let uncounted = AtomicU64::new(0);
    let mut client = Seen { stream: client, clock: &clock, count: &uncounted };
    let mut server = Seen { stream: server, clock: &clock, count: down };
    let copy = tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, BUFFER, BUFFER);
    tokio::select! {
        result = copy => result.map(|_| ()),
        () = clock.quiet_for(idle.unwrap_or_default()), if idle.is_some() => Err(io::ErrorKind::TimedOut.into()),
        () = async { draining.await; clock.quiet_for(HURRY).await } => Err(io::ErrorKind::TimedOut.into()),
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

/// A stream whose incoming bytes are seen and counted.
struct Seen<'a, T> {
    stream: &'a mut T,
    clock: &'a Clock,
    count: &'a AtomicU64,
}

impl<T: AsyncRead + Unpin> AsyncRead for Seen<'_, T> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buf.filled().len();
        ready!(Pin::new(&mut *self.stream).poll_read(cx, buf))?;
        self.clock.tick();
        self.count.fetch_add((buf.filled().len() - before) as u64, Ordering::Relaxed);
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Seen<'_, T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut *self.stream).poll_write(cx, bytes)
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
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};

    const IDLE: Duration = Duration::from_secs(60);

    #[tokio::test(start_paused = true)]
    async fn each_direction_closes_by_itself() {
        let (mut client, mut near) = duplex(8);
        let (mut far, mut server) = duplex(8);
        let piped = tokio::spawn(async move {
            let down = AtomicU64::new(0);
            pipe(&mut near, &mut far, Some(IDLE), std::future::pending(), &down).await.unwrap();
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
        let piped = tokio::spawn(async move { pipe(&mut near, &mut far, Some(IDLE), never, &AtomicU64::new(0)).await });
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
        tokio::spawn(async move { pipe(&mut near, &mut far, None, never, &AtomicU64::new(0)).await });
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
        pipe(&mut near, &mut far, Some(IDLE), draining, &AtomicU64::new(0)).await.unwrap_err();
        assert_eq!(begun.elapsed(), IDLE / 2, "it had been quiet for longer than that");
    }
}
