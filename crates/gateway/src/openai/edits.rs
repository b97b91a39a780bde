//! `POST /v1/images/edits`: a picture drawn from another, all of it or what a mask leaves open.
//!
//! The picture comes as a file of a form, or is named in JSON by a URL, which may be a `data:` URL. OpenAI's models take several
//! pictures; the ones here draw from one, so a list of one is taken and a longer one refused with the limit.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use bytes::Bytes;
use contract::Failure;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::described::{Edit, EditByReference, Event};
use super::multipart::{self, Part};
use super::response::{Answer, Kind};
use super::{carry_out, request};
use crate::auth::Admitted;
use crate::edge::{Edge, Upload};
use crate::json::{self, Fields, check_coding, read_at_most, shorten};
use crate::openapi::params::IdempotencyKeyParam;
use crate::pictures::{self, Picture, Source};
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
    "expires_after_seconds",
    "strength",
];
/// Fields that are true or false.
const TRUTHS: &[&str] = &["stream", "visible_label"];
/// Fields that are texts or lists of them.
const TEXTS: &[&str] = &[
    "prompt",
    "model",
    "negative_prompt",
    "size",
    "quality",
    "response_format",
    "background",
    "style",
    "style_tags",
    "scheduler",
    "output_format",
    "user",
    "prompt_syntax",
];
/// What would change the picture and cannot.
const NOT_HERE: &[(&str, &str)] = &[(
    "markup",
    "a drawing over the picture is not understood by the models here",
)];

/// `POST /v1/images/edits`
#[utoipa::path(
    post,
    path = "/v1/images/edits",
    operation_id = "editImage",
    summary = "Draw from a picture",
    description = "As a form with files, or as JSON that names them by `https:` or `data:` URLs.",
    params(IdempotencyKeyParam),
    request_body(content((Edit = "multipart/form-data"), (EditByReference = "application/json"))),
    responses(
        (
            status = 200,
            description = "The pictures; events where `stream` is true: `image_edit.partial_image`, and `image_edit.completed` at the end.",
            content((Answer = "application/json"), (Event = "text/event-stream")),
            headers(("X-Inkstone-Task-Id" = String, description = "The task's id."))
        ),
        (status = 400, description = "invalid_argument"),
        (status = 403, description = "permission_denied"),
        (status = 404, description = "model_not_found"),
        (status = 409, description = "idempotency_conflict cancelled"),
        (status = 422, description = "picture_too_large"),
        (status = 500, description = "engine_failed attempts_exhausted"),
        (status = 504, description = "deadline_exceeded"),
        (status = 415, description = "unsupported_media_type")
    )
)]
pub(crate) async fn edit(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    held: Option<Extension<Upload>>,
    body: Body,
) -> Result<Response, Refused> {
    let deadline = Instant::now() + edge.http.generation_timeout.duration();
    check_coding(&headers)?;
    let shape = Shape::of(&headers)?;
    let key = idempotency_key(&headers)?;
    let upload = match held {
        // A body that was signed is here already.
        Some(Extension(upload)) => upload,
        None => edge.open_upload(&caller.tenant)?,
    };
    let body = read_at_most(body, edge.http.max_upload, &edge.http).await?;
    let read = move || shape.read(&body);
    let (mut fields, image, mask) = pictures::in_turn(&edge, read).await??;
    let strength = fields.number("strength")?;
    let mut wish = request::decode(fields, key)?;
    (wish.kind, wish.picture) = (Kind::Edit, image.field());
    if !wish.stream {
        // There would be no one to show them to.
        wish.task.partial_images = 0;
    }
    let source = Source {
        image,
        mask,
        strength,
    };
    let names = |failure| super::named(wish.picture, failure);
    pictures::begin_from(&edge, &caller, &mut wish.task, source, upload, names).await?;
    let base = edge.public_url(&uri, &headers);
    Ok(carry_out(&edge, caller, wish, base, deadline).await?)
}

/// What a request holds: its fields, the picture, the mask.
type Read = (Fields, Picture, Option<Picture>);

/// How a body holds them.
enum Shape {
    /// Until this boundary.
    Form(String),
    Json,
}

impl Shape {
    fn of(headers: &HeaderMap) -> Result<Self, Failure> {
        match json::check_media_type(headers) {
            Ok(()) => Ok(Self::Json),
            Err(_) => multipart::boundary(headers).map(Self::Form),
        }
    }

    fn read(&self, body: &Bytes) -> Result<Read, Failure> {
        match self {
            Self::Form(boundary) => sort(multipart::parse(body, boundary)?),
            Self::Json => named(Fields::parse(body)?),
        }
    }
}

