//! `multipart/form-data` (RFC 7578), of a body that has arrived whole.

use axum::http::{HeaderMap, header};
use bytes::Bytes;
use contract::{ErrorCode, Failure};

use crate::json::shorten;

/// Parts of one body; the request has far fewer fields.
const MAX_PARTS: usize = 64;
/// Header fields of one part, bytes.
const MAX_HEAD_BYTES: usize = 4 * 1024;
/// RFC 2046, 5.1.1.
const MAX_BOUNDARY_BYTES: usize = 70;

/// A field or a file.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) name: String,
    pub(super) data: Bytes,
}

/// What stands between the parts, as the headers announce it.
pub(super) fn boundary(headers: &HeaderMap) -> Result<String, Failure> {
    let refuse = |message: String| Failure::new(ErrorCode::UnsupportedMediaType, message);
    let given = headers
        .get(header::CONTENT_TYPE)
        .and_then(|v| v.to_str().ok());
    let given = given.unwrap_or_default();
    let (essence, parameters) = given.split_once(';').unwrap_or((given, ""));
    if !essence.trim().eq_ignore_ascii_case("multipart/form-data") {
        let shown = shorten(given);
        let message = format!(
            "the body must be a form with the picture, or JSON that names it: send Content-Type: multipart/form-data or \
             application/json, not {shown:?}"
        );
        return Err(refuse(message));
    }
    let boundary = parameter(parameters, "boundary").filter(|b| !b.is_empty());
    match boundary {
        Some(boundary) if boundary.len() <= MAX_BOUNDARY_BYTES => Ok(boundary),
        _ => Err(refuse(format!(
            "Content-Type must have a boundary of 1 to {MAX_BOUNDARY_BYTES} characters"
        ))),
    }
}

/// The parts of a body, in their order.
pub(super) fn parse(body: &Bytes, boundary: &str) -> Result<Vec<Part>, Failure> {
    let delimiter = format!("\r\n--{boundary}");
    let broken = |what: &str| {
        let message = format!("the body is not the form that its Content-Type says: {what}");
        Failure::new(ErrorCode::InvalidArgument, message)
    };
    // The first one may stand at the very beginning, where no line ends before it.
    let mut at = if body.starts_with(&delimiter.as_bytes()[2..]) {
        delimiter.len() - 2
    } else {
        let first = find(body, delimiter.as_bytes()).ok_or_else(|| broken("no boundary"))?;
        first + delimiter.len()
    };
    let mut parts = Vec::new();
    loop {
        let rest = &body[at..];
        if rest.starts_with(b"--") {
            return Ok(parts);
        }
        if parts.len() == MAX_PARTS {
            return Err(broken(&format!("it has more than {MAX_PARTS} parts")));
        }
        let head = &rest[..rest.len().min(MAX_HEAD_BYTES)];
        let end = find(head, b"\r\n\r\n").ok_or_else(|| broken("a part's head does not end"))?;
        let name = name(&head[..end]).ok_or_else(|| broken("a part has no name"))?;
        let start = at + end + 4;
        // From the end of the head on: an empty part has its delimiter right there.
        let length = find(&body[start - 2..], delimiter.as_bytes());
        let length = length.ok_or_else(|| broken("the last boundary is missing"))?;
        let data = body.slice(start..start.max(start - 2 + length));
        parts.push(Part { name, data });
        at = start - 2 + length + delimiter.len();
    }
}

/// The field that a part's head names.
fn name(head: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(head).ok()?;
    let mut lines = text.split("\r\n");
    let value = lines.find_map(|line| {
        let (name, value) = line.split_once(':')?;
        name.trim()
            .eq_ignore_ascii_case("content-disposition")
            .then_some(value)
    })?;
    let (_, parameters) = value.split_once(';')?;
    parameter(parameters, "name").filter(|name| !name.is_empty())
}

/// A parameter out of `; a=b; c="d"`.
fn parameter(text: &str, wanted: &str) -> Option<String> {
    let mut rest = text;
    loop {
        rest = rest.trim_start_matches([';', ' ', '\t']);
        let (name, after) = rest.split_once('=')?;
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => unquote(quoted)?,
            None => {
                let end = after.find(';').unwrap_or(after.len());
                (after[..end].trim().to_owned(), &after[end..])
            }
        };
        if name.trim().eq_ignore_ascii_case(wanted) {
            return Some(value);
        }
        rest = after;
    }
}

/// Up to the closing quote, and what stands behind it.
fn unquote(text: &str) -> Option<(String, &str)> {
    let mut value = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return Some((value, &text[at + 1..])),
            '\\' => value.push(chars.next()?.1),
            c => value.push(c),
        }
    }
    None
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    let mut from = 0;
    loop {
        // Line ends are rare in files, so most bytes are looked at once.
        let next = text
            .get(from..)?
            .iter()
            .position(|byte| *byte == wanted[0])?;
        if text[from + next..].starts_with(wanted) {
            return Some(from + next);
        }
        from += next + 1;
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn read(body: &[u8]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
        let parts = parse(&Bytes::copy_from_slice(body), "B")?;
        Ok(parts
            .into_iter()
            .map(|p| (p.name, p.data.to_vec()))
            .collect())
    }

    #[test]
    fn fields_and_files_are_read_in_their_order() {
        let body = b"--B\r\nContent-Disposition: form-data; name=\"prompt\"\r\n\r\na cat\r\n\
            --B\r\ncontent-disposition: form-data; filename=\"name=x;y.png\"; name=\"image\"\r\n\
            Content-Type: image/png\r\n\r\n\x89\r\n--A\r\n\r\n--B\r\n\
            Content-Disposition: form-data; name=empty\r\n\r\n\r\n--B--\r\n";
        let expected = [
            ("prompt".to_owned(), b"a cat".to_vec()),
            ("image".to_owned(), b"\x89\r\n--A\r\n".to_vec()),
            ("empty".to_owned(), Vec::new()),
        ];
        assert_eq!(read(body).unwrap(), expected);
    }

    #[test]
    fn a_form_that_is_cut_short_is_refused() {
        let whole = b"--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nx\r\n--B--";
        assert_eq!(read(whole).unwrap().len(), 1);
        for end in 0..whole.len() {
            assert!(read(&whole[..end]).is_err(), "{end}");
        }
        assert!(read(b"--B\r\nContent-Type: a/b\r\n\r\nx\r\n--B--").is_err());
    }

    #[test]
    fn the_boundary_is_announced_with_or_without_quotes() {
        let with = |value: &str| {
            let value = HeaderValue::from_str(value).unwrap();
            boundary(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)])).ok()
        };
        assert_eq!(with("multipart/form-data; boundary=x-1").unwrap(), "x-1");
        assert_eq!(
            with("Multipart/Form-Data; a=b; boundary=\"x 1\"").unwrap(),
            "x 1"
        );
        for bad in [
            "application/json",
            "multipart/form-data",
            "multipart/form-data; boundary=",
        ] {
            assert_eq!(with(bad), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = read(&bytes);
            let mut body = b"--B\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\n".to_vec();
            body.extend(&bytes);
            let _ = read(&body);
            body.extend(b"\r\n--B--");
            let parts = read(&body).unwrap();
            prop_assert!(parts[0].1.len() <= bytes.len());
        }

        #[test]
        fn no_parameters_make_the_reader_panic(text in "\\PC{0,40}|[;=\" a\\\\]{0,20}") {
            let _ = parameter(&text, "a");
        }
    }
}
