//! From pixels to a labelled file.

use image::ExtendedColorType;
use image::codecs::jpeg::JpegEncoder;

use crate::label::Label;
use crate::{EncodeError, Encoding, Format, Pixels, xmp};

/// The file for `pixels`, with `label` in its XMP metadata. The same input gives the same bytes.
///
/// PNG is compressed fast rather than small; JPEG keeps full chroma resolution; WebP is lossless.
///
/// # Errors
/// A size that the format cannot hold, a buffer that does not match it, a quality or a label out of range.
pub fn encode(
    pixels: Pixels<'_>,
    encoding: &Encoding,
    label: &Label,
) -> Result<Vec<u8>, EncodeError> {
    check(&pixels, encoding)?;
    let packet = xmp::write(label)?;
    match encoding.format {
        Format::Png => png(&pixels, packet),
        Format::Jpeg => jpeg(&pixels, encoding.quality, &packet),
        Format::WebP => webp(&pixels, packet),
    }
}

fn check(pixels: &Pixels<'_>, encoding: &Encoding) -> Result<(), EncodeError> {
    let &Pixels { width, height, rgb } = pixels;
    let format = encoding.format;
    let sides = 1..=format.max_side();
    if !sides.contains(&width) || !sides.contains(&height) {
        return Err(EncodeError::Dimensions {
            format,
            width,
            height,
        });
    }
    // Two sides below 2^31 and a factor of 3 stay below 2^64.
    if u64::from(width) * u64::from(height) * 3 != rgb.len() as u64 {
        return Err(EncodeError::BufferLength {
            width,
            height,
            given: rgb.len(),
        });
    }
    if format == Format::Jpeg && !(1..=100).contains(&encoding.quality) {
        return Err(EncodeError::Quality {
            quality: encoding.quality,
        });
    }
    Ok(())
}

fn png(pixels: &Pixels<'_>, packet: String) -> Result<Vec<u8>, EncodeError> {
    let write = |file: &mut Vec<u8>| -> Result<(), png::EncodingError> {
        let mut encoder = png::Encoder::new(file, pixels.width, pixels.height);
        encoder.set_color(png::ColorType::Rgb);
        encoder.set_depth(png::BitDepth::Eight);
        encoder.set_compression(png::Compression::Fast);
        // Chunks that are added here come before the pixels, where readers that stop early still see them.
        encoder.add_itxt_chunk(xmp::PNG_KEYWORD.to_owned(), packet)?;
        let mut writer = encoder.write_header()?;
        writer.write_image_data(pixels.rgb)?;
        writer.finish()
    };
    let mut file = Vec::new();
    write(&mut file).map_err(EncodeError::Png)?;
    Ok(file)
}

fn jpeg(pixels: &Pixels<'_>, quality: u8, packet: &str) -> Result<Vec<u8>, EncodeError> {
    let mut file = Vec::new();
    JpegEncoder::new_with_quality(&mut file, quality)
        .encode(
            pixels.rgb,
            pixels.width,
            pixels.height,
            ExtendedColorType::Rgb8,
        )
        .map_err(EncodeError::Jpeg)?;

    // The encoder knows no XMP, so its segment is put in afterwards: behind SOI and JFIF's APP0, which must come first.
    let payload = xmp::JPEG_SIGNATURE.len() + packet.len();
    // xmp::write keeps the packet within MAX_WRITTEN; were it ever longer, a wrong length must not be written.
    let length = u16::try_from(payload + 2).map_err(|_| EncodeError::LabelLength {
        bytes: packet.len(),
        limit: xmp::MAX_WRITTEN,
    })?;
    let at = match file[..] {
        [_, _, 0xff, 0xe0, high, low, ..] => 4 + usize::from(u16::from_be_bytes([high, low])),
        _ => 2,
    };
    let mut segment = Vec::with_capacity(4 + payload);
    segment.extend_from_slice(&[0xff, 0xe1]);
    segment.extend_from_slice(&length.to_be_bytes());
    segment.extend_from_slice(xmp::JPEG_SIGNATURE);
    segment.extend_from_slice(packet.as_bytes());
    file.splice(at..at, segment);
    Ok(file)
}

fn webp(pixels: &Pixels<'_>, packet: String) -> Result<Vec<u8>, EncodeError> {
    let mut file = Vec::new();
    let mut encoder = image_webp::WebPEncoder::new(&mut file);
    encoder.set_xmp_metadata(packet.into_bytes());
    encoder
        .encode(
            pixels.rgb,
            pixels.width,
            pixels.height,
            image_webp::ColorType::Rgb8,
        )
        .map_err(EncodeError::WebP)?;
    Ok(file)
}
