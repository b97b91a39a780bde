//! What this dialect takes, described by its decoder.

use contract::json::Asked;
use contract::limits::MAX_IMAGES;
use serde_json::json;
use utoipa::openapi::schema::Array;
use utoipa::openapi::{Object, OneOfBuilder, RefOr, Schema};

use super::response::Kind;
use super::{edits, request};
use crate::openapi::schema::{
    About, component, event, file, number, request as request_schema, rule,
};
use crate::openapi::submission;

component!(
    /// `POST /v1/images/generations`
    Generation,
    "ImageGeneration",
    [],
    generation()
);

component!(
    /// `POST /v1/images/edits`, in JSON.
    EditByReference,
    "ImageEditByReference",
    [],
    edit_by_reference()
);

component!(
    /// `POST /v1/images/edits`, as a form.
    Edit,
    "ImageEdit",
    [],
    edit()
);

component!(
    /// An event of a generation or an edit that streams.
    Event,
    "ImageEvent",
    [],
    event([
        Kind::Generation.partial(),
        Kind::Generation.completed(),
        Kind::Edit.partial(),
        Kind::Edit.completed(),
        "error",
    ])
);

const ABOUT: About = About {
    field,
    most: |path| match path {
        "images" => Some(1),
        other => submission::most(other),
    },
    required: &["prompt", "images", "images[].image_url", "mask.image_url"],
};

fn generation() -> Object {
    let decode = |fields| request::decode(fields, String::new());
    with_streams(&contract::json::asked("{}", decode).unwrap_or_default())
}

/// A stream has one picture, and carries it.
fn with_streams(asked: &[Asked]) -> Object {
    let mut request = request_schema(asked, &ABOUT);
    let streams = json!({"required": ["stream"], "properties": {"stream": {"const": true}}});
    let then = json!({
        "properties": {"n": {"enum": [1, null]}, "response_format": {"enum": ["b64_json", null]}},
    });
    rule(&mut request, json!({"if": streams, "then": then}));
    request
}

/// Pictures are named: one, as the models here draw from one.
fn edit_by_reference() -> Object {
    let sample = r#"{"images":[{"image_url":"https://example.com"}],"mask":{"image_url":"https://example.com"}}"#;
    let decode = |fields| {
        let (mut fields, ..) = edits::named(fields)?;
        fields.number("strength")?;
        request::decode(fields, String::new())
    };
    let asked = contract::json::asked(sample, decode).unwrap_or_default();
    let mut request = with_streams(&asked);
    if let Some(RefOr::T(Schema::Array(images))) = request.properties.get_mut("images") {
        images.min_items = Some(1);
    }
    request
}

/// A form has the same fields as JSON, and files.
fn edit() -> Object {
    let mut form = generation();
    let mut picture = file();
    picture.description =
        Some("A PNG, JPEG or WebP file of at most 16 MiB and 4096 × 4096 pixels.".to_owned());
    let one_or_list = OneOfBuilder::new().item(picture).item(Array::new(file()));
    form.properties
        .insert("image".to_owned(), one_or_list.into());
    let mut mask = file();
    mask.description = Some("Of the same size; its transparent parts are painted anew.".to_owned());
    form.properties.insert("mask".to_owned(), mask.into());
    let mut strength = number();
    field("strength", &mut strength);
    form.properties
        .insert("strength".to_owned(), strength.into());
    form.required.push("image".to_owned());
    form
}

