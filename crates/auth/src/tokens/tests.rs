use contract::proof::is_token;
use jiff::Timestamp;
use jsonwebtoken::{DecodingKey, EncodingKey};
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::key_encryption::{KeyEncryption, LocalKey};

const NOW: i64 = 1_700_000_000;

fn stopped_clock() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

impl Tokens {
    /// One signing key that signs since ever, and no broker.
    pub(crate) async fn for_test(key_encryption: &dyn KeyEncryption, clock: Clock) -> Self {
        let ring = Ring::of_one(key_encryption, Timestamp::UNIX_EPOCH);
        Self {
            ring: watch::channel(Arc::new(ring.await.unwrap())).1,
            issuer: "inkstone".to_owned(),
            audience: "inkstone".to_owned(),
            lifetime: Duration::from_secs(900),
            clock,
        }
    }
}

async fn tokens() -> Tokens {
    Tokens::for_test(&LocalKey::new(&Key::random().unwrap()), stopped_clock).await
}

fn issue(tokens: &Tokens) -> String {
    let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
    let issued = tokens.issue(&app_key, &tenant, None).unwrap();
    issued.token.expose_secret().to_owned()
}

fn read(tokens: &Tokens, token: &str, now: i64) -> Result<Claims, &'static str> {
    verify(&tokens.ring.borrow(), token, "inkstone", "inkstone", now)
}

fn claims() -> serde_json::Value {
    json!({"iss": "inkstone", "aud": "inkstone", "sub": "prod-a", "tenant": "acme",
        "iat": NOW, "nbf": NOW, "exp": NOW + 900, "jti": "0"})
}

/// A token of these claims, rightly signed by the ring's own key.
fn signed(tokens: &Tokens, claims: &serde_json::Value) -> String {
    let ring = tokens.ring.borrow().clone();
    let key = ring.signer(stopped_clock()).unwrap();
    let header = Header {
        kid: Some(key.kid().to_owned()),
        ..Header::new(Algorithm::EdDSA)
    };
    jsonwebtoken::encode(&header, claims, key.signing()).unwrap()
}

#[tokio::test]
async fn a_token_says_what_it_was_made_for_and_is_good_from_now_until_it_expires() {
    let tokens = tokens().await;
    let token = issue(&tokens);
    assert!(token.len() < MAX_TOKEN_BYTES / 2 && is_token(&token));
    let said = read(&tokens, &token, NOW).unwrap();
    assert_eq!(
        (said.sub.as_str(), said.tenant.as_str()),
        ("prod-a", "acme")
    );
    assert_eq!((said.nbf, said.exp), (NOW, NOW + 900));
    for good in [NOW - 5, NOW + 904] {
        read(&tokens, &token, good).unwrap();
    }
    for (bad, why) in [(NOW - 6, "not good yet"), (NOW + 905, "expired")] {
        let problem = read(&tokens, &token, bad).unwrap_err();
        assert!(problem.contains(why), "{problem}");
    }
    assert_ne!(issue(&tokens), token, "no two are the same");
}

#[tokio::test]
async fn a_lifetime_out_of_range_is_refused_with_the_range() {
    let tokens = tokens().await;
    let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
    let issue = |seconds| tokens.issue(&app_key, &tenant, Some(Duration::from_secs(seconds)));
    assert_eq!(issue(60).unwrap().lifetime, Duration::from_secs(60));
    for seconds in [1, 59, 901] {
        let told = issue(seconds).unwrap_err().to_string();
        assert_eq!(told, "lifetime_seconds must be 60 to 900");
    }
}

#[tokio::test]
async fn every_claim_must_be_there_and_ours() {
    let tokens = tokens().await;
    read(&tokens, &signed(&tokens, &claims()), NOW).unwrap();
    for name in ["iss", "aud", "sub", "tenant", "iat", "nbf", "exp", "jti"] {
        let mut without = claims();
        without.as_object_mut().unwrap().remove(name);
        assert!(
            read(&tokens, &signed(&tokens, &without), NOW).is_err(),
            "{name}"
        );
        let mut null = claims();
        null[name] = json!(null);
        assert!(
            read(&tokens, &signed(&tokens, &null), NOW).is_err(),
            "{name}"
        );
    }
    for (name, value) in [
        ("iss", json!("other")),
        ("aud", json!("other")),
        ("sub", json!("NO KEY")),
        ("exp", json!("never")),
        ("exp", json!(1.0e300)),
        ("nbf", json!(i64::MAX)),
    ] {
        let mut changed = claims();
        changed[name] = value;
        assert!(
            read(&tokens, &signed(&tokens, &changed), NOW).is_err(),
            "{name}"
        );
    }
}

