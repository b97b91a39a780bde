//! Finished pictures, as bytes.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use contract::words::{FORMATS, word};
use contract::{ErrorCode, Failure, TaskId, v1};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use storage::{Opened, StorageError};

use crate::auth;
use crate::crowd::Network;
use crate::edge::Edge;
use crate::openapi::params::{
    TaskIdParam, header as header_param, params, path as path_param, query,
};
use crate::openapi::schema::{component, count, file, text};
use crate::platform::Reader;
use crate::problem::Refused;
use crate::query::Parameters;
use crate::room::{Class, Place, Share};
use crate::task_json::media_type;
use crate::tasks::task_id;
use crate::unread::Addressee;

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
    from: Option<Extension<Network>>,
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
    let from = from.map(|Extension(network)| network);
    let (task, index, token) = match read.await {
        Ok(read) => read,
        Err(failure) => return Refused(failure).into_response(),
    };
    if let Some(token) = token {
        let _search = match search(&edge, task) {
            Ok(search) => search,
            Err(failure) => return Refused(failure).into_response(),
        };
        let reader = Reader::Token(&token);
        let share = match admitted(&edge, &reader, task, from) {
            Ok(share) => share,
            Err(failure) => return Refused(failure).into_response(),
        };
        let asked = Asked {
            method: &method,
            headers: &headers,
            task,
            index,
        };
        return asked.answer(&edge, reader, share).await;
    }
    // A signed body is not looked at: no body has a say in which picture it is.
    let known = match auth::proven_by(&method, &uri, &headers) {
        Ok(proven) => auth::identify(&edge, proven.proof, Class::Read, from).await,
        Err(failure) => Err(failure),
    };
    match known {
        Ok((caller, limit)) => {
            let reader = Reader::Tenant(&caller);
            let share = match admitted(&edge, &reader, task, from) {
                Ok(share) => share,
                Err(failure) => return auth::refuse(failure),
            };
            let asked = Asked {
                method: &method,
                headers: &headers,
                task,
                index,
            };
            let mut response = asked.answer(&edge, reader, share).await;
            auth::write_limit(response.headers_mut(), limit);
            response
        }
        Err(failure) => auth::refuse(failure),
    }
}

/// A place among those who look for pictures by token, and one of its task's: a link that all the world looks at leaves some
/// for others.
fn search(edge: &Edge, task: TaskId) -> Result<(Place, Share), Failure> {
    let place = edge.searches_by_token.enter()?;
    let share = edge.searches_by_token.share_of_task(&task.to_string())?;
    Ok((place, share))
}

/// One more of those that a tenant, or whoever has a task's tokens, may read at once, unless it leaves too much unread, or whoever reads
/// by tokens from the same address does.
fn admitted(
    edge: &Edge,
    reader: &Reader<'_>,
    task: TaskId,
    from: Option<Network>,
) -> Result<Share, Failure> {
    let room = edge.room(Class::Read);
    match *reader {
        Reader::Tenant(caller) => {
            edge.unread.admit_tenant(&caller.tenant)?;
            room.share(&caller.tenant)
        }
        // Whose task it is is not known here. One picture that all the world looks at leaves room for others.
        Reader::Token(_) => {
            let task = task.to_string();
            edge.unread.admit_by_token(&task, from)?;
            room.share_by_token(&task)
        }
    }
}

/// Which picture is asked for, and how.
struct Asked<'a> {
    method: &'a Method,
    headers: &'a HeaderMap,
    task: TaskId,
    index: u32,
}

impl Asked<'_> {
    async fn answer(&self, edge: &Edge, reader: Reader<'_>, share: Share) -> Response {
        let to = match reader {
            Reader::Tenant(_) => Addressee::Tenant(share.holder()),
            Reader::Token(_) => Addressee::Token(share.holder()),
        };
        let answer = self.try_answer(edge, reader, share).await;
        let mut response = answer.unwrap_or_else(|failure| Refused(failure).into_response());
        response.extensions_mut().insert(to);
        response
    }

    /// The picture, of which no more is in memory than its client takes at a time. What is known without the file (that the
    /// client has it already, or wants its head only) is answered without reading it. The reader's share is held until the
    /// last byte has left.
    async fn try_answer(
        &self,
        edge: &Edge,
        reader: Reader<'_>,
        share: Share,
    ) -> Result<Response, Failure> {
        let (task, platform) = (self.task, &edge.platform);
        let found = platform.find_picture(reader, task, self.index).await?;
        let info = &found.info;
        let tag = format!("\"{}\"", info.sha256);
        let known = self.headers.get(header::IF_NONE_MATCH);
        let known = known.and_then(|value| value.to_str().ok());
        let is_known = known.is_some_and(|known| matches_tag(known, &tag));
        let described = [
            (header::ETAG, tag),
            (header::CACHE_CONTROL, CACHE_CONTROL.to_owned()),
        ];
        if is_known {
            return Ok((StatusCode::NOT_MODIFIED, described).into_response());
        }
        let content = [
            (header::CONTENT_TYPE, media_type(info.format()).to_owned()),
            (
                header::CONTENT_DISPOSITION,
                disposition(&task.to_string(), info),
            ),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        ];
        let (size, body) = if self.method == Method::HEAD {
            (platform.picture_size(&found).await?, Body::empty())
        } else {
            let Opened { size, pieces } = platform.open_picture(&found).await?;
            (size, body(pieces, share))
        };
        let length = [(header::CONTENT_LENGTH, size.to_string())];
        Ok((described, content, length, body).into_response())
    }
}

/// A body that is read from the store as fast as its client takes it. An answer that breaks off is shorter than its head says.
fn body(pieces: BoxStream<'static, Result<Bytes, StorageError>>, share: Share) -> Body {
    let told = move |piece: &Result<Bytes, StorageError>| {
        let _held = &share;
        if let Err(error) = piece {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                "a picture broke off in the middle"
            );
        }
    };
    Body::from_stream(pieces.inspect(told))
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