fn field(path: &str, schema: &mut Object) {
    let means = match path {
        "n" => {
            schema.minimum = Some(1_u32.into());
            schema.maximum = Some(MAX_IMAGES.into());
            "Pictures; 1 with `stream`."
        }
        "size" => {
            schema.pattern = Some("^(auto|[1-9][0-9]{0,4}x[1-9][0-9]{0,4})$".to_owned());
            "`auto`, or WIDTHxHEIGHT in pixels."
        }
        "quality" => {
            "`hd` and `high` are HD, which needs a policy that allows it; the others are standard."
        }
        "response_format" => {
            "`b64_json` where it is left out, and for `dall-e-2` and `dall-e-3` `url`; `url` not with `stream`."
        }
        "background" => {
            schema.enum_values = Some(vec!["auto".into(), "opaque".into()]);
            "Pictures have no transparency."
        }
        "images" => "Exactly one.",
        "images[].image_url" | "mask.image_url" => {
            schema.min_length = Some(1);
            "An `https:` URL of a host on the public internet, or a `data:` URL in base64."
        }
        "mask" => "Of the same size; its transparent parts are painted anew.",
        "strength" => {
            schema.exclusive_minimum = Some(0.0_f64.into());
            schema.maximum = Some(1.0_f64.into());
            "The share of the way that the picture is led through; 0.3 where it is left out, with a mask 0.9999."
        }
        "style" => "Kept as a style tag.",
        "stream" => "Answers with events, previews among them.",
        "output_compression" => {
            submission::field(path, schema);
            schema.minimum = Some(0_u32.into());
            "The quality of JPEG; 0 counts as 1."
        }
        other => return submission::field(other, schema),
    };
    schema.description = Some(means.to_owned());
}

#[cfg(test)]
mod tests {
    use contract::json::Fields;
    use contract::{Failure, v1, validate};
    use serde_json::Value;

    use super::*;
    use crate::openapi::{held_against_its_decoder, rules_held_against_decoder};

    fn read_generation(body: &[u8]) -> Result<(), Failure> {
        validate(&request::decode(Fields::parse(body)?, String::new())?.task)
    }

    fn read_edit(body: &[u8]) -> Result<(), Failure> {
        let (mut fields, ..) = edits::named(Fields::parse(body)?)?;
        let strength = fields.number("strength")?;
        let mut task = request::decode(fields, String::new())?.task;
        let image_key = "key".to_owned();
        task.source = Some(v1::Source {
            image_key,
            strength,
            ..Default::default()
        });
        validate(&task)
    }

    /// An edit that names its pictures.
    fn sample_edit() -> Value {
        let picture = json!({"image_url": "https://example.com"});
        json!({"prompt": "p", "images": [picture], "mask": picture})
    }

    /// A request with all that a stream can and cannot have beside it.
    fn with_and_without_streams(sample: &Value) -> Vec<Value> {
        let with = |fields: &[(&str, Value)]| {
            let mut request = sample.clone();
            for (name, value) in fields {
                request[*name] = value.clone();
            }
            request
        };
        let mut requests = vec![with(&[("n", json!(2)), ("response_format", json!("url"))])];
        for stream in [json!(null), json!(false), json!(true)] {
            for n in [json!(null), json!(1), json!(2)] {
                for handed_over in [json!(null), json!("b64_json"), json!("url")] {
                    requests.push(with(&[
                        ("stream", stream.clone()),
                        ("n", n.clone()),
                        ("response_format", handed_over),
                    ]));
                }
            }
        }
        requests
    }

    #[test]
    fn the_schema_of_a_generation_is_what_its_decoder_takes() {
        let sample = json!({"prompt": "p"});
        held_against_its_decoder(&generation().into(), &sample, &read_generation);
    }

    #[test]
    fn what_a_stream_cannot_have_is_refused_by_the_schemas_and_the_decoders() {
        let requests = with_and_without_streams(&json!({"prompt": "p"}));
        rules_held_against_decoder(&generation().into(), &requests, &read_generation);
        let requests = with_and_without_streams(&sample_edit());
        // A form's fields are read as those of JSON are.
        for schema in [edit_by_reference(), edit()] {
            rules_held_against_decoder(&schema.into(), &requests, &read_edit);
        }
    }

    #[test]
    fn the_schema_of_an_edit_is_what_its_decoder_takes() {
        held_against_its_decoder(&edit_by_reference().into(), &sample_edit(), &read_edit);
    }
}
