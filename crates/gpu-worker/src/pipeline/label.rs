//! What a file says about its origin (GB 45438-2025, implicit label).

use aws_lc_rs::digest::{Context, SHA256};
use diffusion::{PromptSyntax, Request};
use imaging::Label;

/// "AI-generated", in the standard's words.
const GENERATED: &str = "1";

/// The label of a picture. It is a function of what the picture is a function of, so that the same request and seed
/// give the same file, byte by byte.
pub(super) fn label(content_producer: &str, model_digest: &str, request: &Request) -> Label {
    Label {
        label: GENERATED.to_owned(),
        content_producer: content_producer.to_owned(),
        produce_id: produce_id(model_digest, request),
        reserved_code1: String::new(),
        content_propagator: String::new(),
        propagate_id: String::new(),
        reserved_code2: String::new(),
    }
}

/// The first 128 bits of a SHA-256 over the model's digest and the whole request, lower-case hex.
fn produce_id(model_digest: &str, request: &Request) -> String {
    // Every field, so that a new one is not forgotten here.
    let Request {
        prompt,
        prompt_syntax,
        negative_prompt,
        width,
        height,
        steps,
        guidance_scale,
        guidance_rescale,
        eta,
        seed,
        scheduler,
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
    // Left out where it has no effect, so that older requests keep their ids.
    if *guidance_rescale > 0.0 {
        field(b"guidance_rescale");
        field(&guidance_rescale.to_le_bytes());
    }
    if *prompt_syntax != PromptSyntax::Plain {
        field(b"prompt_syntax");
        field(prompt_syntax.to_string().as_bytes());
    }
    if let Some(eta) = eta {
        field(b"eta");
        field(&eta.to_le_bytes());
    }
    hex::encode(&hash.finish().as_ref()[..16])
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use diffusion::SchedulerKind;

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
        let id = produce_id("m", &request());
        assert_eq!(id, produce_id("m", &request()));
        assert_eq!(id.len(), 32);
    }

    #[test]
    fn a_request_of_before_keeps_the_id_that_it_had() {
        // SHA-256 over what the first version fed: model, prompt, no negative, no scheduler, 128, 64, 12, 2.0, 1.
        let id = produce_id("m", &request());
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
        let mut ids: HashSet<String> = others.iter().map(|r| produce_id("m", r)).collect();
        ids.insert(produce_id("another model", &request()));
        assert_eq!(ids.len(), others.len() + 1);
    }
}
