//! The gRPC wire: protobuf, with values typed or raw.

use bytes::Bytes;
use contract::inference::infer_parameter::ParameterChoice;
use contract::inference::model_infer_request::InferInputTensor;
use contract::inference::model_infer_response::InferOutputTensor;
use contract::inference::{
    DataType, RepositoryIndexResponse, repository_index_response::ModelIndex,
};
use contract::inference::{
    InferParameter, InferTensorContents, ModelConfig, ModelInferRequest, ModelInferResponse,
    ModelInput, ModelMetadataResponse, ModelOutput, ModelStreamInferResponse,
    model_metadata_response::TensorMetadata,
};
use contract::{Failure, v1};

use super::infer::Answer;
use super::model::{Described, INPUTS, OUTPUTS, PLATFORM, READY, config_type};
use super::request::{Asked, IMAGE_FORMAT};
use super::tensor::{
    CONTENT_TYPE, Datatype, Tensor, Values, check_input, check_output, invalid, read_raw,
};
use crate::json::shorten;

/// The parameter by which clients of Triton know the last response to a request of a stream.
const FINAL_RESPONSE: &str = "triton_final_response";

/// Reads a request.
pub(super) fn decode(request: ModelInferRequest) -> Result<Asked, Failure> {
    let parameter = request.parameters.get(IMAGE_FORMAT);
    let image_format = match parameter.map(|p| &p.parameter_choice) {
        None => None,
        Some(Some(ParameterChoice::StringParam(text))) => Some(text.clone()),
        Some(_) => {
            let message = format!("the parameter {IMAGE_FORMAT} must be a string");
            return Err(Failure::invalid(IMAGE_FORMAT, message));
        }
    };
    // Before they are counted: clients send no raw contents for those in shared memory.
    for input in &request.inputs {
        let has = |name: &str| input.parameters.contains_key(name);
        let content_type = input.parameters.get(CONTENT_TYPE);
        let content_type = content_type.and_then(|p| match &p.parameter_choice {
            Some(ParameterChoice::StringParam(text)) => Some(text.as_str()),
            _ => None,
        });
        check_input(&input.name, has, content_type)?;
    }
    for output in &request.outputs {
        check_output(&output.name, |name| output.parameters.contains_key(name))?;
    }
    let (count, raws) = (request.inputs.len(), request.raw_input_contents);
    if !raws.is_empty() && raws.len() != count {
        let message = format!(
            "raw_input_contents must have one for each of the {count} inputs, or none, not {}",
            raws.len()
        );
        return Err(Failure::invalid("raw_input_contents", message));
    }
    let mut raws = raws.into_iter();
    let mut inputs = Vec::with_capacity(count);
    for input in request.inputs {
        inputs.push(read_input(input, raws.next().map(Bytes::from))?);
    }
    Ok(Asked {
        model: request.model_name,
        version: request.model_version,
        id: request.id,
        inputs,
        outputs: request
            .outputs
            .into_iter()
            .map(|output| output.name)
            .collect(),
        image_format,
    })
}

fn read_input(input: InferInputTensor, raw: Option<Bytes>) -> Result<Tensor, Failure> {
    // Whatever is wrong with it, its name is not repeated whole.
    let shown = shorten(&input.name);
    let datatype = Datatype::read(&shown, &input.datatype)?;
    let values = match (raw, input.contents) {
        (Some(raw), None) => read_raw(&shown, datatype, &raw)?,
        (None, Some(contents)) => typed(datatype, contents),
        _ => {
            let message = format!("{shown} must have either contents or raw contents");
            return Err(invalid(&shown, message));
        }
    };
    let shape = input.shape;
    Ok(Tensor {
        name: input.name,
        shape,
        values,
    })
}

/// The values in the field that the datatype has; a field of another kind is as good as none.
fn typed(datatype: Datatype, contents: InferTensorContents) -> Values {
    fn wide<T: Into<i128>>(numbers: Vec<T>) -> Values {
        Values::Whole(numbers.into_iter().map(Into::into).collect())
    }
    match datatype {
        Datatype::Bytes => {
            let texts = contents.bytes_contents.into_iter().map(Bytes::from);
            Values::Bytes(texts.collect())
        }
        Datatype::Whole(8, true) => wide(contents.int64_contents),
        Datatype::Whole(8, false) => wide(contents.uint64_contents),
        Datatype::Whole(_, true) => wide(contents.int_contents),
        Datatype::Whole(_, false) => wide(contents.uint_contents),
        Datatype::Fp32 => Values::Real(contents.fp32_contents.into_iter().map(f64::from).collect()),
        Datatype::Fp64 => Values::Real(contents.fp64_contents),
    }
}

