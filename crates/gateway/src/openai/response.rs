//! OpenAI's answers and events.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::v1;
use contract::words::{FORMATS, QUALITIES, word};
use serde::Serialize;
use utoipa::ToSchema;

use super::request::Wish;
use crate::task_json::unix_seconds;

/// What was drawn, in the words that every answer and event repeats.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[schema(as = ImageTerms)]
pub(super) struct Terms {
    pub(super) size: String,
    pub(super) quality: &'static str,
    pub(super) background: &'static str,
    pub(super) output_format: &'static str,
}

impl Terms {
    /// The terms of `task`, whose request has every default filled in.
    pub(super) fn new(wish: &Wish, task: &v1::Task) -> Self {
        let request = task.request.as_ref().unwrap_or(&wish.task);
        let drawn = word(QUALITIES, request.quality()).unwrap_or("standard");
        Self {
            size: format!("{}x{}", request.width, request.height),
            quality: wish.quality.unwrap_or(drawn),
            background: "opaque",
            output_format: word(FORMATS, request.output_format()).unwrap_or("png"),
        }
    }
}

/// Tokens, all none: nothing here is charged by them.
#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ImageUsage)]
pub(super) struct Usage {
    input_tokens: u32,
    output_tokens: u32,
    total_tokens: u32,
    input_tokens_details: TokenDetails,
}

#[derive(Debug, Default, Serialize, ToSchema)]
#[schema(as = ImageTokenDetails)]
struct TokenDetails {
    text_tokens: u32,
    image_tokens: u32,
}

/// One picture of an answer.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ImageItem)]
pub(super) enum Item {
    #[serde(rename = "b64_json")]
    Inline(String),
    #[serde(rename = "url")]
    Url(String),
}

impl Item {
    pub(super) fn inline(data: &[u8]) -> Self {
        Self::Inline(STANDARD.encode(data))
    }
}

/// The answer to a request that does not stream.
#[derive(Debug, Serialize, ToSchema)]
#[schema(as = ImageAnswer)]
pub(super) struct Answer {
    /// Unix seconds.
    created: i64,
    data: Vec<Item>,
    #[serde(flatten)]
    terms: Terms,
    usage: Usage,
}

impl Answer {
    pub(super) fn new(task: &v1::Task, data: Vec<Item>, terms: Terms) -> Self {
        Self {
            created: unix_seconds(task.ended_at.as_ref()),
            data,
            terms,
            usage: Usage::default(),
        }
    }
}

/// What is being answered; its events have names of their own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A picture from words.
    Generation,
    /// A picture from a picture.
    Edit,
}

impl Kind {
    /// The name and type of an event that carries a picture on its way.
    pub(super) fn partial(self) -> &'static str {
        match self {
            Self::Generation => "image_generation.partial_image",
            Self::Edit => "image_edit.partial_image",
        }
    }

    /// The name and type of the event that carries the finished picture.
    pub(super) fn completed(self) -> &'static str {
        match self {
            Self::Generation => "image_generation.completed",
            Self::Edit => "image_edit.completed",
        }
    }
}

/// An event of a stream.
#[derive(Debug, Serialize)]
pub(super) struct ImageEvent<'a> {
    r#type: &'static str,
    b64_json: String,
    created_at: i64,
    #[serde(flatten)]
    terms: &'a Terms,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_image_index: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    usage: Option<Usage>,
}

impl<'a> ImageEvent<'a> {
    pub(super) fn partial(kind: Kind, index: u32, data: &[u8], terms: &'a Terms) -> Self {
        Self {
            r#type: kind.partial(),
            b64_json: STANDARD.encode(data),
            created_at: contract::now().seconds,
            terms,
            partial_image_index: Some(index),
            usage: None,
        }
    }

    pub(super) fn completed(kind: Kind, task: &v1::Task, data: &[u8], terms: &'a Terms) -> Self {
        Self {
            r#type: kind.completed(),
            b64_json: STANDARD.encode(data),
            created_at: unix_seconds(task.ended_at.as_ref()),
            terms,
            partial_image_index: None,
            usage: Some(Usage::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::openai::request::Delivery;

    fn drawn() -> (Wish, v1::Task) {
        let wish = Wish {
            task: v1::SubmitTask::default(),
            kind: Kind::Generation,
            delivery: Delivery::Inline,
            stream: false,
            quality: None,
            picture: "image",
        };
        let request = v1::SubmitTask {
            width: 128,
            height: 96,
            quality: v1::Quality::Standard.into(),
            output_format: v1::OutputFormat::Webp.into(),
            ..Default::default()
        };
        let task = v1::Task {
            request: Some(request),
            ended_at: Some(prost_types::Timestamp {
                seconds: 7,
                nanos: 0,
            }),
            ..Default::default()
        };
        (wish, task)
    }

    fn no_tokens() -> serde_json::Value {
        json!({"input_tokens": 0, "output_tokens": 0, "total_tokens": 0,
            "input_tokens_details": {"text_tokens": 0, "image_tokens": 0}})
    }

    #[test]
    fn an_answer_has_openais_shape() {
        let (wish, task) = drawn();
        let data = vec![Item::inline(b"\xff"), Item::Url("http://h/x".to_owned())];
        let answer = Answer::new(&task, data, Terms::new(&wish, &task));
        let expected = json!({"created": 7, "data": [{"b64_json": "/w=="}, {"url": "http://h/x"}],
            "size": "128x96", "quality": "standard", "background": "opaque", "output_format": "webp",
            "usage": no_tokens()});
        assert_eq!(serde_json::to_value(answer).unwrap(), expected);
    }

    #[test]
    fn events_have_openais_shape() {
        let (wish, task) = drawn();
        let terms = Terms::new(&wish, &task);
        let kind = Kind::Generation;
        let partial = ImageEvent::partial(kind, 1, b"\xff", &terms);
        let mut partial = serde_json::to_value(partial).unwrap();
        assert!(partial["created_at"].as_i64().unwrap() > 0);
        partial["created_at"] = 0.into();
        let expected = json!({"type": "image_generation.partial_image", "b64_json": "/w==", "created_at": 0,
            "size": "128x96", "quality": "standard", "background": "opaque", "output_format": "webp",
            "partial_image_index": 1});
        assert_eq!(partial, expected);
        let completed = ImageEvent::completed(kind, &task, b"\xff", &terms);
        let completed = serde_json::to_value(completed).unwrap();
        let expected = json!({"type": "image_generation.completed", "b64_json": "/w==", "created_at": 7,
            "size": "128x96", "quality": "standard", "background": "opaque", "output_format": "webp",
            "usage": no_tokens()});
        assert_eq!(completed, expected);
        let edited = ImageEvent::completed(Kind::Edit, &task, b"\xff", &terms);
        assert_eq!(edited.r#type, "image_edit.completed");
        let edited = ImageEvent::partial(Kind::Edit, 0, b"\xff", &terms);
        assert_eq!(edited.r#type, "image_edit.partial_image");
    }
}
