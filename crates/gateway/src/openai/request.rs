//! From OpenAI's request to ours.
//!
//! Fields that are not known are let through: OpenAI's clients send what their newest models take.

use contract::limits::MAX_IMAGES;
use contract::v1::Quality;
use contract::words::{FORMATS, PROMPT_SYNTAXES, SCHEDULERS};
use contract::{Failure, v1};

use super::response::Kind;
use crate::json::{Fields, shorten};
use crate::styles::with_style;

/// What a caller of this dialect wants.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Wish {
    /// The request as the platform knows it.
    pub(super) task: v1::SubmitTask,
    /// What it is called in events.
    pub(super) kind: Kind,
    /// How the pictures are handed over.
    pub(super) delivery: Delivery,
    /// As events, with previews.
    pub(super) stream: bool,
    /// The caller's own word for the quality, unless it left it to us.
    pub(super) quality: Option<&'static str>,
    /// The parameter that names the picture to begin from, where there is one.
    pub(super) picture: &'static str,
}

/// `response_format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivery {
    /// `b64_json`
    Inline,
    /// `url`
    Url,
}

/// Two generations of that API have two sets of words.
const QUALITIES: &[(&str, (Option<&str>, Quality))] = &[
    ("auto", (None, Quality::Unspecified)),
    ("standard", (Some("standard"), Quality::Standard)),
    ("low", (Some("low"), Quality::Standard)),
    ("medium", (Some("medium"), Quality::Standard)),
    ("hd", (Some("hd"), Quality::Hd)),
    ("high", (Some("high"), Quality::Hd)),
];
const DELIVERIES: &[(&str, Delivery)] = &[("b64_json", Delivery::Inline), ("url", Delivery::Url)];
/// Models whose own API answered with URLs where nothing was said: what was written for them reads no other.
const GAVE_URLS: &[&str] = &["dall-e-2", "dall-e-3"];
const BACKGROUNDS: &[(&str, bool)] = &[("auto", true), ("opaque", true), ("transparent", false)];
const STYLES: &[(&str, &str)] = &[("vivid", "vivid"), ("natural", "natural")];

/// Reads a request; its failures name OpenAI's parameters.
pub(super) fn decode(mut fields: Fields, idempotency_key: String) -> Result<Wish, Failure> {
    let (width, height) = match fields.text("size")?.as_deref() {
        None | Some("auto") => (0, 0),
        Some(text) => size(text)?,
    };
    let images = fields.small("n")?.unwrap_or(1);
    if !(1..=MAX_IMAGES).contains(&images) {
        let message = format!("n must be 1 to {MAX_IMAGES}, whatever the model, not {images}");
        return Err(Failure::invalid("n", message));
    }
    let stream = fields.truth("stream")?.unwrap_or(false);
    let partial_images = fields.small("partial_images")?.unwrap_or(0);
    let delivery = fields.word("response_format", DELIVERIES)?;
    if stream {
        streamable(images, delivery)?;
    }
    if fields.word("background", BACKGROUNDS)? == Some(false) {
        let message = "background must be auto or opaque: pictures have no transparency";
        return Err(Failure::invalid("background", message));
    }
    let (quality, known) = fields
        .word("quality", QUALITIES)?
        .unwrap_or((None, Quality::Unspecified));
    let style_tags = fields.texts("style_tags")?;
    let style_tags = with_style(style_tags, fields.word("style", STYLES)?)?;
    let task = v1::SubmitTask {
        model: fields.text("model")?.unwrap_or_default(),
        prompt: fields.text("prompt")?.unwrap_or_default(),
        negative_prompt: fields.text("negative_prompt")?.unwrap_or_default(),
        width,
        height,
        images,
        seed: fields.large("seed")?,
        steps: fields.small("steps")?.unwrap_or_default(),
        guidance_scale: fields.number("guidance_scale")?,
        scheduler: fields
            .word("scheduler", SCHEDULERS)?
            .unwrap_or_default()
            .into(),
        quality: known.into(),
        output_format: fields
            .word("output_format", FORMATS)?
            .unwrap_or_default()
            .into(),
        output_compression: fields
            .small("output_compression")?
            .map(compression)
            .transpose()?,
        partial_images,
        style_tags,
        idempotency_key,
        user: fields.text("user")?.unwrap_or_default(),
        prompt_syntax: fields
            .word("prompt_syntax", PROMPT_SYNTAXES)?
            .unwrap_or_default()
            .into(),
        guidance_rescale: fields.number("guidance_rescale")?,
        source: None,
        webhook: None,
        expires_after_seconds: fields.small("expires_after_seconds")?.unwrap_or_default(),
        visible_label: fields.truth("visible_label")?.unwrap_or_default(),
    };
    let delivery = delivery.unwrap_or(match task.model.as_str() {
        model if GAVE_URLS.contains(&model) && !stream => Delivery::Url,
        _ => Delivery::Inline,
    });
    Ok(Wish {
        task,
        kind: Kind::Generation,
        delivery,
        stream,
        quality,
        picture: "image",
    })
}

