//! From engine requests to pixels, and what is told on the way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use contract::task::{ProgressEvent, progress_event};
use contract::v1;
use diffusion::{Progress, RgbImage};
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep_until};

use super::{NodeError, PipelineNode, Planned, TaskJob, checkpoint, postprocess};
use crate::engine::{Drawn, Flow, Hung, Outcome, Picture, Seen, Start};
use crate::retry::Stopped;
use crate::worker::Checkpoints;
use lifecycle::chain;

/// How often progress is told at most, and for how long a task is drawn before it is told for the first time: what is done sooner tells its end, and a
/// word of each to nobody costs the broker as much as one that is heard.
const TELL_EVERY: Duration = Duration::from_millis(100);
/// Previews of one task that wait to be encoded; more are left out.
const PREVIEWS_WAITING: usize = 8;

/// Drives the engine.
pub(super) struct Inference;

#[async_trait]
impl PipelineNode for Inference {
    fn name(&self) -> &'static str {
        "inference"
    }

    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError> {
        let (seen, mut previews) = mpsc::channel(PREVIEWS_WAITING);
        let flow = job.worker.engine.flow_of(job.task.task, job.weight);
        let (mut pictures, mut outcomes) = (Vec::new(), Vec::new());
        let began = Instant::now();
        for (index, planned) in (0..).zip(&job.planned) {
            let start = start(job, index, planned, flow, seen.clone());
            let (picture, outcome) = job.worker.engine.begin(start).await?;
            pictures.push(picture);
            outcomes.push(outcome);
        }
        drop(seen);
        let drawn = follow(job, flow, &pictures, outcomes, &mut previews).await;
        // However it came out: a task that rests does not name what nobody can go on from.
        checkpoint::let_go_of_unusable(job, &pictures);
        let drawn = drawn?;
        // A picture's previews come before the picture: none is still to come.
        while let Ok(preview) = previews.try_recv() {
            tell_preview(job, preview).await;
        }
        if began.elapsed() >= TELL_EVERY {
            tell_progress(job, &pictures, &mut None).await;
        }
        job.engine_time = drawn.iter().map(|drawn| drawn.busy).sum();
        job.drawn = drawn.into_iter().map(|drawn| drawn.image).collect();
        Ok(())
    }
}

fn start(
    job: &TaskJob,
    index: u32,
    planned: &Planned,
    flow: Flow,
    seen: mpsc::Sender<Seen>,
) -> Start {
    Start {
        model: Arc::clone(&job.served.model),
        request: planned.request.clone(),
        resume: planned.resume.clone(),
        flow,
        index,
        previews: job.request.partial_images,
        seen,
    }
}

/// Waits for all pictures, telling and saving on the way. In index order.
async fn follow(
    job: &mut TaskJob,
    flow: Flow,
    pictures: &[Picture],
    outcomes: Vec<Outcome>,
    previews: &mut mpsc::Receiver<Seen>,
) -> Result<Vec<Drawn>, NodeError> {
    let (stop, worker) = (job.worker.stop.clone(), Arc::clone(&job.worker));
    let Checkpoints { every, steps } = worker.checkpoints;
    let mut watched: Vec<_> = pictures.iter().map(Picture::follow).collect();
    let limit = limit(job);
    // Without a limit it is of no meaning.
    let deadline = Instant::now() + limit.unwrap_or_default();
    let numbered = outcomes.into_iter().enumerate();
    let mut outcomes: FuturesUnordered<_> = numbered
        .map(async |(index, outcome)| (index, outcome.await))
        .collect();
    let mut drawn: Vec<Option<Drawn>> = pictures.iter().map(|_| None).collect();
    let mut tell = ticks(TELL_EVERY, TELL_EVERY);
    let mut told = None;
    // Without checkpoints the interval is of no meaning.
    let mut save = ticks(every.unwrap_or(TELL_EVERY), every.unwrap_or(TELL_EVERY));
    loop {
        tokio::select! {
            biased;
            // Before all else: a thread that hangs takes no checkpoint.
            hung = worker.hangs() => return Err(of_hung(hung, pictures)),
            () = stop.cancelled() => {
                checkpoint::save(job, pictures).await?;
                return Err(Stopped.into());
            }
            next = outcomes.next() => match next {
                Some((index, outcome)) => {
                    drawn[index] = Some(outcome.map_err(|_| worker.engine.gone_for(flow))??);
                }
                None => return Ok(drawn.into_iter().flatten().collect()),
            },
            Some(preview) = previews.recv() => tell_preview(job, preview).await,
            _ = tell.tick() => tell_progress(job, pictures, &mut told).await,
            _ = save.tick(), if every.is_some() => checkpoint::save(job, pictures).await?,
            () = stepped(&mut watched), if steps.is_some() => {
                if checkpoint::is_due(job, pictures, steps) {
                    checkpoint::save(job, pictures).await?;
                }
            }
            () = sleep_until(deadline), if limit.is_some() => {
                checkpoint::save(job, pictures).await?;
                return Err(NodeError::TimedOut { limit: limit.unwrap_or_default() });
            }
        }
    }
}

