//! This dialect's readers, for [`crate::fuzz`].

use axum::http::{HeaderMap, HeaderValue, header};
use bytes::Bytes;
use contract::Failure;

use super::{edits, multipart, request};
use crate::fuzz::{Target, binary, checked, target};
use crate::json::Fields;

pub(crate) fn targets() -> [Target; 2] {
    [
        target("OpenAI JSON", GENERATIONS, generation),
        binary("edits multipart", forms(), edit),
    ]
}

const GENERATIONS: &[&str] = &[
    r#"{"prompt":"a cat"}"#,
    r#"{"prompt":"p","model":"m","n":2,"size":"128x96","quality":"high","response_format":"url","background":"opaque",
       "output_format":"jpeg","output_compression":0,"style":"vivid","user":"u","style_tags":["3d"],"seed":7,
       "moderation":"low","some_new_thing":{"x":1}}"#,
    r#"{"prompt":"p","n":1,"stream":true,"partial_images":2,"size":"auto"}"#,
];

fn generation(input: &[u8]) -> Result<(), Failure> {
    checked(&request::decode(Fields::parse(input)?, "key".to_owned())?.task)
}

/// Two pixels of PNG.
const PNG: &[u8] = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x01\0\0\0\x02\x08\0\0\0\0\xbc\xea\xe9\xfb\0\0\0\x0cIDAT\
    \x78\x9c\x63\x60\x60\x60\0\0\0\x04\0\x01\xf6\x17\x38\x55\0\0\0\0IEND\xae\x42\x60\x82";

/// A media type in the first line, and a form.
fn forms() -> Vec<Vec<u8>> {
    let part = |name: &str, data: &[u8]| {
        let head = format!(
            "--B\r\nContent-Disposition: form-data; name=\"{name}\"; filename=\"a.png\"\r\n\r\n"
        );
        [head.as_bytes(), data, b"\r\n"].concat()
    };
    let form = |parts: &[(&str, &[u8])]| {
        let mut form = b"multipart/form-data; boundary=B\n".to_vec();
        form.extend(parts.iter().flat_map(|(name, data)| part(name, data)));
        form.extend(b"--B--\r\n");
        form
    };
    vec![
        form(&[("image", PNG), ("prompt", b"a cat")]),
        form(&[
            ("prompt", b"7"),
            ("image[]", PNG),
            ("n", b"2"),
            ("guidance_scale", b"2.5"),
            ("style_tags[]", b"a"),
            ("style_tags[]", b"b"),
            ("size", b"64x64"),
            ("stream", b"false"),
        ]),
    ]
}

fn edit(input: &[u8]) -> Result<(), Failure> {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let kind = lines.next().unwrap_or_default();
    let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let kind = HeaderValue::from_bytes(kind).ok();
    let headers = HeaderMap::from_iter(kind.map(|kind| (header::CONTENT_TYPE, kind)));
    let boundary = multipart::boundary(&headers)?;
    let parts = multipart::parse(&body, &boundary)?;
    let bytes: usize = parts.iter().map(|part| part.data.len()).sum();
    assert!(
        bytes <= body.len(),
        "parts are pieces of the body, and none is in two"
    );
    edits::fuzz(parts).and_then(|task| checked(&task))
}
