//! Settings: documented defaults, then a file, then the environment.
//!
//! A service's `config.default.toml` documents every setting where it is set, and is compiled in. `--config
//! FILE` overrides it key by key, and `INKSTONE_<SERVICE>__<SECTION>__<KEY>` overrides both, so a container needs
//! no file. A key that no one knows is refused: a typo must not fall back to a default in silence.
//!
//! Secrets are no settings: a setting names the file that holds one ([`SecretFile`]).

use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;

mod secret_file;
mod units;

pub use secret_file::{SecretFile, SecretFileError};
pub use units::{ByteSize, Millis, ParseUnitError};

/// What is wrong with the settings, for the person who set them.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// `--config` names a file that cannot be read.
    #[error("cannot read the settings file {}", path.display())]
    ReadFile {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// Some layer is not understood.
    #[error("settings of {service}: {source}")]
    Understand {
        /// Whose settings.
        service: &'static str,
        /// The key and what was expected.
        #[source]
        source: Box<config::ConfigError>,
    },
    /// A value is of the right type but cannot work.
    #[error("settings of {service}: {key} {problem}")]
    Invalid {
        /// Whose settings.
        service: &'static str,
        /// Dotted path of the setting.
        key: &'static str,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// The settings of one service.
pub trait Settings: DeserializeOwned {
    /// The service's name, as in `INKSTONE_<SERVICE>__…` (upper-cased, `-` as `_`).
    const SERVICE: &'static str;
    /// The text of its `config.default.toml`.
    const DEFAULTS: &'static str;

    /// Checks what types cannot say.
    ///
    /// # Errors
    /// [`SettingsError::Invalid`] for the first value that cannot work.
    fn validate(&self) -> Result<(), SettingsError>;

    /// A [`SettingsError::Invalid`] of this service.
    fn invalid(key: &'static str, problem: impl Into<String>) -> SettingsError {
        SettingsError::Invalid {
            service: Self::SERVICE,
            key,
            problem: problem.into(),
        }
    }
}

/// Loads defaults, then `file`, then the environment, then `overrides` (dotted key and value), and validates.
///
/// Values from the environment and overrides are plain text (`8080`, `info`, `5s`), or a TOML list of strings
/// (`["a", "b"]`) where the setting is a list.
///
/// # Errors
/// See [`SettingsError`].
pub fn load<S: Settings>(
    file: Option<&Path>,
    overrides: &[(&str, String)],
) -> Result<S, SettingsError> {
    let understand = |source| SettingsError::Understand {
        service: S::SERVICE,
        source: Box::new(source),
    };
    let toml = |text: &str| config::File::from_str(text, config::FileFormat::Toml);
    let mut layers = config::Config::builder().add_source(toml(S::DEFAULTS));
    if let Some(path) = file {
        let text = std::fs::read_to_string(path).map_err(|source| SettingsError::ReadFile {
            path: path.to_owned(),
            source,
        })?;
        layers = layers.add_source(toml(&text));
    }
    let prefix = format!("INKSTONE_{}__", S::SERVICE.to_uppercase().replace('-', "_"));
    let overrides: Vec<(String, String)> = overrides
        .iter()
        .map(|(key, value)| ((*key).to_owned(), value.clone()))
        .collect();
    for (key, value) in environment(&prefix).iter().chain(&overrides) {
        layers = layers
            .set_override(key, scalar_or_list(value))
            .map_err(understand)?;
    }
    let settings: S = layers
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(understand)?;
    settings.validate()?;
    Ok(settings)
}

/// `INKSTONE_GATEWAY__HTTP__LISTEN=…` as (`http.listen`, …).
fn environment(prefix: &str) -> Vec<(String, String)> {
    let ours = |(name, value): (String, String)| {
        let key = name.strip_prefix(prefix)?.to_lowercase().replace("__", ".");
        Some((key, value))
    };
    std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter_map(ours)
        .collect()
}

fn scalar_or_list(text: &str) -> config::Value {
    #[derive(serde::Deserialize)]
    struct List {
        list: Vec<String>,
    }
    let list = text
        .starts_with('[')
        .then(|| toml::from_str::<List>(&format!("list = {text}")).ok())
        .flatten();
    match list {
        Some(List { list }) => list.into(),
        None => text.into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::time::Duration;

    use super::*;

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Sample {
        wait: Millis,
        body: ByteSize,
        names: Names,
        list: Vec<String>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Names {
        max: u32,
    }

    impl Settings for Sample {
        const SERVICE: &'static str = "sample-of-settings";
        const DEFAULTS: &'static str =
            "wait = \"5s\"\nbody = \"1MiB\"\nlist = []\n[names]\nmax = 3\n";

        fn validate(&self) -> Result<(), SettingsError> {
            if self.names.max == 0 {
                return Err(Self::invalid("names.max", "must be at least 1"));
            }
            Ok(())
        }
    }

    fn file(text: &str) -> tempfile::NamedTempFile {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    }

    #[test]
    fn a_file_overrides_defaults_key_by_key_and_overrides_override_both() {
        let file = file("[names]\nmax = 7\n");
        let loaded: Sample = load(Some(file.path()), &[("wait", "250ms".to_owned())]).unwrap();
        assert_eq!(loaded.names.max, 7);
        assert_eq!(loaded.wait.duration(), Duration::from_millis(250));
        assert_eq!(loaded.body.bytes(), 1 << 20);
    }

    #[test]
    fn a_list_is_given_as_toml() {
        let loaded: Sample = load(None, &[("list", "[\"a\", \"b\"]".to_owned())]).unwrap();
        assert_eq!(loaded.list, ["a", "b"]);
    }

    #[test]
    fn an_unknown_key_is_refused_by_name() {
        let file = file("[names]\nmaximum = 7\n");
        let error = load::<Sample>(Some(file.path()), &[]).unwrap_err();
        assert!(error.to_string().contains("maximum"), "{error}");
    }

    #[test]
    fn a_value_that_cannot_work_is_refused_with_its_key() {
        let error = load::<Sample>(None, &[("names.max", "0".to_owned())]).unwrap_err();
        assert!(error.to_string().contains("names.max"), "{error}");
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = load::<Sample>(Some(Path::new("/nowhere/at.toml")), &[]).unwrap_err();
        assert!(error.to_string().contains("/nowhere/at.toml"), "{error}");
    }
}
