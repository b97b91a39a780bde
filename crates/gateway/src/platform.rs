//! What the services behind the gateway do for it, without their dialect: calls in, [`Failure`]s out.

mod for_callers;
mod gathering;

use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use bytes::Bytes;
use contract::auth::auth_service_client::AuthServiceClient;
use contract::auth::{
    AuthenticateRequest, AuthenticateResponse, Caller, ChargeRequest, IssueTokenRequest,
    IssueTokenResponse, ListTokenKeysRequest, RateLimit, TokenKey, authenticate_request::Proof,
};
use contract::orchestrator::orchestrator_service_client::OrchestratorServiceClient;
use contract::registry::registry_service_client::RegistryServiceClient;
use contract::token_keys::KnownKeys;
use contract::v1::submit_result;
use contract::{ErrorCode, Failure, TaskId, TenantId, orchestrator, registry, v1};
use lifecycle::Tasks;
use rpc::{BreakerState, Gather, Identity, Peer, PeerSettings, Security};
use storage::{Key, Opened, Storage, StorageError};
use tokio::sync::watch;
use tonic::{Request, Status};

use crate::auth::Admitted;
use crate::error::StartError;
use crate::room::Class;
use crate::settings::Settings;

use for_callers::worded;
pub(crate) use gathering::SubmissionRoom;
use gathering::Submissions;

/// The largest picture that is read, bytes: what one gRPC answer carries.
const MAX_PICTURE_BYTES: u64 = 32 * 1024 * 1024;
/// How old a stored file of a caller may be and still do as it is. The orchestrator renews older ones that are about to expire.
const FRESH: std::time::Duration = std::time::Duration::from_secs(60 * 60);
/// So many tasks of a batch take of the platform what one that comes alone takes (docs/PERFORMANCE.md, "The edge").
const AS_ONE_CALL: usize = 4;
const NO_SENSE: &str = "a part of the platform gave an answer that makes no sense";

