//! The platform as callers and operators meet it: real processes, a real broker, the demo model.

// Helpers of tests fail by panicking, like the tests themselves.
#![allow(clippy::unwrap_used)]

mod audit;
mod bad_input;
mod callers;
mod command_line;
mod crash;
mod edge;
mod estimates;
mod full;
mod hang;
mod hook;
mod hostile;
mod inputs;
mod instances;
mod intake;
mod letters;
mod limits;
mod own_dialect;
mod proofs;
mod rates;
mod revoked;
mod secrets;
mod shares;
mod signing;
mod terminal;
mod tls;
mod users;

use aws_lc_rs::digest;
use contract::v1::{SubmitTask, Task, TaskPhase};
use e2e::Platform;

/// A picture that takes a few seconds, so that there is a middle to be killed in.
pub(crate) fn long_picture() -> SubmitTask {
    SubmitTask {
        prompt: "a 3d cat on a blue background".to_owned(),
        images: 2,
        steps: 100,
        seed: Some(7),
        ..SubmitTask::default()
    }
}

/// A picture that takes a moment.
pub(crate) fn short_picture() -> SubmitTask {
    SubmitTask {
        images: 1,
        steps: 4,
        ..long_picture()
    }
}

/// Asserts that a task succeeded and that each picture's bytes are stored as the task says.
pub(crate) fn assert_whole(platform: &Platform, task: &Task) {
    assert_eq!(task.phase(), TaskPhase::Succeeded, "{task:?}");
    let request = task.request.as_ref().unwrap();
    assert_eq!(task.images.len(), request.images as usize);
    for image in &task.images {
        let bytes = std::fs::read(platform.picture(&task.id, image.index)).unwrap();
        let digest = digest::digest(&digest::SHA256, &bytes);
        assert_eq!(hex::encode(digest.as_ref()), image.sha256);
    }
}

/// The digests of a task's pictures.
pub(crate) fn digests(task: &Task) -> Vec<String> {
    task.images
        .iter()
        .map(|image| image.sha256.clone())
        .collect()
}
