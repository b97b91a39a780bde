//! Who calls, as headers show it: the one reader of keys, tokens and signatures, over HTTP, gRPC and NATS. What it reads is auth's to verify.

use aws_lc_rs::{constant_time, digest};
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::auth::authenticate_request::Proof;
use crate::auth::{SignatureV1, SignatureV2};
use crate::{ErrorCode, Failure};

const APP_KEY: HeaderName = HeaderName::from_static("x-app-key");
const TIMESTAMP: HeaderName = HeaderName::from_static("x-timestamp");
const NONCE: HeaderName = HeaderName::from_static("x-nonce");
const CONTENT_SHA256: HeaderName = HeaderName::from_static("x-content-sha256");
const SIGNATURE: HeaderName = HeaderName::from_static("x-signature");

/// Longer than any key or token that auth gives out; keeps nonsense away from it.
const MAX_PROOF_BYTES: usize = 4096;

/// The digest that a caller has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignedBody([u8; digest::SHA256_OUTPUT_LEN]);

impl SignedBody {
    /// Reads a digest in hexadecimal digits. One that is none fits no body; auth refuses it before that matters.
    pub fn new(text: &str) -> Option<Self> {
        let mut bytes = [0; digest::SHA256_OUTPUT_LEN];
        // All zeros is the digest of nothing that anyone knows.
        let _ = hex::decode_to_slice(text, &mut bytes);
        Some(Self(bytes))
    }

    /// Whether these bytes are the body that was signed, in constant time.
    pub fn is(&self, body: &[u8]) -> bool {
        let received = digest::digest(&digest::SHA256, body);
        constant_time::verify_slices_are_equal(received.as_ref(), &self.0).is_ok()
    }
}

/// What a request's head shows of its caller.
#[derive(Debug, PartialEq)]
pub struct Proven {
    /// For auth to verify.
    pub proof: Proof,
    /// What the body must be, for us to verify: the digest that auth finds signed.
    pub body: Option<SignedBody>,
}

impl Proven {
    /// The proof that headers carry; `target` is method, path and query, as signature v2 signs them.
    ///
    /// # Errors
    /// Unauthenticated, with the ways there are.
    pub fn read(target: [&str; 3], headers: &HeaderMap) -> Result<Self, Failure> {
        let mut bearers = headers.get_all(header::AUTHORIZATION).iter();
        if let Some(value) = bearers.next() {
            // Whoever stands between may go by the other one.
            if bearers.next().is_some() {
                return refused("the Authorization header is given more than once");
            }
            // It would be believed, and what the signature holds the body to would not count.
            if headers.contains_key(SIGNATURE) {
                return refused(
                    "both Authorization and X-Signature are given: send one of the two",
                );
            }
            let proof = bearer(value)?;
            return Ok(Self { proof, body: None });
        }
        let all = [APP_KEY, TIMESTAMP, NONCE, CONTENT_SHA256, SIGNATURE];
        let given = all.clone().map(|name| headers.contains_key(name));
        match given {
            [false, false, false, false, false] => refused(
                "credentials are missing: send Authorization: Bearer with a key or a token, or X-App-Key, X-Timestamp, \
                 X-Nonce, X-Content-SHA256 and X-Signature",
            ),
            // Neither of what only v2 has.
            [_, _, false, false, _] => v1(headers).map(|proof| Self { proof, body: None }),
            _ => {
                let signature = v2(target, headers)?;
                let body = SignedBody::new(&signature.content_sha256);
                let proof = Proof::SignatureV2(signature);
                Ok(Self { proof, body })
            }
        }
    }
}

/// Whether a bearer text is meant as a token: three parts, as no key has.
pub fn is_token(bearer: &str) -> bool {
    bearer.bytes().filter(|b| *b == b'.').count() == 2
}

fn refused<T>(message: impl Into<String>) -> Result<T, Failure> {
    Err(Failure::new(ErrorCode::Unauthenticated, message))
}

fn bearer(value: &HeaderValue) -> Result<Proof, Failure> {
    let text = value
        .to_str()
        .ok()
        .filter(|text| text.len() <= MAX_PROOF_BYTES);
    let token = text
        .and_then(|text| text.split_once(' '))
        .and_then(|(scheme, token)| scheme.eq_ignore_ascii_case("bearer").then(|| token.trim()));
    match token {
        Some(token) if !token.is_empty() => Ok(Proof::Bearer(token.to_owned())),
        _ => refused("the Authorization header must be `Bearer` and a key or a token"),
    }
}

fn v1(headers: &HeaderMap) -> Result<Proof, Failure> {
    const NEEDS: &str = "a signature needs X-App-Key, X-Timestamp and X-Signature";
    Ok(Proof::SignatureV1(SignatureV1 {
        app_key: part(headers, &APP_KEY, "X-App-Key", NEEDS)?,
        timestamp: part(headers, &TIMESTAMP, "X-Timestamp", NEEDS)?,
        signature: part(headers, &SIGNATURE, "X-Signature", NEEDS)?,
    }))
}

