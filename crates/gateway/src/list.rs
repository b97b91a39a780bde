//! Pages of a tenant's tasks.

use std::sync::Arc;

use axum::Extension;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use contract::limits::{DEFAULT_PAGE_SIZE, MAX_MODEL_BYTES, MAX_PAGE_SIZE};
use contract::words::{PHASES, all, meaning};
use contract::{Failure, v1};
use serde::Serialize;
use utoipa::openapi::Object;

use crate::auth::Admitted;
use crate::edge::Edge;
use crate::json::shorten;
use crate::openapi::params::{params, query};
use crate::openapi::schema::{text, time, whole};
use crate::openapi::task::{TaskList, one_of};
use crate::problem::{Refused, by_name, json as json_answer};
use crate::query::Parameters;
use crate::task_json::TaskJson;

const KNOWN: &[&str] = &[
    "model",
    "phase",
    "created_after",
    "created_before",
    "page_size",
    "page_token",
];

params!(
    /// The query of a list, but for the older names of two parameters.
    ListParams,
    [
        query(
            "model",
            "Only tasks of this model, by the name that it has with tasks.",
            model_name()
        ),
        query("phase", "Only tasks in this phase.", one_of(PHASES)),
        query(
            "created_after",
            "Only tasks submitted at this time or later.",
            time()
        ),
        query(
            "created_before",
            "Only tasks submitted before this time.",
            time()
        ),
        query(
            "page_size",
            "Tasks on a page at most; 20 where it is left out. A page may have fewer, or none, and not be the last.",
            whole(1, u64::from(MAX_PAGE_SIZE))
        ),
        query(
            "page_token",
            "`next_page_token` of a page that was asked for with the same filters.",
            text()
        ),
    ]
);

fn model_name() -> Object {
    let mut name = text();
    name.max_length = Some(MAX_MODEL_BYTES);
    name
}

#[derive(Serialize)]
struct ListJson<'a> {
    data: Vec<TaskJson<'a>>,
    next_page_token: Option<&'a str>,
    /// What it was called first.
    next_cursor: Option<&'a str>,
}

/// `GET /v1/tasks?model=&phase=&created_after=&created_before=&page_size=&page_token=`
#[utoipa::path(
    get,
    path = "/v1/tasks",
    operation_id = "listTasks",
    summary = "List tasks",
    description = "Newest first.",
    params(ListParams),
    responses(
        (status = 200, description = "A page.", body = TaskList),
        (status = 400, description = "invalid_argument")
    )
)]
pub(crate) async fn list(
    State(edge): State<Arc<Edge>>,
    Extension(caller): Extension<Admitted>,
    uri: Uri,
    headers: HeaderMap,
) -> Result<Response, Refused> {
    let page = page(Parameters::of(&uri)?)?;
    let older = Parameters::of(&uri)?.take("cursor").is_some();
    let listed = edge.platform.list(&caller, page).await;
    let page = listed.map_err(|failure| named(failure, older))?;
    let base = edge.public_url(&uri, &headers);
    let next = page.next_page_token.as_str();
    let next = (!next.is_empty()).then_some(next);
    let shown = page.tasks.iter().map(|task| TaskJson::new(task, &base));
    Ok(json_answer(&ListJson {
        data: shown.collect(),
        next_page_token: next,
        next_cursor: next,
    }))
}

/// A complaint about a token, by the older of its names where it was given by that.
fn named(failure: Failure, older: bool) -> Failure {
    match older && failure.field.as_deref() == Some("page_token") {
        true => by_name(failure, "cursor"),
        false => failure,
    }
}

/// Reads the query of a list. That a token belongs to these filters is the orchestrator's to check.
pub(crate) fn page(mut query: Parameters) -> Result<v1::ListRequest, Failure> {
    let page_size = match query.take_either("page_size", "limit")? {
        None => DEFAULT_PAGE_SIZE,
        Some((name, text)) => size(name, &text)?,
    };
    let page_token = query.take_either("page_token", "cursor")?;
    let phase = query.take("phase").map(|text| phase(&text)).transpose()?;
    let model = query.take("model").unwrap_or_default();
    if model.len() > MAX_MODEL_BYTES {
        let message = format!("model must be at most {MAX_MODEL_BYTES} bytes of UTF-8");
        return Err(Failure::invalid("model", message));
    }
    let created_after = moment(&mut query, "created_after")?;
    let created_before = moment(&mut query, "created_before")?;
    query.nothing_else(KNOWN)?;
    Ok(v1::ListRequest {
        page_size,
        page_token: page_token.map(|(_, token)| token).unwrap_or_default(),
        phase: phase.unwrap_or_default().into(),
        model,
        created_after,
        created_before,
        phases: Vec::new(),
    })
}

