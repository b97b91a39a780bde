//! What a process tells those who run it: logs, spans over OTLP, metrics, and the trace context that ties a
//! request's spans together over HTTP, gRPC and NATS headers (W3C Trace Context).
//!
//! Spans always have ids, exported or not, so every answer carries a `traceparent`; what ties an answer to log lines is the
//! request id on the request's span. Where nothing is exported, a layer of our own makes the ids and nothing else (`ids`).

mod context;
mod filter;
mod ids;
mod text;

use std::ffi::OsStr;
use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{Matcher, PrometheusBuilder, PrometheusHandle};
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::WithExportConfig as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::Level;
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry};

pub use context::{TRACEPARENT, continue_trace, inject, traceparent};
pub use tracing::Span;

/// Switches colours off where it is set and not empty: <https://no-color.org>.
const NO_COLOR: &str = "NO_COLOR";

/// Buckets of every `_seconds` histogram: 1 ms to 2 minutes.
const SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0,
];

/// Settings of a process's logs and traces.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TelemetrySettings {
    /// Which events are logged, in `tracing`'s filter syntax, such as `info,gateway=debug`.
    pub log: String,
    /// How they are written.
    pub format: LogFormat,
    /// gRPC endpoint of an OTLP receiver such as Jaeger; empty exports nothing.
    pub otlp_endpoint: String,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Telemetry that could not be started.
#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    /// The filter is not in `tracing`'s syntax.
    #[error("telemetry.log is not a filter such as `info` or `info,gateway=debug`")]
    Filter(#[source] tracing_subscriber::filter::ParseError),
    /// The OTLP endpoint is not a URL that can be used.
    #[error("telemetry.otlp_endpoint cannot be used")]
    Exporter(#[source] opentelemetry_otlp::ExporterBuildError),
    /// Someone has set the process's recorder before.
    #[error("metrics were started twice in one process")]
    Metrics(#[source] metrics_exporter_prometheus::BuildError),
    /// Someone has set the process's subscriber before.
    #[error("logging was started twice in one process")]
    Subscriber(#[source] tracing_subscriber::util::TryInitError),
}

/// A process's telemetry. [`Telemetry::flush`] it before the process ends.
#[derive(Clone)]
pub struct Telemetry {
    metrics: PrometheusHandle,
    /// None where nothing is exported.
    traces: Option<SdkTracerProvider>,
}

impl Telemetry {
    /// Starts logs, traces and metrics of this process. Must run inside a tokio runtime when traces are exported.
    ///
    /// # Errors
    /// See [`TelemetryError`]. Nothing is left half-started that would matter: the process should end.
    pub fn start(
        service: &'static str,
        settings: &TelemetrySettings,
    ) -> Result<Self, TelemetryError> {
        let filter = filter::parse::<Registry>(&settings.log).map_err(TelemetryError::Filter)?;
        let traces = exported(service, settings)?;
        let spans = match &traces {
            // Where a span was opened in the code, by which thread, and for how long it was idle would cost every request more than the
            // rest of its spans does.
            Some(traces) => tracing_opentelemetry::layer()
                .with_location(false)
                .with_threads(false)
                .with_tracked_inactivity(false)
                .with_tracer(traces.tracer(service))
                .boxed(),
            None => ids::SpanIds.boxed(),
        };
        let colours = colours(
            std::io::stderr().is_terminal(),
            std::env::var_os(NO_COLOR).as_deref(),
        );
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(std::io::stderr)
            // A line that cannot be written would be complained of on the same stderr, by a macro that panics then.
            .log_internal_errors(false)
            .with_ansi(colours);
        let lines = match settings.format {
            LogFormat::Json => lines.json().flatten_event(true).boxed(),
            LogFormat::Text => lines
                .compact()
                .with_target(false)
                .fmt_fields(text::ForPeople)
                .boxed(),
        };
        tracing_subscriber::registry()
            .with(filter)
            .with(filter_fn(|event| {
                may_be_told(event.target(), *event.level())
            }))
            .with(spans)
            .with(lines)
            .try_init()
            .map_err(TelemetryError::Subscriber)?;
        let metrics = PrometheusBuilder::new()
            .set_buckets_for_metric(Matcher::Suffix("_seconds".to_owned()), SECONDS)
            .and_then(PrometheusBuilder::install_recorder)
            .map_err(TelemetryError::Metrics)?;
        Ok(Self { metrics, traces })
    }

    /// The metrics in Prometheus's text format.
    pub fn render_metrics(&self) -> String {
        self.metrics.render()
    }

    /// Lets go of histogram samples already counted. Call it every few seconds, or memory grows with each
    /// observation until the next scrape.
    pub fn upkeep(&self) {
        self.metrics.run_upkeep();
    }

    /// Sends the spans that wait. Blocks: call it off the runtime.
    pub fn flush(&self) {
        if let Some(Err(error)) = self.traces.as_ref().map(SdkTracerProvider::shutdown) {
            tracing::debug!(%error, "some spans were not exported");
        }
    }
}

/// Whether log lines are coloured: for eyes at a terminal, never in a file or a pipe.
fn colours(terminal: bool, no_color: Option<&OsStr>) -> bool {
    terminal && no_color.is_none_or(OsStr::is_empty)
}

/// Whether something may be logged at all, whatever the filter says. Below this level, the broker's client prints messages
/// whole, and in them is what opens pictures to whoever has it.
fn may_be_told(target: &str, level: Level) -> bool {
    level <= Level::INFO || !target.starts_with("async_nats")
}

/// What exports spans; none without an endpoint.
fn exported(
    service: &'static str,
    settings: &TelemetrySettings,
) -> Result<Option<SdkTracerProvider>, TelemetryError> {
    if settings.otlp_endpoint.is_empty() {
        return Ok(None);
    }
    let resource = opentelemetry_sdk::Resource::builder()
        .with_service_name(service)
        .build();
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_tonic()
        .with_endpoint(&settings.otlp_endpoint)
        .build()
        .map_err(TelemetryError::Exporter)?;
    let traces = SdkTracerProvider::builder()
        .with_resource(resource)
        .with_batch_exporter(exporter)
        .build();
    Ok(Some(traces))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_for_terminals_that_do_not_refuse_them() {
        let wish = |text: &'static str| Some(OsStr::new(text));
        assert!(colours(true, None));
        // The convention: only what is not empty is a wish.
        assert!(colours(true, wish("")));
        assert!(!colours(true, wish("1")));
        assert!(!colours(false, None));
        assert!(!colours(false, wish("")));
    }

    #[test]
    fn without_an_endpoint_nothing_is_kept_for_export() {
        let settings = TelemetrySettings {
            log: "info".to_owned(),
            format: LogFormat::Text,
            otlp_endpoint: String::new(),
        };
        assert!(exported("test", &settings).unwrap().is_none());
    }
}
