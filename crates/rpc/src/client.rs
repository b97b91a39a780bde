//! Calling a peer: deadline, breaker, retries, trace context; and one channel below.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use contract::{ErrorCode, Failure};
use http::{HeaderName, HeaderValue};
use http_body_util::{BodyExt as _, Full};
use tokio::sync::watch;
use tonic::body::Body;
use tonic::transport::Channel;
use tonic::{Code, ConnectError, Request, Status};
use tower_service::Service;

use crate::breaker::{Breaker, BreakerState, Outcome};
use crate::budget::{self, Budget};
use crate::connect::Connection;
use crate::{PeerSettings, deadline, metrics};

const GRPC_TIMEOUT: &str = "grpc-timeout";
/// By how much the library's timer may be ahead of ours.
const SAME_TIME: Duration = Duration::from_millis(10);

type Answer = http::Response<Body>;

/// A connection to a peer, made when first used and again when lost. Cheap to clone; clones share the breaker and the
/// budget for retries.
#[derive(Clone)]
pub struct Peer {
    connection: Connection,
    shared: Arc<Shared>,
}

struct Shared {
    name: &'static str,
    /// The longest that a unary call may take.
    timeout: Duration,
    attempts: u32,
    breaker: Breaker,
    budget: Mutex<Budget>,
    started: Instant,
}

/// Marks a call that streams for as long as it likes: no deadline is added, and it is sent once.
#[derive(Debug, Clone, Copy)]
pub struct NoDeadline;

/// Marks a call that may be carried out twice without harm.
#[derive(Debug, Clone, Copy)]
struct Idempotent;

/// A request for a call that streams without a deadline.
pub fn streaming<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(NoDeadline);
    request
}

/// A request for a unary call that may be carried out twice without harm: it is sent again when the peer cannot be reached
/// or its connection breaks. Any other is sent again only when it certainly never left.
pub fn idempotent<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.extensions_mut().insert(Idempotent);
    request
}

impl Peer {
    pub(crate) fn new(name: &'static str, connection: Connection, settings: &PeerSettings) -> Self {
        Self {
            connection,
            shared: Arc::new(Shared {
                name,
                timeout: settings.timeout.duration(),
                attempts: settings.retries.attempts.max(1),
                breaker: Breaker::new(name, settings.breaker.clone()),
                budget: Mutex::new(Budget::new(&settings.retries)),
                started: Instant::now(),
            }),
        }
    }

    /// What the peer's breaker does, to be watched.
    pub fn breaker(&self) -> watch::Receiver<BreakerState> {
        self.shared.breaker.watch()
    }

    async fn carry_out(self, request: http::Request<Body>) -> Result<Answer, Status> {
        let (mut parts, body) = request.into_parts();
        telemetry::inject(|name, value| {
            let name = HeaderName::from_bytes(name.as_bytes());
            if let (Ok(name), Ok(value)) = (name, HeaderValue::try_from(value)) {
                parts.headers.insert(name, value);
            }
        });
        if parts.extensions.get::<NoDeadline>().is_some() {
            return self
                .once(http::Request::from_parts(parts, body), None)
                .await;
        }
        let asked = parts.headers.get(GRPC_TIMEOUT);
        let asked = asked.and_then(|v| deadline::parse(v.to_str().ok()?));
        let most = asked.unwrap_or(self.shared.timeout);
        let limit = deadline::onward(deadline::left(), most).ok_or_else(|| too_late(&self))?;
        // All of it lies in memory already, as one message.
        let body = body.collect().await?.to_bytes();
        let until = Instant::now() + limit;
        self.shared.budget().called();
        let mut attempt = 1;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let whole = left >= self.shared.timeout.mul_f32(0.9);
            let spent = (attempt > 1).then(|| limit - left);
            let request = again(&parts, &body, left, spent);
            let answer = self.clone().once(request, Some((left, whole))).await;
            let Err(status) = &answer else { return answer };
            let Some(pause) = self.retry(attempt, status, &parts) else {
                return answer;
            };
            if Instant::now() + pause >= until {
                return answer;
            }
            tokio::time::sleep(pause).await;
            attempt += 1;
        }
    }

    /// How long to wait before the call is sent once more, if it should be.
    fn retry(
        &self,
        attempt: u32,
        status: &Status,
        parts: &http::request::Parts,
    ) -> Option<Duration> {
        let idempotent = parts.extensions.get::<Idempotent>().is_some();
        let harmless = idempotent || never_left(status);
        // A service of ours that refuses says for how long; it is not asked again sooner. The breaker says so too.
        let lost = status.code() == Code::Unavailable && !contract::error::is_of_a_service(status);
        if !lost || !harmless || attempt >= self.shared.attempts {
            return None;
        }
        let mut budget = self.shared.budget();
        let granted = budget.take(self.shared.started.elapsed());
        let outcome = if granted { "sent" } else { "over_budget" };
        metrics::retry(self.shared.name, outcome, budget.left());
        granted.then(|| budget::pause(attempt, budget::random()))
    }

    /// One attempt. `time`: how long it may take, and whether that is all that the peer may take.
    async fn once(
        self,
        request: http::Request<Body>,
        time: Option<(Duration, bool)>,
    ) -> Result<Answer, Status> {
        let shared = self.shared.clone();
        let permit = shared
            .breaker
            .admit()
            .map_err(|wait| kept_back(&shared, wait))?;
        let mut channel = self.connection.channel();
        let began = Instant::now();
        let attempt = attempt(&mut channel, request);
        let answer = match time {
            None => {
                // A stream may begin late, as an upload's answer does; a place among the probes is not kept for it.
                let mut attempt = std::pin::pin!(attempt);
                match tokio::time::timeout(shared.timeout, attempt.as_mut()).await {
                    Ok(answer) => answer,
                    Err(_) => {
                        drop(permit);
                        return attempt.await.map_err(|status| told(&shared, status));
                    }
                }
            }
            Some((limit, _)) => match tokio::time::timeout(limit, attempt).await {
                // The library below keeps the same time and may be first; it calls that cancelled.
                Ok(Err(status)) if cut_off(&status) && began.elapsed() + SAME_TIME >= limit => {
                    Err(unanswered(&shared, limit))
                }
                Ok(answer) => answer,
                Err(_) => Err(unanswered(&shared, limit)),
            },
        };
        let answer = answer.map_err(|status| told(&shared, status));
        let whole = time.is_none_or(|(_, whole)| whole);
        permit.record(judge(&answer, whole));
        answer
    }
}

