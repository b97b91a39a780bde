//! The few cryptographic steps that auth is made of: random keys, derived keys, sealed bytes. All of it is aws-lc-rs.

use std::fmt;

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::error::Unspecified;
use aws_lc_rs::hkdf::{HKDF_SHA256, Salt};
use aws_lc_rs::rand;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};
use zeroize::Zeroizing;

/// Bytes of every symmetric key here.
pub(crate) const KEY_BYTES: usize = 32;
const TAG_BYTES: usize = 16;
/// Characters that a key has in base64url without padding.
pub(crate) const BASE64_CHARS: usize = 43;

/// The library refused: the input was changed, is under another key, or there is no randomness. It does not say which.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the bytes were not sealed under this key for this purpose")]
pub(crate) struct Unsealable;

impl From<Unspecified> for Unsealable {
    fn from(_: Unspecified) -> Self {
        Self
    }
}

/// A symmetric key, wiped when dropped and never shown.
#[derive(Debug)]
pub(crate) struct Key(SecretBox<[u8; KEY_BYTES]>);

impl Key {
    /// A new random key.
    pub(crate) fn random() -> Result<Self, Unsealable> {
        let mut outcome = Ok(());
        let key =
            SecretBox::init_with_mut(|bytes: &mut [u8; KEY_BYTES]| outcome = rand::fill(bytes));
        outcome?;
        Ok(Self(key))
    }

    /// The key that `bytes` are, if they are as many as a key has.
    pub(crate) fn from_slice(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != KEY_BYTES {
            return None;
        }
        Some(Self(SecretBox::init_with_mut(
            |key: &mut [u8; KEY_BYTES]| {
                key.copy_from_slice(bytes);
            },
        )))
    }

    /// The key itself.
    pub(crate) fn expose(&self) -> &[u8] {
        self.0.expose_secret()
    }

    /// As lower-case hexadecimal digits.
    pub(crate) fn to_hex(&self) -> SecretString {
        let mut text = Zeroizing::new([0; 2 * KEY_BYTES]);
        hex::encode_to_slice(self.expose(), &mut *text).expect("the buffer has two digits a byte");
        secret_text(&*text)
    }

    /// As base64url without padding.
    pub(crate) fn to_base64url(&self) -> SecretString {
        let mut text = Zeroizing::new([0; BASE64_CHARS]);
        let written = URL_SAFE_NO_PAD.encode_slice(self.expose(), &mut *text);
        written.expect("32 bytes are 43 characters of base64");
        secret_text(&*text)
    }

    /// A key for one purpose, from which neither this key nor those of other purposes follow (HKDF, RFC 5869).
    pub(crate) fn derive(&self, purpose: &str) -> Self {
        let salt = Salt::new(HKDF_SHA256, b"inkstone auth v1");
        let derived = SecretBox::init_with_mut(|bytes: &mut [u8; KEY_BYTES]| {
            salt.extract(self.expose())
                .expand(&[purpose.as_bytes()], HKDF_SHA256)
                .and_then(|output| output.fill(bytes))
                .expect("32 bytes are far below what HKDF can give");
        });
        Self(derived)
    }

    fn cipher(&self) -> Result<RandomizedNonceKey, Unsealable> {
        Ok(RandomizedNonceKey::new(&AES_256_GCM, self.expose())?)
    }

    /// Seals `plain` with AES-256-GCM and a random nonce, bound to `context`.
    pub(crate) fn seal(&self, context: &[u8], plain: &[u8]) -> Result<Sealed, Unsealable> {
        // Room for the tag from the start: growing would leave a copy of the plaintext behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(plain.len() + TAG_BYTES));
        bytes.extend_from_slice(plain);
        let nonce = self
            .cipher()?
            .seal_in_place_append_tag(Aad::from(context), &mut *bytes)?;
        let mut sealed = Vec::with_capacity(NONCE_LEN + bytes.len());
        sealed.extend_from_slice(nonce.as_ref());
        sealed.extend_from_slice(&bytes);
        Ok(Sealed(sealed))
    }

