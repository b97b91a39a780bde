//! Which class of work a task is, and which model a request gets that leaves it open: rules from the settings, in their order; the
//! first that matches counts. Pure.

use contract::v1::{Quality, SubmitTask};
use serde::Deserialize;

/// Rules of each kind at most.
const MAX_RULES: usize = 256;

/// A kind of work: the end of its lanes' names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ClassRule {
    /// Its name.
    pub name: String,
    /// `standard` or `hd`; absent: both.
    pub quality: Option<QualityName>,
    /// Pixels of one picture.
    pub min_pixels: Option<u64>,
    /// The same.
    pub max_pixels: Option<u64>,
    /// Denoising steps.
    pub min_steps: Option<u32>,
    /// The same.
    pub max_steps: Option<u32>,
}

/// Quality, as settings write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QualityName {
    /// Standard.
    Standard,
    /// HD.
    Hd,
}

/// Where requests go that leave the model open.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct RouteRule {
    /// The name that the request gives its model; absent: it gives none.
    pub named: Option<String>,
    /// The tier of the caller's policy.
    pub tier: Option<String>,
    /// Pixels of one picture. A request without a size of its own matches no rule that has one of the two.
    pub min_pixels: Option<u64>,
    /// The same.
    pub max_pixels: Option<u64>,
    /// The request has one of these.
    pub style_tags: Vec<String>,
    /// The model that it gets.
    pub model: String,
    /// The version of it; absent: as the registry's weights say.
    pub version: Option<String>,
}

/// The class of a request with every default filled in.
pub(crate) fn class<'a>(full: &SubmitTask, rules: &'a [ClassRule]) -> Option<&'a str> {
    let pixels = pixels(full);
    let hd = full.quality() == Quality::Hd;
    let matches = |rule: &&ClassRule| {
        rule.quality
            .is_none_or(|name| (name == QualityName::Hd) == hd)
            && within(pixels, rule.min_pixels, rule.max_pixels)
            && within(full.steps, rule.min_steps, rule.max_steps)
    };
    rules.iter().find(matches).map(|rule| rule.name.as_str())
}

/// The rules that a request of a tier matches, the first one first: it gets what the first of them names that its caller may use.
pub(crate) fn routes<'a>(
    request: &SubmitTask,
    tier: &str,
    rules: &'a [RouteRule],
) -> impl Iterator<Item = &'a RouteRule> {
    let sized = request.width > 0 && request.height > 0;
    rules.iter().filter(move |rule| {
        let open = rule.min_pixels.is_none() && rule.max_pixels.is_none();
        let tagged = |tag: &String| request.style_tags.contains(tag);
        rule.named.as_deref().unwrap_or_default() == request.model
            && rule.tier.as_deref().is_none_or(|wanted| wanted == tier)
            && (open || sized && within(pixels(request), rule.min_pixels, rule.max_pixels))
            && (rule.style_tags.is_empty() || rule.style_tags.iter().any(tagged))
    })
}

fn pixels(request: &SubmitTask) -> u64 {
    u64::from(request.width) * u64::from(request.height)
}

fn within<T: PartialOrd>(value: T, min: Option<T>, max: Option<T>) -> bool {
    min.is_none_or(|min| value >= min) && max.is_none_or(|max| value <= max)
}

/// What is wrong with the classes.
pub(crate) fn check_classes(rules: &[ClassRule]) -> Result<(), String> {
    if rules.len() > MAX_RULES {
        return Err(format!("must be at most {MAX_RULES} rules"));
    }
    let everything = |rule: &ClassRule| {
        let name = rule.name.clone();
        *rule
            == ClassRule {
                name,
                ..ClassRule::default()
            }
    };
    for (index, rule) in rules.iter().enumerate() {
        let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
        if !(1..=16).contains(&rule.name.len()) || !rule.name.bytes().all(letter) {
            return Err(format!(
                "rule {index}: name must be 1 to 16 of a-z and 0-9, not {:?}",
                rule.name
            ));
        }
        bounds(index, "pixels", rule.min_pixels, rule.max_pixels)?;
        bounds(index, "steps", rule.min_steps, rule.max_steps)?;
        if everything(rule) && index + 1 < rules.len() {
            return Err(format!(
                "rule {index} matches everything: those behind it never do"
            ));
        }
    }
    if !rules.last().is_some_and(everything) {
        return Err("the last rule must match everything: a name, and no condition".to_owned());
    }
    Ok(())
}

