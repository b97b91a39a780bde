//! The picture that a request begins from, by DashScope's names.

use contract::Failure;

use crate::json::Fields;
use crate::pictures::{self, Picture, Source};

/// Inputs that are a picture to begin from: of several, one can be given.
pub(super) const PICTURES: [&str; 3] = ["ref_img", "base_image_url", "images"];
/// Parameters that say something of it, and are nothing without.
pub(super) const OF_THE_PICTURE: [&str; 3] = ["ref_strength", "ref_mode", "strength"];
/// What `function` can be: each is a picture led to what the prompt says.
const FUNCTIONS: &[(&str, ())] = &[("description_edit", ()), ("stylization_all", ())];
const REF_MODES: &[(&str, bool)] = &[("repaint", true), ("refonly", false)];

/// The picture that a request's input names, by whichever of DashScope's names.
pub(super) fn named_picture(input: &mut Fields) -> Result<Option<Picture>, Failure> {
    let given: Vec<_> = PICTURES
        .into_iter()
        .filter(|name| input.says(name))
        .collect();
    if input.says("function") && !given.contains(&"base_image_url") {
        let message = "function needs base_image_url: the picture that it is done to";
        return Err(Failure::invalid("function", message));
    }
    if input.says("function") {
        input.word("function", FUNCTIONS)?;
    }
    let Some(&field) = given.first() else {
        return Ok(None);
    };
    if let Some(other) = given.get(1) {
        let message = format!("{other} must be left out beside {field}: one picture is begun from");
        return Err(Failure::invalid(*other, message));
    }
    let (place, text) = match field {
        "images" => ("images[0]", pictures::only(field, input.texts(field)?)?),
        field => (field, input.text(field)?.unwrap_or_default()),
    };
    Picture::named(field, place, text).map(Some)
}

/// What a task begins from, and how far it is led away from it.
pub(super) fn source(
    image: Option<Picture>,
    parameters: &mut Fields,
) -> Result<Option<Source>, Failure> {
    let lonely = OF_THE_PICTURE
        .into_iter()
        .find(|name| parameters.says(name));
    let mode = parameters.word("ref_mode", REF_MODES)?;
    // DashScope counts how much stays, the platform how much goes.
    let stays = parameters.number("ref_strength")?;
    let strength = parameters.number("strength")?;
    let Some(image) = image else {
        return match lonely {
            Some(name) => {
                let message =
                    format!("{name} must be left out where there is no picture to begin from");
                Err(Failure::invalid(name, message))
            }
            None => Ok(None),
        };
    };
    if mode == Some(false) {
        let message = "ref_mode must be repaint: a style cannot be taken from a picture yet";
        return Err(Failure::invalid("ref_mode", message));
    }
    if let Some(share) = stays.filter(|share| !(0.0..1.0).contains(share)) {
        let message = format!("ref_strength must be at least 0 and less than 1, not {share}");
        return Err(Failure::invalid("ref_strength", message));
    }
    if strength.is_some() && stays.is_some() {
        let message =
            "strength must be left out beside ref_strength: they are two names of one thing";
        return Err(Failure::invalid("strength", message));
    }
    Ok(Some(Source {
        image,
        mask: None,
        strength: strength.or(stays.map(|share| 1.0 - share)),
    }))
}

#[cfg(test)]
mod tests {
    use super::super::request::Form;
    use super::super::request::tests::{field, read, wish};

    #[test]
    fn a_picture_is_named_by_each_of_dashscopes_names() {
        let strength = |form, body: &str| wish(form, body).unwrap().source.unwrap().strength;
        let body = r#"{"input":{"prompt":"p","ref_img":"https://h/x"},"parameters":{"ref_strength":0.75,"ref_mode":"repaint"}}"#;
        assert_eq!(strength(Form::Prompt, body), Some(0.25));
        let body = r#"{"input":{"prompt":"p","base_image_url":"https://h/x","function":"description_edit"}}"#;
        assert_eq!(strength(Form::Prompt, body), None);
        let body =
            r#"{"input":{"prompt":"p","images":["https://h/x"]},"parameters":{"strength":0.5}}"#;
        assert_eq!(strength(Form::Prompt, body), Some(0.5));
        let body =
            r#"{"input":{"messages":[{"content":[{"image":"data:;base64,AA"},{"text":"p"}]}]}}"#;
        assert_eq!(strength(Form::Messages, body), None);
        assert_eq!(read(Form::Messages, body).unwrap().prompt, "p");
        assert!(
            wish(Form::Prompt, r#"{"input":{"prompt":"p"}}"#)
                .unwrap()
                .source
                .is_none()
        );
    }

    #[test]
    fn a_picture_that_cannot_be_begun_from_is_refused_by_name() {
        let input = |rest: &str| {
            field(
                Form::Prompt,
                &format!(r#"{{"input":{{"prompt":"p",{rest}}}}}"#),
            )
        };
        assert_eq!(input(r#""images":["https://h/x","https://h/y"]"#), "images");
        assert_eq!(
            input(r#""ref_img":"https://h/x","base_image_url":"https://h/y""#),
            "base_image_url"
        );
        assert_eq!(input(r#""function":"description_edit""#), "function");
        assert_eq!(
            input(r#""base_image_url":"https://h/x","function":"expand""#),
            "function"
        );
        let parameters = |rest: &str| {
            let body = format!(
                r#"{{"input":{{"prompt":"p","ref_img":"https://h/x"}},"parameters":{{{rest}}}}}"#
            );
            field(Form::Prompt, &body)
        };
        assert_eq!(parameters(r#""ref_mode":"refonly""#), "ref_mode");
        assert_eq!(parameters(r#""ref_strength":1"#), "ref_strength");
        assert_eq!(
            parameters(r#""ref_strength":0.5,"strength":0.5"#),
            "strength"
        );
        let alone = r#"{"input":{"prompt":"p"},"parameters":{"ref_strength":0.5}}"#;
        assert_eq!(field(Form::Prompt, alone), "ref_strength");
    }
}
