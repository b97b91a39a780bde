//! `POST /v1/images/edits`: a picture drawn from another, all of it or what a mask leaves open.
//!
//! The form's files are looked at here, so that a bad one is refused before there is a task; they are stored under the
//! caller's tenant by their digests, and the task names them.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use bytes::Bytes;
use contract::auth::Caller;
use contract::limits::{MAX_SOURCE_BYTES, MAX_SOURCE_PIXELS};
use contract::{ErrorCode, Failure, v1, validate};
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::multipart::{self, Part};
use super::{carry_out, request};
use crate::edge::{Edge, Upload};
use crate::json::{Fields, check_coding, read_at_most, shorten};
use crate::problem::Refused;
use crate::tasks::idempotency_key;

/// Fields that are numbers; a form has only texts.
const NUMBERS: &[&str] = &[
    "n",
    "seed",
    "steps",
    "guidance_scale",
    "guidance_rescale",
    "output_compression",
    "partial_images",
    "strength",
];
/// Pictures that one edit may begin from.
const MAX_PICTURES: usize = 1;

/// `POST /v1/images/edits`
pub(crate) async fn edit(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Caller>,
    uri: Uri,
    headers: HeaderMap,
    held: Option<Extension<Upload>>,
    body: Body,
) -> Result<Response, Refused> {
    let deadline = Instant::now() + edge.http.generation_timeout.duration();
    check_coding(&headers)?;
    let boundary = multipart::boundary(&headers)?;
    let key = idempotency_key(&headers)?;
    // Held until the files are stored, which is as long as they are in memory.
    let upload = match held {
        // A body that was signed is here already.
        Some(Extension(upload)) => upload,
        None => edge.open_upload()?,
    };
    let body = read_at_most(body, edge.http.max_upload, &edge.http).await?;
    let form = unpack(&edge, body, boundary).await?;
    let Form {
        mut fields,
        image,
        mask,
    } = form;
    let strength = fields.number("strength")?;
    let mut wish = request::decode(fields, key)?;
    if wish.stream {
        let message = "stream must be false here: edits cannot be streamed yet";
        return Err(Failure::invalid("stream", message).into());
    }
    // There would be no one to show them to.
    wish.task.partial_images = 0;
    wish.task.source = Some(v1::Source {
        // Named when it is stored; until then, that there is one is all that can be checked.
        image_key: "image".to_owned(),
        mask_key: String::new(),
        strength,
    });
    validate(&wish.task)?;
    let image_key = edge.platform.keep_input(&caller.tenant, image).await?;
    let mask_key = match mask {
        Some(mask) => edge.platform.keep_input(&caller.tenant, mask).await?,
        None => String::new(),
    };
    drop(upload);
    wish.task.source = Some(v1::Source {
        image_key,
        mask_key,
        strength,
    });
    let base = edge.public_url(&uri, &headers);
    Ok(carry_out(&edge, caller, wish, base, deadline).await?)
}

/// A form whose files can be drawn from.
#[derive(Debug)]
struct Form {
    fields: Fields,
    image: Bytes,
    mask: Option<Bytes>,
}

/// Reads a form and looks at its files, off the runtime's threads and a few at a time: decoding takes memory and a core.
async fn unpack(edge: &Arc<Edge>, body: Bytes, boundary: String) -> Result<Form, Failure> {
    let broken = || Failure::new(ErrorCode::Internal, "the form was not read");
    let turn = edge.decodes.clone().acquire_owned().await;
    let turn = turn.map_err(|_| broken())?;
    let work = move || {
        let _turn = turn;
        let form = sort(multipart::parse(&body, &boundary)?)?;
        look_at(&form)?;
        Ok(form)
    };
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|_| broken())?
}

fn sort(parts: Vec<Part>) -> Result<Form, Failure> {
    let (mut images, mut mask, mut fields) = (Vec::new(), None, Map::new());
    for Part { name, data } in parts {
        match name.as_str() {
            "image" | "image[]" => images.push(data),
            "mask" if mask.is_none() => mask = Some(data),
            name => field(name, &data, &mut fields)?,
        }
    }
    let count = images.len();
    let Some(image) = images.pop().filter(|_| count <= MAX_PICTURES) else {
        let message = format!("image must be {MAX_PICTURES} file, not {count}");
        return Err(Failure::invalid("image", message));
    };
    let fields = Fields::of(fields);
    Ok(Form {
        fields,
        image,
        mask,
    })
}

