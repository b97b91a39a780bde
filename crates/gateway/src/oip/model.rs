//! What every model looks like in this protocol: all of them draw, so all have the same tensors.

use contract::{ErrorCode, Failure, v1};
use serde::Serialize;
use utoipa::ToSchema;

use crate::json::shorten;

/// What kind of values an input takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// `BYTES`: UTF-8.
    Text,
    /// Any whole datatype.
    Whole,
    /// `FP32`, `FP64`, or any whole datatype.
    Real,
}

/// A tensor, by its name and the datatype that its description gives.
pub(super) struct Described {
    pub(super) name: &'static str,
    pub(super) datatype: &'static str,
    pub(super) kind: Kind,
    pub(super) optional: bool,
}

const fn optional(name: &'static str, datatype: &'static str, kind: Kind) -> Described {
    Described {
        name,
        datatype,
        kind,
        optional: true,
    }
}

const fn required(name: &'static str, datatype: &'static str, kind: Kind) -> Described {
    Described {
        optional: false,
        ..optional(name, datatype, kind)
    }
}

/// The inputs. Each has one element for the whole batch, or one for each picture.
pub(super) const INPUTS: &[Described] = &[
    required("PROMPT", "BYTES", Kind::Text),
    optional("NEGATIVE_PROMPT", "BYTES", Kind::Text),
    optional("WIDTH", "INT32", Kind::Whole),
    optional("HEIGHT", "INT32", Kind::Whole),
    optional("SEED", "UINT64", Kind::Whole),
    optional("STEPS", "INT32", Kind::Whole),
    optional("GUIDANCE_SCALE", "FP32", Kind::Real),
    optional("GUIDANCE_RESCALE", "FP32", Kind::Real),
    optional("SCHEDULER", "BYTES", Kind::Text),
    optional("PROMPT_SYNTAX", "BYTES", Kind::Text),
    optional("QUALITY", "BYTES", Kind::Text),
    optional("EXPIRES_AFTER_SECONDS", "INT32", Kind::Whole),
    optional("VISIBLE_LABEL", "UINT8", Kind::Whole),
];

/// The pictures: files as `BYTES`, or pixels as `UINT8` of shape `[n, height, width, 3]` with `image_format` `raw`.
pub(super) const IMAGE: &str = "IMAGE";
/// The seed of each picture.
pub(super) const SEED: &str = "SEED";
/// The id of each picture's task.
pub(super) const TASK_ID: &str = "TASK_ID";

/// The outputs.
pub(super) const OUTPUTS: &[Described] = &[
    required(IMAGE, "BYTES", Kind::Text),
    required(SEED, "UINT64", Kind::Whole),
    required(TASK_ID, "BYTES", Kind::Text),
];

/// What a model's `platform` is.
pub(super) const PLATFORM: &str = "inkstone";
/// The protocol's extensions that are there.
pub(super) const EXTENSIONS: &[&str] = &[
    "binary_tensor_data",
    "model_configuration",
    "model_repository",
];
/// What a model that can be used is in the repository's index.
pub(super) const READY: &str = "READY";

/// The model that a caller names by name or alias, and by a version if it wants one.
///
/// # Errors
/// There is none that the caller may use, or not in that version, or others draw beside that version.
pub(super) fn find<'a>(
    models: &'a [v1::ModelSummary],
    name: &str,
    version: &str,
) -> Result<&'a v1::ModelSummary, Failure> {
    let missing = |message: String| Failure::new(ErrorCode::ModelNotFound, message);
    let named = |model: &&v1::ModelSummary| {
        model.name == name || model.aliases.iter().any(|alias| alias == name)
    };
    let model = models.iter().find(named).ok_or_else(|| {
        let shown = shorten(name);
        missing(format!("there is no model {shown:?} that you may use"))
    })?;
    let live = model.versions.join(", ");
    if version.is_empty() && !live.is_empty() {
        return Ok(model);
    }
    if !model.versions.iter().any(|live| live == version) {
        let (name, shown) = (&model.name, shorten(version));
        let there = if live.is_empty() { "none" } else { &live };
        return Err(missing(format!(
            "the model {name} has no version {shown:?} that takes requests; there are: {there}"
        )));
    }
    Ok(model)
}

