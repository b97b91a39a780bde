//! The replay cache: every nonce that was used with a key in the last minutes, shared by all instances through one stream
//! of the broker.
//!
//! It fails closed. A nonce counts as fresh only when the broker has confirmed that this request, and no other, stored it:
//! without a broker, or when the stream is full, signature v2 is refused. A cache that forgets to make room, or is skipped
//! when it cannot be reached, would be no cache at all to someone who waits for that. So that no tenant fills it for all others,
//! each has [as much as is left](crate::nonce_room).

use std::time::Duration;

use aws_lc_rs::{digest, rand};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use contract::limits::MAX_CLOCK_SKEW_SECONDS;
use contract::{AppKey, TenantId};
use messaging::{Appended, Broker, BrokerError, EventLog, NewEvent, RetentionPolicy, StreamSpec};

use crate::error::AuthError;
use crate::nonce_room::NonceRoom;
use crate::receipt::Claim;
use crate::store::KeyRecord;

/// The stream of nonces.
const STREAM: &str = "NONCES";
/// Stands before each nonce's digest.
const SUBJECT: &str = "inkstone.nonce";
/// How much the clocks of two instances may differ, beyond which a replay could slip through.
const CLOCKS_APART: Duration = Duration::from_secs(60);
/// How long a nonce is remembered. A timestamp is good from `MAX_CLOCK_SKEW_SECONDS` before to as much after its time.
pub(crate) const REMEMBERED: Duration =
    Duration::from_secs(2 * MAX_CLOCK_SKEW_SECONDS.unsigned_abs() + CLOCKS_APART.as_secs());
/// Bytes of a digest that a nonce is known by: 128 bits, so that no two of a key's are ever taken for one.
const NAME_BYTES: usize = 16;
/// The broker's own memory of message ids, which nonces do not use; it must not be longer than they are kept.
const DUPLICATES: Duration = Duration::from_secs(1);

/// The nonces that were used.
pub(crate) enum Nonces {
    /// Shared by all instances.
    Stream(Box<Shared>),
    /// For tests of what lies around it.
    #[cfg(test)]
    Memory(std::sync::Mutex<std::collections::HashSet<String>>),
}

/// Whether a nonce that may be used is there already.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Seen {
    Never,
    /// Used up by the same claim.
    BySame,
}

/// The stream, and who has how much of it.
pub(crate) struct Shared {
    log: EventLog,
    room: NonceRoom,
}

impl Nonces {
    /// Opens the stream, and makes it first where it is not there. It takes `max_bytes`.
    pub(crate) async fn open(broker: &Broker, max_bytes: i64) -> Result<Self, BrokerError> {
        let spec = StreamSpec {
            name: STREAM,
            subjects: &["inkstone.nonce.*"],
            retention: RetentionPolicy::Limits,
            max_messages: -1,
            max_messages_per_subject: 1,
            shares: false,
            max_message_size: -1,
            max_age: REMEMBERED,
            max_bytes,
            refuse_when_full: true,
            batches: false,
            duplicate_window: DUPLICATES,
            republish: None,
        };
        broker.ensure_stream(&spec).await?;
        let (log, room) = (broker.log(STREAM), NonceRoom::new(max_bytes.unsigned_abs()));
        room.see(log.fill().await?);
        Ok(Self::Stream(Box::new(Shared { log, room })))
    }

    /// Looks at what the stream holds. Call it now and then.
    pub(crate) async fn look(&self) {
        match self {
            Self::Stream(shared) => match shared.log.fill().await {
                Ok(fill) => shared.room.see(fill),
                // What was stored from here is counted all the same.
                Err(error) => tracing::debug!(%error, "what the replay cache holds is not known"),
            },
            #[cfg(test)]
            Self::Memory(_) => {}
        }
    }

    /// Refuses a tenant that has as many nonces here as are left for all others.
    pub(crate) fn admit(&self, tenant: &TenantId) -> Result<(), AuthError> {
        match self {
            Self::Stream(shared) => {
                let admitted = shared.room.admit(tenant);
                admitted.map_err(|retry_after| AuthError::TooManyNonces { retry_after })
            }
            #[cfg(test)]
            Self::Memory(_) => Ok(()),
        }
    }

