//! What is recorded of an event of the task log.

use std::time::SystemTime;

use ::audit::{Content, Event, Picture, Request, Task};
use contract::task::{Done, StoredImage, Submitted, done};
use prost_types::Timestamp;
use storage::sha256_hex;
use task_log::{Happened, What};

use super::gap::Gap;

/// The content of an event's record that is made `now`. `prompts`: with the words themselves.
pub(super) fn of(happened: &Happened, prompts: bool, now: SystemTime) -> Content {
    let event = match &happened.what {
        What::Submitted(submitted) => Event::Submitted(Box::new(task(submitted, prompts))),
        What::Done(done) => ended(done),
        What::Unreadable(payload) => Event::Unreadable {
            sha256: sha256_hex(payload),
        },
    };
    Content {
        recorded: time(Some(&now.into())),
        source: happened.sequence,
        log: String::new(),
        tenant: happened.tenant.clone(),
        task: happened.task.clone(),
        event,
    }
}

/// The content of a gap's record that is made `now`.
pub(super) fn of_gap(gap: &Gap, now: SystemTime) -> Content {
    let Gap { from, to, why } = *gap;
    Content {
        recorded: time(Some(&now.into())),
        source: to,
        log: String::new(),
        tenant: String::new(),
        task: String::new(),
        event: Event::Gap {
            from,
            to,
            why: why.to_owned(),
        },
    }
}

fn task(submitted: &Submitted, prompts: bool) -> Task {
    let request = submitted.request.clone().unwrap_or_default();
    let words = |text: &String| prompts.then(|| text.clone());
    let source = request.source.clone().unwrap_or_default();
    Task {
        at: time(submitted.at.as_ref()),
        app_key: submitted.app_key.clone(),
        model: submitted.model.clone(),
        model_version: submitted.model_version.clone(),
        lane: submitted.lane.clone(),
        user: request.user.clone(),
        request_sha256: hex::encode(&submitted.request_digest),
        prompt_sha256: sha256_hex(request.prompt.as_bytes()),
        negative_prompt_sha256: sha256_hex(request.negative_prompt.as_bytes()),
        prompt: words(&request.prompt),
        negative_prompt: words(&request.negative_prompt),
        retry_of: submitted.retry_of.clone(),
        request: Request {
            width: request.width,
            height: request.height,
            images: request.images,
            seed: request.seed,
            steps: request.steps,
            guidance_scale: request
                .guidance_scale
                .map(|g| g.to_string())
                .unwrap_or_default(),
            scheduler: request.scheduler().as_str_name().to_owned(),
            quality: request.quality().as_str_name().to_owned(),
            output_format: request.output_format().as_str_name().to_owned(),
            source_image: source.image_key,
            source_mask: source.mask_key,
            webhook: request.webhook.map(|hook| hook.url).unwrap_or_default(),
            expires_after_seconds: request.expires_after_seconds,
            visible_label: request.visible_label,
        },
    }
}

fn ended(done: &Done) -> Event {
    let (outcome, code, pictures) = match &done.outcome {
        Some(done::Outcome::Succeeded(success)) => {
            let pictures = success.images.iter().map(picture).collect();
            ("succeeded", String::new(), pictures)
        }
        Some(done::Outcome::Cancelled(_)) => ("cancelled", String::new(), Vec::new()),
        Some(done::Outcome::Failed(failed)) => ("failed", failed.code.clone(), Vec::new()),
        None => ("failed", String::new(), Vec::new()),
    };
    Event::Done {
        at: time(done.at.as_ref()),
        outcome: outcome.to_owned(),
        code,
        worker: done.worker.clone(),
        attempt: done.attempt,
        pictures,
    }
}

fn picture(stored: &StoredImage) -> Picture {
    Picture {
        key: stored.key.clone(),
        sha256: stored.sha256.clone(),
        size_bytes: stored.size_bytes,
    }
}

/// RFC 3339 in UTC; empty for no time, or one that is none.
fn time(at: Option<&Timestamp>) -> String {
    let at = at.and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok());
    at.map(|at| at.to_string()).unwrap_or_default()
}
