//! Server-sent events: the stream that carries them, and a task's events in our own dialect.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::digest;
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::auth::Caller;
use contract::v1::watch_response::Event;
use contract::words::{FORMATS, word};
use contract::{TaskId, v1};
use futures::stream;
use serde::Serialize;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::edge::{Edge, OpenStream};
use crate::problem::{Problem, text};
use crate::task_json::TaskJson;
use crate::watch::{Parted, Watch};

/// Tells proxies that speak nginx's language not to hold events back.
const NO_BUFFERING: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-accel-buffering"),
    HeaderValue::from_static("no"),
);

/// When to open a stream again that lasted as long as one may: nothing is wrong here.
const REOPEN_WAIT: Duration = Duration::from_millis(100);

/// Something that yields events until it has no more.
pub(crate) trait Source: Send + 'static {
    /// The next event; none ends the stream.
    fn next(&mut self) -> impl Future<Output = Option<Sent>> + Send;
}

/// The answer that streams a source's events, within the span of the request that asked for them.
pub(crate) fn answer<S: Source>(edge: &Edge, source: S) -> Response {
    let span = tracing::Span::current();
    let events = stream::unfold(source, move |mut source| {
        async move {
            let event = source.next().await?;
            Some((Ok::<_, Infallible>(event), source))
        }
        .instrument(span.clone())
    });
    let quiet = edge.http.event_keep_alive.duration();
    let events = Sse::new(events).keep_alive(KeepAlive::new().interval(quiet));
    ([NO_BUFFERING], events).into_response()
}

/// What an event's `id` says: how many there were, and as what the task was last shown. A client that comes back repeats the last
/// that it saw, to whichever gateway; so it says all that there is to know of the client.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Seen {
    count: u64,
    task: String,
}

/// Between the two parts of an `id`.
const ID_PARTS: char = '-';
/// The header that repeats an `id`.
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");
/// Of a digest, how many bytes tell two states of one task apart.
const DIGEST_BYTES: usize = 8;

impl Seen {
    /// What the headers say; one that is none of ours says nothing.
    pub(crate) fn of(headers: &HeaderMap) -> Self {
        let text = headers.get(LAST_EVENT_ID).and_then(|v| v.to_str().ok());
        let parts = text.and_then(|text| text.split_once(ID_PARTS));
        let seen = parts.and_then(|(count, task)| {
            let count = count.parse().ok()?;
            let task = task.to_owned();
            Some(Self { count, task })
        });
        seen.unwrap_or_default()
    }

    /// Whether the task was last shown as it is in `task`.
    pub(crate) fn knows(&self, task: &v1::Task) -> bool {
        self.task == shown_as(task)
    }

    /// The `id` of the next event.
    fn next(&mut self) -> String {
        self.count = self.count.saturating_add(1);
        format!("{}{ID_PARTS}{}", self.count, self.task)
    }
}

/// A digest of a task as it is shown.
fn shown_as(task: &v1::Task) -> String {
    let text = text(&TaskJson::new(task, ""));
    let digest = digest::digest(&digest::SHA256, text.as_bytes());
    hex::encode(&digest.as_ref()[..DIGEST_BYTES])
}

/// A task's events in our own dialect.
pub(crate) struct TaskEvents {
    watch: Watch,
    base: String,
    format: v1::OutputFormat,
    seen: Seen,
    over: bool,
    _open: OpenStream,
}

#[derive(Serialize)]
struct ProgressJson {
    step: u32,
    steps: u32,
}

#[derive(Serialize)]
struct PreviewJson {
    image_index: u32,
    preview_index: u32,
    format: Option<&'static str>,
    b64_json: String,
}

/// Why a stream ends before its task, and which task goes on without it: a client may read many streams by one handler.
#[derive(Serialize)]
struct PartedJson<'a> {
    #[serde(flatten)]
    problem: Problem<'a>,
    task_id: String,
}

