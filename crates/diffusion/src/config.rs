//! `config.json` files, read strictly: what would change the arithmetic is either understood or refused by name.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::LoadError;

/// The longest configuration that is read, in bytes.
const LONGEST: u64 = 4 << 20;

/// The most layers in a row: what is made for each of them before a weight is read stays small.
const MOST_LAYERS: usize = 128;

/// Reads a whole small file.
pub(crate) fn read(file: &Path) -> Result<Vec<u8>, LoadError> {
    let failed = |source| LoadError::Read {
        file: file.to_owned(),
        source,
    };
    let length = std::fs::metadata(file).map_err(failed)?.len();
    if length > LONGEST {
        return Err(failed(std::io::Error::other(format!(
            "{length} bytes are more than a configuration has"
        ))));
    }
    std::fs::read(file).map_err(failed)
}

/// The keys of one JSON object, each taken once.
#[derive(Clone, Debug)]
pub(crate) struct Fields {
    file: PathBuf,
    map: Map<String, Value>,
}

impl Fields {
    /// Of a file.
    pub(crate) fn open(file: &Path) -> Result<Self, LoadError> {
        let bytes = read(file)?;
        // Python writes infinities that JSON does not have.
        let text = String::from_utf8_lossy(&bytes).replace(": -Infinity", ": null");
        let map = serde_json::from_str(&text).map_err(|source| LoadError::Json {
            file: file.to_owned(),
            source,
        })?;
        Ok(Self::new(file, map))
    }

    /// Of values that are said to be of `file`.
    pub(crate) fn new(file: &Path, map: Map<String, Value>) -> Self {
        Self {
            file: file.to_owned(),
            map,
        }
    }

    /// The key's value; `null` counts as absent.
    pub(crate) fn take(&mut self, key: &str) -> Option<Value> {
        self.map.remove(key).filter(|value| !value.is_null())
    }

    /// Says something else for a key.
    pub(crate) fn set(&mut self, key: &str, value: Value) {
        self.map.insert(key.to_owned(), value);
    }

    /// An error about this key.
    pub(crate) fn refuse(&self, key: &str, value: &Value, reason: &str) -> LoadError {
        LoadError::Config {
            file: self.file.clone(),
            key: key.to_owned(),
            value: value.to_string(),
            reason: reason.to_owned(),
        }
    }

    fn typed<T>(
        &mut self,
        key: &str,
        default: Option<T>,
        expected: &str,
        read: impl FnOnce(&Value) -> Option<T>,
    ) -> Result<T, LoadError> {
        match self.take(key) {
            Some(value) => read(&value)
                .ok_or_else(|| self.refuse(key, &value, &format!("expected {expected}"))),
            None => default
                .ok_or_else(|| self.refuse(key, &Value::Null, &format!("expected {expected}"))),
        }
    }

    /// A whole number from 1 to a million.
    pub(crate) fn size(&mut self, key: &str) -> Result<usize, LoadError> {
        self.typed(key, None, "a whole number from 1 to 1000000", read_size)
    }

    /// Layers in a row: a whole number from 1 to 128.
    pub(crate) fn layers(&mut self, key: &str, default: Option<usize>) -> Result<usize, LoadError> {
        let few = |value: &Value| read_size(value).filter(|layers| *layers <= MOST_LAYERS);
        self.typed(key, default, "a whole number from 1 to 128", few)
    }

    /// As [`Fields::size`], where absence means something.
    pub(crate) fn size_or(&mut self, key: &str, default: usize) -> Result<usize, LoadError> {
        self.typed(
            key,
            Some(default),
            "a whole number from 1 to 1000000",
            read_size,
        )
    }

    /// A whole number from 0 to a million.
    pub(crate) fn count_or(&mut self, key: &str, default: usize) -> Result<usize, LoadError> {
        self.typed(
            key,
            Some(default),
            "a whole number from 0 to 1000000",
            |value| {
                value
                    .as_u64()
                    .filter(|n| *n <= 1_000_000)
                    .and_then(|n| usize::try_from(n).ok())
            },
        )
    }

    /// Sizes, or one for all: `count` of them.
    pub(crate) fn sizes(
        &mut self,
        key: &str,
        count: Option<usize>,
    ) -> Result<Vec<usize>, LoadError> {
        let what = count.map_or("a list of sizes".to_owned(), |count| {
            format!("a size, or a list of {count}")
        });
        self.typed(key, None, &what, |value| read_sizes(value, count))
    }

    /// A number.
    pub(crate) fn number_or(&mut self, key: &str, default: f64) -> Result<f64, LoadError> {
        self.typed(key, Some(default), "a number", Value::as_f64)
    }

