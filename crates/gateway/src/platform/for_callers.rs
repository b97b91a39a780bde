//! What the orchestrator does with a caller's tasks. Each call carries auth's word on whom it is for.

use std::borrow::Cow;
use std::time::Duration;

use contract::auth::{Caller, RenewAssertionRequest};
use contract::{ErrorCode, Failure, TaskId, orchestrator, v1};
use storage::Key;
use tonic::Streaming;

use super::{Found, Platform, Reader, broken_answer, heard, task_of};
use crate::auth::Admitted;

/// When those may come again whose caller auth and the orchestrator do not agree on, with a word of just now: a clock or a setting is wrong, and
/// an operator puts it right.
const AT_ODDS_WAIT: Duration = Duration::from_secs(30);

/// How long auth's having let a caller in is enough to submit for it. A revocation is in force within a second, so it may not be longer.
const NEWS: Duration = Duration::from_secs(1);

/// The caller, with another word of auth's on it than it came with.
pub(super) fn worded(caller: &Caller, assertion: String) -> Caller {
    Caller {
        tenant: caller.tenant.clone(),
        app_key: caller.app_key.clone(),
        policy: caller.policy.clone(),
        assertion,
    }
}

/// What a caller hears when the orchestrator does not take auth's word on it, new as it is.
fn at_odds(failure: Failure) -> Failure {
    if failure.code != ErrorCode::Unauthenticated {
        return failure;
    }
    tracing::warn!(%failure, "the orchestrator does not take auth's word on a caller");
    let text = "the platform's parts do not agree just now on whom the call is for; try again";
    Failure::unavailable(text, AT_ODDS_WAIT)
}

impl Platform {
    /// Calls with auth's word on the caller, and once more with a new one if that is refused, before anything was done: what a caller has
    /// begun may go on for longer than the word that it began with is good. If that is refused, too, it is no fault of a caller that auth has
    /// just let in.
    pub(super) async fn with_word<T, F>(
        &self,
        caller: &Caller,
        call: impl Fn(String) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        match call(caller.assertion.clone()).await {
            Err(failure) if failure.code == ErrorCode::Unauthenticated => {
                tracing::debug!(%failure, "a caller's assertion is renewed");
                // In a box: hardly any call needs it.
                let again = async { call(self.renew(caller).await?).await.map_err(at_odds) };
                Box::pin(again).await
            }
            answer => answer,
        }
    }

