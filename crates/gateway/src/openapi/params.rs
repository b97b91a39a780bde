//! Parameters that more than one operation takes.

use contract::limits::MAX_IDEMPOTENCY_KEY_BYTES;
use utoipa::openapi::path::{Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::{Object, Required};

use super::schema::{text, uuid};

/// A parameter in the query, which may be left out.
pub(crate) fn query(name: &str, means: &str, schema: Object) -> Parameter {
    parameter(name, ParameterIn::Query, means, schema)
}

/// A header, which may be left out.
pub(crate) fn header(name: &str, means: &str, schema: Object) -> Parameter {
    parameter(name, ParameterIn::Header, means, schema)
}

/// A part of the path.
pub(crate) fn path(name: &str, means: &str, schema: Object) -> Parameter {
    parameter(name, ParameterIn::Path, means, schema)
}

fn parameter(name: &str, place: ParameterIn, means: &str, schema: Object) -> Parameter {
    let required = match place {
        ParameterIn::Path => Required::True,
        _ => Required::False,
    };
    ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(means))
        .schema(Some(schema))
        .build()
}

/// Parameters by a type's name, for the attributes of handlers.
macro_rules! params {
    ($(#[$doc:meta])* $type:ident, [$($parameter:expr),* $(,)?]) => {
        $(#[$doc])*
        pub(crate) struct $type;

        impl utoipa::IntoParams for $type {
            fn into_params(
                _: impl Fn() -> Option<utoipa::openapi::path::ParameterIn>,
            ) -> Vec<utoipa::openapi::path::Parameter> {
                vec![$($parameter),*]
            }
        }
    };
}
pub(crate) use params;

params!(
    /// The task that a path names.
    TaskIdParam,
    [path("id", "The task's id.", uuid())]
);

params!(
    /// The same in DashScope's dialect, where a text that is no id is a task whose status is unknown.
    AnyTaskIdParam,
    [path("id", "The task's id.", text())]
);

params!(
    /// A model by its name or an alias.
    ModelParam,
    [path("model", "A model's name or alias.", text())]
);

params!(
    /// The key under which a submission may be repeated.
    IdempotencyKeyParam,
    [header(
        "Idempotency-Key",
        "The same key and request is the same task; another request under it is refused.",
        idempotency_key()
    )]
);

fn idempotency_key() -> Object {
    let mut key = text();
    key.min_length = Some(1);
    key.max_length = Some(MAX_IDEMPOTENCY_KEY_BYTES);
    // Visible ASCII, with blanks between.
    key.pattern = Some("^[!-~]([ -~]*[!-~])?$".to_owned());
    key
}

/// A version of a model, of the paths that name one.
pub(super) fn version() -> Parameter {
    let means = "A version that takes requests, beside which no other does.";
    path("version", means, text())
}
