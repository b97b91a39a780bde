//! What can go wrong with pictures, by operation.

use crate::Format;

/// The name is not one of [`Format`]'s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the format must be png, jpeg or webp")]
pub struct UnknownFormat;

/// Why a picture could not be encoded.
#[derive(Debug, thiserror::Error)]
pub enum EncodeError {
    /// A side is zero or longer than the format can state.
    #[error("{format} cannot hold {width}×{height} pixels: each side must be 1 to {}", format.max_side())]
    Dimensions {
        /// The format asked for.
        format: Format,
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// The buffer is not `width × height × 3` bytes long.
    #[error("{width}×{height} RGB pixels do not fill {given} bytes exactly")]
    BufferLength {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The buffer's length in bytes.
        given: usize,
    },
    /// JPEG's quality is out of range.
    #[error("quality {quality} must be 1 to 100")]
    Quality {
        /// What was given.
        quality: u8,
    },
    /// The label cannot be written as JSON.
    #[error("cannot write the label as JSON")]
    Label(#[source] serde_json::Error),
    /// The label's metadata packet does not fit a file.
    #[error("the label takes {bytes} bytes of metadata, more than the {limit} that fit")]
    LabelLength {
        /// The packet's length.
        bytes: usize,
        /// The longest packet that every format can hold.
        limit: usize,
    },
    /// The PNG encoder failed.
    #[error("cannot encode as PNG")]
    Png(#[source] png::EncodingError),
    /// The JPEG encoder failed.
    #[error("cannot encode as JPEG")]
    Jpeg(#[source] image::ImageError),
    /// The WebP encoder failed.
    #[error("cannot encode as WebP")]
    WebP(#[source] image_webp::EncodingError),
}

/// Why a file could not be inspected.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// The first bytes are those of no format that we read.
    #[error("the file is neither PNG nor JPEG nor WebP")]
    UnknownFormat,
    /// The file ends inside one of its parts.
    #[error("the {format} file is cut short")]
    CutShort {
        /// What it began as.
        format: Format,
    },
    /// The file breaks its format's rules.
    #[error("the {format} file is damaged: {what}")]
    Damaged {
        /// What it began as.
        format: Format,
        /// The rule that it breaks.
        what: &'static str,
    },
    /// The metadata is longer than we read.
    #[error("the file's XMP metadata is {bytes} bytes long, more than the {limit} that are read")]
    MetadataLength {
        /// The packet's length.
        bytes: usize,
        /// The longest that is read.
        limit: usize,
    },
    /// The metadata is not readable as XMP: what is wrong with it.
    #[error("the file's XMP metadata cannot be read: {0}")]
    Metadata(&'static str),
    /// There is a label, but its JSON is not one.
    #[error("the file's AIGC label cannot be read")]
    Label(#[source] serde_json::Error),
}

/// Why a file could not be decoded.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The file's outer form cannot be read.
    #[error("cannot read the picture's size")]
    Inspect(#[source] InspectError),
    /// A mask without an alpha channel says nothing.
    #[error(
        "the picture has no alpha channel, whose transparent part would be what is painted anew"
    )]
    NoAlpha,
    /// The picture is larger than allowed. Nothing was allocated for it.
    #[error("the picture has {width}×{height} pixels, more than the {max_pixels} allowed")]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// The limit given.
        max_pixels: u64,
    },
    /// The file moves; we decode stills.
    #[error("the picture is animated")]
    Animated,
    /// A JPEG with more scans than any encoder writes: small to send, long to decode.
    #[error("the JPEG has {scans} scans, more than the {limit} allowed")]
    Scans {
        /// Start-of-scan markers in the file.
        scans: usize,
        /// The most that are decoded.
        limit: usize,
    },
    /// A WebP with more or longer prefix codes than any encoder writes: small to send, gigabytes to decode.
    #[error("the WebP has prefix codes that would take more than the {limit} bytes allowed")]
    Codes {
        /// The most that they may take.
        limit: u64,
    },
    /// The pixel data cannot be decoded.
    #[error("cannot decode the {format} pixels")]
    Pixels {
        /// The file's format.
        format: Format,
        /// What the decoder says.
        #[source]
        source: image::ImageError,
    },
    /// The decoder found another size than the file's header states.
    #[error("the {format} file states two different sizes")]
    SizeMismatch {
        /// The file's format.
        format: Format,
    },
}
