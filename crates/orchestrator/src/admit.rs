//! Whether a request becomes a task, and exactly which: model, limits, defaults, lane. Pure.

use contract::auth::Policy;
use contract::registry::{Model, ModelVersion, Profile};
use contract::v1::{OutputFormat, Quality, SubmitTask};
use contract::{ErrorCode, Failure, Lane, TenantId, source, validate};
use storage::Key;

use crate::models;
use crate::route::{self, RouteRule};
use crate::settings::{FALLBACK_TIER, SchedulingSettings};

const DEFAULT_COMPRESSION: u32 = 90;

/// The model that a request means, if the policy allows it. A request that names none gets the platform's default or,
/// where the policy does not allow that, the first model that it does.
///
/// # Errors
/// [`ErrorCode::ModelNotFound`] or [`ErrorCode::PermissionDenied`], with what there is instead.
pub(crate) fn choose_model<'a>(
    models: &'a [Model],
    named: &str,
    default: &str,
    policy: &Policy,
) -> Result<&'a Model, Failure> {
    if named.is_empty() {
        let preferred = models::find(models, default).filter(|m| allows(policy, m));
        return preferred
            .or_else(|| models.iter().find(|m| allows(policy, m)))
            .ok_or_else(|| denied("your key's policy allows none of the models here", policy));
    }
    let Some(model) = models::find(models, named) else {
        let shown: String = named.chars().take(80).collect();
        let text = format!("there is no model {shown:?}; GET /v1/models lists those you may use");
        return Err(Failure {
            field: Some("model".to_owned()),
            ..Failure::new(ErrorCode::ModelNotFound, text)
        });
    };
    if policy.allows_name(named, &model.name) {
        Ok(model)
    } else {
        Err(denied(
            &format!("your key may not use the model {named:?}"),
            policy,
        ))
    }
}

/// The model that the routes give to a request which leaves it open, and the version where they pin one that takes new tasks: of the first
/// rule that matches and whose model is there and allowed. A request that names one of the models itself is not routed.
pub(crate) fn routed<'a>(
    models: &'a [Model],
    request: &SubmitTask,
    policy: &Policy,
    routes: &[RouteRule],
) -> Option<(&'a Model, Option<&'a ModelVersion>)> {
    if models.iter().any(|model| model.name == request.model) {
        return None;
    }
    let usable = |rule: &RouteRule| {
        let model = models::find(models, &rule.model).filter(|model| allows(policy, model))?;
        let Some(wanted) = &rule.version else {
            return Some((model, None));
        };
        let pinned = |version: &&ModelVersion| version.version == *wanted && version.weight > 0;
        Some((model, Some(model.versions.iter().find(pinned)?)))
    };
    route::routes(request, &policy.tier, routes).find_map(usable)
}

fn denied(what: &str, policy: &Policy) -> Failure {
    let text = format!("{what}; it may use: {}", policy.models.join(", "));
    Failure {
        field: Some("model".to_owned()),
        ..Failure::new(ErrorCode::PermissionDenied, text)
    }
}

/// Whether the policy allows it to a request that leaves the model open: by any of its names.
fn allows(policy: &Policy, model: &Model) -> bool {
    policy.allows_model(&model.name, &model.aliases)
}

/// What a caller sees a model as: by its own name where the policy allows that; else by the alias that it was asked for by or, where the request
/// left the model open, by the first that the policy allows, as it is listed.
pub(crate) fn shown_as<'a>(model: &'a Model, asked: &str, policy: &Policy) -> &'a str {
    let own = model.name.as_str();
    if policy.allows_name(own, own) {
        return own;
    }
    let allowed = |alias: &&String| policy.allows_name(alias, own);
    let mut allowed = model.aliases.iter().filter(allowed);
    let same = allowed.clone().find(|alias| *alias == asked);
    same.or_else(|| allowed.next()).map_or(own, String::as_str)
}

