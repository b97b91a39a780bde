//! What this dialect takes, described by its decoder.

use contract::limits::{MAX_IMAGES, MAX_PAGE_SIZE};
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::{ArrayItems, Schema};
use utoipa::openapi::{Object, OneOfBuilder, RefOr, Required};

use super::list::{MAX_LOOKED_AT, STATUSES};
use super::request::{self, Form};
use crate::openapi::params::{header, params, query};
use crate::openapi::schema::{About, component, request as request_schema, text, whole, word};
use crate::openapi::submission;

component!(
    /// `POST …/text2image/image-synthesis`
    Synthesis,
    "DashScopeSynthesis",
    [],
    described(SYNTHESES, Form::Prompt)
);

component!(
    /// The requests that look like a message.
    Message,
    "DashScopeMessage",
    [],
    message()
);

params!(
    /// Of what answers at once.
    AsyncParam,
    [needed(header(
        "X-DashScope-Async",
        "Which the package sends; without it the request is refused.",
        word(["enable"])
    ))]
);

params!(
    /// The query of a list.
    ListParams,
    [
        query("page_no", "Which page.", whole(1, MAX_LOOKED_AT as u64)),
        query("page_size", "Tasks on a page.", whole(1, u64::from(MAX_PAGE_SIZE))),
        query("start_time", "`YYYYMMDDhhmmss`, UTC+8.", moment()),
        query("end_time", "`YYYYMMDDhhmmss`, UTC+8.", moment()),
        query("model_name", "", text()),
        query("status", "", word(STATUSES.iter().copied())),
    ]
);

fn needed(mut parameter: Parameter) -> Parameter {
    parameter.required = Required::True;
    parameter
}

fn moment() -> Object {
    let mut time = text();
    let (day, clock) = (
        "(0[1-9]|1[0-2])(0[1-9]|[12][0-9]|3[01])",
        "([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9]",
    );
    // Empty is as good as left out.
    time.pattern = Some(format!("^([0-9]{{4}}{day}{clock})?$"));
    time
}

const ABOUT: About = About {
    field,
    most: |path| match path {
        "input.messages" | "input.images" => Some(1),
        other => submission::most(other.trim_start_matches("parameters.")),
    },
    required: &[
        "input",
        "input.prompt",
        "input.messages",
        "input.messages[].content",
    ],
};

/// One for each name of a picture: of several, one can be given.
const SYNTHESES: &[&str] = &[
    r#"{"input":{"ref_img":"https://example.com"}}"#,
    r#"{"input":{"base_image_url":"https://example.com"}}"#,
    r#"{"input":{"images":["https://example.com"]}}"#,
];
const MESSAGES: &[&str] =
    &[r#"{"input":{"messages":[{"content":[{"text":"p"},{"image":"https://example.com"}]}]}}"#];

fn described(samples: &[&str], form: Form) -> Object {
    let mut all = Vec::new();
    for sample in samples {
        let decode = |fields| request::decode(fields, form, String::new());
        let asked = contract::json::asked(sample, decode).unwrap_or_default();
        all.extend(
            asked
                .into_iter()
                .filter(|one| !all.contains(one))
                .collect::<Vec<_>>(),
        );
    }
    request_schema(&all, &ABOUT)
}

fn message() -> Object {
    let mut request = described(MESSAGES, Form::Messages);
    // A decoder tells only what it was shown: the content may be a text as well.
    if let Some(messages) =
        inside(&mut request, "input").and_then(|i| i.properties.get_mut("messages"))
        && let RefOr::T(Schema::Array(messages)) = messages
    {
        messages.min_items = Some(1);
        if let ArrayItems::RefOrSchema(items) = &mut messages.items
            && let RefOr::T(Schema::Object(message)) = &mut **items
            && let Some(content) = message.properties.get_mut("content")
        {
            let list = std::mem::take(content);
            *content = OneOfBuilder::new().item(prompt()).item(list).into();
        }
    }
    request
}

fn inside<'a>(object: &'a mut Object, name: &str) -> Option<&'a mut Object> {
    match object.properties.get_mut(name) {
        Some(RefOr::T(Schema::Object(object))) => Some(object),
        _ => None,
    }
}

fn prompt() -> Object {
    let mut prompt = text();
    submission::field("prompt", &mut prompt);
    prompt
}

fn field(path: &str, schema: &mut Object) {
    let means = match path {
        "input" | "parameters" => return,
        "input.prompt" | "input.messages[].content[].text" => {
            return submission::field("prompt", schema);
        }
        "input.negative_prompt" => return submission::field("negative_prompt", schema),
        "input.messages" => "Exactly one message, with one text and at most one picture.",
        "input.ref_img"
        | "input.base_image_url"
        | "input.images"
        | "input.messages[].content[].image" => {
            "A picture to begin from: an `https:` URL of a host on the public internet, or a `data:` URL in base64. One of them."
        }
        "input.function" => "What is done to `base_image_url`.",
        "parameters.ref_mode" => {
            schema.enum_values = Some(vec!["repaint".into()]);
            "With a picture only."
        }
        "parameters.ref_strength" => {
            schema.minimum = Some(0.0_f64.into());
            schema.exclusive_maximum = Some(1.0_f64.into());
            "With a picture only: the share of it that stays."
        }
        "parameters.strength" => {
            schema.exclusive_minimum = Some(0.0_f64.into());
            schema.maximum = Some(1.0_f64.into());
            "The same from the other end: the share of the way that it is led through."
        }
        "input.messages[].role" => {
            schema.enum_values = Some(vec!["user".into()]);
            ""
        }
        "parameters.n" => {
            schema.minimum = Some(1_u32.into());
            schema.maximum = Some(MAX_IMAGES.into());
            "Pictures; 1 where it is left out."
        }
        "parameters.size" => {
            schema.pattern = Some(r"^[1-9][0-9]{0,4}\*[1-9][0-9]{0,4}$".to_owned());
            "WIDTH*HEIGHT in pixels."
        }
        "parameters.style" => "Kept as a style tag.",
        other => return submission::field(other.trim_start_matches("parameters."), schema),
    };
    if !means.is_empty() {
        schema.description = Some(means.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use contract::json::Fields;
    use contract::{Failure, v1, validate};
    use serde_json::json;

    use super::*;
    use crate::openapi::held_against_its_decoder;

    #[test]
    fn the_schemas_of_both_forms_are_what_their_decoder_takes() {
        let read = |form| {
            move |body: &[u8]| -> Result<(), Failure> {
                let wish = request::decode(Fields::parse(body)?, form, String::new())?;
                let mut task = wish.task;
                task.source = wish.source.map(|source| v1::Source {
                    image_key: "key".to_owned(),
                    strength: source.strength,
                    ..Default::default()
                });
                validate(&task)
            }
        };
        let picture = "https://example.com";
        let sample = json!({"input": {"prompt": "p", "base_image_url": picture}, "parameters": {}});
        let schema = described(SYNTHESES, Form::Prompt).into();
        held_against_its_decoder(&schema, &sample, &read(Form::Prompt));
        let content = json!([{"text": "p"}, {"image": picture}]);
        let messages = json!([{"role": "user", "content": content}]);
        let sample = json!({"input": {"messages": messages}, "parameters": {}});
        held_against_its_decoder(&message().into(), &sample, &read(Form::Messages));
    }
}
