//! Serving: the deadline of each call around its work.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use tonic::Status;
use tonic::body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::{deadline, metrics};

/// Puts each call's work under its caller's deadline, and drops the work when that has passed. For a call that streams, the
/// deadline holds until its answer begins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Deadlines;

impl<S> Layer<S> for Deadlines {
    type Service = UnderDeadline<S>;

    fn layer(&self, inner: S) -> UnderDeadline<S> {
        UnderDeadline { inner }
    }
}

/// See [`Deadlines`].
#[derive(Debug, Clone)]
pub(crate) struct UnderDeadline<S> {
    inner: S,
}

impl<S> Service<http::Request<Body>> for UnderDeadline<S>
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
        let limit = request.headers().get("grpc-timeout");
        let limit = limit.and_then(|v| deadline::parse(v.to_str().ok()?));
        let spent = request.headers().get(deadline::SPENT);
        let spent = spent.and_then(deadline::parse_spent).unwrap_or_default();
        let work = deadline::sent_again(spent, self.inner.call(request));
        let Some(limit) = limit else {
            return Box::pin(work);
        };
        Box::pin(async move {
            let work = deadline::within(limit, work);
            // A timer that is due at once is heard before the work is: what comes too late is not begun.
            match tokio::time::timeout(limit, async {
                if limit.is_zero() {
                    std::future::pending::<()>().await;
                }
                work.await
            })
            .await
            {
                Ok(answer) => answer,
                Err(_) => Ok(too_late(limit).into_http()),
            }
        })
    }
}

fn too_late(limit: Duration) -> Status {
    metrics::too_late();
    let message = format!("the caller's deadline of {limit:?} has passed");
    Failure::new(ErrorCode::DeadlineExceeded, message).into()
}