/// The request with every default filled in, or what is wrong with it. `seed` is used when the caller gave none.
///
/// # Errors
/// [`ErrorCode::InvalidArgument`] naming the field and the limit; [`ErrorCode::PermissionDenied`] for HD without leave.
pub(crate) fn normalise(
    request: &SubmitTask,
    model: &Model,
    profile: &Profile,
    policy: &Policy,
    seed: u64,
) -> Result<SubmitTask, Failure> {
    // Not only the gateway may call: what the contract says holds here too.
    validate(request)?;
    if request.quality() == Quality::Hd && !policy.hd {
        return Err(Failure {
            field: Some("quality".to_owned()),
            ..Failure::new(
                ErrorCode::PermissionDenied,
                "your key's policy does not allow HD",
            )
        });
    }
    let name = shown_as(model, &request.model, policy);
    let steps = or_default(request.steps, profile.default_steps);
    let guidance = request
        .guidance_scale
        .unwrap_or(profile.default_guidance_scale);
    if !(0.0..=profile.max_guidance_scale).contains(&guidance) {
        let limit = profile.max_guidance_scale;
        let text =
            format!("guidance_scale must be 0 to {limit} for the model {name}, not {guidance}");
        return Err(Failure::invalid("guidance_scale", text));
    }
    let mut full = request.clone();
    full.model = name.to_owned();
    let width = or_default(request.width, profile.default_width);
    let height = or_default(request.height, profile.default_height);
    full.width = side("width", width, name, profile)?;
    full.height = side("height", height, name, profile)?;
    full.images = request.images.max(1);
    full.seed = Some(request.seed.unwrap_or(seed));
    full.steps = at_most("steps", steps, profile.max_steps, name)?;
    check_steps_left(&full, profile.max_steps)?;
    full.guidance_scale = Some(guidance);
    full.output_compression = Some(request.output_compression.unwrap_or(DEFAULT_COMPRESSION));
    if request.quality() == Quality::Unspecified {
        full.set_quality(Quality::Standard);
    }
    if request.output_format() == OutputFormat::Unspecified {
        full.set_output_format(OutputFormat::Png);
    }
    Ok(full)
}

fn or_default(given: u32, default: u32) -> u32 {
    if given == 0 { default } else { given }
}

/// Says whose limit refuses, too: another model may have another.
fn at_most(field: &str, given: u32, limit: u32, name: &str) -> Result<u32, Failure> {
    if given <= limit {
        return Ok(given);
    }
    let text = format!("{field} must be 1 to {limit} for the model {name}, not {given}");
    Err(Failure::invalid(field, text))
}

/// A picture to begin from is led through a share of the steps: of few and a small one none is left, which the engine cannot draw by.
fn check_steps_left(full: &SubmitTask, max_steps: u32) -> Result<(), Failure> {
    let Some(from) = &full.source else {
        return Ok(());
    };
    let (steps, strength) = (full.steps, source::strength(from));
    if source::steps_led(steps, strength) > 0 {
        return Ok(());
    }
    let fewest = source::fewest_steps(strength);
    let (field, way) = if fewest > max_steps {
        let way = format!("strength must be at least 1/{max_steps}");
        ("strength", way)
    } else {
        let field = from.strength.map_or("steps", |_| "strength");
        (field, format!("steps must be at least {fewest}"))
    };
    let text = format!("of {steps} steps a strength of {strength} leaves none: {way}");
    Err(Failure::invalid(field, text))
}

fn side(field: &str, side: u32, name: &str, profile: &Profile) -> Result<u32, Failure> {
    let (min, max, multiple) = (profile.min_side, profile.max_side, profile.multiple.max(1));
    if (min..=max).contains(&side) && side.is_multiple_of(multiple) {
        return Ok(side);
    }
    let text = format!(
        "{field} must be {min} to {max} and a multiple of {multiple} for the model {name}, not {side}"
    );
    Err(Failure::invalid(field, text))
}

