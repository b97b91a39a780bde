//! Who is let in with a call, and how many at once: before any of its work, its message included.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use http_body_util::BodyExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::listen::Peer;
use crate::metrics;
use crate::tls::may_call;

/// Suggested wait when there is no room: load moves in seconds.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// How many calls one server has at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Calls that are worked on, until their answers begin.
    pub(crate) calls: usize,
    /// Answers that go on, which is what streams are.
    pub(crate) answers: usize,
}

impl Default for Limits {
    fn default() -> Self {
        // Twice what one gateway lets in, and four times the streams that it keeps open.
        Self {
            calls: 4096,
            answers: 8192,
        }
    }
}

/// Refuses callers who may not, and calls for which there is no room.
#[derive(Clone)]
pub(crate) struct Admission {
    calls: Arc<Semaphore>,
    answers: Arc<Semaphore>,
}

impl Admission {
    pub(crate) fn new(limits: Limits) -> Self {
        Self {
            calls: Arc::new(Semaphore::new(limits.calls)),
            answers: Arc::new(Semaphore::new(limits.answers)),
        }
    }

    fn admit(&self, request: &http::Request<Body>) -> Result<(Permit, Permit), Failure> {
        let path = request.uri().path();
        match request.extensions().get::<Peer>() {
            Some(Peer::Anyone) => {}
            Some(Peer::Named(who)) if may_call(who, path) => {}
            // A connection that nobody has looked at is one of nobody.
            peer => return Err(forbidden(peer, path)),
        }
        let call = room(&self.calls, "calls are under way")?;
        let answer = room(&self.answers, "streams are open")?;
        Ok((call, answer))
    }
}

/// A place, for as long as it is held.
struct Permit(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

fn room(semaphore: &Arc<Semaphore>, what: &'static str) -> Result<Permit, Failure> {
    let permit = semaphore.clone().try_acquire_owned().map_err(|_| {
        metrics::shed();
        Failure::unavailable(format!("too many {what}; try again"), BUSY_WAIT)
    })?;
    Ok(Permit(permit))
}

fn forbidden(peer: Option<&Peer>, path: &str) -> Failure {
    metrics::forbidden();
    let who = match peer {
        Some(Peer::Named(who)) => who.iter().map(|one| one.name()).collect::<Vec<_>>(),
        _ => Vec::new(),
    };
    let who = who.join(", ");
    tracing::warn!(who, path, "a call was refused for its caller's certificate");
    let message = format!("{who} may not call {path}");
    Failure::new(ErrorCode::PermissionDenied, message)
}

impl<S> Layer<S> for Admission {
    type Service = Admitted<S>;

    fn layer(&self, inner: S) -> Admitted<S> {
        let admission = self.clone();
        Admitted { inner, admission }
    }
}

/// See [`Admission`].
#[derive(Clone)]
pub(crate) struct Admitted<S> {
    inner: S,
    admission: Admission,
}

impl<S> Service<http::Request<Body>> for Admitted<S>
where
    S: Service<http::Request<Body>, Response = http::Response<Body>>,
    S::Future: Send + 'static,
    S::Error: 'static,
{
    type Response = http::Response<Body>;
    type Error = S::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, S::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        let (call, answer) = match self.admission.admit(&request) {
            Ok(permits) => permits,
            Err(failure) => {
                let refusal = Status::from(failure).into_http();
                return Box::pin(async move { Ok(refusal) });
            }
        };
        let work = self.inner.call(request);
        Box::pin(async move {
            let response = work.await?;
            drop(call);
            // The place goes with the body, however that ends.
            let held = move |frame| {
                let _held = &answer;
                frame
            };
            Ok(response.map(|body| Body::new(body.map_frame(held))))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tls::Identity;

    fn request(peer: Option<Peer>) -> http::Request<Body> {
        let path = "/inkstone.auth.v1.AuthService/Authenticate";
        let mut request = http::Request::post(path).body(Body::empty()).unwrap();
        if let Some(peer) = peer {
            request.extensions_mut().insert(peer);
        }
        request
    }

    #[test]
    fn a_call_for_which_there_is_no_room_is_refused_with_a_wait_until_another_ends() {
        let limits = Limits {
            calls: 1,
            answers: 2,
        };
        let admission = Admission::new(limits);
        let (call, first) = admission.admit(&request(Some(Peer::Anyone))).unwrap();
        let full = admission.admit(&request(Some(Peer::Anyone))).err().unwrap();
        assert_eq!(full.code, ErrorCode::Unavailable);
        assert_eq!(full.retry_after, Some(BUSY_WAIT));
        drop(call);
        // The first one's answer goes on; there is room for one more.
        let (call, second) = admission.admit(&request(Some(Peer::Anyone))).unwrap();
        drop(call);
        let full = admission.admit(&request(Some(Peer::Anyone))).err().unwrap();
        assert!(full.message.contains("streams"), "{full}");
        drop((first, second));
        admission.admit(&request(Some(Peer::Anyone))).unwrap();
    }

    #[test]
    fn a_caller_is_let_in_by_its_name_and_one_without_is_not() {
        let admission = Admission::new(Limits::default());
        let named = |who: &[Identity]| Some(Peer::Named(who.into()));
        admission
            .admit(&request(named(&[Identity::Gateway])))
            .unwrap();
        for peer in [None, named(&[]), named(&[Identity::GpuWorker])] {
            let refused = admission.admit(&request(peer)).err().unwrap();
            assert_eq!(refused.code, ErrorCode::PermissionDenied);
        }
    }
}
