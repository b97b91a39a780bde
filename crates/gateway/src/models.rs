//! The models that a caller may use.

use std::sync::Arc;

use axum::Extension;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::response::Response;
use contract::auth::{Caller, Policy};
use contract::{ErrorCode, Failure, registry, v1};
use serde::Serialize;
use utoipa::ToSchema;

use crate::edge::Edge;
use crate::json::shorten;
use crate::openapi::params::ModelParam;
use crate::problem::{Refused, json};
use crate::task_json::unix_seconds;

#[derive(Serialize, ToSchema)]
#[schema(as = ModelList)]
struct ListJson<'a> {
    /// `list`.
    object: &'static str,
    data: Vec<ModelJson<'a>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Model)]
struct ModelJson<'a> {
    /// Its name.
    id: &'a str,
    /// `model`.
    object: &'static str,
    /// Unix seconds.
    created: i64,
    owned_by: &'static str,
    description: &'a str,
    /// Other names for it.
    #[schema(value_type = Vec<String>)]
    aliases: &'a [String],
    /// Those that take requests.
    #[schema(value_type = Vec<String>)]
    versions: &'a [String],
    default_width: u32,
    default_height: u32,
    default_steps: u32,
    default_guidance_scale: f32,
}

impl<'a> ModelJson<'a> {
    fn new(model: &'a v1::ModelSummary) -> Self {
        Self {
            id: &model.name,
            object: "model",
            created: unix_seconds(model.created_at.as_ref()),
            owned_by: "inkstone",
            description: &model.description,
            aliases: &model.aliases,
            versions: &model.versions,
            default_width: model.default_width,
            default_height: model.default_height,
            default_steps: model.default_steps,
            default_guidance_scale: model.default_guidance_scale,
        }
    }
}

/// `GET /v1/models`
#[utoipa::path(
    get,
    path = "/v1/models",
    operation_id = "listModels",
    summary = "List models",
    responses((status = 200, description = "Those that the key may use.", body = ListJson))
)]
pub(crate) async fn list(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
) -> Result<Response, Refused> {
    let models = allowed(&edge, &caller).await?;
    Ok(json(&ListJson {
        object: "list",
        data: models.iter().map(ModelJson::new).collect(),
    }))
}

/// `GET /v1/models/{model}`: by name or alias.
#[utoipa::path(
    get,
    path = "/v1/models/{model}",
    operation_id = "getModel",
    summary = "Read a model",
    params(ModelParam),
    responses(
        (status = 200, description = "The model.", body = ModelJson),
        (status = 404, description = "model_not_found")
    )
)]
pub(crate) async fn get(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let name = path.map(|Path(name)| name).unwrap_or_default();
    let models = allowed(&edge, &caller).await?;
    let found = models
        .iter()
        .find(|model| model.name == name || model.aliases.contains(&name));
    let model = found.ok_or_else(|| {
        let message = format!("there is no model {:?} that you may use", shorten(&name));
        Failure::new(ErrorCode::ModelNotFound, message)
    })?;
    Ok(json(&ModelJson::new(model)))
}

/// The models that a caller's policy allows.
pub(crate) async fn allowed(
    edge: &Edge,
    caller: &Caller,
) -> Result<Vec<v1::ModelSummary>, Failure> {
    let models = edge.platform.models().await?;
    let nothing = Policy::default();
    let policy = caller.policy.as_ref().unwrap_or(&nothing);
    let may_use = |model: &registry::Model| allows(policy, model);
    Ok(models.into_iter().filter(may_use).map(summary).collect())
}

fn allows(policy: &Policy, model: &registry::Model) -> bool {
    policy.allows_model(&model.name, &model.aliases)
}

/// What callers see of a model. Its defaults are those of the version that most new tasks go to.
fn summary(model: registry::Model) -> v1::ModelSummary {
    let live = || model.versions.iter().filter(|version| version.weight > 0);
    let main = live().max_by_key(|version| version.weight);
    let profile = main.and_then(|version| version.profile).unwrap_or_default();
    v1::ModelSummary {
        versions: live().map(|version| version.version.clone()).collect(),
        created_at: model.created_at,
        default_width: profile.default_width,
        default_height: profile.default_height,
        default_steps: profile.default_steps,
        default_guidance_scale: profile.default_guidance_scale,
        name: model.name,
        description: model.description,
        aliases: model.aliases,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model() -> registry::Model {
        let version = |name: &str, weight, default_steps| registry::ModelVersion {
            version: name.to_owned(),
            weight,
            profile: Some(registry::Profile {
                default_steps,
                ..Default::default()
            }),
            ..Default::default()
        };
        registry::Model {
            name: "demo".to_owned(),
            aliases: vec!["t2i-basic".to_owned()],
            versions: vec![
                version("1", 10, 20),
                version("2", 90, 30),
                version("0", 0, 10),
            ],
            ..Default::default()
        }
    }

    #[test]
    fn a_policy_allows_by_name_by_alias_or_everything() {
        let may = |models: &[&str]| {
            let models = models.iter().map(|m| (*m).to_owned()).collect();
            allows(
                &Policy {
                    models,
                    ..Default::default()
                },
                &model(),
            )
        };
        assert!(may(&["demo"]) && may(&["x", "t2i-basic"]) && may(&["*"]));
        assert!(!may(&[]) && !may(&["demo2"]));
    }

    #[test]
    fn a_summary_shows_live_versions_and_the_main_ones_defaults() {
        let summary = summary(model());
        assert_eq!(summary.versions, ["1", "2"]);
        assert_eq!(summary.default_steps, 30);
    }
}
