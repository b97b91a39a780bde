//! From pixels to labelled files.

use async_trait::async_trait;
use bytes::Bytes;
use diffusion::RgbImage;
use imaging::Pixels;

use super::label::label;
use super::{NodeError, PipelineNode, TaskJob};

/// Encodes and labels.
pub(super) struct Postprocess;

#[async_trait]
impl PipelineNode for Postprocess {
    fn name(&self) -> &'static str {
        "postprocess"
    }

    async fn run(&self, job: &mut TaskJob) -> Result<(), NodeError> {
        let drawn = std::mem::take(&mut job.drawn);
        for (index, image) in drawn.into_iter().enumerate() {
            let file = file(job, index, image).await?;
            job.files.push(Bytes::from(file));
        }
        Ok(())
    }
}

/// The file of picture `index`, made off the runtime's threads.
pub(super) async fn file(
    job: &TaskJob,
    index: usize,
    image: RgbImage,
) -> Result<Vec<u8>, NodeError> {
    let request = &job.planned[index].request;
    let label = label(
        &job.worker.content_producer,
        job.served.model.digest(),
        request,
    );
    let encoding = job.encoding;
    let work = move || {
        let RgbImage {
            width,
            height,
            pixels,
        } = image;
        imaging::encode(
            Pixels {
                width,
                height,
                rgb: &pixels,
            },
            &encoding,
            &label,
        )
    };
    let file = tokio::task::spawn_blocking(work).await;
    let file = file.map_err(|source| NodeError::OffRuntime {
        doing: "encoding a picture",
        source,
    })?;
    file.map_err(|source| NodeError::Encode { index, source })
}
