//! What the registry keeps in its buckets, and how a record changes: functions from values to values.

use std::time::{Duration, UNIX_EPOCH};

use contract::{ModelName, VersionName, registry as proto};
use serde::{Deserialize, Serialize};
use storage::Key;

use crate::error::RegistryError;

/// The share that a model's first version takes; with one version any number would do.
const FIRST_WEIGHT: u32 = 100;
/// The largest weight, so that no sum of weights can overflow.
const MAX_WEIGHT: u32 = 10_000;
/// The largest record. A broker's messages may have 1 MiB unless it is told otherwise.
const MAX_RECORD_BYTES: usize = 900 * 1024;

/// The shape that this binary writes and reads. A record of another shape is refused, not guessed at: rewriting it
/// would lose what this binary does not know of.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "u32", into = "u32")]
pub struct Schema;

impl Schema {
    const NUMBER: u32 = 1;
}

impl TryFrom<u32> for Schema {
    type Error = String;

    fn try_from(number: u32) -> Result<Self, String> {
        if number == Self::NUMBER {
            return Ok(Self);
        }
        Err(format!(
            "has schema {number}; this binary knows {}",
            Self::NUMBER
        ))
    }
}

impl From<Schema> for u32 {
    fn from(_: Schema) -> u32 {
        Schema::NUMBER
    }
}

/// One model, at its name in the bucket `MODELS`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ModelRecord {
    /// The shape of this record.
    pub schema: Schema,
    /// Canonical name.
    pub name: ModelName,
    /// As the newest version has it.
    pub description: String,
    /// Other names. They are only ever added to: callers use them whichever version serves.
    pub aliases: Vec<ModelName>,
    /// In the order in which they were registered; never empty.
    pub versions: Vec<VersionRecord>,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
}

/// One version. All but its weight is immutable.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    /// Its name.
    pub version: VersionName,
    /// Relative share of new tasks.
    pub weight: u32,
    /// SHA-256 over the sorted lines `path sha256 size\n` of its files, lower-case hex.
    pub digest: String,
    /// Its files, sorted by path.
    pub artifacts: Vec<ArtifactRecord>,
    /// What it can do, and does when not told otherwise.
    pub profile: ProfileRecord,
    /// Milliseconds since 1970.
    pub created_at_ms: u64,
}

/// One file of a version.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ArtifactRecord {
    /// Relative path in the folder, `/`-separated.
    pub path: String,
    /// Lower-case hex; the object's key follows from it.
    pub sha256: String,
    /// Size.
    pub size_bytes: u64,
}

/// What a version can do, and does when not told otherwise. Units as in `proto/inkstone/registry/v1`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)] // Field for field the message `Profile`, documented there.
pub struct ProfileRecord {
    pub default_width: u32,
    pub default_height: u32,
    pub default_steps: u32,
    pub default_guidance_scale: f32,
    pub min_side: u32,
    pub max_side: u32,
    pub multiple: u32,
    pub max_steps: u32,
    pub max_guidance_scale: f32,
}

/// Whose a name or alias is, at that name in the bucket `MODEL_NAMES`. Written once and never changed, so that two
/// models that are registered at the same moment cannot both get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NameRecord {
    /// The shape of this record.
    pub schema: Schema,
    /// The model that the name means.
    pub model: ModelName,
}

/// A version that is to be published.
#[derive(Debug, Clone)]
pub(crate) struct Candidate {
    /// Its model.
    pub model: ModelName,
    /// For people.
    pub description: String,
    /// Other names of the model.
    pub aliases: Vec<ModelName>,
    /// The version; its weight and time are set when it is added.
    pub version: VersionRecord,
}

/// The digest of a version with these files, which are sorted by path.
pub(crate) fn version_digest(artifacts: &[ArtifactRecord]) -> String {
    let line = |a: &ArtifactRecord| format!("{} {} {}\n", a.path, a.sha256, a.size_bytes);
    let lines: String = artifacts.iter().map(line).collect();
    storage::sha256_hex(lines.as_bytes())
}

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = contract::clock::system_time().duration_since(UNIX_EPOCH);
    since.map_or(0, |d| d.as_millis() as u64)
}

