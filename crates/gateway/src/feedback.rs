//! What a caller says of a task's pictures.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use contract::limits::MAX_RATING;
use contract::words::VERDICTS;
use contract::{Failure, v1, validate_feedback};

use crate::auth::Admitted;
use crate::edge::Edge;
use crate::json::{self, Fields};
use crate::openapi::params::TaskIdParam;
use crate::openapi::submission::Feedback;
use crate::openapi::task::Task;
use crate::problem::{Refused, json as json_answer};
use crate::task_json::TaskJson;
use crate::tasks::TaskPath;

const KNOWN: &[&str] = &["rating", "verdict", "comment", "tags"];

/// `POST /v1/tasks/{id}/feedback`
#[utoipa::path(
    post,
    path = "/v1/tasks/{id}/feedback",
    operation_id = "giveFeedback",
    summary = "Say how good a task's pictures are",
    description = "For a task that has ended. The last word counts.",
    params(TaskIdParam),
    request_body(content = Feedback, example = json!({"rating": 4, "comment": "the whiskers", "tags": ["sharp"]})),
    responses(
        (status = 200, description = "The task with its feedback.", body = Task),
        (status = 400, description = "invalid_argument"),
        (status = 404, description = "task_not_found"),
        (status = 409, description = "not_ready")
    )
)]
pub(crate) async fn give(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    TaskPath(task): TaskPath,
    body: Body,
) -> Result<Response, Refused> {
    let feedback = decode(json::read(body, &edge.http).await?)?;
    validate_feedback(&feedback)?;
    let platform = &edge.platform;
    let task = platform.feedback(&caller, task, feedback).await?;
    let base = edge.public_url(&uri, &headers);
    Ok(json_answer(&TaskJson::new(&task, &base)))
}

/// Reads feedback; when it was given is the platform's to say.
pub(crate) fn decode(mut fields: Fields) -> Result<v1::Feedback, Failure> {
    let rating = fields.small("rating")?;
    if rating == Some(0) {
        // To the contract it means that there is none.
        let message = format!("rating must be 1 to {MAX_RATING}, not 0");
        return Err(Failure::invalid("rating", message));
    }
    let feedback = v1::Feedback {
        rating: rating.unwrap_or_default(),
        verdict: fields.word("verdict", VERDICTS)?.unwrap_or_default().into(),
        comment: fields.text("comment")?.unwrap_or_default(),
        tags: fields.texts("tags")?,
        at: None,
    };
    fields.nothing_else(KNOWN)?;
    Ok(feedback)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(body: &str) -> Result<v1::Feedback, Failure> {
        let feedback = decode(Fields::parse(body.as_bytes())?)?;
        validate_feedback(&feedback)?;
        Ok(feedback)
    }

    #[test]
    fn every_field_of_feedback_is_read() {
        let body = r#"{"rating":4,"verdict":"like","comment":"c","tags":["a","b"]}"#;
        let expected = v1::Feedback {
            rating: 4,
            verdict: v1::Verdict::Like.into(),
            comment: "c".to_owned(),
            tags: vec!["a".to_owned(), "b".to_owned()],
            at: None,
        };
        assert_eq!(read(body).unwrap(), expected);
    }

    #[test]
    fn feedback_that_says_nothing_or_too_much_is_refused_by_its_field() {
        for (bad, field) in [
            ("{}", "rating"),
            (r#"{"rating":0,"verdict":"like"}"#, "rating"),
            (r#"{"rating":6}"#, "rating"),
            (r#"{"verdict":"love"}"#, "verdict"),
            (r#"{"rating":1,"stars":1}"#, "stars"),
        ] {
            assert_eq!(
                read(bad).unwrap_err().field.as_deref(),
                Some(field),
                "{bad}"
            );
        }
    }
}
