//! When a proof came, and with what: a request's was made just now, a message's may have waited in a stream, and may be shown again when
//! whoever worked on it died.

use std::time::Duration;

use aws_lc_rs::digest;
use bytes::Bytes;
use contract::TenantId;
use jiff::Timestamp;

use crate::authenticate::Clock;
use crate::error::AuthError;

/// The longest that a message may have waited: longer than any stream of ours keeps one.
const LONGEST: Duration = Duration::from_secs(8 * 24 * 60 * 60);
/// How much later than now it may be: clocks of two machines of ours.
const CLOCKS_APART: Duration = Duration::from_secs(60);
const MAX_CLAIM_BYTES: usize = 200;

/// When the platform took a proof.
#[derive(Debug, Clone)]
pub(crate) struct Receipt {
    pub(crate) at: Timestamp,
    pub(crate) claim: Claim,
    /// Whose the key must be, where that is known.
    pub(crate) tenant: Option<TenantId>,
    /// Whether it was charged before.
    pub(crate) charged: bool,
}

/// What a nonce is used up for. Whoever shows it again with the same claim is the same; without one nobody is.
#[derive(Debug, Clone, Default)]
pub(crate) struct Claim(Option<[u8; digest::SHA256_OUTPUT_LEN]>);

impl Claim {
    /// A claim in words; empty is none.
    pub(crate) fn new(text: &str) -> Result<Self, AuthError> {
        if text.len() > MAX_CLAIM_BYTES {
            return Err(AuthError::Invalid {
                field: "receipt",
                problem: format!("its claim must be at most {MAX_CLAIM_BYTES} bytes"),
            });
        }
        if text.is_empty() {
            return Ok(Self(None));
        }
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        let digest = digest::digest(&digest::SHA256, text.as_bytes());
        bytes.copy_from_slice(digest.as_ref());
        Ok(Self(Some(bytes)))
    }

    /// What is stored with the nonce, if it is to be known again.
    pub(crate) fn bytes(&self) -> Option<Bytes> {
        self.0.map(|bytes| Bytes::copy_from_slice(&bytes))
    }
}

impl Receipt {
    /// Of a request.
    pub(crate) fn now(clock: Clock) -> Self {
        Self {
            at: clock(),
            claim: Claim::default(),
            tenant: None,
            charged: false,
        }
    }

    /// Whether it can be; `now` is the present.
    pub(crate) fn check(&self, now: Timestamp) -> Result<(), AuthError> {
        let waited = now.as_second() - self.at.as_second();
        let early = -i64::try_from(CLOCKS_APART.as_secs()).unwrap_or(i64::MAX);
        let late = i64::try_from(LONGEST.as_secs()).unwrap_or(i64::MAX);
        if (early..=late).contains(&waited) {
            return Ok(());
        }
        Err(AuthError::Invalid {
            field: "receipt",
            problem: "must be of the last days".to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_claim_in_words_is_known_again() {
        assert_eq!(Claim::new("").unwrap().bytes(), None);
        let (a, b) = (Claim::new("a").unwrap(), Claim::new("b").unwrap());
        assert_eq!(a.bytes(), Claim::new("a").unwrap().bytes());
        assert_ne!(a.bytes(), b.bytes());
        assert!(Claim::new(&"x".repeat(201)).is_err());
    }

    #[test]
    fn a_receipt_is_of_the_last_days_and_not_of_those_to_come() {
        let now = Timestamp::from_second(1_700_000_000).unwrap();
        let check = |ago: i64| {
            let at = Timestamp::from_second(1_700_000_000 - ago).unwrap();
            let receipt = Receipt {
                at,
                ..Receipt::now(|| Timestamp::UNIX_EPOCH)
            };
            receipt.check(now).is_ok()
        };
        assert!(check(0) && check(-60) && check(7 * 86400));
        assert!(!check(-61) && !check(9 * 86400));
    }
}
