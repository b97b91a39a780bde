//! What this dialect takes, described by its decoder.

use contract::limits::{MAX_IMAGES, MAX_PAGE_SIZE};
use serde_json::{Map, Value, json};
use utoipa::openapi::path::Parameter;
use utoipa::openapi::schema::{ArrayItems, Schema};
use utoipa::openapi::{Object, OneOfBuilder, RefOr, Required};

use super::list::{MAX_LOOKED_AT, STATUSES};
use super::request::{self, Form};
use super::source::{OF_THE_PICTURE, PICTURES};
use crate::openapi::params::{header, params, query};
use crate::openapi::schema::{
    About, component, given, request as request_schema, rule, text, where_there, whole, with, word,
};
use crate::openapi::submission;

component!(
    /// `POST …/text2image/image-synthesis`
    Synthesis,
    "DashScopeSynthesis",
    [],
    synthesis()
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

/// A moment on a day that there is: whoever makes one up by the document is not to be refused for a 31st of November.
pub(super) fn moment() -> Object {
    const LONG: &str = "(0[13578]|1[02])(0[1-9]|[12][0-9]|3[01])";
    const SHORT: &str = "(0[469]|11)(0[1-9]|[12][0-9]|30)";
    const FEBRUARY: &str = "02(0[1-9]|1[0-9]|2[0-8])";
    // Of years that 4 divides, but for those of the centuries that 4 does not divide.
    const LEAP: &str = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)0229";
    const CLOCK: &str = "([01][0-9]|2[0-3])[0-5][0-9][0-5][0-9]";
    let mut time = text();
    // Empty is as good as left out.
    time.pattern = Some(format!(
        "^(([0-9]{{4}}({LONG}|{SHORT}|{FEBRUARY})|{LEAP}){CLOCK})?$"
    ));
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

fn synthesis() -> Object {
    let mut request = described(SYNTHESES, Form::Prompt);
    for (i, one) in PICTURES.into_iter().enumerate() {
        for other in PICTURES.into_iter().skip(i + 1) {
            let both = with("input", says(&[one, other]));
            rule(&mut request, json!({"not": both}));
        }
    }
    let does = with("input", says(&["function"]));
    let to = with("input", says(&["base_image_url"]));
    rule(&mut request, json!({"if": does, "then": to}));
    let no_picture = where_there("input", says_nothing(&PICTURES));
    rules_of_strength(&mut request, &no_picture);
    request
}

/// What is said of a picture needs one, and how much of it stays is said once.
fn rules_of_strength(request: &mut Object, no_picture: &Value) {
    let nothing = where_there("parameters", says_nothing(&OF_THE_PICTURE));
    rule(request, json!({"if": no_picture, "then": nothing}));
    let both = with("parameters", says(&["ref_strength", "strength"]));
    rule(request, json!({"not": both}));
}

/// What is as good as left out, as [`Fields::says`](crate::json::Fields::says) sees it.
fn silent() -> Value {
    json!({"enum": [null, "", [], false]})
}

/// Has all of these fields, and each says something.
fn says(names: &[&str]) -> Value {
    let each = names.iter();
    let fields = each.map(|name| ((*name).to_owned(), json!({"not": silent()})));
    let fields: Map<_, _> = fields.collect();
    json!({"type": "object", "required": names, "properties": fields})
}

/// Has none of these fields that says something.
fn says_nothing(names: &[&str]) -> Value {
    let fields = names.iter().map(|name| ((*name).to_owned(), silent()));
    let fields: Map<_, _> = fields.collect();
    json!({"properties": fields})
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
    let content = |said: Value| {
        let messages = json!({"items": where_there("content", said)});
        where_there("input", where_there("messages", messages))
    };
    let is_there = json!({"required": ["input"]});
    for (part, least) in [("text", 1), ("image", 0)] {
        let one = json!({"contains": given(part), "minContains": least, "maxContains": 1});
        rule(&mut request, json!({"if": is_there, "then": content(one)}));
    }
    let picture = json!({"type": "array", "contains": given("image")});
    rules_of_strength(&mut request, &content(json!({"not": picture})));
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
        "parameters.watermark" => return submission::field("visible_label", schema),
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

    use super::*;
    use crate::openapi::{held_against_its_decoder, rules_held_against_decoder};

    fn read(form: Form) -> impl Fn(&[u8]) -> Result<(), Failure> {
        move |body| {
            let wish = request::decode(Fields::parse(body)?, form, String::new())?;
            let mut task = wish.task;
            task.source = wish.source.map(|source| v1::Source {
                image_key: "key".to_owned(),
                strength: source.strength,
                ..Default::default()
            });
            validate(&task)
        }
    }

    const PICTURE: &str = "https://example.com";

    /// What may be said of a picture, and what may not.
    fn parameters() -> [Value; 6] {
        [
            json!(null),
            json!({}),
            json!({"strength": 0.5}),
            json!({"ref_strength": 0.5, "strength": null}),
            json!({"ref_strength": 0.5, "strength": 0.5}),
            json!({"ref_mode": "repaint"}),
        ]
    }

    #[test]
    fn what_goes_together_with_a_picture_is_said_by_the_schema_as_by_the_decoder() {
        let mut requests = Vec::new();
        let one = [json!(null), json!(""), json!(PICTURE)];
        let list = [json!(null), json!([]), json!([PICTURE])];
        for ref_img in &one {
            for base_image_url in &one {
                for images in &list {
                    for function in [json!(null), json!(""), json!("description_edit")] {
                        for parameters in parameters() {
                            requests.push(json!({"parameters": parameters, "input": {
                                "prompt": "p", "ref_img": ref_img, "base_image_url": base_image_url,
                                "images": images, "function": function,
                            }}));
                        }
                    }
                }
            }
        }
        rules_held_against_decoder(&synthesis().into(), &requests, &read(Form::Prompt));
    }

    #[test]
    fn what_a_message_may_hold_is_said_by_the_schema_as_by_the_decoder() {
        let (text, image) = (json!({"text": "p"}), json!({"image": PICTURE}));
        let contents = [
            json!("p"),
            json!([]),
            json!([text]),
            json!([image]),
            json!([text, image]),
            json!([{"text": "p", "image": PICTURE}]),
            json!([{"text": "p", "image": null}]),
            json!([text, text]),
            json!([text, image, image]),
        ];
        let mut requests = Vec::new();
        for content in &contents {
            for parameters in parameters() {
                let messages = json!([{"role": "user", "content": content}]);
                requests.push(json!({"input": {"messages": messages}, "parameters": parameters}));
            }
        }
        rules_held_against_decoder(&message().into(), &requests, &read(Form::Messages));
    }

    #[test]
    fn the_schemas_of_both_forms_are_what_their_decoder_takes() {
        let sample = json!({"input": {"prompt": "p", "base_image_url": PICTURE}, "parameters": {}});
        held_against_its_decoder(&synthesis().into(), &sample, &read(Form::Prompt));
        let content = json!([{"text": "p"}, {"image": PICTURE}]);
        let messages = json!([{"role": "user", "content": content}]);
        let sample = json!({"input": {"messages": messages}, "parameters": {}});
        held_against_its_decoder(&message().into(), &sample, &read(Form::Messages));
    }
}
