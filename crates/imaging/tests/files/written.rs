//! What `encode` writes.

use std::collections::BTreeSet;

use imaging::{EncodeError, Encoding, Format, Pixels, decode, encode, inspect};

use crate::{FORMATS, encoding, file, label, picture};

const SIZES: [(u32, u32); 5] = [(1, 1), (1000, 3), (3, 1000), (17, 9), (128, 96)];

#[test]
fn lossless_formats_give_the_same_pixels_back() {
    for format in [Format::Png, Format::WebP] {
        for (width, height) in SIZES {
            let back = decode(&file(format, width, height), 1 << 20).unwrap();
            assert_eq!(back, (width, height, picture(width, height)), "{format}");
        }
    }
}

#[test]
fn jpeg_gives_nearly_the_same_pixels_back() {
    for (width, height) in SIZES {
        let (w, h, rgb) = decode(&file(Format::Jpeg, width, height), 1 << 20).unwrap();
        assert_eq!((w, h), (width, height));
        let worst = rgb
            .iter()
            .zip(picture(width, height))
            .map(|(a, b)| a.abs_diff(b))
            .max()
            .unwrap();
        assert!(worst <= 12, "{width}×{height}: off by {worst}");
    }
}

#[test]
fn size_and_label_survive_in_every_format() {
    for format in FORMATS {
        for (width, height) in SIZES {
            let found = inspect(&file(format, width, height)).unwrap();
            assert_eq!(
                (found.format, found.width, found.height),
                (format, width, height)
            );
            assert_eq!(found.label, Some(label()), "{format}");
        }
    }
}

#[test]
fn the_same_picture_is_the_same_bytes() {
    for format in FORMATS {
        assert_eq!(file(format, 64, 48), file(format, 64, 48), "{format}");
    }
}

#[test]
fn quality_decides_a_jpegs_size() {
    let rgb = picture(64, 64);
    let size = |quality| {
        let pixels = Pixels {
            width: 64,
            height: 64,
            rgb: &rgb,
        };
        let encoding = Encoding {
            format: Format::Jpeg,
            quality,
        };
        encode(pixels, &encoding, &label()).unwrap().len()
    };
    assert!(size(1) < size(75) && size(75) < size(100));
}

#[test]
fn png_carries_the_packet_as_plain_text_before_the_pixels() {
    let file = file(Format::Png, 3, 2);
    assert_eq!(&file[..8], b"\x89PNG\r\n\x1a\n");
    let (mut rest, mut kinds) = (&file[8..], Vec::new());
    while !rest.is_empty() {
        let length = u32::from_be_bytes(rest[..4].try_into().unwrap()) as usize;
        let kind = String::from_utf8(rest[4..8].to_vec()).unwrap();
        if kind == "iTXt" {
            assert!(rest[8..8 + length].starts_with(b"XML:com.adobe.xmp\0\0\0\0\0<?xpacket "));
        }
        kinds.push(kind);
        rest = &rest[12 + length..];
    }
    assert_eq!(kinds, ["IHDR", "iTXt", "IDAT", "IEND"]);
}

#[test]
fn jpeg_carries_the_packet_in_an_app1_segment_behind_app0() {
    let file = file(Format::Jpeg, 3, 2);
    assert_eq!(&file[..4], b"\xff\xd8\xff\xe0");
    let app1 = &file[4 + usize::from(u16::from_be_bytes([file[4], file[5]]))..];
    assert_eq!(&app1[..2], b"\xff\xe1");
    let length = usize::from(u16::from_be_bytes([app1[2], app1[3]]));
    let payload = &app1[4..2 + length];
    assert!(payload.starts_with(b"http://ns.adobe.com/xap/1.0/\0<?xpacket "));
    assert!(payload.ends_with(b"<?xpacket end=\"r\"?>"));
    assert_eq!(app1[2 + length], 0xff);
}

#[test]
fn webp_carries_the_packet_in_an_extended_container_that_announces_it() {
    let file = file(Format::WebP, 3, 2);
    assert_eq!(&file[8..16], b"WEBPVP8X");
    // Flag bit 2: XMP.
    assert_eq!(file[20], 0b100);
    let at = file
        .windows(4)
        .position(|window| window == b"XMP ")
        .unwrap();
    assert!(file[at + 8..].starts_with(b"<?xpacket "));
    let stated = u32::from_le_bytes(file[4..8].try_into().unwrap()) as usize;
    assert_eq!(stated + 8, file.len());
}

