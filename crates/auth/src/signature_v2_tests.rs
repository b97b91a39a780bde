use proptest::prelude::*;

use super::*;

const SECRET: &[u8] = b"00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
const NOW: i64 = 1_700_000_000;
const EMPTY: &str = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

// Made with the Python of docs/API.md.
fn submission() -> SignatureV2 {
    SignatureV2 {
        app_key: "prod-7h2kq3xw5a".to_owned(),
        timestamp: "1700000000".to_owned(),
        nonce: "abcdefghijklmnop".to_owned(),
        content_sha256: "6c2ed3bea0cbbaec773071995caf22fbd3b9ab40d6c93b804ddfb4ed9f6c33a2"
            .to_owned(),
        signature: "db5c7ddb88431f8253ef2a667c9bb0c02072cc7af827245e6cfc536caa9cc041".to_owned(),
        method: "POST".to_owned(),
        path: "/v1/tasks".to_owned(),
        query: String::new(),
    }
}

fn listing() -> SignatureV2 {
    SignatureV2 {
        content_sha256: EMPTY.to_owned(),
        signature: "81ce5cc96a73d0a60b758684d9659d9dbefe3e2bc5f666796d1377659bbdd2d5".to_owned(),
        method: "GET".to_owned(),
        query: "x=1%20%2b&limit=%35&a&x=0".to_owned(),
        ..submission()
    }
}

#[test]
fn signatures_that_the_documented_python_makes_are_accepted() {
    for signature in [submission(), listing()] {
        assert_eq!(signature.check(NOW).unwrap(), NOW);
        assert!(signature.is_made_with(SECRET, NOW), "{signature:?}");
    }
}

#[test]
fn a_signature_holds_for_nothing_but_what_was_signed() {
    let changes: [fn(&mut SignatureV2); 9] = [
        |s| s.timestamp = "1700000001".to_owned(),
        |s| s.nonce = "abcdefghijklmnoq".to_owned(),
        |s| s.content_sha256 = EMPTY.to_owned(),
        |s| s.method = "PUT".to_owned(),
        |s| s.path = "/v1/tasks/".to_owned(),
        |s| s.query = "limit=1".to_owned(),
        |s| s.signature.truncate(62),
        |s| s.signature.push_str("00"),
        |s| s.signature.clear(),
    ];
    for change in changes {
        let mut changed = submission();
        change(&mut changed);
        assert!(!changed.is_made_with(SECRET, NOW), "{changed:?}");
    }
    assert!(!submission().is_made_with(&SECRET[1..], NOW));
}

#[test]
fn a_day_key_is_good_for_its_day_and_the_days_change_at_midnight_utc() {
    assert_eq!(day(1_700_006_399).unwrap(), "20231114");
    assert_eq!(day(1_700_006_400).unwrap(), "20231115");
    let (today, tomorrow) = (day_key(SECRET, "20231114"), day_key(SECRET, "20231115"));
    assert_ne!(*today, *tomorrow);
    assert!(!submission().is_made_with(SECRET, NOW + 86_400));
    // Late in the evening by the caller's clock, early in the morning by the server's.
    let late = SignatureV2 {
        timestamp: "1700006399".to_owned(),
        ..submission()
    };
    assert_eq!(late.check(1_700_006_400 + 299).unwrap(), 1_700_006_399);
    assert!(late.check(1_700_006_400 + 300).is_err());
    assert_eq!(day(i64::MAX), None);
}

#[test]
fn what_is_malformed_is_named() {
    let told = |change: fn(&mut SignatureV2)| {
        let mut changed = submission();
        change(&mut changed);
        changed.check(NOW).unwrap_err().to_string()
    };
    for message in [
        told(|s| s.nonce = "a".repeat(15)),
        told(|s| s.nonce = "a".repeat(65)),
        told(|s| s.nonce = "abcdefghijklmno.".to_owned()),
        told(|s| s.nonce.clear()),
    ] {
        assert!(message.contains("16 to 64"), "{message}");
    }
    for message in [
        told(|s| s.content_sha256.make_ascii_uppercase()),
        told(|s| s.content_sha256.truncate(63)),
    ] {
        assert!(message.contains("64 hexadecimal"), "{message}");
    }
    assert!(told(|s| s.path.push('\n')).contains("one line"));
    assert!(told(|s| s.query = "q".repeat(70_000)).contains("64 KiB"));
    assert!(told(|s| s.timestamp.push('x')).contains("X-Timestamp"));
}

#[test]
fn spellings_of_one_query_are_one_and_other_queries_are_others() {
    for (sent, canonical) in [
        ("", ""),
        ("&&", ""),
        ("a", "a="),
        ("b=2&a=1", "a=1&b=2"),
        ("a=2&a=1", "a=2&a=1"),
        ("a=%7e%41%2f", "a=~A%2F"),
        ("a=1+1", "a=1%201"),
        ("a=1%201", "a=1%201"),
        ("a=1%2B1", "a=1%2B1"),
        ("a+b=", "a%20b="),
        ("a=%", "a=%25"),
        ("a=%g1%2", "a=%25g1%252"),
        ("a=b=c", "a=b%3Dc"),
        ("a=é", "a=%C3%A9"),
    ] {
        assert_eq!(canonical_query(sent), canonical, "{sent}");
    }
}

#[test]
fn a_plus_and_the_plus_that_it_is_not_do_not_sign_alike() {
    // The one is read as a space and the other as a plus, so whoever carries a request must not be able to swap them.
    let with = |query: &str| SignatureV2 {
        query: query.to_owned(),
        ..submission()
    };
    let signed = |query| with(query).signed();
    assert_eq!(signed("cursor=a+b"), signed("cursor=a%20b"));
    assert_ne!(signed("cursor=a+b"), signed("cursor=a%2Bb"));
}

proptest! {
    #[test]
    fn a_canonical_query_is_its_own_canonical_form_and_one_line(query in ".*") {
        let canonical = canonical_query(&query);
        prop_assert_eq!(canonical_query(&canonical), canonical.clone());
        prop_assert!(canonical.bytes().all(|b| b.is_ascii_graphic()));
    }

    #[test]
    fn no_order_of_different_parameters_matters(mut pairs in prop::collection::btree_map("[a-z]{1,3}", "[ -~]{0,5}", 0..6)
        .prop_map(|map| map.into_iter().map(|(n, v)| format!("{n}={}", recoded(&v))).collect::<Vec<_>>()))
    {
        let one = canonical_query(&pairs.join("&"));
        pairs.reverse();
        prop_assert_eq!(one, canonical_query(&pairs.join("&")));
    }

    #[test]
    fn nothing_a_caller_sends_panics_or_is_accepted(
        parts in prop::array::uniform7(".{0,70}"), signature in "[0-9a-f]{64}|.{0,70}", now: i64,
    ) {
        let [app_key, timestamp, nonce, content_sha256, method, path, query] = parts;
        let sent = SignatureV2 { app_key, timestamp, nonce, content_sha256, signature, method, path, query };
        let _ = sent.check(now);
        prop_assert!(!sent.is_made_with(SECRET, now));
    }
}