/// Pictures that JSON names: `{"images":[{"image_url":"…"}],"mask":{"image_url":"…"}}`.
pub(super) fn named(mut fields: Fields) -> Result<Read, Failure> {
    if let Some((name, _)) = NOT_HERE.iter().find(|(name, _)| fields.says(name)) {
        return Err(not_here(name));
    }
    if fields.says("image") {
        let message =
            "image must be sent in a form; in JSON images names it: [{\"image_url\": \"…\"}]";
        return Err(Failure::invalid("image", message));
    }
    let image = pictures::only("images", fields.objects("images")?)?;
    let image = reference("images", "images[0]", image)?;
    // One that says nothing is not taken for none: all of the picture would be drawn anew.
    let mask = match fields.is_given("mask") {
        true => Some(reference("mask", "mask", fields.object("mask")?)?),
        false => None,
    };
    Ok((fields, image, mask))
}

fn reference(field: &'static str, place: &str, mut fields: Fields) -> Result<Picture, Failure> {
    if fields.says("file_id") {
        let message =
            format!("{place}.file_id must be left out: files are not kept here; send image_url");
        return Err(Failure::invalid(field, message));
    }
    let url = fields.text("image_url").map_err(|failure| Failure {
        field: Some(field.to_owned()),
        message: format!("{place}.{}", failure.message),
        ..failure
    })?;
    match url {
        Some(url) if !url.is_empty() => Picture::named(field, format!("{place}.image_url"), url),
        _ => {
            let message = format!("{place}.image_url is missing: a https:// or data: URL");
            Err(Failure::invalid(field, message))
        }
    }
}

fn not_here(name: &str) -> Failure {
    let why = NOT_HERE.iter().find(|(known, _)| *known == name);
    let why = why.map_or("it is not there", |(_, why)| why);
    Failure::invalid(name, format!("{name} must be left out: {why}"))
}

/// The parts of a form by what they are.
fn sort(parts: Vec<Part>) -> Result<Read, Failure> {
    let (mut images, mut mask, mut fields) = (Vec::new(), None, Map::new());
    for Part { name, data } in parts {
        match name.as_str() {
            name if is_image(name) => images.push(data),
            "mask" if mask.is_some() => {
                let message = "mask must be one picture: it is given more than once";
                return Err(Failure::invalid("mask", message));
            }
            "mask" => mask = Some(Picture::file("mask", data)),
            name if NOT_HERE.iter().any(|(known, _)| *known == name) => return Err(not_here(name)),
            name => field(name, &data, &mut fields)?,
        }
    }
    let image = Picture::file("image", pictures::only("image", images)?);
    Ok((Fields::of(fields), image, mask))
}

/// `image`, or one of a list: `image[]`, `image[0]`.
fn is_image(name: &str) -> bool {
    let place = name.strip_prefix("image[");
    let place = place.and_then(|rest| rest.strip_suffix(']'));
    name == "image" || place.is_some_and(|place| place.bytes().all(|b| b.is_ascii_digit()))
}

/// Whether a field of a form, or a list of its name, means something here.
fn is_read(name: &str) -> bool {
    let name = name.strip_suffix("[]").unwrap_or(name);
    [TEXTS, NUMBERS, TRUTHS]
        .iter()
        .any(|names| names.contains(&name))
}

/// A field of a form, as it would be in JSON. One that is not read may be anything, a file too.
fn field(name: &str, data: &Bytes, fields: &mut Map<String, Value>) -> Result<(), Failure> {
    if !is_read(name) {
        return Ok(());
    }
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
        "true" | "false" if TRUTHS.contains(&name) => Value::Bool(text == "true"),
        number if NUMBERS.contains(&name) => match serde_json::from_str(number) {
            Ok(number) => Value::Number(number),
            // Refused by its name where it is read.
            Err(_) => number.into(),
        },
        text => text.into(),
    };
    if fields.insert(name.to_owned(), value).is_some() {
        let message = format!("{shown} is given more than once");
        return Err(Failure::invalid(shown, message));
    }
    Ok(())
}

