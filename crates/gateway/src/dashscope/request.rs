//! From DashScope's requests to ours.
//!
//! Parameters that are not known are let through: its clients send what its newest models take, and words of their own.

use contract::limits::MAX_IMAGES;
use contract::words::{FORMATS, PROMPT_SYNTAXES, QUALITIES, SCHEDULERS};
use contract::{Failure, v1};

use super::source::{named_picture, source};
use crate::json::{Fields, shorten};
use crate::pictures::{self, Picture, Source};
use crate::problem::{by_n_and_size, by_name};
use crate::styles::with_style;

/// Where a request has its prompt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// `input.prompt`
    Prompt,
    /// `input.messages[].content[].text`
    Messages,
}

/// What a caller of this dialect wants.
#[derive(Debug)]
pub(super) struct Wish {
    /// The request as the platform knows it.
    pub(super) task: v1::SubmitTask,
    /// What it begins from.
    pub(super) source: Option<Source>,
    pub(super) names: Names,
}

/// What decides by which names a request was written.
#[derive(Debug, Clone, Copy)]
pub(super) struct Names {
    form: Form,
    /// The input that is the picture to begin from.
    picture: Option<&'static str>,
    /// Whether the strength came as `ref_strength`.
    stays: bool,
}

impl Names {
    /// A complaint about the task, by the name that its caller wrote.
    pub(super) fn tell(self, failure: Failure) -> Failure {
        let field = failure.field.clone().unwrap_or_default();
        match (field.as_str(), self.form, self.picture) {
            ("prompt", Form::Messages, _) => by_name(failure, "messages[0].content"),
            ("source", _, Some(picture)) => by_name(failure, picture),
            ("strength", ..) if self.stays => by_name(failure, "ref_strength"),
            _ => by_n_and_size(failure),
        }
    }
}

/// Inputs that are or describe pictures in a way that is not understood here.
const OTHER_PICTURES: &[(&str, &str)] = &[
    (
        "ref_image_url",
        "a picture to begin from is named by ref_img",
    ),
    (
        "mask_image_url",
        "masks are taken by /v1/images/edits, as transparency",
    ),
    ("sketch_image_url", "pictures cannot be drawn from sketches"),
];
/// Parameters that would change the picture and cannot.
const NOT_YET: &[(&str, &str)] = &[
    ("bbox_list", "parts of a picture cannot be chosen by boxes"),
    ("color_palette", "palettes cannot be chosen yet"),
    (
        "enable_sequential",
        "pictures of one request do not follow each other; ask for n",
    ),
];
/// DashScope's styles, and the style tag that each is kept as.
const STYLES: &[(&str, Option<&str>)] = &[
    ("<auto>", None),
    ("<photography>", Some("photography")),
    ("<portrait>", Some("portrait")),
    ("<3d cartoon>", Some("3d cartoon")),
    ("<anime>", Some("anime")),
    ("<oil painting>", Some("oil painting")),
    ("<watercolor>", Some("watercolor")),
    ("<sketch>", Some("sketch")),
    ("<chinese painting>", Some("chinese painting")),
    ("<flat illustration>", Some("flat illustration")),
];

/// Reads a request; its failures name DashScope's fields.
pub(super) fn decode(
    mut fields: Fields,
    form: Form,
    idempotency_key: String,
) -> Result<Wish, Failure> {
    let model = fields.text("model")?.unwrap_or_default();
    let mut input = fields.object("input")?;
    let mut parameters = fields.object("parameters")?;
    refuse_what_is_not_there(&input, &parameters)?;
    let (prompt, image) = match form {
        Form::Prompt => {
            let image = named_picture(&mut input)?;
            (input.text("prompt")?.unwrap_or_default(), image)
        }
        Form::Messages => read_message(input.objects("messages")?)?,
    };
    let picture = image.as_ref().map(Picture::field);
    let names = Names {
        form,
        picture,
        stays: parameters.says("ref_strength"),
    };
    let source = source(image, &mut parameters)?;
    // The older requests have it in their input, the newer ones in their parameters.
    let negative_prompt = match input.text("negative_prompt")? {
        Some(text) => Some(text),
        None => parameters.text("negative_prompt")?,
    };
    let (width, height) = match parameters.text("size")? {
        None => (0, 0),
        Some(text) => size(&text)?,
    };
    let images = parameters.small("n")?.unwrap_or(1);
    if !(1..=MAX_IMAGES).contains(&images) {
        let message = format!("n must be 1 to {MAX_IMAGES}, whatever the model, not {images}");
        return Err(Failure::invalid("n", message));
    }
    let style_tags = parameters.texts("style_tags")?;
    let style = parameters.word("style", STYLES)?.flatten();
    let style_tags = with_style(style_tags, style)?;
    let mut task = knobs(&mut parameters)?;
    task.model = model;
    task.prompt = prompt;
    task.negative_prompt = negative_prompt.unwrap_or_default();
    (task.width, task.height, task.images) = (width, height, images);
    task.style_tags = style_tags;
    task.idempotency_key = idempotency_key;
    Ok(Wish {
        task,
        source,
        names,
    })
}

