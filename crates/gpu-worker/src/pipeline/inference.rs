//! From engine requests to pixels, and what is told on the way.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use contract::task::{ProgressEvent, progress_event};
use contract::v1;
use diffusion::RgbImage;
use futures::stream::{FuturesUnordered, StreamExt as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use super::{NodeError, PipelineNode, Planned, TaskJob, checkpoint, postprocess};
use crate::engine::{Drawn, EngineError, Flow, Outcome, Picture, Seen, Start};
use crate::retry::Stopped;
use lifecycle::chain;

/// How often progress is told at most.
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
        let flow = job.worker.engine.flow(job.weight);
        let (mut pictures, mut outcomes) = (Vec::new(), Vec::new());
        for (index, planned) in (0..).zip(&job.planned) {
            let start = start(job, index, planned, flow, seen.clone());
            let (picture, outcome) = job.worker.engine.begin(start).await?;
            pictures.push(picture);
            outcomes.push(outcome);
        }
        drop(seen);
        let drawn = follow(job, &pictures, outcomes, &mut previews).await?;
        // A picture's previews come before the picture: none is still to come.
        while let Ok(preview) = previews.try_recv() {
            tell_preview(job, preview).await;
        }
        tell_progress(job, &pictures, &mut None).await;
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
        previews: preview_steps(planned.request.steps, job.request.partial_images),
        seen,
    }
}

/// Waits for all pictures, telling and saving on the way. In index order.
async fn follow(
    job: &mut TaskJob,
    pictures: &[Picture],
    outcomes: Vec<Outcome>,
    previews: &mut mpsc::Receiver<Seen>,
) -> Result<Vec<Drawn>, NodeError> {
    let stop = job.worker.stop.clone();
    let every = job.worker.checkpoint_every;
    let numbered = outcomes.into_iter().enumerate();
    let mut outcomes: FuturesUnordered<_> = numbered
        .map(async |(index, outcome)| (index, outcome.await))
        .collect();
    let mut drawn: Vec<Option<Drawn>> = pictures.iter().map(|_| None).collect();
    let mut tell = ticks(Duration::ZERO, TELL_EVERY);
    let mut told = None;
    // Without checkpoints the interval is of no meaning.
    let mut save = ticks(every.unwrap_or(TELL_EVERY), every.unwrap_or(TELL_EVERY));
    loop {
        tokio::select! {
            biased;
            () = stop.cancelled() => {
                checkpoint::save(job, pictures).await;
                return Err(Stopped.into());
            }
            next = outcomes.next() => match next {
                Some((index, outcome)) => {
                    drawn[index] = Some(outcome.map_err(|_| EngineError::Gone)??);
                }
                None => return Ok(drawn.into_iter().flatten().collect()),
            },
            Some(preview) = previews.recv() => tell_preview(job, preview).await,
            _ = tell.tick() => tell_progress(job, pictures, &mut told).await,
            _ = save.tick(), if every.is_some() => checkpoint::save(job, pictures).await,
        }
    }
}

fn ticks(first: Duration, every: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + first, every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Tells how far all pictures are, if that is news.
async fn tell_progress(job: &TaskJob, pictures: &[Picture], told: &mut Option<u32>) {
    let all = pictures.iter().map(Picture::progress);
    let (step, steps) = all.fold((0, 0), |(step, steps), one| {
        (step + one.step, steps + one.steps)
    });
    if *told == Some(step) {
        return;
    }
    *told = Some(step);
    let progress = progress_event::Event::Progress(v1::Progress { step, steps });
    tell(job, progress).await;
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

/// After which steps a picture is shown: `count` times, evenly spaced, never at its end. Fewer where there are fewer steps.
fn preview_steps(steps: u32, count: u32) -> Vec<u32> {
    let parts = u64::from(count) + 1;
    // At most `steps`, so the cast loses nothing.
    let after = |part: u64| (u64::from(steps) * part).div_ceil(parts) as u32;
    let mut all: Vec<u32> = (1..parts).map(after).filter(|&step| step < steps).collect();
    all.dedup();
    all
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn previews_are_evenly_spaced() {
        assert_eq!(preview_steps(20, 0), [] as [u32; 0]);
        assert_eq!(preview_steps(20, 1), [10]);
        assert_eq!(preview_steps(20, 3), [5, 10, 15]);
        assert_eq!(preview_steps(12, 2), [4, 8]);
        assert_eq!(preview_steps(7, 3), [2, 4, 6]);
    }

    #[test]
    fn a_picture_of_few_steps_is_shown_less_often() {
        assert_eq!(preview_steps(1, 3), [] as [u32; 0]);
        assert_eq!(preview_steps(2, 3), [1]);
    }

    proptest! {
        #[test]
        fn previews_come_in_order_after_the_first_step_and_before_the_end(steps in 1u32..2000, count in 0u32..4) {
            let all = preview_steps(steps, count);
            prop_assert!(all.len() <= count as usize);
            prop_assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
            prop_assert!(all.iter().all(|&step| (1..steps).contains(&step)));
            prop_assert!(steps <= count || all.len() == count as usize);
        }
    }
}
