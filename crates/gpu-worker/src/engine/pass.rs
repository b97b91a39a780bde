//! One step of several pictures, in which one that fails fails alone.

use std::panic::{AssertUnwindSafe, catch_unwind};

use diffusion::{Progress, StepError};

use super::EngineError;
use super::model::{Job, Model};
use lifecycle::panic_text;

/// How a step is taken. [`Model::step`]; tests of failures put a fault before it.
pub(crate) type Step =
    Box<dyn FnMut(&Model, &mut [&mut Job]) -> Vec<Result<Progress, StepError>> + Send>;

/// What came of a step.
pub(super) struct Taken {
    /// Each picture as it is now, or why it failed, in the batch's order.
    pub(super) results: Vec<(u64, Result<Box<Job>, EngineError>)>,
    /// Steps that were taken again for one picture alone.
    pub(super) again: usize,
}

impl Taken {
    /// Whether the engine's code failed, rather than a picture, and nothing came of it.
    pub(super) fn is_broken(&self) -> bool {
        let failed = |(_, result): &(u64, Result<_, EngineError>)| {
            result.as_ref().is_err_and(EngineError::is_engines)
        };
        !self.results.is_empty() && self.results.iter().all(failed)
    }
}

/// Takes them one step further together. The model answers for each picture by itself where the computation fails; where its
/// code panics, whoever was not taken further meanwhile is taken alone, and only one that panics again has failed.
///
/// That the number of a job's steps tells how far it is, whatever happened, is the engine's promise: a job is
/// changed as a whole, last of all, or not.
pub(super) fn take(step: &mut Step, model: &Model, mut batch: Vec<(u64, Box<Job>)>) -> Taken {
    let before: Vec<u32> = batch.iter().map(|(_, job)| job.progress().step).collect();
    let together = batch.iter_mut().map(|(_, job)| &mut **job).collect();
    let mut again = 0;
    let results: Vec<Result<(), EngineError>> = match attempt(step, model, together) {
        Ok(results) => results
            .into_iter()
            .map(|result| result.map(drop).map_err(EngineError::Step))
            .collect(),
        Err(panic) if batch.len() == 1 => vec![Err(panic)],
        Err(panic) => {
            tracing::error!(
                error = %panic,
                pictures = batch.len(),
                "a step panicked; each of its pictures is taken alone"
            );
            let one_by_one = batch.iter_mut().zip(&before).map(|((_, job), &before)| {
                if job.progress().step > before {
                    return Ok(());
                }
                again += 1;
                let mut results = attempt(step, model, vec![&mut **job])?;
                let result = results.pop().unwrap_or(Err(StepError::Finished));
                result.map(drop).map_err(EngineError::Step)
            });
            one_by_one.collect()
        }
    };
    let results = batch
        .into_iter()
        .zip(results)
        .map(|((id, job), result)| (id, result.map(|()| job)))
        .collect();
    Taken { results, again }
}

fn attempt(
    step: &mut Step,
    model: &Model,
    mut jobs: Vec<&mut Job>,
) -> Result<Vec<Result<Progress, StepError>>, EngineError> {
    let stepped = catch_unwind(AssertUnwindSafe(|| step(model, &mut jobs)));
    stepped.map_err(|panic| EngineError::Panicked {
        doing: "stepping",
        message: panic_text(&*panic).to_owned(),
    })
}
