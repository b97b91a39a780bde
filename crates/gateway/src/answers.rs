//! Answers on their way out: how many bytes of them wait for clients to read, and for how long a client may read none.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use contract::{ErrorCode, Failure};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use settings::ByteSize;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::crowd::{Line, UnderWay};
use crate::room::refused;

/// What is written in one piece and so small that sockets take it: not worth counting.
const SMALL: usize = 4 * 1024;
/// What a client must read at least, of what waits for it, to be one that reads.
const LEAST_READ: u64 = 64 * 1024;
/// Suggested wait when too much is unread: it is read, or its reader cut off, in seconds.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// What is refused for want of room, in metrics.
const WAITING: &str = "answers wait to be read";
const WAITING_BY_TOKEN: &str = "pictures by token wait to be read";
const WAITING_STRANGERS: &str = "answers without a key wait to be read";

/// Whom an answer is for, among its extensions. For anyone else there is none.
#[derive(Debug, Clone)]
pub(crate) enum Addressee {
    /// A caller with a key, by its tenant.
    Tenant(Arc<str>),
    /// Whoever reads a picture by its token, by its task.
    Token(Arc<str>),
}

/// Bytes of answers that clients have not read yet, of all connections. Of those to callers with a key each tenant has a share. What is
/// read by tokens has one share more, all of it together; what anyone may have has room of its own. So neither takes any from callers
/// with a key.
#[derive(Debug)]
pub(crate) struct Unread {
    most: ByteSize,
    share: ByteSize,
    most_without_key: ByteSize,
    tenants: Counted,
    tasks: Counted,
    without_key: AtomicU64,
}

/// Bytes that wait for addressees of one kind.
#[derive(Debug, Default)]
struct Counted {
    all: AtomicU64,
    /// Those for whom nothing waits are not in it.
    each: Mutex<HashMap<Arc<str>, u64>>,
}

impl Counted {
    fn each(&self) -> MutexGuard<'_, HashMap<Arc<str>, u64>> {
        // Every change leaves it whole.
        self.each.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    fn of(&self, whose: &str) -> u64 {
        self.each().get(whose).copied().unwrap_or_default()
    }

    fn add(&self, whose: &Arc<str>, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        *self.each().entry(whose.clone()).or_default() += bytes;
    }

    fn take_away(&self, whose: &Arc<str>, bytes: u64) {
        self.all.fetch_sub(bytes, Ordering::Relaxed);
        let mut each = self.each();
        match each.get_mut(whose) {
            Some(waiting) if *waiting > bytes => *waiting -= bytes,
            _ => {
                each.remove(whose);
            }
        }
    }
}

impl Unread {
    /// Of `most` bytes, one tenant may have `percent`.
    pub(crate) fn new(most: ByteSize, percent: u32, most_without_key: ByteSize) -> Self {
        let share = most.bytes().saturating_mul(percent.into()) / 100;
        Self {
            most,
            share: ByteSize::of(share),
            most_without_key,
            tenants: Counted::default(),
            tasks: Counted::default(),
            without_key: AtomicU64::new(0),
        }
    }

    /// Whether there may be one more answer to a caller who is not known yet: not while those to callers with a key have more
    /// than the most together.
    ///
    /// # Errors
    /// Unavailable if not.
    pub(crate) fn admit(&self) -> Result<(), Failure> {
        if self.tenants.all() <= self.most.bytes() {
            return Ok(());
        }
        refused(WAITING, "full");
        let message = "too many bytes of answers wait to be read; try again";
        Err(Failure::unavailable(message, BUSY_WAIT))
    }

    /// Whether there may be one more answer to this tenant: not while those that it has not read have more than its share.
    ///
    /// # Errors
    /// Over the limit if not.
    pub(crate) fn admit_tenant(&self, tenant: &str) -> Result<(), Failure> {
        if self.tenants.of(tenant) <= self.share.bytes() {
            return Ok(());
        }
        refused(WAITING, "share");
        Err(self.over_share("answers for one tenant"))
    }

    /// Whether there may be one more picture of this task by its token: not while those that were not read have more than a share, nor
    /// while those of all tasks have.
    ///
    /// # Errors
    /// Over the limit if the task's own have; unavailable if all together have.
    pub(crate) fn admit_by_token(&self, task: &str) -> Result<(), Failure> {
        if self.tasks.of(task) > self.share.bytes() {
            refused(WAITING_BY_TOKEN, "share");
            return Err(self.over_share("pictures by the tokens of one task"));
        }
        if self.tasks.all() <= self.share.bytes() {
            return Ok(());
        }
        refused(WAITING_BY_TOKEN, "full");
        let message = "too many bytes of pictures by token wait to be read; try again";
        Err(Failure::unavailable(message, BUSY_WAIT))
    }

    fn over_share(&self, of: &str) -> Failure {
        let message = format!(
            "too many bytes of {of} wait to be read, which may have {} at this gateway; read them, or try again",
            self.share
        );
        Failure {
            retry_after: Some(BUSY_WAIT),
            ..Failure::new(ErrorCode::RateLimited, message)
        }
    }

    /// Whether there may be one more answer to someone without a key.
    ///
    /// # Errors
    /// Unavailable if not.
    pub(crate) fn admit_without_key(&self) -> Result<(), Failure> {
        if self.without_key.load(Ordering::Relaxed) <= self.most_without_key.bytes() {
            return Ok(());
        }
        refused(WAITING_STRANGERS, "full");
        let message =
            "too many bytes of answers to callers without a key wait to be read; try again";
        Err(Failure::unavailable(message, BUSY_WAIT))
    }

