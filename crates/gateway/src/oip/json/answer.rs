//! Answers as this wire has them.

use axum::body::Body;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use contract::Failure;
use serde::Serialize;
use utoipa::ToSchema;

use super::{Binary, JSON_BYTES};
use crate::oip::infer::{Answer, Content};
use crate::problem::text;

/// Numbers of one tensor that are written as JSON; each takes up to four bytes there.
const MAX_JSON_PIXELS: usize = 4 * 1024 * 1024;

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferAnswer)]
pub(in crate::oip) struct AnswerJson {
    model_name: String,
    model_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    id: String,
    outputs: Vec<AnsweredJson>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferOutput)]
struct AnsweredJson {
    name: &'static str,
    datatype: &'static str,
    shape: Vec<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    parameters: Option<AnsweredParameters>,
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Vec<serde_json::Value>>)]
    data: Option<DataJson>,
}

#[derive(Debug, Serialize, ToSchema)]
#[schema(as = InferOutputParameters)]
#[serde(rename_all = "snake_case")]
enum AnsweredParameters {
    BinaryDataSize(usize),
    ContentType(&'static str),
}

#[derive(Debug, Serialize)]
#[serde(untagged)]
enum DataJson {
    Texts(Vec<String>),
    Pixels(Vec<u8>),
    Whole(Vec<u64>),
}

/// Writes an answer, raw where the caller wants it so. A file is not a text, so in JSON it is base64 and says so.
pub(in crate::oip) fn encode(answer: Answer, binary: &Binary) -> Result<Response, Failure> {
    let mut outputs = Vec::with_capacity(answer.outputs.len());
    let mut raw = Vec::new();
    for output in answer.outputs {
        let datatype = output.content.datatype();
        let (parameters, data) = if binary.has(output.name) {
            let bytes = output.content.into_raw();
            let size = AnsweredParameters::BinaryDataSize(bytes.len());
            raw.push(Bytes::from(bytes));
            (Some(size), None)
        } else {
            let is_file = matches!(output.content, Content::Files(_));
            let coding = is_file.then_some(AnsweredParameters::ContentType("base64"));
            (coding, Some(data(output.content)?))
        };
        outputs.push(AnsweredJson {
            name: output.name,
            datatype,
            shape: output.shape,
            parameters,
            data,
        });
    }
    let json = text(&AnswerJson {
        model_name: answer.model,
        model_version: answer.version,
        id: answer.id,
        outputs,
    });
    if raw.is_empty() {
        let kind = [(header::CONTENT_TYPE, "application/json")];
        return Ok((kind, json).into_response());
    }
    let json_bytes = HeaderValue::from(json.len());
    let mut body = json.into_bytes();
    raw.iter().for_each(|bytes| body.extend_from_slice(bytes));
    let kind = [(header::CONTENT_TYPE, "application/octet-stream")];
    let mut response = (kind, Body::from(body)).into_response();
    response.headers_mut().insert(JSON_BYTES, json_bytes);
    Ok(response)
}

fn data(content: Content) -> Result<DataJson, Failure> {
    let utf8 = |text: Bytes| String::from_utf8_lossy(&text).into_owned();
    match content {
        Content::Files(files) => {
            let files = files.iter().map(|file| STANDARD.encode(file));
            Ok(DataJson::Texts(files.collect()))
        }
        Content::Texts(texts) => Ok(DataJson::Texts(texts.into_iter().map(utf8).collect())),
        Content::Whole(numbers) => Ok(DataJson::Whole(numbers)),
        Content::Pixels(pixels) if pixels.len() > MAX_JSON_PIXELS => {
            let count = pixels.len();
            let message = format!(
                "IMAGE has {count} numbers and {MAX_JSON_PIXELS} are written as JSON at most; ask for binary_data"
            );
            Err(Failure::invalid("outputs", message))
        }
        Content::Pixels(pixels) => Ok(DataJson::Pixels(pixels)),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::oip::infer::Output;

    #[test]
    fn an_answer_is_json_or_json_with_raw_data_behind_it() {
        let answer = || Answer {
            model: "m".to_owned(),
            version: "1".to_owned(),
            id: String::new(),
            outputs: vec![Output {
                name: "IMAGE",
                shape: vec![1],
                content: Content::Files(vec![Bytes::from_static(b"\xff")]),
            }],
        };
        let plain = encode(answer(), &Binary::default()).unwrap();
        assert_eq!(plain.headers()["content-type"], "application/json");
        let binary = Binary {
            all: true,
            outputs: Vec::new(),
        };
        let raw = encode(answer(), &binary).unwrap();
        let expected = json!({"model_name": "m", "model_version": "1", "outputs": [{"name": "IMAGE",
            "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": 5}}]});
        let length = raw.headers()[JSON_BYTES]
            .to_str()
            .unwrap()
            .parse::<usize>()
            .unwrap();
        assert_eq!(length, expected.to_string().len());
    }
}
