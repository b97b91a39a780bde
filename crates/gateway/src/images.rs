//! Finished pictures, as bytes.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use contract::words::{FORMATS, word};
use contract::{ErrorCode, Failure, v1};

use crate::auth;
use crate::edge::Edge;
use crate::openapi::params::{
    TaskIdParam, header as header_param, params, path as path_param, query,
};
use crate::openapi::schema::{component, count, file, text};
use crate::platform::{Picture, Reader};
use crate::problem::Refused;
use crate::query::Parameters;
use crate::room::Class;
use crate::task_json::media_type;
use crate::tasks::task_id;

/// A picture never changes, but only its tenant's caches may keep it.
const CACHE_CONTROL: &str = "private, max-age=86400, immutable";

component!(
    /// A picture as it is.
    PictureFile,
    "PictureFile",
    [],
    file()
);

params!(
    /// Which picture, and what is known of it.
    PictureParams,
    [
        path_param("index", "Which of the task's pictures, from 0.", count()),
        query(
            "token",
            "The token of the picture's URL, instead of credentials.",
            text()
        ),
        header_param("If-None-Match", "The `ETag` of a picture that is at hand.", text()),
    ]
);

/// `GET /v1/tasks/{id}/images/{index}`: for whoever may see the task, or holds its access token.
#[utoipa::path(
    get,
    path = "/v1/tasks/{id}/images/{index}",
    operation_id = "getPicture",
    summary = "Fetch a picture",
    params(TaskIdParam, PictureParams),
    security(("pictureToken" = [])),
    responses(
        (
            status = 200,
            description = "The file. It never changes.",
            content((PictureFile = "image/png"), (PictureFile = "image/jpeg"), (PictureFile = "image/webp")),
            headers(
                ("ETag" = String, description = "The file's SHA-256."),
                ("Cache-Control" = String),
                ("Content-Disposition" = String)
            )
        ),
        (status = 304, description = "It is the one of `If-None-Match`."),
        (status = 400, description = "invalid_argument"),
        (status = 404, description = "task_not_found not_found"),
        (status = 409, description = "not_ready")
    )
)]
pub(crate) async fn get(
    State(edge): State<Arc<Edge>>,
    path: Result<Path<(String, String)>, PathRejection>,
    (method, uri): (Method, Uri),
    headers: HeaderMap,
) -> Response {
    let read = async {
        let (task, index) = path.map(|Path(parts)| parts).unwrap_or_default();
        let task = task_id(&task)?;
        let index: u32 = index.parse().map_err(|_| {
            Failure::new(
                ErrorCode::NotFound,
                "a picture's index is a whole number from 0",
            )
        })?;
        // An empty token is none: to the orchestrator it would mean that a tenant has been authenticated.
        let mut query = Parameters::of(&uri)?;
        let token = query.take("token").filter(|token| !token.is_empty());
        query.nothing_else(&["token"])?;
        Ok((task, index, token))
    };
    let (task, index, token) = match read.await {
        Ok(read) => read,
        Err(failure) => return Refused(failure).into_response(),
    };
    if let Some(token) = token {
        // Whose task it is is not known here. One picture that all the world looks at leaves room for others.
        let _share = match edge.room(Class::Read).share(&task.to_string()) {
            Ok(share) => share,
            Err(failure) => return Refused(failure).into_response(),
        };
        let picture = edge
            .platform
            .picture(Reader::Token(&token), task, index)
            .await;
        return answer(&headers, &task.to_string(), picture);
    }
    // A signed body is not looked at: no body has a say in which picture it is.
    let known = match auth::proven_by(&method, &uri, &headers) {
        Ok(proven) => auth::identify(&edge, proven.proof).await,
        Err(failure) => Err(failure),
    };
    match known {
        Ok((caller, limit)) => {
            let _share = match edge.room(Class::Read).share(&caller.tenant) {
                Ok(share) => share,
                Err(failure) => return auth::refuse(failure),
            };
            let reader = Reader::Tenant(&caller.tenant);
            let picture = edge.platform.picture(reader, task, index).await;
            let mut response = answer(&headers, &task.to_string(), picture);
            auth::write_limit(response.headers_mut(), limit);
            response
        }
        Err(failure) => auth::refuse(failure),
    }
}

fn answer(headers: &HeaderMap, task: &str, picture: Result<Picture, Failure>) -> Response {
    let Picture { info, data } = match picture {
        Ok(picture) => picture,
        Err(failure) => return Refused(failure).into_response(),
    };
    let tag = format!("\"{}\"", info.sha256);
    let described = [
        (header::ETAG, tag.clone()),
        (header::CACHE_CONTROL, CACHE_CONTROL.to_owned()),
    ];
    let known = headers
        .get(header::IF_NONE_MATCH)
        .and_then(|v| v.to_str().ok());
    if known.is_some_and(|known| matches_tag(known, &tag)) {
        return (StatusCode::NOT_MODIFIED, described).into_response();
    }
    let content = [
        (header::CONTENT_TYPE, media_type(info.format()).to_owned()),
        (header::CONTENT_DISPOSITION, disposition(task, &info)),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
    ];
    (described, content, Body::from(data)).into_response()
}

fn disposition(task: &str, info: &v1::ImageInfo) -> String {
    let extension = word(FORMATS, info.format()).unwrap_or("bin");
    format!("inline; filename=\"{task}-{}.{extension}\"", info.index)
}

// RFC 9110, 13.1.2: a list of tags or `*`, compared weakly.
fn matches_tag(known: &str, tag: &str) -> bool {
    known
        .split(',')
        .map(str::trim)
        .any(|k| k == "*" || k.strip_prefix("W/").unwrap_or(k) == tag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_known_tag_is_found_in_a_list_and_weakly() {
        for known in ["\"a\"", "*", "\"b\", W/\"a\""] {
            assert!(matches_tag(known, "\"a\""), "{known}");
        }
        for other in ["", "\"b\"", "a"] {
            assert!(!matches_tag(other, "\"a\""), "{other}");
        }
    }
}
