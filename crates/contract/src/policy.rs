//! What a policy says, decided in one place.

use crate::auth::Policy;

impl Policy {
    /// Whether it allows the model of this name, which is also called `aliases`.
    pub fn allows_model(&self, name: &str, aliases: &[String]) -> bool {
        self.models
            .iter()
            .any(|allowed| allowed == "*" || allowed == name || aliases.contains(allowed))
    }
}