/// A task begins from its own tenant's files: no one sees another's through a picture.
///
/// # Errors
/// [`ErrorCode::InvalidArgument`] naming the field.
pub(crate) fn check_source(tenant: &TenantId, request: &SubmitTask) -> Result<(), Failure> {
    let Some(source) = &request.source else {
        return Ok(());
    };
    let keys = [&source.image_key, &source.mask_key];
    let mut given = keys.into_iter().filter(|key| !key.is_empty());
    if given.all(|key| Key::input_of(tenant, key).is_some()) {
        return Ok(());
    }
    let text = "source must name files that the gateway has stored for you";
    Err(Failure::invalid("source", text))
}

/// The lane of a request with every default filled in: the policy's tier and the kind of work.
pub(crate) fn lane(full: &SubmitTask, policy: &Policy, settings: &SchedulingSettings) -> Lane {
    let Some(class) = route::class(full, &settings.classes) else {
        unreachable!("the last rule of validated settings matches everything")
    };
    let wanted = format!("{}-{class}", policy.tier);
    let fallback = format!("{FALLBACK_TIER}-{class}");
    let find = |name: &str| settings.lanes.keys().find(|lane| lane.as_str() == name);
    match find(&wanted).or_else(|| find(&fallback)) {
        Some(lane) => lane.clone(),
        // Settings without the fallback lanes are refused at start.
        None => unreachable!("validated settings hold {fallback}"),
    }
}

#[cfg(test)]
mod tests {
    use contract::v1::{PromptSyntax, Scheduler};
    use proptest::prelude::*;

    use super::*;

    fn profile() -> Profile {
        Profile {
            default_width: 128,
            default_height: 128,
            default_steps: 12,
            default_guidance_scale: 2.0,
            min_side: 64,
            max_side: 256,
            multiple: 32,
            max_steps: 100,
            max_guidance_scale: 20.0,
        }
    }

    fn policy(models: &[&str]) -> Policy {
        Policy {
            models: models.iter().map(|&m| m.to_owned()).collect(),
            ..Policy::default()
        }
    }

    fn model() -> Model {
        Model {
            name: "demo".to_owned(),
            aliases: vec!["t2i-v2".to_owned()],
            ..Model::default()
        }
    }

    fn request(prompt: &str) -> SubmitTask {
        SubmitTask {
            prompt: prompt.to_owned(),
            ..SubmitTask::default()
        }
    }

    #[test]
    fn a_task_begins_from_its_own_tenants_files_only() {
        let acme: TenantId = "acme".parse().unwrap();
        let digest = "0a".repeat(32);
        let from = |image: &str, mask: &str| SubmitTask {
            source: Some(contract::v1::Source {
                image_key: image.to_owned(),
                mask_key: mask.to_owned(),
                strength: None,
            }),
            ..request("a cat")
        };
        let own = format!("inputs/acme/{digest}");
        assert!(check_source(&acme, &request("a cat")).is_ok());
        assert!(check_source(&acme, &from(&own, "")).is_ok());
        assert!(check_source(&acme, &from(&own, &own)).is_ok());
        let task = "images/01a20610-a8bf-738a-b43b-5a4af05ef1d9/0.png";
        for other in [&format!("inputs/bcme/{digest}"), task, "x"] {
            for request in [from(other, ""), from(&own, other)] {
                let failure = check_source(&acme, &request).unwrap_err();
                assert_eq!(failure.field.as_deref(), Some("source"));
            }
        }
    }

    fn admit(request: &SubmitTask) -> Result<SubmitTask, Failure> {
        normalise(request, &model(), &profile(), &policy(&["*"]), 7)
    }

    fn refused_field(request: &SubmitTask) -> String {
        admit(request).unwrap_err().field.unwrap()
    }

    #[test]
    fn defaults_are_the_models_and_the_seed_is_kept() {
        let full = admit(&request("a cat")).unwrap();
        assert_eq!((full.width, full.height, full.steps), (128, 128, 12));
        assert_eq!((full.seed, full.images), (Some(7), 1));
        assert_eq!(full.output_format(), OutputFormat::Png);
        let mut given = request("a cat");
        given.seed = Some(0);
        assert_eq!(admit(&given).unwrap().seed, Some(0));
    }

