//! From the request to engine requests, one a picture.

use async_trait::async_trait;
use contract::limits::MAX_IMAGES;
use contract::v1::{self, OutputFormat, Scheduler, SubmitTask};
use contract::words::{SCHEDULERS, word};
use diffusion::{PromptSyntax, Request, SchedulerKind};
use imaging::{Encoding, Format};

use super::{NodeError, PipelineNode, Planned, TaskJob, checkpoint, source};

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
        let mut requests = engine_requests(&job.request)?;
        if let Some(source) = &job.request.source {
            source::begin_from(job, source, &mut requests).await?;
        }
        let saved = checkpoint::load(job, requests.len()).await?;
        let mut saved = saved.unwrap_or_default().into_iter();
        let planned = requests.into_iter().map(|request| Planned {
            request,
            // One that had not begun was put away as nothing.
            resume: saved.next().filter(|bytes| !bytes.is_empty()),
        });
        job.planned = planned.collect();
        let put_away = job.planned.iter().map(|planned| planned.resume.is_some());
        job.put_away = put_away.collect();
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
    let prompt_syntax = prompt_syntax(task)?;
    let negative_prompt = Some(&task.negative_prompt).filter(|text| !text.is_empty());
    let request = |index: u32| Request {
        prompt: task.prompt.clone(),
        negative_prompt: negative_prompt.cloned(),
        prompt_syntax,
        width: task.width,
        height: task.height,
        steps: task.steps,
        guidance_scale,
        guidance_rescale: task.guidance_rescale.unwrap_or_default(),
        seed: seed.wrapping_add(index.into()),
        scheduler,
        ..Request::default()
    };
    Ok((0..task.images).map(request).collect())
}

fn scheduler(task: &SubmitTask) -> Result<Option<SchedulerKind>, NodeError> {
    let unknown = || NodeError::Request {
        field: "scheduler",
        problem: format!("is {}, which no scheduler has", task.scheduler),
    };
    let asked = Scheduler::try_from(task.scheduler).map_err(|_| unknown())?;
    if asked == Scheduler::Unspecified {
        return Ok(None);
    }
    // Contract and engine call a scheduler by the same word.
    let kind = word(SCHEDULERS, asked).and_then(|word| word.parse().ok());
    kind.map(Some).ok_or_else(unknown)
}

fn prompt_syntax(task: &SubmitTask) -> Result<PromptSyntax, NodeError> {
    match v1::PromptSyntax::try_from(task.prompt_syntax) {
        Ok(v1::PromptSyntax::Unspecified | v1::PromptSyntax::Plain) => Ok(PromptSyntax::Plain),
        Ok(v1::PromptSyntax::Weighted) => Ok(PromptSyntax::Weighted),
        Err(_) => Err(NodeError::Request {
            field: "prompt_syntax",
            problem: format!("is {}, which no syntax has", task.prompt_syntax),
        }),
    }
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
    use contract::words::PROMPT_SYNTAXES;

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
            (
                SubmitTask {
                    prompt_syntax: 99,
                    ..task()
                },
                "prompt_syntax",
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
    fn options_reach_the_engine_and_their_absence_is_its_default() {
        let plain = engine_requests(&task()).unwrap().remove(0);
        assert_eq!(plain.prompt_syntax, PromptSyntax::Plain);
        assert_eq!(plain.guidance_rescale, 0.0);
        let task = SubmitTask {
            prompt_syntax: v1::PromptSyntax::Weighted.into(),
            guidance_rescale: Some(0.7),
            ..task()
        };
        let weighted = engine_requests(&task).unwrap().remove(0);
        assert_eq!(weighted.prompt_syntax, PromptSyntax::Weighted);
        assert_eq!(weighted.guidance_rescale, 0.7);
        let words = PROMPT_SYNTAXES.iter().map(|(word, _)| (*word).to_owned());
        let engines = PromptSyntax::ALL.map(|syntax| syntax.to_string());
        assert_eq!(words.collect::<Vec<_>>(), engines);
    }

    #[test]
    fn the_contracts_schedulers_are_the_engines() {
        let words: Vec<&str> = SCHEDULERS.iter().map(|(word, _)| *word).collect();
        let engines = SchedulerKind::ALL.map(|kind| kind.to_string());
        assert_eq!(words, engines);
        for (word, scheduler) in SCHEDULERS {
            let task = SubmitTask {
                scheduler: (*scheduler).into(),
                ..task()
            };
            let kind = super::scheduler(&task).unwrap().unwrap();
            assert_eq!(kind.to_string(), *word);
        }
        assert_eq!(super::scheduler(&task()).unwrap(), None);
    }
}
