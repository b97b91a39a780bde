//! Which spans and events there are at all.

use tracing::subscriber::Interest;
use tracing::{Metadata, Subscriber};
use tracing_subscriber::filter::{LevelFilter, ParseError};
use tracing_subscriber::layer::Context;
use tracing_subscriber::{EnvFilter, Layer};

/// What begins a span's name or its fields in a filter.
const SPAN: char = '[';

/// The filter that `text` describes, in `tracing`'s syntax.
///
/// # Errors
/// When it is not in that syntax.
pub(crate) fn parse<S: Subscriber>(
    text: &str,
) -> Result<Box<dyn Layer<S> + Send + Sync>, ParseError> {
    let filter = EnvFilter::try_new(text)?;
    Ok(match asks_for_spans(text) {
        true => filter.boxed(),
        false => ByTarget(filter).boxed(),
    })
}

/// Whether a filter asks for spans by their names or fields.
fn asks_for_spans(text: &str) -> bool {
    text.contains(SPAN)
}

/// A filter that asks for targets and levels only. Of each span that comes, is entered, left and goes, [`EnvFilter`] looks up in a table
/// behind a lock of all threads whether it was asked for by name or field; here none was.
struct ByTarget(EnvFilter);

impl<S: Subscriber> Layer<S> for ByTarget {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        Layer::<S>::register_callsite(&self.0, metadata)
    }

    fn enabled(&self, metadata: &Metadata<'_>, ctx: Context<'_, S>) -> bool {
        Layer::<S>::enabled(&self.0, metadata, ctx)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Layer::<S>::max_level_hint(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use tracing::subscriber::with_default;
    use tracing_subscriber::Registry;
    use tracing_subscriber::layer::SubscriberExt as _;

    use super::*;

    /// What of four things there is: events of levels and targets, two of them in a span.
    fn told(text: &str) -> [bool; 4] {
        let filter = parse::<Registry>(text).unwrap();
        with_default(tracing_subscriber::registry().with(filter), || {
            let alone = [
                tracing::enabled!(target: "gateway", tracing::Level::INFO),
                tracing::enabled!(target: "gateway", tracing::Level::DEBUG),
            ];
            let span = tracing::info_span!(target: "auth", "request", tenant = "acme");
            let inside = span.in_scope(|| {
                [
                    tracing::enabled!(target: "auth", tracing::Level::INFO),
                    tracing::enabled!(target: "auth", tracing::Level::DEBUG),
                ]
            });
            [alone[0], alone[1], inside[0], inside[1]]
        })
    }

    #[test]
    fn targets_and_levels_are_told_apart() {
        assert_eq!(told("info"), [true, false, true, false]);
        assert_eq!(told("info,gateway=debug"), [true, true, true, false]);
        assert_eq!(told("warn,auth=debug"), [false, false, true, true]);
        assert_eq!(told("off"), [false; 4]);
        // Nothing said is errors only.
        assert_eq!(told(""), [false; 4]);
    }

    #[test]
    fn what_is_in_a_span_can_be_asked_for_by_its_name_and_fields() {
        assert_eq!(told("info,[request]=debug"), [true, false, true, true]);
        let by_field = "info,[request{tenant=acme}]=debug";
        assert_eq!(told(by_field), [true, false, true, true]);
    }

    #[test]
    fn spans_are_looked_up_where_a_filter_asks_for_some_by_name_or_field_and_nowhere_else() {
        for by_target in ["", "off", "info", "a=debug", "warn,a::b=debug,c=off"] {
            assert!(!asks_for_spans(by_target), "{by_target}");
        }
        for by_span in ["info,[x]=debug", "a[{f}]=info", "[x{f=1}]"] {
            assert!(asks_for_spans(by_span), "{by_span}");
        }
    }

    #[test]
    fn what_is_no_filter_is_refused() {
        assert!(parse::<Registry>("gateway=loud").is_err());
    }
}
