//! `inkstone.json`: what a model folder says about itself.

use std::path::{Path, PathBuf};

use contract::{ModelName, VersionName};
use serde::Deserialize;

use crate::error::RegistryError;
use crate::record::ProfileRecord;

/// The manifest's name in a model folder.
pub(crate) const MANIFEST_FILE: &str = "inkstone.json";

const MAX_DESCRIPTION_BYTES: usize = 500;
const MAX_ALIASES: usize = 16;
/// No latent grid is finer than this (`vae_scale_factor` of SDXL is 8).
const MIN_MULTIPLE: u32 = 8;
const MAX_MULTIPLE: u32 = 256;
const MAX_SIDE: u32 = 4096;
const MAX_STEPS: u32 = 1000;
const MAX_GUIDANCE_SCALE: f32 = 100.0;

/// What the folder says.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Manifest {
    /// The model's canonical name.
    pub name: ModelName,
    /// The version that the folder holds.
    pub version: VersionName,
    /// For people, 500 bytes at most.
    #[serde(default)]
    pub description: String,
    /// Other names that callers may use, 16 at most.
    #[serde(default)]
    pub aliases: Vec<ModelName>,
    /// What a request gets that does not say.
    pub defaults: Defaults,
    /// What a request may ask for.
    pub limits: Limits,
}

/// What a request gets that does not say.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Defaults {
    /// Pixels.
    pub width: u32,
    /// Pixels.
    pub height: u32,
    /// Denoising steps.
    pub steps: u32,
    /// Guidance scale; 1 is without guidance.
    pub guidance_scale: f32,
}

/// What a request may ask for.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limits {
    /// Pixels, for width and height alike.
    pub min_side: u32,
    /// Pixels, for width and height alike.
    pub max_side: u32,
    /// Width and height are multiples of this many pixels.
    pub multiple: u32,
    /// Denoising steps.
    pub max_steps: u32,
    /// Guidance scale.
    pub max_guidance_scale: f32,
}

