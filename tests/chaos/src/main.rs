//! `chaos`: makes a run, repeats one, or judges again what an earlier one has seen.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chaos::checker::{Evidence, check};
use chaos::plan::Plan;
use chaos::{ChaosError, EVIDENCE, Outcome, PLAN, report, run};
use clap::Parser;
use serde::de::DeserializeOwned;

/// Faults at random moments of a whole platform, and a checker that proves from the history what held.
#[derive(Parser)]
struct Arguments {
    /// What everything random follows from; without it, the time.
    #[arg(long)]
    seed: Option<u64>,
    /// For how long things go wrong.
    #[arg(long, default_value_t = 2)]
    minutes: u64,
    /// Carries out a plan that was written out (plan.json of a run) instead of drawing one.
    #[arg(long, value_name = "FILE")]
    replay: Option<PathBuf>,
    /// Judges again what a run has seen (its folder), without running anything.
    #[arg(long, value_name = "FOLDER")]
    check: Option<PathBuf>,
    /// Where everything about the run is kept.
    #[arg(long, value_name = "FOLDER", default_value = "target/chaos")]
    out: PathBuf,
}

#[tokio::main]
async fn main() -> ExitCode {
    let told = match outcome(Arguments::parse()).await {
        Ok(outcome) => {
            let _ = write!(std::io::stdout(), "{}", report(&outcome));
            outcome.verdict.violations.is_empty()
        }
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "chaos: {}", lifecycle::chain(&error));
            false
        }
    };
    if told {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

async fn outcome(arguments: Arguments) -> Result<Outcome, ChaosError> {
    if let Some(folder) = arguments.check {
        let evidence: Evidence = read(&folder.join(EVIDENCE))?;
        return Ok(Outcome {
            plan: read(&folder.join(PLAN))?,
            verdict: check(&evidence),
            folder,
        });
    }
    let plan = match arguments.replay {
        Some(file) => read(&file)?,
        None => {
            let seed = arguments.seed.unwrap_or_else(|| {
                let since = SystemTime::now().duration_since(UNIX_EPOCH);
                since.map_or(0, |since| since.as_secs())
            });
            Plan::draw(seed, Duration::from_secs(60 * arguments.minutes))
        }
    };
    let folder = arguments.out.join(format!("seed-{}", plan.seed));
    let folder = std::path::absolute(&folder).unwrap_or(folder);
    run(plan, &folder).await
}

fn read<T: DeserializeOwned>(path: &Path) -> Result<T, ChaosError> {
    let file = |source| ChaosError::File {
        path: path.to_owned(),
        source,
    };
    let text = std::fs::read(path).map_err(file)?;
    serde_json::from_slice(&text).map_err(|error| file(error.into()))
}
