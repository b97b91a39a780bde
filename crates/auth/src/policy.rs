//! What a key may do, by its prefix. Policies are data in the bucket `POLICIES`, followed while the service runs: a write there,
//! mostly by [`Policies`](crate::policies::Policies), is in force within milliseconds.

use std::collections::BTreeMap;
use std::num::{NonZeroU32, NonZeroU64};

use contract::AppKey;
use contract::limits::{MAX_MODEL_BYTES, MAX_POLICY_REQUESTS};
use serde::{Deserialize, Serialize};

use crate::error::AuthError;
use crate::limit::Rate;

/// Models that one policy names.
const MAX_MODELS: usize = 100;
/// Bytes of a prefix without its dash: a key has room for ten random characters behind it.
const MAX_PREFIX_BYTES: usize = 40;
/// Bytes of a tier: with a class behind it, it is a lane.
const MAX_TIER_BYTES: usize = 30;

/// One policy. In the bucket its key is the prefix without the dash that ends it: `prod` for `prod-`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyRecord {
    /// Model names, or aliases, which open themselves only; `*` is every model.
    pub(crate) models: Vec<String>,
    /// Whether HD quality is allowed.
    pub(crate) hd: bool,
    /// Sustained rate for each key.
    pub(crate) requests_per_second: NonZeroU32,
    /// How many requests a key that was idle may make at once.
    pub(crate) burst: NonZeroU32,
    /// Scheduling tier.
    pub(crate) tier: String,
    /// Tasks of the tenant that wait for a worker; none is no limit, here and below.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tasks_waiting: Option<NonZeroU32>,
    /// Tasks of the tenant that workers have at once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) tasks_running: Option<NonZeroU32>,
    /// Pictures in a day (UTC) of the tenant's keys of this prefix.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) images_per_day: Option<NonZeroU64>,
    /// Pixels times steps, over all pictures, in such a day.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) pixel_steps_per_day: Option<NonZeroU64>,
}

impl PolicyRecord {
    pub(crate) fn rate(&self) -> Rate {
        Rate {
            per_second: self.requests_per_second,
            burst: self.burst,
        }
    }
}

/// A policy as other services have it. `name` is its prefix without the dash.
pub(crate) fn encode(name: &str, policy: &PolicyRecord) -> contract::auth::Policy {
    contract::auth::Policy {
        name: name.to_owned(),
        models: policy.models.clone(),
        hd: policy.hd,
        requests_per_second: policy.requests_per_second.get(),
        burst: policy.burst.get(),
        tier: policy.tier.clone(),
        tasks_waiting: policy.tasks_waiting.map(NonZeroU32::get),
        tasks_running: policy.tasks_running.map(NonZeroU32::get),
        images_per_day: policy.images_per_day.map(NonZeroU64::get),
        pixel_steps_per_day: policy.pixel_steps_per_day.map(NonZeroU64::get),
    }
}

fn invalid(field: &'static str, problem: impl Into<String>) -> AuthError {
    AuthError::Invalid {
        field,
        problem: problem.into(),
    }
}

/// The name in the bucket of a prefix as keys begin with it.
pub(crate) fn name_of(prefix: &str) -> Result<&str, AuthError> {
    let plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let good = |name: &&str| {
        (1..=MAX_PREFIX_BYTES).contains(&name.len())
            && name.bytes().all(|b| plain(b) || b == b'-')
            && name.bytes().next().is_some_and(plain)
            && name.bytes().last().is_some_and(plain)
    };
    prefix.strip_suffix('-').filter(good).ok_or_else(|| {
        let given: String = prefix.chars().take(60).collect();
        let problem = format!(
            "must be 1 to {MAX_PREFIX_BYTES} characters of a-z, 0-9 and -, with a letter or digit first and last, and one \
             dash behind them, such as `prod-`; not {given:?}"
        );
        invalid("prefix", problem)
    })
}

/// A policy as an operator gives it, checked field by field.
pub(crate) fn decode(policy: contract::auth::Policy) -> Result<PolicyRecord, AuthError> {
    check_models(&policy.models)?;
    let tier = policy.tier.as_str();
    let letter = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    if !(1..=MAX_TIER_BYTES).contains(&tier.len()) || !tier.bytes().all(letter) {
        let problem = format!("must be 1 to {MAX_TIER_BYTES} characters of a-z, 0-9 and -");
        return Err(invalid("tier", problem));
    }
    Ok(PolicyRecord {
        requests_per_second: per_second("requests_per_second", policy.requests_per_second)?,
        burst: per_second("burst", policy.burst)?,
        tasks_waiting: some("tasks_waiting", policy.tasks_waiting, NonZeroU32::new)?,
        tasks_running: some("tasks_running", policy.tasks_running, NonZeroU32::new)?,
        images_per_day: some("images_per_day", policy.images_per_day, NonZeroU64::new)?,
        pixel_steps_per_day: some(
            "pixel_steps_per_day",
            policy.pixel_steps_per_day,
            NonZeroU64::new,
        )?,
        models: policy.models,
        hd: policy.hd,
        tier: policy.tier,
    })
}

