//! What this protocol takes over HTTP, described by the tables that its decoder reads by.

use utoipa::openapi::Object;
use utoipa::openapi::schema::{AdditionalProperties, Array, SchemaType, Type};

use super::model::{INPUTS, OUTPUTS};
use super::tensor::DATATYPES;
use crate::openapi::params::{header, params};
use crate::openapi::schema::{component, file, or_null, part, record, text, whole, word};

component!(
    /// `POST …/infer`
    Inference,
    "InferRequest",
    [InputTensor, OutputTensor],
    record([
        ("id?", "Repeated in the answer.", or_null(text()).into()),
        (
            "parameters?",
            "`image_format`: `png`, `jpeg`, `webp` or `raw`; `binary_data_output`: all outputs raw.",
            parameters().into()
        ),
        (
            "inputs",
            "`PROMPT` has to be among them; each once. One element for each picture, or one for all.",
            Array::new(part::<InputTensor>()).into()
        ),
        ("outputs?", "All where it is left out.", outputs().into()),
    ])
);

component!(
    /// An input.
    InputTensor,
    "InputTensor",
    [],
    record([
        ("name", "", word(INPUTS.iter().map(|input| input.name)).into()),
        ("shape", "`[n]` or `[n, 1]`, n from 1 to 10.", shape().into()),
        ("datatype", "", word(DATATYPES.iter().map(|(word, _)| *word)).into()),
        (
            "parameters?",
            "`binary_data_size`: its data is behind the JSON, as so many bytes.",
            parameters().into()
        ),
        ("data?", "Flat, or nested as the shape is.", anything().into()),
    ])
);

component!(
    /// An output that is asked for.
    OutputTensor,
    "OutputTensor",
    [],
    record([
        ("name", "", word(OUTPUTS.iter().map(|output| output.name)).into()),
        ("parameters?", "`binary_data`: raw, behind the JSON.", parameters().into()),
    ])
);

component!(
    /// A body or an answer with raw data behind its JSON.
    Binary,
    "InferBinary",
    [],
    file()
);

params!(
    /// How a body is divided.
    InferenceParams,
    [header(
        "Inference-Header-Content-Length",
        "How many bytes of the body are JSON, where raw data is behind it.",
        whole(0, u64::from(u32::MAX))
    )]
);

fn parameters() -> Object {
    let mut object = Object::with_type(Type::Object);
    object.additional_properties = Some(Box::new(AdditionalProperties::FreeForm(true)));
    or_null(object)
}

fn outputs() -> Array {
    let mut outputs = Array::new(part::<OutputTensor>());
    outputs.schema_type = SchemaType::Array(vec![Type::Array, Type::Null]);
    outputs
}

fn shape() -> Array {
    let mut shape = Array::new(whole(1, 10));
    (shape.min_items, shape.max_items) = (Some(1), Some(2));
    shape
}

fn anything() -> Object {
    let mut anything = Object::new();
    anything.schema_type = SchemaType::AnyValue;
    anything
}
