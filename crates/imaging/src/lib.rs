//! Pixels after the engine: encoding and labels.
//!
//! Four calls, all of them pure functions of their input: [`show_label`] draws into the pixels that a machine drew them, where
//! that is to be seen; [`encode`] makes the file that a caller gets, with the
//! label that says so in its metadata; [`inspect`] reads size and label back; [`decode`] turns a file that a caller
//! sent into pixels. They compute, so they belong on a thread of their own, not on a runtime's; writing a picture of some thousands of
//! pixels takes about as long as going there.
//!
//! Invariants:
//! * The same pixels, encoding and label give the same bytes: a retry that stores its picture again stores the same one.
//! * No file leaves [`encode`] without its label.
//! * Files given to [`inspect`] and [`decode`] are hostile until proven otherwise: what they claim is checked against
//!   what they hold before memory is taken for it, and the answer is an error, not a panic.

mod container;
mod decode;
mod encode;
mod error;
mod fit;
mod inspect;
mod label;
mod visible;
mod vp8l;
mod xmp;

use std::fmt;
use std::str::FromStr;

pub use decode::{decode, decode_mask};
pub use encode::encode;
pub use error::{DecodeError, EncodeError, InspectError, UnknownFormat};
pub use fit::{fit, fit_mask};
pub use inspect::{Inspection, inspect};
pub use label::Label;
pub use visible::show_label;

/// A file format that the platform writes and reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// Lossless (ISO/IEC 15948).
    Png,
    /// Lossy (ITU-T T.81), written as baseline without chroma subsampling.
    Jpeg,
    /// Lossless as written here: VP8L inside an extended container (RFC 9649). Lossy files are read.
    WebP,
}

impl Format {
    /// What a file name ends in, without the dot: `png`, `jpg`, `webp`.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Png => "png",
            Self::Jpeg => "jpg",
            Self::WebP => "webp",
        }
    }

    /// The media type, as in `Content-Type`.
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Png => "image/png",
            Self::Jpeg => "image/jpeg",
            Self::WebP => "image/webp",
        }
    }

    /// The longest side that the format can state, in pixels.
    pub fn max_side(self) -> u32 {
        match self {
            Self::Png => i32::MAX.unsigned_abs(),
            Self::Jpeg => 65_535,
            // The bitstream could say 16384, which other readers refuse.
            Self::WebP => 16_383,
        }
    }
}

/// The name as the public interfaces spell it: `png`, `jpeg`, `webp`.
impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Png => "png",
            Self::Jpeg => "jpeg",
            Self::WebP => "webp",
        })
    }
}

impl FromStr for Format {
    type Err = UnknownFormat;

    fn from_str(name: &str) -> Result<Self, UnknownFormat> {
        match name {
            "png" => Ok(Self::Png),
            "jpeg" => Ok(Self::Jpeg),
            "webp" => Ok(Self::WebP),
            _ => Err(UnknownFormat),
        }
    }
}

/// How to write a picture.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Encoding {
    /// The file format.
    pub format: Format,
    /// JPEG's quality on libjpeg's scale, 1 (smallest) to 100 (best). Without meaning for PNG and WebP, which are
    /// lossless here.
    pub quality: u8,
}

/// A picture in memory, borrowed.
#[derive(Debug, Clone, Copy)]
pub struct Pixels<'a> {
    /// Columns, at least 1.
    pub width: u32,
    /// Rows, at least 1.
    pub height: u32,
    /// sRGB, 8 bits a channel, row by row from the top left: `[height, width, 3]`.
    pub rgb: &'a [u8],
}
