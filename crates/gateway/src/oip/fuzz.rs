//! This dialect's readers, for [`crate::fuzz`].

use bytes::Bytes;
use contract::Failure;
use contract::inference::model_infer_request::{InferInputTensor, InferRequestedOutputTensor};
use contract::inference::{InferTensorContents, ModelInferRequest};
use contract::limits::MAX_IMAGES;
use prost::Message as _;

use super::request::{Asked, plan};
use super::{json, protobuf};
use crate::fuzz::{Target, binary, checked};
use crate::records;

pub(crate) fn targets() -> [Target; 2] {
    [
        binary("OIP JSON", requests(), request),
        binary("OIP protobuf", messages(), message),
    ]
}

/// How many bytes are JSON in the first line, or none, and the body.
fn requests() -> Vec<Vec<u8>> {
    let plain = br#"
{"id":"7","parameters":{"image_format":"raw"},"inputs":[
{"name":"PROMPT","shape":[2,1],"datatype":"BYTES","data":[["a"],["b"]]},
{"name":"SEED","shape":[1],"datatype":"UINT64","data":[18446744073709551615]},
{"name":"GUIDANCE_SCALE","shape":[2],"datatype":"FP32","data":[1.5,2]}],
"outputs":[{"name":"IMAGE","parameters":{"binary_data":true}},{"name":"SEED"}]}"#;
    let json = r#"{"inputs":[{"name":"PROMPT","shape":[1],"datatype":"BYTES","parameters":{"binary_data_size":6}},
{"name":"STEPS","shape":[1],"datatype":"INT32","parameters":{"binary_data_size":4}}]}"#;
    let mut raw = format!("{}\n{json}", json.len()).into_bytes();
    raw.extend([2, 0, 0, 0, b'h', b'i', 9, 0, 0, 0]);
    vec![plain.to_vec(), raw]
}

fn request(input: &[u8]) -> Result<(), Failure> {
    let mut lines = input.splitn(2, |byte| *byte == b'\n');
    let length = String::from_utf8_lossy(lines.next().unwrap_or_default());
    let body = Bytes::copy_from_slice(lines.next().unwrap_or_default());
    let length = (!length.is_empty()).then_some(&*length);
    planned(&json::decode(&body, length)?.0)
}

fn messages() -> Vec<Vec<u8>> {
    let tensor = |name: &str, datatype: &str, contents| InferInputTensor {
        name: name.to_owned(),
        datatype: datatype.to_owned(),
        shape: vec![1],
        contents,
        ..Default::default()
    };
    let texts = InferTensorContents {
        bytes_contents: vec![b"a cat".to_vec()],
        ..Default::default()
    };
    let numbers = InferTensorContents {
        int_contents: vec![4],
        ..Default::default()
    };
    let typed = ModelInferRequest {
        model_name: "m".to_owned(),
        inputs: vec![
            tensor("PROMPT", "BYTES", Some(texts)),
            tensor("STEPS", "INT32", Some(numbers)),
        ],
        outputs: vec![InferRequestedOutputTensor {
            name: "IMAGE".to_owned(),
            ..Default::default()
        }],
        ..Default::default()
    };
    let raw = ModelInferRequest {
        inputs: vec![
            tensor("PROMPT", "BYTES", None),
            tensor("SEED", "INT64", None),
        ],
        raw_input_contents: vec![
            [&5_u32.to_le_bytes()[..], b"a cat"].concat(),
            7_i64.to_le_bytes().to_vec(),
        ],
        ..typed.clone()
    };
    vec![typed.encode_to_vec(), raw.encode_to_vec()]
}

fn message(input: &[u8]) -> Result<(), Failure> {
    records::check(records::MODEL_INFER, input, 1000)?;
    let unread = |_| Failure::invalid("message", "cannot be read");
    let request = ModelInferRequest::decode(input).map_err(unread)?;
    planned(&protobuf::decode(request)?)
}

fn planned(asked: &Asked) -> Result<(), Failure> {
    let plan = plan(asked, "key")?;
    assert!((1..=MAX_IMAGES as usize).contains(&plan.tasks.len()));
    assert!(!plan.outputs.is_empty());
    for task in &plan.tasks {
        checked(task)?;
        assert_eq!(task.images, 1);
    }
    Ok(())
}
