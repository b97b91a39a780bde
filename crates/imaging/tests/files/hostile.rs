//! What `inspect` and `decode` do with files that nobody should send.

use imaging::{DecodeError, Format, InspectError, decode, inspect};
use proptest::prelude::*;

use crate::{FORMATS, file};

/// A file that states `side × side` pixels and holds those of a small one.
fn boastful(format: Format, side: u16) -> Vec<u8> {
    let mut file = file(format, 8, 8);
    let find = |what: &[u8]| file.windows(what.len()).position(|window| window == what);
    match format {
        Format::Png => {
            let at = find(b"IHDR").unwrap() + 4;
            for side_at in [at, at + 4] {
                file[side_at..side_at + 4].copy_from_slice(&u32::from(side).to_be_bytes());
            }
            let crc = crc32(&file[at - 4..at + 13]);
            file[at + 13..at + 17].copy_from_slice(&crc.to_be_bytes());
        }
        Format::Jpeg => {
            let at = find(&[0xff, 0xc0]).unwrap() + 5;
            for side_at in [at, at + 2] {
                file[side_at..side_at + 2].copy_from_slice(&side.to_be_bytes());
            }
        }
        Format::WebP => {
            let at = find(b"VP8X").unwrap() + 12;
            let canvas = (u32::from(side) - 1).to_le_bytes();
            file[at..at + 3].copy_from_slice(&canvas[..3]);
            file[at + 3..at + 6].copy_from_slice(&canvas[..3]);
            let at = file
                .windows(4)
                .position(|window| window == b"VP8L")
                .unwrap()
                + 9;
            let side = u32::from(side) - 1;
            file[at..at + 4].copy_from_slice(&(side | side << 14).to_le_bytes());
        }
    }
    file
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0, |crc, &byte| {
        (0..8).fold(crc ^ u32::from(byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
        })
    })
}

#[test]
fn a_tiny_file_that_states_a_huge_picture_is_refused_before_memory_is_taken() {
    for format in FORMATS {
        let side = u16::try_from(format.max_side().min(60_000)).unwrap();
        let file = boastful(format, side);
        assert!(file.len() < 4096);
        assert_eq!(inspect(&file).unwrap().width, u32::from(side), "{format}");
        let result = decode(&file, 4 << 20);
        assert!(
            matches!(
                result,
                Err(DecodeError::TooLarge {
                    max_pixels: 0x40_0000,
                    ..
                })
            ),
            "{format}: {result:?}"
        );
    }
}

#[test]
fn a_picture_of_just_the_allowed_size_is_decoded() {
    for format in FORMATS {
        let file = file(format, 20, 10);
        assert!(decode(&file, 200).is_ok());
        assert!(matches!(
            decode(&file, 199),
            Err(DecodeError::TooLarge { .. })
        ));
    }
}

#[test]
fn a_webp_whose_frame_is_larger_than_its_canvas_is_refused() {
    let mut file = boastful(Format::WebP, 16_000);
    let at = file
        .windows(4)
        .position(|window| window == b"VP8X")
        .unwrap()
        + 12;
    file[at..at + 6].copy_from_slice(&[7, 0, 0, 7, 0, 0]);
    assert!(matches!(inspect(&file), Err(InspectError::Damaged { .. })));
    assert!(matches!(
        decode(&file, 1 << 20),
        Err(DecodeError::Inspect(_))
    ));
}

#[test]
fn an_animated_png_is_inspected_and_not_decoded() {
    let still = file(Format::Png, 8, 8);
    // Signature and IHDR; then how many frames there are, and how often they are shown.
    let (head, rest) = still.split_at(33);
    let frames = |count: u8| {
        let chunk = [
            0, 0, 0, 8, b'a', b'c', b'T', b'L', 0, 0, 0, count, 0, 0, 0, 0,
        ];
        // The checksum is the decoder's to look at, and it is not asked.
        [head, &chunk, &[0; 4], rest].concat()
    };
    assert!(inspect(&frames(2)).is_ok());
    assert!(matches!(decode(&frames(2), 64), Err(DecodeError::Animated)));
    assert!(!matches!(
        decode(&frames(1), 64),
        Err(DecodeError::Animated)
    ));
}

#[test]
fn an_animated_webp_is_inspected_and_not_decoded() {
    let mut file = file(Format::WebP, 8, 8);
    file[20] |= 2;
    assert!(inspect(&file).is_ok());
    assert!(matches!(decode(&file, 64), Err(DecodeError::Animated)));
}

