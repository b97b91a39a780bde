//! What a policy says, decided in one place.

use crate::auth::Policy;

/// Stands for every model.
const EVERY: &str = "*";

impl Policy {
    /// Whether the model of this name may be used under `asked`, its name or an alias. Its name opens all that it is called; an alias
    /// opens itself only, so that what it means can be given to another model without opening anything else.
    pub fn allows_name(&self, asked: &str, name: &str) -> bool {
        self.models
            .iter()
            .any(|allowed| allowed == EVERY || allowed == name || allowed == asked)
    }

    /// Whether the model of this name, which is also called `aliases`, may be used at all, under whichever of them.
    pub fn allows_model(&self, name: &str, aliases: &[String]) -> bool {
        self.allows_name(name, name) || aliases.iter().any(|alias| self.allows_name(alias, name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(models: &[&str]) -> Policy {
        Policy {
            models: models.iter().map(|&m| m.to_owned()).collect(),
            ..Policy::default()
        }
    }

    #[test]
    fn a_name_opens_its_aliases_and_an_alias_only_itself() {
        for all in ["demo", "*"] {
            for asked in ["demo", "basic", "hd"] {
                assert!(policy(&[all]).allows_name(asked, "demo"), "{all} {asked}");
            }
        }
        let basic = policy(&["x", "basic"]);
        assert!(basic.allows_name("basic", "demo"));
        assert!(!basic.allows_name("hd", "demo") && !basic.allows_name("demo", "demo"));
    }

    #[test]
    fn a_model_is_open_when_any_of_its_names_is() {
        let aliases = ["basic".to_owned(), "hd".to_owned()];
        for open in ["demo", "hd", "*"] {
            assert!(policy(&[open]).allows_model("demo", &aliases), "{open}");
        }
        assert!(!policy(&["demo2"]).allows_model("demo", &aliases));
        assert!(!policy(&[]).allows_model("demo", &aliases));
    }
}
