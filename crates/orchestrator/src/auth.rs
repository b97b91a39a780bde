//! What auth does for us: it vouches for producers, and signs what webhooks are told.

use std::time::SystemTime;

use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::authenticate_request::Proof;
use contract::auth::{AuthenticateRequest, Caller, Receipt, SignWebhookRequest};
use contract::{ErrorCode, Failure};
use rpc::Peer;

/// Auth, behind its breaker. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Auth(AuthServiceClient<Peer>);

impl Auth {
    pub(crate) fn new(peer: Peer) -> Self {
        Self(rpc::with_limits!(AuthServiceClient::new(peer)))
    }

    /// Who shows this proof, which the broker took at `taken`; charged as one request. `claim` is the message's own: shown again with
    /// it, a nonce is no replay.
    pub(crate) async fn authenticate(
        &self,
        proof: Proof,
        taken: SystemTime,
        claim: String,
    ) -> Result<Caller, Failure> {
        let at = Some(taken.into());
        let request = AuthenticateRequest {
            proof: Some(proof),
            receipt: Some(Receipt { at, claim }),
        };
        let answer = self.0.clone().authenticate(request).await?.into_inner();
        answer.caller.ok_or_else(|| {
            tracing::error!("auth answered without a caller");
            let text = "a part of the platform gave an answer that makes no sense";
            Failure::new(ErrorCode::Internal, text)
        })
    }

    /// The signature of a webhook.
    pub(crate) async fn sign_webhook(
        &self,
        request: SignWebhookRequest,
    ) -> Result<String, Failure> {
        let request = rpc::idempotent(request);
        Ok(self
            .0
            .clone()
            .sign_webhook(request)
            .await?
            .into_inner()
            .signature)
    }
}
