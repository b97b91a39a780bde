//! Spans' ids where nothing is exported. What else the layer for export keeps of a span (its times, fields and events) is work that
//! nobody would look at.

use std::sync::atomic::{AtomicBool, Ordering};

use opentelemetry::trace::{SpanContext, TraceFlags, TraceState};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator};
use tracing::span::{Attributes, Id};
use tracing::{Span, Subscriber};
use tracing_subscriber::layer::Context;
use tracing_subscriber::registry::LookupSpan;
use tracing_subscriber::{Layer, Registry};

/// Gives each span its ids: a child is in its parent's trace, any other begins one. It keeps to the rules of the layer for export, so that
/// a trace does not depend on whether there is an exporter.
pub(crate) struct SpanIds;

/// A span's, among its extensions.
struct Ids {
    context: SpanContext,
    /// Whether the span was entered, or somebody has asked for its context: from then on it stays as it is.
    settled: AtomicBool,
}

impl Ids {
    fn settle(&self) -> &SpanContext {
        // Whoever changes the context holds the extensions alone.
        self.settled.store(true, Ordering::Relaxed);
        &self.context
    }
}

impl<S> Layer<S> for SpanIds
where
    S: Subscriber + for<'a> LookupSpan<'a>,
{
    fn on_new_span(&self, _: &Attributes<'_>, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        let parent = span.parent().and_then(|parent| {
            let extensions = parent.extensions();
            extensions.get::<Ids>().map(|ids| ids.settle().clone())
        });
        let context = parent.map_or_else(root, |parent| below(&parent));
        span.extensions_mut().insert(Ids {
            context,
            settled: AtomicBool::new(false),
        });
    }

    fn on_enter(&self, id: &Id, ctx: Context<'_, S>) {
        let Some(span) = ctx.span(id) else { return };
        if let Some(ids) = span.extensions().get::<Ids>() {
            ids.settle();
        }
    }
}

/// The context of a span whose ids are kept here.
pub(crate) fn of(span: &Span) -> Option<SpanContext> {
    let found = span.with_subscriber(|(id, subscriber)| {
        let span = subscriber.downcast_ref::<Registry>()?.span(id)?;
        let extensions = span.extensions();
        extensions.get::<Ids>().map(|ids| ids.settle().clone())
    });
    found.flatten()
}

/// Puts a span below `parent`, unless it is settled; false where its ids are not kept here.
pub(crate) fn set_parent(span: &Span, parent: &SpanContext) -> bool {
    let found = span.with_subscriber(|(id, subscriber)| {
        let span = subscriber.downcast_ref::<Registry>()?.span(id)?;
        let mut extensions = span.extensions_mut();
        let ids = extensions.get_mut::<Ids>()?;
        if !*ids.settled.get_mut() {
            ids.context = below(parent);
        }
        Some(())
    });
    found.flatten().is_some()
}

fn root() -> SpanContext {
    let ids = RandomIdGenerator::default();
    let (trace, span) = (ids.new_trace_id(), ids.new_span_id());
    SpanContext::new(trace, span, TraceFlags::SAMPLED, false, TraceState::NONE)
}

fn below(parent: &SpanContext) -> SpanContext {
    SpanContext::new(
        parent.trace_id(),
        RandomIdGenerator::default().new_span_id(),
        parent.trace_flags(),
        false,
        parent.trace_state().clone(),
    )
}
