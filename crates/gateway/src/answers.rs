//! Answers on their way out: the bytes of them that wait for clients to read, and what becomes of those that are not read.
//!
//! The connection takes an answer as its client lets it, which over HTTP/2 each answer's own window does: a client that reads some of its
//! answers may leave others for ever. So each is looked at by itself, by a clock that nobody has to be asked for, and one that stands still
//! is given up: what the connection has not been handed of it is dropped at once, and its room is free again.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;

use crate::carried::Carried;
use crate::crowd::{Line, UnderWay};
use crate::unread::{Unread, Whose};

/// What is written in one piece and so small that sockets take it: not worth counting.
const SMALL: usize = 4 * 1024;
/// What the connection is handed at a time. Each piece is a copy, so that one which is not read does not keep all the rest in memory.
const PIECE: usize = 8 * 1024;
/// What a connection may still have in its hands of answers that were given up, bytes; more, and it is closed.
pub(crate) const MOST_LEFT: u64 = 128 * 1024;
/// What a client is told of an answer that was given up, where it can still be told anything.
const GIVEN_UP: &str = "the answer was given up, because its client did not read it";

/// The answers of a connection that are not gone yet, each by where it is in memory.
#[derive(Default)]
pub(crate) struct Answers(Mutex<HashMap<usize, Weak<Account>>>);

impl Answers {
    fn all(&self) -> MutexGuard<'_, HashMap<usize, Weak<Account>>> {
        // Every change leaves it whole.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Gives up those of which their client has taken nothing for as long as `limit`.
    pub(crate) fn give_up_stuck(&self, limit: Duration, now: Instant) {
        let all: Vec<_> = self.all().values().filter_map(Weak::upgrade).collect();
        for account in all {
            account.judge(limit, now);
        }
    }
}

/// One answer, as its connection and its room see it.
struct Account {
    line: Arc<Line>,
    unread: Arc<Unread>,
    whose: Whose,
    state: Mutex<State>,
    handed: Mutex<Handed>,
}

enum State {
    Going(Going),
    /// It has not been said yet.
    GivenUp,
    Over,
}

/// What has not been handed to the connection.
struct Going {
    body: Body,
    /// Of a frame that has come.
    rest: Bytes,
    /// Bytes of that frame, which is in memory while any of it is here.
    counted: u64,
    /// Whoever waits for more of a body that has none just now: then its client owes nothing.
    waits: Option<Waker>,
    /// Room for what the body is made of, until its bytes are counted by themselves.
    carried: Option<Carried>,
}

/// What has been.
struct Handed {
    bytes: u64,
    /// How often any was asked for or taken.
    moves: u64,
    /// Those at a look, and when that was.
    seen: (u64, Instant),
    given_up: bool,
    under_way: Option<UnderWay>,
}

impl Account {
    fn state(&self) -> MutexGuard<'_, State> {
        // A body that panics is asked for nothing more.
        self.state.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn handed(&self) -> MutexGuard<'_, Handed> {
        // Every change leaves it whole.
        self.handed.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn count(&self, bytes: u64) {
        self.unread.add(&self.whose, bytes);
        self.line.unread.fetch_add(bytes, Ordering::Relaxed);
    }

    fn discount(&self, bytes: u64) {
        self.unread.take_away(&self.whose, bytes);
        self.line.unread.fetch_sub(bytes, Ordering::Relaxed);
    }

    /// Notes that the connection has asked for more.
    fn moved(&self) {
        self.handed().moves += 1;
    }

    fn judge(&self, limit: Duration, now: Instant) {
        let owes = match self.state.try_lock() {
            Ok(state) => matches!(&*state, State::Going(going) if going.waits.is_none()),
            // More of it is asked for at this moment.
            Err(_) => return,
        };
        let mut handed = self.handed();
        let (moves, since) = handed.seen;
        if (!owes && handed.bytes == 0) || handed.moves != moves {
            handed.seen = (handed.moves, now);
            return;
        }
        let stuck = !handed.given_up && now.duration_since(since) >= limit;
        drop(handed);
        if stuck {
            self.give_up();
        }
    }

    /// Drops what is held of it, and counts nothing of it any more but what the connection has left.
    fn give_up(&self) {
        let mut state = self.state();
        let going = if matches!(*state, State::Going(_)) {
            std::mem::replace(&mut *state, State::GivenUp)
        } else {
            State::Over
        };
        drop(state);
        let mut handed = self.handed();
        handed.given_up = true;
        let under_way = handed.under_way.take();
        self.unread.take_away(&self.whose, handed.bytes);
        self.line.left.fetch_add(handed.bytes, Ordering::Relaxed);
        drop(handed);
        drop(under_way);
        if let State::Going(mut going) = going {
            self.discount(going.counted);
            if let Some(waits) = going.waits.take() {
                waits.wake();
            }
        }
        metrics::counter!("inkstone_gateway_answers_given_up_total").increment(1);
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        self.line
            .answers
            .all()
            .remove(&std::ptr::from_ref::<Self>(self).addr());
    }
}

