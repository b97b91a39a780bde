//! Who calls: the proof out of the headers, auth's word on it, and the caller's rate limit in every answer.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, Method, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use contract::auth::{Caller, RateLimit, authenticate_request::Proof};
use contract::proof::{Proven, SignedBody};
use contract::{ErrorCode, Failure};
use tokio::time::Instant;
use tonic::Status;

use crate::body_room::Sender;
use crate::crowd::Network;
use crate::edge::Edge;
use crate::problem::{Refused, whole_seconds};
use crate::room::Class;
use crate::signed_body;
use crate::unread::Addressee;

const LIMIT: HeaderName = HeaderName::from_static("ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("ratelimit-reset");

/// A caller that auth has let in, and when: what it sends may arrive long after that, and its key be revoked meanwhile.
#[derive(Clone)]
pub(crate) struct Admitted {
    caller: Caller,
    at: Instant,
}

impl Admitted {
    /// Auth has just said so.
    pub(crate) fn now(caller: Caller) -> Self {
        let at = Instant::now();
        Self { caller, at }
    }

    /// How long ago that was.
    pub(crate) fn ago(&self) -> Duration {
        self.at.elapsed()
    }
}

impl Deref for Admitted {
    type Target = Caller;

    fn deref(&self) -> &Caller {
        &self.caller
    }
}

/// Lets a request through once auth has vouched for its caller, and says in the answer what is left of the limit. A body
/// that was signed goes on only if it is the one that was signed.
pub(crate) async fn authenticate(
    State(edge): State<Arc<Edge>>,
    request: Request,
    next: Next,
) -> Response {
    let proof = match proven(&request) {
        Ok(proof) => proof,
        Err(failure) => return refuse(failure),
    };
    // Every route that leads here has taken a place first and knows its class; one that had not would be taken for what costs most.
    let class = request.extensions().get::<Class>().copied();
    let class = class.unwrap_or(Class::Generation);
    let from = request.extensions().get::<Network>().copied();
    let known = identify(&edge, proof.proof, class, from).await;
    let (caller, limit) = match known {
        Ok((caller, limit)) => (Admitted::now(caller), limit),
        Err(failure) => return refuse(failure),
    };
    let to = Addressee::Tenant(caller.tenant.as_str().into());
    let mut response = match serve(&edge, caller, request, proof.body, next).await {
        Ok(response) => response,
        Err(failure) => refuse(failure),
    };
    tell_limit(&mut response, limit);
    response.extensions_mut().insert(to);
    response
}

/// What a known caller asks for: within what its tenant may have under way and unread, and with the body that it has signed.
async fn serve(
    edge: &Edge,
    caller: Admitted,
    request: Request,
    body: Option<SignedBody>,
    next: Next,
) -> Result<Response, Failure> {
    edge.unread.admit_tenant(&caller.tenant)?;
    if let Some(sender) = request.extensions().get::<Sender>() {
        sender.is(&caller.tenant);
    }
    // Where its place was taken.
    let class = request.extensions().get::<Class>().copied();
    let share = class.map(|class| edge.room(class).share(&caller.tenant));
    let _share = share.transpose()?;
    let mut request = signed_body::check(edge, &caller.tenant, request, body).await?;
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

/// Says in an answer what is left of the limit that its caller has, or of the one that refused.
fn tell_limit(response: &mut Response, limit: Option<RateLimit>) {
    // Of a handler that charged more, what it was told last counts; and whoever was refused for the limit has nothing left.
    let later = response.extensions_mut().remove::<Option<RateLimit>>();
    let over = failure_in(response).as_ref().and_then(over_limit);
    write_limit(response.headers_mut(), later.flatten().or(limit));
    write_over(response.headers_mut(), over);
}

/// Why a response refuses: a handler's over HTTP is not in words yet, and one's over gRPC is a status already.
fn failure_in(response: &Response) -> Option<Failure> {
    if let Some(Refused(failure)) = response.extensions().get::<Refused>() {
        return Some(failure.clone());
    }
    let status = response.extensions().get::<Status>();
    // The library has statuses of its own, which are about other limits.
    let status = status.filter(|status| contract::error::is_of_a_service(status));
    status.cloned().map(Failure::from)
}

/// What a caller is told that is over its limit, or at the end of its day.
struct Over {
    /// Before a request of its passes.
    wait: Duration,
    /// Requests a second, or how many at once, if it is one of these limits.
    limit: Option<u32>,
}

/// Too many tasks that wait are another matter: the caller's requests pass.
fn over_limit(failure: &Failure) -> Option<Over> {
    let is_over = matches!(
        failure.code,
        ErrorCode::RateLimited | ErrorCode::QuotaExceeded
    );
    is_over.then(|| Over {
        wait: failure.retry_after.unwrap_or(Duration::from_secs(1)),
        limit: failure.rate_limit,
    })
}

fn write_over(headers: &mut HeaderMap, over: Option<Over>) {
    let Some(Over { wait, limit }) = over else {
        return;
    };
    // All three speak of the limit that was reached: beside another one the key's rate would be taken for it.
    match limit {
        Some(limit) => headers.insert(LIMIT, limit.into()),
        None => headers.remove(LIMIT),
    };
    headers.insert(REMAINING, 0.into());
    headers.insert(RESET, whole_seconds(wait).max(1).into());
}

/// Asks auth whose proof this is, within what its address may ask at once.
pub(crate) async fn identify(
    edge: &Edge,
    proof: Proof,
    class: Class,
    from: Option<Network>,
) -> Result<(Caller, Option<RateLimit>), Failure> {
    let _share = edge.stranger(class, from)?;
    let answer = edge.platform.authenticate(proof, class).await?;
    match answer.caller {
        Some(caller) => Ok((caller, answer.rate_limit)),
        None => {
            tracing::error!("auth answered without a caller");
            let message = "a part of the platform gave an answer that makes no sense";
            Err(Failure::new(ErrorCode::Internal, message))
        }
    }
}

/// What a request's head shows of its caller. The body is not touched.
///
/// # Errors
/// Unauthenticated, with the ways there are.
pub(crate) fn proven<B>(request: &axum::http::Request<B>) -> Result<Proven, Failure> {
    proven_by(request.method(), request.uri(), request.headers())
}

/// The same from the parts of a head.
pub(crate) fn proven_by(
    method: &Method,
    uri: &Uri,
    headers: &HeaderMap,
) -> Result<Proven, Failure> {
    let query = uri.query().unwrap_or_default();
    Proven::read([method.as_str(), uri.path(), query], headers)
}

/// The proof of a call whose head and body are no longer at hand as they were signed: a message of a stream, or one that was
/// decoded already.
///
/// # Errors
/// As [`proven`]; and a signature over the whole request, which cannot be checked here.
pub(crate) fn proof_of_message(headers: &HeaderMap) -> Result<Proof, Failure> {
    match proven_by(&Method::POST, &Uri::from_static("/"), headers)?.proof {
        Proof::SignatureV2(_) => {
            let message = "signature v2 signs a whole body, and a stream of requests has none: send a key or a token as \
                           Authorization: Bearer";
            Err(Failure::new(ErrorCode::Unauthenticated, message))
        }
        proof => Ok(proof),
    }
}

/// The refusal of a caller; over the limit, with what is left of it: nothing.
pub(crate) fn refuse(failure: Failure) -> Response {
    let over = over_limit(&failure);
    let mut response = Refused(failure).into_response();
    write_over(response.headers_mut(), over);
    response
}

/// Says in an answer what is left of the caller's limit.
pub(crate) fn write_limit(headers: &mut HeaderMap, limit: Option<RateLimit>) {
    let Some(limit) = limit else { return };
    headers.insert(LIMIT, limit.limit.into());
    headers.insert(REMAINING, limit.remaining.into());
    let reset = whole_seconds(Duration::from_millis(limit.reset_ms));
    headers.insert(RESET, reset.into());
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::room::Room;

    #[test]
    fn over_the_limit_the_answer_says_how_long() {
        let failure = Failure {
            retry_after: Some(Duration::from_millis(2500)),
            rate_limit: Some(5),
            ..Failure::new(ErrorCode::RateLimited, "over 5 requests a second")
        };
        let response = refuse(failure);
        assert_eq!(response.headers()["ratelimit-limit"], "5");
        assert_eq!(response.headers()["ratelimit-remaining"], "0");
        assert_eq!(response.headers()["ratelimit-reset"], "3");
    }

    #[test]
    fn at_the_end_of_a_day_nothing_remains_and_while_tasks_wait_requests_do() {
        let refused = |code| {
            let wait = Some(Duration::from_millis(5400));
            refuse(Failure {
                retry_after: wait,
                ..Failure::new(code, "no")
            })
        };
        let response = refused(ErrorCode::QuotaExceeded);
        assert_eq!(response.headers()["ratelimit-reset"], "6");
        let response = refused(ErrorCode::TooManyTasks);
        assert!(!response.headers().contains_key("ratelimit-remaining"));
    }

    #[test]
    fn of_a_refusal_all_three_headers_speak_of_the_limit_that_was_reached() {
        let told = |failure: Failure| {
            let over_grpc: Response = Status::from(failure.clone()).into_http();
            let [http, grpc] = [Refused(failure).into_response(), over_grpc].map(|mut response| {
                // As every answer to this caller says.
                let rate = RateLimit {
                    limit: 50,
                    remaining: 49,
                    reset_ms: 20,
                };
                tell_limit(&mut response, Some(rate));
                [LIMIT, REMAINING, RESET].map(|name| {
                    let value = response.headers().get(name)?.to_str().unwrap();
                    Some(value.to_owned())
                })
            });
            assert_eq!(http, grpc);
            grpc
        };
        let some = |value: &str| Some(value.to_owned());
        let room = Room::new("things are done", 4, 50);
        let _held = (room.share("a").unwrap(), room.share("a").unwrap());
        let share = told(room.share("a").unwrap_err());
        assert_eq!(share, [some("2"), some("0"), some("1")]);
        let day = told(Failure {
            retry_after: Some(Duration::from_secs(60)),
            ..Failure::new(ErrorCode::QuotaExceeded, "no")
        });
        assert_eq!(day, [None, some("0"), some("60")]);
        let waiting = told(Failure::new(ErrorCode::TooManyTasks, "no"));
        assert_eq!(waiting, [some("50"), some("49"), some("1")]);
        // Of the library's own, which knows nothing of our limits.
        let mut answer: Response = Status::resource_exhausted("no").into_http();
        tell_limit(&mut answer, None);
        assert!(!answer.headers().contains_key(REMAINING));
    }
}
