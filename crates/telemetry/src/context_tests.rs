use opentelemetry::trace::TracerProvider as _;
use opentelemetry_sdk::trace::SdkTracerProvider;
use tracing::info_span;
use tracing::subscriber::with_default;
use tracing_subscriber::layer::SubscriberExt as _;

use super::*;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// With ids of our own, and with those of the layer for export.
fn with_either_layer(test: impl Fn()) {
    with_default(tracing_subscriber::registry().with(ids::SpanIds), &test);
    let traces = SdkTracerProvider::builder().build();
    let spans = tracing_opentelemetry::layer().with_tracer(traces.tracer("test"));
    with_default(tracing_subscriber::registry().with(spans), &test);
}

fn headers<'a>(traceparent: &'a str, tracestate: &'a str) -> impl Fn(&str) -> Option<&'a str> {
    move |name: &str| match name {
        TRACEPARENT => Some(traceparent),
        TRACESTATE => Some(tracestate),
        _ => None,
    }
}

fn trace_of(span: &Span) -> String {
    traceparent(span).unwrap()[3..35].to_owned()
}

#[test]
fn a_child_is_in_its_parents_trace_and_has_an_id_of_its_own() {
    with_either_layer(|| {
        let parent = info_span!("parent");
        let child = parent.in_scope(|| info_span!("child"));
        let named = info_span!(parent: &parent, "named");
        let grandchild = child.in_scope(|| info_span!("grandchild"));
        let all = [&parent, &child, &named, &grandchild];
        for (place, span) in all.into_iter().enumerate() {
            assert_eq!(trace_of(span), trace_of(&parent));
            for other in &all[..place] {
                assert_ne!(traceparent(span), traceparent(other));
            }
        }
        // What has no parent begins a trace, to be looked at by whoever wants.
        let root = parent.in_scope(|| info_span!(parent: None, "root"));
        assert_ne!(trace_of(&root), trace_of(&parent));
        assert!(traceparent(&root).unwrap().ends_with("-01"));
    });
}

#[test]
fn a_span_that_nobody_has_seen_yet_joins_its_callers_trace() {
    with_either_layer(|| {
        let span = info_span!("span");
        continue_trace(&span, headers(CALLER, ""));
        let child = span.in_scope(|| info_span!("child"));
        assert_eq!(trace_of(&span), TRACE);
        assert_eq!(trace_of(&child), TRACE);
        // It is below the caller's span, and not that span.
        assert_ne!(traceparent(&span).unwrap(), CALLER);
    });
}

#[test]
fn a_span_that_was_seen_stays_in_its_trace() {
    with_either_layer(|| {
        let entered = info_span!("entered");
        entered.in_scope(|| ());
        continue_trace(&entered, headers(CALLER, ""));
        assert_ne!(trace_of(&entered), TRACE);

        let parent = info_span!("parent");
        let child = info_span!(parent: &parent, "child");
        continue_trace(&parent, headers(CALLER, ""));
        assert_ne!(trace_of(&parent), TRACE);
        assert_eq!(trace_of(&child), trace_of(&parent));

        let asked = info_span!("asked");
        let before = traceparent(&asked);
        continue_trace(&asked, headers(CALLER, ""));
        assert_eq!(traceparent(&asked), before);
    });
}

#[test]
fn what_the_caller_says_of_its_trace_is_passed_on() {
    with_either_layer(|| {
        let span = info_span!("span");
        let unsampled = CALLER.replace("-01", "-00");
        continue_trace(&span, headers(&unsampled, "vendor=1,other=2"));
        let child = span.in_scope(|| info_span!("child"));
        let mut sent = Vec::new();
        child.in_scope(|| inject(|name, value| sent.push((name.to_owned(), value))));
        let context = traceparent(&child).unwrap();
        assert!(context.ends_with("-00"), "{context}");
        let state = "vendor=1,other=2".to_owned();
        let expected = [(TRACEPARENT, context), (TRACESTATE, state)];
        assert_eq!(sent, expected.map(|(name, value)| (name.to_owned(), value)));
    });
}

#[test]
fn more_state_of_a_trace_than_the_standard_asks_to_pass_on_ends_here_and_the_trace_goes_on() {
    let sent = |state: &str| {
        let (span, mut sent) = (info_span!("span"), None);
        continue_trace(&span, headers(CALLER, state));
        assert_eq!(trace_of(&span), TRACE);
        span.in_scope(|| {
            inject(|name, value| {
                if name == TRACESTATE {
                    sent = Some(value);
                }
            });
        });
        sent
    };
    // One value has 256 bytes at most.
    let (first, rest) = ("a".repeat(256), "b".repeat(251));
    let longest = format!("a={first},b={rest}");
    assert_eq!(longest.len(), 512);
    with_either_layer(|| {
        assert_eq!(sent(&longest), Some(longest.clone()));
        assert_eq!(sent(&format!("{longest}b")), None);
    });
}

#[test]
fn a_header_that_would_be_empty_is_not_sent() {
    with_either_layer(|| {
        let mut sent = Vec::new();
        info_span!("span").in_scope(|| inject(|name, _| sent.push(name.to_owned())));
        assert_eq!(sent, [TRACEPARENT]);
    });
}

#[test]
fn a_malformed_traceparent_begins_a_new_trace() {
    let bad = [
        "",
        "00",
        "nonsense",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-00",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e473-00f067aa0ba902b7-01",
        "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e47é6-00f067aa0ba902b7-01",
    ];
    with_either_layer(|| {
        for bad in bad {
            let span = info_span!("span");
            continue_trace(&span, headers(bad, ""));
            let own = traceparent(&span).unwrap();
            assert!(!own.contains("00f067aa0ba902b7"), "{bad}");
            assert!(parse(headers(&own, "")).is_some(), "{bad}: {own}");
            assert_ne!(trace_of(&span), TRACE, "{bad}");
        }
    });
}

#[test]
fn later_versions_may_say_more() {
    let later = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-09-more-to-come";
    let context = parse(headers(later, "")).unwrap();
    assert_eq!(header(&context), CALLER);
}

#[test]
fn where_no_spans_are_kept_there_is_no_context() {
    let span = info_span!("span");
    continue_trace(&span, headers(CALLER, ""));
    assert_eq!(traceparent(&span), None);
    span.in_scope(|| inject(|name, _| panic!("{name}")));
}
