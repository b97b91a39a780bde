//! What can be set, as `config.default.toml` documents it.

use std::path::PathBuf;
use std::time::Duration;

use lifecycle::{Process, ProcessSettings};
use messaging::BrokerSettings;
use rpc::{GrpcSettings, TlsSettings};
use secrecy::SecretString;
use settings::{ByteSize, Millis, SettingsError};
use telemetry::TelemetrySettings;

use crate::tokens;

/// Settings of the auth service.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What every process has.
    pub process: ProcessSettings,
    /// Logs and traces.
    pub telemetry: TelemetrySettings,
    /// The connection to NATS.
    pub broker: BrokerSettings,
    /// The gRPC server.
    pub grpc: GrpcSettings,
    /// TLS between services.
    pub tls: TlsSettings,
    /// Where the secrets of auth itself are.
    pub keys: KeysSettings,
    /// A key-encryption key that a key management service holds.
    pub kms: KmsSettings,
    /// What signatures need.
    pub signatures: SignatureSettings,
    /// Short-lived tokens.
    pub tokens: TokensSettings,
}

/// Settings under `[keys]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KeysSettings {
    /// The key-encryption key: 32 bytes, raw or hexadecimal.
    pub key_file: PathBuf,
    /// Key-encryption keys that unwrap and do not wrap.
    pub other_key_files: Vec<PathBuf>,
    /// The same for those whose turn is over: what they have wrapped is wrapped anew.
    pub old_key_files: Vec<PathBuf>,
    /// The token that `KeyService` asks for.
    pub admin_token_file: PathBuf,
    /// Whether missing files are made.
    pub create_if_missing: bool,
}

/// Settings under `[kms]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KmsSettings {
    /// The key's id, alias or ARN; empty uses none.
    pub key_id: String,
    /// Whether it wraps, or only unwraps.
    pub wraps: bool,
    /// Whether what it has wrapped is wrapped anew.
    pub old: bool,
    /// Empty: AWS's own.
    pub endpoint: String,
    /// Which region requests are signed for.
    pub region: String,
    /// For one attempt at a call.
    pub timeout: Millis,
    /// Empty: `AWS_ACCESS_KEY_ID` and its like.
    pub access_key_id: String,
    /// Goes with it.
    pub secret_access_key: SecretString,
}

/// Settings under `[signatures]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignatureSettings {
    /// What the nonces of signature v2 may take on the broker.
    pub replay_cache_size: ByteSize,
}

/// Settings under `[tokens]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokensSettings {
    /// The claim `iss`.
    pub issuer: String,
    /// The claim `aud`.
    pub audience: String,
    /// How long a token lives at most.
    pub lifetime: Millis,
    /// How long a key signs.
    pub rotate_every: Millis,
}

impl TokensSettings {
    fn problem(&self) -> Option<(&'static str, &'static str)> {
        let names = [
            ("tokens.issuer", &self.issuer),
            ("tokens.audience", &self.audience),
        ];
        for (key, name) in names {
            let plain = name
                .bytes()
                .all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\');
            if !(1..=MAX_NAME_BYTES).contains(&name.len()) || !plain {
                return Some((
                    key,
                    "must be 1 to 128 visible ASCII characters without quotes",
                ));
            }
        }
        if self.audience == contract::assertion::AUDIENCE {
            let problem =
                "must not be inkstone.internal, which is for what auth says to the other services";
            return Some(("tokens.audience", problem));
        }
        if !(tokens::SHORTEST..=LONGEST_TOKEN).contains(&self.lifetime.duration()) {
            return Some(("tokens.lifetime", "must be 1m to 24h"));
        }
        // While a key is published and does not sign yet, there must be one that does, and no third.
        let least = 2 * tokens::PUBLISHED_BEFORE + self.lifetime.duration();
        if self.rotate_every.duration() < least {
            let problem = "must be at least tokens.lifetime and two hours";
            return Some(("tokens.rotate_every", problem));
        }
        None
    }
}

/// Issuer and audience, bytes: a token has room for both.
const MAX_NAME_BYTES: usize = 128;
/// A change of key needs one; more are left over from changes that were not finished.
const MAX_OTHER_KEYS: usize = 8;
/// A token cannot be taken back but with its key.
const LONGEST_TOKEN: Duration = Duration::from_secs(24 * 3600);
/// Less holds not even a few nonces.
const LEAST_REPLAY_CACHE: u64 = 4096;

impl settings::Settings for Settings {
    const SERVICE: &'static str = "auth";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        if let Some((key, problem)) = self.tls.problem() {
            return Err(Self::invalid(key, problem));
        }
        let keys = &self.keys;
        let files = [
            ("keys.key_file", &keys.key_file),
            ("keys.admin_token_file", &keys.admin_token_file),
        ];
        for (key, path) in files {
            if path.as_os_str().is_empty() {
                return Err(Self::invalid(key, "must name a file"));
            }
        }
        if keys.key_file == keys.admin_token_file {
            let problem = "must not be the file that keys.key_file names";
            return Err(Self::invalid("keys.admin_token_file", problem));
        }
        let lists = [
            ("keys.other_key_files", &keys.other_key_files),
            ("keys.old_key_files", &keys.old_key_files),
        ];
        for (key, files) in lists {
            if files.len() > MAX_OTHER_KEYS {
                return Err(Self::invalid(key, "must be at most 8 files"));
            }
        }
        if self.kms.wraps && self.kms.old {
            let problem = "must be false while kms.wraps is true: a key that wraps is not old";
            return Err(Self::invalid("kms.old", problem));
        }
        if self.signatures.replay_cache_size.bytes() < LEAST_REPLAY_CACHE {
            let key = "signatures.replay_cache_size";
            return Err(Self::invalid(key, "must be at least 4KiB"));
        }
        if self.kms.timeout.duration().is_zero() {
            return Err(Self::invalid("kms.timeout", "must be longer than nothing"));
        }
        if let Some((key, problem)) = self.tokens.problem() {
            return Err(Self::invalid(key, problem));
        }
        if !matches!(self.broker.replicas, 1 | 3 | 5) {
            return Err(Self::invalid("broker.replicas", "must be 1, 3 or 5"));
        }
        Ok(())
    }
}

impl Process for Settings {
    fn process(&self) -> &ProcessSettings {
        &self.process
    }

    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_defaults_are_valid() {
        let settings: Settings = settings::load(None, &[]).unwrap();
        assert_eq!(settings.grpc.listen, "127.0.0.1:7001".parse().unwrap());
        assert!(settings.keys.create_if_missing);
    }

    #[test]
    fn one_file_cannot_be_both_secrets() {
        let same = ("keys.admin_token_file", ".inkstone/auth/kek".to_owned());
        let error = settings::load::<Settings>(None, &[same]).unwrap_err();
        assert!(
            error.to_string().contains("keys.admin_token_file"),
            "{error}"
        );
    }

    #[test]
    fn tokens_that_cannot_be_are_refused_by_their_key() {
        for (key, value) in [
            ("tokens.issuer", ""),
            ("tokens.audience", "two words"),
            ("tokens.audience", "inkstone.internal"),
            ("tokens.lifetime", "59s"),
            ("tokens.lifetime", "25h"),
            ("tokens.rotate_every", "1h"),
            ("signatures.replay_cache_size", "1KiB"),
        ] {
            let set = [(key, value.to_owned())];
            let error = settings::load::<Settings>(None, &set).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
