//! One picture as OpenAI's events: partial pictures on the way, the finished one last.

use axum::response::sse::Event as Sent;
use contract::v1::watch_response::Event;
use contract::{Failure, v1};

use super::response::{ImageEvent, Terms};
use super::{Error, Job};
use crate::carried;
use crate::edge::OpenStream;
use crate::events::Source;
use crate::problem::text;
use crate::task_json::{end_failure, has_ended};
use crate::watch::{Abandon, Watch};

/// The events of one job.
pub(super) struct Partials {
    job: Job,
    watch: Watch,
    abandon: Abandon,
    terms: Option<Terms>,
    next_partial: u32,
    over: bool,
    _open: OpenStream,
}

impl Partials {
    pub(super) fn new(job: Job, watch: Watch, abandon: Abandon, open: OpenStream) -> Self {
        Self {
            job,
            watch,
            abandon,
            terms: None,
            next_partial: 0,
            over: false,
            _open: open,
        }
    }

    /// The preview as an event, unless the client has it: a worker that takes over draws its previews again.
    fn partial(&mut self, preview: &v1::Preview) -> Option<Sent> {
        let terms = self.terms.as_ref()?;
        if preview.image_index != 0 || preview.preview_index < self.next_partial {
            return None;
        }
        self.next_partial = preview.preview_index + 1;
        let kind = self.job.wish.kind;
        let event = ImageEvent::partial(kind, preview.preview_index, &preview.data, terms);
        Some(Sent::default().event(kind.partial()).data(text(&event)))
    }

    async fn completed(&self, task: &v1::Task) -> Result<Sent, Failure> {
        if let Some(failure) = end_failure(task) {
            return Err(failure);
        }
        // The event is counted by itself in the moment in which it leaves here.
        let bytes = task.images.first().map_or(0, |info| info.size_bytes);
        let _carried = self.job.room(bytes, carried::OF_EVENT).await?;
        let data = self.job.picture(0).await?;
        let terms = Terms::new(&self.job.wish, task);
        let kind = self.job.wish.kind;
        let event = ImageEvent::completed(kind, task, &data, &terms);
        Ok(Sent::default().event(kind.completed()).data(text(&event)))
    }

    async fn advance(&mut self) -> Result<Option<Sent>, Failure> {
        while let Some(event) = self.watch.next().await? {
            match event {
                Event::Task(task) if has_ended(&task) => {
                    self.over = true;
                    self.abandon.disarm();
                    return self.completed(&task).await.map(Some);
                }
                Event::Task(task) => self.terms = Some(Terms::new(&self.job.wish, &task)),
                Event::Preview(preview) => {
                    if let Some(event) = self.partial(&preview) {
                        return Ok(Some(event));
                    }
                }
                Event::Progress(_) => {}
            }
        }
        Ok(None)
    }
}

impl Source for Partials {
    async fn next(&mut self) -> Option<Sent> {
        if self.over {
            return None;
        }
        match self.advance().await {
            Ok(event) => event,
            Err(failure) => {
                self.over = true;
                self.abandon.told(&failure);
                tracing::debug!(%failure, "a stream ends early");
                Some(
                    Sent::default()
                        .event("error")
                        .data(text(&Error::new(&failure))),
                )
            }
        }
    }
}
