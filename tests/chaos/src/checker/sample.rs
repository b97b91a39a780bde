//! A history in which everything holds, for tests to spoil.

use super::{Evidence, Logged, Object, Rules, Verdict, check};
use crate::history::{Entry, Happened, Picture, TaskEvent, What};
use crate::plan::Fault;

pub(crate) const TASK: &str = "task-1";
pub(crate) const TENANT: &str = "polite";

pub(crate) fn event(task: &str, event: Happened) -> TaskEvent {
    TaskEvent {
        tenant: TENANT.to_owned(),
        lane: "standard-image".to_owned(),
        task: task.to_owned(),
        event,
    }
}

pub(crate) fn submitted() -> Happened {
    Happened::Submitted {
        images: 1,
        look: "a cat".to_owned(),
        expires_after_s: 0,
    }
}

pub(crate) fn state(running: bool, attempt: u32, checkpoint: Option<u32>) -> Happened {
    Happened::State {
        running,
        attempt,
        worker: if running { "w" } else { "" }.to_owned(),
        incarnation: if running { "w-1" } else { "" }.to_owned(),
        checkpoint,
    }
}

pub(crate) fn picture(task: &str) -> Picture {
    Picture {
        key: format!("images/{task}/0.png"),
        sha256: "cat".to_owned(),
        bytes: 3,
    }
}

pub(crate) fn succeeded(task: &str) -> Happened {
    Happened::Done {
        outcome: "succeeded".to_owned(),
        code: String::new(),
        images: vec![picture(task)],
        begun: true,
        digest: format!("end of {task}"),
    }
}

pub(crate) fn cancelled(task: &str) -> Happened {
    Happened::Done {
        outcome: "cancelled".to_owned(),
        code: String::new(),
        images: Vec::new(),
        begun: false,
        digest: format!("end of {task}"),
    }
}

pub(crate) fn failed(task: &str, code: &str) -> Happened {
    let mut end = cancelled(task);
    if let Happened::Done {
        outcome, code: of, ..
    } = &mut end
    {
        (*outcome, *of) = ("failed".to_owned(), code.to_owned());
    }
    end
}

pub(crate) fn entry(at_ms: u64, who: &str, what: What) -> Entry {
    let who = who.to_owned();
    Entry { at_ms, who, what }
}

pub(crate) fn accepted(task: &str, key: Option<&str>) -> What {
    What::Accepted {
        tenant: TENANT.to_owned(),
        key: key.map(str::to_owned),
        task: task.to_owned(),
    }
}

pub(crate) fn seen(task: &str, phase: &str, digests: &[&str]) -> What {
    What::Seen {
        task: task.to_owned(),
        phase: phase.to_owned(),
        digests: digests.iter().map(|&d| d.to_owned()).collect(),
    }
}

pub(crate) fn strike(number: usize, begins: bool, of: Fault) -> What {
    What::Strike { number, begins, of }
}

pub(crate) fn heard(at_ms: u64, what: Happened) -> Entry {
    entry(at_ms, "listener", What::Event(event(TASK, what)))
}

pub(crate) fn progress(at_ms: u64, step: u32) -> Entry {
    let task = TASK.to_owned();
    entry(at_ms, "listener", What::Progress { task, step })
}

/// One task, submitted, drawn and seen.
pub(crate) fn good() -> Evidence {
    let log = [submitted(), state(true, 1, None), succeeded(TASK)];
    let numbered = (1..).zip(log);
    Evidence {
        entries: vec![
            entry(10, "client", accepted(TASK, None)),
            heard(20, submitted()),
            heard(30, state(false, 0, None)),
            heard(40, state(true, 1, None)),
            progress(50, 4),
            heard(60, succeeded(TASK)),
            entry(70, "client", seen(TASK, "succeeded", &["cat"])),
        ],
        log: numbered
            .map(|(sequence, what)| Logged {
                sequence,
                event: event(TASK, what),
            })
            .collect(),
        objects: [(
            picture(TASK).key,
            Object {
                sha256: "cat".to_owned(),
                bytes: 3,
            },
        )]
        .into(),
        charged: [(TENANT.to_owned(), 1)].into(),
        left: None,
        calm: None,
        over_midnight: false,
        rules: Rules {
            max_attempts: 3,
            checkpoint_every_ms: 1_000,
            checkpoint_margin_ms: 500,
            settle_ms: 5_000,
            polite: TENANT.to_owned(),
            overtakers: 2,
            left_by_a_kill: 10,
            write_ms: 5_000,
            attempt_ms: 5_000,
            audit_within_ms: 90_000,
        },
    }
}

/// Adds a second task like the first.
pub(crate) fn with_another(evidence: &mut Evidence, task: &str, end: Happened) {
    for what in [submitted(), state(true, 1, None), end] {
        evidence.log.push(Logged {
            sequence: 100 + evidence.log.len() as u64,
            event: event(task, what),
        });
    }
}

/// The one property that does not hold.
pub(crate) fn violated(evidence: &Evidence) -> String {
    let Verdict { violations, .. } = check(evidence);
    assert!(!violations.is_empty(), "nothing was found");
    let first = violations[0].property.clone();
    assert!(
        violations.iter().all(|v| v.property == first),
        "{violations:?}"
    );
    first
}

#[test]
fn a_history_in_which_everything_holds_has_no_violation() {
    assert_eq!(check(&good()).violations, []);
}