/// The parameters that mean here what they mean in our own dialect, most by the same name; all but `seed` and `watermark` are ours.
fn knobs(parameters: &mut Fields) -> Result<v1::SubmitTask, Failure> {
    Ok(v1::SubmitTask {
        seed: parameters.large("seed")?,
        steps: parameters.small("steps")?.unwrap_or_default(),
        guidance_scale: parameters.number("guidance_scale")?,
        scheduler: parameters
            .word("scheduler", SCHEDULERS)?
            .unwrap_or_default()
            .into(),
        quality: parameters
            .word("quality", QUALITIES)?
            .unwrap_or_default()
            .into(),
        output_format: parameters
            .word("output_format", FORMATS)?
            .unwrap_or_default()
            .into(),
        output_compression: parameters.small("output_compression")?,
        prompt_syntax: parameters
            .word("prompt_syntax", PROMPT_SYNTAXES)?
            .unwrap_or_default()
            .into(),
        guidance_rescale: parameters.number("guidance_rescale")?,
        user: parameters.text("user")?.unwrap_or_default(),
        expires_after_seconds: parameters
            .small("expires_after_seconds")?
            .unwrap_or_default(),
        visible_label: parameters.truth("watermark")?.unwrap_or_default(),
        ..Default::default()
    })
}

fn refuse_what_is_not_there(input: &Fields, parameters: &Fields) -> Result<(), Failure> {
    let other = OTHER_PICTURES.iter().find(|(name, _)| input.says(name));
    let not_yet = NOT_YET.iter().find(|(name, _)| parameters.says(name));
    if let Some((name, why)) = other.or(not_yet) {
        return Err(Failure::invalid(
            *name,
            format!("{name} must be left out: {why}"),
        ));
    }
    Ok(())
}

/// The text of the one message that a request for pictures consists of, and the picture in it.
fn read_message(messages: Vec<Fields>) -> Result<(String, Option<Picture>), Failure> {
    let invalid = |message: String| Failure::invalid("messages", message);
    let count = messages.len();
    let mut messages = messages.into_iter();
    let (Some(mut message), None) = (messages.next(), messages.next()) else {
        return Err(invalid(format!(
            "messages must have exactly one message, not {count}"
        )));
    };
    match message.text("role")?.as_deref() {
        None | Some("user") => {}
        Some(role) => {
            let role = shorten(role);
            return Err(invalid(format!(
                "messages[0].role must be user, not {role:?}"
            )));
        }
    }
    if message.is_text("content") {
        return Ok((message.text("content")?.unwrap_or_default(), None));
    }
    let (mut texts, mut images) = (Vec::new(), Vec::new());
    for (i, mut part) in message.objects("content")?.into_iter().enumerate() {
        texts.extend(part.text("text")?);
        if let Some(image) = part.text("image")? {
            let place = format!("messages[0].content[{i}].image");
            images.push(Picture::named("messages", place, image)?);
        }
    }
    let image = match images.is_empty() {
        true => None,
        false => Some(pictures::only("messages", images)?),
    };
    let count = texts.len();
    match (texts.pop(), texts.is_empty()) {
        (Some(text), true) => Ok((text, image)),
        _ => Err(invalid(format!(
            "messages[0].content must have one text, not {count}: what to draw"
        ))),
    }
}

/// Reads `WIDTH*HEIGHT`.
fn size(text: &str) -> Result<(u32, u32), Failure> {
    let side = |digits: &str| {
        let plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        let side = plain.then(|| digits.parse::<u32>().ok()).flatten();
        side.filter(|side| *side > 0)
    };
    let sides = text.split_once('*');
    let sides = sides.and_then(|(w, h)| Some((side(w)?, side(h)?)));
    sides.ok_or_else(|| {
        let shown = shorten(text);
        let message =
            format!("size must be WIDTH*HEIGHT in pixels such as 1024*1024, not {shown:?}");
        Failure::invalid("size", message)
    })
}

#[cfg(test)]
pub(super) mod tests {
    use contract::validate;
    use proptest::prelude::*;

    use super::*;