/// OpenAI counts from 0; encoders from 1.
fn compression(level: u32) -> Result<u32, Failure> {
    if level > 100 {
        let message = format!("output_compression must be 0 to 100, not {level}");
        return Err(Failure::invalid("output_compression", message));
    }
    Ok(level.max(1))
}

fn streamable(images: u32, delivery: Option<Delivery>) -> Result<(), Failure> {
    if images != 1 {
        return Err(Failure::invalid(
            "n",
            format!("n must be 1 with stream, not {images}"),
        ));
    }
    if delivery == Some(Delivery::Url) {
        let message = "response_format must be b64_json with stream: events carry the pictures";
        return Err(Failure::invalid("response_format", message));
    }
    Ok(())
}

/// Reads `WIDTHxHEIGHT`.
fn size(text: &str) -> Result<(u32, u32), Failure> {
    let side = |digits: &str| {
        let plain = (1..=5).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_digit());
        plain
            .then(|| digits.parse::<u32>().ok())
            .flatten()
            .filter(|side| *side > 0)
    };
    let sides = text
        .split_once('x')
        .and_then(|(w, h)| Some((side(w)?, side(h)?)));
    sides.ok_or_else(|| {
        let shown = shorten(text);
        let message =
            format!("size must be auto or WIDTHxHEIGHT in pixels such as 256x256, not {shown:?}");
        Failure::invalid("size", message)
    })
}

#[cfg(test)]
mod tests {
    use contract::validate;
    use proptest::prelude::*;

    use super::*;

    fn read(body: &str) -> Result<Wish, Failure> {
        decode(Fields::parse(body.as_bytes())?, String::new())
    }

    fn field(body: &str) -> Option<String> {
        read(body).unwrap_err().field
    }