#[test]
fn the_label_is_json_in_the_standards_words() {
    let file = file(Format::WebP, 1, 1);
    let text = String::from_utf8_lossy(&file);
    let (_, value) = text.split_once("TC260:AIGC=\"").unwrap();
    let (value, _) = value.split_once('"').unwrap();
    let json = value
        .replace("&quot;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&");
    let json: serde_json::Map<String, serde_json::Value> = serde_json::from_str(&json).unwrap();
    let names: BTreeSet<&str> = json.keys().map(String::as_str).collect();
    let expected = [
        "Label",
        "ContentProducer",
        "ProduceID",
        "ReservedCode1",
        "ContentPropagator",
        "PropagateID",
        "ReservedCode2",
    ];
    assert_eq!(names, expected.into());
    assert_eq!(json["ContentProducer"], "墨石 <Inkstone> & \"co\"");
}

#[test]
fn a_buffer_of_the_wrong_length_is_an_error() {
    for format in FORMATS {
        for (width, height, length) in [
            (2, 2, 11),
            (2, 2, 13),
            (1, 1, 0),
            (16_383, 16_383, 3),
            (65_535, 3, 6),
        ] {
            let rgb = vec![0; length];
            let pixels = Pixels {
                width,
                height,
                rgb: &rgb,
            };
            let error = encode(pixels, &encoding(format), &label()).unwrap_err();
            let wide = width > format.max_side();
            match error {
                EncodeError::BufferLength { given, .. } => {
                    assert_eq!((given, wide), (length, false))
                }
                EncodeError::Dimensions { .. } => assert!(wide),
                other => panic!("{other}"),
            }
        }
    }
}

#[test]
fn a_side_that_the_format_cannot_hold_is_an_error() {
    for (format, width) in [
        (Format::Png, 0),
        (Format::Jpeg, 65_536),
        (Format::WebP, 16_384),
    ] {
        let rgb = picture(width.max(1), 1);
        for (width, height) in [(width, 1), (1, width)] {
            let pixels = Pixels {
                width,
                height,
                rgb: &rgb,
            };
            let result = encode(pixels, &encoding(format), &label());
            assert!(
                matches!(result, Err(EncodeError::Dimensions { .. })),
                "{format}"
            );
        }
    }
}

#[test]
fn the_longest_side_of_webp_and_jpeg_is_read_back() {
    for format in [Format::WebP, Format::Jpeg] {
        let width = format.max_side();
        let file = file(format, width, 1);
        assert_eq!(inspect(&file).unwrap().width, width);
        assert_eq!(decode(&file, 1 << 20).unwrap().0, width);
    }
}

#[test]
fn a_label_too_long_for_a_segment_is_an_error_in_every_format() {
    let mut long = label();
    long.reserved_code1 = "x".repeat(65_000);
    for format in FORMATS {
        let pixels = Pixels {
            width: 1,
            height: 1,
            rgb: &[1, 2, 3],
        };
        let result = encode(pixels, &encoding(format), &long);
        assert!(
            matches!(result, Err(EncodeError::LabelLength { .. })),
            "{format}"
        );
    }
    long.reserved_code1.truncate(64_000);
    for format in FORMATS {
        let pixels = Pixels {
            width: 1,
            height: 1,
            rgb: &[1, 2, 3],
        };
        let file = encode(pixels, &encoding(format), &long).unwrap();
        assert_eq!(inspect(&file).unwrap().label.as_ref(), Some(&long));
    }
}

#[test]
fn a_quality_out_of_range_is_an_error_where_it_has_a_meaning() {
    for quality in [0, 101, 255] {
        for format in FORMATS {
            let pixels = Pixels {
                width: 1,
                height: 1,
                rgb: &[1, 2, 3],
            };
            let result = encode(pixels, &Encoding { format, quality }, &label());
            match format {
                Format::Jpeg => assert!(matches!(result, Err(EncodeError::Quality { .. }))),
                Format::Png | Format::WebP => assert!(result.is_ok()),
            }
        }
    }
}

#[test]
fn a_formats_name_is_read_as_it_is_written() {
    for format in FORMATS {
        assert_eq!(format.to_string().parse(), Ok(format));
        assert_eq!(
            serde_json::to_string(&format).unwrap(),
            format!("\"{format}\"")
        );
    }
    assert!("PNG".parse::<Format>().is_err());
}