/// A field and what is wrong with it.
type Problem = (&'static str, String);

impl Manifest {
    /// Reads and checks a manifest; `path` is for the errors.
    ///
    /// # Errors
    /// [`RegistryError::ManifestShape`] or [`RegistryError::Manifest`] with the field and its limit.
    pub(crate) fn parse(path: &Path, text: &[u8]) -> Result<Self, RegistryError> {
        let shape = |source| RegistryError::ManifestShape {
            path: path.to_owned(),
            source,
        };
        let manifest: Self = serde_json::from_slice(text).map_err(shape)?;
        let invalid = |(field, problem)| RegistryError::Manifest {
            path: PathBuf::from(path),
            field,
            problem,
        };
        manifest.check_names().map_err(invalid)?;
        manifest.limits.check().map_err(invalid)?;
        manifest.defaults.check(&manifest.limits).map_err(invalid)?;
        Ok(manifest)
    }

    /// What goes into the registry's record.
    pub(crate) fn profile(&self) -> ProfileRecord {
        ProfileRecord {
            default_width: self.defaults.width,
            default_height: self.defaults.height,
            default_steps: self.defaults.steps,
            default_guidance_scale: self.defaults.guidance_scale,
            min_side: self.limits.min_side,
            max_side: self.limits.max_side,
            multiple: self.limits.multiple,
            max_steps: self.limits.max_steps,
            max_guidance_scale: self.limits.max_guidance_scale,
        }
    }

    fn check_names(&self) -> Result<(), Problem> {
        let bytes = self.description.len();
        if bytes > MAX_DESCRIPTION_BYTES {
            let problem = format!("has {bytes} bytes; at most {MAX_DESCRIPTION_BYTES}");
            return Err(("description", problem));
        }
        let count = self.aliases.len();
        if count > MAX_ALIASES {
            return Err(("aliases", format!("has {count}; at most {MAX_ALIASES}")));
        }
        for (i, alias) in self.aliases.iter().enumerate() {
            if *alias == self.name || self.aliases[..i].contains(alias) {
                return Err((
                    "aliases",
                    format!("says {alias} twice, or the model's own name"),
                ));
            }
        }
        Ok(())
    }
}

impl Limits {
    fn check(&self) -> Result<(), Problem> {
        let multiple = self.multiple;
        between("limits.multiple", multiple, MIN_MULTIPLE, MAX_MULTIPLE)?;
        between("limits.max_side", self.max_side, multiple, MAX_SIDE)?;
        between("limits.min_side", self.min_side, multiple, self.max_side)?;
        multiple_of("limits.max_side", self.max_side, multiple)?;
        multiple_of("limits.min_side", self.min_side, multiple)?;
        between("limits.max_steps", self.max_steps, 1, MAX_STEPS)?;
        let guidance = self.max_guidance_scale;
        guidance_up_to("limits.max_guidance_scale", guidance, MAX_GUIDANCE_SCALE)
    }
}

impl Defaults {
    fn check(&self, limits: &Limits) -> Result<(), Problem> {
        for (field, side) in [
            ("defaults.width", self.width),
            ("defaults.height", self.height),
        ] {
            between(field, side, limits.min_side, limits.max_side)?;
            multiple_of(field, side, limits.multiple)?;
        }
        between("defaults.steps", self.steps, 1, limits.max_steps)?;
        let guidance = self.guidance_scale;
        guidance_up_to(
            "defaults.guidance_scale",
            guidance,
            limits.max_guidance_scale,
        )
    }
}

fn between(field: &'static str, value: u32, low: u32, high: u32) -> Result<(), Problem> {
    if (low..=high).contains(&value) {
        return Ok(());
    }
    Err((
        field,
        format!("is {value}; it must be between {low} and {high}"),
    ))
}

fn multiple_of(field: &'static str, value: u32, multiple: u32) -> Result<(), Problem> {
    if value.is_multiple_of(multiple) {
        return Ok(());
    }
    let problem = format!("is {value}; it must be a multiple of {multiple} (limits.multiple)");
    Err((field, problem))
}

fn guidance_up_to(field: &'static str, value: f32, high: f32) -> Result<(), Problem> {
    // Not a number is in no range.
    if (0.0..=high).contains(&value) {
        return Ok(());
    }
    Err((
        field,
        format!("is {value}; it must be between 0 and {high}"),
    ))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn sample() -> Value {
        json!({
            "name": "small", "version": "1", "description": "d", "aliases": ["t2i"],
            "defaults": {"width": 128, "height": 64, "steps": 12, "guidance_scale": 2.0},
            "limits": {"min_side": 64, "max_side": 256, "multiple": 32, "max_steps": 100,
                       "max_guidance_scale": 20.0}
        })
    }

    fn parse(value: &Value) -> Result<Manifest, RegistryError> {
        Manifest::parse(Path::new("/m/inkstone.json"), value.to_string().as_bytes())
    }

    #[test]
    fn a_good_manifest_is_read_whole() {
        let manifest = parse(&sample()).unwrap();
        assert_eq!(manifest.name.as_str(), "small");
        assert_eq!(manifest.profile().default_height, 64);
        assert_eq!(manifest.profile().max_side, 256);
    }

    #[test]
    fn each_field_out_of_range_is_named_with_its_limit() {
        let cases = [
            ("/defaults/width", json!(512), "defaults.width", "256"),
            (
                "/defaults/height",
                json!(100),
                "defaults.height",
                "multiple of 32",
            ),
            ("/defaults/steps", json!(0), "defaults.steps", "1"),
            (
                "/defaults/guidance_scale",
                json!(-1.0),
                "defaults.guidance_scale",
                "20",
            ),
            ("/limits/multiple", json!(0), "limits.multiple", "8"),
            ("/limits/max_side", json!(8192), "limits.max_side", "4096"),
            ("/limits/min_side", json!(288), "limits.min_side", "256"),
            ("/limits/max_steps", json!(5000), "limits.max_steps", "1000"),
            (
                "/limits/max_guidance_scale",
                json!(1e9),
                "limits.max_guidance_scale",
                "100",
            ),
            ("/description", json!("x".repeat(501)), "description", "500"),
            ("/aliases", json!(["small"]), "aliases", "small"),
            ("/aliases", json!(["a", "a"]), "aliases", "twice"),
        ];
        for (pointer, value, field, limit) in cases {
            let mut changed = sample();
            *changed.pointer_mut(pointer).unwrap() = value;
            let error = parse(&changed).unwrap_err().to_string();
            assert!(error.contains(field) && error.contains(limit), "{error}");
            assert!(error.contains("inkstone.json"), "{error}");
        }
    }

    #[test]
    fn unknown_missing_and_malformed_fields_are_named() {
        let mut unknown = sample();
        unknown["limits"]["max_sides"] = json!(1);
        let mut missing = sample();
        missing["defaults"].as_object_mut().unwrap().remove("steps");
        let mut malformed = sample();
        malformed["version"] = json!("1.0");
        for (value, word) in [
            (unknown, "max_sides"),
            (missing, "steps"),
            (malformed, "version"),
        ] {
            let failure = contract::Failure::from(parse(&value).unwrap_err());
            assert!(failure.message.contains(word), "{failure}");
        }
    }
}