/// What a form asks for, its files looked at, for `fuzz.rs`.
pub(super) fn fuzz(parts: Vec<Part>) -> Result<contract::v1::SubmitTask, Failure> {
    let (mut fields, image, mask) = sort(parts)?;
    pictures::fuzz(&image, mask.as_ref())?;
    fields.number("strength")?;
    Ok(request::decode(fields, String::new())?.task)
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

    fn json(body: &str) -> Result<Read, Failure> {
        Shape::Json.read(&Bytes::copy_from_slice(body.as_bytes()))
    }

    #[test]
    fn a_forms_texts_become_what_they_would_be_in_json() {
        let form = sort(vec![
            part("image", b"x"),
            part("prompt", b"7"),
            part("n", b"2"),
            part("guidance_scale", b"2.5"),
            part("expires_after_seconds", b"60"),
            part("visible_label", b"true"),
            part("style_tags[]", b"a"),
            part("style_tags[]", b"b"),
        ]);
        let wish = request::decode(form.unwrap().0, String::new()).unwrap();
        assert_eq!((wish.task.prompt.as_str(), wish.task.images), ("7", 2));
        assert_eq!(wish.task.guidance_scale, Some(2.5));
        assert_eq!(wish.task.expires_after_seconds, 60);
        assert!(wish.task.visible_label);
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
        assert_eq!(field(vec![part("markup", b"\xff")]), "markup");
        let indexed = vec![part("image[0]", b"x"), part("image[1]", b"y")];
        assert_eq!(field(indexed), "image");
        for name in ["image[]", "image[0]"] {
            assert!(sort(vec![part(name, b"x")]).is_ok(), "{name}");
        }
        assert_eq!(field(vec![part("image[a]", b"x")]), "image");
        // Binary, as pictures are: it is not taken for a text that is none.
        let masks = vec![
            part("image", b"x"),
            part("mask", b"\xff"),
            part("mask", b"\xff"),
        ];
        let failure = sort(masks).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("mask"));
        assert!(failure.message.contains("more than once"), "{failure}");
    }

    #[test]
    fn a_field_of_a_form_that_is_not_read_may_be_a_file_and_be_there_twice() {
        let parts = vec![
            part("image", b"x"),
            part("prompt", b"p"),
            part("foo", b"\xff"),
            part("foo", b"\xff"),
            part("foo[]", b"\xff"),
        ];
        let wish = request::decode(sort(parts).unwrap().0, String::new()).unwrap();
        assert_eq!(wish.task.prompt, "p");
    }

    #[test]
    fn the_fields_of_a_form_that_are_read_are_those_that_are_read_of_json() {
        let decode = |mut fields: Fields| {
            fields.number("strength")?;
            request::decode(fields, String::new())
        };
        let asked = contract::json::asked("{}", decode).unwrap();
        let mut asked: Vec<_> = asked.iter().map(|asked| asked.path.as_str()).collect();
        let mut known = [TEXTS, NUMBERS, TRUTHS].concat();
        asked.sort_unstable();
        known.sort_unstable();
        assert_eq!(known, asked);
    }

    #[test]
    fn json_names_its_picture_and_its_mask() {
        let body = r#"{"prompt":"p","n":2,"images":[{"image_url":"https://h/x.png"}],"mask":{"image_url":"data:;base64,"}}"#;
        let (fields, _, mask) = json(body).unwrap();
        assert!(mask.is_some());
        assert_eq!(
            request::decode(fields, String::new()).unwrap().task.images,
            2
        );
    }

    #[test]
    fn what_json_cannot_name_is_refused_by_its_parameter() {
        for (body, param, says) in [
            (r#"{}"#, "images", "none is given"),
            (
                r#"{"images":[{"image_url":"a"},{"image_url":"b"}]}"#,
                "images",
                "1 picture, not 2",
            ),
            (
                r#"{"images":[{"file_id":"f"}]}"#,
                "images",
                "images[0].file_id must be left out",
            ),
            (
                r#"{"images":[{"image_url":7}]}"#,
                "images",
                "images[0].image_url must be a string",
            ),
            (
                r#"{"images":[{}]}"#,
                "images",
                "images[0].image_url is missing",
            ),
            (
                r#"{"images":["https://h/x"]}"#,
                "images",
                "images[0] must be an object",
            ),
            (r#"{"image":"https://h/x"}"#, "image", "in a form"),
            (
                r#"{"images":[{"image_url":"a"}],"mask":{"file_id":"f"}}"#,
                "mask",
                "mask.file_id",
            ),
            (
                r#"{"images":[{"image_url":"a"}],"mask":"x"}"#,
                "mask",
                "an object",
            ),
            (
                r#"{"images":[{"image_url":"a"}],"mask":[]}"#,
                "mask",
                "an object",
            ),
            (
                r#"{"images":[{"image_url":"a"}],"mask":{}}"#,
                "mask",
                "mask.image_url is missing",
            ),
            (
                r#"{"images":[{"image_url":"a"}],"markup":{"image_url":"x"}}"#,
                "markup",
                "left out",
            ),
            (
                r#"{"images":[{"image_url":"data:image/png,x"}]}"#,
                "images",
                "base64",
            ),
        ] {
            let failure = json(body).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some(param), "{body}");
            assert!(failure.message.contains(says), "{body}: {failure}");
        }
    }

    proptest! {
        #[test]
        fn no_form_makes_the_reader_panic(
            name in "image|mask|n|stream|style_tags\\[\\]|\\PC{0,6}",
            data in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            if let Ok((fields, _, _)) = sort(vec![part("image", &data), part(&name, &data)]) {
                let _ = request::decode(fields, String::new());
            }
        }

        #[test]
        fn no_json_makes_the_reader_panic(
            name in "images|mask|image|markup",
            value in "null|1|\\[\\{\"image_url\":(1|\"\\PC{0,8}\"|null)\\}\\]|\\{\"image_url\":\\[\\]\\}|\\[\\[\\]\\]",
        ) {
            let _ = json(&format!("{{\"images\":[{{\"image_url\":\"a\"}}],\"{name}\":{value}}}"));
            let _ = json(&format!("{{\"{name}\":{value}}}"));
        }
    }
}
