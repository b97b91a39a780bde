//! What the broker's subjects say while it happens, and what the log holds at the end.

use std::sync::Arc;

use contract::task::{Done, Phase, ProgressEvent, State, Submitted, done, progress_event};
use futures::StreamExt as _;
use lifecycle::Tasks;
use messaging::Broker;
use prost::Message as _;
use storage::sha256_hex;

use crate::brokers;
use crate::checker::Logged;
use crate::error::ChaosError;
use crate::history::{Happened, History, Picture, TaskEvent, What};

/// The log.
const TASKS: &str = "TASKS";
/// Events read at once.
const PAGE: usize = 512;

/// Has one listener at each server of the broker note what it hears. Each may miss some; what one of them hears did happen.
///
/// # Errors
/// When a server cannot be reached.
pub(crate) async fn listen(
    urls: &[String],
    tasks: &Tasks,
    history: &Arc<History>,
) -> Result<(), ChaosError> {
    for (number, url) in (1..).zip(urls) {
        let broker = brokers::connect(url).await?;
        let events = broker.listen("inkstone.event.>".to_owned()).await?;
        let progress = broker.listen("inkstone.progress.>".to_owned()).await?;
        // One stream of both, so that what is noted is in the order in which it came.
        let mut all = futures::stream::select(events, progress);
        let (history, stopping) = (history.clone(), tasks.stopping());
        tasks.job("a listener", async move {
            // The connection lives as long as whoever listens.
            let _broker = broker;
            let who = format!("listener-{number}");
            tokio::pin!(stopping);
            loop {
                tokio::select! {
                    () = &mut stopping => break,
                    Some((subject, payload)) = all.next() => {
                        if let Some(what) = decode(&subject, &payload) {
                            history.note(&who, what);
                        }
                    }
                }
            }
        });
    }
    Ok(())
}

fn decode(subject: &str, payload: &[u8]) -> Option<What> {
    if let Some(task) = subject.strip_prefix("inkstone.progress.") {
        let event = ProgressEvent::decode(payload).ok()?.event?;
        return match event {
            progress_event::Event::Progress(progress) => Some(What::Progress {
                task: task.to_owned(),
                step: progress.step,
            }),
            progress_event::Event::Preview(_) => None,
        };
    }
    task_event(subject, payload).map(What::Event)
}

/// Everything that the log holds, in order.
///
/// # Errors
/// When it cannot be read, or holds what is not understood.
pub(crate) async fn log(broker: &Broker) -> Result<Vec<Logged>, ChaosError> {
    let tasks = broker.log(TASKS);
    let mut all: Vec<Logged> = Vec::new();
    loop {
        let next = all.last().map_or(1, |last| last.sequence + 1);
        let page = tasks.from_sequence("inkstone.task.>", next, PAGE).await?;
        if page.is_empty() {
            return Ok(all);
        }
        for event in page {
            let subject = event.subject;
            let Some(found) = task_event(&subject, &event.payload) else {
                return Err(ChaosError::Event { subject });
            };
            all.push(Logged {
                sequence: event.sequence,
                event: found,
            });
        }
    }
}

/// `inkstone.{task|event}.<tenant>.<lane>.<task>.<event>`.
fn task_event(subject: &str, payload: &[u8]) -> Option<TaskEvent> {
    let mut tokens = subject.rsplit('.');
    let (event, task) = (tokens.next()?, tokens.next()?);
    let (lane, tenant) = (tokens.next()?, tokens.next()?);
    let event = match event {
        "submitted" => submitted(&Submitted::decode(payload).ok()?),
        "state" => state(State::decode(payload).ok()?),
        "done" => ended(Done::decode(payload).ok()?, payload),
        "feedback" => Happened::Feedback,
        _ => return None,
    };
    Some(TaskEvent {
        tenant: tenant.to_owned(),
        lane: lane.to_owned(),
        task: task.to_owned(),
        event,
    })
}

fn submitted(submitted: &Submitted) -> Happened {
    let request = submitted.request.clone().unwrap_or_default();
    Happened::Submitted {
        images: request.images,
        expires_after_s: request.expires_after_seconds,
        look: format!(
            "{:?} seed {} steps {} {}x{} images {}",
            request.prompt,
            request.seed.unwrap_or_default(),
            request.steps,
            request.width,
            request.height,
            request.images,
        ),
    }
}

fn state(state: State) -> Happened {
    Happened::State {
        running: state.phase() == Phase::Running,
        attempt: state.attempt,
        checkpoint: state.checkpoint.as_ref().map(|checkpoint| checkpoint.step),
        worker: state.worker,
        incarnation: state.incarnation,
    }
}

fn ended(done: Done, payload: &[u8]) -> Happened {
    let begun = done.started_at.is_some();
    let (outcome, code, images) = match done.outcome {
        Some(done::Outcome::Succeeded(succeeded)) => {
            let picture = |image: contract::task::StoredImage| Picture {
                key: image.key,
                sha256: image.sha256,
                bytes: image.size_bytes,
            };
            let images = succeeded.images.into_iter().map(picture).collect();
            ("succeeded", String::new(), images)
        }
        Some(done::Outcome::Cancelled(_)) => ("cancelled", String::new(), Vec::new()),
        Some(done::Outcome::Failed(failed)) => ("failed", failed.code, Vec::new()),
        None => ("unknown", String::new(), Vec::new()),
    };
    Happened::Done {
        outcome: outcome.to_owned(),
        code,
        images,
        begun,
        digest: sha256_hex(payload),
    }
}
