//! The pages that need no one: the front page, and what each error code means.

use std::sync::Arc;

use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use contract::{ErrorCode, Failure};

use crate::edge::Edge;
use crate::openapi::params::{params, path as path_param};
use crate::openapi::task::codes;
use crate::problem::Refused;

/// A page whose style is its own, and that loads nothing.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; \
    frame-ancestors 'none'";

/// `GET /`
#[utoipa::path(
    get,
    path = "/",
    operation_id = "welcome",
    summary = "A page with an example",
    responses((status = 200, description = "The page.", body = String, content_type = "text/html; charset=utf-8"))
)]
pub(crate) async fn page(State(edge): State<Arc<Edge>>, uri: Uri, headers: HeaderMap) -> Response {
    let page = Html(page_at(&edge.public_url(&uri, &headers)));
    ([(header::CONTENT_SECURITY_POLICY, PAGE_POLICY)], page).into_response()
}

/// The front page of a gateway that is known by `url`, which comes from settings or from a request.
fn page_at(url: &str) -> String {
    let escaped = url
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;");
    include_str!("welcome.html").replace("{url}", &escaped)
}

params!(
    /// The code that a page is about.
    CodeParam,
    [path_param("code", "An error code.", codes())]
);

/// `GET /docs/errors/{code}`: where the `type` of a problem leads.
#[utoipa::path(
    get,
    path = "/docs/errors/{code}",
    operation_id = "errorCode",
    summary = "What an error code means",
    params(CodeParam),
    responses(
        (status = 200, description = "A page.", body = String, content_type = "text/markdown; charset=utf-8"),
        (status = 404, description = "not_found")
    )
)]
pub(crate) async fn error_page(path: Result<Path<String>, PathRejection>) -> Response {
    let code = path.map(|Path(code)| code).unwrap_or_default();
    match ErrorCode::from_text(code.trim_end_matches(".md")) {
        Some(code) => {
            let kind = [(header::CONTENT_TYPE, "text/markdown; charset=utf-8")];
            (kind, text(code)).into_response()
        }
        None => Refused(Failure::new(
            ErrorCode::NotFound,
            "there is no such error code",
        ))
        .into_response(),
    }
}

macro_rules! pages {
    ($($code:ident $file:literal)*) => {
        /// A code's page. A code without one does not compile.
        fn text(code: ErrorCode) -> &'static str {
            match code {
                $(ErrorCode::$code => include_str!(concat!("../../../docs/errors/", $file, ".md")),)*
            }
        }
    };
}

pages! {
    InvalidArgument "invalid_argument"
    PayloadTooLarge "payload_too_large"
    UnsupportedMediaType "unsupported_media_type"
    Unauthenticated "unauthenticated"
    PermissionDenied "permission_denied"
    ModelNotFound "model_not_found"
    TaskNotFound "task_not_found"
    NotFound "not_found"
    MethodNotAllowed "method_not_allowed"
    IdempotencyConflict "idempotency_conflict"
    NotReady "not_ready"
    RateLimited "rate_limited"
    TooManyTasks "too_many_tasks"
    QuotaExceeded "quota_exceeded"
    Unavailable "unavailable"
    DeadlineExceeded "deadline_exceeded"
    Cancelled "cancelled"
    AttemptsExhausted "attempts_exhausted"
    PictureTooLarge "picture_too_large"
    EngineFailed "engine_failed"
    Internal "internal"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_front_page_names_the_address_that_it_was_asked_at_and_no_markup_of_it() {
        let page = page_at("https://images.example.com");
        assert!(page.contains("curl -s https://images.example.com/v1/images/generations"));
        let page = page_at("http://h/<b>&");
        assert!(page.contains("http://h/&lt;b&gt;&amp;/v1") && !page.contains("<b>"));
    }

    #[test]
    fn each_page_is_about_its_own_code_and_shows_the_dialects() {
        for &code in ErrorCode::ALL {
            let page = text(code);
            assert!(page.starts_with(&format!("# `{code}`")), "{code}");
            let status = code.http().as_u16().to_string();
            assert!(page.contains(&format!("\"code\": \"{code}\"")), "{code}");
            assert!(page.contains(&format!("\"status\": {status}")), "{code}");
            assert!(
                page.contains("## OpenAI") && page.contains("## gRPC"),
                "{code}"
            );
        }
    }
}
