//! Decode, call, encode; and the one place where our errors get their codes.

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use contract::auth::auth_service_server::{AuthService, AuthServiceServer};
use contract::auth::authenticate_request::Proof as ProofMessage;
use contract::auth::{
    AuthenticateAnswer, AuthenticateCall, AuthenticateEachRequest, AuthenticateEachResponse,
    AuthenticateMessagesRequest, AuthenticateMessagesResponse, AuthenticateRequest,
    AuthenticateResponse, Caller, ChargeRequest, ChargeResponse, IssueTokenRequest,
    IssueTokenResponse, ListTokenKeysRequest, ListTokenKeysResponse, RateLimit,
    RenewAssertionRequest, RenewAssertionResponse, SignWebhookRequest, SignWebhookResponse,
    TokenKey, VouchRequest, VouchResponse, authenticate_answer,
};
use contract::limits::MAX_BATCH_TASKS;
use contract::proof::is_token;
use contract::{AppKey, ErrorCode, Failure};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use jiff::Timestamp;
use rpc::Asked;
use secrecy::ExposeSecret as _;
use tonic::service::Routes;
use tonic::{Request, Response, Status};

use crate::admin::AdminToken;
use crate::authenticate::{Admitted, Authenticator};
use crate::error::{AuthError, millis_up};
use crate::key_encryption::KeyEncryptionError;
use crate::keys::{self, Keys};
use crate::keys_grpc;
use crate::limit::Allowance;
use crate::metrics;
use crate::policies::Policies;
use crate::policies_grpc;
use crate::policy::{self, PolicyRecord};
use crate::proof::{Proof, SignatureV1};
use crate::receipt::{Claim, Receipt};
use crate::signature_v2::SignatureV2;
use crate::tokens::{Assertions, LOOK, PublicKey, Tokens};
use crate::webhook::Message;

/// What a caller is told to wait when the broker does not do its part.
const RETRY_STORE: Duration = Duration::from_secs(1);

/// All services, to be served on one address.
pub(crate) fn routes(
    authenticator: Arc<Authenticator>,
    tokens: Arc<Tokens>,
    keys: Keys,
    policies: Policies,
    admin: AdminToken,
) -> Routes {
    let admin = Arc::new(admin);
    let policies = policies_grpc::server(policies, admin.clone());
    let auth = AuthServiceServer::new(AuthGrpc {
        authenticator,
        assertions: Arc::new(Assertions::new(tokens.clone())),
        tokens,
    });
    let keys = keys_grpc::server(keys, admin);
    Routes::new(rpc::with_limits!(auth))
        .add_service(rpc::with_limits!(keys))
        .add_service(rpc::with_limits!(policies))
}

type Answers<R> = BoxStream<'static, Result<R, Status>>;

struct AuthGrpc {
    authenticator: Arc<Authenticator>,
    /// For services that verify whom calls are for.
    assertions: Arc<Assertions>,
    tokens: Arc<Tokens>,
}

