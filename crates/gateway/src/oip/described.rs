//! What this protocol takes over HTTP, described by the tables that its decoder reads by.

use serde_json::{Value, json};
use utoipa::openapi::Object;
use utoipa::openapi::schema::{AdditionalProperties, Array, SchemaType, Type};

use super::json::{BINARY_DATA, BINARY_DATA_OUTPUT};
use super::model::{Described, IMAGE, INPUTS, Kind, OUTPUTS};
use super::tensor::{BASE64, CLASSIFICATION, CONTENT_TYPE, DATATYPES, Datatype, SHARED_MEMORY};
use crate::openapi::params::{header, params};
use crate::openapi::schema::{
    component, file, given, or_null, part, record, rule, text, where_there, whole, with, word,
};

component!(
    /// `POST …/infer`
    Inference,
    "InferRequest",
    [InputTensor, OutputTensor],
    inference()
);

component!(
    /// An input.
    InputTensor,
    "InputTensor",
    [],
    input_tensor()
);

component!(
    /// An output that is asked for.
    OutputTensor,
    "OutputTensor",
    [],
    output_tensor()
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

/// Each tensor is named once, what is needed among them. That their shapes fit each other no schema says.
fn inference() -> Object {
    let mut request = record([
        ("id?", "Repeated in the answer.", or_null(text()).into()),
        (
            "parameters?",
            "`image_format`: `png`, `jpeg`, `webp` or `raw`; `binary_data_output`: all outputs raw.",
            parameters().into(),
        ),
        (
            "inputs",
            "`PROMPT` has to be among them; each once. One element for each picture, or one for all.",
            Array::new(part::<InputTensor>()).into(),
        ),
        ("outputs?", "All where it is left out.", outputs().into()),
    ]);
    let named = |tensor: &Described, least: u32| {
        let name = with("name", json!({"const": tensor.name}));
        json!({"contains": name, "minContains": least, "maxContains": 1})
    };
    let are_there = json!({"required": ["inputs"]});
    for input in INPUTS {
        let once = where_there("inputs", named(input, u32::from(!input.optional)));
        rule(&mut request, json!({"if": are_there, "then": once}));
    }
    let some = with("outputs", json!({"not": {"enum": [null, []]}}));
    for output in OUTPUTS {
        let once = where_there("outputs", named(output, u32::from(output.name == IMAGE)));
        rule(&mut request, json!({"if": some, "then": once}));
    }
    rule(&mut request, truth(BINARY_DATA_OUTPUT));
    request
}

/// Its datatype goes with its name, and its data comes in one of two ways.
fn input_tensor() -> Object {
    let mut tensor = record([
        (
            "name",
            "",
            word(INPUTS.iter().map(|input| input.name)).into(),
        ),
        (
            "shape",
            "`[n]` or `[n, 1]`, n from 1 to 10.",
            shape().into(),
        ),
        (
            "datatype",
            "",
            word(DATATYPES.iter().map(|(word, _)| *word)).into(),
        ),
        (
            "parameters?",
            "`binary_data_size`: its data is behind the JSON, as so many bytes.",
            parameters().into(),
        ),
        (
            "data?",
            "Flat, or nested as the shape is.",
            anything().into(),
        ),
    ]);
    for kind in [Kind::Text, Kind::Whole, Kind::Real] {
        let inputs = INPUTS.iter().filter(|input| input.kind == kind);
        let names: Vec<_> = inputs.map(|input| input.name).collect();
        let datatypes = DATATYPES
            .iter()
            .filter(|(_, datatype)| takes(kind, *datatype));
        let words: Vec<_> = datatypes.map(|(word, _)| *word).collect();
        let one_of = |words: Vec<&str>| json!({"enum": words});
        let (named, of) = (
            with("name", one_of(names)),
            where_there("datatype", one_of(words)),
        );
        rule(&mut tensor, json!({"if": named, "then": of}));
    }
    let here = given("data");
    let behind =
        json!({"if": has("binary_data_size", json!({})), "then": {"not": here}, "else": here});
    rule(&mut tensor, behind);
    rule(&mut tensor, json!({"not": has(SHARED_MEMORY, json!({}))}));
    let base64 = has(CONTENT_TYPE, json!({"const": BASE64}));
    rule(&mut tensor, json!({"not": base64}));
    tensor
}

/// It comes with the answer, and whole.
fn output_tensor() -> Object {
    let mut tensor = record([
        (
            "name",
            "",
            word(OUTPUTS.iter().map(|output| output.name)).into(),
        ),
        (
            "parameters?",
            "`binary_data`: raw, behind the JSON.",
            parameters().into(),
        ),
    ]);
    for parameter in [SHARED_MEMORY, CLASSIFICATION] {
        rule(&mut tensor, json!({"not": has(parameter, json!({}))}));
    }
    rule(&mut tensor, truth(BINARY_DATA));
    tensor
}

/// A tensor that has a parameter of which `said` holds.
fn has(parameter: &str, said: Value) -> Value {
    with("parameters", with(parameter, said))
}

/// A parameter that is true or false where it is there.
fn truth(parameter: &str) -> Value {
    let truth = where_there(parameter, json!({"enum": [true, false, null]}));
    where_there("parameters", truth)
}

/// Whether an input of a kind may have this datatype.
fn takes(kind: Kind, datatype: Datatype) -> bool {
    match kind {
        Kind::Text => matches!(datatype, Datatype::Bytes),
        Kind::Whole => matches!(datatype, Datatype::Whole(..)),
        Kind::Real => !matches!(datatype, Datatype::Bytes),
    }
}

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

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use contract::Failure;

    use super::super::{json as wire, request};
    use super::*;
    use crate::openapi::rules_held_against_decoder;

    /// One prompt as it is sent raw.
    const RAW: &[u8] = b"\x01\0\0\0p";

    /// Reads a request, with its raw data behind it where it says so.
    fn read(body: &[u8]) -> Result<(), Failure> {
        let length = body.len().to_string();
        let sized = String::from_utf8_lossy(body).contains("binary_data_size");
        let raw: &[u8] = if sized { RAW } else { &[] };
        let whole = Bytes::from([body, raw].concat());
        let (asked, _) = wire::decode(&whole, Some(&length))?;
        request::plan(&asked, "").map(drop)
    }

    fn prompt() -> Value {
        json!({"name": "PROMPT", "shape": [1], "datatype": "BYTES", "data": ["p"]})
    }

    #[test]
    fn which_tensors_a_request_has_is_said_by_the_schema_as_by_the_decoder() {
        let seed = json!({"name": "SEED", "shape": [1], "datatype": "UINT64", "data": [7]});
        let prompt = prompt();
        let inputs = [
            json!([]),
            json!([prompt]),
            json!([seed]),
            json!([prompt, seed]),
            json!([prompt, prompt]),
            json!([prompt, seed, seed]),
        ];
        let output = |name: &str| json!({"name": name});
        let (image, drawn_with) = (output("IMAGE"), output("SEED"));
        let outputs = [
            json!(null),
            json!([]),
            json!([image]),
            json!([drawn_with]),
            json!([drawn_with, image]),
            json!([image, image]),
            json!([drawn_with, drawn_with, image]),
        ];
        let mut requests = Vec::new();
        for inputs in &inputs {
            for outputs in &outputs {
                requests.push(json!({"inputs": inputs, "outputs": outputs}));
            }
        }
        for set in [json!(null), json!(true), json!("true"), json!(1)] {
            let parameters = json!({"binary_data_output": set});
            requests.push(json!({"inputs": [prompt], "parameters": parameters}));
        }
        rules_held_against_decoder(&inference().into(), &requests, &read);
    }

    #[test]
    fn what_a_tensor_may_be_is_said_by_the_schema_as_by_the_decoder() {
        let mut tensors = Vec::new();
        for input in INPUTS {
            for (word, datatype) in DATATYPES {
                let value = match datatype {
                    Datatype::Bytes if input.name == "PROMPT" => json!("p"),
                    Datatype::Bytes => json!(""),
                    Datatype::Whole(..) => json!(1),
                    Datatype::Fp32 | Datatype::Fp64 => json!(0.5),
                };
                let (name, data) = (input.name, [value]);
                tensors.push(json!({"name": name, "shape": [1], "datatype": word, "data": data}));
            }
        }
        let with = |fields: Value| {
            let mut tensor = prompt();
            for (name, value) in fields.as_object().into_iter().flatten() {
                tensor[name] = value.clone();
            }
            tensor
        };
        tensors.extend([
            with(json!({"data": null})),
            with(json!({"parameters": null})),
            with(json!({"parameters": {}, "data": null})),
            with(json!({"parameters": {"binary_data_size": RAW.len()}})),
            with(json!({"parameters": {"binary_data_size": RAW.len()}, "data": null})),
            with(json!({"parameters": {"shared_memory_region": "r"}})),
            with(json!({"parameters": {"content_type": "str"}})),
            with(json!({"parameters": {"content_type": "base64"}})),
        ]);
        let read_one = |body: &[u8]| {
            let tensor: Value = serde_json::from_slice(body).unwrap();
            let inputs = match tensor["name"] == "PROMPT" {
                true => json!([tensor]),
                false => json!([prompt(), tensor]),
            };
            read(json!({"inputs": inputs}).to_string().as_bytes())
        };
        rules_held_against_decoder(&input_tensor().into(), &tensors, &read_one);
    }

    #[test]
    fn how_an_output_may_be_asked_for_is_said_by_the_schema_as_by_the_decoder() {
        let image = |parameters: Value| json!({"name": "IMAGE", "parameters": parameters});
        let outputs = [
            json!({"name": "IMAGE"}),
            image(json!(null)),
            image(json!({"binary_data": true})),
            image(json!({"binary_data": null})),
            image(json!({"binary_data": "yes"})),
            image(json!({"shared_memory_region": "r", "shared_memory_byte_size": 9})),
            image(json!({"classification": 3})),
        ];
        let read_one = |body: &[u8]| {
            let output: Value = serde_json::from_slice(body).unwrap();
            let request = json!({"inputs": [prompt()], "outputs": [output]});
            read(request.to_string().as_bytes())
        };
        rules_held_against_decoder(&output_tensor().into(), &outputs, &read_one);
    }
}
