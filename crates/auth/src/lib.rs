//! Who may call, and how much.
//!
//! Keys live in the bucket `KEYS` and policies in `POLICIES`; each instance follows both, so any number of instances
//! answer from memory, a revocation is seen everywhere within a second, and authentication goes on while the broker is
//! down (managing keys does not, and readiness says so).
//!
//! Three gRPC services share one address: `AuthService` for the gateway, `KeyService` and `PolicyService` for operators, who
//! also show the admin token.
//!
//! Invariants:
//! * No secret is stored, logged or shown in the clear: the signing secret is sealed under a data key of its own, the
//!   bearer key is kept as a keyed digest, and the data key is wrapped by a key that never reaches the broker. A new key's
//!   secrets are shown once, in the answer that made it.
//! * A token is signed by a key that never leaves auth, verified with the algorithm that is ours, and good for as long as its
//!   key is not revoked.
//! * What auth says of a caller to other services is signed by the same keys, and lets nobody in here.
//! * Unknown, wrong and revoked keys look the same to who shows them, in words and closely in time.
//! * Only a proven caller is charged, so nobody can use up another's limit.
//! * All instances together let one key's rate through: each holds a [lease](lease) on a part of it.
//! * A request signed by v2 is let in once, whichever instance is asked and whenever: without the shared cache of nonces,
//!   or with one that is full, it is refused.
//! * A record that was changed, copied to another name or given to another tenant lets nobody in.

mod admin;
mod authenticate;
mod demand;
mod envelope;
mod error;
#[doc(hidden)]
pub mod fuzz;
mod grpc;
mod key_encryption;
mod keys;
mod keys_grpc;
mod kms;
mod lease;
mod limit;
mod limiter;
mod metrics;
mod nonce_room;
mod policies;
mod policies_grpc;
mod policy;
mod proof;
mod receipt;
mod replay;
mod rewrap;
mod sealed;
mod secret_file;
mod settings;
mod share;
mod signature_v2;
mod store;
mod tokens;
mod webhook;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifecycle::{Check, Service};
use messaging::{Broker, BrokerError, Bucket, Snapshot};
use rpc::{Identity, Security};
use telemetry::Telemetry;
use tokio::sync::watch;

use crate::admin::AdminToken;
use crate::authenticate::Authenticator;
use crate::key_encryption::{KeyEncryption, KeyEncryptionKeys, LocalKey, Other};
use crate::keys::Keys;
use crate::kms::KmsKey;
use crate::limiter::Limiter;
use crate::policies::Policies;
use crate::policy::PolicyRecord;
use crate::replay::Nonces;
use crate::store::{KEYS, KeyRecord, POLICIES, SIGNING_KEYS};
use crate::tokens::Tokens;

pub use error::{SecretFileError, StartError};
pub use kms::KmsSetupError;
pub use settings::{KeysSettings, KmsSettings, Settings, SignatureSettings, TokensSettings};

/// How often the broker is probed and idle keys' limits are forgotten.
const UPKEEP: Duration = Duration::from_secs(3);
/// How long tasks may take to end when the service could not start.
const ABANDON: Duration = Duration::from_secs(2);

/// Starts the service; when this returns it answers on its addresses `grpc` and `admin`.
///
/// # Errors
/// See [`StartError`]; nothing is left running then.
pub async fn start(settings: Settings, telemetry: Telemetry) -> Result<Service, StartError> {
    let mut service = Service::new("auth");
    match assemble(&mut service, &settings, &telemetry).await {
        Ok(()) => Ok(service.started()),
        Err(error) => {
            service.stop(ABANDON).await;
            Err(error)
        }
    }
}

