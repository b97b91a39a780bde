//! The fields of log lines for people.

use std::error::Error;
use std::fmt;

use tracing::field::{Field, Visit};
use tracing_subscriber::field::{MakeVisitor, VisitFmt, VisitOutput};
use tracing_subscriber::fmt::format::{DefaultVisitor, Writer};

/// How the names of fields begin that tell an exporter what a span is. Whoever reads lines sees it from the span's name.
const FOR_EXPORT: &str = "otel.";

/// As they are by default, without those for exporters. Lines in JSON have them.
pub(crate) struct ForPeople;

impl<'a> MakeVisitor<Writer<'a>> for ForPeople {
    type Visitor = Shown<'a>;

    fn make_visitor(&self, target: Writer<'a>) -> Self::Visitor {
        Shown(DefaultVisitor::new(target, true))
    }
}

/// Writes the fields that are shown.
pub(crate) struct Shown<'a>(DefaultVisitor<'a>);

fn is_shown(field: &Field) -> bool {
    !field.name().starts_with(FOR_EXPORT)
}

impl Visit for Shown<'_> {
    fn record_str(&mut self, field: &Field, value: &str) {
        if is_shown(field) {
            self.0.record_str(field, value);
        }
    }

    fn record_error(&mut self, field: &Field, value: &(dyn Error + 'static)) {
        if is_shown(field) {
            self.0.record_error(field, value);
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if is_shown(field) {
            self.0.record_debug(field, value);
        }
    }
}

impl VisitOutput<fmt::Result> for Shown<'_> {
    fn finish(self) -> fmt::Result {
        self.0.finish()
    }
}

impl VisitFmt for Shown<'_> {
    fn writer(&mut self) -> &mut dyn fmt::Write {
        self.0.writer()
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::{Arc, Mutex};

    use tracing::subscriber::with_default;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    #[derive(Clone, Default)]
    struct Told(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Told {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn lines_for_people_have_every_field_but_those_for_exporters() {
        let told = Told::default();
        let writer = told.clone();
        let lines = tracing_subscriber::fmt::layer()
            .with_writer(move || writer.clone())
            .with_ansi(false)
            .without_time()
            .compact()
            .fmt_fields(ForPeople);
        with_default(tracing_subscriber::registry().with(lines), || {
            let span = tracing::info_span!(
                "request",
                otel.kind = "server",
                method = "GET",
                task = tracing::field::Empty
            );
            span.in_scope(|| tracing::info!(by = "me", steps = 7, "begun"));
            span.record("task", "t1");
            span.in_scope(|| tracing::info!("ended"));
        });
        let told = String::from_utf8(told.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = told.lines().collect();
        assert_eq!(lines.len(), 2, "{told}");
        assert!(!told.contains("otel"), "{told}");
        for part in ["begun", "by=\"me\"", "steps=7", "method=\"GET\""] {
            assert!(lines[0].contains(part), "{part}: {told}");
        }
        assert!(lines[1].contains("method=\"GET\" task=\"t1\""), "{told}");
    }
}
