use std::sync::Mutex as Shared;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering};

use aws_lc_rs::rand;
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use contract::assertion::{Claims, LIFETIME, MAX_BYTES};
use contract::auth::{Policy, TokenKey};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::json;
use tokio::sync::Notify;

use super::*;

const BEGIN: i64 = 1_700_000_000;
/// PKCS #8 of an Ed25519 key (RFC 8410, 7) up to its 32 bytes.
const PKCS8_PREFIX: [u8; 16] = [
    0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20,
];

/// A key of an auth.
struct Signer {
    public: TokenKey,
    signing: EncodingKey,
}

impl Signer {
    fn new(kid: &str) -> Self {
        let mut private = [0; 48];
        private[..16].copy_from_slice(&PKCS8_PREFIX);
        rand::fill(&mut private[16..]).unwrap();
        let pair = Ed25519KeyPair::from_pkcs8(&private).unwrap();
        Self {
            public: TokenKey {
                kid: kid.to_owned(),
                x: URL_SAFE_NO_PAD.encode(pair.public_key().as_ref()),
                generation: 0,
            },
            signing: EncodingKey::from_ed_der(&private),
        }
    }

    fn sign(&self, claims: &impl serde::Serialize) -> String {
        let header = Header {
            kid: Some(self.public.kid.clone()),
            ..Header::new(Algorithm::EdDSA)
        };
        jsonwebtoken::encode(&header, claims, &self.signing).unwrap()
    }

    fn assertion(&self) -> String {
        self.sign(&claims())
    }
}

fn policy() -> Policy {
    Policy {
        tier: "priority".to_owned(),
        ..Policy::default()
    }
}

fn claims() -> Claims {
    let (app_key, tenant) = ("prod-a".parse().unwrap(), "acme".parse().unwrap());
    Claims::new(app_key, tenant, &policy(), BEGIN, LIFETIME)
}

fn said(assertion: &str) -> Option<Caller> {
    Some(Caller {
        tenant: "acme".to_owned(),
        app_key: "prod-a".to_owned(),
        policy: None,
        assertion: assertion.to_owned(),
    })
}

/// What an auth publishes, how often it was asked, and the time.
#[derive(Default)]
struct World {
    published: Shared<Option<ListTokenKeysResponse>>,
    asked: AtomicUsize,
    seconds: AtomicI64,
}

impl World {
    fn publish(&self, signers: &[&Signer]) {
        self.publish_but(signers, &[]);
    }

    /// An auth answers that cannot open the keys of these generations.
    fn publish_but(&self, signers: &[&Signer], unopened: &[u64]) {
        let keys = signers.iter().map(|signer| signer.public.clone());
        *self.published.lock().unwrap() = Some(ListTokenKeysResponse {
            keys: keys.collect(),
            unopened: unopened.to_vec(),
        });
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }

    fn set(&self, seconds: i64) {
        self.seconds.store(seconds, Ordering::SeqCst);
    }

    fn callers(self: &Arc<Self>, demanded: bool) -> Callers {
        let (auth, clock) = (self.clone(), self.clone());
        let read_keys = move || {
            auth.asked.fetch_add(1, Ordering::SeqCst);
            let published = auth.published.lock().unwrap().clone();
            let away = Failure::unavailable("auth is away", LEAST_PAUSE);
            async move { published.ok_or(away) }.boxed()
        };
        Callers::new(demanded, read_keys, move || clock.time())
    }

    fn time(&self) -> SystemTime {
        let seconds = BEGIN + self.seconds.load(Ordering::SeqCst);
        UNIX_EPOCH + Duration::from_secs(seconds.unsigned_abs())
    }
}

fn world(signers: &[&Signer]) -> (Arc<World>, Callers) {
    let world = Arc::new(World::default());
    world.publish(signers);
    let callers = world.callers(true);
    (world, callers)
}

async fn refusal(callers: &Callers, assertion: &str) -> (ErrorCode, String) {
    let refused = callers.admit(said(assertion)).await.unwrap_err();
    (refused.code, refused.message)
}

#[tokio::test]
async fn a_caller_is_whom_auth_says_with_the_policy_that_auth_says_and_auth_is_asked_once() {
    let signer = Signer::new("one");
    let (world, callers) = world(&[&signer]);
    let assertion = signer.assertion();
    for _ in 0..3 {
        let with_more = said(&assertion).map(|caller| Caller {
            policy: Some(Policy {
                tier: "greedy".to_owned(),
                hd: true,
                ..Policy::default()
            }),
            ..caller
        });
        let caller = callers.admit(with_more).await.unwrap();
        assert_eq!(caller.policy, Some(policy()));
        callers.admit_tenant("acme", &assertion).await.unwrap();
    }
    assert_eq!(world.asked(), 1);
    let missing = callers.admit(None).await.unwrap_err();
    assert_eq!(missing.field.as_deref(), Some("caller"));
}