async fn assemble(
    service: &mut Service,
    settings: &Settings,
    telemetry: &Telemetry,
) -> Result<(), StartError> {
    metrics::describe();
    let create = settings.keys.create_if_missing;
    // Files first: what is wrong with them shows without a broker. They are two short reads, so the runtime may wait.
    let security = Security::start(service, Identity::Auth, &settings.tls)?;
    let key_encryption = Arc::new(load_key_encryption(settings)?);
    let admin = AdminToken::load(&settings.keys.admin_token_file, create)?;

    let check = service.health.check("broker");
    let broker = Broker::connect(&settings.broker, "auth").await;
    let broker = broker.map_err(failed("reach the broker"))?;
    let (bucket, copy) = follow_keys(service, &broker).await?;
    let (policy_bucket, policies) = follow_policies(service, &broker).await?;
    let size = settings.signatures.replay_cache_size.bytes();
    let size = i64::try_from(size).unwrap_or(i64::MAX);
    let nonces = broker.patiently(|| Nonces::open(&broker, size)).await;
    let nonces = nonces.map_err(failed("open the stream of nonces"))?;
    check_key_encryption(&copy.borrow(), &key_encryption, &settings.keys.key_file)?;
    let key_encryption: Arc<dyn KeyEncryption> = key_encryption;
    rewrap::start(
        service,
        (bucket.clone(), KEYS),
        copy.clone(),
        key_encryption.clone(),
    );
    let tokens = start_tokens(service, &broker, &key_encryption, &settings.tokens).await?;
    let tokens = Arc::new(tokens);

    let limiter = Arc::new(Limiter::default());
    lease::start(service, &broker, limiter.clone()).await?;

    let authenticator = Authenticator::new(
        copy.clone(),
        policies.clone(),
        key_encryption.clone(),
        limiter,
        nonces,
        tokens.clone(),
        contract::clock::timestamp,
    );
    let authenticator = authenticator
        .await
        .map_err(|source| StartError::Crypto(Box::new(source)))?;
    let authenticator = Arc::new(authenticator);
    let all_policies = Policies {
        bucket: policy_bucket,
        copy: policies.clone(),
        keys: copy.clone(),
    };
    let keys = Keys {
        bucket,
        copy,
        policies,
        key_encryption,
        clock: contract::clock::timestamp,
    };
    check.pass();
    keep_up(service, broker, check, authenticator.clone());
    let routes = grpc::routes(authenticator, tokens, keys, all_policies, admin);
    security
        .serve(service, settings.grpc.listen, routes)
        .await?;
    lifecycle::admin::serve(service, settings.process.admin_listen, telemetry).await?;
    Ok(())
}

fn load_key_encryption(settings: &Settings) -> Result<KeyEncryptionKeys, StartError> {
    let (keys, kms) = (&settings.keys, &settings.kms);
    let local = |path: &Path, setting, create| -> Result<Box<dyn KeyEncryption>, StartError> {
        Ok(Box::new(LocalKey::load(path, setting, create)?))
    };
    // Made anew, one of the others would unwrap nothing.
    let other = |path: &PathBuf, setting, old| -> Result<Other, StartError> {
        let key = local(path, setting, false)?;
        Ok(Other { key, old })
    };
    let next = keys.other_key_files.iter();
    let next = next.map(|path| other(path, "keys.other_key_files", false));
    let old = keys.old_key_files.iter();
    let old = old.map(|path| other(path, "keys.old_key_files", true));
    let mut others = next.chain(old).collect::<Result<Vec<_>, _>>()?;
    let kms_key: Option<Box<dyn KeyEncryption>> = match kms.key_id.as_str() {
        "" => None,
        _ => Some(Box::new(KmsKey::new(kms)?)),
    };
    let wraps = match kms_key {
        Some(key) if kms.wraps => key,
        key => {
            others.extend(key.map(|key| Other { key, old: kms.old }));
            local(&keys.key_file, "keys.key_file", keys.create_if_missing)?
        }
    };
    Ok(KeyEncryptionKeys::new(wraps, others))
}

fn failed(operation: &'static str) -> impl FnOnce(BrokerError) -> StartError {
    move |source| StartError::Broker { operation, source }
}

type Copy<T> = watch::Receiver<Snapshot<T>>;

async fn follow_keys(
    service: &Service,
    broker: &Broker,
) -> Result<(Bucket<KeyRecord>, Copy<KeyRecord>), StartError> {
    let open = || broker.bucket::<KeyRecord>(KEYS, Duration::ZERO);
    let bucket = broker.patiently(open).await;
    let bucket = bucket.map_err(failed("open the bucket of keys"))?;
    let copy = bucket.follow(&service.tasks, "follow keys").await;
    Ok((bucket, copy.map_err(failed("read the keys"))?))
}

