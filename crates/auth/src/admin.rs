//! The token that `KeyService` and `PolicyService` ask for, so that reaching their port is not enough to make a key.

use std::io;
use std::path::Path;

use aws_lc_rs::{constant_time, digest};
use settings::SecretFile;
use tonic::metadata::MetadataMap;

use crate::error::AuthError;
use crate::sealed::Key;
use crate::secret_file::{SecretFileError, read_or_make};

const EXPECTED: &str = "one line of 32 to 256 visible ASCII characters";

/// The admin token. Only its digest is kept: the file has the text.
pub(crate) struct AdminToken {
    digest: digest::Digest,
}

impl AdminToken {
    /// Reads the token, and makes one first where there is none and `create` is true.
    pub(crate) fn load(path: &Path, create: bool) -> Result<Self, SecretFileError> {
        let file = SecretFile {
            path,
            setting: "keys.admin_token_file",
        };
        let bytes = read_or_make(file, create, || {
            Ok(Key::random().map_err(io::Error::other)?.to_base64url())
        })?;
        let token = bytes.trim_ascii();
        if !(32..=256).contains(&token.len()) || !token.iter().all(u8::is_ascii_graphic) {
            return Err(file.content(EXPECTED).into());
        }
        Ok(Self {
            digest: digest::digest(&digest::SHA256, token),
        })
    }

    /// Refuses a request that does not carry it.
    pub(crate) fn admit(&self, metadata: &MetadataMap) -> Result<(), AuthError> {
        let offered = metadata.get("authorization").and_then(|v| v.to_str().ok());
        let token = offered.and_then(|v| v.strip_prefix("Bearer "));
        match token {
            Some(token) if self.is(token) => Ok(()),
            _ => Err(AuthError::NotAdmin),
        }
    }

    /// Whether this is the token. Digests are compared, in constant time, so neither content nor length shows.
    pub(crate) fn is(&self, offered: &str) -> bool {
        let offered = digest::digest(&digest::SHA256, offered.as_bytes());
        constant_time::verify_slices_are_equal(self.digest.as_ref(), offered.as_ref()).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_made_token_is_the_one_in_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        let token = AdminToken::load(&path, true).unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(token.is(text.trim()));
        assert!(!token.is("") && !token.is(&text[1..]));
        fs::write(&path, format!("{text}\n")).unwrap();
        assert!(AdminToken::load(&path, false).unwrap().is(text.trim()));
    }

    #[test]
    fn an_empty_or_short_token_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        AdminToken::load(&path, true).unwrap();
        for text in ["", "\n", "letmein", &"two words ".repeat(5)] {
            fs::write(&path, text).unwrap();
            let error = AdminToken::load(&path, true).err().unwrap().to_string();
            assert!(error.contains(EXPECTED), "{error}");
        }
    }
}
