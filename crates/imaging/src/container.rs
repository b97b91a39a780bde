//! The outer form of the three formats: parts with a length each, walked once from the front.

use crate::{Format, InspectError, xmp};

/// What the walk found.
#[derive(Debug)]
pub(crate) struct Container<'a> {
    pub(crate) format: Format,
    pub(crate) width: u32,
    pub(crate) height: u32,
    /// The first XMP packet.
    pub(crate) packet: Option<Packet<'a>>,
    /// The file without what may follow its end.
    pub(crate) body: &'a [u8],
    /// It has frames (WebP).
    pub(crate) animated: bool,
}

/// Metadata as the file holds it.
#[derive(Debug)]
pub(crate) enum Packet<'a> {
    Plain(&'a [u8]),
    Compressed,
}

const PNG_SIGNATURE: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Walks a file's parts.
pub(crate) fn scan(file: &[u8]) -> Result<Container<'_>, InspectError> {
    if file.starts_with(PNG_SIGNATURE) {
        png(file)
    } else if file.starts_with(&[0xff, 0xd8, 0xff]) {
        jpeg(file)
    } else if file.starts_with(b"RIFF") && file.get(8..12) == Some(b"WEBP") {
        webp(file)
    } else {
        Err(InspectError::UnknownFormat)
    }
}

/// What is left of a file, taken from the front.
struct Rest<'a> {
    bytes: &'a [u8],
    format: Format,
}

impl<'a> Rest<'a> {
    fn take(&mut self, length: usize) -> Result<&'a [u8], InspectError> {
        let format = self.format;
        let (taken, bytes) = self
            .bytes
            .split_at_checked(length)
            .ok_or(InspectError::CutShort { format })?;
        self.bytes = bytes;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], InspectError> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn damaged<T>(&self, what: &'static str) -> Result<T, InspectError> {
        let format = self.format;
        Err(InspectError::Damaged { format, what })
    }
}

/// Chunks: length (big endian), type, data, checksum. The decoder checks checksums.
fn png(file: &[u8]) -> Result<Container<'_>, InspectError> {
    let mut rest = Rest {
        bytes: &file[PNG_SIGNATURE.len()..],
        format: Format::Png,
    };
    let (mut size, mut packet, mut animated) = (None::<[u32; 2]>, None, false);
    loop {
        let length = u32::from_be_bytes(rest.array()?) as usize;
        let kind: [u8; 4] = rest.array()?;
        let data = rest.take(length)?;
        rest.take(4)?;
        match (&kind, size) {
            (b"IHDR", None) => match *data {
                [a, b, c, d, e, f, g, h, ..] if data.len() == 13 => {
                    let sides = [[a, b, c, d], [e, f, g, h]].map(u32::from_be_bytes);
                    if sides
                        .iter()
                        .any(|side| !(1..=Format::Png.max_side()).contains(side))
                    {
                        return rest.damaged("a side is zero or too long");
                    }
                    size = Some(sides);
                }
                _ => return rest.damaged("IHDR is not 13 bytes long"),
            },
            (_, None) => return rest.damaged("it does not begin with IHDR"),
            (b"IHDR", Some(_)) => return rest.damaged("it has two IHDR chunks"),
            (b"iTXt", _) if packet.is_none() => packet = itxt(data),
            // PNG, third edition, 11.3.6.1: it may say one frame, and then there is nothing to move.
            (b"acTL", _) => animated = !data.starts_with(&[0, 0, 0, 1]),
            (b"IEND", Some([width, height])) => {
                return Ok(Container {
                    format: Format::Png,
                    width,
                    height,
                    packet,
                    body: &file[..file.len() - rest.bytes.len()],
                    animated,
                });
            }
            _ => {}
        }
    }
}

/// The XMP packet of an `iTXt` chunk: keyword, 0, compressed?, method, language, 0, translated keyword, 0, text.
fn itxt(data: &[u8]) -> Option<Packet<'_>> {
    let data = data.strip_prefix(xmp::PNG_KEYWORD.as_bytes())?;
    let (head, mut text) = data.split_at_checked(3)?;
    if head[0] != 0 {
        return None;
    }
    if head[1] != 0 {
        return Some(Packet::Compressed);
    }
    for _ in 0..2 {
        let zero = text.iter().position(|&byte| byte == 0)?;
        text = &text[zero + 1..];
    }
    Some(Packet::Plain(text))
}

