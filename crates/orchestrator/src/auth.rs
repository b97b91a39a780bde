//! What auth does for us: it vouches for producers, signs what webhooks are told, and publishes what it signs its word on callers with.

use std::convert::Infallible;
use std::time::Duration;

use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::authenticate_request::Proof;
use contract::auth::{
    AuthenticateCall, AuthenticateMessagesRequest, AuthenticateRequest, Caller,
    ListTokenKeysRequest, ListTokenKeysResponse, Receipt, SignWebhookRequest, VouchRequest,
    authenticate_answer,
};
use contract::{ErrorCode, Failure};
use futures::{FutureExt as _, StreamExt as _};
use lifecycle::Tasks;
use rpc::{Answers, Asked, Gather, Peer};

/// Auth, behind its breaker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auth {
    client: AuthServiceClient<Peer>,
    /// Messages' proofs on their way to it.
    proofs: Gather<Shown, Caller>,
}

/// A message's proof, and what we know of the message.
pub(crate) type Shown = (Proof, Receipt);

impl Auth {
    /// `timeout` is for one call; what calls runs in `tasks`.
    pub(crate) fn new(peer: Peer, timeout: Duration, tasks: &Tasks) -> Self {
        let client = rpc::with_limits!(AuthServiceClient::new(peer));
        let proofs = gather(&client, timeout, tasks);
        Self { client, proofs }
    }

    /// Who shows this proof.
    pub(crate) async fn authenticate(&self, shown: Shown) -> Result<Caller, Failure> {
        // As many as are taken from the stream at once, and no more.
        self.proofs.ask_in_any_case(shown).await
    }

    /// What a key may do that was proven before.
    pub(crate) async fn vouch(&self, app_key: &str, tenant: &str) -> Result<Caller, Failure> {
        let request = VouchRequest {
            app_key: app_key.to_owned(),
            tenant: tenant.to_owned(),
        };
        let mut client = self.client.clone();
        let answer = client.vouch(rpc::idempotent(request)).await?;
        answer.into_inner().caller.ok_or_else(no_caller)
    }

    /// The public keys of what it signs, as far as the instance that answers has them.
    pub(crate) async fn token_keys(&self) -> Result<ListTokenKeysResponse, Failure> {
        let request = rpc::idempotent(ListTokenKeysRequest {});
        let answer = self.client.clone().list_token_keys(request).await?;
        Ok(answer.into_inner())
    }

    /// The signature of a webhook.
    pub(crate) async fn sign_webhook(
        &self,
        request: SignWebhookRequest,
    ) -> Result<String, Failure> {
        let mut client = self.client.clone();
        let answer = client.sign_webhook(rpc::idempotent(request)).await?;
        Ok(answer.into_inner().signature)
    }
}

fn gather(
    client: &AuthServiceClient<Peer>,
    timeout: Duration,
    tasks: &Tasks,
) -> Gather<Shown, Caller> {
    let client = client.clone();
    let (gather, gatherer) = Gather::new("auth", timeout, move |asked: Vec<Asked<Shown>>| {
        let mut client = client.clone();
        let calls = asked.into_iter().map(encode_call).collect();
        async move {
            let asked = AuthenticateMessagesRequest { calls };
            let answers = client.authenticate_messages(asked).await?.into_inner();
            let answers = answers.map(|some| {
                let each = some?.answers.into_iter();
                Ok(each.map(|one| (one.call, caller(one.answer))).collect())
            });
            Ok(answers.boxed() as Answers<Caller>)
        }
        .boxed()
    });
    tasks.critical("proofs", async move {
        gatherer.run().await;
        Ok::<(), Infallible>(())
    });
    gather
}

fn encode_call(asked: Asked<Shown>) -> AuthenticateCall {
    let (proof, receipt) = asked.question;
    let timeout = u32::try_from(asked.timeout.as_millis()).unwrap_or(u32::MAX);
    AuthenticateCall {
        request: Some(AuthenticateRequest {
            proof: Some(proof),
            receipt: Some(receipt),
        }),
        timeout_ms: timeout.max(1),
        traceparent: asked.traceparent,
    }
}

fn caller(answer: Option<authenticate_answer::Answer>) -> Result<Caller, Failure> {
    let caller = match answer {
        Some(authenticate_answer::Answer::Admitted(admitted)) => admitted.caller,
        Some(authenticate_answer::Answer::Refused(refusal)) => return Err(refusal.into()),
        None => None,
    };
    caller.ok_or_else(no_caller)
}

fn no_caller() -> Failure {
    tracing::error!("auth answered without a caller");
    let text = "a part of the platform gave an answer that makes no sense";
    Failure::new(ErrorCode::Internal, text)
}
