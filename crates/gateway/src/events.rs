//! Server-sent events: the stream that carries them, and a task's events in our own dialect.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event as Sent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::v1::watch_response::Event;
use contract::words::{FORMATS, word};
use contract::{Failure, TaskId, v1};
use futures::stream;
use serde::Serialize;
use tokio::time::Instant;
use tracing::Instrument as _;

use crate::edge::{Edge, OpenStream};
use crate::problem::{Problem, text};
use crate::task_json::TaskJson;
use crate::watch::Watch;

/// Tells proxies that speak nginx's language not to hold events back.
const NO_BUFFERING: (HeaderName, HeaderValue) = (
    HeaderName::from_static("x-accel-buffering"),
    HeaderValue::from_static("no"),
);

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

/// A task's events in our own dialect.
pub(crate) struct TaskEvents {
    watch: Watch,
    base: String,
    format: v1::OutputFormat,
    sent: u64,
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

impl TaskEvents {
    /// The events of `task` from now on; `base` goes in front of its pictures' paths.
    pub(crate) fn new(
        edge: &Arc<Edge>,
        open: OpenStream,
        tenant: &str,
        task: TaskId,
        previews: bool,
        base: String,
    ) -> Self {
        let deadline = Instant::now() + edge.http.stream_timeout.duration();
        Self {
            watch: Watch::new(edge.clone(), tenant, task, previews, deadline),
            base,
            format: v1::OutputFormat::Unspecified,
            sent: 0,
            over: false,
            _open: open,
        }
    }

    fn show(&mut self, event: Event) -> Sent {
        match event {
            Event::Task(task) => {
                if let Some(request) = &task.request {
                    self.format = request.output_format();
                }
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
        }
    }

    fn complain(&mut self, failure: &Failure) -> Sent {
        self.over = true;
        let data = text(&Problem::new(failure, None));
        Sent::default().event("error").data(data)
    }
}

impl Source for TaskEvents {
    async fn next(&mut self) -> Option<Sent> {
        if self.over {
            return None;
        }
        let event = match self.watch.next().await {
            Ok(event) => self.show(event?),
            Err(failure) => self.complain(&failure),
        };
        self.sent += 1;
        Some(event.id(self.sent.to_string()))
    }
}