#[tonic::async_trait]
impl AuthService for AuthGrpc {
    type AuthenticateEachStream = Answers<AuthenticateEachResponse>;
    type AuthenticateMessagesStream = Answers<AuthenticateMessagesResponse>;

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let proof = proof_alone(Some(request.into_inner())).map_err(status)?;
        let admitted = admit(&self.authenticator, proof.as_ref(), None).await;
        let answer = admitted.and_then(|one| encode_admitted(one, Some(&self.assertions)));
        Ok(Response::new(answer.map_err(status)?))
    }

    async fn vouch(
        &self,
        request: Request<VouchRequest>,
    ) -> Result<Response<VouchResponse>, Status> {
        let VouchRequest { app_key, tenant } = request.into_inner();
        let app_key = keys::app_key(&app_key).map_err(status)?;
        let tenant = keys::tenant(&tenant).map_err(status)?;
        let vouched = self.authenticator.vouch(app_key, tenant);
        let caller = Some(vouched.map_err(status)?);
        Ok(Response::new(VouchResponse { caller }))
    }

    async fn renew_assertion(
        &self,
        request: Request<RenewAssertionRequest>,
    ) -> Result<Response<RenewAssertionResponse>, Status> {
        let claims = self.assertions.read(&request.into_inner().assertion);
        let claims = claims.map_err(status)?;
        let (app_key, tenant) = (claims.sub, claims.tenant);
        let known = self.authenticator.vouch(app_key.clone(), tenant.clone());
        let known = known.map_err(|error| match error {
            // As a revoked key is refused everywhere.
            AuthError::NoSuchKey { .. } => AuthError::NotValid {
                header: "Authorization",
            },
            error => error,
        });
        let policy = known.map_err(status)?.policy.unwrap_or_default();
        let assertion = self.assertions.of(&app_key, &tenant, &policy);
        let assertion = assertion.map_err(status)?;
        Ok(Response::new(RenewAssertionResponse { assertion }))
    }

    async fn sign_webhook(
        &self,
        request: Request<SignWebhookRequest>,
    ) -> Result<Response<SignWebhookResponse>, Status> {
        let request = request.into_inner();
        let app_key = keys::app_key(&request.app_key).map_err(status)?;
        let tenant = keys::tenant(&request.tenant).map_err(status)?;
        let message = Message {
            id: request.message_id,
            timestamp: request.timestamp,
            body: request.body,
        };
        let signed = self.authenticator.sign_webhook(&app_key, &tenant, &message);
        let signature = signed.await.map_err(status)?;
        Ok(Response::new(SignWebhookResponse { signature }))
    }

    async fn authenticate_each(
        &self,
        request: Request<AuthenticateEachRequest>,
    ) -> Result<Response<Self::AuthenticateEachStream>, Status> {
        let read = |request| Ok((proof_alone(request)?, None));
        let calls = request.into_inner().calls;
        let answer = |answers| AuthenticateEachResponse { answers };
        let assertions = Some(self.assertions.clone());
        self.each("AuthenticateEach", calls, read, answer, assertions)
            .await
    }

    async fn authenticate_messages(
        &self,
        request: Request<AuthenticateMessagesRequest>,
    ) -> Result<Response<Self::AuthenticateMessagesStream>, Status> {
        let read = |request| {
            let AuthenticateRequest { proof, receipt } = Option::unwrap_or_default(request);
            let receipt = receipt.ok_or_else(|| invalid("receipt", "is missing"))?;
            let receipt = decode_receipt(receipt)?;
            Ok((proof.map(decode_proof), Some(receipt)))
        };
        let calls = request.into_inner().calls;
        let answer = |answers| AuthenticateMessagesResponse { answers };
        // Whoever asks goes by this answer itself.
        self.each("AuthenticateMessages", calls, read, answer, None)
            .await
    }

    async fn issue_token(
        &self,
        request: Request<IssueTokenRequest>,
    ) -> Result<Response<IssueTokenResponse>, Status> {
        let request = request.into_inner();
        let proof = proof_alone(request.caller).map_err(status)?;
        if matches!(proof, Some(Proof::Token(_))) {
            return Err(status(AuthError::TokenForToken));
        }
        let Admitted {
            key,
            policy,
            allowance,
            ..
        } = admit(&self.authenticator, proof.as_ref(), None)
            .await
            .map_err(status)?;
        let asked = request.lifetime_seconds;
        let asked = (asked > 0).then(|| Duration::from_secs(asked.into()));
        let issued = self.tokens.issue(&key.app_key, &key.tenant, asked);
        let issued = issued.map_err(status)?;
        Ok(Response::new(IssueTokenResponse {
            token: issued.token.expose_secret().to_owned(),
            // A day at most, by the settings.
            lifetime_seconds: u32::try_from(issued.lifetime.as_secs()).unwrap_or(u32::MAX),
            rate_limit: Some(encode_limit(&policy, allowance)),
        }))
    }

    async fn list_token_keys(
        &self,
        _: Request<ListTokenKeysRequest>,
    ) -> Result<Response<ListTokenKeysResponse>, Status> {
        let ring = self.tokens.ring.borrow().clone();
        let key = |(generation, PublicKey { kid, x })| TokenKey { kid, x, generation };
        Ok(Response::new(ListTokenKeysResponse {
            keys: ring.public().into_iter().map(key).collect(),
            unopened: ring.unopened.clone(),
        }))
    }

    async fn charge(
        &self,
        request: Request<ChargeRequest>,
    ) -> Result<Response<ChargeResponse>, Status> {
        let (app_key, requests) = decode_charge(request.into_inner()).map_err(status)?;
        let charged = self.authenticator.charge(&app_key, requests);
        let (policy, allowance) = charged.map_err(status)?;
        Ok(Response::new(ChargeResponse {
            rate_limit: Some(encode_limit(&policy, allowance)),
        }))
    }
}

/// A call's proof and when it came, or why it cannot be read.
type Shown = Result<(Option<Proof>, Option<Receipt>), AuthError>;

