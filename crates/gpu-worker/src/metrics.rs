//! What the worker counts. Labels are of few values: models, nodes, kinds; never tasks or tenants.

use std::time::{Duration, SystemTime};

use contract::ModelName;
use contract::task::Submitted;

/// How a task left this worker, as metrics name it.
pub(crate) type Outcome = &'static str;

/// A task left this worker after `took`.
pub(crate) fn task(model: &ModelName, outcome: Outcome, pictures: u32, took: Duration) {
    let labels = [
        ("model", model.to_string()),
        ("outcome", outcome.to_owned()),
    ];
    metrics::counter!("inkstone_worker_pictures_total", &labels).increment(pictures.into());
    metrics::histogram!("inkstone_worker_task_seconds", &labels).record(took.as_secs_f64());
}

/// A task was taken up for the first time: how long it had waited since its submission.
pub(crate) fn queue_wait(model: &ModelName, submitted: &Submitted) {
    let Some(at) = submitted.at.and_then(|at| SystemTime::try_from(at).ok()) else {
        return;
    };
    // Clocks of two machines may differ: a wait is never negative.
    let waited = at.elapsed().unwrap_or_default();
    metrics::histogram!("inkstone_worker_queue_wait_seconds", "model" => model.to_string())
        .record(waited.as_secs_f64());
}

/// Tasks that run now.
pub(crate) fn tasks_running(running: usize) {
    metrics::gauge!("inkstone_worker_tasks_running").set(running as f64);
}

/// Pictures that the engine holds now.
pub(crate) fn jobs_running(jobs: usize) {
    metrics::gauge!("inkstone_worker_jobs_running").set(jobs as f64);
}

/// One denoising step of `jobs` pictures was taken.
pub(crate) fn step(jobs: usize, took: Duration) {
    metrics::histogram!("inkstone_worker_step_seconds").record(took.as_secs_f64());
    metrics::counter!("inkstone_worker_job_steps_total").increment(jobs as u64);
}

/// The engine failed at something.
pub(crate) fn engine_error(kind: &'static str) {
    metrics::counter!("inkstone_worker_engine_errors_total", "kind" => kind).increment(1);
}

/// A node of the pipeline was passed.
pub(crate) fn node(name: &'static str, took: Duration) {
    metrics::histogram!("inkstone_worker_node_seconds", "node" => name).record(took.as_secs_f64());
}

/// A model could not be downloaded or loaded.
pub(crate) fn model_failure(model: &ModelName) {
    metrics::counter!("inkstone_worker_model_failures_total", "model" => model.to_string())
        .increment(1);
}

/// A dispatch was given up into DEAD.
pub(crate) fn buried() {
    metrics::counter!("inkstone_worker_dead_letters_total").increment(1);
}