#[test]
fn a_jpeg_of_many_scans_is_refused() {
    let mut file = file(Format::Jpeg, 8, 8);
    let scan = file
        .windows(2)
        .position(|pair| pair == [0xff, 0xda])
        .unwrap();
    let again = file[scan..file.len() - 2].repeat(101);
    file.splice(scan..scan, again);
    let refused = matches!(
        decode(&file, 64),
        Err(DecodeError::Scans { scans: 102, .. })
    );
    assert!(refused);
}

/// A stream of bits, from the lowest of each byte.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    count: usize,
}

impl Bits {
    fn push(&mut self, value: u32, width: u32) -> &mut Self {
        for place in 0..width {
            if self.count.is_multiple_of(8) {
                self.bytes.push(0);
            }
            let bit = ((value >> place) & 1) as u8;
            *self.bytes.last_mut().unwrap() |= bit << (self.count % 8);
            self.count += 1;
        }
        self
    }

    /// A prefix code of one symbol, which takes no bits.
    fn only(&mut self, symbol: u32) -> &mut Self {
        self.push(0b101, 3).push(symbol, 8)
    }

    /// A prefix code of eleven symbols, the longest of ten bits (RFC 9649, 3.7.2.1.2).
    fn long(&mut self) -> &mut Self {
        // The code that it is written by: of the lengths 1 to 6 each in three bits, of 7 to 10 in four.
        self.push(0, 1).push(14 - 4, 4);
        for width in [0, 0, 0, 3, 3, 3, 3, 3, 0, 3, 4, 4, 4, 4] {
            self.push(width, 3);
        }
        self.push(1, 1).push(1, 3).push(11 - 2, 4);
        for code in 0..6_u32 {
            self.push(code.reverse_bits() >> 29, 3);
        }
        for code in [12_u32, 13, 14, 15, 15] {
            self.push(code.reverse_bits() >> 28, 4);
        }
        self
    }

    /// A lossless stream from its transforms on: none, no cache, and a picture of one row that says by its colours which group of codes
    /// is for which block of four pixels by four. What is in that picture follows, then the groups.
    fn groups() -> Self {
        let mut bits = Self::default();
        bits.push(0, 1).push(0, 1).push(1, 1).push(0, 3).push(0, 1);
        bits
    }
}

/// A WebP of these chunks.
fn webp(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, data) in chunks {
        body.extend_from_slice(*kind);
        body.extend_from_slice(&u32::try_from(data.len()).unwrap().to_le_bytes());
        body.extend_from_slice(data);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    let length = u32::try_from(body.len()).unwrap().to_le_bytes();
    [&b"RIFF"[..], &length, &body].concat()
}

/// A lossless picture of this size, with the stream that follows its sides.
fn lossless(width: u32, height: u32, stream: &Bits) -> Vec<u8> {
    let sides = (width - 1) | (height - 1) << 14;
    let data = [&[0x2f_u8][..], &sides.to_le_bytes(), &stream.bytes].concat();
    webp(&[(b"VP8L", &data)])
}

#[test]
fn a_webp_whose_codes_would_take_gigabytes_is_refused_before_they_are_unpacked() {
    let mut stream = Bits::groups();
    // One pixel of the largest number, so 65536 groups; enough of them are there.
    stream.only(255).only(255).only(0).only(0).only(0);
    for _ in 0..50_000 {
        stream.long();
    }
    let picture = lossless(4, 4, &stream);
    // The same as the transparency of a lossy one.
    let extended = [0x10, 0, 0, 0, 3, 0, 0, 3, 0, 0];
    let alpha = [&[1_u8][..], &stream.bytes].concat();
    let lossy = [0, 0, 0, 0x9d, 0x01, 0x2a, 4, 0, 4, 0];
    let transparent = webp(&[(b"VP8X", &extended), (b"ALPH", &alpha), (b"VP8 ", &lossy)]);
    for file in [picture, transparent] {
        assert!(file.len() < 1 << 20);
        assert!(inspect(&file).is_ok());
        assert!(matches!(decode(&file, 64), Err(DecodeError::Codes { .. })));
    }
}

