//! From pixels to labelled files.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use diffusion::{Request, RgbImage};
use imaging::{EncodeError, Encoding, Pixels};
use storage::sha256_hex;
use tokio::task::{JoinError, spawn_blocking};

use super::label::label;
use super::{NodeError, PipelineNode, TaskJob};

/// Pictures of no more pixels are encoded where they are: it takes some tens of microseconds, about what handing them to another thread
/// and being woken by it costs.
const SMALL_PIXELS: usize = 64 * 64;

/// Encodes and labels.
pub(super) struct Postprocess;

/// A picture's file.
pub(super) struct File {
    pub(super) bytes: Bytes,
    /// Lower-case hex.
    pub(super) sha256: String,
}

impl From<Vec<u8>> for File {
    fn from(bytes: Vec<u8>) -> Self {
        Self {
            sha256: sha256_hex(&bytes),
            bytes: bytes.into(),
        }
    }
}

#[async_trait]
impl PipelineNode for Postprocess {
    fn name(&self) -> &'static str {
        "postprocess"
    }

    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError> {
        let drawn = std::mem::take(&mut job.drawn);
        for (index, image) in drawn.into_iter().enumerate() {
            let file = file(job, index, image).await?;
            job.files.push(file);
        }
        Ok(())
    }
}

/// The file of picture `index`, or its bytes alone: made off the runtime's threads, unless it is small.
pub(super) async fn file<F: From<Vec<u8>> + Send + 'static>(
    job: &TaskJob,
    index: usize,
    image: RgbImage,
) -> Result<F, NodeError> {
    let request = &job.planned[index].request;
    let (producer, digest) = (&job.worker.content_producer, job.served.model.digest());
    let how = How {
        encoding: job.encoding,
        visible: job.request.visible_label || job.worker.always_visible,
    };
    let made = if is_small(&image) {
        here(|| encode(image, how, producer, digest, request)).await
    } else {
        let (worker, request) = (Arc::clone(&job.worker), request.clone());
        let digest = digest.to_owned();
        let work = move || encode(image, how, &worker.content_producer, &digest, &request);
        spawn_blocking(work).await
    };
    let made = made.map_err(|source| NodeError::OffRuntime {
        doing: "encoding a picture",
        source,
    })?;
    made.map_err(|source| NodeError::Encode { index, source })
}

fn is_small(image: &RgbImage) -> bool {
    image.pixels.len() <= 3 * SMALL_PIXELS
}

/// Does what would be too short for the blocking pool. A panic ends as it does there, and not the task with it.
async fn here<T: Send + 'static>(work: impl FnOnce() -> T) -> Result<T, JoinError> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => Ok(done),
        Err(panic) => spawn_blocking(move || -> T { resume_unwind(panic) }).await,
    }
}

/// How a picture is written.
#[derive(Debug, Clone, Copy)]
struct How {
    encoding: Encoding,
    /// With a label that people see.
    visible: bool,
}

/// All that takes time, in one turn.
fn encode<F: From<Vec<u8>>>(
    mut image: RgbImage,
    how: How,
    producer: &str,
    digest: &str,
    request: &Request,
) -> Result<F, EncodeError> {
    let label = label(producer, digest, request, how.visible);
    if how.visible {
        imaging::show_label(image.width, image.height, &mut image.pixels)?;
    }
    let pixels = Pixels {
        width: image.width,
        height: image.height,
        rgb: &image.pixels,
    };
    imaging::encode(pixels, &how.encoding, &label).map(F::from)
}

#[cfg(test)]
mod tests {
    use imaging::Format;

    use super::*;

    fn image(width: u32, height: u32) -> RgbImage {
        RgbImage {
            width,
            height,
            pixels: vec![7; (width * height * 3) as usize],
        }
    }

    #[test]
    fn pictures_of_some_thousand_pixels_are_small() {
        assert!(is_small(&image(64, 64)));
        assert!(is_small(&image(512, 8)));
        assert!(!is_small(&image(65, 64)));
    }

    #[tokio::test]
    async fn a_panic_over_a_small_picture_is_told_as_one_on_the_blocking_pool() {
        let (small, large) = tokio::join!(
            here::<()>(|| panic!("a label")),
            spawn_blocking::<_, ()>(|| panic!("a label")),
        );
        for error in [small.unwrap_err(), large.unwrap_err()] {
            let panic = error.into_panic();
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"a label"));
        }
        assert_eq!(here(|| 7).await.unwrap(), 7);
    }

    #[test]
    fn a_file_has_the_digest_of_its_bytes() {
        let how = How {
            encoding: Encoding {
                format: Format::Png,
                quality: 90,
            },
            visible: false,
        };
        let request = Request::default();
        let (of, small) = (("inkstone", "digest"), image(8, 8));
        let file: File = encode(small.clone(), how, of.0, of.1, &request).unwrap();
        let bytes: Vec<u8> = encode(small, how, of.0, of.1, &request).unwrap();
        assert_eq!(file.bytes, bytes);
        assert_eq!(file.sha256, sha256_hex(&bytes));
    }
}