/// The body of an answer. It keeps its request under way until the connection has let go of the last byte, if it is known whom it is for:
/// nobody without a key keeps a connection in a full house by leaving a stream open, or its last bytes unread.
pub(crate) struct Answer {
    account: Arc<Account>,
}

impl Answer {
    /// `carried`: the room that what it is made of has taken, if that was much.
    pub(crate) fn new(
        body: Body,
        under_way: UnderWay,
        unread: Arc<Unread>,
        whose: Whose,
        carried: Option<Carried>,
    ) -> Self {
        let line = under_way.line().clone();
        let handed = Handed {
            bytes: 0,
            moves: 0,
            seen: (0, Instant::now()),
            given_up: false,
            under_way: whose.to.is_some().then_some(under_way),
        };
        let going = Going {
            body,
            rest: Bytes::new(),
            counted: 0,
            waits: None,
            carried,
        };
        let account = Arc::new(Account {
            line,
            unread,
            whose,
            state: Mutex::new(State::Going(going)),
            handed: Mutex::new(handed),
        });
        let known = Arc::downgrade(&account);
        let place = Arc::as_ptr(&account).addr();
        account.line.answers.all().insert(place, known);
        Self { account }
    }
}

impl Going {
    /// The next frame as it is handed on: a piece of one that is long.
    fn hand_on(
        &mut self,
        account: &Arc<Account>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.rest.is_empty() {
            self.waits = None;
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Pending => {
                    self.waits = Some(context.waker().clone());
                    return Poll::Pending;
                }
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Ready(other) => return Poll::Ready(other),
            };
            let data = match frame.into_data() {
                Ok(data) => data,
                Err(other) => return Poll::Ready(Some(Ok(other))),
            };
            if data.len() <= SMALL {
                self.carried = None;
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }
            self.counted = data.len() as u64;
            account.count(self.counted);
            self.carried = None;
            self.rest = data;
        }
        let piece = self.rest.split_to(self.rest.len().min(PIECE));
        let piece = Waiting::bytes(&piece, account);
        if self.rest.is_empty() {
            self.rest = Bytes::new();
            account.discount(std::mem::take(&mut self.counted));
        }
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let account = &self.account;
        account.moved();
        let mut state = account.state();
        if matches!(*state, State::GivenUp) {
            *state = State::Over;
            return Poll::Ready(Some(Err(axum::Error::new(GIVEN_UP))));
        }
        let State::Going(going) = &mut *state else {
            return Poll::Ready(None);
        };
        let next = going.hand_on(account, context);
        if matches!(next, Poll::Ready(None)) {
            *state = State::Over;
        }
        next
    }

    fn is_end_stream(&self) -> bool {
        match &*self.account.state() {
            State::Going(going) => going.rest.is_empty() && going.body.is_end_stream(),
            State::GivenUp => false,
            State::Over => true,
        }
    }

    fn size_hint(&self) -> SizeHint {
        let mut all = SizeHint::new();
        if let State::Going(going) = &*self.account.state() {
            let (rest, body) = (going.rest.len() as u64, going.body.size_hint());
            if let Some(most) = body.upper() {
                all.set_upper(most.saturating_add(rest));
            }
            all.set_lower(body.lower().saturating_add(rest));
        }
        all
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        let state = std::mem::replace(&mut *self.account.state(), State::Over);
        if let State::Going(going) = state {
            self.account.discount(going.counted);
        }
    }
}

/// A piece of an answer that is counted for as long as the connection has it.
struct Waiting {
    bytes: Box<[u8]>,
    account: Arc<Account>,
}

impl Waiting {
    fn bytes(piece: &[u8], account: &Arc<Account>) -> Bytes {
        let length = piece.len() as u64;
        account.count(length);
        account.handed().bytes += length;
        Bytes::from_owner(Self {
            bytes: piece.into(),
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
        let (account, length) = (&self.account, self.bytes.len() as u64);
        let mut handed = account.handed();
        handed.bytes -= length;
        handed.moves += 1;
        account.line.unread.fetch_sub(length, Ordering::Relaxed);
        if handed.given_up {
            account.line.left.fetch_sub(length, Ordering::Relaxed);
        } else {
            account.unread.take_away(&account.whose, length);
        }
    }
}

#[cfg(test)]
mod tests;