/// The services behind. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Platform {
    auth: AuthServiceClient<Peer>,
    orchestrator: OrchestratorServiceClient<Peer>,
    registry: RegistryServiceClient<Peer>,
    /// Proofs on their way to auth.
    proofs: Gather<Proof, AuthenticateResponse>,
    /// Submissions on their way to the orchestrator: those that may be sent twice, because they have a key, and those that may not.
    keyed: Submissions,
    keyless: Submissions,
    storage: Storage,
    /// The public keys that tokens are verified with, by what auth has told.
    known: Arc<Mutex<KnownKeys>>,
    /// Each by the name of its check.
    peers: [(&'static str, Peer); 3],
}

/// A picture with its bytes.
pub(crate) struct Picture {
    pub(crate) info: v1::ImageInfo,
    pub(crate) data: Bytes,
}

/// A picture that the orchestrator vouches for, and where its bytes are.
pub(crate) struct Found {
    pub(crate) info: v1::ImageInfo,
    key: Key,
}

/// Who asks for a picture.
pub(crate) enum Reader<'a> {
    /// A caller that auth has vouched for.
    Tenant(&'a Caller),
    /// Someone who holds the task's access token.
    Token(&'a str),
}

impl Platform {
    /// Makes the channels; nothing is connected yet. What calls by them runs in `tasks`.
    pub(crate) fn new(
        settings: &Settings,
        security: &Security,
        tasks: &Tasks,
    ) -> Result<Self, StartError> {
        let peer = |peer: &'static str, who: Identity, settings: &PeerSettings| {
            let made = security.peer(peer, who, settings);
            made.map_err(|source| StartError::Peer { peer, source })
        };
        let auth = peer("auth", Identity::Auth, &settings.auth)?;
        let orchestrator = &settings.orchestrator;
        let orchestrator = peer("orchestrator", Identity::Orchestrator, orchestrator)?;
        let registry = peer("registry", Identity::ModelRegistry, &settings.registry)?;
        let peers = [
            ("auth", auth.clone()),
            ("orchestrator", orchestrator.clone()),
            ("model-registry", registry.clone()),
        ];
        let auth = AuthServiceClient::new(auth);
        let auth = rpc::with_limits!(auth);
        let orchestrator = OrchestratorServiceClient::new(orchestrator);
        let orchestrator = rpc::with_limits!(orchestrator);
        let models = RegistryServiceClient::new(registry);
        Ok(Self {
            peers,
            proofs: gathering::proofs(&auth, settings.auth.timeout.duration(), tasks),
            keyed: gathering::submissions(&orchestrator, settings, tasks, rpc::idempotent),
            keyless: gathering::submissions(&orchestrator, settings, tasks, Request::new),
            auth,
            orchestrator,
            registry: rpc::with_limits!(models),
            storage: Storage::open(&settings.storage)?,
            known: Arc::default(),
        })
    }

    /// Changes of the breaker of a peer, by the name of its check.
    pub(crate) fn breaker(&self, check: &str) -> Option<watch::Receiver<BreakerState>> {
        Some(self.peer(check)?.breaker())
    }

    /// Why a peer that answers is not ready, as it says itself, by the name of its check.
    pub(crate) async fn not_ready(&self, check: &str) -> Result<Option<String>, Failure> {
        match self.peer(check) {
            Some(peer) => peer.not_ready().await.map_err(heard("not_ready")),
            None => Ok(None),
        }
    }

    fn peer(&self, check: &str) -> Option<&Peer> {
        let mut named = self.peers.iter();
        named.find_map(|(name, peer)| (*name == check).then_some(peer))
    }

    /// Verifies a proof and charges one request to the caller's limit. Of what makes tasks only as many as can be answered soon; what only looks
    /// is bounded elsewhere, and quick.
    pub(crate) async fn authenticate(
        &self,
        proof: Proof,
        class: Class,
    ) -> Result<AuthenticateResponse, Failure> {
        match class {
            Class::Submission | Class::Generation => self.proofs.ask(proof).await,
            Class::Read => self.proofs.ask_in_any_case(proof).await,
        }
    }

    /// How many proofs auth may be asked to verify at once, by how long it takes just now.
    pub(crate) fn proofs_at_once(&self) -> u32 {
        self.proofs.most()
    }

    /// How auth refuses a call without a proof, as it does when it is well.
    pub(crate) async fn probe_auth(&self) -> Result<AuthenticateResponse, Failure> {
        let request = AuthenticateRequest::default();
        let answer = self.auth.clone().authenticate(request).await;
        Ok(answer.map_err(heard("authenticate"))?.into_inner())
    }

    /// Verifies a proof and gives a token that stands for its key; 0 seconds is as long as any may live.
    pub(crate) async fn issue_token(
        &self,
        proof: Proof,
        lifetime_seconds: u32,
    ) -> Result<IssueTokenResponse, Failure> {
        let request = IssueTokenRequest {
            caller: Some(AuthenticateRequest {
                proof: Some(proof),
                receipt: None,
            }),
            lifetime_seconds,
        };
        let answer = self.auth.clone().issue_token(request).await;
        Ok(answer.map_err(heard("issue_token"))?.into_inner())
    }

    /// The public keys that tokens are verified with, those too that the auth which answers cannot open just now.
    pub(crate) async fn token_keys(&self) -> Result<Vec<TokenKey>, Failure> {
        let mut auth = self.auth.clone();
        let request = rpc::idempotent(ListTokenKeysRequest {});
        let answer = auth.list_token_keys(request).await;
        let answer = answer.map_err(heard("list_token_keys"))?.into_inner();
        // Every change leaves them whole.
        let mut known = self.known.lock().unwrap_or_else(|e| e.into_inner());
        Ok(known.learn(answer, SystemTime::now()))
    }

    /// Accepts a task; true when it was there before.
    pub(crate) async fn submit(
        &self,
        caller: &Admitted,
        task: v1::SubmitTask,
    ) -> Result<(v1::Task, bool), Failure> {
        let caller = &*self.still_admitted(caller).await?;
        // With an idempotency key, the second time finds what the first has made.
        let submissions = match task.idempotency_key.as_str() {
            "" => &self.keyless,
            _ => &self.keyed,
        };
        self.with_word(caller, |assertion| {
            let request = orchestrator::SubmitRequest {
                caller: Some(worded(caller, assertion)),
                task: Some(task.clone()),
            };
            submissions.submit(&caller.tenant, request)
        })
        .await
    }

    /// Whether a task would be accepted as it stands, whatever it begins from. Nothing is stored or charged.
    pub(crate) async fn check(
        &self,
        caller: &Caller,
        task: &v1::SubmitTask,
    ) -> Result<(), Failure> {
        let task = v1::SubmitTask {
            source: None,
            ..task.clone()
        };
        self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = rpc::idempotent(orchestrator::CheckRequest {
                caller: Some(worded(caller, assertion)),
                task: Some(task.clone()),
            });
            async move {
                let answer = orchestrator.check(request).await;
                answer.map(drop).map_err(heard("check"))
            }
        })
        .await
    }

    /// Room for a batch among the submissions under way, by how many of them could be read: to be held until it is answered.
    ///
    /// # Errors
    /// Unavailable when more are under way than can be answered soon; over the limit when the tenant has its share of them.
    pub(crate) fn batch_room(
        &self,
        tenant: &str,
        requests: &[Result<v1::SubmitTask, Failure>],
    ) -> Result<SubmissionRoom<'_>, Failure> {
        let tasks = || requests.iter().flatten();
        let keyed = tasks().all(|task| !task.idempotency_key.is_empty());
        let submissions = if keyed { &self.keyed } else { &self.keyless };
        submissions.enter(tenant, tasks().count().div_ceil(AS_ONE_CALL))
    }

    /// Charges the requests of a batch beyond the first, which was charged when its caller was let in.
    /// What is left of the limit then; `None` when nothing more was charged.
    pub(crate) async fn charge_batch(
        &self,
        caller: &Caller,
        tasks: usize,
    ) -> Result<Option<RateLimit>, Failure> {
        let requests = u32::try_from(tasks.saturating_sub(1)).unwrap_or(u32::MAX);
        if requests == 0 {
            return Ok(None);
        }
        let app_key = caller.app_key.clone();
        let request = ChargeRequest { app_key, requests };
        let answer = self.auth.clone().charge(request).await;
        Ok(answer.map_err(heard("charge"))?.into_inner().rate_limit)
    }

    /// Accepts tasks; one answer each, in order.
    pub(crate) async fn submit_batch(
        &self,
        caller: &Admitted,
        tasks: Vec<v1::SubmitTask>,
    ) -> Result<Vec<Result<(v1::Task, bool), Failure>>, Failure> {
        let count = tasks.len();
        if count == 0 {
            return Ok(Vec::new());
        }
        let caller = &*self.still_admitted(caller).await?;
        let keyed = tasks.iter().all(|task| !task.idempotency_key.is_empty());
        let results = self.with_word(caller, |assertion| {
            let mut orchestrator = self.orchestrator.clone();
            let request = orchestrator::SubmitBatchRequest {
                caller: Some(worded(caller, assertion)),
                tasks: tasks.clone(),
            };
            let request = match keyed {
                true => rpc::idempotent(request),
                false => Request::new(request),
            };
            async move {
                let answer = orchestrator.submit_batch(request).await;
                Ok(answer.map_err(heard("submit_batch"))?.into_inner().results)
            }
        });
        let results = results.await?;
        if results.len() != count {
            return Err(broken_answer("another number of tasks"));
        }
        let each = results.into_iter().map(|one| submitted(one.result));
        Ok(each.collect())
    }

    /// Reads one picture of a task that has succeeded.
    pub(crate) async fn picture(
        &self,
        reader: Reader<'_>,
        task: TaskId,
        index: u32,
    ) -> Result<Picture, Failure> {
        let found = self.find_picture(reader, task, index).await?;
        self.read_picture(found).await
    }

    /// Reads a picture.
    pub(crate) async fn read_picture(
        &self,
        Found { info, key }: Found,
    ) -> Result<Picture, Failure> {
        let read = self.storage.get(&key, MAX_PICTURE_BYTES).await;
        let data = read.map_err(unreadable)?;
        Ok(Picture { info, data })
    }

    /// Opens a picture, to be read piece by piece.
    pub(crate) async fn open_picture(&self, found: &Found) -> Result<Opened, Failure> {
        let opened = self.storage.open_object(&found.key, MAX_PICTURE_BYTES);
        opened.await.map_err(unreadable)
    }

    /// How many bytes of a picture are stored.
    pub(crate) async fn picture_size(&self, found: &Found) -> Result<u64, Failure> {
        let size = self.storage.size(&found.key).await.map_err(unreadable)?;
        let key = || found.key.clone();
        size.ok_or_else(|| unreadable(StorageError::Missing { key: key() }))
    }

    /// Keeps a file that a caller has sent, and gives the key by which its tasks can begin from it. The same file again is
    /// the same object, and written again only when it has lain there for a while: how long it stays counts from then.
    pub(crate) async fn keep_input(&self, tenant: &str, data: Bytes) -> Result<String, Failure> {
        let tenant = tenant.parse::<TenantId>().ok();
        let key = tenant.and_then(|tenant| Key::input(&tenant, &storage::sha256_hex(&data)));
        let key = key.ok_or_else(|| broken_answer("a tenant that cannot be one"))?;
        let keep = async {
            let age = self.storage.age(&key).await?;
            if age.is_some_and(|age| age < FRESH) {
                return Ok(());
            }
            self.storage.put(&key, data).await
        };
        keep.await.map_err(|error: StorageError| {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot store a picture to begin from"
            );
            let wait = std::time::Duration::from_secs(2);
            Failure::unavailable("pictures cannot be stored just now; try again", wait)
        })?;
        Ok(key.as_str().to_owned())
    }

    /// Every model there is.
    pub(crate) async fn models(&self) -> Result<Vec<registry::Model>, Failure> {
        let answer = self
            .registry
            .clone()
            .list_models(rpc::idempotent(registry::ListModelsRequest {}))
            .await;
        Ok(answer.map_err(heard("list_models"))?.into_inner().models)
    }

    /// Whether the object store can be used.
    pub(crate) async fn probe_storage(&self) -> Result<(), StorageError> {
        self.storage.probe().await
    }
}