    /// What [`seal`](Self::seal) was given under this key and `context`.
    pub(crate) fn open(
        &self,
        context: &[u8],
        sealed: &Sealed,
    ) -> Result<Zeroizing<Vec<u8>>, Unsealable> {
        let (nonce, bytes) = sealed.0.split_at_checked(NONCE_LEN).ok_or(Unsealable)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce)?;
        let mut bytes = Zeroizing::new(bytes.to_vec());
        let plain = self
            .cipher()?
            .open_in_place(nonce, Aad::from(context), &mut bytes)?
            .len();
        bytes.truncate(plain);
        Ok(bytes)
    }
}

fn secret_text(ascii: &[u8]) -> SecretString {
    std::str::from_utf8(ascii)
        .expect("both alphabets are ASCII")
        .into()
}

/// Bytes that are safe to store: nonce, ciphertext and tag, or a keyed digest. Base64 in JSON.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Sealed(pub(crate) Vec<u8>);

impl fmt::Debug for Sealed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{} sealed bytes]", self.0.len())
    }
}

impl Serialize for Sealed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(&self.0))
    }
}

impl<'de> Deserialize<'de> for Sealed {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Self).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sealed_opens_only_under_its_key_and_context() {
        let (key, other) = (Key::random().unwrap(), Key::random().unwrap());
        let sealed = key.seal(b"here", b"words").unwrap();
        assert_eq!(&*key.open(b"here", &sealed).unwrap(), b"words");
        assert_eq!(key.open(b"there", &sealed), Err(Unsealable));
        assert_eq!(other.open(b"here", &sealed), Err(Unsealable));
        assert_ne!(
            key.seal(b"here", b"words").unwrap(),
            sealed,
            "nonces are random"
        );
    }

    #[test]
    fn a_change_of_any_byte_or_the_length_is_noticed() {
        let key = Key::random().unwrap();
        let sealed = key.seal(b"", b"words").unwrap();
        for at in 0..sealed.0.len() {
            let mut changed = sealed.clone();
            changed.0[at] ^= 1;
            assert_eq!(key.open(b"", &changed), Err(Unsealable), "byte {at}");
            let cut = Sealed(sealed.0[..at].to_vec());
            assert_eq!(key.open(b"", &cut), Err(Unsealable), "cut at {at}");
        }
    }

    #[test]
    fn derived_keys_differ_by_purpose_and_stay_the_same() {
        let key = Key::from_slice(&[7; KEY_BYTES]).unwrap();
        assert_eq!(key.derive("a").expose(), key.derive("a").expose());
        assert_ne!(key.derive("a").expose(), key.derive("b").expose());
        assert!(Key::from_slice(&[7; 31]).is_none());
    }

    #[test]
    fn a_derived_key_is_what_rfc_5869_says() {
        // Computed with Python's hmac: extract with the salt, expand one block with the info.
        let key = Key::from_slice(&[7; KEY_BYTES]).unwrap();
        assert_eq!(hex::encode(key.derive("a").expose()), DERIVED);
    }

    const DERIVED: &str = "ad9d693a79206cd260a2d096ee16809549972cebc9ce7d36c60510d0e4fcebe6";

    #[test]
    fn a_key_has_two_spellings() {
        let key = Key::from_slice(&[0xFB; KEY_BYTES]).unwrap();
        assert_eq!(key.to_hex().expose_secret(), "fb".repeat(32));
        let text = key.to_base64url();
        assert_eq!(text.expose_secret().len(), BASE64_CHARS);
        assert!(text.expose_secret().starts_with("-_v7"));
    }

    #[test]
    fn a_key_is_not_shown() {
        let key = Key::from_slice(&[0xAB; KEY_BYTES]).unwrap();
        let shown = format!("{key:?}");
        assert!(
            !shown.contains("171") && !shown.to_lowercase().contains("abab"),
            "{shown}"
        );
    }
}
