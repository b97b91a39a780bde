//! What a key may do, by its prefix. Policies are data in the bucket `POLICIES`, followed while the service runs; a
//! write there, such as `nats kv put POLICIES test '{"models":["t2i-basic"],…}'`, is in force within milliseconds.

use std::collections::BTreeMap;
use std::num::NonZeroU32;

use contract::AppKey;
use serde::{Deserialize, Serialize};

use crate::limit::Rate;

/// One policy. In the bucket its key is the prefix without the dash that ends it: `prod` for `prod-`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct PolicyRecord {
    /// Model names or aliases; `*` is every model.
    pub(crate) models: Vec<String>,
    /// Whether HD quality is allowed.
    pub(crate) hd: bool,
    /// Sustained rate for each key.
    pub(crate) requests_per_second: NonZeroU32,
    /// How many requests a key that was idle may make at once.
    pub(crate) burst: NonZeroU32,
    /// Scheduling tier.
    pub(crate) tier: String,
}

impl PolicyRecord {
    pub(crate) fn rate(&self) -> Rate {
        Rate {
            per_second: self.requests_per_second,
            burst: self.burst,
        }
    }
}

impl From<&PolicyRecord> for contract::auth::Policy {
    fn from(policy: &PolicyRecord) -> Self {
        Self {
            models: policy.models.clone(),
            hd: policy.hd,
            requests_per_second: policy.requests_per_second.get(),
            tier: policy.tier.clone(),
        }
    }
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
        }
    };
    [
        ("prod", policy(&["i2v", "t2i-v2"], true, 50, "priority")),
        ("test", policy(&["t2i-basic"], false, 5, "standard")),
        // For laptops: whatever is registered.
        ("dev", policy(&["*"], true, 50, "standard")),
    ]
}

/// The policy of a key: that of the longest prefix which, with its dash, begins the key.
pub(crate) fn choose<'a>(
    policies: &'a BTreeMap<String, PolicyRecord>,
    app_key: &AppKey,
) -> Option<&'a PolicyRecord> {
    let key = app_key.as_str();
    key.rmatch_indices('-')
        .find_map(|(dash, _)| policies.get(&key[..dash]))
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
        choose(&policies, &key.parse().unwrap()).map(|p| p.tier.clone())
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
