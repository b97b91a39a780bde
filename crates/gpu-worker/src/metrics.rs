//! What the worker counts. Labels are of few values: models, nodes, kinds; never tasks or tenants.

use std::time::{Duration, SystemTime};

use contract::ModelName;
use contract::task::Submitted;

use crate::engine::Account;

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

/// A task was taken up for the first time, at `now` by the broker's clock: how long it had waited since its submission.
pub(crate) fn queue_wait(model: &ModelName, submitted: &Submitted, now: SystemTime) {
    let Some(at) = submitted.at.and_then(|at| SystemTime::try_from(at).ok()) else {
        return;
    };
    // Clocks of two brokers may differ: a wait is never negative.
    let waited = now.duration_since(at).unwrap_or_default();
    metrics::histogram!("inkstone_worker_queue_wait_seconds", "model" => model.to_string())
        .record(waited.as_secs_f64());
}

/// Whether pictures are noise.
pub(crate) fn simulated(simulated: bool) {
    metrics::gauge!("inkstone_worker_engine_simulated").set(f64::from(u8::from(simulated)));
}

/// Tasks that run now.
pub(crate) fn tasks_running(running: usize) {
    metrics::gauge!("inkstone_worker_tasks_running").set(running as f64);
}

/// Pictures that the engine has now, and those of them that wait for room.
pub(crate) fn pictures(all: usize, waiting: usize) {
    metrics::gauge!("inkstone_worker_jobs_running").set((all - waiting) as f64);
    metrics::gauge!("inkstone_worker_jobs_waiting").set(waiting as f64);
}

/// One denoising step of `pictures` pictures was taken, in a pass of `rows` rows.
pub(crate) fn step(pictures: usize, rows: usize, took: Duration) {
    metrics::histogram!("inkstone_worker_step_seconds").record(took.as_secs_f64());
    metrics::counter!("inkstone_worker_job_steps_total").increment(pictures as u64);
    metrics::counter!("inkstone_worker_step_rows_total").increment(rows as u64);
    metrics::gauge!("inkstone_worker_batch_size").set(pictures as f64);
}

/// Steps that were taken again for one picture alone, because a step of several failed.
pub(crate) fn taken_again(steps: usize) {
    metrics::counter!("inkstone_worker_steps_taken_again_total").increment(steps as u64);
}

/// What the engine may take in all.
pub(crate) fn memory_limit(bytes: u64) {
    metrics::gauge!("inkstone_worker_memory_limit_bytes").set(bytes as f64);
}

/// Where memory is.
pub(crate) fn memory(account: &Account) {
    let parts = [
        ("weights", account.weights),
        ("jobs", account.jobs),
        ("step", account.step),
        ("decoder", account.decoder),
        ("aside", account.aside),
    ];
    for (part, bytes) in parts {
        metrics::gauge!("inkstone_worker_memory_bytes", "part" => part).set(bytes as f64);
    }
    metrics::gauge!("inkstone_worker_memory_most_bytes").set(account.most as f64);
}

/// A picture was put aside, so that a more urgent one or a model has room.
pub(crate) fn put_aside() {
    metrics::counter!("inkstone_worker_preemptions_total").increment(1);
}

/// A picture or a model was refused because it does not fit into memory.
pub(crate) fn refused(what: &'static str) {
    metrics::counter!("inkstone_worker_refused_total", "what" => what).increment(1);
}

/// A preview was not drawn, for want of time or memory.
pub(crate) fn preview_left_out() {
    metrics::counter!("inkstone_worker_previews_left_out_total").increment(1);
}

/// The engine failed at something.
pub(crate) fn engine_error(kind: &'static str) {
    metrics::counter!("inkstone_worker_engine_errors_total", "kind" => kind).increment(1);
}

/// A thread of the engine does not come back.
pub(crate) fn hung(thread: &'static str) {
    metrics::counter!("inkstone_worker_hung_total", "thread" => thread).increment(1);
}

/// Another worker has announced itself by this one's name.
pub(crate) fn namesake() {
    metrics::counter!("inkstone_worker_namesakes_total").increment(1);
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