/// Segments: marker, length (big endian, counting itself), data; up to the first scan.
fn jpeg(file: &[u8]) -> Result<Container<'_>, InspectError> {
    let mut rest = Rest {
        bytes: &file[2..],
        format: Format::Jpeg,
    };
    let (mut size, mut packet) = (None, None);
    loop {
        if rest.array()? != [0xff] {
            return rest.damaged("a marker is missing");
        }
        let mut marker = [0xff];
        // Any number of fill bytes may come before a marker.
        while marker == [0xff] {
            marker = rest.array()?;
        }
        match marker[0] {
            // Markers without data.
            0x01 | 0xd0..=0xd7 => continue,
            0xd8 | 0xd9 => return rest.damaged("it has no scan"),
            _ => {}
        }
        let length = usize::from(u16::from_be_bytes(rest.array()?));
        let Some(length) = length.checked_sub(2) else {
            return rest.damaged("a segment is shorter than its length field");
        };
        let data = rest.take(length)?;
        match marker[0] {
            0xda => break,
            0xe1 if packet.is_none() => packet = data.strip_prefix(xmp::JPEG_SIGNATURE),
            // Start of frame, less the three numbers in its range that mean something else.
            0xc0..=0xcf if !matches!(marker[0], 0xc4 | 0xc8 | 0xcc) => {
                let &[_, a, b, c, d, ..] = data else {
                    return rest.damaged("its frame header is short");
                };
                let sides = [[c, d], [a, b]].map(|side| u32::from(u16::from_be_bytes(side)));
                if size.is_some() || sides.contains(&0) {
                    return rest.damaged("its frame header states no size, or a second one");
                }
                size = Some(sides);
            }
            _ => {}
        }
    }
    let Some([width, height]) = size else {
        return rest.damaged("its scan comes before its frame header");
    };
    Ok(Container {
        format: Format::Jpeg,
        width,
        height,
        packet: packet.map(Packet::Plain),
        body: file,
        animated: false,
    })
}

/// RIFF chunks: type, length (little endian), data, a byte of padding after an odd length.
fn webp(file: &[u8]) -> Result<Container<'_>, InspectError> {
    let format = Format::WebP;
    let [_, _, _, _, a, b, c, d, ..] = *file else {
        return Err(InspectError::CutShort { format });
    };
    let end = u32::from_le_bytes([a, b, c, d]) as usize;
    let body = end
        .checked_add(8)
        .and_then(|end| file.get(..end))
        .ok_or(InspectError::CutShort { format })?;
    let mut rest = Rest {
        bytes: body,
        format,
    };
    rest.take(12)?;

    let (mut canvas, mut frame, mut packet, mut animated) = (None, None, None, false);
    while !rest.bytes.is_empty() {
        let kind: [u8; 4] = rest.array()?;
        let length = u32::from_le_bytes(rest.array()?) as usize;
        let data = rest.take(length)?;
        // Some writers leave out the last chunk's padding.
        if length % 2 == 1 && !rest.bytes.is_empty() {
            rest.take(1)?;
        }
        match &kind {
            b"VP8X" if canvas.is_none() && frame.is_none() => {
                let &[flags, _, _, _, a, b, c, d, e, f] = data else {
                    return rest.damaged("its VP8X header is not 10 bytes long");
                };
                animated = flags & 2 != 0;
                canvas = Some([[a, b, c, 0], [d, e, f, 0]].map(|s| u32::from_le_bytes(s) + 1));
            }
            b"VP8 " | b"VP8L" => {
                let Some(size) = webp_frame(&kind, data) else {
                    return rest.damaged("its bitstream header is wrong");
                };
                // A decoder takes memory by the frame's size, and callers rely on the canvas's.
                if *frame.get_or_insert(size) != size || canvas.is_some_and(|it| it != size) {
                    return rest.damaged("it states two different sizes");
                }
            }
            b"ANMF" => animated = true,
            b"XMP " if packet.is_none() => packet = Some(Packet::Plain(data)),
            _ => {}
        }
    }
    let Some([width, height]) = canvas.or(frame) else {
        return rest.damaged("it has no picture");
    };
    if frame.is_none() && !animated {
        return rest.damaged("it has no picture");
    }
    Ok(Container {
        format,
        width,
        height,
        packet,
        body,
        animated,
    })
}

/// Width and height in the head of a lossy (RFC 6386, 9.1) or lossless (RFC 9649, 3.4) bitstream.
fn webp_frame(kind: &[u8; 4], data: &[u8]) -> Option<[u32; 2]> {
    let sides = match (kind, data) {
        (b"VP8 ", &[_, _, _, 0x9d, 0x01, 0x2a, a, b, c, d, ..]) => {
            [[a, b], [c, d]].map(|side| u32::from(u16::from_le_bytes(side) & 0x3fff))
        }
        (b"VP8L", &[0x2f, a, b, c, d, ..]) => {
            let bits = u32::from_le_bytes([a, b, c, d]);
            [bits, bits >> 14].map(|side| (side & 0x3fff) + 1)
        }
        _ => return None,
    };
    (!sides.contains(&0)).then_some(sides)
}
