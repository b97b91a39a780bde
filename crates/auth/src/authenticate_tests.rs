//! Authentication without a broker: the followed copies are values here.

use std::time::Duration;

use aws_lc_rs::hmac;
use messaging::Snapshot;

use super::*;
use crate::key_encryption::LocalKey;
use crate::keys::{self, NewKey};
use crate::proof::SignatureV1;
use crate::receipt::Claim;
use crate::sealed::Key;
use crate::signature_v2::SignatureV2;

const NOW: i64 = 1_700_000_000;

fn stopped_clock() -> Timestamp {
    Timestamp::from_second(NOW).unwrap()
}

struct Bench {
    authenticator: Authenticator,
    keys: watch::Sender<Snapshot<KeyRecord>>,
    policies: watch::Sender<Snapshot<PolicyRecord>>,
    tokens: Arc<Tokens>,
    made: keys::Made,
}

async fn bench(prefix: &str, allow_signature_v1: bool) -> Bench {
    let kek = Arc::new(LocalKey::new(&Key::random().unwrap()));
    bench_with(prefix, allow_signature_v1, kek).await
}

async fn bench_with(prefix: &str, allow_signature_v1: bool, kek: Arc<dyn KeyEncryption>) -> Bench {
    let new = NewKey {
        prefix: prefix.to_owned(),
        tenant: "acme".parse().unwrap(),
        name: "a laptop".to_owned(),
        allow_signature_v1,
    };
    let made = keys::make(&new, &*kek, stopped_clock()).await.unwrap();
    let record = made.record.clone();
    let all = [(record.app_key.to_string(), record)].into();
    let (keys, keys_seen) = watch::channel(Arc::new(all));
    let table = policy::defaults().map(|(name, policy)| (name.to_owned(), policy));
    let (policies, policies_seen) = watch::channel(Arc::new(table.into()));
    // Under a key of their own: what is tested here is the one that the caller gave.
    let tokens_kek = LocalKey::new(&Key::random().unwrap());
    let tokens = Arc::new(Tokens::for_test(&tokens_kek, stopped_clock).await);
    let authenticator = Authenticator::new(
        keys_seen,
        policies_seen,
        kek,
        Arc::new(Limiter::default()),
        Nonces::Memory(Default::default()),
        tokens.clone(),
        stopped_clock,
    )
    .await;
    Bench {
        authenticator: authenticator.unwrap(),
        keys,
        policies,
        tokens,
        made,
    }
}

impl Bench {
    fn app_key(&self) -> &str {
        self.made.record.app_key.as_str()
    }

    fn signed(&self, app_key: &str, at: i64) -> Proof {
        use secrecy::ExposeSecret as _;
        let secret = self.made.secret.expose_secret().as_bytes();
        let key = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let signature = hmac::sign(&key, format!("{app_key}{at}").as_bytes());
        Proof::SignatureV1(SignatureV1 {
            app_key: app_key.to_owned(),
            timestamp: at.to_string(),
            signature: hex::encode(signature),
        })
    }

    fn signed_v2(&self, nonce: &str) -> Proof {
        use secrecy::ExposeSecret as _;
        let digest = hex::encode(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b""));
        let sign = |key: &[u8], text: &str| {
            let key = hmac::Key::new(hmac::HMAC_SHA256, key);
            hmac::sign(&key, text.as_bytes())
        };
        let secret = self.made.secret.expose_secret().as_bytes();
        let day = sign(secret, "inkstone-v2:20231114");
        let signed =
            format!("INKSTONE-HMAC-SHA256-V2\n{NOW}\n{nonce}\nGET\n/v1/models\n\n{digest}");
        Proof::SignatureV2(SignatureV2 {
            app_key: self.app_key().to_owned(),
            timestamp: NOW.to_string(),
            nonce: nonce.to_owned(),
            content_sha256: digest,
            signature: hex::encode(sign(day.as_ref(), &signed)),
            method: "GET".to_owned(),
            path: "/v1/models".to_owned(),
            query: String::new(),
        })
    }

    fn change(&self, change: impl FnOnce(&mut KeyRecord)) {
        self.keys.send_modify(|all| {
            let all = Arc::make_mut(all);
            change(all.get_mut(self.app_key()).unwrap());
        });
    }

    async fn refused(&self, proof: Proof) -> String {
        let refused = self.authenticator.authenticate(&proof).await.unwrap_err();
        refused.to_string()
    }
}

#[tokio::test]
async fn a_new_key_is_let_in_by_signature_and_by_bearer() {
    let bench = bench("prod-", true).await;
    let signed = bench.signed(bench.app_key(), NOW - 299);
    let admitted = bench.authenticator.authenticate(&signed).await.unwrap();
    assert_eq!(admitted.key.app_key, bench.made.record.app_key);
    assert_eq!(admitted.policy.tier, "priority");
    assert_eq!(admitted.allowance.remaining, 49);
    let bearer = Proof::Bearer(bench.made.bearer.clone());
    let admitted = bench.authenticator.authenticate(&bearer).await.unwrap();
    assert!(admitted.allowance.remaining < 50);
}

