//! What must have held, proven from what was seen. Pure: from evidence to violations and figures.
//!
//! Each property has a file of its own, whose tests plant a violation and see that it is found. Bounds are derived from settings and
//! generous: a machine that is slow is no violation.

mod charge;
mod deadline;
mod ends;
mod fairness;
mod left;
mod order;
mod results;
mod rework;
mod rolling;
#[cfg(test)]
mod sample;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::history::{Entry, Happened, TaskEvent, What};
use crate::plan::Fault;

/// All that is known of a run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Evidence {
    /// What was seen, in order of time.
    pub entries: Vec<Entry>,
    /// The log as it was at the end, in order.
    pub log: Vec<Logged>,
    /// What the object store held at the end, by key.
    pub objects: BTreeMap<String, Object>,
    /// Pictures that each tenant was charged for.
    pub charged: BTreeMap<String, u64>,
    /// What else lay in the object store then; none in evidence of before it was looked at.
    #[serde(default)]
    pub left: Option<Left>,
    /// What was done in peace, when everything had been mended; none where that was left out.
    #[serde(default)]
    pub calm: Option<Calm>,
    /// Whether it may have been midnight (UTC) somewhere meanwhile: what was charged on another day is not given back.
    #[serde(default)]
    pub over_midnight: bool,
    /// What the platform was told.
    pub rules: Rules,
}

/// What lies in the object store beside pictures.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Left {
    /// Objects with which processes ask whether the store is well.
    pub probes: u64,
    /// Files that were to become objects.
    pub drafts: u64,
    /// The tasks of which there is a checkpoint.
    pub checkpoints: BTreeSet<String>,
    /// Records of the audit chain, up to the first that is wrong.
    pub records: u64,
    /// What is wrong with the audit chain.
    pub broken: Option<String>,
}

/// The phase in which nothing is disturbed and charges are judged to the picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calm {
    /// Who submits then, and at no other time.
    pub tenant: String,
    /// Pictures that it was charged for when the phase began.
    pub before: u64,
}

/// An event as the log holds it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Logged {
    /// Its place.
    pub sequence: u64,
    /// What it says.
    #[serde(flatten)]
    pub event: TaskEvent,
}

/// An object's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Object {
    /// Their SHA-256, lower-case hex.
    pub sha256: String,
    /// How many.
    pub bytes: u64,
}

/// The settings that bounds follow from.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rules {
    /// `worker.max_attempts`.
    pub max_attempts: u32,
    /// `engine.checkpoint_every`, in milliseconds.
    pub checkpoint_every_ms: u64,
    /// What the machine may add to that: to draw the step that is under way, and to store the checkpoint.
    pub checkpoint_margin_ms: u64,
    /// How long the platform may need to be itself again after a fault, in milliseconds.
    pub settle_ms: u64,
    /// The tenant that has one task at a time, beside others that have many.
    pub polite: String,
    /// Tasks of others that may be handed out between the polite tenant's submission and its turn.
    pub overtakers: usize,
    /// Pictures that a killed orchestrator may leave charged to a tenant: what it sets aside at once. A write of that much may be
    /// stored without its knowledge, too.
    pub left_by_a_kill: u64,
    /// How long an orchestrator waits for a write, in milliseconds: one after the other, for one tenant.
    #[serde(default = "five_seconds")]
    pub write_ms: u64,
    /// The shortest time after which a fault that lasts can cost a task another attempt, in milliseconds.
    #[serde(default = "five_seconds")]
    pub attempt_ms: u64,
    /// When there is an audit record in a file at the latest, after the first task has ended, in milliseconds.
    #[serde(default = "ninety_seconds")]
    pub audit_within_ms: u64,
}

/// What all runs had before it was written down.
fn five_seconds() -> u64 {
    5_000
}

fn ninety_seconds() -> u64 {
    90_000
}

/// What a task fails with that did not begin in time.
const EXPIRED: &str = "deadline_exceeded";

/// What did not hold.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Violation {
    /// Which property.
    pub property: String,
    /// Of what, and how.
    pub text: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.property, self.text)
    }
}

/// What was found.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Verdict {
    /// Empty when everything held.
    pub violations: Vec<Violation>,
    /// What was counted on the way, by name.
    pub figures: BTreeMap<String, u64>,
}

impl Verdict {
    fn violated(&mut self, property: &str, text: String) {
        let property = property.to_owned();
        self.violations.push(Violation { property, text });
    }

    fn count(&mut self, figure: &str, by: u64) {
        *self.figures.entry(figure.to_owned()).or_default() += by;
    }

    fn most(&mut self, figure: &str, value: u64) {
        let most = self.figures.entry(figure.to_owned()).or_default();
        *most = value.max(*most);
    }
}