#[test]
fn a_webp_with_a_group_of_codes_for_each_block_is_decoded() {
    let mut stream = Bits::groups();
    // Green, the number of the group, is 0 or 1, with a bit each; then the two pixels.
    stream.push(0b011, 3).push(0, 1).push(1, 8);
    stream.only(0).only(0).only(0).only(0);
    stream.push(0, 1).push(1, 1);
    for [red, green, blue] in [[20, 10, 30], [1, 200, 3]] {
        stream.only(green).only(red).only(blue).only(255).only(0);
    }
    let row = [[20, 10, 30].repeat(4), [1, 200, 3].repeat(4)].concat();
    let file = lossless(8, 4, &stream);
    assert_eq!(decode(&file, 64).unwrap(), (8, 4, row.repeat(4)));
    // It cannot be read to the end of its codes.
    let mut short = Bits::groups();
    short.only(255).only(255).only(0).only(0).only(0).long();
    let short = decode(&lossless(8, 4, &short), 64);
    assert!(matches!(short, Err(DecodeError::Inspect(_))));
}

#[test]
fn other_files_are_of_unknown_format() {
    for other in [
        &b""[..],
        b"\x89PNG",
        b"GIF89a",
        b"RIFF\0\0\0\0WAVE",
        b"\xff\xd8",
    ] {
        assert!(matches!(inspect(other), Err(InspectError::UnknownFormat)));
    }
}

#[test]
fn a_label_that_is_there_but_unreadable_is_not_taken_for_none() {
    for format in FORMATS {
        let mut file = file(format, 8, 8);
        let at = file
            .windows(11)
            .position(|window| window == b"&quot;Label")
            .unwrap();
        file[at + 6] = b'X';
        assert!(
            matches!(inspect(&file), Err(InspectError::Label(_))),
            "{format}"
        );
    }
}

#[test]
fn a_foreign_file_without_metadata_has_no_label() {
    let picture = image::RgbImage::new(5, 4);
    for (format, other) in [
        (Format::Png, image::ImageFormat::Png),
        (Format::Jpeg, image::ImageFormat::Jpeg),
        (Format::WebP, image::ImageFormat::WebP),
    ] {
        let mut file = std::io::Cursor::new(Vec::new());
        picture.write_to(&mut file, other).unwrap();
        let found = inspect(file.get_ref()).unwrap();
        assert_eq!(
            (found.format, found.width, found.height, found.label),
            (format, 5, 4, None)
        );
        assert!(decode(file.get_ref(), 20).is_ok());
    }
}

#[test]
fn grey_deep_and_transparent_pictures_become_plain_rgb() {
    let grey = image::DynamicImage::ImageLuma8(image::GrayImage::from_pixel(2, 1, [7].into()));
    let deep = image::ImageBuffer::from_pixel(2, 1, image::Rgb([7 * 257_u16, 8 * 257, 9 * 257]));
    let clear = image::RgbaImage::from_pixel(2, 1, [7, 8, 9, 0].into());
    for (picture, expected) in [
        (grey, [7, 7, 7]),
        (image::DynamicImage::ImageRgb16(deep), [7, 8, 9]),
        (image::DynamicImage::ImageRgba8(clear), [7, 8, 9]),
    ] {
        let mut file = std::io::Cursor::new(Vec::new());
        picture
            .write_to(&mut file, image::ImageFormat::Png)
            .unwrap();
        assert_eq!(
            decode(file.get_ref(), 2).unwrap(),
            (2, 1, expected.repeat(2))
        );
    }
}

#[test]
fn a_file_cut_anywhere_in_its_headers_is_an_error() {
    for format in FORMATS {
        let file = file(format, 8, 8);
        let headers = match format {
            Format::Jpeg => file
                .windows(2)
                .position(|pair| pair == [0xff, 0xda])
                .unwrap(),
            Format::Png | Format::WebP => file.len(),
        };
        for length in 0..headers {
            assert!(
                inspect(&file[..length]).is_err(),
                "{format} cut to {length}"
            );
            assert!(
                decode(&file[..length], 64).is_err(),
                "{format} cut to {length}"
            );
        }
    }
}

/// Neither call may panic, and what decodes is as large as it says.
fn try_both(file: &[u8]) -> Result<(), TestCaseError> {
    let found = inspect(file);
    if let Ok((width, height, rgb)) = decode(file, 1 << 16) {
        prop_assert!(u64::from(width) * u64::from(height) <= 1 << 16);
        prop_assert_eq!(rgb.len(), width as usize * height as usize * 3);
        if let Ok(found) = found {
            prop_assert_eq!((found.width, found.height), (width, height));
        }
    }
    Ok(())
}

