//! What a connection's client takes of what is written to it, and for how long one is borne that takes too little.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::crowd::Line;

/// What a client must read at least, of what waits for it, to be one that reads.
const LEAST_READ: u64 = 64 * 1024;

/// A connection's stream that notes what the client's side of it takes.
pub(crate) struct Noted<S> {
    stream: S,
    line: Arc<Line>,
}

impl<S> Noted<S> {
    pub(crate) fn new(stream: S, line: Arc<Line>) -> Self {
        Self { stream, line }
    }

    fn note(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.line
            .blocked
            .store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = &written {
            self.line
                .written
                .fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.note(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, pieces);
        self.note(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// How long a client is borne that has answers to read and reads none.
#[derive(Debug)]
pub(crate) struct Pace {
    /// When to look next.
    pub(crate) next: Instant,
    limit: Duration,
    since: Instant,
    written: u64,
}

impl Pace {
    pub(crate) fn new(limit: Duration, now: Instant) -> Self {
        Self {
            next: now + limit / 2,
            limit,
            since: now,
            written: 0,
        }
    }

    /// Whether the client reads too little: `written` is what it has taken so far, `owes` whether more waits for it.
    pub(crate) fn is_too_slow(&mut self, owes: bool, written: u64, now: Instant) -> bool {
        self.next = now + self.limit / 2;
        if !owes || written.saturating_sub(self.written) >= LEAST_READ {
            (self.since, self.written) = (now, written);
            return false;
        }
        now.duration_since(self.since) >= self.limit
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_that_reads_is_borne_and_one_that_does_not_is_not() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let at = |seconds: u32| start + second * seconds;
        let mut pace = Pace::new(second * 30, start);
        assert_eq!(pace.next, at(15));
        // Nothing to read.
        assert!(!pace.is_too_slow(false, 10, at(15)));
        assert!(!pace.is_too_slow(true, 10, at(30)));
        // Slow, but it reads.
        assert!(!pace.is_too_slow(true, 10 + LEAST_READ, at(40)));
        assert!(!pace.is_too_slow(true, 20 + LEAST_READ, at(55)));
        assert!(pace.is_too_slow(true, 30 + LEAST_READ, at(70)));
    }
}
