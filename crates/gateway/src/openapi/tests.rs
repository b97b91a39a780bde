//! The document against the decoders, the types and itself.

use std::collections::{BTreeMap, BTreeSet};

use contract::json::{Fields, submission, submission_with_key};
use contract::{ErrorCode, Failure, v1, validate, validate_feedback};
use serde_json::{Value, json};
use utoipa::PartialSchema as _;
use utoipa::openapi::{RefOr, Schema};

use super::held::kind_of;
use super::submission::{Feedback, KeyedSubmission, Submission, TokenWish};
use super::task;
use super::{held_against_its_decoder, rules_held_against_decoder};
use crate::problem::{Problem, text};
use crate::task_json::TaskJson;
use crate::{feedback, tokens};

#[test]
fn the_schema_of_a_submission_is_what_its_decoder_takes() {
    let sample = json!({"prompt": "p", "webhook": {"url": "https://example.com"}});
    let read = |body: &[u8]| validate(&submission(Fields::parse(body)?, String::new())?.task);
    held_against_its_decoder(&Submission::schema(), &sample, &read);
    let read = |body: &[u8]| validate(&submission_with_key(Fields::parse(body)?)?.task);
    held_against_its_decoder(&KeyedSubmission::schema(), &sample, &read);
}

#[test]
fn the_schemas_of_feedback_and_of_a_wish_for_a_token_are_what_their_decoders_take() {
    let read = |body: &[u8]| validate_feedback(&feedback::decode(Fields::parse(body)?)?);
    // It needs one of the two, so each can be left out where the other is.
    let sample = json!({"verdict": "like", "rating": 1});
    held_against_its_decoder(&Feedback::schema(), &sample, &read);
    let read = |body: &[u8]| tokens::lifetime_of(Fields::parse(body)?).map(drop);
    held_against_its_decoder(&TokenWish::schema(), &json!({}), &read);
}

#[test]
fn rules_between_fields_are_those_of_the_decoders() {
    let (full, short) = (
        json!({"url": "https://example.com"}),
        json!("https://example.com"),
    );
    let mut requests = vec![json!({"prompt": "p", "webhook": full})];
    for webhook in [&Value::Null, &full] {
        for webhook_url in [&Value::Null, &short] {
            requests.push(json!({"prompt": "p", "webhook": webhook, "webhook_url": webhook_url}));
        }
    }
    let read = |body: &[u8]| validate(&submission(Fields::parse(body)?, String::new())?.task);
    rules_held_against_decoder(&Submission::schema(), &requests, &read);
    let read = |body: &[u8]| validate(&submission_with_key(Fields::parse(body)?)?.task);
    rules_held_against_decoder(&KeyedSubmission::schema(), &requests, &read);
    let read = |body: &[u8]| validate_feedback(&feedback::decode(Fields::parse(body)?)?);
    let requests = [
        json!({}),
        json!({"comment": "c"}),
        json!({"rating": null, "verdict": null}),
        json!({"rating": 1}),
        json!({"rating": null, "verdict": "like"}),
        json!({"rating": 1, "verdict": "like"}),
    ];
    rules_held_against_decoder(&Feedback::schema(), &requests, &read);
}

/// Every field that a value has is in its schema, and every field that the schema says is always there is there.
fn fields_of(value: &Value, schema: &Value, parts: &BTreeMap<String, Value>, place: &str) {
    if let Some(name) = schema["$ref"].as_str() {
        let name = name.trim_start_matches("#/components/schemas/");
        return fields_of(value, &parts[name], parts, place);
    }
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let inner = &schema["properties"][name];
                assert!(inner.is_object(), "{place}.{name} is not in the schema");
                fields_of(value, inner, parts, &format!("{place}.{name}"));
            }
            for name in schema["required"].as_array().into_iter().flatten() {
                let name = name.as_str().unwrap();
                assert!(fields.contains_key(name), "{place}.{name} is not there");
            }
        }
        Value::Array(items) => {
            for item in items {
                fields_of(item, &schema["items"], parts, &format!("{place}[]"));
            }
        }
        _ => {
            let kind = kind_of(value);
            let types = match &schema["type"] {
                Value::Array(types) => types.clone(),
                one => vec![one.clone()],
            };
            let fits = types
                .iter()
                .any(|t| t == kind || (t == "number" && kind == "integer"));
            assert!(fits, "{place} is a {kind}, not one of {types:?}");
            if let Some(words) = schema["enum"].as_array() {
                assert!(
                    words.contains(value),
                    "{place}: {value} is not among {words:?}"
                );
            }
        }
    }
}