/// A field of a form, as it would be in JSON.
fn field(name: &str, data: &Bytes, fields: &mut Map<String, Value>) -> Result<(), Failure> {
    let shown = shorten(name);
    let text = std::str::from_utf8(data).map_err(|_| {
        let message = format!("{shown} must be UTF-8");
        Failure::invalid(shown.clone(), message)
    })?;
    if let Some(list) = name.strip_suffix("[]") {
        let items = fields
            .entry(list)
            .or_insert_with(|| Value::Array(Vec::new()));
        if let Value::Array(items) = items {
            items.push(text.into());
            return Ok(());
        }
    }
    let value = match text {
        "true" | "false" if name == "stream" => Value::Bool(text == "true"),
        number if NUMBERS.contains(&name) => match serde_json::from_str(number) {
            Ok(Value::Number(number)) => Value::Number(number),
            // Refused by its name where it is read.
            _ => number.into(),
        },
        text => text.into(),
    };
    if fields.insert(name.to_owned(), value).is_some() {
        let message = format!("{shown} is given more than once");
        return Err(Failure::invalid(shown, message));
    }
    Ok(())
}

/// Whether the files are pictures that go together, within the limits of both.
fn look_at(form: &Form) -> Result<(), Failure> {
    let small = |name: &str, file: &Bytes| {
        let bytes = file.len() as u64;
        if bytes <= MAX_SOURCE_BYTES {
            return Ok(());
        }
        let message = format!("{name} must be at most {MAX_SOURCE_BYTES} bytes, not {bytes}");
        Err(Failure::invalid(name, message))
    };
    let undecoded = |name: &'static str| {
        move |error: imaging::DecodeError| {
            let why = lifecycle::chain(&error);
            let message = format!("{name} must be a PNG, JPEG or WebP file: {why}");
            Failure::invalid(name, message)
        }
    };
    small("image", &form.image)?;
    let decoded = imaging::decode(&form.image, MAX_SOURCE_PIXELS);
    let (width, height, _) = decoded.map_err(undecoded("image"))?;
    let Some(mask) = &form.mask else {
        return Ok(());
    };
    small("mask", mask)?;
    let decoded = imaging::decode_mask(mask, MAX_SOURCE_PIXELS);
    let (w, h, _) = decoded.map_err(undecoded("mask"))?;
    if (w, h) != (width, height) {
        let message = format!("mask must have the size of image, {width}x{height}, not {w}x{h}");
        return Err(Failure::invalid("mask", message));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn part(name: &str, data: &[u8]) -> Part {
        let data = Bytes::copy_from_slice(data);
        let name = name.to_owned();
        Part { name, data }
    }

    #[test]
    fn a_forms_texts_become_what_they_would_be_in_json() {
        let form = sort(vec![
            part("image", b"x"),
            part("prompt", b"7"),
            part("n", b"2"),
            part("guidance_scale", b"2.5"),
            part("style_tags[]", b"a"),
            part("style_tags[]", b"b"),
        ]);
        let wish = request::decode(form.unwrap().fields, String::new()).unwrap();
        assert_eq!((wish.task.prompt.as_str(), wish.task.images), ("7", 2));
        assert_eq!(wish.task.guidance_scale, Some(2.5));
        assert_eq!(wish.task.style_tags, ["a", "b"]);
    }

    #[test]
    fn a_form_has_one_image_and_a_field_once() {
        let field = |parts: Vec<Part>| sort(parts).unwrap_err().field.unwrap();
        assert_eq!(field(vec![]), "image");
        assert_eq!(
            field(vec![part("image[]", b"x"), part("image[]", b"y")]),
            "image"
        );
        assert_eq!(field(vec![part("n", b"1"), part("n", b"2")]), "n");
        assert_eq!(field(vec![part("prompt", b"\xff")]), "prompt");
    }

    #[test]
    fn what_is_no_picture_is_refused_by_its_name() {
        let form = sort(vec![part("image", b"GIF89a")]).unwrap();
        let failure = look_at(&form).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("image"));
        assert!(failure.message.contains("PNG, JPEG or WebP"), "{failure}");
    }

    proptest! {
        #[test]
        fn no_form_makes_the_reader_panic(
            name in "image|mask|n|stream|style_tags\\[\\]|\\PC{0,6}",
            data in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok(form) = sort(vec![part("image", &data), part(&name, &data)]) {
                let _ = look_at(&form);
                let _ = request::decode(form.fields, String::new());
            }
        }
    }
}