impl AuthGrpc {
    /// Answers each of many calls, which `read` reads, in messages that `message` makes of answers; with assertions, where there are to be any.
    async fn each<R: Send + 'static>(
        &self,
        path: &'static str,
        calls: Vec<AuthenticateCall>,
        read: fn(Option<AuthenticateRequest>) -> Shown,
        message: fn(Vec<AuthenticateAnswer>) -> R,
        assertions: Option<Arc<Assertions>>,
    ) -> Result<Response<Answers<R>>, Status> {
        let decode = |call: AuthenticateCall| Asked {
            question: read(call.request),
            timeout: Duration::from_millis(call.timeout_ms.into()),
            traceparent: call.traceparent,
        };
        let calls = calls.into_iter().map(decode);
        let authenticator = self.authenticator.clone();
        let answers = rpc::each(path, calls.collect(), move |shown: Shown| {
            let (authenticator, assertions) = (authenticator.clone(), assertions.clone());
            async move {
                let (proof, receipt) = shown.map_err(told)?;
                let admitted = admit(&authenticator, proof.as_ref(), receipt.as_ref()).await;
                let answer = admitted.and_then(|one| encode_admitted(one, assertions.as_deref()));
                answer.map_err(told)
            }
        });
        let answers = answers.await?.map(move |some| {
            let answers = some.into_iter().map(encode_answer).collect();
            Ok(message(answers))
        });
        Ok(Response::new(answers.boxed()))
    }
}

/// The proof of a request that comes just now, and so without a receipt.
fn proof_alone(request: Option<AuthenticateRequest>) -> Result<Option<Proof>, AuthError> {
    let AuthenticateRequest { proof, receipt } = request.unwrap_or_default();
    if receipt.is_some() {
        return Err(invalid("receipt", "is for messages of the broker only"));
    }
    Ok(proof.map(decode_proof))
}

fn invalid(field: &'static str, problem: &str) -> AuthError {
    AuthError::Invalid {
        field,
        problem: problem.to_owned(),
    }
}

/// Authenticates and counts it; with a receipt, as of then.
async fn admit(
    authenticator: &Authenticator,
    proof: Option<&Proof>,
    receipt: Option<&Receipt>,
) -> Result<Admitted, AuthError> {
    let began = Instant::now();
    let outcome = match (proof, receipt) {
        (Some(proof), None) => authenticator.authenticate(proof).await,
        (Some(proof), Some(receipt)) => authenticator.authenticate_as_of(proof, receipt).await,
        (None, _) => Err(AuthError::NoProof),
    };
    metrics::authenticated(
        proof.map_or("none", Proof::kind),
        outcome
            .as_ref()
            .map_or_else(AuthError::outcome, |_| "admitted"),
        began.elapsed(),
    );
    outcome
}

fn decode_receipt(message: contract::auth::Receipt) -> Result<Receipt, AuthError> {
    let at = message.at.unwrap_or_default();
    let at = Timestamp::new(at.seconds, at.nanos);
    Ok(Receipt {
        at: at.map_err(|_| invalid("receipt", "is of no time"))?,
        claim: Claim::new(&message.claim)?,
        tenant: Some(keys::tenant(&message.tenant)?),
        charged: message.charged,
    })
}

fn encode_answer(
    (call, answer): (u32, Result<AuthenticateResponse, Failure>),
) -> AuthenticateAnswer {
    let answer = match answer {
        Ok(admitted) => authenticate_answer::Answer::Admitted(admitted),
        Err(failure) => authenticate_answer::Answer::Refused(failure.into()),
    };
    let answer = Some(answer);
    AuthenticateAnswer { call, answer }
}

fn decode_charge(message: ChargeRequest) -> Result<(AppKey, NonZeroU32), AuthError> {
    let app_key = message.app_key.parse();
    let app_key = app_key.map_err(|_| invalid("app_key", "is no key"))?;
    let requests = NonZeroU32::new(message.requests)
        .filter(|requests| requests.get() as usize <= MAX_BATCH_TASKS)
        .ok_or_else(|| invalid("requests", "must be 1 to 100"))?;
    Ok((app_key, requests))
}

fn decode_proof(message: ProofMessage) -> Proof {
    match message {
        ProofMessage::SignatureV1(message) => Proof::SignatureV1(SignatureV1 {
            app_key: message.app_key,
            timestamp: message.timestamp,
            signature: message.signature,
        }),
        ProofMessage::SignatureV2(message) => Proof::SignatureV2(SignatureV2 {
            app_key: message.app_key,
            timestamp: message.timestamp,
            nonce: message.nonce,
            content_sha256: message.content_sha256,
            signature: message.signature,
            method: message.method,
            path: message.path,
            query: message.query,
        }),
        ProofMessage::Bearer(text) if is_token(&text) => Proof::Token(text.into()),
        ProofMessage::Bearer(text) => Proof::Bearer(text.into()),
    }
}