    #[test]
    fn each_bad_value_is_refused_by_its_field() {
        let with = |change: fn(&mut SubmitTask)| {
            let mut request = request("a cat");
            change(&mut request);
            refused_field(&request)
        };
        assert_eq!(refused_field(&request("  ")), "prompt");
        assert_eq!(refused_field(&request(&"x".repeat(4097))), "prompt");
        assert_eq!(with(|r| r.width = 96 + 1), "width");
        assert_eq!(with(|r| r.height = 512), "height");
        assert_eq!(with(|r| r.height = 32), "height");
        assert_eq!(with(|r| r.images = 11), "images");
        assert_eq!(with(|r| r.steps = 101), "steps");
        assert_eq!(
            with(|r| r.guidance_scale = Some(f32::NAN)),
            "guidance_scale"
        );
        assert_eq!(with(|r| r.guidance_scale = Some(-1.0)), "guidance_scale");
        assert_eq!(
            with(|r| r.output_compression = Some(0)),
            "output_compression"
        );
        assert_eq!(with(|r| r.set_quality(Quality::Hd)), "quality");
        assert_eq!(with(|r| r.guidance_rescale = Some(1.5)), "guidance_rescale");
        assert_eq!(with(|r| r.scheduler = 99), "scheduler");
        assert_eq!(with(|r| r.prompt_syntax = 99), "prompt_syntax");
        assert_eq!(with(|r| r.style_tags = vec![String::new()]), "style_tags");
        assert_eq!(with(|r| r.user = "x".repeat(257)), "user");
    }

    #[test]
    fn a_limit_is_told_with_whose_it_is() {
        let told = |change: fn(&mut SubmitTask)| {
            let mut request = request("a cat");
            change(&mut request);
            admit(&request).unwrap_err().message
        };
        assert_eq!(
            told(|r| r.steps = 101),
            "steps must be 1 to 100 for the model demo, not 101"
        );
        assert_eq!(
            told(|r| r.width = 97),
            "width must be 64 to 256 and a multiple of 32 for the model demo, not 97"
        );
        assert_eq!(
            told(|r| r.guidance_scale = Some(20.5)),
            "guidance_scale must be 0 to 20 for the model demo, not 20.5"
        );
        assert_eq!(
            told(|r| r.images = 11),
            "images must be at most 10, whatever the model, not 11"
        );
        assert_eq!(
            told(|r| r.set_quality(Quality::Hd)),
            "your key's policy does not allow HD"
        );
    }

    #[test]
    fn an_edit_of_whose_steps_none_is_left_is_refused_with_a_way_out() {
        let edit = |(steps, strength, mask): (u32, Option<f32>, &str)| SubmitTask {
            steps,
            source: Some(contract::v1::Source {
                image_key: "x".to_owned(),
                mask_key: mask.to_owned(),
                strength,
            }),
            ..request("a cat")
        };
        for (given, field, few, way) in [
            (
                (3, None, ""),
                "steps",
                "3 steps a strength of 0.3",
                "steps must be at least 4",
            ),
            (
                (1, None, "x"),
                "steps",
                "1 steps a strength of 0.9999",
                "steps must be at least 2",
            ),
            (
                (0, Some(0.05), ""),
                "strength",
                "12 steps a strength of 0.05",
                "steps must be at least 20",
            ),
            (
                (100, Some(0.001), ""),
                "strength",
                "100 steps a strength of 0.001",
                "strength must be at least 1/100",
            ),
        ] {
            let failure = admit(&edit(given)).unwrap_err();
            assert_eq!(failure.code, ErrorCode::InvalidArgument);
            assert_eq!(failure.field.as_deref(), Some(field), "{few}");
            assert_eq!(failure.message, format!("of {few} leaves none: {way}"));
        }
        for given in [(4, None, ""), (2, None, "x"), (1, Some(1.0), "")] {
            assert!(admit(&edit(given)).is_ok());
        }
    }

