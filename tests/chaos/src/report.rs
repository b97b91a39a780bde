//! What came of a run, for people.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::run::Outcome;

/// Violations told in full; the file with the evidence leads to the others.
const TOLD: usize = 20;

/// The report.
pub fn report(outcome: &Outcome) -> String {
    let mut text = String::new();
    let plan = &outcome.plan;
    let seconds = plan.length_ms / 1000;
    // Writing to a string does not fail.
    let _ = writeln!(
        text,
        "seed {}, {seconds} s, {} faults",
        plan.seed,
        plan.strikes.len()
    );
    let mut kinds: BTreeMap<&str, usize> = BTreeMap::new();
    for strike in &plan.strikes {
        *kinds.entry(strike.fault.name()).or_default() += 1;
    }
    for (kind, count) in kinds {
        let _ = writeln!(text, "{count:>10}  {kind}");
    }
    let _ = writeln!(text, "{:>10}  clocks that jump", plan.jumps.len());
    let _ = writeln!(text, "\nseen:");
    for (figure, value) in &outcome.verdict.figures {
        let _ = writeln!(text, "{value:>10}  {figure}");
    }
    let violations = &outcome.verdict.violations;
    if violations.is_empty() {
        let _ = writeln!(text, "\neverything held");
        return text;
    }
    let _ = writeln!(text, "\n{} violations:", violations.len());
    for violation in violations.iter().take(TOLD) {
        let _ = writeln!(text, "  {violation}");
    }
    let folder = outcome.folder.display();
    let _ = writeln!(text, "\nagain: chaos --replay {folder}/plan.json");
    text
}