fn size(name: &str, text: &str) -> Result<u32, Failure> {
    let size = text.parse().ok();
    let size = size.filter(|n| (1..=MAX_PAGE_SIZE).contains(n));
    size.ok_or_else(|| {
        let shown = shorten(text);
        Failure::invalid(
            name,
            format!("{name} must be 1 to {MAX_PAGE_SIZE}, not {shown:?}"),
        )
    })
}

fn phase(text: &str) -> Result<v1::TaskPhase, Failure> {
    meaning(PHASES, text).ok_or_else(|| {
        let (words, shown) = (all(PHASES), shorten(text));
        let message = format!("phase must be one of {words}, not {shown:?}");
        Failure::invalid("phase", message)
    })
}

fn moment(
    query: &mut Parameters,
    name: &'static str,
) -> Result<Option<prost_types::Timestamp>, Failure> {
    let Some(text) = query.take(name) else {
        return Ok(None);
    };
    let time: jiff::Timestamp = text.parse().map_err(|_| {
        let shown = shorten(&text);
        let message = format!(
            "{name} must be a time as RFC 3339 writes it, such as 2026-11-23T01:41:24Z, not {shown:?} (a plus in a query is %2B)"
        );
        Failure::invalid(name, message)
    })?;
    // Prost counts nanoseconds from the second before, jiff towards zero.
    let second = time.as_second() - i64::from(time.subsec_nanosecond() < 0);
    let nanos = time.subsec_nanosecond().rem_euclid(1_000_000_000);
    Ok(Some(prost_types::Timestamp {
        seconds: second,
        nanos,
    }))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(query: &str) -> Result<v1::ListRequest, Failure> {
        page(Parameters::of(
            &format!("/v1/tasks?{query}").parse().unwrap(),
        )?)
    }

    #[test]
    fn every_filter_is_read() {
        let asked = "model=m&phase=queued&created_after=2026-11-23T01:41:24Z&created_before=2026-11-23T02:41:24.5%2B01:00\
            &page_size=100&page_token=t";
        let at = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        let expected = v1::ListRequest {
            page_size: 100,
            page_token: "t".to_owned(),
            phase: v1::TaskPhase::Queued.into(),
            model: "m".to_owned(),
            created_after: at(1_795_398_084, 0),
            created_before: at(1_795_398_084, 500_000_000),
            phases: Vec::new(),
        };
        assert_eq!(read(asked).unwrap(), expected);
        assert_eq!(read("").unwrap().page_size, 20);
        let older = read("limit=100&cursor=t").unwrap();
        assert_eq!((older.page_size, older.page_token.as_str()), (100, "t"));
        let before_1970 = read("created_after=1969-12-31T23:59:59.75Z").unwrap();
        assert_eq!(before_1970.created_after, at(-1, 750_000_000));
    }

    #[test]
    fn what_cannot_be_read_is_refused_by_its_name() {
        let long = format!("model={}", "m".repeat(129));
        for (bad, field) in [
            ("page_size=0", "page_size"),
            ("page_size=101", "page_size"),
            ("page_size=-1", "page_size"),
            ("page_size=", "page_size"),
            ("limit=x", "limit"),
            ("limit=1&page_size=1", "limit"),
            ("cursor=a&page_token=b", "cursor"),
            ("phase=done", "phase"),
            ("created_after=yesterday", "created_after"),
            ("created_before=2026-11-23", "created_before"),
            ("created_before=2026-11-23T02:41:24+01:00", "created_before"),
            ("model=a&model=b", "model"),
            (&long, "model"),
            ("modle=a", "modle"),
        ] {
            assert_eq!(
                read(bad).unwrap_err().field.as_deref(),
                Some(field),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_token_that_is_none_is_refused_by_the_name_that_it_was_given_by() {
        let told = |older| {
            let failure = Failure::invalid("page_token", "page_token is not one");
            let failure = named(failure, older);
            (failure.field.unwrap_or_default(), failure.message)
        };
        let as_told = |name: &str| (name.to_owned(), format!("{name} is not one"));
        assert_eq!(told(false), as_told("page_token"));
        assert_eq!(told(true), as_told("cursor"));
    }

    proptest! {
        #[test]
        fn no_value_makes_the_reader_panic(name in proptest::sample::select(KNOWN), value in "[0-9A-Za-z%+:._~-]{0,30}") {
            let _ = read(&format!("{name}={value}"));
        }
    }
}
