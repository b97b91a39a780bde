//! A tenant with one task does not wait behind another's many (invariant I7): from its submission to its turn only so many tasks of
//! others are handed out. Counted, not timed, so that it holds on any machine.

use std::collections::BTreeMap;

use super::{Disturbed, Evidence, Verdict};
use crate::history::{Happened, What};
use crate::plan::Fault;

const FAIR: &str = "a tenant with one task does not wait behind another's many";

pub(super) fn check(evidence: &Evidence, verdict: &mut Verdict) {
    let rules = &evidence.rules;
    // A gateway or an auth takes no part in who is next, nor does the store.
    let aside = |instance: &str| instance.starts_with("gateway") || instance.starts_with("auth");
    let disturbed = Disturbed::of(evidence, rules.settle_ms, |fault| {
        !matches!(fault, Fault::Store { .. }) && !fault.instance().is_some_and(aside)
    });
    let mut listeners: BTreeMap<&str, Listener> = BTreeMap::new();
    for entry in &evidence.entries {
        let What::Event(event) = &entry.what else {
            continue;
        };
        let listener = listeners.entry(&entry.who).or_default();
        match event.event {
            Happened::Submitted { .. } if event.tenant == rules.polite => {
                let waits = Waits {
                    since: entry.at_ms,
                    lane: &event.lane,
                    overtaken: 0,
                };
                listener.waiting.insert(&event.task, waits);
            }
            Happened::State {
                attempt: 0,
                running: false,
                ..
            } if event.tenant != rules.polite => {
                let same = listener
                    .waiting
                    .values_mut()
                    .filter(|w| w.lane == event.lane);
                same.for_each(|waits| waits.overtaken += 1);
            }
            Happened::State { .. } | Happened::Done { .. } => {
                let Some(waits) = listener.waiting.remove(event.task.as_str()) else {
                    continue;
                };
                if disturbed.within(waits.since, entry.at_ms) {
                    continue;
                }
                verdict.count("turns that were judged", 1);
                verdict.most("most tasks of others before a turn", waits.overtaken as u64);
                verdict.most("longest wait for a turn, ms", entry.at_ms - waits.since);
                if waits.overtaken > rules.overtakers {
                    let text = format!("{} saw {} tasks go first", event.task, waits.overtaken);
                    verdict.violated(FAIR, text);
                }
            }
            _ => {}
        }
    }
}

/// What one listener knows of those that wait.
#[derive(Default)]
struct Listener<'a> {
    waiting: BTreeMap<&'a str, Waits<'a>>,
}

struct Waits<'a> {
    since: u64,
    lane: &'a str,
    overtaken: usize,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checker::sample::*;
    use crate::history::TaskEvent;

    fn with(overtakers: u64) -> Evidence {
        let mut evidence = good();
        let after = evidence.entries.split_off(2);
        for number in 0..overtakers {
            let task = format!("other-{number}");
            let other = TaskEvent {
                tenant: "flood".to_owned(),
                ..event(&task, state(false, 0, None))
            };
            evidence
                .entries
                .push(entry(25, "listener", What::Event(other)));
        }
        evidence.entries.extend(after);
        evidence
    }

    #[test]
    fn a_tenant_that_many_overtake_is_found() {
        assert_eq!(super::super::check(&with(2)).violations, []);
        assert_eq!(violated(&with(3)), FAIR);
    }

    #[test]
    fn nobody_is_judged_while_an_orchestrator_or_a_broker_is_away_but_while_a_gateway_is() {
        let kill = |instance: &str| Fault::Kill {
            instance: instance.to_owned(),
        };
        let partition = Fault::Partition {
            node: 1,
            silent: false,
        };
        for (fault, found) in [
            (kill("orchestrator-1"), false),
            (partition, false),
            (kill("gateway-1"), true),
        ] {
            let mut evidence = with(3);
            for (at, begins) in [(21, true), (22, false)] {
                let what = strike(1, begins, fault.clone());
                evidence.entries.push(entry(at, "harness", what));
            }
            assert_eq!(!super::super::check(&evidence).violations.is_empty(), found);
        }
    }
}