fn check_models(models: &[String]) -> Result<(), AuthError> {
    if !(1..=MAX_MODELS).contains(&models.len()) {
        let problem = format!(
            "must name 1 to {MAX_MODELS} models, or `*` for all, not {}",
            models.len()
        );
        return Err(invalid("models", problem));
    }
    let name = |model: &String| {
        (1..=MAX_MODEL_BYTES).contains(&model.len())
            && model.bytes().all(|b| b.is_ascii_graphic() && b != b',')
    };
    match models.iter().find(|model| !name(model)) {
        None => Ok(()),
        Some(model) => {
            let given: String = model.chars().take(60).collect();
            let problem = format!(
                "each must be `*` or 1 to {MAX_MODEL_BYTES} visible ASCII characters without commas, not {given:?}"
            );
            Err(invalid("models", problem))
        }
    }
}

fn per_second(field: &'static str, given: u32) -> Result<NonZeroU32, AuthError> {
    let given_or_zero = NonZeroU32::new(given).filter(|n| n.get() <= MAX_POLICY_REQUESTS);
    given_or_zero.ok_or_else(|| {
        invalid(
            field,
            format!("must be 1 to {MAX_POLICY_REQUESTS}, not {given}"),
        )
    })
}

/// A limit that may be left out.
fn some<G, T>(
    field: &'static str,
    given: Option<G>,
    read: impl FnOnce(G) -> Option<T>,
) -> Result<Option<T>, AuthError> {
    let Some(given) = given else { return Ok(None) };
    let read = read(given);
    let none = || invalid(field, "must be at least 1; leave it out for no limit");
    read.map(Some).ok_or_else(none)
}

/// The policies that an empty bucket is filled with.
pub(crate) fn defaults() -> [(&'static str, PolicyRecord); 3] {
    let policy = |models: &[&str], hd, per_second, tier: &str| {
        let rate = NonZeroU32::new(per_second).unwrap_or(NonZeroU32::MIN);
        PolicyRecord {
            models: models.iter().map(|&m| m.to_owned()).collect(),
            hd,
            requests_per_second: rate,
            // A second's worth at once: what a caller may send in a second, it may send at its beginning.
            burst: rate,
            tier: tier.to_owned(),
            tasks_waiting: None,
            tasks_running: None,
            images_per_day: None,
            pixel_steps_per_day: None,
        }
    };
    [
        ("prod", policy(&["i2v", "t2i-v2"], true, 50, "priority")),
        ("test", policy(&["t2i-basic"], false, 5, "standard")),
        // For laptops: whatever is registered.
        ("dev", policy(&["*"], true, 50, "standard")),
    ]
}

/// The policy of a key, with its name: that of the longest prefix which, with its dash, begins the key.
pub(crate) fn choose<'a>(
    policies: &'a BTreeMap<String, PolicyRecord>,
    app_key: &AppKey,
) -> Option<(&'a str, &'a PolicyRecord)> {
    let key = app_key.as_str();
    let named = |(dash, _)| policies.get_key_value(&key[..dash]);
    let (name, policy) = key.rmatch_indices('-').find_map(named)?;
    Some((name, policy))
}