fn encode_admitted(
    admitted: Admitted,
    assertions: Option<&Assertions>,
) -> Result<AuthenticateResponse, AuthError> {
    let Admitted {
        key,
        policy_name,
        policy,
        allowance,
    } = admitted;
    let rate_limit = Some(encode_limit(&policy, allowance));
    let policy = policy::encode(&policy_name, &policy);
    let assertion = assertions.map(|all| all.of(&key.app_key, &key.tenant, &policy));
    Ok(AuthenticateResponse {
        rate_limit,
        caller: Some(Caller {
            assertion: assertion.transpose()?.unwrap_or_default(),
            tenant: key.tenant.into(),
            app_key: key.app_key.into(),
            policy: Some(policy),
        }),
    })
}

fn encode_limit(policy: &PolicyRecord, allowance: Allowance) -> RateLimit {
    RateLimit {
        limit: policy.requests_per_second.get(),
        remaining: allowance.remaining,
        reset_ms: millis_up(allowance.full_in),
    }
}

/// An error as a caller hears it.
pub(crate) fn status(error: AuthError) -> Status {
    told(error).into()
}

/// What a caller is told; faults of ours are logged.
fn told(error: AuthError) -> Failure {
    let failure = failure(&error);
    match failure.code {
        ErrorCode::Internal | ErrorCode::Unavailable => {
            tracing::error!(error = &error as &dyn std::error::Error, "a call failed");
        }
        _ => tracing::debug!(%error, "a call was refused"),
    }
    failure
}

fn failure(error: &AuthError) -> Failure {
    let unauthenticated = |field: &str| Failure {
        field: Some(field.to_owned()),
        ..Failure::new(ErrorCode::Unauthenticated, error.to_string())
    };
    match error {
        AuthError::NoProof | AuthError::NotAdmin => unauthenticated("Authorization"),
        AuthError::Timestamp { .. } | AuthError::ClockSkew { .. } => unauthenticated("X-Timestamp"),
        AuthError::Nonce | AuthError::Replayed => unauthenticated("X-Nonce"),
        AuthError::ContentDigest => unauthenticated("X-Content-SHA256"),
        AuthError::Target => unauthenticated("X-Signature"),
        AuthError::ReplayCache { .. } | AuthError::Slow { .. } => {
            Failure::unavailable(error.to_string(), RETRY_STORE)
        }
        AuthError::ReplayCacheFull { retry_after, .. } => {
            Failure::unavailable(error.to_string(), *retry_after)
        }
        AuthError::TooManyNonces { retry_after } => Failure {
            retry_after: Some(*retry_after),
            ..Failure::new(ErrorCode::RateLimited, error.to_string())
        },
        AuthError::NotValid { header } => unauthenticated(header),
        AuthError::SignatureV1Off { .. } => unauthenticated("X-Signature"),
        AuthError::Lifetime { .. } => Failure::invalid("lifetime_seconds", error.to_string()),
        AuthError::TokenForToken | AuthError::NotOfTenant => {
            Failure::new(ErrorCode::PermissionDenied, error.to_string())
        }
        // It is not tried earlier to open one.
        AuthError::NoSigningKey | AuthError::UnopenedKey => {
            Failure::unavailable(error.to_string(), LOOK)
        }
        AuthError::NoPolicy { .. } => Failure::new(ErrorCode::PermissionDenied, error.to_string()),
        AuthError::RateLimited {
            rate, retry_after, ..
        } => Failure {
            rate_limit: Some(rate.per_second.get()),
            // Never too short: a caller that comes back when told must be let through.
            retry_after: Some(Duration::from_millis(millis_up(*retry_after))),
            ..Failure::new(ErrorCode::RateLimited, error.to_string())
        },
        AuthError::Invalid { field, .. } => Failure::invalid(*field, error.to_string()),
        AuthError::NoSuchKey { .. } => Failure {
            field: Some("app_key".to_owned()),
            ..Failure::new(ErrorCode::NotFound, error.to_string())
        },
        AuthError::NoSuchPolicy { .. } => Failure {
            field: Some("prefix".to_owned()),
            ..Failure::new(ErrorCode::NotFound, error.to_string())
        },
        AuthError::PolicyUsed { .. } => Failure::invalid("prefix", error.to_string()),
        AuthError::Envelope {
            source: KeyEncryptionError::Kms(_),
            ..
        } => Failure::unavailable("keys cannot be opened just now; try again", RETRY_STORE),
        // Which key it is would tell a caller that has proven nothing that the key exists.
        AuthError::Envelope { .. } | AuthError::NoRandomness => Failure::new(
            ErrorCode::Internal,
            "auth cannot do this just now; its log says why",
        ),
        AuthError::Store { .. } | AuthError::Contended { .. } | AuthError::PolicyChanged { .. } => {
            Failure::unavailable(error.to_string(), RETRY_STORE)
        }
    }
}