impl Shared {
    fn budget(&self) -> std::sync::MutexGuard<'_, Budget> {
        // Every change of a budget leaves it whole.
        self.budget.lock().unwrap_or_else(|e| e.into_inner())
    }
}

/// The call as the channel answers it; a refusal that comes before any message is an error.
async fn attempt(channel: &mut Channel, request: http::Request<Body>) -> Result<Answer, Status> {
    let lost = |error: tonic::transport::Error| Status::from_error(Box::new(error));
    poll_fn(|cx| Service::poll_ready(channel, cx))
        .await
        .map_err(lost)?;
    let answer = Service::call(channel, request).await.map_err(lost)?;
    match Status::from_header_map(answer.headers()) {
        Some(status) if status.code() != Code::Ok => Err(status),
        _ => Ok(answer),
    }
}

/// What an answer says about the peer. Failures are UNAVAILABLE, DEADLINE_EXCEEDED, INTERNAL and UNKNOWN; anything else is
/// the caller's fault, or none. Two are told apart: a deadline that the caller made shorter than the peer may take says
/// nothing, or callers in a hurry could open the breaker for all; and a service of ours that says itself that it cannot do
/// one thing for a while is alive, and may well do others.
fn judge(answer: &Result<Answer, Status>, whole: bool) -> Outcome {
    let Err(status) = answer else {
        return Outcome::Well;
    };
    match status.code() {
        Code::DeadlineExceeded if !whole => Outcome::Unknown,
        Code::Unavailable if contract::error::is_of_a_service(status) => Outcome::Well,
        Code::Unavailable | Code::DeadlineExceeded | Code::Internal | Code::Unknown => {
            Outcome::Failed
        }
        _ => Outcome::Well,
    }
}

/// Whether the connection could not be made, so that the peer has not seen the call.
fn never_left(status: &Status) -> bool {
    let mut cause = std::error::Error::source(status);
    while let Some(error) = cause {
        if error.is::<ConnectError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// `spent`: of the call's time, before this attempt.
fn again(
    parts: &http::request::Parts,
    body: &Bytes,
    left: Duration,
    spent: Option<Duration>,
) -> http::Request<Body> {
    let mut parts = parts.clone();
    if let Some(spent) = spent {
        let micros = u64::try_from(spent.as_micros()).unwrap_or(u64::MAX);
        parts.headers.insert(deadline::SPENT, micros.into());
    }
    if let Ok(value) = HeaderValue::try_from(deadline::text(left)) {
        parts.headers.insert(GRPC_TIMEOUT, value);
    }
    http::Request::from_parts(parts, Body::new(Full::new(body.clone())))
}

/// Cancelled by the library below, and not a task that was cancelled.
fn cut_off(status: &Status) -> bool {
    status.code() == Code::Cancelled && !contract::error::is_of_a_service(status)
}

/// Not a peer's answer, but what became of the connection under the call, as where the peer stops: the library calls it cancelled, internal
/// or unknown, each of which would tell callers something else.
fn lost(status: &Status) -> bool {
    let is_own = std::error::Error::source(status).is_some();
    let code = status.code();
    cut_off(status) || is_own && matches!(code, Code::Internal | Code::Unknown)
}

/// What a caller is told of an attempt: of a connection that went away, that it did. The peer may have seen the call.
fn told(shared: &Shared, status: Status) -> Status {
    if !lost(&status) {
        return status;
    }
    let name = shared.name;
    Status::unavailable(format!("the connection to {name} went away; try again"))
}

fn unanswered(shared: &Shared, limit: Duration) -> Status {
    let name = shared.name;
    Status::deadline_exceeded(format!("{name} did not answer within {limit:?}"))
}

fn kept_back(shared: &Shared, wait: Duration) -> Status {
    metrics::kept_back(shared.name);
    let name = shared.name;
    let message =
        format!("{name} fails too often just now and is left alone for a while; try again");
    Failure::unavailable(message, wait).into()
}

fn too_late(peer: &Peer) -> Status {
    metrics::too_late();
    let name = peer.shared.name;
    let message = format!("the deadline has passed before {name} could be asked");
    Failure::new(ErrorCode::DeadlineExceeded, message).into()
}

impl Service<http::Request<Body>> for Peer {
    type Response = Answer;
    type Error = Status;
    type Future = Pin<Box<dyn Future<Output = Result<Answer, Status>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        // Each attempt waits for its channel itself, within its time.
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<Body>) -> Self::Future {
        Box::pin(self.clone().carry_out(request))
    }
}