fn submitted(result: Option<submit_result::Result>) -> Result<(v1::Task, bool), Failure> {
    match result {
        Some(submit_result::Result::Accepted(accepted)) => {
            Ok((task_of(accepted.task)?, accepted.existing))
        }
        Some(submit_result::Result::Refused(refusal)) => Err(refusal.into()),
        None => Err(broken_answer("no result for a task")),
    }
}

// The words of a transport are for this log; callers hear a failure of the closed list.
fn heard(call: &'static str) -> impl FnOnce(Status) -> Failure {
    move |status| {
        tracing::debug!(call, %status, "a peer refused");
        let mut failure = Failure::from(status);
        if failure.message.is_empty() {
            // Only what is not ours refuses without a word.
            failure.message = NO_SENSE.to_owned();
        }
        failure
    }
}

fn task_of(task: Option<v1::Task>) -> Result<v1::Task, Failure> {
    task.ok_or_else(|| broken_answer("no task"))
}

fn broken_answer(what: &str) -> Failure {
    tracing::error!("the orchestrator answered with {what}");
    Failure::new(ErrorCode::Internal, NO_SENSE)
}

fn unreadable(error: StorageError) -> Failure {
    match error {
        StorageError::Missing { .. } => {
            Failure::new(ErrorCode::NotFound, "the picture is no longer stored")
        }
        StorageError::TooLarge { size, limit, .. } => {
            let message = format!("the picture has {size} bytes; {limit} can be sent at most");
            Failure::new(ErrorCode::Internal, message)
        }
        error => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "cannot read a picture"
            );
            let wait = std::time::Duration::from_secs(2);
            Failure::unavailable("pictures cannot be read just now; try again", wait)
        }
    }
}