    #[test]
    fn options_that_were_not_given_stay_away_and_others_are_kept() {
        let full = admit(&request("a cat")).unwrap();
        assert_eq!((full.prompt_syntax, full.guidance_rescale), (0, None));
        let given = SubmitTask {
            guidance_rescale: Some(0.7),
            prompt_syntax: PromptSyntax::Weighted.into(),
            scheduler: Scheduler::Heun.into(),
            ..request("a (cat)")
        };
        let full = admit(&given).unwrap();
        assert_eq!(full.guidance_rescale, Some(0.7));
        assert_eq!(full.prompt_syntax(), PromptSyntax::Weighted);
        assert_eq!(full.scheduler(), Scheduler::Heun);
    }

    #[test]
    fn a_policy_allows_by_name_by_star_and_under_an_alias_what_is_asked_for_by_it() {
        let models = [Model {
            aliases: vec!["t2i-v2".to_owned(), "t2i-v1".to_owned()],
            ..model()
        }];
        for allowed in ["demo", "t2i-v2", "*"] {
            assert!(choose_model(&models, "t2i-v2", "", &policy(&[allowed])).is_ok());
            assert!(choose_model(&models, "", "demo", &policy(&[allowed])).is_ok());
        }
        for asked in ["demo", "t2i-v1"] {
            let denied = choose_model(&models, asked, "", &policy(&["t2i-v2"])).unwrap_err();
            assert_eq!(denied.code, ErrorCode::PermissionDenied, "{asked}");
            assert!(choose_model(&models, asked, "", &policy(&["demo"])).is_ok());
        }
        let denied = choose_model(&models, "demo", "", &policy(&["i2v"])).unwrap_err();
        assert_eq!(denied.code, ErrorCode::PermissionDenied);
        let unknown = choose_model(&models, "x", "", &policy(&["*"])).unwrap_err();
        assert_eq!(unknown.code, ErrorCode::ModelNotFound);
    }

    #[test]
    fn who_may_use_a_model_by_an_alias_only_sees_no_other_name_of_it() {
        let model = Model {
            aliases: vec!["t2i-v2".to_owned(), "t2i-v1".to_owned()],
            ..model()
        };
        let shown = |asked, models: &[&str]| shown_as(&model, asked, &policy(models)).to_owned();
        for asked in ["demo", "t2i-v1", "", "routed"] {
            assert_eq!(shown(asked, &["demo"]), "demo", "{asked}");
            assert_eq!(shown(asked, &["*"]), "demo", "{asked}");
            assert_eq!(shown(asked, &["t2i-v1"]), "t2i-v1", "{asked}");
        }
        let both = ["t2i-v1", "t2i-v2"];
        assert_eq!(shown("t2i-v1", &both), "t2i-v1");
        assert_eq!(shown("", &both), "t2i-v2");
        let asked = |change: fn(&mut SubmitTask)| {
            let mut request = request("a cat");
            request.model = "t2i-v1".to_owned();
            change(&mut request);
            normalise(&request, &model, &profile(), &policy(&both), 7)
        };
        assert_eq!(asked(|_| {}).unwrap().model, "t2i-v1");
        let too_much: [fn(&mut SubmitTask); 3] = [
            |r| r.width = 512,
            |r| r.steps = 101,
            |r| r.guidance_scale = Some(21.0),
        ];
        for change in too_much {
            let told = asked(change).unwrap_err().message;
            assert!(told.contains("for the model t2i-v1"), "{told}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_admitted_is_within_the_models_limits(
            width in 0u32..600, height in 0u32..600, steps in 0u32..200, images in 0u32..20,
        ) {
            let given = SubmitTask { width, height, steps, images, ..request("a cat") };
            if let Ok(full) = admit(&given) {
                for side in [full.width, full.height] {
                    prop_assert!((64..=256).contains(&side) && side % 32 == 0);
                }
                prop_assert!((1..=100).contains(&full.steps));
                prop_assert!((1..=10).contains(&full.images));
            }
        }
    }
}