fn any_format() -> impl Strategy<Value = Format> {
    proptest::sample::select(FORMATS.to_vec())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    #[test]
    fn truncated_files_never_panic(format in any_format(), cut: proptest::sample::Index) {
        let file = file(format, 24, 17);
        try_both(&file[..cut.index(file.len())])?;
    }

    #[test]
    fn mutated_files_never_panic(
        format in any_format(),
        changes in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..6),
    ) {
        let mut file = file(format, 24, 17);
        for (at, byte) in changes {
            let at = at.index(file.len());
            file[at] = byte;
        }
        try_both(&file)?;
    }

    #[test]
    fn spliced_files_never_panic(
        format in any_format(),
        from: proptest::sample::Index,
        to: proptest::sample::Index,
        insert in proptest::collection::vec(any::<u8>(), 0..40),
    ) {
        let mut file = file(format, 24, 17);
        let (from, to) = (from.index(file.len()), to.index(file.len()));
        file.splice(from.min(to)..from.max(to), insert);
        try_both(&file)?;
    }

    #[test]
    fn random_bytes_behind_a_signature_never_panic(
        signature in proptest::sample::select(vec![
            &b""[..], b"\x89PNG\r\n\x1a\n", b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR", b"\xff\xd8\xff", b"\xff\xd8\xff\xe1",
            b"RIFF\x40\0\0\0WEBP", b"RIFF\x40\0\0\0WEBPVP8X\x0a\0\0\0", b"RIFF\x40\0\0\0WEBPVP8L",
        ]),
        bytes in proptest::collection::vec(any::<u8>(), 0..200),
    ) {
        try_both(&[signature, &bytes].concat())?;
    }
}

/// Zeros that deflate packs as tightly as it can: 13 bits for 258 of them (RFC 1950 and 1951).
fn zeros_packed(bytes: usize) -> Vec<u8> {
    let (mut packed, mut bits, mut count) = (vec![0x78, 0xda], 0u32, 0);
    // Codes are sent from their highest bit, everything else from its lowest.
    let mut push = |value: u32, width: u32| {
        bits |= value << count;
        count += width;
        while count >= 8 {
            packed.push(bits as u8);
            bits >>= 8;
            count -= 8;
        }
    };
    // The last block, with the codes that the RFC fixes; a zero byte, and then copies of it: length 258, distance 1.
    push(1, 1);
    push(1, 2);
    push(0x30u32.reverse_bits() >> 24, 8);
    for _ in 0..bytes / 258 {
        push(0xc5u32.reverse_bits() >> 24, 8);
        push(0, 5);
    }
    // The end of the block, and of the last byte.
    push(0, 7);
    push(0, 8);
    packed
}

fn png_chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let checked = [&kind[..], data].concat();
    let length = u32::try_from(data.len()).unwrap().to_be_bytes();
    [&length[..], &checked, &crc32(&checked).to_be_bytes()].concat()
}

/// The most memory that this process has had, in bytes.
fn peak_memory() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok());
    kib.unwrap() * 1024
}

#[test]
fn a_small_file_that_unpacks_to_hundreds_of_megabytes_takes_no_memory_for_them() {
    const UNPACKED: usize = 400 << 20;
    let bomb = zeros_packed(UNPACKED);
    assert!(bomb.len() < 3 << 20);
    let named = |name: &[u8]| [name, b"\0\0", &bomb].concat();
    let small = file(Format::Png, 8, 8);
    // Signature and IHDR.
    let (head, rest) = small.split_at(33);
    let profile = png_chunk(b"iCCP", &named(b"profile"));
    let text = png_chunk(b"zTXt", &named(b"Comment"));
    let end = png_chunk(b"IEND", b"");
    let pixels = png_chunk(b"IDAT", &bomb);
    for file in [
        [head, &pixels, &end].concat(),
        [head, &profile, rest].concat(),
        [head, &text, rest].concat(),
    ] {
        let before = peak_memory();
        let _ = inspect(&file);
        let decoded = decode(&file, 4096 * 4096);
        if let Ok((width, height, _)) = decoded {
            assert_eq!((width, height), (8, 8));
        }
        let taken = peak_memory() - before;
        assert!(taken < 64 << 20, "{taken} bytes");
    }
}
