//! One connection: what it is in the middle of, and a stream that does not wait without end for whoever reads.

use std::{
    future::Future as _,
    io,
    net::IpAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU8, AtomicU64, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::Notify,
    time::{self, Instant, Sleep},
};

/// Who is at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// Somebody in the network.
    Address(IpAddr),
    /// A process of this machine; none if it cannot be seen from here.
    Process(Option<u32>),
}

/// What is known of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    phase: AtomicU8,
    /// Its place among all connections by the time of its last answer: the smallest has been waiting for longest.
    pub(super) last: AtomicU64,
    /// Asks it to close.
    pub(super) close: Notify,
}

/// It waits for a request, or its answer is under way.
const WAITING: u8 = 0;
/// A request is being answered.
const ANSWERING: u8 = 1;
/// It is told of what happens, without end.
const FOLLOWING: u8 = 2;

impl Connection {
    pub(super) fn new(peer: Peer, last: u64) -> Self {
        Self { peer, phase: AtomicU8::new(WAITING), last: AtomicU64::new(last), close: Notify::new() }
    }

    /// A request has come.
    pub(super) fn begin(&self) {
        self.phase.store(ANSWERING, Ordering::Relaxed);
    }

    /// There is an answer.
    pub(super) fn answered(&self) {
        let _ = self.phase.compare_exchange(ANSWERING, WAITING, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// The answer has no end.
    pub(super) fn follow(&self) {
        self.phase.store(FOLLOWING, Ordering::Relaxed);
    }

    /// Whether it can be closed without harm to anybody but whoever has not asked yet, or does not read.
    pub(super) fn is_waiting(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == WAITING
    }

    fn is_following(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == FOLLOWING
    }
}

/// A stream on which writing fails when nothing has been read at the other end for a while. Whoever follows may pause.
pub(super) struct Patient<S> {
    stream: S,
    connection: Arc<Connection>,
    limit: Duration,
    waiting: Option<Pin<Box<Sleep>>>,
}

impl<S> Patient<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>, limit: Duration) -> Self {
        Self { stream, connection, limit, waiting: None }
    }

    /// What becomes of a write with this result.
    fn judge<T>(&mut self, written: Poll<io::Result<T>>, context: &mut Context<'_>) -> Poll<io::Result<T>> {
        if written.is_ready() || self.connection.is_following() {
            self.waiting = None;
            return written;
        }
        let limit = self.limit;
        let waiting = self.waiting.get_or_insert_with(|| Box::pin(time::sleep_until(Instant::now() + limit)));
        ready!(waiting.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the answer is not read")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Patient<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Patient<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.judge(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.judge(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn who_does_not_read_is_given_up_and_who_follows_is_not() {
        let connection = Arc::new(Connection::new(Peer::Process(None), 0));
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = Patient::new(near, connection.clone(), Duration::from_millis(20));
        connection.begin();
        near.write_all(b"12345678").await.expect("there is room");
        let error = near.write_all(b"9").await.expect_err("nobody reads");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        connection.follow();
        connection.answered();
        assert!(!connection.is_waiting(), "it still follows");
        let writing = tokio::spawn(async move { near.write_all(b"9").await });
        time::sleep(Duration::from_millis(60)).await;
        let mut text = [0; 9];
        far.read_exact(&mut text).await.expect("read");
        writing.await.expect("it ends").expect("written");
        assert_eq!(&text, b"123456789");
    }
}
