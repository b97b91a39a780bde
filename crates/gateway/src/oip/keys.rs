//! The idempotency keys of a batch's pictures.

use aws_lc_rs::digest;

/// The key of a picture of a batch whose caller gave `key`; none where it gave none.
///
/// Each picture is a task of its own, so each needs a key of its own. The first has the caller's. Those of the others are digests: as short
/// whatever the caller's is, and no key that a caller chooses by itself, such as `order/1` beside a batch of `order`. One that makes the digest
/// itself means that very picture.
pub(super) fn of_picture(key: &str, number: usize) -> String {
    if key.is_empty() || number == 0 {
        return key.to_owned();
    }
    let mut hash = digest::Context::new(&digest::SHA256);
    hash.update(b"inkstone picture of a batch\0");
    hash.update(&(number as u64).to_be_bytes());
    hash.update(key.as_bytes());
    format!("picture-{number}-{}", hex::encode(hash.finish()))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use contract::limits::{MAX_IDEMPOTENCY_KEY_BYTES, MAX_IMAGES};

    use super::*;

    #[test]
    fn each_picture_of_a_batch_has_a_key_that_no_other_has_and_that_fits_however_long_the_callers_is()
     {
        let long = "k".repeat(MAX_IDEMPOTENCY_KEY_BYTES);
        let callers = ["k", "k/1", "k/10", "1", long.as_str()];
        let mut all = HashSet::new();
        for key in callers {
            assert_eq!(of_picture(key, 0), key);
            for number in 0..MAX_IMAGES as usize {
                let own = of_picture(key, number);
                assert!(own.len() <= MAX_IDEMPOTENCY_KEY_BYTES);
                assert_eq!(own, of_picture(key, number));
                assert!(all.insert(own), "{key} {number}");
            }
        }
        assert_eq!(of_picture("", 1), "");
    }

    #[test]
    fn the_key_of_a_picture_is_the_same_in_every_version() {
        let key = of_picture("k", 1);
        let expected = "picture-1-acf867a05609171694578dcb8ef71dd756476d818ac86c1e8142cd34b9cc09a1";
        assert_eq!(key, expected);
    }
}
