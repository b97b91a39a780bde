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

use crate::auth::Admitted;
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
    Extension(caller): Extension<Admitted>,
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
    Extension(caller): Extension<Admitted>,
    path: Result<Path<String>, PathRejection>,
) -> Result<Response, Refused> {
    let name = path.map(|Path(name)| name).unwrap_or_default();
    let models = allowed(&edge, &caller).await?;
    let found = models
        .iter()
        .find(|model| model.name == name || model.aliases.contains(&name));
    let model = found.ok_or_else(|| {
        let message = format!("there is no model {:?} that you may use", shorten(&name));
        Failure {
            field: Some("model".to_owned()),
            ..Failure::new(ErrorCode::ModelNotFound, message)
        }
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
    let named = |model| as_allowed(policy, model);
    Ok(models.into_iter().filter_map(named).map(summary).collect())
}

/// The model under the names that a policy allows: one that it allows by aliases only is called by the first of them, because requests that
/// name it otherwise would be refused.
fn as_allowed(policy: &Policy, mut model: registry::Model) -> Option<registry::Model> {
    let own = model.name.clone();
    model
        .aliases
        .retain(|alias| policy.allows_name(alias, &own));
    if !policy.allows_name(&own, &own) {
        if model.aliases.is_empty() {
            return None;
        }
        model.name = model.aliases.remove(0);
    }
    Some(model)
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
    fn a_model_is_shown_under_the_names_that_a_policy_allows() {
        let shown = |models: &[&str]| {
            let policy = Policy {
                models: models.iter().map(|m| (*m).to_owned()).collect(),
                ..Default::default()
            };
            let mut model = model();
            model.aliases.push("t2i-v2".to_owned());
            as_allowed(&policy, model).map(|model| (model.name, model.aliases.join(" ")))
        };
        let names = |name: &str, aliases: &str| Some((name.to_owned(), aliases.to_owned()));
        assert_eq!(shown(&["demo"]), names("demo", "t2i-basic t2i-v2"));
        assert_eq!(shown(&["*"]), names("demo", "t2i-basic t2i-v2"));
        assert_eq!(shown(&["x", "t2i-v2"]), names("t2i-v2", ""));
        assert_eq!(shown(&[]), None);
        assert_eq!(shown(&["demo2"]), None);
    }

    #[test]
    fn a_summary_shows_live_versions_and_the_main_ones_defaults() {
        let summary = summary(model());
        assert_eq!(summary.versions, ["1", "2"]);
        assert_eq!(summary.default_steps, 30);
    }
}
