//! From the request to engine requests, one a picture.

use async_trait::async_trait;
use contract::limits::MAX_IMAGES;
use contract::v1::{OutputFormat, Scheduler, SubmitTask};
use diffusion::{Request, SchedulerKind};
use imaging::{Encoding, Format};

use super::{NodeError, PipelineNode, Planned, TaskJob, checkpoint};

/// JPEG quality when the request names none.
pub(super) const DEFAULT_QUALITY: u8 = 90;

/// Plans the pictures and takes up their checkpoint, if there is one.
pub(super) struct Preprocess;

#[async_trait]
impl PipelineNode for Preprocess {
    fn name(&self) -> &'static str {
        "preprocess"
    }

    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError> {
        job.encoding = encoding(&job.request)?;
        let requests = engine_requests(&job.request)?;
        let mut saved = checkpoint::load(job, requests.len())
            .await
            .unwrap_or_default()
            .into_iter();
        let planned = requests.into_iter().map(|request| Planned {
            request,
            // One that had not begun was put away as nothing.
            resume: saved.next().filter(|bytes| !bytes.is_empty()),
        });
        job.planned = planned.collect();
        Ok(())
    }
}

/// One engine request a picture; picture `i` has seed + `i`.
fn engine_requests(task: &SubmitTask) -> Result<Vec<Request>, NodeError> {
    let missing = |field| NodeError::Request {
        field,
        problem: "is missing".to_owned(),
    };
    if !(1..=MAX_IMAGES).contains(&task.images) {
        let problem = format!("is {}; it must be 1 to {MAX_IMAGES}", task.images);
        return Err(NodeError::Request {
            field: "images",
            problem,
        });
    }
    let seed = task.seed.ok_or_else(|| missing("seed"))?;
    let guidance_scale = task
        .guidance_scale
        .ok_or_else(|| missing("guidance_scale"))?;
    let scheduler = scheduler(task)?;
    let negative_prompt = Some(&task.negative_prompt).filter(|text| !text.is_empty());
    let request = |index: u32| Request {
        prompt: task.prompt.clone(),
        negative_prompt: negative_prompt.cloned(),
        width: task.width,
        height: task.height,
        steps: task.steps,
        guidance_scale,
        seed: seed.wrapping_add(index.into()),
        scheduler,
        ..Request::default()
    };
    Ok((0..task.images).map(request).collect())
}

fn scheduler(task: &SubmitTask) -> Result<Option<SchedulerKind>, NodeError> {
    let unknown = |_| NodeError::Request {
        field: "scheduler",
        problem: format!("is {}, which no scheduler has", task.scheduler),
    };
    Ok(
        match Scheduler::try_from(task.scheduler).map_err(unknown)? {
            Scheduler::Unspecified => None,
            Scheduler::Ddim => Some(SchedulerKind::Ddim),
            Scheduler::Euler => Some(SchedulerKind::Euler),
            Scheduler::DpmPp2m => Some(SchedulerKind::DpmPlusPlus2M),
            Scheduler::DpmPp2mKarras => Some(SchedulerKind::DpmPlusPlus2MKarras),
        },
    )
}

fn encoding(task: &SubmitTask) -> Result<Encoding, NodeError> {
    let unknown = |_| NodeError::Request {
        field: "output_format",
        problem: format!("is {}, which no format has", task.output_format),
    };
    let format = match OutputFormat::try_from(task.output_format).map_err(unknown)? {
        OutputFormat::Unspecified | OutputFormat::Png => Format::Png,
        OutputFormat::Jpeg => Format::Jpeg,
        OutputFormat::Webp => Format::WebP,
    };
    let quality = match task.output_compression {
        None => DEFAULT_QUALITY,
        // 1 to 100 by contract.
        Some(percent) => percent.clamp(1, 100) as u8,
    };
    Ok(Encoding { format, quality })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn task() -> SubmitTask {
        SubmitTask {
            prompt: "a 3d cat".to_owned(),
            width: 128,
            height: 128,
            images: 3,
            seed: Some(7),
            steps: 4,
            guidance_scale: Some(2.0),
            ..SubmitTask::default()
        }
    }

    #[test]
    fn each_picture_has_a_seed_of_its_own() {
        let requests = engine_requests(&task()).unwrap();
        let seeds: Vec<u64> = requests.iter().map(|request| request.seed).collect();
        assert_eq!(seeds, [7, 8, 9]);
        assert_eq!(requests[0].negative_prompt, None);
    }

    #[test]
    fn seeds_wrap_around_at_their_end() {
        let task = SubmitTask {
            seed: Some(u64::MAX),
            ..task()
        };
        let seeds: Vec<u64> = engine_requests(&task)
            .unwrap()
            .iter()
            .map(|r| r.seed)
            .collect();
        assert_eq!(seeds, [u64::MAX, 0, 1]);
    }

    #[test]
    fn a_request_that_was_not_filled_in_is_refused_by_field() {
        let cases = [
            (
                SubmitTask {
                    seed: None,
                    ..task()
                },
                "seed",
            ),
            (
                SubmitTask {
                    guidance_scale: None,
                    ..task()
                },
                "guidance_scale",
            ),
            (
                SubmitTask {
                    images: 0,
                    ..task()
                },
                "images",
            ),
            (
                SubmitTask {
                    images: 11,
                    ..task()
                },
                "images",
            ),
            (
                SubmitTask {
                    scheduler: 99,
                    ..task()
                },
                "scheduler",
            ),
        ];
        for (task, field) in cases {
            let error = engine_requests(&task).unwrap_err();
            assert!(error.to_string().starts_with(field), "{error}");
        }
        let odd = SubmitTask {
            output_format: 99,
            ..task()
        };
        assert!(
            encoding(&odd)
                .unwrap_err()
                .to_string()
                .starts_with("output_format")
        );
    }

    #[test]
    fn schedulers_map_one_to_one() {
        let kinds: Vec<_> = [0, 1, 2, 3, 4]
            .map(|scheduler| {
                super::scheduler(&SubmitTask {
                    scheduler,
                    ..task()
                })
                .unwrap()
            })
            .into();
        assert_eq!(kinds[0], None);
        let named: Vec<_> = kinds.into_iter().flatten().collect();
        // The wire has no names for the later ones yet.
        assert_eq!(named, SchedulerKind::ALL[..4]);
    }
}
