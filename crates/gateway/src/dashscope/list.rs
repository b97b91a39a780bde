//! `GET /api/v1/tasks`: pages by number, where the platform's own go from one to the next.
//!
//! A numbered page means walking there from the newest task, so how far is bounded. How many tasks there are in all is not known without
//! walking past all of them: `total` counts to the end of the page and a little further, so that clients that turn pages until `total_page`
//! see them all.

use contract::auth::Caller;
use contract::limits::MAX_PAGE_SIZE;
use contract::v1::TaskPhase;
use contract::{Failure, v1};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::response::{ZONE, status};
use crate::edge::Edge;
use crate::json::shorten;
use crate::task_json::unix_millis;

/// How far pages by number go, newest first. Older tasks are reached with `end_time`, or through our own dialect.
pub(super) const MAX_LOOKED_AT: usize = 1000;
/// Questions to the platform for one list: those for [`MAX_LOOKED_AT`] tasks, and as many that find little. The first page takes one.
const MAX_CALLS: usize = 2 * MAX_LOOKED_AT / MAX_PAGE_SIZE as usize;
/// Tasks on a page when the caller does not say, as its client does.
const DEFAULT_SIZE: u32 = 10;
pub(super) const STATUSES: &[&str] = &["PENDING", "RUNNING", "SUCCEEDED", "FAILED", "CANCELED"];

/// The query. `api_key_id` and `region` are taken and without effect: a tenant has neither.
#[derive(Debug, Default, Deserialize)]
pub(crate) struct ListQuery {
    page_no: Option<String>,
    page_size: Option<String>,
    start_time: Option<String>,
    end_time: Option<String>,
    model_name: Option<String>,
    status: Option<String>,
}

/// What is asked for.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    page_no: u32,
    page_size: u32,
    /// Unix milliseconds, inclusive.
    from: i64,
    /// Unix milliseconds, exclusive.
    until: i64,
    model: Option<String>,
    status: Option<&'static str>,
}

/// Reads a query.
pub(super) fn wanted(query: ListQuery) -> Result<Wanted, Failure> {
    let page_no = number("page_no", query.page_no, 1, MAX_LOOKED_AT as u32)?;
    let page_size = number("page_size", query.page_size, DEFAULT_SIZE, MAX_PAGE_SIZE)?;
    if (page_no as usize - 1) * page_size as usize >= MAX_LOOKED_AT {
        let message = format!(
            "page_no must stay within the newest {MAX_LOOKED_AT} tasks; set end_time, or page through /v1/tasks"
        );
        return Err(Failure::invalid("page_no", message));
    }
    let (from, until) = (query.start_time, query.end_time);
    let status = match query.status.filter(|text| !text.is_empty()) {
        None => None,
        Some(text) => Some(known_status(&text)?),
    };
    Ok(Wanted {
        page_no,
        page_size,
        from: time("start_time", from)?.unwrap_or(i64::MIN),
        until: time("end_time", until)?.unwrap_or(i64::MAX),
        model: query.model_name.filter(|text| !text.is_empty()),
        status,
    })
}

fn number(name: &str, text: Option<String>, default: u32, most: u32) -> Result<u32, Failure> {
    let Some(text) = text else { return Ok(default) };
    let number = text.parse().ok().filter(|n| (1..=most).contains(n));
    number.ok_or_else(|| {
        let shown = shorten(&text);
        Failure::invalid(name, format!("{name} must be 1 to {most}, not {shown:?}"))
    })
}

fn known_status(text: &str) -> Result<&'static str, Failure> {
    let known = STATUSES.iter().find(|word| **word == text).copied();
    known.ok_or_else(|| {
        let (words, shown) = (STATUSES.join(", "), shorten(text));
        let message = format!("status must be one of {words}, not {shown:?}");
        Failure::invalid("status", message)
    })
}