async fn follow_policies(
    service: &Service,
    broker: &Broker,
) -> Result<(Bucket<PolicyRecord>, Copy<PolicyRecord>), StartError> {
    let open = || broker.bucket::<PolicyRecord>(POLICIES, Duration::ZERO);
    let bucket = broker.patiently(open).await;
    let bucket = bucket.map_err(failed("open the bucket of policies"))?;
    seed(&bucket)
        .await
        .map_err(failed("store the default policies"))?;
    let copy = bucket.follow(&service.tasks, "follow policies").await;
    Ok((bucket, copy.map_err(failed("read the policies"))?))
}

async fn start_tokens(
    service: &Service,
    broker: &Broker,
    key_encryption: &Arc<dyn KeyEncryption>,
    settings: &TokensSettings,
) -> Result<Tokens, StartError> {
    let open = || broker.bucket(SIGNING_KEYS, Duration::ZERO);
    let bucket = broker.patiently(open).await;
    let bucket = bucket.map_err(failed("open the bucket of signing keys"))?;
    let schedule = tokens::Schedule {
        every: settings.rotate_every.duration(),
        lifetime: settings.lifetime.duration(),
    };
    let ring = tokens::start(
        service,
        bucket,
        key_encryption.clone(),
        schedule,
        contract::clock::timestamp,
    );
    Ok(Tokens {
        ring: ring.await.map_err(failed("read the signing keys"))?,
        issuer: settings.issuer.clone(),
        audience: settings.audience.clone(),
        lifetime: settings.lifetime.duration(),
        clock: contract::clock::timestamp,
    })
}

/// Fills a bucket that is empty. One that is not belongs to whoever runs the platform: a policy that they removed must not
/// come back with the next start, and one that they changed must stay so.
async fn seed(bucket: &Bucket<PolicyRecord>) -> Result<(), BrokerError> {
    if !bucket.all().await?.is_empty() {
        return Ok(());
    }
    for (name, policy) in policy::defaults() {
        match bucket.create(name, &policy).await {
            // Another instance starts at the same time.
            Ok(_) | Err(BrokerError::Conflict { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Refuses to start with a key-encryption key that opens nothing of what is stored: the file was lost and made anew, or
/// this is another installation's. Better no instance than one that turns every caller away.
fn check_key_encryption(
    keys: &Snapshot<KeyRecord>,
    key_encryption: &KeyEncryptionKeys,
    path: &Path,
) -> Result<(), StartError> {
    let held = key_encryption.id();
    let needed = |key: &KeyRecord| key.envelope.data_key.kek.clone();
    let needed = keys.values().map(needed);
    let foreign: Vec<_> = needed.filter(|id| !key_encryption.holds(id)).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let wanted: BTreeSet<String> = foreign.iter().map(ToString::to_string).collect();
    let wanted = wanted.into_iter().collect::<Vec<_>>().join(", ");
    if foreign.len() < keys.len() {
        let count = foreign.len();
        tracing::warn!(count, %held, wanted, "some keys are sealed under other key-encryption keys");
        return Ok(());
    }
    Err(StartError::OtherKey {
        keys: keys.len(),
        held: held.to_string(),
        wanted,
        path: path.to_owned(),
    })
}

fn keep_up(service: &Service, broker: Broker, check: Check, authenticator: Arc<Authenticator>) {
    let stopping = service.tasks.stopping();
    service.tasks.critical("upkeep", async move {
        tokio::pin!(stopping);
        loop {
            metrics::active_keys(authenticator.active_keys());
            authenticator.forget_idle();
            tokio::select! {
                () = &mut stopping => return Ok::<(), BrokerError>(()),
                () = authenticator.look_at_nonces() => {}
            }
            tokio::select! {
                () = &mut stopping => return Ok::<(), BrokerError>(()),
                () = tokio::time::sleep(UPKEEP) => {}
            }
            check.set(broker.probe().await);
        }
    });
}
