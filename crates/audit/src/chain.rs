//! Lines and their hashes.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};

use crate::Content;

/// The version of the records' format.
const VERSION: u32 = 1;
/// Sets these hashes apart from all others of the platform.
const DOMAIN: &[u8] = b"inkstone audit record v1\0";
/// Between what is hashed and the hash.
const MARK: &str = ",\"hash\":\"";
/// Behind the hash.
const TAIL: &str = "\"}";
/// Hex digits of a hash.
const DIGITS: usize = 64;

/// Where a chain stands: all that the next record needs of those before it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    /// The last record's number; 0 before the first.
    pub sequence: u64,
    /// The last record's hash, hex; zeros before the first.
    pub hash: String,
}

impl Head {
    /// Before the first record.
    pub fn genesis() -> Self {
        let hash = "0".repeat(DIGITS);
        Self { sequence: 0, hash }
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.sequence, self.hash)
    }
}

impl FromStr for Head {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parts = text.split_once(':');
        let parsed = parts.and_then(|(sequence, hash)| Some((sequence.parse().ok()?, hash)));
        let parsed = parsed.filter(|(_, hash)| is_hash(hash));
        let head = parsed.map(|(sequence, hash)| Self {
            sequence,
            hash: hash.to_owned(),
        });
        head.ok_or("a head is SEQUENCE:HASH, the hash in 64 lower-case hex digits")
    }
}

/// One record as it is read: its place in the chain, and what it says.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Line {
    /// The format's version.
    pub v: u32,
    /// Its number, from 1 on.
    pub sequence: u64,
    /// The hash of the record before it.
    pub prev_hash: String,
    /// What it says.
    #[serde(flatten)]
    pub content: Content,
    /// Its own hash; set when it is read.
    #[serde(skip_serializing, default)]
    pub hash: String,
}

/// What is wrong with a line.
#[derive(Debug, thiserror::Error)]
pub enum LineError {
    /// It has no hash at its end.
    #[error("it does not end with a hash")]
    NoHash,
    /// It was changed.
    #[error("its hash is not that of its bytes: it was changed")]
    Changed,
    /// A later version wrote it, or none did.
    #[error("it is no record of a kind that is known here")]
    Unknown(#[source] serde_json::Error),
    /// It is of a later format.
    #[error("its format is version {0}; {known} is known here", known = VERSION)]
    Version(u32),
    /// Records are missing in front of it, or it was moved.
    #[error("it has number {found} where {expected} belongs: records are missing or were moved")]
    Sequence {
        /// What it has.
        found: u64,
        /// What it should have.
        expected: u64,
    },
    /// It does not continue the chain.
    #[error("it does not name the hash of the record before it")]
    Broken,
}

/// A chain at its end: makes the next line, or checks it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    head: Head,
}

impl Chain {
    /// Goes on behind `head`.
    pub fn after(head: Head) -> Self {
        Self { head }
    }

    /// Where it stands.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Appends a record and gives its line, without a line break.
    ///
    /// # Errors
    /// When it cannot be written as JSON, which no content that this crate defines does.
    pub fn append(&mut self, content: Content) -> Result<String, serde_json::Error> {
        let line = Line {
            v: VERSION,
            sequence: self.head.sequence + 1,
            prev_hash: self.head.hash.clone(),
            content,
            hash: String::new(),
        };
        let mut text = serde_json::to_string(&line)?;
        // The closing brace comes again behind the hash.
        text.pop();
        let hash = hash(text.as_bytes());
        text.push_str(MARK);
        text.push_str(&hash);
        text.push_str(TAIL);
        self.head = Head {
            sequence: line.sequence,
            hash,
        };
        Ok(text)
    }

    /// Checks that `text` is the next record.
    ///
    /// # Errors
    /// When it is not; the chain stays where it was.
    pub fn follow(&mut self, text: &str) -> Result<Line, LineError> {
        let line = Line::read(text)?;
        self.go_on(line.sequence, &line.prev_hash, &line.hash)?;
        Ok(line)
    }

    /// The same, without reading what the record says.
    ///
    /// # Errors
    /// When it is not; the chain stays where it was.
    pub fn pass(&mut self, text: &str) -> Result<(), LineError> {
        let hash = checked(text)?;
        let link: Link = serde_json::from_str(text).map_err(LineError::Unknown)?;
        known(link.v)?;
        self.go_on(link.sequence, &link.prev_hash, hash)
    }

    fn go_on(&mut self, found: u64, prev_hash: &str, hash: &str) -> Result<(), LineError> {
        let expected = self.head.sequence + 1;
        if found != expected {
            return Err(LineError::Sequence { found, expected });
        }
        if prev_hash != self.head.hash {
            return Err(LineError::Broken);
        }
        self.head = Head {
            sequence: found,
            hash: hash.to_owned(),
        };
        Ok(())
    }
}

/// A record's place in the chain.
#[derive(Deserialize)]
struct Link {
    v: u32,
    sequence: u64,
    prev_hash: String,
}

fn known(version: u32) -> Result<(), LineError> {
    match version {
        VERSION => Ok(()),
        other => Err(LineError::Version(other)),
    }
}

