//! Bodies on their way in: how long one may be, how many bytes of all of them are in memory at once, and what becomes of
//! those that nobody reads.

use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::Body;
use axum::extract::Request;
use axum::http::header;
use bytes::Bytes;
use contract::Failure;
use futures::StreamExt as _;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use crate::body_room::BodyBytes;
use crate::edge::Edge;
use crate::json;
use crate::openai;

/// What every body may have in memory whatever the others have: an ordinary request is never refused for those of others.
const FREE_BYTES: usize = 16 * 1024;
/// How much of a body that was refused is taken and thrown away, and for how long.
const LINGER_BYTES: usize = 16 * 1024 * 1024;
const LINGER_TIME: Duration = Duration::from_secs(3);

/// Whether a body announces no more than the limit, before any of it is read. One that does not announce its length is cut off where it is read.
///
/// # Errors
/// Too large, with the limit.
pub(crate) fn check_length(edge: &Edge, request: &Request) -> Result<(), Failure> {
    let announced = request.headers().get(header::CONTENT_LENGTH);
    let announced = announced.and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
    let limit = match request.uri().path() {
        openai::EDITS => edge.http.max_upload,
        _ => edge.http.max_body,
    };
    match announced {
        Some(bytes) if bytes > limit.bytes() => Err(json::too_large(limit)),
        _ => Ok(()),
    }
}

/// A body as it arrives. What of it goes beyond [`FREE_BYTES`] takes room until the body is dropped, which its readers do
/// when they have all of it; and what nobody reads of it is left to [`Rest`].
pub(crate) struct Arriving {
    /// Taken only when it is dropped.
    body: Option<Body>,
    arrived: usize,
    room: BodyBytes,
    rest: Rest,
    /// Nothing is left to be thrown away: it has ended, or the client waits for a word before it sends any.
    done: bool,
}

/// What was left of a body by those who were to read it.
#[derive(Clone, Default)]
pub(crate) struct Rest(Arc<Mutex<Option<Body>>>);

/// A body that there was no room for.
#[derive(Debug, thiserror::Error)]
#[error("there is no room for the body")]
struct NoRoom {
    failure: Failure,
    /// Where gRPC's server finds it.
    #[source]
    status: tonic::Status,
}

/// The failure that broke a body off, if it was one of ours.
pub(crate) fn failure_in(error: &axum::Error) -> Option<Failure> {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(no_room) = error.downcast_ref::<NoRoom>() {
            return Some(no_room.failure.clone());
        }
        cause = error.source();
    }
    None
}

impl Arriving {
    /// `waits`: the client sends nothing before someone reads.
    pub(crate) fn new(body: Body, waits: bool, room: BodyBytes) -> (Self, Rest) {
        let rest = Rest::default();
        let arriving = Self {
            done: waits || body.is_end_stream(),
            body: Some(body),
            arrived: 0,
            room,
            rest: rest.clone(),
        };
        (arriving, rest)
    }