#[tokio::test]
async fn unknown_wrong_and_revoked_keys_hear_the_same() {
    let bench = bench("prod-", true).await;
    let mut heard = vec![
        bench.refused(bench.signed("prod-unknown", NOW)).await,
        bench.refused(bench.signed("NO KEY AT ALL", NOW)).await,
        bench.refused(bench.signed("nobody-0000000000", NOW)).await,
        bench
            .refused(Proof::Bearer("ink_prod-unknown_x".into()))
            .await,
        bench.refused(Proof::Bearer("gibberish".into())).await,
    ];
    let mut wrong = bench.signed(bench.app_key(), NOW);
    if let Proof::SignatureV1(signature) = &mut wrong {
        signature.signature = "00".repeat(32);
    }
    heard.push(bench.refused(wrong).await);
    let bearer = format!("ink_{}_wrong", bench.app_key());
    heard.push(bench.refused(Proof::Bearer(bearer.into())).await);
    bench.change(|key| key.revoked_at = Some(stopped_clock()));
    heard.push(bench.refused(bench.signed(bench.app_key(), NOW)).await);
    heard.push(
        bench
            .refused(Proof::Bearer(bench.made.bearer.clone()))
            .await,
    );
    heard.dedup();
    assert_eq!(heard, ["the key, the token or the signature is not valid"]);
}

#[tokio::test]
async fn the_decoys_own_secret_lets_nobody_in() {
    let bench = bench("prod-", true).await;
    let all_zero = "0".repeat(64);
    let key = hmac::Key::new(hmac::HMAC_SHA256, all_zero.as_bytes());
    let signature = hmac::sign(&key, format!("prod-unknown{NOW}").as_bytes());
    let proof = Proof::SignatureV1(SignatureV1 {
        app_key: "prod-unknown".to_owned(),
        timestamp: NOW.to_string(),
        signature: hex::encode(signature),
    });
    assert!(bench.refused(proof).await.contains("not valid"));
}

#[tokio::test]
async fn a_key_without_signature_v1_says_so_only_to_its_holder() {
    let bench = bench("prod-", false).await;
    let told = bench.refused(bench.signed(bench.app_key(), NOW)).await;
    assert!(told.contains("bearer"), "{told}");
    let stranger = Proof::SignatureV1(SignatureV1 {
        app_key: bench.app_key().to_owned(),
        timestamp: NOW.to_string(),
        signature: String::new(),
    });
    let told = bench.refused(stranger).await;
    assert!(!told.contains("bearer"), "{told}");
    let bearer = Proof::Bearer(bench.made.bearer.clone());
    bench.authenticator.authenticate(&bearer).await.unwrap();
}

#[tokio::test]
async fn a_record_copied_to_another_name_or_given_to_another_tenant_lets_nobody_in() {
    let bench = bench("prod-", true).await;
    let record = bench.made.record.clone();
    bench.keys.send_modify(|all| {
        Arc::make_mut(all).insert("prod-copy".to_owned(), record);
    });
    let told = bench.refused(bench.signed("prod-copy", NOW)).await;
    assert!(told.contains("not valid"), "{told}");
    bench.change(|key| key.tenant = "mallory".parse().unwrap());
    let told = bench.refused(bench.signed(bench.app_key(), NOW)).await;
    assert!(told.contains("cannot be opened"), "{told}");
}

#[tokio::test]
async fn over_the_limit_the_wait_is_named_and_a_changed_policy_counts_at_once() {
    let bench = bench("test-", true).await;
    let bearer = || Proof::Bearer(bench.made.bearer.clone());
    let mut refused = None;
    for _ in 0..100 {
        match bench.authenticator.authenticate(&bearer()).await {
            Ok(_) => {}
            Err(error) => {
                refused = Some(error);
                break;
            }
        }
    }
    let refused = refused.expect("5 a second were not enough for 100 at once");
    assert!(
        refused.to_string().contains("5 requests a second"),
        "{refused}"
    );
    let AuthError::RateLimited { retry_after, .. } = refused else {
        panic!("{refused}");
    };
    assert!(retry_after <= Duration::from_millis(200), "{retry_after:?}");
    bench.policies.send_modify(|all| {
        let policy = Arc::make_mut(all).get_mut("test").unwrap();
        policy.burst = std::num::NonZeroU32::new(1000).unwrap();
    });
    bench.authenticator.authenticate(&bearer()).await.unwrap();
    bench
        .policies
        .send_modify(|all| drop(Arc::make_mut(all).remove("test")));
    let told = bench.refused(bearer()).await;
    assert!(told.contains("no policy"), "{told}");
}

#[tokio::test]
async fn callers_that_prove_nothing_use_up_nothing() {
    let bench = bench("test-", true).await;
    for _ in 0..20 {
        let bearer = format!("ink_{}_wrong", bench.app_key());
        bench.refused(Proof::Bearer(bearer.into())).await;
    }
    let bearer = Proof::Bearer(bench.made.bearer.clone());
    let admitted = bench.authenticator.authenticate(&bearer).await.unwrap();
    assert_eq!(admitted.allowance.remaining, 4);
}