/// The prefixes that new keys may have, for messages.
pub(crate) fn prefixes(policies: &BTreeMap<String, PolicyRecord>) -> String {
    let names: Vec<_> = policies.keys().map(|name| format!("`{name}-`")).collect();
    if names.is_empty() {
        return "none at present".to_owned();
    }
    names.join(", ")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn policies(names: &[&str]) -> BTreeMap<String, PolicyRecord> {
        let policy = |name: &str| PolicyRecord {
            tier: name.to_owned(),
            ..defaults()[0].1.clone()
        };
        names.iter().map(|&n| (n.to_owned(), policy(n))).collect()
    }

    fn tier(names: &[&str], key: &str) -> Option<String> {
        let policies = policies(names);
        choose(&policies, &key.parse().unwrap()).map(|(_, p)| p.tier.clone())
    }

    #[test]
    fn the_longest_prefix_that_ends_at_a_dash_wins() {
        let names = ["prod", "prod-eu", "test"];
        assert_eq!(tier(&names, "prod-7h2k").as_deref(), Some("prod"));
        assert_eq!(tier(&names, "prod-eu-7h2k").as_deref(), Some("prod-eu"));
        assert_eq!(tier(&names, "prod-eu7h2k").as_deref(), Some("prod"));
        assert_eq!(tier(&names, "test-a").as_deref(), Some("test"));
    }

    #[test]
    fn a_key_that_no_prefix_begins_has_no_policy() {
        for key in ["production-a", "prod", "a-prod-b", "-prod-a"] {
            assert_eq!(tier(&["prod"], key), None, "{key}");
        }
        assert_eq!(tier(&[], "prod-a"), None);
    }

    #[test]
    fn the_default_table_is_the_documented_one() {
        let table: BTreeMap<_, _> = defaults().into_iter().collect();
        let (prod, test) = (&table["prod"], &table["test"]);
        assert_eq!((prod.requests_per_second.get(), prod.hd), (50, true));
        assert_eq!(prod.models, ["i2v", "t2i-v2"]);
        assert_eq!((test.requests_per_second.get(), test.hd), (5, false));
        assert_eq!(test.models, ["t2i-basic"]);
        assert_eq!(table["dev"].models, ["*"]);
    }

    #[test]
    fn a_policy_that_allows_nothing_at_all_is_not_read() {
        let text = serde_json::to_string(&defaults()[1].1).unwrap();
        serde_json::from_str::<PolicyRecord>(&text).unwrap();
        let zero = text.replace("\"requests_per_second\":5", "\"requests_per_second\":0");
        assert!(
            serde_json::from_str::<PolicyRecord>(&zero).is_err(),
            "{zero}"
        );
    }

    #[test]
    fn a_record_without_the_newer_limits_has_none() {
        let old =
            r#"{"models":["*"],"hd":true,"requests_per_second":5,"burst":5,"tier":"standard"}"#;
        let old: PolicyRecord = serde_json::from_str(old).unwrap();
        assert_eq!((old.tasks_waiting, old.images_per_day), (None, None));
    }

    #[test]
    fn what_is_encoded_is_decoded_again() {
        for (name, policy) in defaults() {
            let limited = PolicyRecord {
                tasks_waiting: NonZeroU32::new(3),
                pixel_steps_per_day: NonZeroU64::new(u64::MAX),
                ..policy.clone()
            };
            for policy in [policy, limited] {
                assert_eq!(decode(encode(name, &policy)).unwrap(), policy);
            }
        }
    }

    #[test]
    fn what_a_policy_cannot_be_is_refused_by_its_field_with_the_limit() {
        type Change = fn(&mut contract::auth::Policy);
        let wrong: [(&str, Change); 10] = [
            ("models", |p| p.models.clear()),
            ("models", |p| p.models.push("two words".to_owned())),
            ("models", |p| p.models = vec!["m".to_owned(); 101]),
            ("requests_per_second", |p| p.requests_per_second = 0),
            ("burst", |p| p.burst = 1_000_001),
            ("tier", |p| p.tier = "Gold".to_owned()),
            ("tasks_waiting", |p| p.tasks_waiting = Some(0)),
            ("tasks_running", |p| p.tasks_running = Some(0)),
            ("images_per_day", |p| p.images_per_day = Some(0)),
            ("pixel_steps_per_day", |p| p.pixel_steps_per_day = Some(0)),
        ];
        for (field, change) in wrong {
            let mut policy = encode("prod", &defaults()[0].1);
            change(&mut policy);
            let error = decode(policy).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{field}: ")), "{error}");
            assert!(error.contains("1"), "the limit: {error}");
        }
    }

    #[test]
    fn a_prefix_is_what_keys_begin_with() {
        assert_eq!(name_of("prod-").unwrap(), "prod");
        assert_eq!(name_of("prod-eu-").unwrap(), "prod-eu");
        for wrong in ["", "-", "prod", "prod--", "-prod-", "Prod-", "a.b-", "p*-"] {
            let error = name_of(wrong).unwrap_err().to_string();
            assert!(error.starts_with("prefix: "), "{error}");
        }
        name_of(&format!("{}-", "p".repeat(41))).unwrap_err();
    }

    proptest! {
        #[test]
        fn the_choice_is_that_of_trying_every_prefix(
            names in prop::collection::vec("[ab-]{1,4}", 0..6),
            key in "[ab-]{1,12}",
        ) {
            let names: Vec<&str> = names.iter().map(String::as_str).collect();
            let begins = |name: &&&str| key.starts_with(&format!("{name}-"));
            let longest = names.iter().filter(begins).max_by_key(|n| n.len());
            prop_assert_eq!(tier(&names, &key), longest.map(|n| (*n).to_owned()));
        }
    }
}