    /// Takes room for `more` bytes.
    fn hold(&mut self, more: usize) -> Result<(), Failure> {
        let free = FREE_BYTES.saturating_sub(self.arrived);
        self.arrived += more;
        let wanted = more.saturating_sub(free);
        if wanted == 0 {
            return Ok(());
        }
        let held = self.room.more(wanted);
        if held.is_err() {
            metrics::counter!("inkstone_gateway_bodies_refused_total").increment(1);
        }
        held
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let Some(body) = &mut self.body else {
            return Poll::Ready(None);
        };
        let frame = ready!(Pin::new(body).poll_frame(context));
        // Asked for, it is being sent.
        self.done = match (&frame, &self.body) {
            (Some(Ok(_)), Some(body)) => body.is_end_stream(),
            _ => true,
        };
        let Some(Ok(frame)) = frame else {
            return Poll::Ready(frame);
        };
        let bytes = frame.data_ref().map_or(0, Bytes::len);
        match self.hold(bytes) {
            Ok(()) => Poll::Ready(Some(Ok(frame))),
            Err(failure) => {
                let status = tonic::Status::from(failure.clone());
                let error = NoRoom { failure, status };
                Poll::Ready(Some(Err(axum::Error::new(error))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body.as_ref().map(Body::size_hint).unwrap_or_default()
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        // A poisoned lock holds a whole value: it is only ever set.
        let mut rest = self.rest.0.lock().unwrap_or_else(|e| e.into_inner());
        *rest = self.body.take();
    }
}

impl Rest {
    /// What nobody is going to read.
    pub(crate) fn take(&self) -> Option<Body> {
        self.0.lock().unwrap_or_else(|e| e.into_inner()).take()
    }
}

/// Throws away what a caller is in the middle of sending while it is answered, so that it comes to read the answer: a
/// connection closed under a sender loses the answer with it. Bounded, for those who would send for ever.
pub(crate) async fn linger(body: Body) {
    let drain = async {
        let mut body = body.into_data_stream();
        let mut left = LINGER_BYTES;
        while let Some(Ok(chunk)) = body.next().await {
            match left.checked_sub(chunk.len()) {
                Some(less) => left = less,
                None => break,
            }
        }
    };
    // Either way nobody waits for more.
    let _ = tokio::time::timeout(LINGER_TIME, drain).await;
}

#[cfg(test)]
mod tests {
    use contract::ErrorCode;
    use settings::ByteSize;

    use super::*;
    use crate::body_room::{BodyRoom, Sender};

    /// All of it is anyone's.
    fn room(bytes: u64) -> Arc<BodyRoom> {
        let all = ByteSize::of(bytes);
        Arc::new(BodyRoom::shared(bytes, all, all))
    }

    fn nobodys(room: &Arc<BodyRoom>) -> BodyBytes {
        room.body(None, Sender::default())
    }

    fn body(chunks: &[usize]) -> Body {
        let chunks: Vec<_> = chunks
            .iter()
            .map(|n| Ok::<_, axum::Error>(vec![0; *n]))
            .collect();
        Body::from_stream(futures::stream::iter(chunks))
    }

    #[tokio::test]
    async fn a_body_takes_room_beyond_its_first_bytes_until_it_is_dropped() {
        let room = room(10_000);
        let (arriving, _) = Arriving::new(body(&[FREE_BYTES, 4_000, 2_000]), false, nobodys(&room));
        let mut stream = Body::new(arriving).into_data_stream();
        let mut left = Vec::new();
        while let Some(chunk) = stream.next().await {
            chunk.unwrap();
            left.push(room.left());
        }
        assert_eq!(left, [10_000, 6_000, 4_000]);
        drop(stream);
        assert_eq!(room.left(), 10_000);
    }

    #[tokio::test]
    async fn a_body_without_room_is_refused_in_words_that_every_dialect_has() {
        let room = room(1_000);
        let (small, _) = Arriving::new(body(&[FREE_BYTES]), false, nobodys(&room));
        let (large, _) = Arriving::new(body(&[FREE_BYTES, 1_001]), false, nobodys(&room));
        axum::body::to_bytes(Body::new(small), usize::MAX)
            .await
            .unwrap();
        let error = axum::body::to_bytes(Body::new(large), usize::MAX)
            .await
            .unwrap_err();
        assert!(failure_in(&error).unwrap().retry_after.is_some());
        // As gRPC's server looks for it.
        let status = tonic::Status::from_error(Box::new(error));
        assert_eq!(status.code(), tonic::Code::Unavailable);
        assert_eq!(room.left(), 1_000);
    }

    #[tokio::test]
    async fn a_body_over_its_senders_share_is_refused_as_such_in_every_dialect() {
        let share = ByteSize::of(100);
        let room = Arc::new(BodyRoom::shared(1_000, share, share));
        let sender = Sender::default();
        sender.is("one");
        let bytes = room.body(None, sender);
        let (large, _) = Arriving::new(body(&[FREE_BYTES, 101]), false, bytes);
        let error = axum::body::to_bytes(Body::new(large), usize::MAX)
            .await
            .unwrap_err();
        let failure = failure_in(&error).unwrap();
        assert_eq!(failure.code, ErrorCode::RateLimited);
        let status = tonic::Status::from_error(Box::new(error));
        assert_eq!(status.code(), tonic::Code::ResourceExhausted);
        assert_eq!(room.left(), 1_000);
    }

    #[tokio::test]
    async fn what_nobody_reads_is_left_and_what_was_read_or_never_sent_is_not() {
        let left = async |read: usize, waits: bool| {
            let (arriving, rest) = Arriving::new(body(&[1, 1, 1]), waits, nobodys(&room(0)));
            let mut stream = Body::new(arriving).into_data_stream();
            for _ in 0..read {
                stream.next().await;
            }
            drop(stream);
            rest.take().is_some()
        };
        assert!(left(0, false).await && left(2, false).await && left(1, true).await);
        assert!(!left(0, true).await && !left(4, false).await);
    }
}
