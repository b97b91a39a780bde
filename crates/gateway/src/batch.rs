//! Many submissions in one request: each is accepted or refused by itself.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use contract::auth::RateLimit;
use contract::json::{Names, Submission, submissions};
use contract::v1::submit_result;
use contract::{Failure, check_batch, v1, validate};
use serde::Serialize;

use crate::auth::Admitted;
use crate::edge::Edge;
use crate::json;
use crate::openapi::submission::Batch;
use crate::openapi::task::BatchAnswer;
use crate::problem::{Problem, Refused, json as json_answer};
use crate::task_json::TaskJson;
use crate::tasks;

/// What came of one submission: the task, and whether it was there before.
pub(crate) type Answer = Result<(v1::Task, bool), Failure>;

#[derive(Serialize)]
struct AnswersJson<'a> {
    results: Vec<AnswerJson<'a>>,
}

/// With the status that the submission would have had by itself.
#[derive(Serialize)]
#[serde(untagged)]
enum AnswerJson<'a> {
    Accepted {
        status: u16,
        existing: bool,
        task: Box<TaskJson<'a>>,
    },
    Refused {
        status: u16,
        error: Problem<'a>,
    },
}

/// `POST /v1/tasks/batch`
#[utoipa::path(
    post,
    path = "/v1/tasks/batch",
    operation_id = "createTasks",
    summary = "Submit many tasks",
    description = "Counts as so many requests against the rate limit, all or none. The fastest way in: what comes together is stored together.",
    request_body(content = Batch, example = json!({"tasks": [{"prompt": "a 3d cat", "steps": 2, "idempotency_key": "order-1"}]})),
    responses(
        (status = 200, description = "That there is an answer for each, in the request's order.", body = BatchAnswer),
        (status = 400, description = "invalid_argument")
    )
)]
pub(crate) async fn create(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Refused> {
    has_no_key(&headers)?;
    let bytes = json::read_bytes(body, &edge.http).await?;
    let (requests, names) = submissions(&bytes)?.into_iter().map(apart).unzip();
    let (answers, limit) = submit(&edge, &caller, requests).await?;
    let answers = told(answers, names);
    let base = edge.public_url(&uri, &headers);
    let results = answers.iter().map(|answer| json_of(answer, &base));
    let mut response = json_answer(&AnswersJson {
        results: results.collect(),
    });
    // For the layer that tells the caller what is left.
    response.extensions_mut().insert(limit);
    Ok(response)
}

/// Refuses an idempotency key that came with a whole batch.
///
/// # Errors
/// An invalid argument that names the header.
pub(crate) fn has_no_key(headers: &HeaderMap) -> Result<(), Failure> {
    if tasks::idempotency_key(headers)?.is_empty() {
        return Ok(());
    }
    let message = "a batch has no idempotency key of its own: give each task an idempotency_key";
    Err(Failure::invalid(tasks::IDEMPOTENCY_KEY, message))
}

/// A submission as every dialect has it, and the names that its caller wrote; what could not be read is told by those already.
fn apart(read: Result<Submission, Failure>) -> (Result<v1::SubmitTask, Failure>, Names) {
    match read {
        Ok(Submission { task, names }) => (Ok(task), names),
        Err(failure) => (Err(failure), Names::default()),
    }
}

/// The answers, each complaint told by the names of its own submission.
fn told(answers: Vec<Answer>, names: Vec<Names>) -> Vec<Answer> {
    let told = |(answer, names): (Answer, Names)| answer.map_err(|failure| names.tell(failure));
    answers.into_iter().zip(names).map(told).collect()
}

fn json_of<'a>(answer: &'a Answer, base: &str) -> AnswerJson<'a> {
    match answer {
        Ok((task, existing)) => AnswerJson::Accepted {
            status: 202,
            existing: *existing,
            task: Box::new(TaskJson::new(task, base)),
        },
        Err(failure) => AnswerJson::Refused {
            status: failure.code.http().as_u16(),
            error: Problem::new(failure, None),
        },
    }
}