    /// Refuses a nonce that is known to have been used. What this lets through may still be a replay, if the two come at
    /// the same moment; [`take`](Self::take) decides. It is there so that whoever replays what it has overheard charges
    /// nothing to the key's limit.
    pub(crate) async fn refuse_used(
        &self,
        app_key: &AppKey,
        nonce: &str,
        claim: &Claim,
    ) -> Result<Seen, AuthError> {
        let name = name(app_key, nonce);
        let seen = match self {
            Self::Stream(shared) => {
                let last = shared.log.last(&subject(&name)).await.map_err(unknown)?;
                match last {
                    None => Some(Seen::Never),
                    Some(used) => (claim.bytes() == Some(used.payload)).then_some(Seen::BySame),
                }
            }
            #[cfg(test)]
            Self::Memory(used) => {
                let fresh = !used.lock().unwrap().contains(&name);
                fresh.then_some(Seen::Never)
            }
        };
        seen.ok_or(AuthError::Replayed)
    }

    /// Uses a nonce up, for all instances. What is shown again with the same claim has used it up itself.
    pub(crate) async fn take(
        &self,
        key: &KeyRecord,
        nonce: &str,
        claim: &Claim,
    ) -> Result<(), AuthError> {
        let name = name(&key.app_key, nonce);
        let fresh = match self {
            Self::Stream(shared) => {
                // Of this attempt alone: when the broker's answer is lost, reading back tells ours from another's.
                let mut random = [0; NAME_BYTES];
                rand::fill(&mut random).map_err(|_| AuthError::NoRandomness)?;
                let mine = claim
                    .bytes()
                    .unwrap_or_else(|| Bytes::copy_from_slice(&random));
                let subject = subject(&name);
                let event = NewEvent::new(subject.clone(), subject, mine.clone());
                match shared.log.create(&event).await {
                    Ok(Appended::Created) => {
                        shared.room.stored(&key.tenant);
                        true
                    }
                    Ok(Appended::Exists(there)) => there == mine,
                    Err(source) if source.is_full() => {
                        let retry_after = shared.room.full_for();
                        return Err(AuthError::ReplayCacheFull {
                            retry_after,
                            source,
                        });
                    }
                    Err(source) => return Err(unknown(source)),
                }
            }
            #[cfg(test)]
            Self::Memory(used) => used.lock().unwrap().insert(name),
        };
        if fresh {
            Ok(())
        } else {
            Err(AuthError::Replayed)
        }
    }
}

fn unknown(source: BrokerError) -> AuthError {
    AuthError::ReplayCache { source }
}

/// What a key's nonce is known by: of one length, whatever its own is, and safe as a token of a subject.
fn name(app_key: &AppKey, nonce: &str) -> String {
    let mut hash = digest::Context::new(&digest::SHA256);
    for part in ["inkstone nonce\0", app_key.as_str(), "\0", nonce] {
        hash.update(part.as_bytes());
    }
    URL_SAFE_NO_PAD.encode(&hash.finish().as_ref()[..NAME_BYTES])
}

fn subject(name: &str) -> String {
    format!("{SUBJECT}.{name}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_nonce_is_remembered_for_longer_than_its_timestamp_is_good() {
        assert!(REMEMBERED > Duration::from_secs(2 * 300));
    }

    #[test]
    fn a_nonce_belongs_to_its_key_and_is_a_subject_token() {
        let (a, b): (AppKey, AppKey) = ("prod-a".parse().unwrap(), "prod-b".parse().unwrap());
        let long = "n".repeat(64);
        assert_ne!(name(&a, &long), name(&b, &long));
        assert_ne!(name(&a, &long), name(&a, &long[1..]));
        assert_eq!(name(&a, &long).len(), 22);
        assert!(!name(&a, &long).contains(['.', '*', '>', ' ']));
    }
}
