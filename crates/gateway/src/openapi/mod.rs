//! The description of what HTTP callers can reach (OpenAPI 3.1), made of the handlers, the decoders and the layers themselves.
//!
//! A handler's attribute says its path, parameters and answers; it is by this attribute that the router knows the path, so what is
//! not described is not reached. A request's fields are those that its decoder [asks for](contract::json::asked), with limits from
//! the contract's constants, which tests hold against the decoder. What a layer refuses, the layer's function in the router says
//! ([`answers`]). `docs/adr/0025-openapi-from-the-handlers.md` has the reasons.

pub(crate) mod answers;
pub(crate) mod params;
pub(crate) mod schema;
pub(crate) mod submission;
pub(crate) mod task;

#[cfg(test)]
mod held;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use utoipa::openapi::security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa::openapi::server::Server;
use utoipa::openapi::tag::{Tag, TagBuilder};
use utoipa::openapi::{Components, InfoBuilder, LicenseBuilder, OpenApi, Paths, RefOr};
use utoipa_axum::router::UtoipaMethodRouter;

#[cfg(test)]
pub(crate) use held::{held_against_its_decoder, rules_held_against_decoder};

use crate::edge::Edge;

/// Handlers with their description.
pub(crate) type Routes = UtoipaMethodRouter<Arc<Edge>>;

/// What stands above all operations.
const ABOUT: &str = "Text to image. One port, several dialects: our own, OpenAI Images, DashScope and the Open Inference \
    Protocol. A task that is accepted is stored and will end.\n\nUnits, examples and how to sign are in `docs/API.md` of the source, which is not served here; what an error \
    code means is at `/docs/errors/{code}`. Over gRPC the same is `inkstone.v1.ImageService`, with reflection.";

/// A page whose script and style are its own; it fetches the document and nothing else.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; \
    base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// `GET /openapi.json`
#[utoipa::path(
    get,
    path = "/openapi.json",
    operation_id = "openapi",
    summary = "This document",
    responses((status = 200, description = "OpenAPI 3.1.", content_type = "application/json"))
)]
pub(crate) async fn document(State(edge): State<Arc<Edge>>) -> Response {
    let text: Bytes = edge.document.get().cloned().unwrap_or_default();
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (kind, text).into_response()
}

/// `GET /docs`
#[utoipa::path(
    get,
    path = "/docs",
    operation_id = "docs",
    summary = "This document as a page",
    responses((status = 200, description = "A page that needs nothing from elsewhere.", body = String, content_type = "text/html; charset=utf-8"))
)]
pub(crate) async fn page() -> Response {
    let head = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
    ];
    (head, include_str!("page.html")).into_response()
}

/// The document before any operation is in it.
pub(crate) fn base() -> OpenApi {
    let info = InfoBuilder::new()
        .title("Inkstone")
        .version(env!("CARGO_PKG_VERSION"))
        .description(Some(ABOUT))
        .license(Some(
            LicenseBuilder::new()
                .name(env!("CARGO_PKG_LICENSE"))
                .identifier(Some(env!("CARGO_PKG_LICENSE")))
                .build(),
        ))
        .build();
    let mut document = OpenApi::new(info, Paths::new());
    document.servers = Some(vec![Server::new("/")]);
    let heading = |(name, means): &(&str, &str)| -> Tag {
        TagBuilder::new()
            .name(*name)
            .description(Some(*means))
            .build()
    };
    document.tags = Some(answers::TAGS.iter().map(heading).collect());
    document
}

/// Completes the document once every operation is in it.
pub(crate) fn finish(document: &mut OpenApi) {
    answers::finish(&mut document.paths);
    let components = document.components.get_or_insert_with(Components::new);
    components.schemas.extend(answers::parts());
    for (name, header) in answers::headers() {
        components.headers.insert(name.to_owned(), RefOr::T(header));
    }
    for (name, scheme) in schemes() {
        components
            .security_schemes
            .insert(name.to_owned(), RefOr::T(scheme));
    }
}

/// The ways to show who calls. A signature is several headers together.
fn schemes() -> Vec<(&'static str, SecurityScheme)> {
    let bearer = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some("A key (`ink_…`), or a token from `POST /v1/token`."))
        .build();
    let header = |name: &str, means: &str| {
        SecurityScheme::ApiKey(ApiKey::Header(ApiKeyValue::with_description(name, means)))
    };
    let token = ApiKeyValue::with_description("token", "The token of a picture's URL.");
    vec![
        ("bearer", SecurityScheme::Http(bearer)),
        ("appKey", header("X-App-Key", "The app key.")),
        (
            "timestamp",
            header(
                "X-Timestamp",
                "Unix seconds, at most 300 s from the server's clock.",
            ),
        ),
        (
            "signature",
            header(
                "X-Signature",
                "HMAC-SHA256 in hexadecimal digits: v1 signs app key and timestamp, v2 the whole request.",
            ),
        ),
        (
            "nonce",
            header(
                "X-Nonce",
                "Signature v2: 16 to 64 of `A-Z a-z 0-9 _ -`, new for each request.",
            ),
        ),
        (
            "contentSha256",
            header(
                "X-Content-SHA256",
                "Signature v2: SHA-256 of the body, in hexadecimal digits.",
            ),
        ),
        ("pictureToken", SecurityScheme::ApiKey(ApiKey::Query(token))),
    ]
}

/// The same handlers at another path, their operations' ids with `suffix` behind them.
pub(crate) fn also_at(path: &str, suffix: &str, (schemas, paths, methods): Routes) -> Routes {
    let mut there = Paths::new();
    for (_, mut item) in paths.paths {
        for operation in answers::operations(&mut item) {
            let id = operation.operation_id.take().unwrap_or_default();
            operation.operation_id = Some(format!("{id}{suffix}"));
        }
        there.paths.insert(path.to_owned(), item);
    }
    (schemas, there, methods)
}

/// The same handlers under a version of a model.
pub(crate) fn with_version(routes: Routes) -> Routes {
    const MODEL: &str = "/v2/models/{model}";
    let path = routes.1.paths.keys().next().cloned().unwrap_or_default();
    let path = path.replace(MODEL, &format!("{MODEL}/versions/{{version}}"));
    let (schemas, mut paths, methods) = also_at(&path, "OfVersion", routes);
    for item in paths.paths.values_mut() {
        for operation in answers::operations(item) {
            let parameters = operation.parameters.get_or_insert_default();
            parameters.push(RefOr::T(params::version()));
        }
    }
    (schemas, paths, methods)
}
