//! From a file to pixels.

use std::io::Cursor;

use image::{DynamicImage, ImageDecoder, ImageFormat, ImageReader, Limits};

use crate::container::{self, Container};
use crate::vp8l::{self, MAX_CODES_BYTES};
use crate::{DecodeError, Format, InspectError};

/// The most scans of a JPEG that are decoded. Encoders write about ten; each one more costs a pass over the whole
/// picture for a few bytes of file.
const MAX_SCANS: usize = 100;
/// The most that a decoder needs for a pixel, in bytes: four channels of 16 bits, twice (its own rows and the result).
const MAX_BYTES_PER_PIXEL: u64 = 16;
/// What a decoder may take beyond the file and the pixels, in bytes: tables, an unpacked colour profile.
const SPARE_BYTES: u64 = 4 << 20;

/// Decodes a still picture of at most `max_pixels` pixels to width, height and sRGB bytes `[height, width, 3]`.
///
/// Grey becomes RGB, 16 bits become 8, alpha is dropped; colour profiles and orientation are not applied. A JPEG
/// whose data ends early decodes as far as it goes.
///
/// # Errors
/// The file is not one we read, is too large (found out before memory is taken for it), is animated, or is damaged.
pub fn decode(file: &[u8], max_pixels: u64) -> Result<(u32, u32, Vec<u8>), DecodeError> {
    let found = container::scan(file).map_err(DecodeError::Inspect)?;
    let image = checked(&found, max_pixels)?;
    Ok((found.width, found.height, image.into_rgb8().into_raw()))
}

/// Decodes the transparency of a still picture of at most `max_pixels` pixels to width, height and a byte a pixel, 255
/// where it is fully transparent: a mask as OpenAI's API has it.
///
/// # Errors
/// As [`decode`], or the picture has no alpha channel.
pub fn decode_mask(file: &[u8], max_pixels: u64) -> Result<(u32, u32, Vec<u8>), DecodeError> {
    let found = container::scan(file).map_err(DecodeError::Inspect)?;
    let image = checked(&found, max_pixels)?;
    if !image.color().has_alpha() {
        return Err(DecodeError::NoAlpha);
    }
    let alpha = image.into_rgba8();
    let mask = alpha.pixels().map(|pixel| 255 - pixel.0[3]).collect();
    Ok((found.width, found.height, mask))
}

fn checked(found: &Container<'_>, max_pixels: u64) -> Result<DynamicImage, DecodeError> {
    let (width, height) = (found.width, found.height);
    let pixels = u64::from(width) * u64::from(height);
    if pixels > max_pixels {
        return Err(DecodeError::TooLarge {
            width,
            height,
            max_pixels,
        });
    }
    if found.animated {
        return Err(DecodeError::Animated);
    }
    match found.format {
        Format::Jpeg => check_scans(found.body)?,
        Format::WebP => check_codes(found)?,
        Format::Png => {}
    }
    decode_pixels(found, pixels)
}

fn check_codes(found: &Container<'_>) -> Result<(), DecodeError> {
    let format = found.format;
    let what = "its lossless stream ends early or contradicts itself";
    let bytes = vp8l::codes_bytes(found.body, found.width, found.height);
    let bytes = bytes.ok_or(DecodeError::Inspect(InspectError::Damaged { format, what }))?;
    if bytes > MAX_CODES_BYTES {
        let limit = MAX_CODES_BYTES;
        return Err(DecodeError::Codes { limit });
    }
    Ok(())
}

fn check_scans(file: &[u8]) -> Result<(), DecodeError> {
    // Entropy-coded data escapes its 0xff bytes, so outside of metadata this pair is always a scan's marker.
    let scans = file.windows(2).filter(|pair| pair == b"\xff\xda").count();
    if scans > MAX_SCANS {
        let limit = MAX_SCANS;
        return Err(DecodeError::Scans { scans, limit });
    }
    Ok(())
}

fn decode_pixels(found: &Container<'_>, pixels: u64) -> Result<DynamicImage, DecodeError> {
    let format = found.format;
    let failed = |source| DecodeError::Pixels { format, source };

    let mut limits = Limits::no_limits();
    limits.max_image_width = Some(found.width);
    limits.max_image_height = Some(found.height);
    limits.max_alloc = Some(
        pixels
            .saturating_mul(MAX_BYTES_PER_PIXEL)
            .saturating_add(found.body.len() as u64)
            .saturating_add(SPARE_BYTES),
    );

    let kind = match format {
        Format::Png => ImageFormat::Png,
        Format::Jpeg => ImageFormat::Jpeg,
        Format::WebP => ImageFormat::WebP,
    };
    let mut reader = ImageReader::with_format(Cursor::new(found.body), kind);
    reader.limits(limits);
    let decoder = reader.into_decoder().map_err(failed)?;
    if decoder.dimensions() != (found.width, found.height) {
        return Err(DecodeError::SizeMismatch { format });
    }
    DynamicImage::from_decoder(decoder).map_err(failed)
}