/// Reads `20230420000000`, in DashScope's zone, as Unix milliseconds.
fn time(name: &str, text: Option<String>) -> Result<Option<i64>, Failure> {
    let Some(text) = text.filter(|text| !text.is_empty()) else {
        return Ok(None);
    };
    let plain = text.len() == 14 && text.bytes().all(|b| b.is_ascii_digit());
    let read = || {
        let local = jiff::civil::DateTime::strptime("%Y%m%d%H%M%S", &text).ok()?;
        Some(ZONE.to_timestamp(local).ok()?.as_millisecond())
    };
    let time = plain.then(read).flatten();
    time.map(Some).ok_or_else(|| {
        let shown = shorten(&text);
        let message =
            format!("{name} must be YYYYMMDDhhmmss in UTC+8 such as 20230420000000, not {shown:?}");
        Failure::invalid(name, message)
    })
}

impl Wanted {
    /// Tasks on the pages before this one.
    fn skip(&self) -> usize {
        (self.page_no as usize - 1) * self.page_size as usize
    }

    /// What is asked of the platform: the next tasks of those that are wanted.
    fn next(&self, page_token: String) -> v1::ListRequest {
        v1::ListRequest {
            page_size: MAX_PAGE_SIZE,
            page_token,
            model: self.model.clone().unwrap_or_default(),
            created_after: time_of(self.from),
            created_before: time_of(self.until),
            phases: self
                .status
                .map_or(&[][..], phases)
                .iter()
                .map(|&p| p.into())
                .collect(),
            ..v1::ListRequest::default()
        }
    }
}

/// The bound that a number of milliseconds is; none where it bounds nothing.
fn time_of(millis: i64) -> Option<prost_types::Timestamp> {
    let time = jiff::Timestamp::from_millisecond(millis).ok()?;
    Some(prost_types::Timestamp {
        seconds: time.as_second(),
        nanos: time.subsec_nanosecond(),
    })
}

/// The phases that one of DashScope's words stands for.
fn phases(word: &str) -> &'static [TaskPhase] {
    match word {
        "PENDING" => &[TaskPhase::Queued, TaskPhase::Scheduled],
        "RUNNING" => &[TaskPhase::Running],
        "SUCCEEDED" => &[TaskPhase::Succeeded],
        "FAILED" => &[TaskPhase::Failed],
        "CANCELED" => &[TaskPhase::Cancelled],
        _ => &[],
    }
}

/// A page of tasks.
#[derive(Debug)]
pub(super) struct Listed {
    tasks: Vec<v1::Task>,
    page_no: u32,
    page_size: u32,
    total: usize,
}

/// Walks the tenant's tasks, newest first, to the end of the page and at least one task further. The platform filters; what is
/// walked over are the pages before.
pub(super) async fn list(edge: &Edge, caller: &Caller, wanted: &Wanted) -> Result<Listed, Failure> {
    walk(wanted, |request| edge.platform.list(caller, request)).await
}

/// `ask` gives the platform's pages.
async fn walk<F>(wanted: &Wanted, ask: impl Fn(v1::ListRequest) -> F) -> Result<Listed, Failure>
where
    F: Future<Output = Result<v1::ListResponse, Failure>>,
{
    let skip = wanted.skip();
    let mut listed = Listed {
        tasks: Vec::new(),
        page_no: wanted.page_no,
        page_size: wanted.page_size,
        total: 0,
    };
    if wanted.from >= wanted.until {
        // No time lies between; the platform would complain of fields that its caller does not know.
        return Ok(listed);
    }
    let mut page_token = String::new();
    let enough = skip + wanted.page_size as usize;
    // The platform's pages may have fewer tasks than asked for, never more.
    for _ in 0..MAX_CALLS {
        let request = wanted.next(page_token);
        let page = ask(request).await?;
        for task in page.tasks {
            if listed.total >= skip && listed.tasks.len() < wanted.page_size as usize {
                listed.tasks.push(task);
            }
            listed.total += 1;
        }
        page_token = page.next_page_token;
        if page_token.is_empty() || listed.total > enough {
            return Ok(listed);
        }
    }
    if listed.total >= enough {
        // The page is whole. Whether anything follows is for the next page to say.
        listed.total = enough + 1;
        return Ok(listed);
    }
    // A page with less than there is would be taken for the last.
    let message = "the filters match too few of too many tasks for a list by pages; set start_time and end_time closer \
                   together, or page through /v1/tasks";
    Err(Failure::invalid("end_time", message))
}

