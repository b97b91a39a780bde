//! Until when a certificate is good: the one thing in it that the TLS library does not tell.
//!
//! A certificate is `SEQUENCE { SEQUENCE { [0] version?, serial, algorithm, issuer, SEQUENCE { notBefore, notAfter }, … } … }`
//! (RFC 5280, 4.1). Only as much of it is read as lies before the end; all else has been verified by the library.

use jiff::Timestamp;
use jiff::civil::DateTime;
use jiff::tz::TimeZone;

const SEQUENCE: u8 = 0x30;
const VERSION: u8 = 0xa0;
const UTC_TIME: u8 = 0x17;
const GENERALIZED_TIME: u8 = 0x18;

/// The last moment at which a certificate (DER) is good; `None` if it cannot be found in it.
pub(super) fn not_after(certificate: &[u8]) -> Option<Timestamp> {
    let mut outer = Reader(certificate).expect(SEQUENCE)?;
    let mut inner = outer.expect(SEQUENCE)?;
    if inner.0.first() == Some(&VERSION) {
        inner.next()?;
    }
    // Serial number, algorithm, issuer.
    for _ in 0..3 {
        inner.next()?;
    }
    let mut validity = inner.expect(SEQUENCE)?;
    validity.next()?;
    match validity.next()? {
        (UTC_TIME, text) => {
            let short = std::str::from_utf8(text).ok()?;
            let year: u8 = short.get(..2)?.parse().ok()?;
            // RFC 5280, 4.1.2.5.1.
            let century = if year >= 50 { "19" } else { "20" };
            time(&format!("{century}{short}"))
        }
        (GENERALIZED_TIME, text) => time(std::str::from_utf8(text).ok()?),
        _ => None,
    }
}

/// `YYYYMMDDHHMMSSZ`, the only form that RFC 5280 allows.
fn time(text: &str) -> Option<Timestamp> {
    let digits = text.strip_suffix('Z')?;
    if digits.len() != 14 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let year = digits[..4].parse().ok()?;
    let two = |at: usize| digits[at..at + 2].parse::<i8>().ok();
    let time = DateTime::new(year, two(4)?, two(6)?, two(8)?, two(10)?, two(12)?, 0);
    let time = time.ok()?.to_zoned(TimeZone::UTC).ok()?;
    Some(time.timestamp())
}

/// What is left of some DER.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// The next value: its tag and its content.
    fn next(&mut self) -> Option<(u8, &'a [u8])> {
        let (&tag, rest) = self.0.split_first()?;
        let (&first, mut rest) = rest.split_first()?;
        let length = if first < 0x80 {
            usize::from(first)
        } else {
            // No certificate needs more than four bytes of length.
            let bytes = usize::from(first & 0x7f);
            let (length, after) = rest.split_at_checked(bytes).filter(|_| bytes <= 4)?;
            rest = after;
            length.iter().fold(0, |n, b| n << 8 | usize::from(*b))
        };
        let (content, after) = rest.split_at_checked(length)?;
        self.0 = after;
        Some((tag, content))
    }

    fn expect(&mut self, tag: u8) -> Option<Reader<'a>> {
        let (found, content) = self.next()?;
        (found == tag).then_some(Reader(content))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn der(tag: u8, content: &[u8]) -> Vec<u8> {
        let mut bytes = vec![tag];
        match content.len() {
            short @ ..0x80 => bytes.push(short as u8),
            long => bytes.extend([0x82, (long >> 8) as u8, long as u8]),
        }
        bytes.extend(content);
        bytes
    }

    fn certificate(version: bool, end: &[u8]) -> Vec<u8> {
        let mut inner = Vec::new();
        if version {
            inner.extend(der(VERSION, &der(2, &[2])));
        }
        inner.extend(der(2, &[7]));
        inner.extend(der(SEQUENCE, &[]));
        // Long enough for a length of several bytes.
        inner.extend(der(SEQUENCE, &[0; 300]));
        let begin = der(UTC_TIME, b"260101000000Z");
        inner.extend(der(SEQUENCE, &[&begin, end].concat()));
        der(SEQUENCE, &der(SEQUENCE, &inner))
    }

    #[test]
    fn the_end_is_read_in_both_forms_with_and_without_a_version() {
        for version in [true, false] {
            let at = |tag, text: &str| {
                let end = certificate(version, &der(tag, text.as_bytes()));
                not_after(&end).map(|end| end.to_string())
            };
            let found = at(UTC_TIME, "270224235959Z").unwrap();
            assert_eq!(found, "2027-02-24T23:59:59Z");
            assert_eq!(
                at(UTC_TIME, "500101000000Z").unwrap(),
                "1950-01-01T00:00:00Z"
            );
            let found = at(GENERALIZED_TIME, "21260101000000Z").unwrap();
            assert_eq!(found, "2126-01-01T00:00:00Z");
            for bad in ["270224235959", "271324235959Z", "2é0224235959Z", "Z", ""] {
                assert_eq!(at(UTC_TIME, bad), None, "{bad}");
            }
            assert_eq!(at(0x04, "270224235959Z"), None);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(
            mut bytes in prop::collection::vec(any::<u8>(), 0..60),
            at in 0..360usize,
            with: u8,
        ) {
            let _ = not_after(&bytes);
            bytes.insert(0, SEQUENCE);
            let _ = not_after(&bytes);
            let mut almost = certificate(true, &der(UTC_TIME, b"270224235959Z"));
            if let Some(byte) = almost.get_mut(at) {
                *byte = with;
            }
            let _ = not_after(&almost);
        }
    }
}