#[tokio::test]
async fn no_other_algorithm_and_no_other_key_is_taken() {
    let tokens = tokens().await;
    let ring = tokens.ring.borrow().clone();
    let (_, PublicKey { kid, x }) = ring.public().remove(0);
    let parts = |header: serde_json::Value| {
        let encode = |value: &serde_json::Value| {
            use base64::Engine as _;
            base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
        };
        format!("{}.{}", encode(&header), encode(&claims()))
    };
    // None at all.
    for alg in ["none", "None", "NONE", ""] {
        let unsigned = parts(json!({"alg": alg, "kid": kid}));
        assert!(read(&tokens, &format!("{unsigned}."), NOW).is_err());
        assert!(read(&tokens, &unsigned, NOW).is_err());
    }
    // The public key taken for a secret one: what is published must not sign.
    for (algorithm, secret) in [
        (Algorithm::HS256, x.as_bytes()),
        (Algorithm::HS512, kid.as_bytes()),
    ] {
        let header = Header {
            kid: Some(kid.clone()),
            ..Header::new(algorithm)
        };
        let forged = jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(secret));
        assert!(read(&tokens, &forged.unwrap(), NOW).is_err());
    }
    // Another Ed25519 key under the right id, under its own, and under none.
    let stranger = self::tokens().await;
    let forged = signed(&stranger, &claims());
    assert!(
        read(&tokens, &forged, NOW)
            .unwrap_err()
            .contains("not held")
    );
    let theirs = stranger.ring.borrow().clone();
    let theirs = theirs.signer(stopped_clock()).unwrap();
    for named in [Some(kid.clone()), None] {
        let header = Header {
            kid: named,
            ..Header::new(Algorithm::EdDSA)
        };
        let forged = jsonwebtoken::encode(&header, &claims(), theirs.signing()).unwrap();
        assert!(read(&tokens, &forged, NOW).is_err());
    }
    // A key that the token brings along is not looked at.
    let header = json!({"alg": "EdDSA", "jwk": {"kty": "OKP", "crv": "Ed25519", "x": x}});
    assert!(read(&tokens, &(parts(header) + ".AAAA"), NOW).is_err());
    // The signature is good for those who verify by the published key.
    let token = issue(&tokens);
    let mut expected = Validation::new(Algorithm::EdDSA);
    expected.set_audience(&["inkstone"]);
    expected.validate_exp = false;
    let published = DecodingKey::from_ed_components(&x).unwrap();
    jsonwebtoken::decode::<Claims>(&token, &published, &expected).unwrap();
}

#[tokio::test]
async fn a_changed_or_cut_token_is_refused_at_every_byte() {
    let tokens = tokens().await;
    let token = issue(&tokens);
    for at in 0..token.len() {
        assert!(read(&tokens, &token[..at], NOW).is_err(), "cut at {at}");
        let mut changed = token.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        assert!(read(&tokens, &changed, NOW).is_err(), "byte {at}");
    }
    let long = token + &"A".repeat(MAX_TOKEN_BYTES);
    assert!(read(&tokens, &long, NOW).unwrap_err().contains("longer"));
}

proptest! {
    #[test]
    fn nothing_that_is_not_signed_is_taken_and_nothing_panics(
        parts in prop::collection::vec("[A-Za-z0-9_-]{0,60}|.{0,20}", 0..5),
        header in "\\{\"alg\":\"(EdDSA|none|HS256|RS256|ES256)\"(,\"kid\":\"[a-z]{0,4}\")?(,\"crit\":\\[\\])?\\}",
    ) {
        use base64::Engine as _;
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let tokens = runtime.block_on(tokens());
        prop_assert!(read(&tokens, &parts.join("."), NOW).is_err());
        let header = base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(header);
        let token = [header, parts.join(".")].join(".");
        prop_assert!(read(&tokens, &token, NOW).is_err());
    }
}
