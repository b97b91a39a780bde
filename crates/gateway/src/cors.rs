//! What browsers are told of who else's pages may call (the Fetch standard's CORS protocol). Off unless origins are set.

use axum::http::{HeaderName, HeaderValue, Method, Uri, header};
use tower_http::cors::{AllowHeaders, AllowOrigin, CorsLayer};

use crate::settings::CorsSettings;

/// Every origin.
const EVERY: &str = "*";
/// What pages may read of an answer besides what every page may: all that answers say to whoever called.
const EXPOSED: [HeaderName; 15] = [
    header::ALLOW,
    header::CONTENT_DISPOSITION,
    header::ETAG,
    header::LOCATION,
    header::RETRY_AFTER,
    header::WWW_AUTHENTICATE,
    HeaderName::from_static("idempotent-replayed"),
    HeaderName::from_static("inference-header-content-length"),
    HeaderName::from_static("ratelimit-limit"),
    HeaderName::from_static("ratelimit-remaining"),
    HeaderName::from_static("ratelimit-reset"),
    HeaderName::from_static("traceparent"),
    HeaderName::from_static("x-inkstone-task-id"),
    HeaderName::from_static("x-request-id"),
    HeaderName::from_static("x-should-retry"),
];

/// The layer that answers preflights and marks answers; `None` where no origin may call. Credentials that a browser sends by itself
/// (cookies) are never asked for: the platform knows none.
pub(crate) fn layer(settings: &CorsSettings) -> Option<CorsLayer> {
    let origins = &settings.allow_origins;
    let allowed = match &origins[..] {
        [] => return None,
        [every] if every == EVERY => AllowOrigin::any(),
        // Validated to be origins.
        _ => AllowOrigin::list(origins.iter().filter_map(|o| HeaderValue::from_str(o).ok())),
    };
    let layer = CorsLayer::new()
        .allow_origin(allowed)
        .allow_methods([Method::GET, Method::HEAD, Method::POST, Method::DELETE])
        // Whatever a client sends along, its own tracing included; what it means is for the handlers.
        .allow_headers(AllowHeaders::mirror_request())
        .expose_headers(EXPOSED)
        .max_age(settings.max_age.duration());
    Some(layer)
}

/// What is wrong with these origins, if anything is.
pub(crate) fn problem(origins: &[String]) -> Option<String> {
    if origins.len() > 1 && origins.iter().any(|origin| origin == EVERY) {
        return Some("must be [\"*\"] alone, or origins".to_owned());
    }
    let bad = origins.iter().find(|o| *o != EVERY && !is_origin(o))?;
    Some(format!(
        "must hold origins such as https://studio.example.com, without a path, not {bad:?}"
    ))
}

/// As a browser writes it: scheme, host, port where it is not the scheme's own.
fn is_origin(text: &str) -> bool {
    let Ok(uri) = text.parse::<Uri>() else {
        return false;
    };
    let web = matches!(uri.scheme_str(), Some("http" | "https"));
    let lower = !text.bytes().any(|b| b.is_ascii_uppercase());
    let bare = uri.authority().is_some_and(|host| {
        text.split_once("://")
            .is_some_and(|(_, rest)| rest == host.as_str())
            && !host.as_str().contains('@')
    });
    web && lower && bare
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_is_scheme_host_and_port_and_nothing_else() {
        for good in [
            "https://h.example",
            "http://127.0.0.1:3000",
            "http://[::1]:3000",
        ] {
            assert_eq!(problem(&[good.to_owned()]), None, "{good}");
        }
        for bad in [
            "h",
            "https://h/",
            "https://h/x",
            "https://H",
            "ftp://h",
            "https://u@h",
            "null",
            "",
        ] {
            assert!(problem(&[bad.to_owned()]).is_some(), "{bad}");
        }
        assert_eq!(problem(&["*".to_owned()]), None);
        assert!(problem(&["*".to_owned(), "https://h".to_owned()]).is_some());
    }
}