#[tokio::test]
async fn a_request_signed_by_v2_is_let_in_once_and_its_replay_charges_nothing() {
    let bench = bench("test-", false).await;
    let signed = || bench.signed_v2("nonce-0123456789");
    let admitted = bench.authenticator.authenticate(&signed()).await.unwrap();
    assert_eq!(admitted.allowance.remaining, 4);
    for _ in 0..20 {
        let told = bench.refused(signed()).await;
        assert!(told.contains("used before"), "{told}");
    }
    let fresh = bench.signed_v2("nonce-0123456780");
    bench.authenticator.authenticate(&fresh).await.unwrap();
}

#[tokio::test]
async fn only_what_holds_uses_a_nonce_up_and_a_key_over_its_limit_uses_up_none() {
    let bench = bench("test-", false).await;
    let mut wrong = bench.signed_v2("nonce-0123456789");
    if let Proof::SignatureV2(signature) = &mut wrong {
        signature.path = "/v1/tasks".to_owned();
    }
    assert!(bench.refused(wrong).await.contains("not valid"));
    let right = bench.signed_v2("nonce-0123456789");
    bench.authenticator.authenticate(&right).await.unwrap();
    let mut refused = None;
    for n in 0..100 {
        let signed = bench.signed_v2(&format!("nonce-0000000{n:03}"));
        if let Err(error) = bench.authenticator.authenticate(&signed).await {
            refused = Some((n, error));
            break;
        }
    }
    let (n, error) = refused.expect("5 a second were enough for 100 at once");
    assert!(matches!(error, AuthError::RateLimited { .. }), "{error}");
    let again = bench.signed_v2(&format!("nonce-0000000{n:03}"));
    let Proof::SignatureV2(signature) = &again else {
        unreachable!()
    };
    let nonces = &bench.authenticator.nonces;
    nonces
        .take(&bench.made.record, &signature.nonce, &Claim::default())
        .await
        .unwrap();
}

#[tokio::test]
async fn a_token_stands_for_its_key_until_that_is_revoked_or_changes_hands() {
    let bench = bench("prod-", false).await;
    let (app_key, tenant) = (&bench.made.record.app_key, &bench.made.record.tenant);
    let issued = bench.tokens.issue(app_key, tenant, None).unwrap();
    let proof = || Proof::Token(issued.token.clone());
    let admitted = bench.authenticator.authenticate(&proof()).await.unwrap();
    assert_eq!(admitted.key.app_key, *app_key);
    assert_eq!(admitted.policy.tier, "priority");
    let stranger = "prod-unknown".parse().unwrap();
    let strangers = bench.tokens.issue(&stranger, tenant, None).unwrap();
    let mut heard = vec![bench.refused(Proof::Token(strangers.token)).await];
    heard.push(bench.refused(Proof::Token("a.b.c".into())).await);
    bench.change(|key| key.tenant = "mallory".parse().unwrap());
    heard.push(bench.refused(proof()).await);
    bench.change(|key| {
        key.tenant = "acme".parse().unwrap();
        key.revoked_at = Some(stopped_clock());
    });
    heard.push(bench.refused(proof()).await);
    heard.dedup();
    assert_eq!(heard, ["the key, the token or the signature is not valid"]);
}

/// A key management service that takes calls and never answers them, once it has wrapped what a start needs.
struct Hanging(LocalKey);

impl KeyEncryption for Hanging {
    fn id(&self) -> &crate::key_encryption::KekId {
        self.0.id()
    }

    fn wrap<'a>(
        &'a self,
        key: &'a Key,
        context: &'a [u8],
    ) -> futures::future::BoxFuture<'a, Result<crate::key_encryption::WrappedKey, KeyEncryptionError>>
    {
        self.0.wrap(key, context)
    }

    fn unwrap_key<'a>(
        &'a self,
        _: &'a crate::key_encryption::WrappedKey,
        _: &'a [u8],
    ) -> futures::future::BoxFuture<'a, Result<Key, KeyEncryptionError>> {
        Box::pin(std::future::pending())
    }
}

#[tokio::test]
async fn what_hangs_behind_auth_is_answered_by_auth_itself_and_in_time() {
    let hanging = Arc::new(Hanging(LocalKey::new(&Key::random().unwrap())));
    let bench = bench_with("prod-", true, hanging).await;
    let proof = bench.signed(bench.app_key(), NOW);
    let answer = bench.authenticator.authenticate(&proof);
    let answer = tokio::time::timeout(Duration::from_secs(20), answer).await;
    let refused = answer.expect("it answers").unwrap_err();
    assert!(matches!(refused, AuthError::Slow { .. }), "{refused:?}");
    // Callers learn what cannot be done and not what it is done with.
    assert_eq!(
        refused.to_string(),
        "keys cannot be opened just now; try again"
    );
}
