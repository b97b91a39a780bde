//! Signature v2: the whole request is signed, once, under a key that is good for one day. Pure functions over what was
//! sent; `docs/API.md` tells callers the same in their words.
//!
//! ```text
//! day key    = HMAC-SHA256(secret, "inkstone-v2:" ‖ YYYYMMDD)             the UTC day of the timestamp
//! signed     = "INKSTONE-HMAC-SHA256-V2" ‖ LF ‖ timestamp ‖ LF ‖ nonce ‖ LF ‖ method ‖ LF ‖ path ‖ LF ‖ query ‖ LF ‖ digest
//! signature  = hex(HMAC-SHA256(day key, signed))
//! ```
//!
//! The day is that of the timestamp which is signed, not that of the server's clock, so midnight is like any other moment.
//! The colon keeps v1 and v2 apart: no app key holds one, so nothing that v1 signs under a secret can be a day key.

use std::fmt::Write as _;

use aws_lc_rs::hmac;
use jiff::Timestamp;
use jiff::tz::TimeZone;
use zeroize::Zeroizing;

use crate::error::AuthError;
use crate::proof::check_clock;

/// Names the algorithm in what is signed: a later version signs something that this one never does.
const VERSION: &str = "INKSTONE-HMAC-SHA256-V2";
/// What the day's key is derived for.
const DAY_KEY: &str = "inkstone-v2:";
/// Bytes of an HMAC-SHA256 and of a SHA-256.
const DIGEST_BYTES: usize = 32;
/// Characters of a nonce: at least 96 bits where all are used, at most what a log line bears.
const NONCE_CHARS: std::ops::RangeInclusive<usize> = 16..=64;
/// Bytes of method, path and query together: more than any request line that the edge takes.
const MAX_TARGET_BYTES: usize = 64 * 1024;

/// A signature over a whole request, as it was sent.
#[derive(Debug)]
pub(crate) struct SignatureV2 {
    /// Not yet known to be one.
    pub(crate) app_key: String,
    pub(crate) timestamp: String,
    pub(crate) nonce: String,
    pub(crate) content_sha256: String,
    pub(crate) signature: String,
    pub(crate) method: String,
    pub(crate) path: String,
    pub(crate) query: String,
}

impl SignatureV2 {
    /// Checks what can be checked without a key: the clock (`server` is in Unix seconds) and the form of each part. Gives
    /// the time that was sent.
    pub(crate) fn check(&self, server: i64) -> Result<i64, AuthError> {
        let sent = check_clock(&self.timestamp, server)?;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if !NONCE_CHARS.contains(&self.nonce.len()) || !self.nonce.bytes().all(plain) {
            return Err(AuthError::Nonce);
        }
        let lower_hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        let digest = &self.content_sha256;
        if digest.len() != 2 * DIGEST_BYTES || !digest.bytes().all(lower_hex) {
            return Err(AuthError::ContentDigest);
        }
        let target = self.method.len() + self.path.len() + self.query.len();
        // A line feed would let one part pose as two. HTTP has none; a caller of this service may.
        let one_line = |part: &str| !part.bytes().any(|b| b.is_ascii_control());
        let lines = one_line(&self.method) && one_line(&self.path) && one_line(&self.query);
        if target > MAX_TARGET_BYTES || !lines {
            return Err(AuthError::Target);
        }
        Ok(sent)
    }

    /// Whether it was made with this secret at `sent` (Unix seconds), in constant time.
    pub(crate) fn is_made_with(&self, secret: &[u8], sent: i64) -> bool {
        let mut signature = [0; DIGEST_BYTES];
        let readable = hex::decode_to_slice(&self.signature, &mut signature).is_ok();
        let Some(day) = day(sent) else { return false };
        let key = day_key(secret, &day);
        let key = hmac::Key::new(hmac::HMAC_SHA256, &*key);
        hmac::verify(&key, self.signed().as_bytes(), &signature).is_ok() && readable
    }

    fn signed(&self) -> String {
        let parts: [&str; 7] = [
            VERSION,
            &self.timestamp,
            &self.nonce,
            &self.method,
            &self.path,
            &canonical_query(&self.query),
            &self.content_sha256,
        ];
        parts.join("\n")
    }
}

/// The UTC day of a time in Unix seconds, as `20261126`; none outside of the years that have four digits.
fn day(at: i64) -> Option<String> {
    let at = Timestamp::from_second(at).ok()?;
    let date = at.to_zoned(TimeZone::UTC).date();
    let (year, month, day) = (date.year(), date.month(), date.day());
    (0..=9999)
        .contains(&year)
        .then(|| format!("{year:04}{month:02}{day:02}"))
}

/// The key of a day, wiped when dropped.
fn day_key(secret: &[u8], day: &str) -> Zeroizing<[u8; DIGEST_BYTES]> {
    let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
    let mut key = Zeroizing::new([0; DIGEST_BYTES]);
    let label = [DAY_KEY, day].concat();
    hmac::sign_to_buffer(&secret, label.as_bytes(), &mut *key)
        .expect("the buffer is as long as an HMAC-SHA256");
    key
}

/// A query in the one form that is signed: each name and value decoded as the handlers decode it (`%XX`, and `+` for a space:
/// WHATWG URL, 5.1) and encoded again so that all but `A-Z a-z 0-9 - . _ ~` is `%XX` in upper case, an `=` between them in
/// any case, sorted by name as bytes. So two queries that sign alike say the same; one that could be changed on its way into
/// one that says something else would not be signed at all.
/// Those of one name stay in the order that they were sent in: a handler may care for it, so nobody may change it.
pub(crate) fn canonical_query(query: &str) -> String {
    let pieces = query.split('&').filter(|piece| !piece.is_empty());
    let mut pairs: Vec<(String, String)> = pieces
        .map(|piece| piece.split_once('=').unwrap_or((piece, "")))
        .map(|(name, value)| (recoded(name), recoded(value)))
        .collect();
    pairs.sort_by(|(a, _), (b, _)| a.cmp(b));
    let pairs: Vec<String> = pairs
        .into_iter()
        .map(|(name, value)| name + "=" + &value)
        .collect();
    pairs.join("&")
}

fn recoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, after @ ..] = rest {
        let escaped = match rest {
            [b'+', after @ ..] => Some((b' ', after)),
            [b'%', high, low, after @ ..] => escaped(*high, *low).map(|byte| (byte, after)),
            _ => None,
        };
        let (byte, after) = escaped.unwrap_or((*first, after));
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a string does not fail.
            let _ = write!(out, "%{byte:02X}");
        }
        rest = after;
    }
    out
}

/// The byte that two hexadecimal digits stand for.
fn escaped(high: u8, low: u8) -> Option<u8> {
    let digit = |b: u8| char::from(b).to_digit(16);
    u8::try_from(digit(high)? * 16 + digit(low)?).ok()
}

#[cfg(test)]
#[path = "signature_v2_tests.rs"]
mod tests;
