//! From a request to an answer, between the wires.

use std::sync::Arc;

use bytes::Bytes;
use contract::auth::{Caller, RateLimit};
use contract::{ErrorCode, Failure, v1};
use futures::future::try_join_all;
use tokio::time::Instant;

use super::model::{self, IMAGE, SEED, TASK_ID};
use super::request::{self, Asked, IMAGE_FORMAT, Plan};
use super::tensor::write_texts;
use crate::auth::Admitted;
use crate::carried::{Carried, OF_ANSWER};
use crate::edge::Edge;
use crate::models;
use crate::pictures::in_turn;
use crate::tasks::task_id;
use crate::waiting;

/// Bytes of a pixel as it is handed over: red, green, blue.
const PIXEL_BYTES: u64 = 3;

/// What a request is answered with, before it is written for a wire.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) model: String,
    pub(super) version: String,
    pub(super) id: String,
    pub(super) outputs: Vec<Output>,
}

/// An output.
#[derive(Debug)]
pub(super) struct Output {
    pub(super) name: &'static str,
    pub(super) shape: Vec<i64>,
    pub(super) content: Content,
}

/// An output's values.
#[derive(Debug)]
pub(super) enum Content {
    /// Files.
    Files(Vec<Bytes>),
    /// Texts that are UTF-8.
    Texts(Vec<Bytes>),
    /// `UINT8`.
    Pixels(Vec<u8>),
    /// `UINT64`.
    Whole(Vec<u64>),
}

impl Content {
    pub(super) fn datatype(&self) -> &'static str {
        match self {
            Self::Files(_) | Self::Texts(_) => "BYTES",
            Self::Pixels(_) => "UINT8",
            Self::Whole(_) => "UINT64",
        }
    }

    /// The raw form, the same on both wires.
    pub(super) fn into_raw(self) -> Vec<u8> {
        match self {
            Self::Files(texts) | Self::Texts(texts) => write_texts(&texts),
            Self::Pixels(bytes) => bytes,
            Self::Whole(numbers) => numbers.into_iter().flat_map(u64::to_le_bytes).collect(),
        }
    }
}

/// An answer, and what goes with it.
pub(super) struct Drawn {
    pub(super) answer: Answer,
    /// What is left of the caller's limit, if more was charged.
    pub(super) limit: Option<RateLimit>,
    /// The room that the pictures inside have, if there are any.
    pub(super) carried: Option<Carried>,
}

/// Draws what was asked for and waits for it, as long as a generation may take. Pictures have `most_bytes` together at most.
/// Dropped before its end, it cancels its tasks.
pub(super) async fn infer(
    edge: &Arc<Edge>,
    caller: &Admitted,
    asked: Asked,
    idempotency_key: &str,
    most_bytes: u64,
) -> Result<Drawn, Failure> {
    let deadline = Instant::now() + edge.http.generation_timeout.duration();
    let plan = request::plan(&asked, idempotency_key)?;
    check_version(edge, caller, &asked).await?;
    let Plan {
        tasks,
        raw,
        outputs,
    } = plan;
    check_burst(caller, tasks.len())?;
    // Whose key was revoked since is not charged.
    let caller = &*edge.platform.still_admitted(caller).await?;
    // Each is a task, and charged like one.
    let limit = edge.platform.charge_batch(caller, tasks.len()).await?;
    // The first that fails ends the others: there is no answer with holes.
    let drawing = tasks
        .into_iter()
        .map(|task| waiting::draw(edge, caller, task, deadline));
    let drawn = try_join_all(drawing).await.map_err(request::renamed)?;
    let images: Vec<&v1::ImageInfo> = drawn
        .iter()
        .filter_map(|task| task.images.first())
        .collect();
    let [first, ..] = images[..] else {
        return Err(broken("a task that succeeded has no picture"));
    };
    let bytes = check_size(&images, raw, most_bytes)?;
    let (mut files, mut carried) = (None, None);
    if outputs.contains(&IMAGE) {
        let room = edge.carried.room(&caller.tenant, bytes, OF_ANSWER);
        carried = Some(room.await?);
        files = Some(read(edge, caller, &drawn).await?);
    }
    let mut answer = Vec::with_capacity(outputs.len());
    let count = drawn.len() as i64;
    for name in outputs {
        let (shape, content) = match (name, files.take()) {
            (IMAGE, Some(files)) if raw => {
                let shape = vec![count, i64::from(first.height), i64::from(first.width), 3];
                (shape, Content::Pixels(pixels(edge, files, first).await?))
            }
            (IMAGE, Some(files)) => (vec![count], Content::Files(files)),
            (_, kept) => {
                files = kept;
                (vec![count], facts(name, &drawn, &images))
            }
        };
        answer.push(Output {
            name,
            shape,
            content,
        });
    }
    let request = drawn[0].request.as_ref();
    let answer = Answer {
        model: request.map(|r| r.model.clone()).unwrap_or(asked.model),
        version: drawn[0].model_version.clone(),
        id: asked.id,
        outputs: answer,
    };
    Ok(Drawn {
        answer,
        limit,
        carried,
    })
}