    fn add(&self, whose: Option<&Addressee>, bytes: u64) {
        match whose {
            Some(Addressee::Tenant(tenant)) => self.tenants.add(tenant, bytes),
            Some(Addressee::Token(task)) => self.tasks.add(task, bytes),
            None => {
                self.without_key.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    fn take_away(&self, whose: Option<&Addressee>, bytes: u64) {
        match whose {
            Some(Addressee::Tenant(tenant)) => self.tenants.take_away(tenant, bytes),
            Some(Addressee::Token(task)) => self.tasks.take_away(task, bytes),
            None => {
                self.without_key.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }
}

/// Where an answer's bytes are counted while they wait.
struct Account {
    under_way: UnderWay,
    unread: Arc<Unread>,
    whose: Option<Addressee>,
}

/// The body of an answer. It keeps its request under way until the connection has let go of the last byte.
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
            under_way,
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
        let line = account.under_way.line();
        line.unread.fetch_add(length, Ordering::Relaxed);
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
        let line = account.under_way.line();
        line.unread.fetch_sub(length, Ordering::Relaxed);
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

    /// Of 1000 bytes, half are one tenant's; without a key there are 100.
    fn unread() -> Arc<Unread> {
        Arc::new(Unread::new(ByteSize::of(1000), 50, ByteSize::of(100)))
    }

    /// To callers with a key, by token, and without either.
    fn waiting(unread: &Unread) -> [u64; 3] {
        let without_key = unread.without_key.load(Ordering::Relaxed);
        [unread.tenants.all(), unread.tasks.all(), without_key]
    }

    fn tenant(name: &str) -> Addressee {
        Addressee::Tenant(name.into())
    }

    fn token(task: &str) -> Addressee {
        Addressee::Token(task.into())
    }

    async fn member() -> Member {
        let crowd = Arc::new(Crowd::new(1, 1));
        let room = crowd.room().await;
        crowd.join(room, [127, 0, 0, 1].into()).unwrap()
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
            assert_eq!((waiting(&unread), member.line.owes()), (counted, true));
            drop(piece);
            assert_eq!((waiting(&unread), member.line.owes()), ([0; 3], false));
            assert!(unread.tenants.each().is_empty() && unread.tasks.each().is_empty());
        }
    }

    #[test]
    fn a_tenant_that_leaves_its_share_unread_is_refused_and_another_is_not() {
        let unread = unread();
        let (one, other) = (tenant("one"), tenant("other"));
        unread.add(Some(&one), 500);
        unread.admit_tenant("one").unwrap();
        unread.add(Some(&one), 1);
        let refused = unread.admit_tenant("one").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.retry_after.is_some(), "{refused}");
        assert!(refused.message.contains("may have 500 B"), "{refused}");
        unread.admit_tenant("other").unwrap();
        unread.admit().unwrap();
        // Together they have more than there may be.
        unread.add(Some(&other), 500);
        assert_eq!(unread.admit().unwrap_err().code, ErrorCode::Unavailable);
        unread.take_away(Some(&one), 1);
        unread.admit_tenant("one").unwrap();
        unread.admit().unwrap();
    }

    #[test]
    fn what_callers_without_a_key_leave_unread_takes_no_room_from_those_with_one() {
        let unread = unread();
        unread.add(None, 100);
        unread.admit_without_key().unwrap();
        unread.add(None, 1_000_000);
        let refused = unread.admit_without_key().unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        unread.admit().unwrap();
        unread.admit_tenant("").unwrap();
        unread.take_away(None, 1_000_000);
        unread.add(Some(&tenant("one")), 1_000_000);
        unread.admit_without_key().unwrap();
    }

    #[test]
    fn pictures_by_token_have_one_share_together_and_take_none_from_callers_with_a_key() {
        let unread = unread();
        let tasks: Vec<_> = (0..9).map(|task| format!("task {task}")).collect();
        for task in &tasks {
            unread.add(Some(&token(task)), 50);
        }
        unread.add(Some(&token("task 0")), 50);
        unread.admit_by_token("task 0").unwrap();
        unread.add(Some(&token("task 0")), 1);
        // None of them has a share's bytes, and together they have more.
        for task in ["task 0", "another"] {
            let refused = unread.admit_by_token(task).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unavailable);
            assert!(refused.retry_after.is_some(), "{refused}");
        }
        unread.add(Some(&token("task 0")), 1_000_000);
        let refused = unread.admit_by_token("task 0").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.message.contains("may have 500 B"), "{refused}");
        assert!(!refused.message.contains("tenant"), "{refused}");
        // One of the same name has another share.
        unread.admit_tenant("task 0").unwrap();
        unread.admit().unwrap();
        unread.admit_without_key().unwrap();
        unread.take_away(Some(&token("task 0")), 1_000_001);
        unread.admit_by_token("task 0").unwrap();
        // Nor do those take any from them.
        unread.add(Some(&tenant("one")), 1_000_000);
        unread.admit_by_token("another").unwrap();
    }

    #[tokio::test]
    async fn small_answers_pass_as_they_are() {
        let (member, unread) = (member().await, unread());
        let body = Body::from("ok");
        let to = Some(tenant("a"));
        let answer = Answer::new(body, member.line.begin(), unread.clone(), to);
        let bytes = to_bytes(Body::new(answer), 10).await.unwrap();
        assert_eq!((&bytes[..], waiting(&unread)), (&b"ok"[..], [0; 3]));
    }
}