fn parts_of<T: utoipa::ToSchema>() -> BTreeMap<String, Value> {
    let mut parts = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut parts);
    let json =
        |(name, schema): (String, RefOr<Schema>)| (name, serde_json::to_value(schema).unwrap());
    parts.into_iter().map(json).collect()
}

#[test]
fn the_schema_of_a_task_is_what_a_task_is_shown_as() {
    let parts = parts_of::<task::Task>();
    let check = |task: &v1::Task| {
        let shown: Value = serde_json::from_str(&text(&TaskJson::new(task, "http://h"))).unwrap();
        fields_of(&shown, &parts["Task"], &parts, "task");
    };
    let time = || Some(prost_types::Timestamp::default());
    let mut full = v1::Task {
        phase: v1::TaskPhase::Succeeded.into(),
        submitted_at: time(),
        ended_at: time(),
        images: vec![v1::ImageInfo {
            format: v1::OutputFormat::Png.into(),
            ..Default::default()
        }],
        error: Some(v1::TaskError {
            code: "internal".to_owned(),
            ..Default::default()
        }),
        feedback: Some(v1::Feedback {
            verdict: v1::Verdict::Like.into(),
            tags: vec!["a".to_owned()],
            at: time(),
            ..Default::default()
        }),
        request: Some(v1::SubmitTask {
            seed: Some(u64::MAX),
            guidance_scale: Some(0.5),
            guidance_rescale: Some(0.5),
            prompt_syntax: v1::PromptSyntax::Plain.into(),
            output_compression: Some(1),
            style_tags: vec!["a".to_owned()],
            scheduler: v1::Scheduler::Ddim.into(),
            webhook: Some(v1::Webhook {
                url: "https://example.com".to_owned(),
                events: vec![v1::TaskEvent::Failed.into()],
            }),
            expires_after_seconds: 60,
            visible_label: true,
            ..Default::default()
        }),
        queue_position: Some(u64::MAX),
        estimated_wait_ms: Some(1),
        runs: vec![v1::Run {
            started_at: time(),
            end: "failed".to_owned(),
            reason: "no".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    check(&full);
    full.error = None;
    full.runs = vec![v1::Run::default()];
    full.feedback = None;
    full.queue_position = None;
    full.estimated_wait_ms = None;
    full.request = Some(v1::SubmitTask::default());
    check(&full);
}

#[test]
fn the_schema_of_a_problem_is_what_a_problem_is_shown_as() {
    let parts = parts_of::<task::Problem>();
    let field = Failure::invalid("width", "no");
    for (failure, instance) in [
        (field, Some("r")),
        (Failure::new(ErrorCode::Internal, "no"), None),
    ] {
        let shown = serde_json::to_value(Problem::new(&failure, instance)).unwrap();
        fields_of(&shown, &parts["Problem"], &parts, "problem");
    }
}

#[test]
fn every_code_says_what_it_means() {
    let meanings: BTreeSet<_> = ErrorCode::ALL.iter().map(|code| code.meaning()).collect();
    assert_eq!(meanings.len(), ErrorCode::ALL.len());
    assert!(
        meanings.iter().all(|text| text.ends_with('.')),
        "{meanings:?}"
    );
}