#[tokio::test]
async fn auths_word_on_one_caller_is_none_on_another() {
    let signer = Signer::new("one");
    let (_, callers) = world(&[&signer]);
    let assertion = signer.assertion();
    let other_tenant = said(&assertion).map(|caller| Caller {
        tenant: "bcme".to_owned(),
        ..caller
    });
    let other_key = said(&assertion).map(|caller| Caller {
        app_key: "prod-b".to_owned(),
        ..caller
    });
    for other in [other_tenant, other_key] {
        let refused = callers.admit(other).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::PermissionDenied);
    }
    let refused = callers.admit_tenant("bcme", &assertion).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
    let refused = callers.admit_tenant("", &assertion).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
}

#[tokio::test]
async fn none_an_expired_one_a_callers_token_and_what_others_signed_are_refused_by_name() {
    let (signer, stranger) = (Signer::new("one"), Signer::new("one"));
    let (world, callers) = world(&[&signer]);
    let token = json!({"iss": "inkstone", "aud": "inkstone", "sub": "prod-a", "tenant": "acme",
        "policy": "", "iat": BEGIN, "nbf": BEGIN, "exp": BEGIN + 900, "jti": "0"});
    let changed = |name: &str, value: serde_json::Value| {
        let mut changed = serde_json::to_value(claims()).unwrap();
        changed[name] = value;
        signer.sign(&changed)
    };
    let mut unsigned = signer.assertion();
    unsigned.truncate(unsigned.rfind('.').unwrap() + 1);
    for (assertion, why) in [
        (String::new(), "missing"),
        ("no.token.atall".to_owned(), "cannot be read"),
        ("x".repeat(MAX_BYTES), "longer"),
        (signer.sign(&token), "not signed by auth for"),
        (changed("aud", json!("inkstone")), "not signed by auth for"),
        (changed("aud", json!(null)), "not signed by auth for"),
        (changed("exp", json!("never")), "not signed by auth for"),
        (
            changed("tenant", json!("NO TENANT")),
            "not signed by auth for",
        ),
        (changed("policy", json!("zz")), "cannot be read"),
        (stranger.assertion(), "not signed by auth for"),
        (unsigned, "not signed by auth for"),
        (
            Signer::new("two").assertion(),
            "a key that auth does not publish",
        ),
    ] {
        let (code, message) = refusal(&callers, &assertion).await;
        assert_eq!(code, ErrorCode::Unauthenticated, "{assertion}");
        assert!(message.contains(why), "{message}: {assertion}");
    }
    // What was verified once is not good for longer either.
    let assertion = signer.assertion();
    world.set(304);
    callers.admit(said(&assertion)).await.unwrap();
    world.set(305);
    let (_, message) = refusal(&callers, &assertion).await;
    assert!(message.contains("expired"), "{message}");
}

#[tokio::test]
async fn an_assertion_that_was_changed_anywhere_is_refused() {
    let signer = Signer::new("one");
    let (_, callers) = world(&[&signer]);
    let assertion = signer.assertion();
    callers.admit(said(&assertion)).await.unwrap();
    for at in 0..assertion.len() {
        let mut changed = assertion.clone().into_bytes();
        changed[at] = if changed[at] == b'A' { b'B' } else { b'A' };
        let changed = String::from_utf8(changed).unwrap();
        callers.admit(said(&changed)).await.unwrap_err();
    }
}

#[tokio::test]
async fn a_rotation_refuses_nobody_and_a_key_that_is_gone_verifies_no_more() {
    let (old, new) = (Signer::new("old"), Signer::new("new"));
    let (world, callers) = world(&[&old]);
    let (before, after) = (old.assertion(), new.assertion());
    callers.admit(said(&before)).await.unwrap();
    // The next key is published; its first assertion is what it is looked for by.
    world.publish(&[&old, &new]);
    world.set(1);
    callers.admit(said(&after)).await.unwrap();
    callers.admit(said(&before)).await.unwrap();
    assert_eq!(world.asked(), 2);
    // The old one goes, and with it what it has verified.
    world.publish(&[&new]);
    world.set(2);
    callers.read().await.unwrap();
    let (code, _) = refusal(&callers, &before).await;
    assert_eq!(code, ErrorCode::Unauthenticated);
    callers.admit(said(&after)).await.unwrap();
    // An auth that has none to show takes nothing away, and says nothing of a key that another may sign with.
    world.publish(&[]);
    world.set(3);
    let refused = callers.admit(said(&before)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable);
    callers.admit(said(&after)).await.unwrap();
}

