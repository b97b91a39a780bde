//! How the versions stand, for health and for those who look at the fleet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard};

use contract::{ModelName, VersionName};
use lifecycle::Check;

/// A model and one of its versions.
pub(crate) type VersionKey = (ModelName, VersionName);

/// How a version stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Status {
    /// On its way.
    Loading,
    /// Served.
    Loaded,
    /// It could not be had; why.
    Failed(String),
}

/// All versions. Cheap to clone; all clones are the same.
#[derive(Clone)]
pub(crate) struct Models {
    inner: Arc<Mutex<Inner>>,
    check: Check,
}

#[derive(Default)]
struct Inner {
    versions: BTreeMap<VersionKey, (u64, Status)>,
    begun: u64,
    /// Nothing need be loaded.
    on_demand: bool,
}

/// One version's entry, removed when dropped.
pub(crate) struct Entry {
    key: VersionKey,
    /// Which life: the next may begin before this one has ended.
    number: u64,
    models: Models,
}

impl Models {
    /// No versions. `check` passes once one is loaded; where they are loaded by need, also while none is failing.
    pub(crate) fn new(check: Check, on_demand: bool) -> Self {
        let inner = Inner {
            on_demand,
            ..Inner::default()
        };
        let models = Self {
            inner: Arc::new(Mutex::new(inner)),
            check,
        };
        models.report(&models.inner());
        models
    }

    /// A version is wanted.
    pub(crate) fn begin(&self, key: VersionKey) -> Entry {
        let mut inner = self.inner();
        inner.begun += 1;
        let number = inner.begun;
        inner
            .versions
            .insert(key.clone(), (number, Status::Loading));
        self.report(&inner);
        Entry {
            key,
            number,
            models: self.clone(),
        }
    }

    /// Every version as `name/version`, with how it stands.
    pub(crate) fn all(&self) -> Vec<(String, Status)> {
        let inner = self.inner();
        let versions = inner.versions.iter();
        versions
            .map(|((name, version), (_, status))| (format!("{name}/{version}"), status.clone()))
            .collect()
    }

    fn report(&self, inner: &Inner) {
        let failed = |(_, status): &(u64, Status)| matches!(status, Status::Failed(_));
        if inner.on_demand && !inner.versions.values().any(failed) {
            return self.check.pass();
        }
        let mut problem = "no model is loaded".to_owned();
        for ((name, version), (_, status)) in &inner.versions {
            match status {
                Status::Loaded => return self.check.pass(),
                Status::Loading => {}
                Status::Failed(why) => problem = format!("{problem}; {name}/{version}: {why}"),
            }
        }
        self.check.fail(problem);
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing panics while it is held half-changed.
        self.inner
            .lock()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
    }
}

impl Entry {
    /// How the version stands now.
    pub(crate) fn set(&self, status: Status) {
        let mut inner = self.models.inner();
        if let Some(entry) = inner.versions.get_mut(&self.key)
            && entry.0 == self.number
        {
            entry.1 = status;
        }
        self.models.report(&inner);
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let mut inner = self.models.inner();
        if inner
            .versions
            .get(&self.key)
            .is_some_and(|entry| entry.0 == self.number)
        {
            inner.versions.remove(&self.key);
        }
        self.models.report(&inner);
    }
}

#[cfg(test)]
mod tests {
    use lifecycle::Health;

    use super::*;

    fn key(name: &str) -> VersionKey {
        (name.parse().unwrap(), "1".parse().unwrap())
    }

    #[test]
    fn a_worker_is_ready_while_a_model_is_loaded_and_otherwise_says_why_not() {
        let health = Health::default();
        let models = Models::new(health.check("models"), false);
        assert_eq!(health.problem().unwrap(), "models: no model is loaded");
        let (good, bad) = (models.begin(key("good")), models.begin(key("bad")));
        bad.set(Status::Failed("unet/config.json is missing".to_owned()));
        assert!(
            health
                .problem()
                .unwrap()
                .contains("bad/1: unet/config.json is missing")
        );
        good.set(Status::Loaded);
        assert_eq!(health.problem(), None);
        drop(good);
        assert!(health.problem().is_some());
    }

    #[test]
    fn a_worker_that_loads_by_need_is_ready_with_nothing() {
        let health = Health::default();
        let models = Models::new(health.check("models"), true);
        assert_eq!(health.problem(), None);
        let bad = models.begin(key("bad"));
        bad.set(Status::Failed("damaged".to_owned()));
        assert!(health.problem().unwrap().contains("damaged"));
        drop(bad);
        assert_eq!(health.problem(), None);
    }

    #[test]
    fn a_version_that_begins_again_is_not_removed_by_its_former_life() {
        let models = Models::new(Health::default().check("models"), false);
        let former = models.begin(key("m"));
        let now = models.begin(key("m"));
        now.set(Status::Loaded);
        former.set(Status::Failed("late".to_owned()));
        drop(former);
        assert_eq!(models.all(), [("m/1".to_owned(), Status::Loaded)]);
    }
}