/// Looks at every property.
pub fn check(evidence: &Evidence) -> Verdict {
    let mut verdict = Verdict::default();
    let log = Log::of(evidence);
    ends::check(evidence, &log, &mut verdict);
    deadline::check(evidence, &log, &mut verdict);
    results::check(evidence, &log, &mut verdict);
    order::check(evidence, &log, &mut verdict);
    rework::check(evidence, &mut verdict);
    fairness::check(evidence, &mut verdict);
    charge::check(evidence, &log, &mut verdict);
    rolling::check(evidence, &mut verdict);
    left::check(evidence, &log, &mut verdict);
    verdict.violations.sort();
    verdict.violations.dedup();
    verdict
}

/// The log, a task at a time.
pub(crate) struct Log<'a> {
    tasks: BTreeMap<&'a str, Task<'a>>,
}

/// A task's last events.
#[derive(Default)]
pub(crate) struct Task<'a> {
    tenant: &'a str,
    submitted: Option<&'a Logged>,
    state: Option<&'a Logged>,
    done: Option<&'a Logged>,
}

impl<'a> Log<'a> {
    fn of(evidence: &'a Evidence) -> Self {
        let mut tasks: BTreeMap<&str, Task> = BTreeMap::new();
        for logged in &evidence.log {
            let task = tasks.entry(&logged.event.task).or_default();
            task.tenant = &logged.event.tenant;
            match &logged.event.event {
                Happened::Submitted { .. } => task.submitted = Some(logged),
                Happened::State { .. } => task.state = Some(logged),
                Happened::Done { .. } => task.done = Some(logged),
                Happened::Feedback => {}
            }
        }
        Self { tasks }
    }
}

/// The events that one listener heard of each task, in the order in which it heard them.
pub(crate) fn heard_by_task(evidence: &Evidence) -> BTreeMap<(&str, &str), Vec<&Entry>> {
    let mut heard: BTreeMap<(&str, &str), Vec<&Entry>> = BTreeMap::new();
    for entry in &evidence.entries {
        let task = match &entry.what {
            What::Event(event) => &event.task,
            What::Progress { task, .. } => task,
            _ => continue,
        };
        heard.entry((&entry.who, task)).or_default().push(entry);
    }
    heard
}

/// When something was disturbed that matters, in milliseconds.
pub(crate) struct Disturbed(Vec<(u64, u64)>);

impl Disturbed {
    /// By the faults that `matters` picks and by processes that ended by themselves, and for `settle_ms` after each.
    pub(crate) fn of(
        evidence: &Evidence,
        settle_ms: u64,
        matters: impl Fn(&Fault) -> bool,
    ) -> Self {
        let Self(mut spans) = Self::by_plan(evidence, settle_ms, matters);
        for entry in &evidence.entries {
            // Nobody planned it, but it is a fault.
            if let What::Ended { .. } = entry.what {
                spans.push((entry.at_ms, entry.at_ms + settle_ms));
            }
        }
        Self(spans)
    }

    /// By the faults that `matters` picks alone.
    pub(crate) fn by_plan(
        evidence: &Evidence,
        settle_ms: u64,
        matters: impl Fn(&Fault) -> bool,
    ) -> Self {
        let mut open: BTreeMap<usize, u64> = BTreeMap::new();
        let mut spans = Vec::new();
        for entry in &evidence.entries {
            match &entry.what {
                What::Strike { number, begins, of } if matters(of) => {
                    if *begins {
                        open.insert(*number, entry.at_ms);
                    } else if let Some(from) = open.remove(number) {
                        spans.push((from, entry.at_ms + settle_ms));
                    }
                }
                _ => {}
            }
        }
        spans.extend(open.into_values().map(|from| (from, u64::MAX)));
        Self(spans)
    }

    /// Whether any of it was between these two.
    pub(crate) fn within(&self, from: u64, until: u64) -> bool {
        self.0
            .iter()
            .any(|&(begins, ends)| begins <= until && from <= ends)
    }
}

/// The distinct ends that were heard or are stored, by task.
pub(crate) fn all_ends(evidence: &Evidence) -> BTreeMap<&str, BTreeSet<&str>> {
    let heard = evidence
        .entries
        .iter()
        .filter_map(|entry| match &entry.what {
            What::Event(event) => Some(event),
            _ => None,
        });
    let stored = evidence.log.iter().map(|logged| &logged.event);
    let mut ends: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for event in heard.chain(stored) {
        if let Happened::Done { digest, .. } = &event.event {
            ends.entry(&event.task).or_default().insert(digest);
        }
    }
    ends
}
