//! What webhooks are signed with: a secret a key, derived from its data key and stored nowhere, in the form of Standard Webhooks
//! (<https://www.standardwebhooks.com>): `whsec_` and base64; a signature is `v1,` and base64 of HMAC-SHA256 over
//! `<id>.<timestamp>.<body>`.

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use secrecy::SecretString;
use zeroize::Zeroizing;

use crate::error::AuthError;
use crate::sealed::Key;

/// What the key is derived for.
pub(crate) const PURPOSE: &str = "webhook secret";
const SECRET_PREFIX: &str = "whsec_";
/// The largest body that is signed.
const MAX_BODY_BYTES: usize = 256 * 1024;
/// The longest id of a message.
const MAX_ID_BYTES: usize = 256;

/// What is to be signed.
#[derive(Debug)]
pub(crate) struct Message {
    pub(crate) id: String,
    /// Unix seconds.
    pub(crate) timestamp: i64,
    pub(crate) body: Vec<u8>,
}

impl Message {
    /// Checks what could make one message pose as another.
    pub(crate) fn check(&self) -> Result<(), AuthError> {
        let invalid = |field, problem: &str| {
            let problem = problem.to_owned();
            Err(AuthError::Invalid { field, problem })
        };
        let id = &self.id;
        let plain = |b: u8| b.is_ascii_graphic() && b != b'.';
        if id.is_empty() || id.len() > MAX_ID_BYTES || !id.bytes().all(plain) {
            return invalid("message_id", "must be visible ASCII without a dot");
        }
        if self.body.len() > MAX_BODY_BYTES {
            return invalid("body", "must be at most 256 KiB");
        }
        Ok(())
    }

    /// The signature under `secret`.
    pub(crate) fn sign(&self, secret: &[u8]) -> String {
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let mut context = hmac::Context::with_key(&key);
        context.update(format!("{}.{}.", self.id, self.timestamp).as_bytes());
        context.update(&self.body);
        format!("v1,{}", STANDARD.encode(context.sign()))
    }
}

/// The secret as its owner is shown it.
pub(crate) fn secret_text(secret: &Key) -> SecretString {
    // As long as 32 bytes are in base64, so that it never grows and leaves copies behind.
    let mut text = Zeroizing::new(String::with_capacity(SECRET_PREFIX.len() + 44));
    text.push_str(SECRET_PREFIX);
    STANDARD.encode_string(secret.expose(), &mut text);
    text.as_str().into()
}

#[cfg(test)]
mod tests {
    use secrecy::ExposeSecret as _;

    use super::*;

    #[test]
    fn a_signature_is_the_one_of_the_specifications_example() {
        let secret = STANDARD.decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").unwrap();
        let message = Message {
            id: "msg_p5jXN8AQM9LWM0D4loKWxJek".to_owned(),
            timestamp: 1_614_265_330,
            body: br#"{"test": 2432232314}"#.to_vec(),
        };
        assert!(message.check().is_ok());
        let expected = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=";
        assert_eq!(message.sign(&secret), expected);
    }

    #[test]
    fn a_message_that_could_be_read_as_another_is_refused() {
        let with = |id: &str, bytes: usize| {
            let (id, body) = (id.to_owned(), vec![0; bytes]);
            let timestamp = 1;
            Message {
                id,
                timestamp,
                body,
            }
            .check()
            .is_ok()
        };
        assert!(with("a-b_c", 256 * 1024));
        for bad in ["", "a.1", "a b", "é", &"x".repeat(257)] {
            assert!(!with(bad, 0), "{bad}");
        }
        assert!(!with("a", 256 * 1024 + 1));
    }

    #[test]
    fn a_secret_is_shown_in_the_form_that_libraries_take() {
        let key = Key::from_slice(&[0xFB; 32]).unwrap();
        let text = secret_text(&key);
        let base64 = text.expose_secret().strip_prefix("whsec_").unwrap();
        assert_eq!(STANDARD.decode(base64).unwrap(), [0xFB; 32]);
    }
}