/// What is wrong with the routes.
pub(crate) fn check_routes(rules: &[RouteRule]) -> Result<(), String> {
    if rules.len() > MAX_RULES {
        return Err(format!("must be at most {MAX_RULES} rules"));
    }
    for (index, rule) in rules.iter().enumerate() {
        if rule.model.is_empty() {
            return Err(format!(
                "rule {index}: model must name the model that requests get"
            ));
        }
        if rule.version.as_deref() == Some("") {
            return Err(format!(
                "rule {index}: version must not be empty; leave it out instead"
            ));
        }
        if rule.named.as_deref() == Some("") {
            return Err(format!(
                "rule {index}: named must not be empty; left out, it is for requests that name no model"
            ));
        }
        bounds(index, "pixels", rule.min_pixels, rule.max_pixels)?;
    }
    Ok(())
}

fn bounds<T: PartialOrd>(
    index: usize,
    what: &str,
    min: Option<T>,
    max: Option<T>,
) -> Result<(), String> {
    if let (Some(min), Some(max)) = (min, max)
        && min > max
    {
        return Err(format!("rule {index}: min_{what} is more than max_{what}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request(side: u32, tags: &[&str]) -> SubmitTask {
        SubmitTask {
            width: side,
            height: side,
            steps: 20,
            style_tags: tags.iter().map(|&tag| tag.to_owned()).collect(),
            ..SubmitTask::default()
        }
    }

    fn class_rule(name: &str) -> ClassRule {
        ClassRule {
            name: name.to_owned(),
            ..ClassRule::default()
        }
    }

    fn to(model: &str) -> RouteRule {
        RouteRule {
            model: model.to_owned(),
            ..RouteRule::default()
        }
    }

    #[test]
    fn the_first_class_that_matches_counts() {
        let rules = [
            ClassRule {
                quality: Some(QualityName::Hd),
                ..class_rule("hd")
            },
            ClassRule {
                min_pixels: Some(1024 * 1024),
                min_steps: Some(20),
                ..class_rule("large")
            },
            class_rule("image"),
        ];
        assert_eq!(check_classes(&rules), Ok(()));
        assert_eq!(class(&request(512, &[]), &rules), Some("image"));
        assert_eq!(class(&request(1024, &[]), &rules), Some("large"));
        let mut hd = request(1024, &[]);
        hd.set_quality(Quality::Hd);
        assert_eq!(class(&hd, &rules), Some("hd"));
        hd.steps = 19;
        hd.set_quality(Quality::Standard);
        assert_eq!(class(&hd, &rules), Some("image"));
    }

    #[test]
    fn classes_that_leave_something_out_or_are_never_reached_are_refused() {
        let hd = ClassRule {
            quality: Some(QualityName::Hd),
            ..class_rule("hd")
        };
        for rules in [
            vec![],
            vec![hd.clone()],
            vec![class_rule("image"), hd.clone()],
            vec![class_rule("no-dash")],
            vec![class_rule("")],
            vec![
                ClassRule {
                    min_steps: Some(2),
                    max_steps: Some(1),
                    ..hd.clone()
                },
                class_rule("image"),
            ],
        ] {
            assert!(check_classes(&rules).is_err(), "{rules:?}");
        }
        assert_eq!(check_classes(&[hd, class_rule("image")]), Ok(()));
    }

    #[test]
    fn a_request_is_routed_by_tier_size_tags_and_the_name_it_gives() {
        let rules = [
            RouteRule {
                style_tags: vec!["anime".to_owned(), "3d".to_owned()],
                ..to("drawn")
            },
            RouteRule {
                tier: Some("priority".to_owned()),
                min_pixels: Some(1_000_000),
                ..to("large")
            },
            RouteRule {
                named: Some("auto".to_owned()),
                ..to("any")
            },
        ];
        let models = |request: &SubmitTask, tier: &str| -> Vec<String> {
            routes(request, tier, &rules)
                .map(|rule| rule.model.clone())
                .collect()
        };
        assert_eq!(
            models(&request(1024, &["3d"]), "priority"),
            ["drawn", "large"]
        );
        assert_eq!(models(&request(1024, &[]), "priority"), ["large"]);
        assert!(models(&request(1024, &[]), "standard").is_empty());
        // Without a size there is nothing to go by.
        assert!(models(&request(0, &[]), "priority").is_empty());
        let mut named = request(1024, &["3d"]);
        named.model = "auto".to_owned();
        assert_eq!(models(&named, "standard"), ["any"]);
        named.model = "drawn".to_owned();
        assert!(models(&named, "standard").is_empty());
    }

    #[test]
    fn rules_can_be_given_as_one_text() {
        let given = [
            (
                "scheduling.routes",
                r#"[{ style_tags = ["anime"], max_pixels = 1048576, model = "drawn" }, { named = "auto", tier = "priority", model = "any" }]"#,
            ),
            (
                "scheduling.classes",
                r#"[{ name = "hd", quality = "hd", min_steps = 2 }, { name = "image" }]"#,
            ),
        ];
        let given = given.map(|(key, text)| (key, text.to_owned()));
        let scheduling = settings::load::<crate::Settings>(None, &given)
            .unwrap()
            .scheduling;
        let expected = [
            RouteRule {
                style_tags: vec!["anime".to_owned()],
                max_pixels: Some(1024 * 1024),
                ..to("drawn")
            },
            RouteRule {
                named: Some("auto".to_owned()),
                tier: Some("priority".to_owned()),
                ..to("any")
            },
        ];
        assert_eq!(scheduling.routes, expected);
        let hd = ClassRule {
            quality: Some(QualityName::Hd),
            min_steps: Some(2),
            ..class_rule("hd")
        };
        assert_eq!(scheduling.classes, [hd, class_rule("image")]);
    }

    #[test]
    fn routes_to_nowhere_are_refused() {
        let empty = |change: fn(&mut RouteRule)| {
            let mut rule = to("m");
            change(&mut rule);
            check_routes(&[rule]).is_err()
        };
        assert!(empty(|rule| rule.model.clear()));
        assert!(empty(|rule| rule.version = Some(String::new())));
        assert!(empty(|rule| rule.named = Some(String::new())));
        assert!(empty(
            |rule| (rule.min_pixels, rule.max_pixels) = (Some(2), Some(1))
        ));
        assert!(!empty(|_| ()));
    }

    proptest! {
        #[test]
        fn every_request_has_a_class(
            side in 0..5000u32, steps in 0..200u32, hd in any::<bool>(),
            limits in prop::collection::vec((0..30_000_000u64, 0..200u32), 0..5),
        ) {
            let mut rules: Vec<_> = limits.iter().map(|&(pixels, steps)| ClassRule {
                min_pixels: Some(pixels), max_steps: Some(steps), ..class_rule("some")
            }).collect();
            rules.push(class_rule("rest"));
            prop_assert_eq!(check_classes(&rules), Ok(()));
            let mut request = request(side, &[]);
            request.steps = steps;
            request.set_quality(if hd { Quality::Hd } else { Quality::Standard });
            prop_assert!(class(&request, &rules).is_some());
        }
    }
}
