//! What must not be found, and the search for it in every form that it could have been written in.

use std::collections::HashMap;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};

/// Bytes by which a form is looked up; no secret has fewer.
const PREFIX: usize = 8;

/// What must not be found.
pub(super) struct Secret {
    what: &'static str,
    bytes: Vec<u8>,
    kept: Kept,
}

impl Secret {
    /// The same, which may be found there.
    pub(super) fn kept(self, kept: Kept) -> Self {
        Self { kept, ..self }
    }
}

/// Where a secret may be found.
#[derive(Clone, Copy)]
pub(super) enum Kept {
    Nowhere,
    /// The platform keeps it by design, and tells it to its tenant: what it stores and answers is not searched for it.
    Stored,
    /// A producer has published it: the broker keeps INTAKE as it came.
    InIntake,
}

impl Kept {
    /// `stores`: whether the place is a store or an answer.
    fn may_be_in(self, place: &str, stores: bool) -> bool {
        match self {
            Self::Nowhere => false,
            Self::Stored => stores,
            Self::InIntake => stores && place.contains("/streams/INTAKE/"),
        }
    }
}

pub(super) fn secret(what: &'static str, text: impl AsRef<[u8]>) -> Secret {
    let bytes = text.as_ref().to_vec();
    assert!(bytes.len() >= 16, "{what} is too short to be looked for");
    Secret {
        what,
        bytes,
        kept: Kept::Nowhere,
    }
}

/// The forms in which bytes may have been written: as they are, in hexadecimal, as a list of numbers, in base64 wherever they
/// began in what was encoded; and as what they stand for, where they are digits themselves.
fn forms(bytes: &[u8]) -> Vec<Vec<u8>> {
    let mut plain = vec![bytes.to_vec()];
    plain.extend(hex::decode(bytes));
    plain.extend(URL_SAFE_NO_PAD.decode(bytes));
    let mut all = Vec::new();
    for bytes in plain {
        all.push(hex::encode(&bytes).into_bytes());
        all.push(hex::encode_upper(&bytes).into_bytes());
        let numbers = bytes.iter().map(u8::to_string).collect::<Vec<_>>();
        all.push(numbers.join(", ").into_bytes());
        all.push(numbers.join(",").into_bytes());
        for before in 0..3 {
            let padded = [&vec![0; before], &bytes[..]].concat();
            // What the neighbours of the secret have a part in, at both ends, is not its own.
            let (first, last) = ((before * 8).div_ceil(6), padded.len() * 8 / 6);
            for engine in [STANDARD_NO_PAD, URL_SAFE_NO_PAD] {
                all.push(engine.encode(&padded).into_bytes()[first..last].to_vec());
            }
        }
        all.push(bytes);
    }
    all
}

/// Finds secrets in one pass, whatever their number.
pub(super) struct Search<'a> {
    secrets: &'a [Secret],
    by_prefix: HashMap<[u8; PREFIX], Vec<(usize, Vec<u8>)>>,
    /// Whether any form begins with these two bytes: nearly no place in a file comes beyond it.
    begins: Vec<bool>,
}

impl<'a> Search<'a> {
    pub(super) fn new(secrets: &'a [Secret]) -> Self {
        let mut by_prefix: HashMap<_, Vec<_>> = HashMap::new();
        let mut begins = vec![false; 1 << 16];
        for (index, secret) in secrets.iter().enumerate() {
            for form in forms(&secret.bytes) {
                begins[usize::from(u16::from_le_bytes([form[0], form[1]]))] = true;
                let prefix = form[..PREFIX].try_into().unwrap();
                by_prefix.entry(prefix).or_default().push((index, form));
            }
        }
        Self {
            secrets,
            by_prefix,
            begins,
        }
    }

    /// What is found, and where.
    fn within(&self, text: &[u8]) -> Vec<(&'a Secret, usize)> {
        let mut found = Vec::new();
        for (at, window) in text.windows(PREFIX).enumerate() {
            if !self.begins[usize::from(u16::from_le_bytes([window[0], window[1]]))] {
                continue;
            }
            for (index, form) in self.by_prefix.get(window).into_iter().flatten() {
                if text[at..].starts_with(form) {
                    found.push((&self.secrets[*index], at));
                }
            }
        }
        found
    }
}

/// Fails where a secret is in a text that may not have it; `stores`: whether that is a store or an answer.
pub(super) fn assert_none(search: &Search<'_>, place: &str, text: &[u8], stores: bool) {
    let found = search
        .within(text)
        .into_iter()
        .find(|(secret, _)| !secret.kept.may_be_in(place, stores));
    if let Some((secret, at)) = found {
        let around = &text[at.saturating_sub(200)..text.len().min(at + 100)];
        panic!(
            "the {} is in {place}: {}",
            secret.what,
            String::from_utf8_lossy(around)
        );
    }
}

#[test]
fn the_search_finds_a_secret_in_every_form() {
    let secrets = [secret("it", "a-secret-that-was-told")];
    let search = Search::new(&secrets);
    let told = "a-secret-that-was-told";
    let list = format!("{:?}", told.as_bytes());
    for text in [
        format!("x={told}."),
        hex::encode(format!("x{told}y")),
        format!("Bytes {list}"),
        STANDARD_NO_PAD.encode(format!("{told}.")),
        STANDARD_NO_PAD.encode(format!("1{told}.")),
        URL_SAFE_NO_PAD.encode(format!("12{told}")),
    ] {
        assert!(!search.within(text.as_bytes()).is_empty(), "{text}");
    }
    assert!(search.within(b"a-secret-that-was-tol").is_empty());
}
