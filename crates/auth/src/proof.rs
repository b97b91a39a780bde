//! What a caller shows, and whether it holds: pure functions over what was sent and what is stored.

use aws_lc_rs::hmac;
use contract::limits::MAX_CLOCK_SKEW_SECONDS;
use secrecy::{ExposeSecret as _, SecretString};

use crate::error::AuthError;
use crate::signature_v2::SignatureV2;

const BEARER_PREFIX: &str = "ink_";
/// Bytes of an HMAC-SHA256.
const SIGNATURE_BYTES: usize = 32;

/// What a caller shows.
#[derive(Debug)]
pub(crate) enum Proof {
    /// A signature over app key and time.
    SignatureV1(SignatureV1),
    /// A signature over the whole request.
    SignatureV2(SignatureV2),
    /// A bearer key: the whole text after `Bearer `.
    Bearer(SecretString),
    /// A token, likewise.
    Token(SecretString),
}

/// hex(HMAC-SHA256(secret, app key ‖ timestamp)), the secret being the text that was shown when the key was made.
#[derive(Debug)]
pub(crate) struct SignatureV1 {
    /// As sent: not yet known to be one.
    pub(crate) app_key: String,
    /// As sent: it is signed in exactly this spelling.
    pub(crate) timestamp: String,
    /// As sent.
    pub(crate) signature: String,
}

impl Proof {
    /// The app key that the caller says it has, if the proof is formed well enough to say.
    pub(crate) fn claims(&self) -> Option<&str> {
        match self {
            Self::SignatureV1(signature) => Some(&signature.app_key),
            Self::SignatureV2(signature) => Some(&signature.app_key),
            Self::Bearer(bearer) => bearer_app_key(bearer.expose_secret()),
            // It does not say, it shows.
            Self::Token(_) => None,
        }
    }

    /// The header that is at fault when the proof does not hold.
    pub(crate) fn header(&self) -> &'static str {
        match self {
            Self::SignatureV1(_) | Self::SignatureV2(_) => "X-Signature",
            Self::Bearer(_) | Self::Token(_) => "Authorization",
        }
    }

    /// Its kind, for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        match self {
            Self::SignatureV1(_) => "signature_v1",
            Self::SignatureV2(_) => "signature_v2",
            Self::Bearer(_) => "bearer",
            Self::Token(_) => "token",
        }
    }
}

/// The text of a bearer key. App keys hold no `_`, so the first one after the prefix ends the app key.
pub(crate) fn bearer_text(app_key: &contract::AppKey, random: &SecretString) -> SecretString {
    let parts = [BEARER_PREFIX, app_key.as_str(), "_", random.expose_secret()];
    // In one piece: a string that grows leaves copies behind.
    parts.concat().into()
}

fn bearer_app_key(bearer: &str) -> Option<&str> {
    let (app_key, _) = bearer.strip_prefix(BEARER_PREFIX)?.split_once('_')?;
    Some(app_key)
}

/// Checks a timestamp as sent against the server's clock (Unix seconds), and gives the time that it says.
pub(crate) fn check_clock(text: &str, server: i64) -> Result<i64, AuthError> {
    let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let sent: i64 = match text.parse() {
        Ok(sent) if digits => sent,
        _ => return Err(AuthError::Timestamp { server }),
    };
    if sent.abs_diff(server) > MAX_CLOCK_SKEW_SECONDS.unsigned_abs() {
        return Err(AuthError::ClockSkew { sent, server });
    }
    Ok(sent)
}