/// The hash of a line, which is that of its bytes.
fn checked(text: &str) -> Result<&str, LineError> {
    let end = text.len().checked_sub(MARK.len() + DIGITS + TAIL.len());
    let (body, rest) = end
        .and_then(|end| text.split_at_checked(end))
        .ok_or(LineError::NoHash)?;
    let written = rest
        .strip_prefix(MARK)
        .and_then(|rest| rest.strip_suffix(TAIL))
        .filter(|hash| is_hash(hash))
        .ok_or(LineError::NoHash)?;
    if written != hash(body.as_bytes()) {
        return Err(LineError::Changed);
    }
    Ok(written)
}

impl Line {
    /// Reads a line and checks it by itself.
    ///
    /// # Errors
    /// When it is none, or was changed.
    pub fn read(text: &str) -> Result<Self, LineError> {
        checked(text)?;
        let line: Self = serde_json::from_str(text).map_err(LineError::Unknown)?;
        known(line.v)?;
        Ok(line)
    }
}

fn hash(body: &[u8]) -> String {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(DOMAIN);
    context.update(body);
    hex::encode(context.finish().as_ref())
}

fn is_hash(text: &str) -> bool {
    let digit = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
    text.len() == DIGITS && text.bytes().all(digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Event;

    /// A record as it was written before requests had `expires_after_seconds` and `visible_label`.
    const EARLIER: &str = concat!(
        r#"{"v":1,"sequence":1,"prev_hash":"0000000000000000000000000000000000000000000000000000000000000000","#,
        r#""recorded":"2026-01-02T03:04:05Z","source":7,"tenant":"acme","task":"t-1","event":"submitted","#,
        r#""at":"2026-01-02T03:04:04Z","app_key":"dev-1","model":"inkstone-demo","model_version":"1","lane":"standard","#,
        r#""user":"","request_sha256":"aa","prompt_sha256":"bb","negative_prompt_sha256":"cc","request":{"width":128,"#,
        r#""height":128,"images":1,"seed":7,"steps":12,"guidance_scale":"2","scheduler":"SCHEDULER_DDIM","#,
        r#""quality":"QUALITY_STANDARD","output_format":"OUTPUT_FORMAT_PNG","source_image":"","source_mask":"","#,
        r#""webhook":""},"hash":"6ba2e382a1e90b0dfb36b0626b0b343e422f77cfa794b399e6737302bb86c583"}"#,
    );

    #[test]
    fn who_passes_a_record_and_who_reads_it_agree() {
        let passes = |text: &str| Chain::after(Head::genesis()).pass(text);
        let reads = |text: &str| Chain::after(Head::genesis()).follow(text);
        passes(EARLIER).unwrap();
        let mut wrong = vec![
            String::new(),
            EARLIER.replace("acme", "acne"),
            EARLIER.replace("\"hash\"", "\"hush\""),
        ];
        // Records whose own hash is right, and whose place is not.
        for (from, to) in [
            ("\"sequence\":1", "\"sequence\":2"),
            ("\"v\":1", "\"v\":2"),
            ("\"prev_hash\":\"0", "\"prev_hash\":\"1"),
        ] {
            let changed = EARLIER.replace(from, to);
            let (body, _) = changed.split_once(MARK).unwrap();
            wrong.push(format!("{body}{MARK}{}{TAIL}", hash(body.as_bytes())));
        }
        for text in wrong {
            let (passed, read) = (passes(&text).unwrap_err(), reads(&text).unwrap_err());
            assert_eq!(passed.to_string(), read.to_string(), "{text}");
        }
    }

    #[test]
    fn a_gap_is_a_record_like_the_others() {
        let mut chain = Chain::after(Head::genesis());
        let content = Content {
            recorded: "2026-01-02T03:04:05Z".to_owned(),
            source: 9,
            log: String::new(),
            tenant: String::new(),
            task: String::new(),
            event: Event::Gap {
                from: 7,
                to: 9,
                why: "removed".to_owned(),
            },
        };
        let text = chain.append(content.clone()).unwrap();
        assert!(text.contains(r#""event":"gap","from":7,"to":9"#), "{text}");
        let mut read = Chain::after(Head::genesis());
        assert_eq!(read.follow(&text).unwrap().content, content);
        assert_eq!(read, chain);
    }

    #[test]
    fn a_chain_of_before_a_field_was_there_is_good_and_goes_on_with_it() {
        let mut chain = Chain::after(Head::genesis());
        let line = chain.follow(EARLIER).unwrap();
        let mut content = line.content.clone();
        let Event::Submitted(task) = &mut content.event else {
            panic!("{line:?}");
        };
        assert_eq!(line.content.log, "");
        assert_eq!(task.request.expires_after_seconds, 0);
        assert!(!task.request.visible_label);
        // What has no deadline, asks for no label and names no log is written as ever.
        let again = Chain::after(Head::genesis()).append(line.content);
        assert_eq!(again.unwrap(), EARLIER);
        task.request.expires_after_seconds = 60;
        task.request.visible_label = true;
        content.log = "2026-01-02T03:04:05.000000006Z".to_owned();
        let behind = chain.clone();
        let next = chain.append(content.clone()).unwrap();
        assert!(next.contains("\"expires_after_seconds\":60"), "{next}");
        assert!(next.contains("\"visible_label\":true"), "{next}");
        assert!(next.contains("05.000000006Z\",\"tenant\":"), "{next}");
        let mut read = behind;
        assert_eq!(read.follow(&next).unwrap().content, content);
    }
}