    /// The caller of a submission that begins now. A body, pictures by URL and a stream's first request may come long after auth has let their
    /// caller in, so it is asked again then whether the key is good; of what comes at once it is not.
    ///
    /// # Errors
    /// As [`Self::renew`].
    pub(crate) async fn still_admitted<'a>(
        &self,
        admitted: &'a Admitted,
    ) -> Result<Cow<'a, Admitted>, Failure> {
        if admitted.ago() < NEWS {
            return Ok(Cow::Borrowed(admitted));
        }
        // In a box: most are quick.
        let assertion = Box::pin(self.renew(admitted)).await?;
        Ok(Cow::Owned(Admitted::now(worded(admitted, assertion))))
    }

    /// Another word of auth's on a caller that it has let in some time ago.
    ///
    /// # Errors
    /// Unauthenticated when its key was revoked meanwhile.
    pub(crate) async fn renew(&self, caller: &Caller) -> Result<String, Failure> {
        let request = rpc::idempotent(RenewAssertionRequest {
            assertion: caller.assertion.clone(),
        });
        let answer = self.auth.clone().renew_assertion(request).await;
        let answer = answer.map_err(heard("renew_assertion"))?;
        Ok(answer.into_inner().assertion)
    }

    /// Reads one task.
    pub(crate) async fn get(&self, caller: &Caller, task: TaskId) -> Result<v1::Task, Failure> {
        self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = rpc::idempotent(orchestrator::GetRequest {
                tenant: caller.tenant.clone(),
                task_id: task.to_string(),
                assertion,
            });
            async move {
                let answer = orchestrator.get(request).await;
                task_of(answer.map_err(heard("get"))?.into_inner().task)
            }
        })
        .await
    }

    /// Ends a task as cancelled unless it has ended.
    pub(crate) async fn cancel(
        &self,
        caller: &Caller,
        task: TaskId,
        reason: &str,
    ) -> Result<v1::Task, Failure> {
        self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = rpc::idempotent(orchestrator::CancelRequest {
                tenant: caller.tenant.clone(),
                task_id: task.to_string(),
                reason: reason.to_owned(),
                assertion,
            });
            async move {
                let answer = orchestrator.cancel(request).await;
                task_of(answer.map_err(heard("cancel"))?.into_inner().task)
            }
        })
        .await
    }

    /// Keeps what a caller says of its pictures.
    pub(crate) async fn feedback(
        &self,
        caller: &Caller,
        task: TaskId,
        feedback: v1::Feedback,
    ) -> Result<v1::Task, Failure> {
        self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = rpc::idempotent(orchestrator::FeedbackRequest {
                tenant: caller.tenant.clone(),
                task_id: task.to_string(),
                feedback: Some(feedback.clone()),
                assertion,
            });
            async move {
                let answer = orchestrator.feedback(request).await;
                task_of(answer.map_err(heard("feedback"))?.into_inner().task)
            }
        })
        .await
    }

    /// Reads one page of a caller's tenant's tasks.
    pub(crate) async fn list(
        &self,
        caller: &Caller,
        page: v1::ListRequest,
    ) -> Result<v1::ListResponse, Failure> {
        let request = orchestrator::ListRequest {
            tenant: caller.tenant.clone(),
            page_size: page.page_size,
            page_token: page.page_token,
            phase: page.phase,
            model: page.model,
            created_after: page.created_after,
            created_before: page.created_before,
            phases: page.phases,
            assertion: String::new(),
        };
        self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = rpc::idempotent(orchestrator::ListRequest {
                assertion,
                ..request.clone()
            });
            async move {
                let answer = orchestrator.list(request).await;
                let answer = answer.map_err(heard("list"))?.into_inner();
                Ok(v1::ListResponse {
                    tasks: answer.tasks,
                    next_page_token: answer.next_page_token,
                })
            }
        })
        .await
    }

    /// Opens the stream of a task's events once.
    pub(crate) async fn watch(
        &self,
        caller: &Caller,
        task: TaskId,
        previews: bool,
    ) -> Result<Streaming<orchestrator::WatchResponse>, Failure> {
        self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = rpc::streaming(orchestrator::WatchRequest {
                tenant: caller.tenant.clone(),
                task_id: task.to_string(),
                previews,
                assertion,
            });
            async move {
                let answer = orchestrator.watch(request).await;
                Ok(answer.map_err(heard("watch"))?.into_inner())
            }
        })
        .await
    }

    /// Finds one picture of a task that has succeeded. The store is not asked.
    pub(crate) async fn find_picture(
        &self,
        reader: Reader<'_>,
        task: TaskId,
        index: u32,
    ) -> Result<Found, Failure> {
        let request = orchestrator::ResolveImageRequest {
            task_id: task.to_string(),
            index,
            ..Default::default()
        };
        match reader {
            Reader::Tenant(caller) => {
                let request = orchestrator::ResolveImageRequest {
                    tenant: caller.tenant.clone(),
                    ..request
                };
                self.with_word(caller, |assertion| {
                    self.resolve(orchestrator::ResolveImageRequest {
                        assertion,
                        ..request.clone()
                    })
                })
                .await
            }
            // The token is all that is needed.
            Reader::Token(token) => {
                let access_token = token.to_owned();
                self.resolve(orchestrator::ResolveImageRequest {
                    access_token,
                    ..request
                })
                .await
            }
        }
    }

    async fn resolve(&self, request: orchestrator::ResolveImageRequest) -> Result<Found, Failure> {
        let request = rpc::idempotent(request);
        let answer = self.orchestrator.clone().resolve_image(request).await;
        let answer = answer.map_err(heard("resolve_image"))?.into_inner();
        let (Some(info), Some(key)) = (answer.info, Key::stored(&answer.key)) else {
            return Err(broken_answer("a picture without a place"));
        };
        Ok(Found { info, key })
    }

    /// How the orchestrator answers when it is asked for what nobody has: it has looked.
    pub(crate) async fn probe_orchestrator(&self) -> Result<(), Failure> {
        // By a token, because there is no caller.
        let nothing = Reader::Token("probe");
        match self.find_picture(nothing, TaskId::random(), 0).await {
            Err(failure) if failure.code != ErrorCode::TaskNotFound => Err(failure),
            Ok(_) | Err(_) => Ok(()),
        }
    }
}