/// The answer to a list.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeList)]
pub(super) struct ListAnswer<'a> {
    request_id: &'a str,
    page_no: u32,
    page_size: u32,
    total_page: usize,
    total: usize,
    data: Vec<Row<'a>>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = DashScopeListed)]
struct Row<'a> {
    task_id: &'a str,
    status: &'static str,
    model_name: &'a str,
    // Unix milliseconds.
    gmt_create: Option<i64>,
    start_time: Option<i64>,
    end_time: Option<i64>,
}

impl Listed {
    pub(super) fn answer<'a>(&'a self, request_id: &'a str) -> ListAnswer<'a> {
        let row = |task: &'a v1::Task| Row {
            task_id: &task.id,
            status: status(task.phase()),
            model_name: task.request.as_ref().map_or("", |r| r.model.as_str()),
            gmt_create: unix_millis(task.submitted_at.as_ref()),
            start_time: unix_millis(task.started_at.as_ref()),
            end_time: unix_millis(task.ended_at.as_ref()),
        };
        ListAnswer {
            request_id,
            page_no: self.page_no,
            page_size: self.page_size,
            total_page: self.total.div_ceil(self.page_size as usize),
            total: self.total,
            data: self.tasks.iter().map(row).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::dashscope::described::moment;

    #[test]
    fn a_query_is_read_as_the_package_sends_it() {
        let asked = wanted(ListQuery {
            page_no: Some("2".to_owned()),
            page_size: Some("50".to_owned()),
            start_time: Some("19700101080001".to_owned()),
            end_time: Some("20230420000000".to_owned()),
            model_name: Some("m".to_owned()),
            status: Some("RUNNING".to_owned()),
        });
        let expected = Wanted {
            page_no: 2,
            page_size: 50,
            from: 1000,
            until: 1_681_920_000_000,
            model: Some("m".to_owned()),
            status: Some("RUNNING"),
        };
        assert_eq!(asked.unwrap(), expected);
        let asked = wanted(ListQuery::default()).unwrap();
        assert_eq!((asked.page_no, asked.page_size), (1, 10));
    }

    #[test]
    fn the_platform_filters_by_time_model_and_status() {
        let mut asked = wanted(ListQuery::default()).unwrap();
        let request = asked.next(String::new());
        assert_eq!(
            (request.created_after, request.created_before),
            (None, None)
        );
        assert!(request.model.is_empty() && request.phases.is_empty());
        (asked.from, asked.until) = (1500, 7000);
        asked.model = Some("m".to_owned());
        asked.status = Some("PENDING");
        let request = asked.next("t".to_owned());
        let time = |seconds, nanos| Some(prost_types::Timestamp { seconds, nanos });
        assert_eq!(request.created_after, time(1, 500_000_000));
        assert_eq!(request.created_before, time(7, 0));
        assert_eq!(
            (request.model.as_str(), request.page_token.as_str()),
            ("m", "t")
        );
        assert_eq!(
            request.phases,
            [TaskPhase::Queued as i32, TaskPhase::Scheduled as i32]
        );
    }

    #[test]
    fn every_status_is_the_word_of_its_phases() {
        for word in STATUSES {
            assert!(!phases(word).is_empty(), "{word}");
            assert!(
                phases(word).iter().all(|&phase| status(phase) == *word),
                "{word}"
            );
        }
    }

    #[test]
    fn a_page_beyond_the_bound_is_refused_by_name() {
        let field = |query| wanted(query).unwrap_err().field.unwrap();
        let far = ListQuery {
            page_no: Some("21".to_owned()),
            page_size: Some("50".to_owned()),
            ..Default::default()
        };
        assert_eq!(field(far), "page_no");
        let bad = |text: &str| Some(text.to_owned());
        let query = ListQuery {
            page_size: bad("101"),
            ..Default::default()
        };
        assert_eq!(field(query), "page_size");
        let query = ListQuery {
            status: bad("DONE"),
            ..Default::default()
        };
        assert_eq!(field(query), "status");
        let query = ListQuery {
            end_time: bad("2023-04-20"),
            ..Default::default()
        };
        assert_eq!(field(query), "end_time");
        let query = ListQuery {
            end_time: bad("20231420000000"),
            ..Default::default()
        };
        assert_eq!(field(query), "end_time");
    }

    /// Pages of a platform with one task of those that are wanted on every `sparse`-th of its `pages` pages.
    async fn walked(query: ListQuery, sparse: usize, pages: usize) -> Result<Listed, Failure> {
        let wanted = wanted(query).unwrap();
        let ask = |request: v1::ListRequest| {
            let page: usize = request.page_token.parse().unwrap_or_default();
            let task = v1::Task {
                id: page.to_string(),
                ..v1::Task::default()
            };
            let next = page + 1;
            std::future::ready(Ok(v1::ListResponse {
                tasks: page
                    .is_multiple_of(sparse)
                    .then_some(task)
                    .into_iter()
                    .collect(),
                next_page_token: if next < pages {
                    next.to_string()
                } else {
                    String::new()
                },
            }))
        };
        walk(&wanted, ask).await
    }

    fn page(no: u32, size: u32) -> ListQuery {
        ListQuery {
            page_no: Some(no.to_string()),
            page_size: Some(size.to_string()),
            ..Default::default()
        }
    }

    #[tokio::test]
    async fn tasks_that_lie_far_apart_are_found_and_a_page_that_cannot_be_filled_is_refused() {
        let ids = |listed: &Listed| -> Vec<String> {
            listed.tasks.iter().map(|task| task.id.clone()).collect()
        };
        // Empty pages of the platform in between are not the end.
        let listed = walked(page(2, 2), 3, 12).await.unwrap();
        assert_eq!(
            (ids(&listed), listed.total),
            (vec!["6".to_owned(), "9".to_owned()], 4)
        );
        // There are no more, so a page that is not full is the last.
        let listed = walked(page(1, 10), 3, 12).await.unwrap();
        assert_eq!((listed.tasks.len(), listed.total), (4, 4));
        // More may follow beyond what is walked: the next page is said to be there.
        let listed = walked(page(1, 2), MAX_CALLS - 1, 10 * MAX_CALLS)
            .await
            .unwrap();
        assert_eq!((listed.tasks.len(), listed.total), (2, 3));
        // A page with less than there is would be taken for the last.
        let refused = walked(page(1, 10), MAX_CALLS - 1, 100 * MAX_CALLS)
            .await
            .unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("end_time"));
        assert!(refused.message.contains("/v1/tasks"), "{refused}");
    }

    /// Every text that the document lets a moment be.
    fn described() -> impl Strategy<Value = String> {
        let pattern = moment().pattern.unwrap();
        prop::string::string_regex(pattern.trim_matches(['^', '$'])).unwrap()
    }

    proptest! {
        #[test]
        fn a_moment_as_the_document_describes_it_is_read(text in described()) {
            let read = wanted(ListQuery { start_time: Some(text), ..Default::default() });
            prop_assert!(read.is_ok(), "{:?}", read.err());
        }

        #[test]
        fn no_query_makes_the_reader_panic(text in "\\PC{0,16}|[0-9]{0,16}") {
            let given = || Some(text.clone());
            let _ = wanted(ListQuery { page_no: given(), page_size: given(), ..Default::default() });
            let _ = wanted(ListQuery { start_time: given(), ..Default::default() });
            let _ = wanted(ListQuery { status: given(), ..Default::default() });
        }
    }
}
