//! Answers on their way out: the bytes of them that wait for clients to read, and for how long a client may read none.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::crowd::{Line, UnderWay};
use crate::unread::{Addressee, Unread};

/// What is written in one piece and so small that sockets take it: not worth counting.
const SMALL: usize = 4 * 1024;
/// What a client must read at least, of what waits for it, to be one that reads.
const LEAST_READ: u64 = 64 * 1024;

/// Where an answer's bytes are counted while they wait.
struct Account {
    line: Arc<Line>,
    _under_way: Option<UnderWay>,
    unread: Arc<Unread>,
    whose: Option<Addressee>,
}

/// The body of an answer. It keeps its request under way until the connection has let go of the last byte, if it is known whom it is for:
/// nobody without a key keeps a connection in a full house by leaving a stream open, or its last bytes unread.
pub(crate) struct Answer {
    body: Body,
    account: Arc<Account>,
}

impl Answer {
    /// `to`: if it is known.
    pub(crate) fn new(
        body: Body,
        under_way: UnderWay,
        unread: Arc<Unread>,
        to: Option<Addressee>,
    ) -> Self {
        let account = Arc::new(Account {
            line: under_way.line().clone(),
            _under_way: to.is_some().then_some(under_way),
            unread,
            whose: to,
        });
        Self { body, account }
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(context));
        let counted = |bytes| Waiting::bytes(bytes, &self.account);
        Poll::Ready(frame.map(|frame| frame.map(|frame| frame.map_data(counted))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Bytes that are counted for as long as anyone has them.
struct Waiting {
    bytes: Bytes,
    account: Arc<Account>,
}

impl Waiting {
    fn bytes(bytes: Bytes, account: &Arc<Account>) -> Bytes {
        if bytes.len() <= SMALL {
            return bytes;
        }
        let length = bytes.len() as u64;
        account.unread.add(account.whose.as_ref(), length);
        account.line.unread.fetch_add(length, Ordering::Relaxed);
        Bytes::from_owner(Self {
            bytes,
            account: account.clone(),
        })
    }
}

impl AsRef<[u8]> for Waiting {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let length = self.bytes.len() as u64;
        let account = &self.account;
        account.unread.take_away(account.whose.as_ref(), length);
        account.line.unread.fetch_sub(length, Ordering::Relaxed);
    }
}

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
    use axum::body::to_bytes;
    use http_body_util::BodyExt as _;

    use super::*;
    use crate::crowd::{Crowd, Member};
    use crate::unread::tests::{tenant, token, unread};

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

    async fn member() -> Member {
        let crowd = Arc::new(Crowd::new(1, 1));
        let address = [127, 0, 0, 1].into();
        let room = crowd.room(address).await.unwrap();
        crowd.join(room, address).unwrap()
    }

    #[tokio::test]
    async fn bytes_count_as_unread_until_the_last_piece_of_them_is_gone() {
        let member = member().await;
        let cases = [
            (Some(tenant("a")), [100_000, 0, 0]),
            (Some(token("a")), [0, 100_000, 0]),
            (None, [0, 0, 100_000]),
        ];
        for (to, counted) in cases {
            let unread = unread();
            let body = Body::from(vec![7; 100_000]);
            let mut answer = Answer::new(body, member.line.begin(), unread.clone(), to);
            let frame = answer.frame().await.unwrap().unwrap();
            let bytes = frame.into_data().unwrap();
            drop(answer);
            let piece = bytes.slice(5..6);
            drop(bytes);
            assert_eq!((unread.waiting(), member.line.owes()), (counted, true));
            drop(piece);
            assert_eq!((unread.waiting(), member.line.owes()), ([0; 3], false));
            assert!(unread.knows_nobody());
        }
    }

    #[tokio::test]
    async fn small_answers_pass_as_they_are() {
        let (member, unread) = (member().await, unread());
        let body = Body::from("ok");
        let to = Some(tenant("a"));
        let answer = Answer::new(body, member.line.begin(), unread.clone(), to);
        let bytes = to_bytes(Body::new(answer), 10).await.unwrap();
        assert_eq!((&bytes[..], unread.waiting()), (&b"ok"[..], [0; 3]));
    }

    #[tokio::test]
    async fn an_answer_keeps_its_request_under_way_if_it_is_known_whom_it_is_for() {
        let member = member().await;
        for (to, keeps) in [
            (Some(tenant("a")), true),
            (Some(token("a")), true),
            (None, false),
        ] {
            let request = member.line.begin();
            let answer = Answer::new(Body::from("ok"), request, unread(), to);
            assert_eq!(!member.line.is_quiet(), keeps);
            drop(answer);
            assert!(member.line.is_quiet());
        }
    }
}