/// An answer as the contract has it.
pub(crate) fn result(answer: Answer) -> v1::SubmitResult {
    let result = match answer {
        Ok((task, existing)) => submit_result::Result::Accepted(v1::SubmitResponse {
            task: Some(task),
            existing,
        }),
        Err(failure) => submit_result::Result::Refused(failure.into()),
    };
    v1::SubmitResult {
        result: Some(result),
    }
}

/// Submits those that could be read and are within the contract's limits. Answers are in the requests' order; beside them what is left of
/// the caller's limit, if more was charged.
///
/// # Errors
/// When there are none or too many, the platform has more to do than it can, the caller is over its limit, or nobody could be
/// asked: then no task was made that is known of.
pub(crate) async fn submit(
    edge: &Edge,
    caller: &Admitted,
    requests: Vec<Result<v1::SubmitTask, Failure>>,
) -> Result<(Vec<Answer>, Option<RateLimit>), Failure> {
    check_batch(requests.len())?;
    // Before anything is waited for: what is refused may take many times its bytes in memory, and is let go of.
    let valid = |task: v1::SubmitTask| validate(&task).map(|()| task);
    let requests = requests.into_iter().map(|request| request.and_then(valid));
    let requests: Vec<Result<v1::SubmitTask, Failure>> = requests.collect();
    // Before it is charged: what there is no room for costs its caller no more than the request.
    let _room = edge.platform.batch_room(&caller.tenant, &requests)?;
    // Nor is one charged that came too late for its key.
    let caller = &*edge.platform.still_admitted(caller).await?;
    let limit = edge.platform.charge_batch(caller, requests.len()).await?;
    let mut good = Vec::with_capacity(requests.len());
    let sort = |request: Result<v1::SubmitTask, Failure>| request.map(|task| good.push(task));
    let checked: Vec<Result<(), Failure>> = requests.into_iter().map(sort).collect();
    let mut submitted = edge.platform.submit_batch(caller, good).await?.into_iter();
    let answers = checked.into_iter().filter_map(|one| match one {
        Ok(()) => submitted.next(),
        Err(failure) => Some(Err(failure)),
    });
    Ok((answers.collect(), limit))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use contract::ErrorCode;
    use contract::auth::Caller;
    use lifecycle::Service;

    use super::*;
    use crate::edge::tests::edge;
    use crate::platform::{Platform, SubmissionRoom};

    type Request = Result<v1::SubmitTask, Failure>;

    /// So many tasks with this idempotency key.
    fn tasks(count: usize, key: &str) -> Vec<Request> {
        let task = v1::SubmitTask {
            prompt: "a 3d cat".to_owned(),
            idempotency_key: key.to_owned(),
            ..v1::SubmitTask::default()
        };
        (0..count).map(|_| Ok(task.clone())).collect()
    }

    /// As many of a batch as there is room for, each of another tenant.
    fn fill<'a>(platform: &'a Platform, requests: &[Request]) -> Vec<SubmissionRoom<'a>> {
        fill_as(platform, |number| number.to_string(), requests)
    }

    /// The same with what a tenant is called.
    fn fill_as<'a>(
        platform: &'a Platform,
        tenant: impl Fn(usize) -> String,
        requests: &[Request],
    ) -> Vec<SubmissionRoom<'a>> {
        let mut held = Vec::new();
        while let Ok(room) = platform.batch_room(&tenant(held.len()), requests) {
            held.push(room);
            assert!(held.len() < 100_000, "there is room for any number");
        }
        held
    }

    #[test]
    fn each_of_a_batch_hears_of_its_webhook_by_the_name_that_it_has() {
        let body = br#"{"tasks":[{"webhook_url":"https://a"},{"webhook":"https://a"},{"webhook":{"url":"https://a"}}]}"#;
        let read = submissions(body).unwrap().into_iter().map(apart);
        let (requests, names): (Vec<_>, Vec<_>) = read.unzip();
        let refused = |request: Request| -> Answer {
            request?;
            Err(Failure::invalid("webhook", "webhook.url must be public"))
        };
        let answers = told(requests.into_iter().map(refused).collect(), names);
        let heard = answers.into_iter().map(|answer| {
            let failure = answer.unwrap_err();
            (failure.field.unwrap(), failure.message)
        });
        let expected = [
            ("webhook_url", "webhook_url must be public"),
            ("webhook", "webhook must be an object, not \"https://a\""),
            ("webhook", "webhook.url must be public"),
        ];
        let expected = expected.map(|(field, message)| (field.to_owned(), message.to_owned()));
        assert_eq!(heard.collect::<Vec<_>>(), expected);
    }

    #[tokio::test]
    async fn a_batch_takes_the_room_of_what_can_be_read_of_it_among_its_kind() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let platform = &edge(&service, &storage).platform;
        let most = fill(platform, &tasks(1, "")).len();
        // Four of a batch take what one takes that comes alone.
        let held = fill(platform, &tasks(100, ""));
        assert_eq!(held.len(), most.div_ceil(25));
        // Those that may be sent twice have room of their own, if all of a batch may.
        assert!(platform.batch_room("a", &tasks(100, "mine")).is_ok());
        let mixed = [tasks(99, "mine"), tasks(1, "")].concat();
        assert!(platform.batch_room("a", &mixed).is_err());
        drop(held);
        let mut unread = tasks(4, "");
        unread.extend((0..96).map(|_| Err(Failure::invalid("prompt", "no"))));
        assert_eq!(fill(platform, &unread).len(), most);
    }

    #[tokio::test]
    async fn a_batch_is_refused_before_it_is_charged_and_holds_its_room_until_it_is_answered() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = edge(&service, &storage);
        let (platform, caller) = (&edge.platform, Admitted::now(Caller::default()));
        let one = tasks(1, "");
        let held = fill(platform, &one);
        let most = held.len();
        let refused = submit(&edge, &caller, tasks(100, "")).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        // Auth, which is not there, was not asked.
        assert!(refused.message.contains("more to do"), "{refused}");
        drop(held);
        {
            let mut submitting = pin!(submit(&edge, &caller, tasks(100, "")));
            assert!(futures::poll!(submitting.as_mut()).is_pending());
            assert_eq!(fill(platform, &one).len(), most - 25);
            let refused = submitting.await.unwrap_err();
            assert!(!refused.message.contains("more to do"), "{refused}");
        }
        assert_eq!(fill(platform, &one).len(), most);
    }

    #[tokio::test]
    async fn a_tenant_that_waits_for_a_slow_platform_has_its_share_of_submissions_and_others_find_room()
     {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = edge(&service, &storage);
        let platform = &edge.platform;
        let one = tasks(1, "");
        let most = fill(platform, &one).len();
        let greedy = fill_as(platform, |_| "greedy".to_owned(), &one);
        assert_eq!(greedy.len(), most / 2);
        // Those that come alone and those of batches are counted together.
        let caller = Admitted::now(Caller {
            tenant: "greedy".to_owned(),
            ..Caller::default()
        });
        let alone = platform.submit(&caller, v1::SubmitTask::default()).await;
        let batch = submit(&edge, &caller, tasks(100, "")).await.map(drop);
        for refused in [alone.map(drop), batch] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code, ErrorCode::RateLimited);
            assert!(refused.retry_after.is_some(), "{refused}");
            let why = format!("for one tenant, which may have {}", most / 2);
            assert!(refused.message.contains(&why), "{refused}");
        }
        // What was refused is not under way.
        let others = fill(platform, &one);
        assert_eq!(others.len(), most - greedy.len());
        drop((greedy, others));
        let batches = fill_as(platform, |_| "greedy".to_owned(), &tasks(100, ""));
        assert_eq!(batches.len(), (most / 2).div_ceil(25));
        drop(batches);
        assert_eq!(fill(platform, &one).len(), most);
    }
}
