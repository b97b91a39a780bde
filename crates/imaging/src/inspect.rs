//! What a file says about itself.

use crate::container::{self, Packet};
use crate::label::Label;
use crate::{Format, InspectError, xmp};

/// What a file says about itself, without its pixels.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Inspection {
    /// The file format.
    pub format: Format,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
    /// The AIGC label, where the file has one.
    pub label: Option<Label>,
}

/// Reads a file's format, size and label. Takes time and memory by the length of the file, never by the size that the
/// file states; does not look at pixels, so a file that passes may still not decode.
///
/// # Errors
/// The file is of no format we know, is cut short or damaged in what was read, or has metadata that cannot be read: a
/// label that is there but unreadable is not the same as no label.
pub fn inspect(file: &[u8]) -> Result<Inspection, InspectError> {
    let found = container::scan(file)?;
    let label = match found.packet {
        None => None,
        Some(Packet::Plain(packet)) => xmp::read(packet)?,
        Some(Packet::Compressed) => {
            return Err(InspectError::Metadata(
                "it is compressed, which XMP in PNG may not be",
            ));
        }
    };
    Ok(Inspection {
        format: found.format,
        width: found.width,
        height: found.height,
        label,
    })
}
