//! Calls that go together, and their answers one by one.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::{
    AuthenticateCall, AuthenticateEachRequest, AuthenticateRequest, AuthenticateResponse,
    authenticate_answer, authenticate_request::Proof,
};
use contract::orchestrator::orchestrator_service_client::OrchestratorServiceClient;
use contract::{Failure, orchestrator, v1};
use futures::{FutureExt as _, StreamExt as _};
use lifecycle::Tasks;
use rpc::{Answers, Asked, Gather, Peer, UnderWay};
use tonic::Request;

use super::{broken_answer, heard, submitted};
use crate::room::{self, Share, Shares};
use crate::settings::Settings;

/// Submissions on their way to the orchestrator, of which one tenant may have a share: it follows how many may be under way at all, so that
/// while the orchestrator is slow one tenant does not wait in the place of all.
#[derive(Clone)]
pub(super) struct Submissions {
    calls: Gather<orchestrator::SubmitRequest, (v1::Task, bool)>,
    shares: Arc<Shares>,
    /// Of those that may be under way.
    percent: u32,
}

/// Room for submissions that go as one, until they are answered.
#[must_use = "they are under way for as long as it lives"]
pub(crate) struct SubmissionRoom<'a> {
    under_way: UnderWay<'a>,
    share: Share,
}

impl Submissions {
    /// Room for so many of a tenant's that go as one.
    ///
    /// # Errors
    /// Unavailable when more are under way than can be answered soon; over the limit when the tenant has its share of them.
    pub(super) fn enter(&self, tenant: &str, calls: usize) -> Result<SubmissionRoom<'_>, Failure> {
        let under_way = self.calls.enter(calls)?;
        let most = room::share(self.calls.most(), self.percent);
        let calls = u32::try_from(calls.max(1)).unwrap_or(u32::MAX);
        let share = self.shares.take(tenant, "for one tenant", (calls, most))?;
        Ok(SubmissionRoom { under_way, share })
    }

    /// Submits one task of a tenant; true when it was there before.
    pub(super) async fn submit(
        &self,
        tenant: &str,
        request: orchestrator::SubmitRequest,
    ) -> Result<(v1::Task, bool), Failure> {
        let SubmissionRoom { under_way, share } = self.enter(tenant, 1)?;
        let _share = share;
        self.calls.ask_with(request, under_way).await
    }
}

/// Proofs on their way to auth.
pub(super) fn proofs(
    auth: &AuthServiceClient<Peer>,
    timeout: Duration,
    tasks: &Tasks,
) -> Gather<Proof, AuthenticateResponse> {
    let auth = auth.clone();
    let (gather, gatherer) = Gather::new("auth", timeout, move |asked: Vec<Asked<Proof>>| {
        let mut auth = auth.clone();
        let call = |one: Asked<Proof>| AuthenticateCall {
            request: Some(AuthenticateRequest {
                proof: Some(one.question),
                receipt: None,
            }),
            timeout_ms: whole_millis(one.timeout),
            traceparent: one.traceparent,
        };
        let calls = asked.into_iter().map(call).collect();
        async move {
            let answer = auth.authenticate_each(AuthenticateEachRequest { calls });
            let answers = answer.await.map_err(heard("authenticate"))?.into_inner();
            let answers = answers.map(|some| {
                let some = some.map_err(heard("authenticate"))?.answers;
                let each = some.into_iter().map(|one| (one.call, admitted(one.answer)));
                Ok(each.collect())
            });
            Ok(answers.boxed() as Answers<AuthenticateResponse>)
        }
        .boxed()
    });
    tasks.critical("proofs", async move {
        // Until nobody can ask any more: those who wait are answered, even while the gateway stops.
        gatherer.run().await;
        Ok::<(), Infallible>(())
    });
    gather
}

fn admitted(answer: Option<authenticate_answer::Answer>) -> Result<AuthenticateResponse, Failure> {
    match answer {
        Some(authenticate_answer::Answer::Admitted(admitted)) => Ok(admitted),
        Some(authenticate_answer::Answer::Refused(refusal)) => Err(refusal.into()),
        None => Err(broken_answer("no answer to a proof")),
    }
}

/// Submissions on their way to the orchestrator. `request` says whether what goes in one call may be sent twice.
pub(super) fn submissions(
    orchestrator: &OrchestratorServiceClient<Peer>,
    settings: &Settings,
    tasks: &Tasks,
    request: fn(orchestrator::SubmitEachRequest) -> Request<orchestrator::SubmitEachRequest>,
) -> Submissions {
    let orchestrator = orchestrator.clone();
    let timeout = settings.orchestrator.timeout.duration();
    let call = move |asked: Vec<Asked<orchestrator::SubmitRequest>>| {
        let mut orchestrator = orchestrator.clone();
        let call = |one: Asked<orchestrator::SubmitRequest>| orchestrator::SubmitCall {
            request: Some(one.question),
            timeout_ms: whole_millis(one.timeout),
            traceparent: one.traceparent,
        };
        let calls = asked.into_iter().map(call).collect();
        async move {
            let answer =
                orchestrator.submit_each(request(orchestrator::SubmitEachRequest { calls }));
            let answers = answer.await.map_err(heard("submit"))?.into_inner();
            let answers = answers.map(|some| {
                let some = some.map_err(heard("submit"))?.answers;
                let each = some.into_iter().map(|one| {
                    let result = one.result.and_then(|result| result.result);
                    (one.call, submitted(result))
                });
                Ok(each.collect())
            });
            Ok(answers.boxed() as Answers<(v1::Task, bool)>)
        }
        .boxed()
    };
    let (calls, gatherer) = Gather::new("orchestrator", timeout, call);
    tasks.critical("submissions", async move {
        gatherer.run().await;
        Ok::<(), Infallible>(())
    });
    Submissions {
        calls,
        shares: Arc::new(Shares::new("submissions wait for the platform")),
        percent: settings.http.tenant_share,
    }
}

/// Never more than there is, and never none.
fn whole_millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX).max(1)
}
