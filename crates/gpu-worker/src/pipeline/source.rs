//! The picture that a task begins from: read, decoded, and brought to the task's size.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use contract::limits::{MAX_SOURCE_BYTES, MAX_SOURCE_PIXELS};
use contract::v1::Source;
use diffusion::{Mask, Request, RgbImage};
use lifecycle::chain;
use storage::{Key, StorageError};

use super::{NodeError, TaskJob};
use crate::retry::{unless_stopped, until_stopped};

/// Lets every picture of the task begin from `source`.
pub(super) async fn begin_from(
    job: &TaskJob,
    source: &Source,
    requests: &mut [Request],
) -> Result<(), NodeError> {
    let image = read(job, &source.image_key).await?;
    let mask = match source.mask_key.as_str() {
        "" => None,
        key => Some(read(job, key).await?),
    };
    let size = (job.request.width, job.request.height);
    // Decoding and scaling leave the runtime's threads.
    let work = move || prepare(&image, mask.as_deref(), size);
    let prepared = tokio::task::spawn_blocking(work).await;
    let (image, mask) = prepared.map_err(|source| NodeError::OffRuntime {
        doing: "preparing the picture to begin from",
        source,
    })??;
    let (image, mask) = (Arc::new(image), mask.map(Arc::new));
    for request in requests {
        request.image = Some(Arc::clone(&image));
        request.mask = mask.clone();
        request.strength = source.strength;
    }
    Ok(())
}

/// One file, for as long as patience lasts: a store that is away is no fault of the task, nor is it where it takes no pictures.
async fn read(job: &TaskJob, key: &str) -> Result<Bytes, NodeError> {
    let key = Key::stored(key).ok_or_else(|| wrong(format!("{key:?} is not the key of a file")))?;
    let (storage, stop) = (&job.worker.storage, &job.worker.stop);
    let reading = until_stopped(stop, "reading a picture to begin from", || async {
        match storage.get(&key, MAX_SOURCE_BYTES).await {
            Err(error @ StorageError::Request { .. }) => Err(error),
            answer => Ok(answer),
        }
    });
    let patience = job.worker.output.patience.duration();
    let limit = if patience.is_zero() {
        Duration::MAX
    } else {
        patience
    };
    let read = unless_stopped(stop, tokio::time::timeout(limit, reading)).await?;
    match read.map_err(|_| NodeError::SourceAway { patience })?? {
        Ok(file) => Ok(file),
        Err(error @ (StorageError::Missing { .. } | StorageError::TooLarge { .. })) => {
            Err(wrong(chain(&error)))
        }
        Err(error) => Err(NodeError::Source(error)),
    }
}

fn prepare(
    image: &[u8],
    mask: Option<&[u8]>,
    (width, height): (u32, u32),
) -> Result<(RgbImage, Option<Mask>), NodeError> {
    let undecoded = |error: imaging::DecodeError| wrong(chain(&error));
    let unfit = || wrong("cannot be brought to the size of the picture".to_owned());
    let (w, h, rgb) = imaging::decode(image, MAX_SOURCE_PIXELS).map_err(undecoded)?;
    let pixels = imaging::fit(w, h, rgb, (width, height)).ok_or_else(unfit)?;
    let image = RgbImage {
        width,
        height,
        pixels,
    };
    let Some(mask) = mask else {
        return Ok((image, None));
    };
    let (mw, mh, values) = imaging::decode_mask(mask, MAX_SOURCE_PIXELS).map_err(undecoded)?;
    if (mw, mh) != (w, h) {
        let problem = format!("has a mask of {mw}x{mh} pixels for a picture of {w}x{h}");
        return Err(wrong(problem));
    }
    let values = imaging::fit_mask(mw, mh, values, (width, height)).ok_or_else(unfit)?;
    let mask = Mask {
        width,
        height,
        values,
    };
    Ok((image, Some(mask)))
}

fn wrong(problem: String) -> NodeError {
    NodeError::Request {
        field: "source",
        problem,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(width: u32, height: u32) -> Vec<u8> {
        let rgb = vec![200; (width * height * 3) as usize];
        let pixels = imaging::Pixels {
            width,
            height,
            rgb: &rgb,
        };
        let png = imaging::Encoding {
            format: imaging::Format::Png,
            quality: 90,
        };
        let label = super::super::label::label("test", "0", &Request::default(), false);
        imaging::encode(pixels, &png, &label).unwrap()
    }

    #[test]
    fn a_picture_is_brought_to_the_tasks_size() {
        let (image, mask) = prepare(&file(40, 20), None, (64, 96)).unwrap();
        assert_eq!((image.width, image.height), (64, 96));
        assert_eq!(image.pixels, vec![200; 64 * 96 * 3]);
        assert_eq!(mask, None);
    }

    #[test]
    fn what_is_no_picture_or_no_mask_is_the_callers_fault() {
        use super::super::Verdict;
        let verdict = Verdict::Fail(contract::ErrorCode::InvalidArgument);
        let error = prepare(b"x", None, (64, 64)).unwrap_err();
        assert_eq!(error.verdict(), verdict);
        // It has no transparency.
        let error = prepare(&file(8, 8), Some(&file(8, 8)), (64, 64)).unwrap_err();
        assert_eq!(error.verdict(), verdict);
        assert!(error.to_string().contains("alpha"), "{error}");
    }
}