#[tokio::test]
async fn a_key_that_the_auth_which_is_asked_cannot_open_goes_on_verifying_until_it_is_held_no_more()
{
    let signer = |kid: &str, generation| {
        let mut signer = Signer::new(kid);
        signer.public.generation = generation;
        signer
    };
    let (one, two) = (signer("one", 1), signer("two", 2));
    let (world, callers) = world(&[&one]);
    // Held already, and one that has to be looked at anew.
    let (held, anew) = (one.assertion(), two.assertion());
    callers.admit(said(&held)).await.unwrap();
    world.publish_but(&[&two], &[1]);
    world.set(1);
    callers.admit(said(&anew)).await.unwrap();
    assert_eq!(world.asked(), 2);
    let mut other = serde_json::to_value(claims()).unwrap();
    other["iat"] = json!(BEGIN + 1);
    for assertion in [held.clone(), one.sign(&other)] {
        callers.admit(said(&assertion)).await.unwrap();
    }
    assert_eq!(world.asked(), 2);
    // An operator takes the first key away, and that auth cannot open a third one.
    world.publish_but(&[&two], &[3]);
    world.set(2);
    callers.read().await.unwrap();
    let (code, _) = refusal(&callers, &held).await;
    assert_eq!(code, ErrorCode::Unauthenticated);
    // What was gone once is no more known than any other key.
    world.publish_but(&[&two], &[1]);
    world.set(3);
    callers.read().await.unwrap();
    let (code, _) = refusal(&callers, &held).await;
    assert_eq!(code, ErrorCode::Unauthenticated);
    callers.admit(said(&anew)).await.unwrap();
}

#[tokio::test]
async fn keys_that_are_made_up_have_auth_asked_once_a_second_at_most() {
    let signer = Signer::new("one");
    let (world, callers) = world(&[&signer]);
    for number in 0..50 {
        let made_up = Signer::new(&format!("made-up-{number}")).assertion();
        let (code, _) = refusal(&callers, &made_up).await;
        assert_eq!(code, ErrorCode::Unauthenticated);
    }
    assert_eq!(world.asked(), 1);
    world.set(1);
    refusal(&callers, &Signer::new("another").assertion()).await;
    assert_eq!(world.asked(), 2);
    callers.admit(said(&signer.assertion())).await.unwrap();
}

#[tokio::test]
async fn callers_who_hang_up_have_auth_asked_no_more_often_and_the_next_has_the_answer() {
    let signer = Signer::new("one");
    let (world, gate) = (Arc::new(World::default()), Arc::new(Notify::new()));
    let (auth, clock, answers) = (world.clone(), world.clone(), gate.clone());
    let public = signer.public.clone();
    let read_keys = move || {
        auth.asked.fetch_add(1, Ordering::SeqCst);
        let (answers, keys) = (answers.clone(), vec![public.clone()]);
        async move {
            answers.notified().await;
            Ok(ListTokenKeysResponse {
                keys,
                unopened: Vec::new(),
            })
        }
        .boxed()
    };
    let callers = Callers::new(true, read_keys, move || clock.time());
    let assertion = signer.assertion();
    for _ in 0..50 {
        let mut asking = Box::pin(callers.admit(said(&assertion)));
        assert!(futures::poll!(asking.as_mut()).is_pending());
    }
    assert_eq!(world.asked(), 1);
    gate.notify_one();
    callers.admit(said(&assertion)).await.unwrap();
    assert_eq!(world.asked(), 1);
    // What somebody has begun and left a while ago is too old an answer.
    world.set(1);
    let other = Signer::new("two").assertion();
    let mut asking = Box::pin(callers.admit(said(&other)));
    assert!(futures::poll!(asking.as_mut()).is_pending());
    drop(asking);
    world.set(2);
    gate.notify_one();
    let (code, _) = refusal(&callers, &other).await;
    assert_eq!((code, world.asked()), (ErrorCode::Unauthenticated, 3));
}

#[tokio::test]
async fn while_auth_is_away_a_key_that_is_not_held_can_be_tried_again_and_one_that_is_does() {
    let (held, other) = (Signer::new("held"), Signer::new("other"));
    let (world, callers) = world(&[&held]);
    callers.admit(said(&held.assertion())).await.unwrap();
    *world.published.lock().unwrap() = None;
    world.set(1);
    for _ in 0..3 {
        let refused = callers.admit(said(&other.assertion())).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert_eq!(refused.retry_after, Some(LEAST_PAUSE));
    }
    assert_eq!(world.asked(), 2);
    callers.admit(said(&held.assertion())).await.unwrap();
    world.publish(&[&held, &other]);
    world.set(2);
    callers.admit(said(&other.assertion())).await.unwrap();
}

#[tokio::test]
async fn where_none_is_demanded_the_gateways_word_is_enough() {
    let world = Arc::new(World::default());
    let callers = world.callers(false);
    let caller = callers.admit(said("")).await.unwrap();
    assert_eq!(caller.tenant, "acme");
    callers.admit_tenant("anyone", "").await.unwrap();
    assert_eq!(world.asked(), 0);
}