/// Refuses a version that is not there, or beside which others draw.
async fn check_version(edge: &Edge, caller: &Caller, asked: &Asked) -> Result<(), Failure> {
    if asked.version.is_empty() {
        return Ok(());
    }
    let models = models::allowed(edge, caller).await?;
    let model = model::find(&models, &asked.model, &asked.version)?;
    model::check_sole(model, &asked.version)
}

/// The file of each task's picture.
async fn read(edge: &Edge, caller: &Caller, drawn: &[v1::Task]) -> Result<Vec<Bytes>, Failure> {
    let files = drawn
        .iter()
        .map(|task| async { waiting::picture(edge, caller, task_id(&task.id)?, 0).await });
    try_join_all(files).await
}

/// Refuses by the tensor's name a batch that the caller's limit never lets through: auth would say it by a field that there is not.
fn check_burst(caller: &Caller, batch: usize) -> Result<(), Failure> {
    let burst = caller.policy.as_ref().map(|policy| policy.burst);
    match burst {
        Some(burst) if batch > burst as usize => {
            let message = format!(
                "PROMPT must have at most {burst} elements for this key, which may make no more requests at once, not {batch}"
            );
            Err(Failure::invalid("PROMPT", message))
        }
        _ => Ok(()),
    }
}

/// The outputs that are known without the pictures.
fn facts(name: &str, drawn: &[v1::Task], images: &[&v1::ImageInfo]) -> Content {
    if name == SEED {
        return Content::Whole(images.iter().map(|info| info.seed).collect());
    }
    debug_assert_eq!(name, TASK_ID);
    let ids = drawn.iter().map(|task| Bytes::from(task.id.clone()));
    Content::Texts(ids.collect())
}

/// How many bytes the pictures have.
fn check_size(images: &[&v1::ImageInfo], raw: bool, most: u64) -> Result<u64, Failure> {
    let size = |info: &&v1::ImageInfo| {
        if raw {
            u64::from(info.width) * u64::from(info.height) * PIXEL_BYTES
        } else {
            info.size_bytes
        }
    };
    let bytes: u64 = images.iter().map(size).sum();
    if bytes <= most {
        return Ok(bytes);
    }
    let message = format!(
        "the pictures have {bytes} bytes together and {most} fit into one answer; ask for fewer, or for image_format jpeg"
    );
    Err(Failure::invalid(IMAGE_FORMAT, message))
}

/// The pixels of all files one behind the other, decoded when it is their turn.
async fn pixels(
    edge: &Arc<Edge>,
    files: Vec<Bytes>,
    first: &v1::ImageInfo,
) -> Result<Vec<u8>, Failure> {
    let (width, height) = (first.width, first.height);
    let each = u64::from(width) * u64::from(height);
    let decode = move || {
        let mut all = Vec::with_capacity(files.len() * (each * PIXEL_BYTES) as usize);
        for file in &files {
            match imaging::decode(file, each) {
                Ok((w, h, pixels)) if (w, h) == (width, height) => all.extend(pixels),
                Ok((w, h, _)) => return Err(format!("{w}x{h} among pictures of {width}x{height}")),
                Err(error) => return Err(lifecycle::chain(&error)),
            }
        }
        Ok(all)
    };
    in_turn(edge, decode).await?.map_err(|why| {
        tracing::error!("a stored picture cannot be decoded: {why}");
        broken("a picture of ours cannot be decoded")
    })
}

fn broken(what: &str) -> Failure {
    Failure::new(ErrorCode::Internal, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_batch_that_a_key_may_never_send_is_refused_by_the_tensors_name() {
        let policy = contract::auth::Policy {
            burst: 5,
            ..Default::default()
        };
        let caller = Caller {
            policy: Some(policy),
            ..Default::default()
        };
        assert!(check_burst(&caller, 5).is_ok());
        let refused = check_burst(&caller, 6).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("PROMPT"));
        assert!(refused.message.contains("at most 5 elements"), "{refused}");
    }

    #[test]
    fn pictures_that_do_not_fit_are_refused_before_they_are_read() {
        let info = v1::ImageInfo {
            width: 10,
            height: 10,
            size_bytes: 100,
            ..Default::default()
        };
        assert!(check_size(&[&info, &info], false, 200).is_ok());
        assert!(check_size(&[&info, &info], false, 199).is_err());
        assert!(check_size(&[&info, &info], true, 600).is_ok());
        assert!(check_size(&[&info, &info], true, 599).is_err());
    }

    #[test]
    fn numbers_and_texts_have_the_raw_form_that_clients_read() {
        assert_eq!(Content::Whole(vec![1, 2]).into_raw().len(), 16);
        let raw = Content::Texts(vec![Bytes::from_static(b"ab")]).into_raw();
        assert_eq!(raw, [2, 0, 0, 0, b'a', b'b']);
    }
}
