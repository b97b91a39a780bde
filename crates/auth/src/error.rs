//! What can go wrong, in words for the person who reads it. `grpc.rs` gives each its code.

use std::path::PathBuf;
use std::time::Duration;

use contract::AppKey;
use contract::limits::MAX_CLOCK_SKEW_SECONDS;
use lifecycle::admin::AdminError;
use messaging::BrokerError;
use rpc::RpcError;

use crate::key_encryption::KeyEncryptionError;
use crate::kms::KmsSetupError;
use crate::limit::Rate;
use crate::replay::REMEMBERED;
pub use crate::secret_file::SecretFileError;
use crate::tokens::SHORTEST;

/// Why the service did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The key-encryption key or the admin token cannot be used.
    #[error(transparent)]
    SecretFile(#[from] SecretFileError),
    /// The key management service cannot be called as it is set up.
    #[error(transparent)]
    Kms(#[from] KmsSetupError),
    /// No random bytes, or the key management service does not do its part.
    #[error("nothing can be sealed by the key-encryption key")]
    Crypto(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The stored keys need another key-encryption key than the file holds.
    #[error(
        "none of the {keys} stored keys opens with the key-encryption key {held} in {} (setting keys.key_file); \
         they are sealed under {wanted}. Put that file back",
        path.display()
    )]
    OtherKey {
        /// How many keys there are.
        keys: usize,
        /// The key-encryption key that the file holds.
        held: String,
        /// Those that the keys need.
        wanted: String,
        /// The file.
        path: PathBuf,
    },
    /// The library gave no random bytes.
    #[error("there are no random bytes to name this instance by")]
    NoName,
    /// The broker did not do what starting needs.
    #[error("cannot {operation}")]
    Broker {
        /// What was tried.
        operation: &'static str,
        /// Why it failed.
        #[source]
        source: BrokerError,
    },
    /// The certificates for TLS between services are not good.
    #[error("setting tls.dir")]
    Tls(#[from] rpc::TlsError),
    /// gRPC cannot be served.
    #[error(transparent)]
    Grpc(#[from] RpcError),
    /// The admin port cannot be served.
    #[error(transparent)]
    Admin(#[from] AdminError),
}

/// Why a call was not carried out.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuthError {
    /// Nothing was shown.
    #[error(
        "say who you are: `Authorization: Bearer <key>`, or X-App-Key, X-Timestamp, X-Nonce, X-Content-SHA256 and \
         X-Signature"
    )]
    NoProof,
    /// The timestamp is not one.
    #[error(
        "X-Timestamp must be Unix time in whole seconds, in decimal digits; the server's is {server}"
    )]
    Timestamp { server: i64 },
    /// The clocks differ too much.
    #[error(
        "X-Timestamp {sent} is more than {MAX_CLOCK_SKEW_SECONDS} s away from the server's time, which is {server}; \
         set the clock"
    )]
    ClockSkew { sent: i64, server: i64 },
    /// The nonce is too short, too long, or of other characters.
    #[error("X-Nonce must be 16 to 64 characters of A-Z, a-z, 0-9, _ and -, new for each request")]
    Nonce,
    /// The digest is not one.
    #[error(
        "X-Content-SHA256 must be the SHA-256 of the body as 64 hexadecimal digits in lower case; without a body it is \
         that of nothing, e3b0c442…"
    )]
    ContentDigest,
    /// Method, path and query cannot have come over HTTP.
    #[error("method, path and query must be one line of at most 64 KiB together")]
    Target,
    /// The same signed request came before.
    #[error(
        "X-Nonce was used before with this key; sign each request, a repeated one too, with a new one"
    )]
    Replayed,
    /// Whether it came before cannot be told, so it counts as if it had.
    #[error("signature v2 cannot be checked for replays just now; try again with a new nonce")]
    ReplayCache {
        #[source]
        source: BrokerError,
    },
    /// It cannot be remembered.
    #[error(
        "there is no room for nonces of signature v2 just now; try again with a new one in {} s, or send a token or a key as \
         Authorization: Bearer",
        seconds_up(*retry_after)
    )]
    ReplayCacheFull {
        retry_after: Duration,
        #[source]
        source: BrokerError,
    },
    /// One tenant has its part of what can be remembered.
    #[error(
        "of the requests signed with v2 that the platform remembers, the last {} s', your tenant has made as many as may be left for \
         all others; try again with a new nonce in {} s, or send a token or a key as Authorization: Bearer",
        REMEMBERED.as_secs(), seconds_up(*retry_after)
    )]
    TooManyNonces { retry_after: Duration },
    /// What auth depends on does not answer in time.
    #[error("{what} just now; try again")]
    Slow { what: &'static str },
    /// A token that is to live too long, or not long enough to be of use.
    #[error("lifetime_seconds must be {} to {}", SHORTEST.as_secs(), most.as_secs())]
    Lifetime { most: Duration },
    /// A token was shown to get another, which would make it live for ever.
    #[error("a token cannot be exchanged for another; show the key, or sign with it")]
    TokenForToken,
    /// None that signs now can be opened.
    #[error("no token can be signed just now; auth's log says why")]
    NoSigningKey,
    /// It may be by a signing key that is held and cannot be opened here: another instance may know it.
    #[error("it cannot be told just now whether auth has said so; auth's log says why")]
    UnopenedKey,
    /// Unknown, wrong, expired or revoked: which of them is nobody's business.
    #[error("the key, the token or the signature is not valid")]
    NotValid { header: &'static str },
    /// The proof holds, but is of a kind that this key does not take.
    #[error(
        "the key {app_key} does not take signature v1, because that signs no body; sign with v2, or use its bearer key"
    )]
    SignatureV1Off { app_key: AppKey },
    /// The proof holds, and is another tenant's.
    #[error("the key is not of the tenant that the subject names")]
    NotOfTenant,
    /// No policy names the key's prefix any more.
    #[error("no policy is set for the key {app_key}")]
    NoPolicy { app_key: AppKey },
    /// Too many requests.
    #[error(
        "over the limit of {} requests a second ({} at once) for the key {app_key}; try again in {} ms",
        rate.per_second, rate.burst, millis_up(*retry_after)
    )]
    RateLimited {
        app_key: AppKey,
        rate: Rate,
        retry_after: Duration,
    },
    /// A field of a request about keys is wrong.
    #[error("{field}: {problem}")]
    Invalid {
        field: &'static str,
        problem: String,
    },
    /// The admin token is missing or wrong.
    #[error(
        "keys are managed with `authorization: Bearer <token>`, the token being in auth's keys.admin_token_file"
    )]
    NotAdmin,
    /// There is no such key to revoke.
    #[error("there is no key {app_key}")]
    NoSuchKey { app_key: AppKey },
    /// There is no such policy.
    #[error("there is no policy for {prefix:?}")]
    NoSuchPolicy { prefix: String },
    /// It was not removed, because that would turn callers away.
    #[error(
        "keys that are good ({keys}) fall under the policy {prefix:?} and would be turned away; revoke them, or remove it all \
         the same (inkstone policies remove {prefix:?} --even-if-used)"
    )]
    PolicyUsed { prefix: String, keys: usize },
    /// It is not as the operator saw it.
    #[error("the policy {prefix:?} was changed by someone else meanwhile; look at it again")]
    PolicyChanged { prefix: String },
    /// A key's secrets could not be sealed or opened.
    #[error("the secrets of the key {app_key} cannot be {operation}")]
    Envelope {
        app_key: AppKey,
        operation: &'static str,
        #[source]
        source: KeyEncryptionError,
    },
    /// The library gave no random bytes.
    #[error("there are no random bytes to make a key of")]
    NoRandomness,
    /// The bucket could not be read or written.
    #[error("cannot {operation}")]
    Store {
        operation: &'static str,
        #[source]
        source: BrokerError,
    },
    /// The same record kept changing under our hands.
    #[error("the key {app_key} is being changed by others; try again")]
    Contended { app_key: AppKey },
}

