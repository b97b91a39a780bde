//! What a file says about its origin (GB 45438-2025, implicit label).

use aws_lc_rs::digest::{Context, SHA256};
use diffusion::Request;
use imaging::Label;

/// "AI-generated", in the standard's words.
const GENERATED: &str = "1";

/// The label of a picture. It is a function of what the picture is a function of, so that the same request and seed
/// give the same file, byte by byte. `visible`: it has a label to be seen as well.
pub(super) fn label(
    content_producer: &str,
    model_digest: &str,
    request: &Request,
    visible: bool,
) -> Label {
    Label {
        label: GENERATED.to_owned(),
        content_producer: content_producer.to_owned(),
        produce_id: produce_id(model_digest, request, visible),
        reserved_code1: String::new(),
        content_propagator: String::new(),
        propagate_id: String::new(),
        reserved_code2: String::new(),
    }
}

/// The first 128 bits of a SHA-256 over the model's digest, the whole request and the label to be seen, lower-case hex.
fn produce_id(model_digest: &str, request: &Request, visible: bool) -> String {
    let Request {
        prompt,
        negative_prompt,
        width,
        height,
        steps,
        guidance_scale,
        seed,
        scheduler,
        image,
        latents,
        mask,
        ..
    } = request;
    let scheduler = scheduler.map(|kind| kind.to_string());
    let mut hash = Context::new(&SHA256);
    let mut field = |bytes: &[u8]| {
        // Lengths keep the border between two fields from moving.
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    field(model_digest.as_bytes());
    field(prompt.as_bytes());
    for text in [negative_prompt.as_deref(), scheduler.as_deref()] {
        field(&[u8::from(text.is_some())]);
        field(text.unwrap_or_default().as_bytes());
    }
    for number in [width, height, steps] {
        field(&number.to_le_bytes());
    }
    field(&guidance_scale.to_le_bytes());
    field(&seed.to_le_bytes());
    // Left out where they are not given, so that requests without them keep their ids.
    if let Some(image) = image {
        field(b"image");
        field(&image.pixels);
    }
    if let Some(latents) = latents {
        field(b"latents");
        for value in &latents.values {
            field(&value.to_le_bytes());
        }
    }
    if let Some(mask) = mask {
        field(b"mask");
        field(&mask.values);
    }
    if let Some(others) = others(request) {
        field(b"others");
        field(others.as_bytes());
    }
    if visible {
        field(b"visible label");
    }
    hex::encode(&hash.finish().as_ref()[..16])
}

/// All that is set of what [`produce_id`] does not name, as JSON: a field that is new to a request is not forgotten.
fn others(request: &Request) -> Option<String> {
    let defaults = Request::default();
    let others = Request {
        prompt: String::new(),
        negative_prompt: None,
        width: defaults.width,
        height: defaults.height,
        steps: defaults.steps,
        guidance_scale: defaults.guidance_scale,
        seed: defaults.seed,
        scheduler: None,
        image: None,
        latents: None,
        mask: None,
        ..request.clone()
    };
    // Numbers, flags and names always have a JSON form.
    (others != defaults).then(|| serde_json::to_string(&others).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use diffusion::{PromptSyntax, SchedulerKind};

    use super::*;

    fn request() -> Request {
        Request {
            prompt: "a cat".to_owned(),
            width: 128,
            height: 64,
            steps: 12,
            guidance_scale: 2.0,
            seed: 1,
            ..Request::default()
        }
    }

    #[test]
    fn the_same_request_has_the_same_id() {
        let id = produce_id("m", &request(), false);
        assert_eq!(id, produce_id("m", &request(), false));
        assert_eq!(id.len(), 32);
    }

    #[test]
    fn a_request_of_before_keeps_the_id_that_it_had() {
        // SHA-256 over what the first version fed: model, prompt, no negative, no scheduler, 128, 64, 12, 2.0, 1.
        let id = produce_id("m", &request(), false);
        assert_eq!(id, "5cb997414b181d1dd8d78c8dc5eda416");
    }

    #[test]
    fn whatever_differs_gives_another_id() {
        let others = [
            Request {
                prompt: "a dog".to_owned(),
                ..request()
            },
            Request {
                negative_prompt: Some(String::new()),
                ..request()
            },
            Request {
                negative_prompt: Some("red".to_owned()),
                ..request()
            },
            Request {
                width: 64,
                height: 128,
                ..request()
            },
            Request {
                steps: 13,
                ..request()
            },
            Request {
                guidance_scale: 2.5,
                ..request()
            },
            Request {
                strength: Some(0.5),
                ..request()
            },
            Request {
                prompt_syntax: PromptSyntax::Weighted,
                ..request()
            },
            Request {
                eta: Some(0.5),
                ..request()
            },
            Request {
                guidance_rescale: 0.5,
                ..request()
            },
            Request {
                seed: 2,
                ..request()
            },
            Request {
                scheduler: Some(SchedulerKind::Euler),
                ..request()
            },
            request(),
        ];
        let id = |request| produce_id("m", request, false);
        let mut ids: HashSet<String> = others.iter().map(id).collect();
        ids.insert(produce_id("another model", &request(), false));
        ids.insert(produce_id("m", &request(), true));
        assert_eq!(ids.len(), others.len() + 2);
    }
}
