//! A short run, the same each time, with a rolling restart of everything at its end; `make chaos` makes long ones, each another.

use std::time::Duration;

use chaos::plan::{Fault, Plan, Strike};
use chaos::{report, run};

/// One whose minute has a partition of the broker in it.
const SEED: u64 = 1;
const LENGTH: Duration = Duration::from_secs(60);

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_minute_of_faults_loses_doubles_forgets_and_starves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let plan = Plan::draw(SEED, LENGTH);
    let partition = |strike: &Strike| matches!(strike.fault, Fault::Partition { .. });
    assert!(plan.strikes.iter().any(partition));
    assert!(plan.rolling);
    let outcome = run(plan, folder.path()).await.unwrap();
    let told = report(&outcome);
    println!("{told}");
    if !outcome.verdict.violations.is_empty() {
        // For whoever looks for the reason.
        let kept = folder.keep();
        panic!("see {}\n{told}", kept.display());
    }
}
