//! Everything here that reads what callers send, for the crate `fuzz-edge`. Not for anyone else.

use std::sync::Arc;
use std::time::Duration;

use contract::limits::MAX_CLOCK_SKEW_SECONDS;
use contract::proof::is_token;
use futures::FutureExt as _;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::watch;

use crate::key_encryption::LocalKey;
use crate::proof::{Proof, SignatureV1, check_clock};
use crate::sealed::Key;
use crate::signature_v2::{SignatureV2, canonical_query};
use crate::tokens::{Ring, Tokens};

/// A reader's name, good inputs, and the reader: it says whether it took an input, and panics when it took what it may not.
pub type Target = (&'static str, Vec<Vec<u8>>, Box<dyn Fn(&[u8]) -> bool>);

/// The names and values that handlers see of a query.
pub type ReadQuery = fn(&str) -> Option<Vec<(String, String)>>;

const NOW: i64 = 1_700_000_000;
const SECRET: &[u8] = b"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";

/// All of them. `read_query` reads queries as the gateway's handlers do.
pub fn targets(read_query: ReadQuery) -> Vec<Target> {
    vec![
        ("signature v1", lines(&[&V1]), Box::new(v1)),
        (
            "signature v2",
            lines(&[&SUBMISSION, &LISTING]),
            Box::new(v2),
        ),
        (
            "canonical query",
            QUERIES
                .iter()
                .map(|query| query.as_bytes().to_vec())
                .collect(),
            Box::new(move |input| canonical(input, read_query)),
        ),
        bearer(),
        token(),
    ]
}

/// The parts of a proof, one a line.
fn lines(proofs: &[&[&str]]) -> Vec<Vec<u8>> {
    proofs
        .iter()
        .map(|parts| parts.join("\n").into_bytes())
        .collect()
}

fn parts<const N: usize>(input: &[u8]) -> [String; N] {
    let text = String::from_utf8_lossy(input);
    let mut lines = text.splitn(N, '\n');
    std::array::from_fn(|_| lines.next().unwrap_or_default().to_owned())
}

/// As in the tests beside the code: app key, time, signature.
const V1: [&str; 3] = [
    "prod-7h2kq3xw5a",
    "1700000000",
    "274b8abdfaaa82b837065cd039a5be5a4e3c211e754ef380291228f8fe2c03cd",
];

fn v1(input: &[u8]) -> bool {
    let [app_key, timestamp, signature] = parts(input);
    let sent = check_clock(&timestamp, NOW);
    if let Ok(sent) = sent {
        assert!(sent.abs_diff(NOW) <= MAX_CLOCK_SKEW_SECONDS.unsigned_abs());
    }
    // What is signed is the two put together.
    let same = [V1[0], V1[1]].concat() == [app_key.as_str(), &timestamp].concat();
    let same = same && signature.eq_ignore_ascii_case(V1[2]);
    let held = SignatureV1 {
        app_key,
        timestamp,
        signature,
    }
    .is_made_with(SECRET);
    assert_eq!(
        held, same,
        "a signature is good for what was signed and for nothing else"
    );
    held && sent.is_ok()
}

/// Likewise: app key, time, nonce, digest, signature, method, path, query.
const SUBMISSION: [&str; 8] = [
    "prod-7h2kq3xw5a",
    "1700000000",
    "abcdefghijklmnop",
    "6c2ed3bea0cbbaec773071995caf22fbd3b9ab40d6c93b804ddfb4ed9f6c33a2",
    "db5c7ddb88431f8253ef2a667c9bb0c02072cc7af827245e6cfc536caa9cc041",
    "POST",
    "/v1/tasks",
    "",
];
const LISTING: [&str; 8] = [
    "prod-7h2kq3xw5a",
    "1700000000",
    "abcdefghijklmnop",
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "81ce5cc96a73d0a60b758684d9659d9dbefe3e2bc5f666796d1377659bbdd2d5",
    "GET",
    "/v1/tasks",
    "x=1%20%2b&limit=%35&a&x=0",
];

fn v2(input: &[u8]) -> bool {
    let [
        app_key,
        timestamp,
        nonce,
        content_sha256,
        signature,
        method,
        path,
        query,
    ] = parts(input);
    let same = [SUBMISSION, LISTING].iter().any(|good| {
        let sent = [&timestamp, &nonce, &content_sha256, &method, &path];
        let signed = [good[1], good[2], good[3], good[5], good[6]];
        // The app key is not signed: its secret signs.
        sent.iter()
            .zip(signed)
            .all(|(sent, signed)| *sent == signed)
            && canonical_query(&query) == canonical_query(good[7])
            && signature.eq_ignore_ascii_case(good[4])
    });
    let sent = SignatureV2 {
        app_key,
        timestamp,
        nonce,
        content_sha256,
        signature,
        method,
        path,
        query,
    };
    let Ok(at) = sent.check(NOW) else {
        return false;
    };
    let held = sent.is_made_with(SECRET, at);
    assert_eq!(
        held, same,
        "a signature is good for what was signed and for nothing else"
    );
    held
}

/// Less than any request line that can be read, bytes.
const LONGEST_TARGET: usize = 60_000;

const QUERIES: &[&str] = &[
    "limit=5&cursor=abc&phase=queued",
    "a=1+1&b=%2B&c=%20&a=%C3%A9",
    "x=1%20%2b&limit=%35&a&x=0",
    "a=%&b=%g1&c=%2&=&&=x",
];

/// What a handler sees follows from what is signed: two queries that sign alike say the same.
fn canonical(input: &[u8], read_query: ReadQuery) -> bool {
    let query = String::from_utf8_lossy(input);
    let Some(mut seen) = read_query(&query) else {
        return false;
    };
    let canonical = canonical_query(&query);
    let Some(mut signed) = read_query(&canonical) else {
        // Up to three times as long, it may be more than a request line holds.
        assert!(canonical.len() > LONGEST_TARGET, "{canonical} is no query");
        return true;
    };
    // Names that are no UTF-8 are read as one name that no handler asks for, so their order among themselves is nobody's either.
    for read in [&mut seen, &mut signed] {
        read.retain(|(name, _)| !name.contains(char::REPLACEMENT_CHARACTER));
    }
    // The order of different names is nobody's; that within one is kept.
    seen.sort_by(|(a, _), (b, _)| a.cmp(b));
    signed.sort_by(|(a, _), (b, _)| a.cmp(b));
    assert_eq!(seen, signed, "{query} and {canonical} are read differently");
    assert_eq!(canonical_query(&canonical), canonical);
    true
}

fn bearer() -> Target {
    let seeds: [&[u8]; 2] = [b"ink_prod-a_0123456789abcdef", b"ink_a_b_c-d"];
    let read = |input: &[u8]| {
        let text = String::from_utf8_lossy(input).into_owned();
        let proof = if is_token(&text) {
            Proof::Token(text.clone().into())
        } else {
            Proof::Bearer(text.clone().into())
        };
        // Long ones are not looked for: they may be part of what every `Debug` says.
        let shown = text.len() > 12 && format!("{proof:?}").contains(&text);
        assert!(!shown, "a proof shows itself");
        let Some(app_key) = proof.claims() else {
            return false;
        };
        assert!(!app_key.contains('_') && text.len() > app_key.len());
        true
    };
    ("bearer", seeds.map(<[u8]>::to_vec).to_vec(), Box::new(read))
}

fn clock() -> Timestamp {
    Timestamp::from_second(NOW).expect("a time in this century")
}

/// Tokens of one signing key, and no broker.
fn tokens() -> Tokens {
    let ring = async {
        let kek = LocalKey::new(&Key::random()?);
        Ring::of_one(&kek, Timestamp::UNIX_EPOCH).await
    };
    let ring = ring.now_or_never().expect("a local key waits for nobody");
    let ring = ring.expect("there is randomness");
    Tokens {
        ring: watch::channel(Arc::new(ring)).1,
        issuer: "inkstone".to_owned(),
        audience: "inkstone".to_owned(),
        lifetime: Duration::from_secs(900),
        clock,
    }
}

fn token() -> Target {
    let tokens = tokens();
    let issue = |app_key: &str, lifetime| {
        let (app_key, tenant) = (app_key.parse(), "acme".parse());
        let (app_key, tenant) = (app_key.expect("an app key"), tenant.expect("a tenant"));
        let issued = tokens.issue(&app_key, &tenant, lifetime).expect("a token");
        issued.token.expose_secret().to_owned()
    };
    let good = [
        issue("prod-a", None),
        issue("test-b", Some(Duration::from_secs(60))),
    ];
    let seeds = good
        .iter()
        .map(|token| token.clone().into_bytes())
        .collect();
    let read = move |input: &[u8]| {
        let text = String::from_utf8_lossy(input).into_owned();
        let claims = tokens.verify(&SecretString::from(text.clone()), NOW);
        assert_eq!(
            claims.is_some(),
            good.contains(&text),
            "a token is good as it was given out and not otherwise"
        );
        claims.is_some()
    };
    ("token", seeds, Box::new(read))
}
