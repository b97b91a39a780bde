//! Typed ids. Each is checked once, where it enters, and is afterwards safe as a NATS subject token,
//! an object key segment and a log field.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A text that is not an id of the kind asked for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{kind} {}", problem(rule, given))]
pub struct InvalidId {
    kind: &'static str,
    rule: &'static str,
    given: String,
}

impl InvalidId {
    /// What is wrong, for whoever names the field in front of it.
    pub fn problem(&self) -> String {
        problem(self.rule, &self.given)
    }
}

fn problem(rule: &str, given: &str) -> String {
    format!("must be {rule}, not {given:?}")
}

fn token(text: &str, max: usize, extra: &[u8]) -> bool {
    !text.is_empty()
        && text.len() <= max
        && text
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || extra.contains(&b))
}

macro_rules! token_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal, $max:literal, $extra:literal, $rule:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// The id as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                if token(text, $max, $extra) {
                    return Ok(Self(text.to_owned()));
                }
                let given = text.chars().take(80).collect();
                Err(InvalidId { kind: $kind, rule: $rule, given })
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                text.parse()
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

token_id!(
    /// Who owns tasks and pays for them.
    TenantId, "tenant", 40, b"-", "1 to 40 characters of a-z, 0-9 and -"
);
token_id!(
    /// The public half of a key; begins with its policy prefix (`prod-…`).
    AppKey, "app key", 64, b"-", "1 to 64 characters of a-z, 0-9 and -"
);
token_id!(
    /// A model's canonical name.
    ModelName, "model name", 64, b"-", "1 to 64 characters of a-z, 0-9 and -"
);
token_id!(
    /// A version of a model.
    VersionName, "model version", 32, b"-_", "1 to 32 characters of a-z, 0-9, - and _"
);
token_id!(
    /// What scheduling filters on: user tier and work class, as `<tier>-<class>`.
    Lane, "lane", 40, b"-", "1 to 40 characters of a-z, 0-9 and -"
);

/// A task. Version 7 UUID (sortable by time) or, with an idempotency key, a version 8 UUID derived
/// from tenant and key (RFC 9562), so that the same submission twice is one task (invariant I1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct TaskId(Uuid);

impl TaskId {
    /// A new id that sorts after those made before it.
    pub fn random() -> Self {
        let offset = crate::clock::offset();
        if offset == 0 {
            return Self(Uuid::now_v7());
        }
        let since = crate::clock::system_time().duration_since(std::time::UNIX_EPOCH);
        let since = since.unwrap_or_default();
        let at = uuid::Timestamp::from_unix(uuid::NoContext, since.as_secs(), since.subsec_nanos());
        Self(Uuid::new_v7(at))
    }

    /// The id that this tenant's idempotency key always has.
    pub fn derived(tenant: &TenantId, idempotency_key: &str) -> Self {
        let mut hash = digest::Context::new(&digest::SHA256);
        hash.update(b"inkstone task id\0");
        hash.update(tenant.as_str().as_bytes());
        hash.update(b"\0");
        hash.update(idempotency_key.as_bytes());
        let mut bytes = [0; 16];
        bytes.copy_from_slice(&hash.finish().as_ref()[..16]);
        Self(uuid::Builder::from_custom_bytes(bytes).into_uuid())
    }
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.as_hyphenated().fmt(f)
    }
}

impl FromStr for TaskId {
    type Err = InvalidId;

    fn from_str(text: &str) -> Result<Self, InvalidId> {
        let invalid = || InvalidId {
            kind: "task id",
            rule: "a UUID in lower case with hyphens",
            given: text.chars().take(80).collect(),
        };
        let id = Uuid::try_parse(text).map_err(|_| invalid())?;
        // One spelling a task: the text is a subject token and an object key.
        if id.as_hyphenated().to_string() == text {
            Ok(Self(id))
        } else {
            Err(invalid())
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_same_tenant_and_key_give_the_same_task() {
        let (a, b): (TenantId, TenantId) = ("acme".parse().unwrap(), "bcme".parse().unwrap());
        assert_eq!(TaskId::derived(&a, "k"), TaskId::derived(&a, "k"));
        assert_ne!(TaskId::derived(&a, "k"), TaskId::derived(&a, "l"));
        assert_ne!(TaskId::derived(&a, "k"), TaskId::derived(&b, "k"));
    }

    #[test]
    fn what_is_wrong_with_an_id_is_said_with_and_without_its_name() {
        let wrong = "Bad Tenant".parse::<TenantId>().unwrap_err();
        assert_eq!(wrong.to_string(), format!("tenant {}", wrong.problem()));
        assert!(wrong.problem().starts_with("must be 1 to 40 characters"));
    }

    #[test]
    fn a_task_id_has_one_spelling() {
        let id = TaskId::random();
        assert_eq!(id.to_string().parse::<TaskId>().unwrap(), id);
        assert!(id.to_string().to_uppercase().parse::<TaskId>().is_err());
        assert!(format!("{{{id}}}").parse::<TaskId>().is_err());
    }

    proptest! {
        #[test]
        fn whatever_parses_is_safe_as_a_subject_token(text in "\\PC{0,60}") {
            if let Ok(id) = text.parse::<TenantId>() {
                prop_assert!(!id.as_str().contains(['.', '*', '>', ' ', '/']));
                prop_assert_eq!(id.as_str(), text);
            }
        }
    }
}