impl TaskEvents {
    /// The events of `task` from now on, behind what was `seen`; `base` goes in front of its pictures' paths.
    pub(crate) fn new(
        edge: &Arc<Edge>,
        open: OpenStream,
        caller: &Caller,
        task: TaskId,
        previews: bool,
        base: String,
        seen: Seen,
    ) -> Self {
        let deadline = Instant::now() + edge.http.stream_timeout.duration();
        Self {
            watch: Watch::new(edge.clone(), caller, task, previews, deadline),
            base,
            format: v1::OutputFormat::Unspecified,
            seen,
            over: false,
            _open: open,
        }
    }

    /// An event as it is sent; none for a task that the client knows so.
    fn show(&mut self, event: Event) -> Option<Sent> {
        Some(match event {
            Event::Task(task) => {
                if let Some(request) = &task.request {
                    self.format = request.output_format();
                }
                let now = shown_as(&task);
                if self.seen.task == now {
                    return None;
                }
                self.seen.task = now;
                let data = text(&TaskJson::new(&task, &self.base));
                Sent::default().event("task").data(data)
            }
            Event::Progress(v1::Progress { step, steps }) => {
                let data = text(&ProgressJson { step, steps });
                Sent::default().event("progress").data(data)
            }
            Event::Preview(preview) => {
                let data = text(&PreviewJson {
                    image_index: preview.image_index,
                    preview_index: preview.preview_index,
                    format: word(FORMATS, self.format),
                    b64_json: STANDARD.encode(&preview.data),
                });
                Sent::default().event("preview").data(data)
            }
        })
    }

    /// The last event of a stream that ends before its task: to be opened again, or not. The one has a name of its own, since browsers
    /// call every loss of a connection an `error`, and tell a stream's listeners no difference.
    fn part(&mut self, parted: &Parted) -> Sent {
        self.over = true;
        let (Parted::LetGo(failure) | Parted::Failed(failure)) = parted;
        let data = text(&PartedJson {
            problem: Problem::new(failure, None),
            task_id: self.watch.task().to_string(),
        });
        match parted {
            Parted::LetGo(_) => {
                let wait = failure.retry_after.unwrap_or(REOPEN_WAIT);
                Sent::default().event("reconnect").retry(wait).data(data)
            }
            Parted::Failed(_) => Sent::default().event("error").data(data),
        }
    }
}

impl Source for TaskEvents {
    async fn next(&mut self) -> Option<Sent> {
        if self.over {
            return None;
        }
        loop {
            let event = match self.watch.next().await {
                Ok(event) => self.show(event?),
                Err(parted) => Some(self.part(&parted)),
            };
            if let Some(event) = event {
                return Some(event.id(self.seen.next()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_says_how_many_events_there_were_and_as_what_the_task_was_shown() {
        let mut task = v1::Task {
            id: "t".to_owned(),
            ..Default::default()
        };
        let mut seen = Seen {
            task: shown_as(&task),
            ..Default::default()
        };
        seen.next();
        let id = seen.next();
        assert!(id.starts_with("2-"), "{id}");
        let headers = |id: &str| {
            let value = HeaderValue::from_str(id).unwrap();
            HeaderMap::from_iter([(LAST_EVENT_ID, value)])
        };
        let back = Seen::of(&headers(&id));
        assert_eq!(back, seen);
        assert!(back.knows(&task));
        task.attempt = 1;
        assert!(!back.knows(&task));
    }

    #[test]
    fn an_id_of_another_makes_is_as_good_as_none() {
        for text in ["", "7", "x-y", "-", "18446744073709551616-00"] {
            let value = HeaderValue::from_static(text);
            let headers = HeaderMap::from_iter([(LAST_EVENT_ID, value)]);
            assert_eq!(Seen::of(&headers), Seen::default(), "{text}");
        }
        assert!(!Seen::default().knows(&v1::Task::default()));
    }
}
