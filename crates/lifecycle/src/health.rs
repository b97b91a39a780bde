//! Whether a service can do its work: a list of named checks that the parts keep up to date.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, OnceLock, RwLock};

use serde::Serialize;

/// The checks of one service. Cheap to clone; all clones are the same list.
#[derive(Clone, Default)]
pub struct Health {
    checks: Arc<RwLock<BTreeMap<&'static str, State>>>,
    phase: Arc<AtomicU8>,
    hung: Arc<OnceLock<String>>,
}

/// What is known of one dependency.
#[derive(Debug, Clone, PartialEq, Eq)]
enum State {
    Well,
    /// It does not do all that it should, and what it still does is worth a service that asks for it.
    Limited(String),
    Fails(String),
}

impl State {
    fn problem(&self) -> Option<&String> {
        match self {
            Self::Well => None,
            Self::Limited(problem) | Self::Fails(problem) => Some(problem),
        }
    }
}

const STARTING: u8 = 0;
const RUNNING: u8 = 1;
const STOPPING: u8 = 2;

/// One dependency's entry in a [`Health`].
#[derive(Clone)]
pub struct Check {
    name: &'static str,
    health: Health,
}

/// One check, as `/readyz` and `/healthz?verbose` show it.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    /// Whether it is well.
    pub ok: bool,
    /// Whether it is not, and the service is of use all the same: a [limit](Check::limit).
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub limited: bool,
    /// What is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

impl Health {
    /// Adds a check, which fails until it is first [passed](Check::pass).
    pub fn check(&self, name: &'static str) -> Check {
        let check = Check {
            name,
            health: self.clone(),
        };
        check.fail("not checked so far");
        check
    }

    /// The problem of the first check that fails. What only limits the service is none.
    pub fn problem(&self) -> Option<String> {
        self.first(|state| matches!(state, State::Fails(_)))
    }

    /// The problem of the first dependency that only limits the service.
    pub fn limit(&self) -> Option<String> {
        self.first(|state| matches!(state, State::Limited(_)))
    }

    fn first(&self, wanted: impl Fn(&State) -> bool) -> Option<String> {
        let checks = self.checks.read().unwrap_or_else(|e| e.into_inner());
        let (name, state) = checks.iter().find(|(_, state)| wanted(state))?;
        let problem = state.problem()?;
        Some(format!("{name}: {problem}"))
    }

    /// Every check by name.
    pub fn findings(&self) -> BTreeMap<&'static str, Finding> {
        let checks = self.checks.read().unwrap_or_else(|e| e.into_inner());
        let finding = |state: &State| Finding {
            ok: *state == State::Well,
            limited: matches!(state, State::Limited(_)),
            problem: state.problem().cloned(),
        };
        let each = checks.iter();
        each.map(|(name, state)| (*name, finding(state))).collect()
    }

    /// Why no work should be sent here now: the service still starts, it stops, or a check fails.
    pub fn not_ready(&self) -> Option<String> {
        if let Some(problem) = self.hung() {
            return Some(problem.to_owned());
        }
        match self.phase.load(Ordering::Acquire) {
            STARTING => Some("still starting".to_owned()),
            STOPPING => Some("stopping".to_owned()),
            _ => self.problem(),
        }
    }

    /// From now on the process is not alive: something in it hangs, and only a new process goes on. The first reason counts.
    pub fn hang(&self, problem: String) {
        // It is set by now, whoever was first.
        let _ = self.hung.set(problem);
    }

    /// What hangs, if something does.
    pub fn hung(&self) -> Option<&str> {
        self.hung.get().map(String::as_str)
    }

    /// From now on every check there is has been added, and they alone say whether the service is ready.
    pub(crate) fn started(&self) {
        self.phase.store(RUNNING, Ordering::Release);
    }

    /// From now on changes are what stopping is like, and not worth a warning: whoever stops takes away what the checks are of.
    pub(crate) fn stopping(&self) {
        self.phase.store(STOPPING, Ordering::Release);
    }

    fn set(&self, name: &'static str, state: State) {
        let mut checks = self.checks.write().unwrap_or_else(|e| e.into_inner());
        let before = checks.insert(name, state.clone());
        if self.phase.load(Ordering::Acquire) == STOPPING {
            return;
        }
        match (before, state) {
            (Some(State::Well | State::Limited(_)), State::Fails(problem)) => {
                tracing::warn!("{name} fails: {problem}");
            }
            (Some(State::Well | State::Fails(_)), State::Limited(problem)) => {
                tracing::warn!("{name} does not do everything: {problem}");
            }
            (Some(State::Limited(_) | State::Fails(_)), State::Well) => {
                tracing::info!("{name} is well");
            }
            _ => {}
        }
    }
}

impl Check {
    /// The dependency is well.
    pub fn pass(&self) {
        self.health.set(self.name, State::Well);
    }

    /// The dependency is not well, and why.
    pub fn fail(&self, problem: impl Into<String>) {
        self.health.set(self.name, State::Fails(problem.into()));
    }

    /// The dependency does not do everything, and why; the service goes on with what it still does.
    pub fn limit(&self, problem: impl Into<String>) {
        self.health.set(self.name, State::Limited(problem.into()));
    }

    /// Passes or fails by `result`.
    pub fn set<E: std::error::Error>(&self, result: Result<(), E>) {
        match result {
            Ok(()) => self.pass(),
            Err(error) => self.fail(crate::tasks::chain(&error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_fails_until_it_is_passed() {
        let health = Health::default();
        assert!(health.problem().is_none());
        let check = health.check("broker");
        assert!(health.problem().unwrap().starts_with("broker"));
        check.pass();
        assert!(health.problem().is_none());
        check.fail("connection refused");
        assert_eq!(health.problem().unwrap(), "broker: connection refused");
    }

    #[test]
    fn a_service_is_not_ready_before_it_has_started_nor_when_it_stops() {
        let health = Health::default();
        assert_eq!(health.not_ready().unwrap(), "still starting");
        health.check("broker").pass();
        assert_eq!(health.not_ready().unwrap(), "still starting");
        health.started();
        assert_eq!(health.not_ready(), None);
        health.check("models").fail("none");
        assert_eq!(health.not_ready().unwrap(), "models: none");
        health.stopping();
        assert_eq!(health.not_ready().unwrap(), "stopping");
    }

    #[test]
    fn what_only_limits_a_service_is_told_and_leaves_it_ready() {
        let health = Health::default();
        health.started();
        let (log, broker) = (health.check("log"), health.check("broker"));
        broker.pass();
        log.limit("full");
        assert_eq!(health.not_ready(), None);
        assert_eq!(health.limit().unwrap(), "log: full");
        let finding = &health.findings()["log"];
        assert!(!finding.ok && finding.limited, "{finding:?}");
        assert_eq!(finding.problem.as_deref(), Some("full"));
        broker.fail("away");
        assert_eq!(health.not_ready().unwrap(), "broker: away");
        assert!(!health.findings()["broker"].limited);
        log.pass();
        assert_eq!(health.limit(), None);
    }

    #[test]
    fn what_hangs_is_said_once_and_stays() {
        let health = Health::default();
        assert_eq!(health.hung(), None);
        health.hang("the engine".to_owned());
        health.hang("the decoder".to_owned());
        assert_eq!(health.hung(), Some("the engine"));
        assert_eq!(health.not_ready().unwrap(), "the engine");
    }
}