impl ModelRecord {
    /// The record after `candidate` was added at `now` to what was there; `None` when it is there already.
    ///
    /// # Errors
    /// [`RegistryError::VersionTaken`] when the version exists with other files, or [`RegistryError::RecordTooLarge`].
    pub(crate) fn with_version(
        before: Option<&Self>,
        candidate: &Candidate,
        now: u64,
    ) -> Result<Option<Self>, RegistryError> {
        let new = &candidate.version;
        let mut record = match before {
            Some(before) => before.clone(),
            None => Self {
                schema: Schema,
                name: candidate.model.clone(),
                description: String::new(),
                aliases: Vec::new(),
                versions: Vec::new(),
                created_at_ms: now,
            },
        };
        match record.versions.iter().find(|v| v.version == new.version) {
            Some(old) if old.digest == new.digest => return Ok(None),
            Some(_) => {
                return Err(RegistryError::VersionTaken {
                    model: candidate.model.to_string(),
                    version: new.version.to_string(),
                });
            }
            None => {}
        }
        let first = record.versions.is_empty();
        record.versions.push(VersionRecord {
            weight: if first { FIRST_WEIGHT } else { 0 },
            created_at_ms: now,
            ..new.clone()
        });
        record.description.clone_from(&candidate.description);
        let added = candidate.aliases.iter();
        let added: Vec<_> = added
            .filter(|a| !record.aliases.contains(a))
            .cloned()
            .collect();
        record.aliases.extend(added);
        record.fits()
    }

    fn fits(self) -> Result<Option<Self>, RegistryError> {
        // Encoding strings and numbers does not fail; if it did, the bucket's own encoding would report it.
        let size = serde_json::to_vec(&self).map_or(0, |bytes| bytes.len());
        if size <= MAX_RECORD_BYTES {
            return Ok(Some(self));
        }
        Err(RegistryError::RecordTooLarge {
            model: self.name.to_string(),
            size,
            limit: MAX_RECORD_BYTES,
        })
    }

    /// The record with these weights; a version that is not named takes no new tasks.
    ///
    /// # Errors
    /// [`RegistryError::Weights`] when a version is unknown or named twice, a weight is too large or all are 0.
    pub(crate) fn with_traffic(
        &self,
        weights: &[proto::VersionWeight],
    ) -> Result<Self, RegistryError> {
        let refused = |problem| Err(RegistryError::Weights { problem });
        let mut record = self.clone();
        for version in &mut record.versions {
            version.weight = 0;
        }
        for (i, wanted) in weights.iter().enumerate() {
            let name = &wanted.version;
            let versions = &mut record.versions;
            let Some(version) = versions.iter_mut().find(|v| v.version.as_str() == name) else {
                return refused(format!("{} has no version {name:?}", self.name));
            };
            if weights[..i].iter().any(|w| w.version == *name) {
                return refused(format!("version {name} is named twice"));
            }
            if wanted.weight > MAX_WEIGHT {
                let weight = wanted.weight;
                return refused(format!("{name} has {weight}; at most {MAX_WEIGHT}"));
            }
            version.weight = wanted.weight;
        }
        if record.versions.iter().all(|v| v.weight == 0) {
            return refused("at least one version must have more than 0".to_owned());
        }
        Ok(record)
    }
}

impl From<&ModelRecord> for proto::Model {
    fn from(record: &ModelRecord) -> Self {
        Self {
            name: record.name.to_string(),
            description: record.description.clone(),
            aliases: record.aliases.iter().map(ToString::to_string).collect(),
            versions: record.versions.iter().map(Into::into).collect(),
            created_at: Some((UNIX_EPOCH + Duration::from_millis(record.created_at_ms)).into()),
        }
    }
}

impl From<&VersionRecord> for proto::ModelVersion {
    fn from(record: &VersionRecord) -> Self {
        Self {
            version: record.version.to_string(),
            weight: record.weight,
            digest: record.digest.clone(),
            artifacts: record.artifacts.iter().map(Into::into).collect(),
            profile: Some((&record.profile).into()),
            created_at: Some((UNIX_EPOCH + Duration::from_millis(record.created_at_ms)).into()),
        }
    }
}

impl From<&ArtifactRecord> for proto::Artifact {
    fn from(record: &ArtifactRecord) -> Self {
        // A digest that is not one gives no key, and a worker that is given none refuses the version.
        let key = Key::artifact(&record.sha256);
        Self {
            path: record.path.clone(),
            sha256: record.sha256.clone(),
            size_bytes: record.size_bytes,
            key: key.map(|k| k.to_string()).unwrap_or_default(),
        }
    }
}