    #[test]
    fn a_prompt_alone_asks_for_one_picture_inside_the_answer() {
        let wish = read(r#"{"prompt":"a cat"}"#).unwrap();
        assert_eq!(wish.delivery, Delivery::Inline);
        assert_eq!(
            (wish.task.images, wish.task.width, wish.task.quality),
            (1, 0, 0)
        );
        assert!(!wish.stream);
        assert!(validate(&wish.task).is_ok());
    }

    #[test]
    fn a_request_for_a_model_that_gave_urls_is_answered_with_them_unless_it_says_otherwise() {
        let delivery = |more: &str| {
            let wish = read(&format!(r#"{{"prompt":"p",{more}}}"#));
            wish.unwrap().delivery
        };
        for model in ["dall-e-2", "dall-e-3"] {
            let with = |more: &str| delivery(&format!(r#""model":"{model}"{more}"#));
            assert_eq!(with(""), Delivery::Url);
            assert_eq!(with(r#","response_format":null"#), Delivery::Url);
            assert_eq!(with(r#","response_format":"b64_json""#), Delivery::Inline);
            assert_eq!(with(r#","stream":true"#), Delivery::Inline);
        }
        assert_eq!(delivery(r#""model":"gpt-image-1""#), Delivery::Inline);
    }

    #[test]
    fn openais_words_are_translated() {
        let wish = read(
            r#"{"prompt":"p","model":"m","n":2,"size":"128x96","quality":"high","response_format":"url",
            "background":"opaque","output_format":"jpeg","output_compression":0,"style":"vivid","user":"u",
            "style_tags":["3d"],"seed":7,"moderation":"low","some_new_thing":{"x":1}}"#,
        );
        let wish = wish.unwrap();
        assert_eq!(
            (wish.task.width, wish.task.height, wish.task.images),
            (128, 96, 2)
        );
        assert_eq!(wish.task.quality(), Quality::Hd);
        assert_eq!(wish.quality, Some("high"));
        assert_eq!(wish.delivery, Delivery::Url);
        assert_eq!(wish.task.output_compression, Some(1));
        assert_eq!(wish.task.style_tags, ["3d", "vivid"]);
    }

    #[test]
    fn what_cannot_be_is_refused_by_openais_name() {
        let named = |name: &str| Some(name.to_owned());
        for bad in [
            "1024",
            "x",
            "0x64",
            "64X64",
            "1e3x64",
            "999999x64",
            "-64x64",
            "64x64x64",
            "",
        ] {
            assert_eq!(
                field(&format!(r#"{{"prompt":"p","size":"{bad}"}}"#)),
                named("size"),
                "{bad}"
            );
        }
        assert_eq!(field(r#"{"n":0}"#), named("n"));
        assert_eq!(field(r#"{"n":"2"}"#), named("n"));
        assert_eq!(
            field(r#"{"background":"transparent"}"#),
            named("background")
        );
        assert_eq!(field(r#"{"stream":true,"n":2}"#), named("n"));
        assert_eq!(
            field(r#"{"stream":true,"response_format":"url"}"#),
            named("response_format")
        );
        assert_eq!(field(r#"{"quality":"best"}"#), named("quality"));
        assert_eq!(field(r#"{"style":"baroque"}"#), named("style"));
        let tags = vec!["\"a\""; 16].join(",");
        let full = format!(r#"{{"style":"vivid","style_tags":[{tags}]}}"#);
        assert_eq!(field(&full), named("style"));
        assert_eq!(field(r#"{"prompt":["a"]}"#), named("prompt"));
        let failure = read(r#"{"output_compression":101}"#).unwrap_err();
        assert_eq!(failure.field, named("output_compression"));
        assert_eq!(
            failure.message,
            "output_compression must be 0 to 100, not 101"
        );
    }

    #[test]
    fn our_own_options_come_beside_openais_as_the_package_sends_its_extra_body() {
        let wish = read(
            r#"{"prompt":"a (cat:1.3)","scheduler":"euler-ancestral","prompt_syntax":"weighted","guidance_rescale":0.7,
            "visible_label":true}"#,
        )
        .unwrap();
        assert_eq!(wish.task.scheduler(), v1::Scheduler::EulerAncestral);
        assert_eq!(wish.task.prompt_syntax(), v1::PromptSyntax::Weighted);
        assert_eq!(wish.task.guidance_rescale, Some(0.7));
        assert!(wish.task.visible_label);
        assert!(validate(&wish.task).is_ok());
        let failure = read(r#"{"prompt":"p","scheduler":"plms"}"#).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("scheduler"));
        assert!(failure.message.contains("dpm++2m-sde-karras"), "{failure}");
        let named = Some("prompt_syntax".to_owned());
        assert_eq!(field(r#"{"prompt_syntax":"lpw"}"#), named);
    }

    #[test]
    fn a_task_may_be_given_a_time_to_begin_within_as_in_our_own_dialect() {
        let wish = read(r#"{"prompt":"p","expires_after_seconds":60}"#).unwrap();
        assert_eq!(wish.task.expires_after_seconds, 60);
        let named = Some("expires_after_seconds".to_owned());
        assert_eq!(field(r#"{"expires_after_seconds":-1}"#), named);
        let wish = read(r#"{"prompt":"p","expires_after_seconds":604801}"#).unwrap();
        assert_eq!(validate(&wish.task).unwrap_err().field, named);
    }

    #[test]
    fn null_means_the_default_as_in_openais_clients() {
        let wish =
            read(r#"{"prompt":"p","size":null,"n":null,"stream":null,"user":null}"#).unwrap();
        assert_eq!(wish.task.images, 1);
    }

    proptest! {
        #[test]
        fn no_size_makes_the_reader_panic(text in "\\PC{0,12}|[0-9]{0,9}x[0-9]{0,9}") {
            if let Ok((width, height)) = size(&text) {
                prop_assert!((1..100_000).contains(&width) && (1..100_000).contains(&height));
            }
        }

        #[test]
        fn no_bytes_make_the_decoder_panic(body in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(fields) = Fields::parse(&body) {
                let _ = decode(fields, String::new());
            }
        }
    }
}
