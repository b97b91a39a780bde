//! The HTTP wire: JSON, and the extension that puts raw tensor data behind it.
//!
//! A body with the header `Inference-Header-Content-Length: n` is `n` bytes of JSON and then the data of the inputs that have
//! `binary_data_size` among their parameters, in their order. Answers are made the same way.

mod answer;

use std::collections::BTreeMap;

use axum::http::HeaderName;
use bytes::Bytes;
use contract::{ErrorCode, Failure};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::request::{Asked, IMAGE_FORMAT};
use super::tensor::{
    CONTENT_TYPE, Datatype, Tensor, Values, check_input, check_output, invalid, read_raw,
};
use crate::json::{parse, shorten};

pub(super) use answer::{AnswerJson, encode};

/// How many bytes of a body are JSON.
pub(super) const JSON_BYTES: HeaderName =
    HeaderName::from_static("inference-header-content-length");

/// The parameter of a request that asks for all outputs in raw form.
pub(super) const BINARY_DATA_OUTPUT: &str = "binary_data_output";
/// The parameter of an output that asks for it alone.
pub(super) const BINARY_DATA: &str = "binary_data";

type Parameters = BTreeMap<String, Value>;

#[derive(Debug, Deserialize)]
struct RequestJson {
    id: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: Parameters,
    inputs: Vec<InputJson>,
    #[serde(default, deserialize_with = "null_as_default")]
    outputs: Vec<OutputJson>,
}

#[derive(Debug, Deserialize)]
struct InputJson {
    name: String,
    shape: Vec<i64>,
    datatype: String,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: Parameters,
    data: Option<Value>,
}

#[derive(Debug, Deserialize)]
struct OutputJson {
    name: String,
    #[serde(default, deserialize_with = "null_as_default")]
    parameters: Parameters,
}

/// `null` is as good as left out.
fn null_as_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

/// Which outputs the caller wants in raw form.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Binary {
    all: bool,
    outputs: Vec<String>,
}

impl Binary {
    fn has(&self, name: &str) -> bool {
        self.all || self.outputs.iter().any(|output| output == name)
    }
}

/// Reads a body, of which `json_bytes` are JSON where the header says so.
pub(super) fn decode(body: &Bytes, json_bytes: Option<&str>) -> Result<(Asked, Binary), Failure> {
    let (json, mut raw) = split(body, json_bytes)?;
    let request: RequestJson = parse(&json)?;
    let mut inputs = Vec::with_capacity(request.inputs.len());
    for input in request.inputs {
        inputs.push(read_input(input, &mut raw)?);
    }
    if !raw.is_empty() {
        let message = format!("{} bytes are left behind the data of the inputs", raw.len());
        return Err(Failure::new(ErrorCode::InvalidArgument, message));
    }
    let image_format = match request.parameters.get(IMAGE_FORMAT) {
        None | Some(Value::Null) => None,
        Some(Value::String(text)) => Some(text.clone()),
        Some(_) => {
            let message = format!("the parameter {IMAGE_FORMAT} must be a string");
            return Err(Failure::invalid(IMAGE_FORMAT, message));
        }
    };
    let mut binary = Binary {
        all: is_set(&request.parameters, BINARY_DATA_OUTPUT)?,
        outputs: Vec::new(),
    };
    for output in &request.outputs {
        check_output(&output.name, |name| output.parameters.contains_key(name))?;
        if is_set(&output.parameters, BINARY_DATA)? {
            binary.outputs.push(output.name.clone());
        }
    }
    let asked = Asked {
        id: request.id.unwrap_or_default(),
        inputs,
        outputs: request
            .outputs
            .into_iter()
            .map(|output| output.name)
            .collect(),
        image_format,
        ..Default::default()
    };
    Ok((asked, binary))
}

/// Whether a parameter is set that is true or false; false where it is left out.
fn is_set(parameters: &Parameters, name: &str) -> Result<bool, Failure> {
    match parameters.get(name) {
        None | Some(Value::Null) => Ok(false),
        Some(Value::Bool(set)) => Ok(*set),
        Some(_) => {
            let message = format!("the parameter {name} must be true or false");
            Err(Failure::invalid(name, message))
        }
    }
}