/// Writes an answer. Always raw, which every client reads.
pub(super) fn encode(answer: Answer) -> ModelInferResponse {
    let mut response = ModelInferResponse {
        model_name: answer.model,
        model_version: answer.version,
        id: answer.id,
        ..Default::default()
    };
    for output in answer.outputs {
        response.outputs.push(InferOutputTensor {
            name: output.name.to_owned(),
            datatype: output.content.datatype().to_owned(),
            shape: output.shape,
            ..Default::default()
        });
        response.raw_output_contents.push(output.content.into_raw());
    }
    response
}

/// What a stream answers to the request `id`. Each has one response, which is its last.
pub(super) fn streamed(
    answered: Result<ModelInferResponse, Failure>,
    id: String,
) -> ModelStreamInferResponse {
    let (error_message, mut response) = match answered {
        Ok(response) => (String::new(), response),
        // A client of the protocol finds out by the id which of its requests was refused.
        Err(failure) => {
            let refused = ModelInferResponse {
                id,
                ..Default::default()
            };
            (failure.message, refused)
        }
    };
    let is_final = InferParameter {
        parameter_choice: Some(ParameterChoice::BoolParam(true)),
    };
    response
        .parameters
        .insert(FINAL_RESPONSE.to_owned(), is_final);
    ModelStreamInferResponse {
        error_message,
        infer_response: Some(response),
    }
}

/// A model's metadata.
pub(super) fn metadata(model: &v1::ModelSummary) -> ModelMetadataResponse {
    let tensor = |described: &Described| TensorMetadata {
        name: described.name.to_owned(),
        datatype: described.datatype.to_owned(),
        shape: vec![-1],
    };
    ModelMetadataResponse {
        name: model.name.clone(),
        versions: model.versions.clone(),
        platform: PLATFORM.to_owned(),
        inputs: INPUTS.iter().map(tensor).collect(),
        outputs: OUTPUTS.iter().map(tensor).collect(),
    }
}

/// A model's configuration.
pub(super) fn config(model: &v1::ModelSummary) -> ModelConfig {
    let input = |described: &Described| ModelInput {
        name: described.name.to_owned(),
        data_type: data_type(described),
        dims: vec![-1],
        optional: described.optional,
    };
    let output = |described: &Described| ModelOutput {
        name: described.name.to_owned(),
        data_type: data_type(described),
        dims: vec![-1],
    };
    ModelConfig {
        name: model.name.clone(),
        platform: PLATFORM.to_owned(),
        max_batch_size: 0,
        input: INPUTS.iter().map(input).collect(),
        output: OUTPUTS.iter().map(output).collect(),
        backend: PLATFORM.to_owned(),
    }
}

fn data_type(described: &Described) -> i32 {
    let known = DataType::from_str_name(&config_type(described.datatype));
    known.unwrap_or_default().into()
}

/// The models that a caller may use, a row a version.
pub(super) fn index(models: &[v1::ModelSummary]) -> RepositoryIndexResponse {
    let mut rows = Vec::new();
    for model in models {
        rows.extend(model.versions.iter().map(|version| ModelIndex {
            name: model.name.clone(),
            version: version.clone(),
            state: READY.to_owned(),
            reason: String::new(),
        }));
    }
    RepositoryIndexResponse { models: rows }
}

#[cfg(test)]
mod tests {
    use contract::inference::model_infer_request::InferRequestedOutputTensor;
    use proptest::prelude::*;

    use super::*;

    fn input(datatype: &str, contents: Option<InferTensorContents>) -> InferInputTensor {
        InferInputTensor {
            name: "X".to_owned(),
            datatype: datatype.to_owned(),
            shape: vec![1],
            contents,
            ..Default::default()
        }
    }