impl SignatureV1 {
    /// Whether it was made with this secret. The time it takes depends on what was sent, not on the secret.
    pub(crate) fn is_made_with(&self, secret: &[u8]) -> bool {
        let mut signature = [0; SIGNATURE_BYTES];
        let readable = hex::decode_to_slice(&self.signature, &mut signature).is_ok();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signed = [self.app_key.as_bytes(), self.timestamp.as_bytes()].concat();
        hmac::verify(&key, &signed, &signature).is_ok() && readable
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    // python3 -c 'import hmac, hashlib; print(hmac.new(SECRET.encode(), (APP_KEY + TS).encode(), hashlib.sha256).hexdigest())'
    const SECRET: &str = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
    const VECTORS: [(&str, &str, &str); 2] = [
        (
            "prod-7h2kq3xw5a",
            "1700000000",
            "274b8abdfaaa82b837065cd039a5be5a4e3c211e754ef380291228f8fe2c03cd",
        ),
        (
            "test-abcdefghij",
            "1764000123",
            "bbf741ff5d89dbd07ef77a64d9eabac5f64ee20010be9f58fc3b8a8ebf6347bf",
        ),
    ];

    fn signature(app_key: &str, timestamp: &str, signature: &str) -> SignatureV1 {
        SignatureV1 {
            app_key: app_key.to_owned(),
            timestamp: timestamp.to_owned(),
            signature: signature.to_owned(),
        }
    }

    #[test]
    fn signatures_that_pythons_hmac_makes_are_accepted() {
        for (app_key, timestamp, made) in VECTORS {
            assert!(signature(app_key, timestamp, made).is_made_with(SECRET.as_bytes()));
            let upper = made.to_uppercase();
            assert!(signature(app_key, timestamp, &upper).is_made_with(SECRET.as_bytes()));
        }
    }

    #[test]
    fn a_signature_of_anything_else_is_refused() {
        let (app_key, timestamp, made) = VECTORS[0];
        let refused = |s: SignatureV1| !s.is_made_with(SECRET.as_bytes());
        assert!(refused(signature("prod-7h2kq3xw5b", timestamp, made)));
        assert!(refused(signature(app_key, "1700000001", made)));
        assert!(refused(signature(app_key, timestamp, &made[..62])));
        assert!(refused(signature(app_key, timestamp, &format!("{made}00"))));
        assert!(refused(signature(app_key, timestamp, "")));
        assert!(refused(signature(
            app_key,
            timestamp,
            &made.replace('2', "x")
        )));
        assert!(!signature(app_key, timestamp, made).is_made_with(&SECRET.as_bytes()[1..]));
    }

    #[test]
    fn a_clock_may_be_off_by_five_minutes_either_way_and_no_more() {
        let now = 1_700_000_000;
        let check = |sent: i64| check_clock(&sent.to_string(), now);
        assert!(check(now - 300).is_ok() && check(now + 300).is_ok());
        for sent in [now - 301, now + 301, 0, i64::MAX] {
            let error = check(sent).unwrap_err().to_string();
            assert!(
                error.contains("300 s") && error.contains("1700000000"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_timestamp_is_decimal_unix_seconds_and_nothing_else() {
        for text in [
            "",
            "now",
            "-5",
            "+1700000000",
            " 1700000000",
            "1.7e9",
            "0x5",
            "99999999999999999999",
            "١٢٣",
        ] {
            let error = check_clock(text, 1_700_000_000).unwrap_err();
            assert!(
                matches!(error, AuthError::Timestamp { .. }),
                "{text}: {error}"
            );
        }
    }

    #[test]
    fn a_bearer_key_names_its_app_key_whatever_its_random_part_holds() {
        let bearer = bearer_text(&"prod-a".parse().unwrap(), &"x_y-_z".into());
        assert_eq!(Proof::Bearer(bearer).claims(), Some("prod-a"));
        for text in ["", "ink_", "ink_prod-a", "sk-prod-a_x", "Bearer ink_a_b"] {
            assert_eq!(Proof::Bearer(text.into()).claims(), None, "{text}");
        }
    }

    #[test]
    fn a_bearer_key_is_not_shown() {
        let shown = format!("{:?}", Proof::Bearer("ink_prod-a_b34r3r".into()));
        assert!(!shown.contains("b34r3r"), "{shown}");
    }

    proptest! {
        #[test]
        fn nothing_a_caller_sends_panics(app_key in ".*", timestamp in ".*", sent in ".*", now: i64) {
            let proof = signature(&app_key, &timestamp, &sent);
            let _ = check_clock(&timestamp, now);
            prop_assert!(!proof.is_made_with(b"secret"));
            let _ = Proof::Bearer(sent.into()).claims();
        }
    }
}