fn split(body: &Bytes, json_bytes: Option<&str>) -> Result<(Bytes, Bytes), Failure> {
    let Some(text) = json_bytes else {
        return Ok((body.clone(), Bytes::new()));
    };
    let bytes = text
        .trim()
        .parse()
        .ok()
        .filter(|bytes| *bytes <= body.len());
    let bytes: usize = bytes.ok_or_else(|| {
        let (shown, most) = (shorten(text), body.len());
        let message = format!(
            "the header Inference-Header-Content-Length must be a number of bytes up to the body's {most}, not {shown:?}"
        );
        Failure::new(ErrorCode::InvalidArgument, message)
    })?;
    Ok((body.slice(..bytes), body.slice(bytes..)))
}

fn read_input(input: InputJson, raw: &mut Bytes) -> Result<Tensor, Failure> {
    // Whatever is wrong with it, its name is not repeated whole.
    let shown = shorten(&input.name);
    let datatype = Datatype::read(&shown, &input.datatype)?;
    let has = |name: &str| input.parameters.contains_key(name);
    let content_type = input.parameters.get(CONTENT_TYPE).and_then(Value::as_str);
    check_input(&shown, has, content_type)?;
    let values = match (input.parameters.get("binary_data_size"), input.data) {
        (Some(size), None) => {
            let fits = |size: &usize| *size <= raw.len();
            let size = size.as_u64().and_then(|size| usize::try_from(size).ok());
            let Some(size) = size.filter(fits) else {
                let left = raw.len();
                let message = format!(
                    "binary_data_size of {shown} must be a number of bytes up to the {left} that are left in the body"
                );
                return Err(invalid(&shown, message));
            };
            read_raw(&shown, datatype, &raw.split_to(size))?
        }
        (None, Some(data)) => read_data(&shown, datatype, data)?,
        _ => {
            let message =
                format!("{shown} must have either data or the parameter binary_data_size");
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

/// Values as JSON: flat, or nested as the shape is.
fn read_data(name: &str, datatype: Datatype, data: Value) -> Result<Values, Failure> {
    let mut flat = Vec::new();
    flatten(data, &mut flat);
    let wrong = |expected: &str| invalid(name, format!("the data of {name} must be {expected}"));
    match datatype {
        Datatype::Bytes => {
            let text = |value| match value {
                Value::String(text) => Ok(Bytes::from(text)),
                _ => Err(wrong("strings")),
            };
            flat.into_iter()
                .map(text)
                .collect::<Result<_, _>>()
                .map(Values::Bytes)
        }
        Datatype::Whole(width, signed) => {
            let (least, most) = range(width, signed);
            let whole = |value: Value| {
                let wide = value.as_u64().map(i128::from);
                let wide = wide.or_else(|| value.as_i64().map(i128::from));
                let fits = wide.filter(|number| (least..=most).contains(number));
                fits.ok_or_else(|| wrong(&format!("whole numbers from {least} to {most}")))
            };
            flat.into_iter()
                .map(whole)
                .collect::<Result<_, _>>()
                .map(Values::Whole)
        }
        Datatype::Fp32 | Datatype::Fp64 => {
            let real = |value: Value| value.as_f64().ok_or_else(|| wrong("numbers"));
            flat.into_iter()
                .map(real)
                .collect::<Result<_, _>>()
                .map(Values::Real)
        }
    }
}

fn range(width: usize, signed: bool) -> (i128, i128) {
    let bits = width as u32 * 8;
    if signed {
        (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    } else {
        (0, (1 << bits) - 1)
    }
}

// As deep as the JSON reader goes, which is 128.
fn flatten(data: Value, flat: &mut Vec<Value>) {
    match data {
        Value::Array(items) => items.into_iter().for_each(|item| flatten(item, flat)),
        value => flat.push(value),
    }
}

#[cfg(test)]
mod tests {
    use contract::limits::MAX_JSON_VALUES;
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn read(json: &Value) -> Result<(Asked, Binary), Failure> {
        decode(&Bytes::from(json.to_string()), None)
    }

    #[test]
    fn json_data_is_read_flat_and_nested() {
        let (asked, binary) = read(&json!({"id": "7", "parameters": {"image_format": "raw"}, "inputs": [
            {"name": "PROMPT", "shape": [2, 1], "datatype": "BYTES", "data": [["a"], ["b"]]},
            {"name": "SEED", "shape": [1], "datatype": "UINT64", "data": [18446744073709551615u64]}],
            "outputs": [{"name": "IMAGE", "parameters": {"binary_data": true}}, {"name": "SEED"}]}))
        .unwrap();
        assert_eq!(asked.id, "7");
        assert_eq!(asked.image_format.as_deref(), Some("raw"));
        let texts = vec![Bytes::from_static(b"a"), Bytes::from_static(b"b")];
        assert_eq!(asked.inputs[0].values, Values::Bytes(texts));
        assert_eq!(asked.inputs[0].batch().unwrap(), 2);
        assert_eq!(
            asked.inputs[1].values,
            Values::Whole(vec![i128::from(u64::MAX)])
        );
        assert_eq!(asked.outputs, ["IMAGE", "SEED"]);
        assert!(binary.has("IMAGE") && !binary.has("SEED"));
    }

    #[test]
    fn null_is_as_good_as_left_out() {
        let input = json!({"name": "SEED", "shape": [1], "datatype": "INT32", "data": [7]});
        let mut with_null = input.clone();
        with_null["parameters"] = Value::Null;
        let plain = read(&json!({"inputs": [input], "outputs": [{"name": "IMAGE"}]})).unwrap();
        let output = json!({"name": "IMAGE", "parameters": null});
        let nulls =
            json!({"id": null, "parameters": null, "inputs": [with_null], "outputs": [output]});
        assert_eq!(read(&nulls).unwrap(), plain);
        let all = read(&json!({"inputs": [], "outputs": null})).unwrap().0;
        assert!(all.outputs.is_empty());
    }

    #[test]
    fn raw_data_is_read_from_behind_the_json() {
        let json = json!({"parameters": {"binary_data_output": true}, "inputs": [
            {"name": "PROMPT", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": 6}},
            {"name": "STEPS", "shape": [1], "datatype": "INT32", "parameters": {"binary_data_size": 4}}]});
        let json = json.to_string();
        let mut body = json.clone().into_bytes();
        body.extend([2, 0, 0, 0, b'h', b'i', 9, 0, 0, 0]);
        let length = json.len().to_string();
        let (asked, binary) = decode(&Bytes::from(body.clone()), Some(&length)).unwrap();
        assert_eq!(
            asked.inputs[0].values,
            Values::Bytes(vec![Bytes::from_static(b"hi")])
        );
        assert_eq!(asked.inputs[1].values, Values::Whole(vec![9]));
        assert!(binary.has("IMAGE"));
        body.push(0);
        assert!(decode(&Bytes::from(body.clone()), Some(&length)).is_err());
        body.truncate(body.len() - 2);
        assert!(decode(&Bytes::from(body.clone()), Some(&length)).is_err());
        for bad in ["", "-1", "x", "99999"] {
            assert!(
                decode(&Bytes::from(body.clone()), Some(bad)).is_err(),
                "{bad}"
            );
        }
    }

    #[test]
    fn a_request_as_kserves_client_writes_it_is_read_though_it_names_the_model_again() {
        // The package of version 0.21.0, of two inputs set with binary data.
        let json = concat!(
            r#"{"id":"7","model_name":"m","inputs":[{"name":"PROMPT","shape":[1],"datatype":"BYTES","#,
            r#""parameters":{"binary_data_size":9}},{"name":"STEPS","shape":[1],"datatype":"INT32","#,
            r#""parameters":{"binary_data_size":4}}],"parameters":{"image_format":"raw","binary_data_output":true}}"#,
        );
        let body = [json.as_bytes(), b"\x05\0\0\0a cat\x06\0\0\0"].concat();
        let length = json.len().to_string();
        let (asked, binary) = decode(&Bytes::from(body), Some(&length)).unwrap();
        assert_eq!(asked.id, "7");
        assert_eq!(asked.image_format.as_deref(), Some("raw"));
        let prompt = Values::Bytes(vec![Bytes::from_static(b"a cat")]);
        assert_eq!(asked.inputs[0].values, prompt);
        assert_eq!(asked.inputs[1].values, Values::Whole(vec![6]));
        assert!(binary.has("IMAGE"));
    }

    #[test]
    fn more_values_than_any_request_has_are_refused_with_the_limit() {
        let many = json!({"parameters": {"x": vec![0; MAX_JSON_VALUES]}, "inputs": []});
        let failure = read(&many).unwrap_err();
        let limit = MAX_JSON_VALUES.to_string();
        assert!(failure.message.contains(&limit), "{failure}");
    }

    #[test]
    fn what_cannot_be_is_refused_by_the_inputs_name() {
        let field = |input: Value| read(&json!({"inputs": [input]})).unwrap_err().field;
        let named = Some("SEED".to_owned());
        let with = |datatype: &str, data: Value| json!({"name": "SEED", "shape": [1], "datatype": datatype, "data": data});
        assert_eq!(field(with("UINT8", json!([256]))), named);
        assert_eq!(field(with("INT8", json!([-129]))), named);
        assert_eq!(field(with("INT8", json!(["1"]))), named);
        assert_eq!(field(with("BYTES", json!([1]))), named);
        assert_eq!(field(with("FP32", json!([null]))), named);
        assert_eq!(
            field(json!({"name": "SEED", "shape": [1], "datatype": "INT8"})),
            named
        );
        let failure = read(&json!({"inputs": [{"name": "X", "shape": [1]}]})).unwrap_err();
        assert!(failure.message.contains("datatype"), "{failure}");
    }

    #[test]
    fn whether_outputs_are_raw_is_true_or_false_and_nothing_else() {
        let with = |set: &Value| {
            let all = json!({"inputs": [], "parameters": {"binary_data_output": set}});
            let output = json!({"name": "IMAGE", "parameters": {"binary_data": set}});
            [all, json!({"inputs": [], "outputs": [output]})]
        };
        for set in [json!("true"), json!("yes"), json!(1), json!([true])] {
            let fields = with(&set).map(|request| read(&request).unwrap_err().field.unwrap());
            assert_eq!(fields, ["binary_data_output", "binary_data"], "{set}");
        }
        for (set, is_set) in [
            (json!(true), true),
            (json!(false), false),
            (json!(null), false),
        ] {
            let raw = with(&set).map(|request| read(&request).unwrap().1.has("IMAGE"));
            assert_eq!(raw, [is_set; 2], "{set}");
        }
    }

    #[test]
    fn an_input_in_base64_is_refused_rather_than_drawn_as_it_is_written() {
        let with = |content_type: &str| {
            let parameters = json!({"content_type": content_type});
            read(
                &json!({"inputs": [{"name": "PROMPT", "shape": [1], "datatype": "BYTES",
                "parameters": parameters, "data": ["YSBjYXQ="]}]}),
            )
        };
        let failure = with("base64").unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("PROMPT"), "{failure}");
        assert!(with("str").is_ok());
    }

    #[test]
    fn an_output_in_shared_memory_or_as_classes_is_refused_by_its_name() {
        let region = json!({"shared_memory_region": "r", "shared_memory_byte_size": 9});
        for parameters in [region, json!({"classification": 3})] {
            let outputs = json!([{"name": "SEED"}, {"name": "IMAGE", "parameters": parameters}]);
            let failure = read(&json!({"inputs": [], "outputs": outputs})).unwrap_err();
            assert_eq!(failure.field.as_deref(), Some("IMAGE"), "{failure}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_decoder_panic(
            body in proptest::collection::vec(any::<u8>(), 0..300),
            length in proptest::option::of("[0-9]{0,4}|\\PC{0,4}"),
        ) {
            let _ = decode(&Bytes::from(body), length.as_deref());
        }

        #[test]
        fn no_input_makes_the_decoder_panic(
            datatype in "BYTES|U?INT(8|16|32|64)|FP(32|64)|[A-Z]{0,3}",
            data in "null|-1|1e400|\\[\\]|\\[1,-1\\]|\\[\\[\"x\"\\]\\]|\\{\\}|true|18446744073709551615",
            size in "-1|0|3|8|99|\"x\"",
            raw in proptest::collection::vec(any::<u8>(), 0..20),
        ) {
            let start = format!("{{\"inputs\":[{{\"name\":\"PROMPT\",\"shape\":[1],\"datatype\":\"{datatype}\",");
            let _ = decode(&Bytes::from(format!("{start}\"data\":{data}}}]}}")), None);
            let json = format!("{start}\"parameters\":{{\"binary_data_size\":{size}}}}}]}}");
            let mut body = json.clone().into_bytes();
            body.extend(raw);
            let _ = decode(&Bytes::from(body), Some(&json.len().to_string()));
        }
    }
}
