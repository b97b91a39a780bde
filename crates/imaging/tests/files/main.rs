//! Pictures through the public calls: written, read back, altered.

#![allow(clippy::unwrap_used, reason = "a failed step of a test fails the test")]

mod hostile;
mod written;

use imaging::{Encoding, Format, Label, Pixels};

const FORMATS: [Format; 3] = [Format::Png, Format::Jpeg, Format::WebP];

/// A smooth picture, kind to JPEG: `[height, width, 3]`.
fn picture(width: u32, height: u32) -> Vec<u8> {
    let ramp = |at: u32, of: u32| u8::try_from(at * 255 / of).unwrap();
    let mut rgb = Vec::new();
    for y in 0..height {
        for x in 0..width {
            rgb.extend([ramp(x, width), ramp(y, height), ramp(x + y, width + height)]);
        }
    }
    rgb
}

fn label() -> Label {
    Label {
        label: "1".into(),
        content_producer: "墨石 <Inkstone> & \"co\"".into(),
        produce_id: "0197a1c2-0000-7000-8000-000000000001".into(),
        reserved_code1: "a'b\\c\n".into(),
        content_propagator: "墨石".into(),
        propagate_id: "7".into(),
        reserved_code2: String::new(),
    }
}

fn encoding(format: Format) -> Encoding {
    Encoding {
        format,
        quality: 90,
    }
}

fn file(format: Format, width: u32, height: u32) -> Vec<u8> {
    let rgb = picture(width, height);
    let pixels = Pixels {
        width,
        height,
        rgb: &rgb,
    };
    imaging::encode(pixels, &encoding(format), &label()).unwrap()
}