fn v2([method, path, query]: [&str; 3], headers: &HeaderMap) -> Result<SignatureV2, Failure> {
    const NEEDS: &str =
        "signature v2 needs X-App-Key, X-Timestamp, X-Nonce, X-Content-SHA256 and X-Signature";
    Ok(SignatureV2 {
        app_key: part(headers, &APP_KEY, "X-App-Key", NEEDS)?,
        timestamp: part(headers, &TIMESTAMP, "X-Timestamp", NEEDS)?,
        nonce: part(headers, &NONCE, "X-Nonce", NEEDS)?,
        content_sha256: part(headers, &CONTENT_SHA256, "X-Content-SHA256", NEEDS)?,
        signature: part(headers, &SIGNATURE, "X-Signature", NEEDS)?,
        method: method.to_owned(),
        path: path.to_owned(),
        query: query.to_owned(),
    })
}

/// A header that must be there once; `shown` is its name as people write it.
fn part(
    headers: &HeaderMap,
    name: &HeaderName,
    shown: &str,
    needs: &str,
) -> Result<String, Failure> {
    let at_fault = |message: String| {
        Err(Failure {
            field: Some(shown.to_owned()),
            ..Failure::new(ErrorCode::Unauthenticated, message)
        })
    };
    let mut values = headers.get_all(name).iter();
    let (Some(value), None) = (values.next(), values.next()) else {
        let problem = if headers.contains_key(name) {
            "is given more than once"
        } else {
            "is missing"
        };
        return at_fault(format!("{shown} {problem}: {needs}"));
    };
    match value.to_str() {
        Ok(text) if text.len() <= MAX_PROOF_BYTES => Ok(text.trim().to_owned()),
        _ => at_fault(format!(
            "{shown} must be plain text of at most {MAX_PROOF_BYTES} bytes"
        )),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pair = |(name, value): &(&'static str, &'static str)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        };
        pairs.iter().map(pair).collect()
    }

    fn proof(headers: &HeaderMap) -> Result<Proof, Failure> {
        let target = ["POST", "/v1/tasks", "limit=5"];
        Proven::read(target, headers).map(|proven| proven.proof)
    }

    const V2: [(&str, &str); 5] = [
        ("x-app-key", "a"),
        ("x-timestamp", "1"),
        ("x-nonce", "n"),
        ("x-content-sha256", "00"),
        ("x-signature", "ff"),
    ];

    #[test]
    fn a_bearer_key_and_both_signatures_are_proofs() {
        let bearer = proof(&headers(&[("authorization", "bearer  k-1 ")])).unwrap();
        assert_eq!(bearer, Proof::Bearer("k-1".to_owned()));
        let v1 = [V2[0], V2[1], V2[4]];
        let v1 = proof(&headers(&v1)).unwrap();
        assert!(matches!(v1, Proof::SignatureV1(_)), "{v1:?}");
        let Proof::SignatureV2(v2) = proof(&headers(&V2)).unwrap() else {
            panic!("not v2");
        };
        let target = (v2.method.as_str(), v2.path.as_str(), v2.query.as_str());
        assert_eq!(target, ("POST", "/v1/tasks", "limit=5"));
        assert_eq!((v2.nonce.as_str(), v2.content_sha256.as_str()), ("n", "00"));
    }

    #[test]
    fn without_a_proof_the_refusal_names_the_ways() {
        let message = proof(&HeaderMap::new()).unwrap_err().message;
        assert!(
            message.contains("Bearer") && message.contains("X-Signature"),
            "{message}"
        );
        for bad in ["Basic eDp5", "Bearer", "Bearer ", "k-1"] {
            let failure = proof(&headers(&[("authorization", bad)])).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Unauthenticated);
        }
    }

    #[test]
    fn two_proofs_are_none() {
        let bearer = ("authorization", "Bearer k-1");
        for other in [bearer, ("authorization", "Basic eDp5")] {
            let mut both = headers(&[bearer]);
            both.append(other.0, HeaderValue::from_static(other.1));
            let failure = proof(&both).unwrap_err();
            assert_eq!(failure.code, ErrorCode::Unauthenticated);
            assert!(failure.message.contains("more than once"));
        }
        let mut both = headers(&V2);
        both.append(bearer.0, HeaderValue::from_static(bearer.1));
        let failure = proof(&both).unwrap_err();
        assert!(failure.message.contains("one of the two"), "{failure:?}");
    }

    #[test]
    fn the_header_that_is_missing_or_given_twice_is_named() {
        let half = headers(&V2[..2]);
        let failure = proof(&half).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("X-Signature is missing: a signature")
        );
        assert_eq!(failure.field.as_deref(), Some("X-Signature"));
        for left_out in 0..V2.len() {
            let mut rest = V2.to_vec();
            let (name, _) = rest.remove(left_out);
            // Without either of its own two headers it would be v1 with one too many: still v2, still refused.
            let failure = proof(&headers(&rest)).unwrap_err();
            let field = failure.field.unwrap();
            assert!(field.eq_ignore_ascii_case(name), "{name}: {field}");
            assert!(failure.message.contains("signature v2 needs"));
        }
        let mut twice = headers(&V2);
        twice.append("x-nonce", HeaderValue::from_static("m"));
        let failure = proof(&twice).unwrap_err();
        assert!(
            failure
                .message
                .starts_with("X-Nonce is given more than once")
        );
    }

    proptest! {
        #[test]
        fn no_header_makes_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
            if let Ok(value) = HeaderValue::from_bytes(&bytes) {
                for name in [header::AUTHORIZATION, APP_KEY, TIMESTAMP, NONCE, CONTENT_SHA256, SIGNATURE] {
                    let _ = proof(&HeaderMap::from_iter([(name, value.clone())]));
                }
            }
        }
    }
}
