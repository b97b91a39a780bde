//! Settings; documented in `config.default.toml`.

use std::fmt;
use std::path::PathBuf;

use lifecycle::{Process, ProcessSettings};
use messaging::BrokerSettings;
use rpc::{GrpcSettings, TlsSettings};
use serde::de::{self, Deserializer, SeqAccess, Visitor};
use settings::SettingsError;
use storage::StorageSettings;
use telemetry::TelemetrySettings;

/// Everything that can be set.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// Admin port and grace time.
    pub process: ProcessSettings,
    /// Logs and traces.
    pub telemetry: TelemetrySettings,
    /// Where the broker is.
    pub broker: BrokerSettings,
    /// Where model files are kept.
    pub storage: StorageSettings,
    /// Where the registry is reached.
    pub grpc: GrpcSettings,
    /// TLS between services.
    pub tls: TlsSettings,
    /// Which models there are from the start.
    pub models: ModelsSettings,
}

/// `[models]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelsSettings {
    /// Folders registered at start unless they are there already.
    #[serde(deserialize_with = "folders")]
    pub bootstrap: Vec<PathBuf>,
}

impl settings::Settings for Settings {
    const SERVICE: &'static str = "model-registry";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        if let Some((key, problem)) = self.tls.problem() {
            return Err(Self::invalid(key, problem));
        }
        if self
            .models
            .bootstrap
            .iter()
            .any(|f| f.as_os_str().is_empty())
        {
            return Err(Self::invalid(
                "models.bootstrap",
                "has an empty folder name in it",
            ));
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

/// A list of folders, or one text with commas: the environment has no lists.
fn folders<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<PathBuf>, D::Error> {
    struct Folders;

    impl<'de> Visitor<'de> for Folders {
        type Value = Vec<PathBuf>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            f.write_str("a list of folders, or folders separated by commas")
        }

        fn visit_str<E: de::Error>(self, text: &str) -> Result<Self::Value, E> {
            if text.is_empty() {
                return Ok(Vec::new());
            }
            Ok(text.split(',').map(|folder| folder.trim().into()).collect())
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
            let mut folders = Vec::new();
            while let Some(folder) = list.next_element::<PathBuf>()? {
                folders.push(folder);
            }
            Ok(folders)
        }
    }

    deserializer.deserialize_any(Folders)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bootstrap(text: &str) -> Result<Vec<PathBuf>, SettingsError> {
        let overrides = [("models.bootstrap", text.to_owned())];
        settings::load::<Settings>(None, &overrides).map(|s| s.models.bootstrap)
    }

    #[test]
    fn the_defaults_are_valid_and_register_nothing() {
        let settings: Settings = settings::load(None, &[]).unwrap();
        assert!(settings.models.bootstrap.is_empty());
        assert_eq!(settings.grpc.listen.port(), 7003);
    }

    #[test]
    fn folders_may_be_given_as_one_text_with_commas() {
        let folders = bootstrap("/a/b, /c").unwrap();
        assert_eq!(folders, [PathBuf::from("/a/b"), PathBuf::from("/c")]);
        assert!(bootstrap("").unwrap().is_empty());
        let error = bootstrap("/a,,/b").unwrap_err().to_string();
        assert!(error.contains("models.bootstrap"), "{error}");
    }
}