impl AuthError {
    /// The outcome, for metrics.
    pub(crate) fn outcome(&self) -> &'static str {
        match self {
            Self::NoProof => "no_proof",
            Self::Timestamp { .. } | Self::ClockSkew { .. } => "clock",
            Self::Nonce | Self::ContentDigest | Self::Target => "malformed",
            Self::Replayed => "replayed",
            Self::ReplayCache { .. } => "replay_cache",
            Self::ReplayCacheFull { .. } => "replay_cache_full",
            Self::TooManyNonces { .. } => "too_many_nonces",
            Self::Slow { .. } => "slow",
            Self::Lifetime { .. } => "lifetime",
            Self::TokenForToken => "token_for_token",
            Self::NoSigningKey => "no_signing_key",
            Self::UnopenedKey => "unopened_key",
            Self::NotValid { .. } => "not_valid",
            Self::SignatureV1Off { .. } => "signature_v1_off",
            Self::NotOfTenant => "not_of_tenant",
            Self::NoPolicy { .. } => "no_policy",
            Self::RateLimited { .. } => "rate_limited",
            Self::Invalid { .. } => "invalid",
            Self::NotAdmin => "not_admin",
            Self::NoSuchKey { .. } => "no_such_key",
            Self::NoSuchPolicy { .. } => "no_such_policy",
            Self::PolicyUsed { .. } => "policy_used",
            Self::PolicyChanged { .. } => "policy_changed",
            Self::Envelope { .. } => "envelope",
            Self::NoRandomness => "no_randomness",
            Self::Store { .. } => "store",
            Self::Contended { .. } => "contended",
        }
    }
}

/// In whole milliseconds, never too short.
pub(crate) fn millis_up(time: Duration) -> u64 {
    u64::try_from(time.as_nanos().div_ceil(1_000_000)).unwrap_or(u64::MAX)
}

/// In whole seconds, never too short.
fn seconds_up(time: Duration) -> u64 {
    time.as_secs() + u64::from(time.subsec_nanos() > 0)
}