impl From<&ProfileRecord> for proto::Profile {
    fn from(record: &ProfileRecord) -> Self {
        Self {
            default_width: record.default_width,
            default_height: record.default_height,
            default_steps: record.default_steps,
            default_guidance_scale: record.default_guidance_scale,
            min_side: record.min_side,
            max_side: record.max_side,
            multiple: record.multiple,
            max_steps: record.max_steps,
            max_guidance_scale: record.max_guidance_scale,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(version: &str, content: &[u8]) -> Candidate {
        let artifacts = vec![ArtifactRecord {
            path: "model_index.json".to_owned(),
            sha256: storage::sha256_hex(content),
            size_bytes: content.len() as u64,
        }];
        Candidate {
            model: "small".parse().unwrap(),
            description: format!("version {version}"),
            aliases: vec![format!("small-{version}").parse().unwrap()],
            version: VersionRecord {
                version: version.parse().unwrap(),
                weight: 0,
                digest: version_digest(&artifacts),
                artifacts,
                profile: ProfileRecord {
                    default_width: 128,
                    default_height: 128,
                    default_steps: 12,
                    default_guidance_scale: 2.0,
                    min_side: 64,
                    max_side: 256,
                    multiple: 32,
                    max_steps: 100,
                    max_guidance_scale: 20.0,
                },
                created_at_ms: 0,
            },
        }
    }

    fn two_versions() -> ModelRecord {
        let first = ModelRecord::with_version(None, &candidate("1", b"a"), 10).unwrap();
        let second = ModelRecord::with_version(first.as_ref(), &candidate("2", b"b"), 20);
        second.unwrap().unwrap()
    }

    fn weights(pairs: &[(&str, u32)]) -> Vec<proto::VersionWeight> {
        let weight = |&(version, weight): &(&str, u32)| proto::VersionWeight {
            version: version.to_owned(),
            weight,
        };
        pairs.iter().map(weight).collect()
    }

    #[test]
    fn the_first_version_takes_all_traffic_and_later_ones_none() {
        let record = two_versions();
        let weights: Vec<u32> = record.versions.iter().map(|v| v.weight).collect();
        assert_eq!(weights, [100, 0]);
        assert_eq!(record.created_at_ms, 10);
        assert_eq!(record.versions[1].created_at_ms, 20);
        assert_eq!(record.description, "version 2");
        assert_eq!(record.aliases.len(), 2, "aliases are only added to");
    }

    #[test]
    fn the_same_files_change_nothing_and_other_files_are_refused() {
        let record = two_versions();
        let again = ModelRecord::with_version(Some(&record), &candidate("1", b"a"), 30);
        assert!(again.unwrap().is_none());
        let other = ModelRecord::with_version(Some(&record), &candidate("1", b"c"), 30);
        let failure = contract::Failure::from(other.unwrap_err());
        assert_eq!(failure.code, contract::ErrorCode::InvalidArgument);
        assert_eq!(failure.field.as_deref(), Some("version"));
        assert!(failure.message.contains("choose another"), "{failure}");
    }

    #[test]
    fn traffic_is_what_was_asked_for_and_0_for_the_rest() {
        let record = two_versions().with_traffic(&weights(&[("2", 7)])).unwrap();
        let weights: Vec<u32> = record.versions.iter().map(|v| v.weight).collect();
        assert_eq!(weights, [0, 7]);
    }

    #[test]
    fn weights_that_make_no_sense_are_refused_with_the_reason() {
        let record = two_versions();
        for (pairs, word) in [
            (&[("3", 1)][..], "no version"),
            (&[("1", 0), ("2", 0)], "more than 0"),
            (&[], "more than 0"),
            (&[("1", 1), ("1", 2)], "twice"),
            (&[("1", 10_001)], "10000"),
        ] {
            let error = record
                .with_traffic(&weights(pairs))
                .unwrap_err()
                .to_string();
            assert!(error.contains(word), "{error}");
        }
    }

    #[test]
    fn a_record_reads_back_as_written_and_one_of_a_later_schema_is_refused() {
        let record = two_versions();
        let text = serde_json::to_string(&record).unwrap();
        assert_eq!(serde_json::from_str::<ModelRecord>(&text).unwrap(), record);
        let later = text.replacen("\"schema\":1", "\"schema\":2", 1);
        let error = serde_json::from_str::<ModelRecord>(&later).unwrap_err();
        assert!(error.to_string().contains("schema 2"), "{error}");
    }

    #[test]
    fn a_record_too_large_for_the_broker_is_refused() {
        let mut big = candidate("1", b"a");
        let artifact = big.version.artifacts[0].clone();
        big.version.artifacts = vec![artifact; 10_000];
        let error = ModelRecord::with_version(None, &big, 0).unwrap_err();
        assert!(matches!(error, RegistryError::RecordTooLarge { .. }));
    }
}
