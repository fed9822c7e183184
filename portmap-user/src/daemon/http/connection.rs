//! One client connection: its phase, and a stream with a write timeout.

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

/// The client of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Peer {
    /// A client on TCP.
    Address(IpAddr),
    /// A process on this machine, by id; `None` if it is in a pid namespace that the daemon cannot see.
    Process {
        /// Its user.
        uid: u32,
        /// Its id.
        pid: Option<u32>,
    },
    /// A user of the read-only socket, by id.
    Reader(u32),
}

/// The state of a connection.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) peer: Peer,
    phase: AtomicU8,
    /// The gate's clock at the last response. The smallest value is that of the longest idle connection.
    pub(super) last_response: AtomicU64,
    /// Requests the connection to close.
    pub(super) close: Notify,
}

/// No request is in progress. The last response may still be on its way to the client.
const IDLE: u8 = 0;
/// The daemon executes a request.
const BUSY: u8 = 1;
/// The response is a stream without end.
const STREAMING: u8 = 2;

impl Connection {
    pub(super) fn new(peer: Peer, now: u64) -> Self {
        Self { peer, phase: AtomicU8::new(IDLE), last_response: AtomicU64::new(now), close: Notify::new() }
    }

    /// Marks the connection busy with a request.
    pub(super) fn begin_request(&self) {
        self.phase.store(BUSY, Ordering::Relaxed);
    }

    /// Marks the connection idle, unless its response is a stream.
    pub(super) fn end_request(&self) {
        let _ = self.phase.compare_exchange(BUSY, IDLE, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// Marks the response as a stream without end.
    pub(super) fn begin_stream(&self) {
        self.phase.store(STREAMING, Ordering::Relaxed);
    }

    /// Whether no request is in progress. Closing an idle connection can only cut off a response that its
    /// client does not read.
    pub(super) fn is_idle(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == IDLE
    }

    fn is_streaming(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == STREAMING
    }
}

/// A stream whose writes time out when the client reads nothing. A client of an endless stream may pause.
pub(super) struct TimedWrites<S> {
    stream: S,
    connection: Arc<Connection>,
    timeout: Duration,
    /// Ends when the pending write times out.
    deadline: Option<Pin<Box<Sleep>>>,
}

impl<S> TimedWrites<S> {
    pub(super) fn new(stream: S, connection: Arc<Connection>, timeout: Duration) -> Self {
        Self { stream, connection, timeout, deadline: None }
    }

    /// Fails a write that has been pending for too long; returns any other result unchanged.
    fn with_deadline<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() || self.connection.is_streaming() {
            self.deadline = None;
            return written;
        }
        let timeout = self.timeout;
        let deadline =
            self.deadline.get_or_insert_with(|| Box::pin(time::sleep_until(Instant::now() + timeout)));
        ready!(deadline.as_mut().poll(context));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the client does not read the response")))
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for TimedWrites<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for TimedWrites<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write(context, bytes);
        this.with_deadline(written, context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.stream).poll_write_vectored(context, slices);
        this.with_deadline(written, context)
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
    async fn connection_write_times_out_unless_streaming() {
        let connection = Arc::new(Connection::new(Peer::Process { uid: 0, pid: None }, 0));
        let (near, mut far) = tokio::io::duplex(8);
        let mut near = TimedWrites::new(near, connection.clone(), Duration::from_millis(20));
        connection.begin_request();
        near.write_all(b"12345678").await.expect("the buffer has room");
        let error = near.write_all(b"9").await.expect_err("the client does not read");
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        connection.begin_stream();
        connection.end_request();
        assert!(!connection.is_idle(), "the stream goes on");
        let writing = tokio::spawn(async move { near.write_all(b"9").await });
        time::sleep(Duration::from_millis(60)).await;
        let mut text = [0; 9];
        far.read_exact(&mut text).await.expect("read");
        writing.await.expect("no panic").expect("written");
        assert_eq!(&text, b"123456789");
    }
}