/// How long the task may be drawn in this run.
fn limit(job: &TaskJob) -> Option<Duration> {
    let first = job.planned.first()?;
    let pixels = u64::from(first.request.width) * u64::from(first.request.height);
    let limits = job.worker.limits;
    limits.of(job.planned.len(), pixels, first.request.steps)
}

/// An attempt counts for those that were in what does not come back.
fn of_hung(hung: Hung, pictures: &[Picture]) -> NodeError {
    let has_part = |picture: &Picture| hung.pictures.contains(&picture.id());
    if pictures.iter().any(has_part) {
        NodeError::Hung(hung)
    } else {
        NodeError::HungWithAnother(hung)
    }
}

/// Resolves when one of the pictures has been taken a step further since the last time; never when none can be any more.
async fn stepped(watched: &mut [watch::Receiver<Progress>]) {
    let mut changes: FuturesUnordered<_> = watched.iter_mut().map(|one| one.changed()).collect();
    while let Some(changed) = changes.next().await {
        if changed.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

fn ticks(first: Duration, every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Tells how far all pictures are, if that is news.
async fn tell_progress(job: &TaskJob, pictures: &[Picture], told: &mut Option<u32>) {
    let Some(progress) = of_all(pictures.iter().map(Picture::progress)) else {
        return;
    };
    if *told == Some(progress.step) {
        return;
    }
    *told = Some(progress.step);
    let progress = progress_event::Event::Progress(progress);
    tell(job, progress).await;
}

/// How far all pictures of a task are; `None` before one has begun. They are of the same steps, so that one that has
/// begun tells how many there are.
fn of_all(pictures: impl Iterator<Item = Progress>) -> Option<v1::Progress> {
    let (mut count, mut step, mut each) = (0, 0, 0);
    for one in pictures {
        (count, step, each) = (count + 1, step + one.step, each.max(one.steps));
    }
    let steps = each * count;
    (steps > 0).then_some(v1::Progress { step, steps })
}

async fn tell_preview(job: &TaskJob, seen: Seen) {
    let Seen {
        index: image_index,
        preview: preview_index,
        image,
    } = seen;
    match encode_preview(job, image_index, image).await {
        Ok(data) => {
            let preview = v1::Preview {
                image_index,
                preview_index,
                data,
            };
            tell(job, progress_event::Event::Preview(preview)).await;
        }
        Err(error) => tracing::warn!(error = chain(&error), "a preview was left out"),
    }
}

async fn encode_preview(job: &TaskJob, index: u32, image: RgbImage) -> Result<Vec<u8>, NodeError> {
    postprocess::file(job, index as usize, image).await
}

async fn tell(job: &TaskJob, event: progress_event::Event) {
    let event = ProgressEvent { event: Some(event) };
    job.worker.log.tell_progress(job.task.task, &event).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[(u32, u32)]) -> Option<(u32, u32)> {
        let all = all.iter().map(|&(step, steps)| Progress { step, steps });
        of_all(all).map(|progress| (progress.step, progress.steps))
    }

    #[test]
    fn progress_is_told_of_all_steps_from_the_first_time_on() {
        assert_eq!(of(&[(0, 0), (0, 0)]), None, "none has begun");
        assert_eq!(of(&[(0, 23), (0, 0)]), Some((0, 46)));
        assert_eq!(of(&[(23, 23), (4, 23)]), Some((27, 46)));
    }
}
