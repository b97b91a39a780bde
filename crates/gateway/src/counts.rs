//! Answers, counted by dialect, route and status.

use std::collections::HashMap;
use std::fmt;
use std::sync::RwLock;
use std::time::Duration;

use axum::http::HeaderName;
use axum::response::Response;
use metrics::{Counter, Histogram};

use crate::problem::Dialect;

const GRPC_STATUS: HeaderName = HeaderName::from_static("grpc-status");

/// What has been counted before, by route: to make the labels and to find what they stand for costs more than to count, so only the first answer
/// of its kind does. Routes, dialects and statuses are few.
#[derive(Default)]
pub(crate) struct Counts {
    routes: RwLock<HashMap<String, Vec<Kind>>>,
}

/// Answers with the same labels.
struct Kind {
    dialect: Dialect,
    status: Status,
    answers: Counter,
    seconds: Histogram,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Status {
    Http(u16),
    Grpc(u16),
}

impl Counts {
    /// One more answer; `took`: until its head was there.
    pub(crate) fn count(&self, dialect: Dialect, route: &str, response: &Response, took: Duration) {
        let status = Status::of(response);
        // Every change leaves it whole.
        let routes = self.routes.read().unwrap_or_else(|e| e.into_inner());
        let mut known = routes.get(route).into_iter().flatten();
        if let Some(kind) = known.find(|kind| kind.dialect == dialect && kind.status == status) {
            return kind.count(took);
        }
        drop(routes);
        let kind = Kind::new(dialect, route, status);
        kind.count(took);
        let mut routes = self.routes.write().unwrap_or_else(|e| e.into_inner());
        // Of two that come first in the same moment both stay: they count the same.
        routes.entry(route.to_owned()).or_default().push(kind);
    }
}

impl Kind {
    fn new(dialect: Dialect, route: &str, status: Status) -> Self {
        let (name, route) = (dialect.as_str(), route.to_owned());
        Self {
            dialect,
            status,
            answers: metrics::counter!("inkstone_gateway_requests_total", "dialect" => name, "route" => route.clone(), "status" => status.to_string()),
            seconds: metrics::histogram!("inkstone_gateway_request_seconds", "dialect" => name, "route" => route),
        }
    }

    fn count(&self, took: Duration) {
        self.answers.increment(1);
        self.seconds.record(took.as_secs_f64());
    }
}

impl Status {
    fn of(response: &Response) -> Self {
        let grpc = response.headers().get(GRPC_STATUS);
        match grpc.and_then(|code| code.to_str().ok()?.parse().ok()) {
            Some(code) => Self::Grpc(code),
            None => Self::Http(response.status().as_u16()),
        }
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Http(code) => write!(f, "{code}"),
            Self::Grpc(code) => write!(f, "grpc-{code}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::sync::{Arc, Mutex};

    use axum::body::Body;
    use metrics::{Gauge, HistogramFn, Key, KeyName, Metadata, Recorder, SharedString, Unit};

    use super::*;

    /// Notes the labels of each counter and each histogram that is looked up, and counts for all of a kind together.
    #[derive(Default)]
    struct LookedUp {
        counters: Mutex<Vec<String>>,
        histograms: Mutex<Vec<String>>,
        counted: Arc<AtomicU64>,
        recorded: Arc<Recorded>,
    }

    #[derive(Default)]
    struct Recorded(AtomicU64);

    impl HistogramFn for Recorded {
        fn record(&self, _: f64) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn note(labels: &Mutex<Vec<String>>, key: &Key) {
        let values: Vec<&str> = key.labels().map(|label| label.value()).collect();
        labels.lock().unwrap().push(values.join(" "));
    }

    impl Recorder for LookedUp {
        fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
        fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

        fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
            note(&self.counters, key);
            Counter::from_arc(self.counted.clone())
        }

        fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
            Gauge::noop()
        }

        fn register_histogram(&self, key: &Key, _: &Metadata<'_>) -> Histogram {
            note(&self.histograms, key);
            Histogram::from_arc(self.recorded.clone())
        }
    }

    fn answer(status: u16) -> Response {
        let answer = Response::builder().status(status);
        answer.body(Body::empty()).unwrap()
    }

    #[test]
    fn each_answer_counts_and_its_labels_are_looked_up_once() {
        let (recorder, counts) = (LookedUp::default(), Counts::default());
        let count = |dialect, route: &str, response: &Response| {
            counts.count(dialect, route, response, Duration::from_millis(1));
        };
        let mut call = answer(200);
        call.headers_mut().insert(GRPC_STATUS, 5.into());
        metrics::with_local_recorder(&recorder, || {
            for _ in 0..2 {
                count(Dialect::Own, "/v1/tasks", &answer(202));
                count(Dialect::Own, "/v1/tasks", &answer(400));
                count(Dialect::Own, "unmatched", &answer(404));
                count(Dialect::Oip, "unmatched", &answer(404));
                count(Dialect::Grpc, "/inkstone.v1.ImageService/{*rest}", &call);
            }
        });
        let expected = [
            "own /v1/tasks 202",
            "own /v1/tasks 400",
            "own unmatched 404",
            "oip unmatched 404",
            "grpc /inkstone.v1.ImageService/{*rest} grpc-5",
        ];
        assert_eq!(*recorder.counters.lock().unwrap(), expected);
        // As often; the status is no label of theirs.
        let expected = [
            "own /v1/tasks",
            "own /v1/tasks",
            "own unmatched",
            "oip unmatched",
            "grpc /inkstone.v1.ImageService/{*rest}",
        ];
        assert_eq!(*recorder.histograms.lock().unwrap(), expected);
        assert_eq!(recorder.counted.load(Ordering::Relaxed), 10);
        assert_eq!(recorder.recorded.0.load(Ordering::Relaxed), 10);
    }
}
