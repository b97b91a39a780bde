//! Settings: documented defaults, then a file, then the environment.
//!
//! A service's `config.default.toml` documents every setting where it is set, and is compiled in. `--config
//! FILE` overrides it key by key, and `INKSTONE_<SERVICE>__<SECTION>__<KEY>` overrides both, so a container needs
//! no file. A key that no one knows is refused: a typo must not fall back to a default in silence.
//!
//! Secrets are no settings: a setting names the file that holds one ([`SecretFile`]).

use std::path::{Path, PathBuf};

use serde::Deserialize as _;
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
    /// A list or a table in the environment is not TOML.
    #[error("settings of {service}: {variable} is not written as in TOML: {source}")]
    Parse {
        /// Whose settings.
        service: &'static str,
        /// The variable of the environment.
        variable: String,
        /// What is wrong, and where.
        #[source]
        source: Box<toml::de::Error>,
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
/// Values from the environment and overrides are plain text (`8080`, `info`, `5s`), or TOML where the setting is a list
/// (`["a", "b"]`, `[{ name = "a" }]`) or a table (`{ a = 1 }`), which overrides key by key.
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
    let defaults = config::Config::builder().add_source(toml(S::DEFAULTS));
    let defaults = defaults.build().map_err(understand)?;
    let mut layers = config::Config::builder().add_source(defaults.clone());
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
    for (key, text) in environment(&prefix).iter().chain(&overrides) {
        let value = value(&defaults, key, text).map_err(|source| SettingsError::Parse {
            service: S::SERVICE,
            variable: prefix.clone() + &key.to_uppercase().replace('.', "__"),
            source: Box::new(source),
        })?;
        // Each a layer: the builder's own overrides have no order, and a table and a key in it can both be given.
        let layer = config::Config::builder().set_override(key, value);
        let layer = layer.and_then(|layer| layer.build()).map_err(understand)?;
        layers = layers.add_source(layer);
    }
    let settings: S = layers
        .build()
        .and_then(config::Config::try_deserialize)
        .map_err(understand)?;
    settings.validate()?;
    Ok(settings)
}

/// `INKSTONE_GATEWAY__HTTP__LISTEN=…` as (`http.listen`, …); a table comes before the keys in it.
fn environment(prefix: &str) -> Vec<(String, String)> {
    let ours = |(name, value): (String, String)| {
        let key = name.strip_prefix(prefix)?.to_lowercase().replace("__", ".");
        Some((key, value))
    };
    let mut all: Vec<_> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .filter_map(ours)
        .collect();
    all.sort();
    all
}

/// TOML where `text` begins as the default does, if that is a list or a table; else `text` itself, for an address may begin
/// as a list does (`[::1]:8080`).
fn value(
    defaults: &config::Config,
    key: &str,
    text: &str,
) -> Result<config::Value, toml::de::Error> {
    let trimmed = text.trim();
    let in_toml = match trimmed.chars().next() {
        Some('[') => defaults.get_array(key).is_ok(),
        Some('{') => defaults.get_table(key).is_ok(),
        _ => false,
    };
    if in_toml {
        config::Value::deserialize(toml::de::ValueDeserializer::parse(trimmed)?)
    } else {
        Ok(text.into())
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
        listen: String,
        names: Names,
        list: Vec<String>,
        rules: Vec<Rule>,
    }

    #[derive(Debug, serde::Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Names {
        max: u32,
    }

    #[derive(Debug, Default, PartialEq, Eq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Rule {
        named: Option<String>,
        tags: Vec<String>,
        max: Option<u64>,
        model: String,
    }

    impl Settings for Sample {
        const SERVICE: &'static str = "sample-of-settings";
        const DEFAULTS: &'static str = "wait = \"5s\"\nbody = \"1MiB\"\nlisten = \"127.0.0.1:1\"\nlist = []\nrules = []\n\
            [names]\nmax = 3\n";

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

    fn set(key: &str, text: &str) -> Result<Sample, SettingsError> {
        load(None, &[(key, text.to_owned())])
    }

    #[test]
    fn a_list_of_tables_is_given_as_toml() {
        let text = r#" [{ tags = ["anime"], max = 1048576, model = "a" }, { named = "auto", model = "b" }]"#;
        let expected = [
            Rule {
                tags: vec!["anime".to_owned()],
                max: Some(1 << 20),
                model: "a".to_owned(),
                ..Rule::default()
            },
            Rule {
                named: Some("auto".to_owned()),
                model: "b".to_owned(),
                ..Rule::default()
            },
        ];
        assert_eq!(set("rules", text).unwrap().rules, expected);
    }

    #[test]
    fn a_table_is_given_as_toml_and_a_key_of_it_besides() {
        assert_eq!(set("names", "{ max = 7 }").unwrap().names.max, 7);
        let both = [
            ("names", "{ max = 7 }".to_owned()),
            ("names.max", "8".to_owned()),
        ];
        assert_eq!(load::<Sample>(None, &both).unwrap().names.max, 8);
    }

    #[test]
    fn a_list_that_is_not_toml_is_refused_with_its_variable_and_the_reason() {
        let error = set("rules", "[{ model = a }]").unwrap_err();
        assert!(
            matches!(&error, SettingsError::Parse { source, .. } if error.to_string().contains(source.message())),
            "{error}"
        );
        let variable = "INKSTONE_SAMPLE_OF_SETTINGS__RULES";
        assert!(error.to_string().contains(variable), "{error}");
        let error = set("rules", r#"[{ modle = "a" }]"#).unwrap_err();
        assert!(error.to_string().contains("modle"), "{error}");
    }

    #[test]
    fn an_address_that_begins_as_a_list_does_is_no_list() {
        let loaded = set("listen", "[::1]:8080").unwrap();
        assert_eq!(loaded.listen, "[::1]:8080");
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
