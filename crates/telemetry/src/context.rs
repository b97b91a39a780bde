//! Trace context in headers: W3C Trace Context, <https://www.w3.org/TR/trace-context/>.

use opentelemetry::Context;
use opentelemetry::trace::{
    SpanContext, SpanId, TraceContextExt as _, TraceFlags, TraceId, TraceState,
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt as _;

use crate::ids;

/// The W3C header that names a request's trace.
pub const TRACEPARENT: &str = "traceparent";
const TRACESTATE: &str = "tracestate";
/// Bytes of a `tracestate` that goes on: the least that the standard asks to pass on. A longer one goes with each inner call and into
/// each event, and may be more than a service takes of headers.
const MAX_TRACESTATE_BYTES: usize = 512;
/// A version that the standard will never have.
const NO_VERSION: u8 = 0xff;

/// Writes the current span's context as headers, by calling `set(name, value)`.
pub fn inject(mut set: impl FnMut(&str, String)) {
    let context = context(&Span::current());
    if !context.is_valid() {
        return;
    }
    set(TRACEPARENT, header(&context));
    let state = context.trace_state().header();
    // Most have none, and a header without a value says nothing.
    if !state.is_empty() {
        set(TRACESTATE, state);
    }
}

/// Makes `span` a child of the context in the headers that `get(name)` reads, if there is a valid one. For a span that has not been
/// entered yet and whose context nobody has asked for: others stay in their trace.
pub fn continue_trace<'a>(span: &Span, get: impl Fn(&str) -> Option<&'a str>) {
    let Some(parent) = parse(get) else { return };
    if !ids::set_parent(span, &parent) {
        // Fails only where no subscriber keeps spans, and then there is nothing to tie together.
        let _ = span.set_parent(Context::new().with_remote_span_context(parent));
    }
}

/// The `traceparent` of `span`, if spans are kept.
pub fn traceparent(span: &Span) -> Option<String> {
    let context = context(span);
    context.is_valid().then(|| header(&context))
}

/// Of whichever layer keeps the span's ids; not valid where none does.
fn context(span: &Span) -> SpanContext {
    ids::of(span).unwrap_or_else(|| span.context().span().span_context().clone())
}

fn header(context: &SpanContext) -> String {
    format!(
        "00-{}-{}-{:02x}",
        context.trace_id(),
        context.span_id(),
        context.trace_flags() & TraceFlags::SAMPLED
    )
}

fn parse<'a>(get: impl Fn(&str) -> Option<&'a str>) -> Option<SpanContext> {
    let mut parts = get(TRACEPARENT)?.trim().split('-');
    let version = u8::try_from(hex(parts.next()?, 2)?).ok()?;
    let trace = TraceId::from(hex(parts.next()?, 32)?);
    let span = SpanId::from(u64::try_from(hex(parts.next()?, 16)?).ok()?);
    let flags = TraceFlags::new(u8::try_from(hex(parts.next()?, 2)?).ok()?);
    // Later versions may go on behind the flags.
    if version == NO_VERSION || (version == 0 && parts.next().is_some()) {
        return None;
    }
    let state = get(TRACESTATE).filter(|state| state.len() <= MAX_TRACESTATE_BYTES);
    let state = state.and_then(|state| state.parse::<TraceState>().ok());
    let (flags, state) = (flags & TraceFlags::SAMPLED, state.unwrap_or_default());
    let context = SpanContext::new(trace, span, flags, true, state);
    context.is_valid().then_some(context)
}

fn hex(text: &str, digits: usize) -> Option<u128> {
    let lower = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if text.len() != digits || !text.bytes().all(lower) {
        return None;
    }
    u128::from_str_radix(text, 16).ok()
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