    #[test]
    fn typed_and_raw_contents_read_the_same() {
        let contents = InferTensorContents {
            int_contents: vec![-3],
            uint64_contents: vec![u64::MAX],
            fp32_contents: vec![0.5],
            bytes_contents: vec![b"hi".to_vec()],
            ..Default::default()
        };
        for (datatype, raw) in [
            ("INT32", (-3i32).to_le_bytes().to_vec()),
            ("UINT64", u64::MAX.to_le_bytes().to_vec()),
            ("FP32", 0.5f32.to_le_bytes().to_vec()),
            ("BYTES", vec![2, 0, 0, 0, b'h', b'i']),
        ] {
            let typed = read_input(input(datatype, Some(contents.clone())), None).unwrap();
            let raw = read_input(input(datatype, None), Some(Bytes::from(raw))).unwrap();
            assert_eq!(typed, raw);
        }
    }

    #[test]
    fn raw_contents_are_for_all_inputs_or_for_none() {
        let request = |raws: usize, contents: Option<InferTensorContents>| ModelInferRequest {
            inputs: vec![input("INT8", contents.clone()), input("INT8", contents)],
            raw_input_contents: vec![vec![1]; raws],
            ..Default::default()
        };
        assert!(decode(request(2, None)).is_ok());
        assert!(decode(request(1, None)).is_err());
        assert!(decode(request(0, None)).is_err());
        let contents = InferTensorContents::default();
        assert!(decode(request(2, Some(contents))).is_err());
    }

    #[test]
    fn an_input_in_shared_memory_is_refused_by_its_name_beside_others_that_are_raw() {
        let mut elsewhere = input("INT8", None);
        elsewhere.name = "SEED".to_owned();
        let region = InferParameter::default();
        let name = "shared_memory_region".to_owned();
        elsewhere.parameters.insert(name, region);
        let failure = decode(ModelInferRequest {
            inputs: vec![input("INT8", None), elsewhere],
            raw_input_contents: vec![vec![1]],
            ..Default::default()
        });
        let failure = failure.unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("SEED"), "{failure}");
    }

    #[test]
    fn an_input_in_base64_is_refused_rather_than_drawn_as_it_is_written() {
        let with = |content_type: &str| {
            let contents = InferTensorContents {
                bytes_contents: vec![b"YSBjYXQ=".to_vec()],
                ..Default::default()
            };
            let mut prompt = input("BYTES", Some(contents));
            let text = ParameterChoice::StringParam(content_type.to_owned());
            let parameter = InferParameter {
                parameter_choice: Some(text),
            };
            let name = "content_type".to_owned();
            prompt.parameters.insert(name, parameter);
            decode(ModelInferRequest {
                inputs: vec![prompt],
                ..Default::default()
            })
        };
        let failure = with("base64").unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("X"), "{failure}");
        assert!(with("str").is_ok());
    }

    #[test]
    fn an_output_in_shared_memory_or_as_classes_is_refused_by_its_name() {
        for name in ["shared_memory_region", "classification"] {
            let mut output = InferRequestedOutputTensor {
                name: "IMAGE".to_owned(),
                ..Default::default()
            };
            let parameter = InferParameter::default();
            output.parameters.insert(name.to_owned(), parameter);
            let failure = decode(ModelInferRequest {
                outputs: vec![output],
                ..Default::default()
            });
            let failure = failure.unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("IMAGE"), "{failure}");
        }
    }

    #[test]
    fn each_response_of_a_stream_is_its_requests_last_and_a_refusal_has_its_id() {
        let drawn = ModelInferResponse {
            id: "drawn".to_owned(),
            ..Default::default()
        };
        let refusal = Failure::invalid("STEPS", "no");
        for (answered, id, message) in [(Ok(drawn), "drawn", ""), (Err(refusal), "refused", "no")] {
            let streamed = streamed(answered, id.to_owned());
            assert_eq!(streamed.error_message, message);
            let response = streamed.infer_response.unwrap();
            assert_eq!(response.id, id);
            let last = &response.parameters["triton_final_response"];
            let yes = Some(ParameterChoice::BoolParam(true));
            assert_eq!(last.parameter_choice, yes);
        }
    }

    #[test]
    fn every_described_tensor_has_a_type_in_a_configuration() {
        for described in INPUTS.iter().chain(OUTPUTS) {
            assert_ne!(
                data_type(described),
                i32::from(DataType::TypeInvalid),
                "{}",
                described.name
            );
        }
    }

    proptest! {
        #[test]
        fn no_message_makes_the_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(request) = <ModelInferRequest as prost::Message>::decode(&bytes[..]) {
                let _ = decode(request);
            }
        }
    }
}
