//! Weighted and long prompts, from request to picture.

use diffusion::{BeginError, PromptSyntax, Request};

use crate::support::{finish, mini, request, step};

fn weighted(prompt: &str) -> Request {
    Request {
        prompt: prompt.to_owned(),
        prompt_syntax: PromptSyntax::Weighted,
        ..request()
    }
}

fn long() -> Request {
    Request {
        negative_prompt: Some("dog".to_owned()),
        ..weighted(&"a (3d cat:1.2) on a blue background, ".repeat(20))
    }
}

#[test]
fn a_prompt_without_syntax_gives_the_same_picture_either_way() {
    let draw = |request: &Request| finish(mini(), mini().begin(request).unwrap());
    let plain = draw(&request());
    assert_eq!(draw(&weighted(&request().prompt)), plain);
    assert_ne!(
        draw(&weighted("a (3d cat:3) on a [blue] background")),
        plain
    );
}

#[test]
fn a_long_prompt_goes_on_from_bytes_and_shares_steps_with_short_ones_bit_for_bit() {
    let model = mini();
    let alone = [long(), request()].map(|request| finish(model, model.begin(&request).unwrap()));

    let [mut first, mut second] = [long(), request()].map(|request| model.begin(&request).unwrap());
    for _ in 0..2 {
        for progress in model.step(&mut [&mut first, &mut second]) {
            progress.unwrap();
        }
    }
    let mut first = model.resume(&model.snapshot(&first)).unwrap();
    assert_eq!(first.request(), &long());
    step(model, &mut first);
    assert_eq!([finish(model, first), finish(model, second)], alone);
}

#[test]
fn what_a_prompt_may_not_be_is_refused_by_its_field() {
    let refused = |request: &Request| match mini().begin(request) {
        Err(BeginError::Parameter { field, .. }) => field,
        other => panic!("{other:?}"),
    };
    assert_eq!(refused(&weighted("(a cat:11)")), "prompt");
    assert_eq!(refused(&weighted(&"cat ".repeat(601))), "prompt");
    let negative = Request {
        negative_prompt: Some("(".repeat(33)),
        ..weighted("a cat")
    };
    assert_eq!(refused(&negative), "negative_prompt");
    // Nobody reads it where guidance is off.
    let unguided = Request {
        guidance_scale: 1.0,
        ..negative
    };
    assert!(mini().begin(&unguided).is_ok());
}

#[test]
fn a_job_is_said_to_hold_what_its_prompt_needs() {
    let bytes = |request: &Request| mini().job_bytes(request);
    assert_eq!(bytes(&weighted("a cat")), bytes(&request()));
    assert!(bytes(&long()) > bytes(&request()));
}