    /// A number, or nothing.
    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>, LoadError> {
        self.typed(key, Some(None), "a number", |value| {
            value.as_f64().map(Some)
        })
    }

    /// Numbers, or nothing.
    pub(crate) fn numbers(&mut self, key: &str) -> Result<Option<Vec<f64>>, LoadError> {
        self.typed(key, Some(None), "a list of numbers", |value| {
            value
                .as_array()?
                .iter()
                .map(Value::as_f64)
                .collect::<Option<Vec<_>>>()
                .map(Some)
        })
    }

    /// True or false.
    pub(crate) fn flag_or(&mut self, key: &str, default: bool) -> Result<bool, LoadError> {
        self.typed(key, Some(default), "true or false", Value::as_bool)
    }

    /// A text.
    pub(crate) fn text(&mut self, key: &str) -> Result<String, LoadError> {
        self.typed(key, None, "a text", |value| {
            value.as_str().map(str::to_owned)
        })
    }

    /// A list of texts.
    pub(crate) fn texts(&mut self, key: &str) -> Result<Vec<String>, LoadError> {
        self.typed(key, None, "a list of texts", |value| {
            value
                .as_array()?
                .iter()
                .map(|text| text.as_str().map(str::to_owned))
                .collect()
        })
    }

    /// One of several texts, each with its meaning; the first is what absence means.
    pub(crate) fn choice<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(&str, T)],
    ) -> Result<T, LoadError> {
        let names: Vec<&str> = choices.iter().map(|(name, _)| *name).collect();
        let default = choices.first().map(|(_, meaning)| *meaning);
        self.typed(
            key,
            default,
            &format!("one of {}", names.join(", ")),
            |value| {
                choices
                    .iter()
                    .find(|(name, _)| value.as_str() == Some(*name))
                    .map(|(_, meaning)| *meaning)
            },
        )
    }

    /// One of several sizes, each with its meaning; the first is what absence means.
    pub(crate) fn choice_of_sizes<T: Copy>(
        &mut self,
        key: &str,
        choices: &[(usize, T)],
    ) -> Result<T, LoadError> {
        let names: Vec<String> = choices.iter().map(|(size, _)| size.to_string()).collect();
        let default = choices.first().map(|(_, meaning)| *meaning);
        self.typed(
            key,
            default,
            &format!("one of {}", names.join(", ")),
            |value| {
                let size = read_size(value)?;
                choices
                    .iter()
                    .find(|(choice, _)| *choice == size)
                    .map(|(_, meaning)| *meaning)
            },
        )
    }

    /// Refuses any value but these (or absence).
    pub(crate) fn only<T: Into<Value>, const N: usize>(
        &mut self,
        key: &str,
        allowed: [T; N],
    ) -> Result<(), LoadError> {
        let Some(value) = self.take(key) else {
            return Ok(());
        };
        let allowed = allowed.map(Into::into);
        if allowed.iter().any(|allowed| same(allowed, &value)) {
            return Ok(());
        }
        let list: Vec<String> = allowed.iter().map(Value::to_string).collect();
        Err(self.refuse(
            key,
            &value,
            &format!("only {} is supported", list.join(" or ")),
        ))
    }

    /// Forgets keys that do not change the arithmetic.
    pub(crate) fn ignore(&mut self, keys: &[&str]) {
        for key in keys {
            self.map.remove(*key);
        }
    }

    /// Refuses what nobody took: an unknown key that is set may change the arithmetic.
    pub(crate) fn finish(self) -> Result<(), LoadError> {
        let unknown = (self.map.iter()).find(|(key, value)| {
            !key.starts_with('_') && !value.is_null() && **value != Value::Bool(false)
        });
        match unknown {
            Some((key, value)) => Err(self.refuse(key, value, "the key is unknown")),
            None => Ok(()),
        }
    }
}

fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}

fn read_size(value: &Value) -> Option<usize> {
    let size = value.as_u64().filter(|n| (1..=1_000_000).contains(n))?;
    usize::try_from(size).ok()
}

fn read_sizes(value: &Value, count: Option<usize>) -> Option<Vec<usize>> {
    const MOST: usize = 16;
    if count.is_some_and(|count| !(1..=MOST).contains(&count)) {
        return None;
    }
    if let (Some(size), Some(count)) = (read_size(value), count) {
        return Some(vec![size; count]);
    }
    let sizes: Vec<usize> = value
        .as_array()?
        .iter()
        .map(read_size)
        .collect::<Option<_>>()?;
    let fits =
        count.is_none_or(|count| sizes.len() == count) && !sizes.is_empty() && sizes.len() <= MOST;
    fits.then_some(sizes)
}