/// Refuses a version beside which others draw: which one does is decided by their shares of the traffic.
pub(super) fn check_sole(model: &v1::ModelSummary, version: &str) -> Result<(), Failure> {
    if version.is_empty() || model.versions.len() == 1 {
        return Ok(());
    }
    let (name, live) = (&model.name, model.versions.join(", "));
    let message = format!(
        "the versions {live} of {name} share its requests, so none can be chosen; leave the version out"
    );
    Err(Failure::invalid("model_version", message))
}

/// A model's metadata.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferMetadata)]
pub(super) struct Metadata<'a> {
    name: &'a str,
    #[schema(value_type = Vec<String>)]
    versions: &'a [String],
    platform: &'static str,
    inputs: Vec<TensorJson>,
    outputs: Vec<TensorJson>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferTensor)]
struct TensorJson {
    name: &'static str,
    datatype: &'static str,
    #[schema(value_type = Vec<i64>)]
    shape: [i64; 1],
}

impl<'a> Metadata<'a> {
    pub(super) fn new(model: &'a v1::ModelSummary) -> Self {
        let tensor = |described: &Described| TensorJson {
            name: described.name,
            datatype: described.datatype,
            shape: [-1],
        };
        Self {
            name: &model.name,
            versions: &model.versions,
            platform: PLATFORM,
            inputs: INPUTS.iter().map(tensor).collect(),
            outputs: OUTPUTS.iter().map(tensor).collect(),
        }
    }
}

/// A model's configuration, as far as a client can need it. `max_batch_size` is 0, Triton's way to say that shapes are
/// given whole, batch included.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferConfig)]
pub(super) struct Config<'a> {
    name: &'a str,
    platform: &'static str,
    backend: &'static str,
    max_batch_size: u32,
    input: Vec<ConfigTensor>,
    output: Vec<ConfigTensor>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferConfigTensor)]
struct ConfigTensor {
    name: &'static str,
    data_type: String,
    #[schema(value_type = Vec<i64>)]
    dims: [i64; 1],
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    optional: bool,
}

impl<'a> Config<'a> {
    pub(super) fn new(model: &'a v1::ModelSummary) -> Self {
        let tensor = |described: &Described| ConfigTensor {
            name: described.name,
            data_type: config_type(described.datatype),
            dims: [-1],
            optional: described.optional,
        };
        Self {
            name: &model.name,
            platform: PLATFORM,
            backend: PLATFORM,
            max_batch_size: 0,
            input: INPUTS.iter().map(tensor).collect(),
            output: OUTPUTS.iter().map(tensor).collect(),
        }
    }
}

/// A datatype's name in configurations, where `BYTES` is called a string.
pub(super) fn config_type(datatype: &str) -> String {
    match datatype {
        "BYTES" => "TYPE_STRING".to_owned(),
        other => format!("TYPE_{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn models() -> Vec<v1::ModelSummary> {
        let model = |name: &str, versions: &[&str]| v1::ModelSummary {
            name: name.to_owned(),
            aliases: vec![format!("{name}-alias")],
            versions: versions.iter().map(|v| (*v).to_owned()).collect(),
            ..Default::default()
        };
        vec![
            model("one", &["1"]),
            model("two", &["1", "2"]),
            model("none", &[]),
        ]
    }

    #[test]
    fn a_model_is_found_by_name_alias_and_live_version() {
        let models = models();
        assert_eq!(find(&models, "one-alias", "1").unwrap().name, "one");
        assert_eq!(find(&models, "two", "").unwrap().name, "two");
        for (name, version) in [("three", ""), ("one", "2"), ("none", ""), ("none", "1")] {
            let failure = find(&models, name, version).unwrap_err();
            assert_eq!(failure.code, ErrorCode::ModelNotFound, "{name} {version}");
        }
    }

    #[test]
    fn a_version_can_be_chosen_only_where_no_other_draws() {
        let models = models();
        assert!(check_sole(&models[0], "1").is_ok());
        assert!(check_sole(&models[1], "").is_ok());
        let failure = check_sole(&models[1], "2").unwrap_err();
        assert!(failure.message.contains("1, 2"), "{failure}");
    }

    #[test]
    fn a_configuration_names_types_as_triton_does() {
        let models = models();
        let config = serde_json::to_value(Config::new(&models[0])).unwrap();
        assert_eq!(config["input"][0]["data_type"], "TYPE_STRING");
        assert_eq!(config["input"][4]["data_type"], "TYPE_UINT64");
        assert_eq!(config["input"][4]["optional"], true);
        let metadata = serde_json::to_value(Metadata::new(&models[0])).unwrap();
        assert_eq!(metadata["outputs"][0]["datatype"], "BYTES");
    }
}