    pub(in crate::dashscope) fn read(form: Form, body: &str) -> Result<v1::SubmitTask, Failure> {
        wish(form, body).map(|wish| wish.task)
    }

    pub(in crate::dashscope) fn wish(form: Form, body: &str) -> Result<Wish, Failure> {
        decode(Fields::parse(body.as_bytes())?, form, String::new())
    }

    pub(in crate::dashscope) fn field(form: Form, body: &str) -> String {
        let failure = read(form, body).unwrap_err();
        assert!(failure.message.contains(failure.field.as_deref().unwrap()));
        failure.field.unwrap()
    }

    #[test]
    fn a_synthesis_is_read_as_the_package_sends_it() {
        let task = read(
            Form::Prompt,
            r#"{"model":"m","parameters":{"n":2,"size":"128*96","seed":7,"style":"<3d cartoon>","watermark":false,
            "prompt_extend":true,"steps":20,"guidance_scale":2.5,"scheduler":"euler","output_format":"webp"},
            "input":{"prompt":"a cat","negative_prompt":"dogs"}}"#,
        )
        .unwrap();
        let expected = v1::SubmitTask {
            model: "m".to_owned(),
            prompt: "a cat".to_owned(),
            negative_prompt: "dogs".to_owned(),
            width: 128,
            height: 96,
            images: 2,
            seed: Some(7),
            steps: 20,
            guidance_scale: Some(2.5),
            scheduler: v1::Scheduler::Euler.into(),
            output_format: v1::OutputFormat::Webp.into(),
            style_tags: vec!["3d cartoon".to_owned()],
            ..Default::default()
        };
        assert_eq!(task, expected);
    }

    #[test]
    fn a_message_is_read_with_its_text_as_a_part_or_as_a_whole() {
        for content in [r#"[{"text":"a cat"}]"#, r#""a cat""#] {
            let body = format!(
                r#"{{"model":"m","input":{{"messages":[{{"role":"user","content":{content}}}]}},
                "parameters":{{"negative_prompt":"dogs","is_async":true}}}}"#
            );
            let task = read(Form::Messages, &body).unwrap();
            assert_eq!((task.prompt.as_str(), task.images), ("a cat", 1));
            assert_eq!(task.negative_prompt, "dogs");
            assert!(validate(&task).is_ok());
        }
    }

    #[test]
    fn what_the_platform_complains_of_is_told_by_the_name_that_was_written() {
        let prompt = r#"{"input":{"prompt":"p","images":["https://h/x"]}}"#;
        let stays = r#"{"input":{"prompt":"p","images":["https://h/x"]},"parameters":{"ref_strength":0.9}}"#;
        let message =
            r#"{"input":{"messages":[{"content":[{"image":"https://h/x"},{"text":"p"}]}]}}"#;
        for (form, body, field, told) in [
            (Form::Prompt, prompt, "images", "n must be"),
            (Form::Prompt, prompt, "height", "size: height must be"),
            (Form::Prompt, prompt, "prompt", "prompt must be"),
            (Form::Prompt, prompt, "source", "images must be"),
            (Form::Prompt, prompt, "steps", "steps must be"),
            (Form::Prompt, prompt, "strength", "strength must be"),
            (Form::Prompt, stays, "strength", "ref_strength must be"),
            (Form::Messages, message, "images", "n must be"),
            (
                Form::Messages,
                message,
                "prompt",
                "messages[0].content must be",
            ),
            (Form::Messages, message, "source", "messages must be"),
        ] {
            let names = wish(form, body).unwrap().names;
            let failure = Failure::invalid(field, format!("{field} must be"));
            assert_eq!(names.tell(failure).message, told, "{field} of {form:?}");
        }
    }

    #[test]
    fn messages_that_are_not_one_text_are_refused() {
        for messages in [
            "[]",
            r#"[{"role":"system","content":[{"text":"a"}]}]"#,
            r#"[{"content":[{"text":"a"}]},{"content":[{"text":"b"}]}]"#,
            r#"[{"content":[{"text":"a"},{"text":"b"}]}]"#,
            r#"[{"content":[{"image":"https://h/x.png"}]}]"#,
            r#"[{"content":[{"text":"a"},{"image":"https://h/x.png"},{"image":"https://h/y.png"}]}]"#,
            r#"[{"content":[{"text":"a"},{"image":"data:image/png,x"}]}]"#,
            r#"[{"content":[]}]"#,
            r#"["a"]"#,
            r#""a""#,
        ] {
            let body = format!(r#"{{"input":{{"messages":{messages}}}}}"#);
            assert_eq!(field(Form::Messages, &body), "messages", "{messages}");
        }
    }

    #[test]
    fn what_is_not_there_yet_is_refused_by_its_name_and_nothing_said_is_let_through() {
        for (name, _) in OTHER_PICTURES {
            let body = format!(r#"{{"input":{{"prompt":"p","{name}":"http://h/x.png"}}}}"#);
            assert_eq!(field(Form::Prompt, &body), *name);
            let body = format!(r#"{{"input":{{"prompt":"p","{name}":""}}}}"#);
            assert!(read(Form::Prompt, &body).is_ok());
        }
        for (name, _) in NOT_YET {
            let body = format!(r#"{{"input":{{"prompt":"p"}},"parameters":{{"{name}":true}}}}"#);
            assert_eq!(field(Form::Prompt, &body), *name);
            let body = format!(r#"{{"input":{{"prompt":"p"}},"parameters":{{"{name}":null}}}}"#);
            assert!(read(Form::Prompt, &body).is_ok());
        }
    }

    #[test]
    fn what_cannot_be_is_refused_by_dashscopes_name() {
        for bad in ["1024x1024", "1024", "*", "0*64", "1e3*64", "999999*64", ""] {
            let body = format!(r#"{{"parameters":{{"size":"{bad}"}}}}"#);
            assert_eq!(field(Form::Prompt, &body), "size", "{bad}");
        }
        assert_eq!(field(Form::Prompt, r#"{"parameters":{"n":0}}"#), "n");
        assert_eq!(field(Form::Prompt, r#"{"parameters":{"n":11}}"#), "n");
        assert_eq!(
            field(Form::Prompt, r#"{"parameters":{"style":"x"}}"#),
            "style"
        );
        let tags = vec!["\"a\""; 16].join(",");
        let full = format!(r#"{{"parameters":{{"style":"<anime>","style_tags":[{tags}]}}}}"#);
        assert_eq!(field(Form::Prompt, &full), "style");
        assert_eq!(field(Form::Prompt, r#"{"parameters":[]}"#), "parameters");
        assert_eq!(field(Form::Prompt, r#"{"input":"a cat"}"#), "input");
        // As in every dialect, what is missing altogether is found by the check that all of them share.
        let task = read(Form::Prompt, "{}").unwrap();
        assert_eq!(
            validate(&task).unwrap_err().field.as_deref(),
            Some("prompt")
        );
    }

    #[test]
    fn a_watermark_is_the_visible_label_and_none_is_no_request_for_one() {
        let body = |watermark: &str| {
            format!(r#"{{"input":{{"prompt":"p"}},"parameters":{{"watermark":{watermark}}}}}"#)
        };
        for (watermark, asked) in [("true", true), ("false", false), ("null", false)] {
            let task = read(Form::Prompt, &body(watermark)).unwrap();
            assert_eq!(task.visible_label, asked, "{watermark}");
        }
        for other in ["1", "\"true\"", "{}"] {
            assert_eq!(field(Form::Prompt, &body(other)), "watermark", "{other}");
        }
    }

    #[test]
    fn a_task_may_be_given_a_time_to_begin_within_as_in_our_own_dialect() {
        let body = |seconds: i64| {
            format!(
                r#"{{"input":{{"prompt":"p"}},"parameters":{{"expires_after_seconds":{seconds}}}}}"#
            )
        };
        let task = read(Form::Prompt, &body(60)).unwrap();
        assert_eq!(task.expires_after_seconds, 60);
        assert_eq!(field(Form::Prompt, &body(-1)), "expires_after_seconds");
        let task = read(Form::Prompt, &body(604_801)).unwrap();
        assert_eq!(
            validate(&task).unwrap_err().field.as_deref(),
            Some("expires_after_seconds")
        );
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(fields) = Fields::parse(&body) {
                let _ = decode(fields, Form::Prompt, String::new());
            }
        }

        #[test]
        fn no_values_make_the_decoder_panic(
            name in "prompt|messages|size|n|seed|style|content|text|ref_img|images|function|ref_strength",
            value in "null|-1|1e400|\"[0-9]{0,6}\\*[0-9]{0,6}\"|\\[1\\]|\\[\\{\\}\\]|\\{\\}|true|\\[\\{\"content\":\\[\\{\"text\":1\\}\\]\\}\\]",
        ) {
            for form in [Form::Prompt, Form::Messages] {
                let body = format!("{{\"input\":{{\"{name}\":{value}}},\"parameters\":{{\"{name}\":{value}}}}}");
                if let Ok(task) = read(form, &body) {
                    let _ = validate(&task);
                }
            }
        }
    }
}
