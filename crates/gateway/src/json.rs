//! Reads a JSON body field by field, so that every complaint names its field.

use std::collections::BTreeMap;
use std::fmt;

use axum::body::Body;
use axum::http::{HeaderMap, header};
use bytes::Bytes;
use contract::{ErrorCode, Failure};
use http_body_util::LengthLimitError;
use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;
use settings::ByteSize;

use crate::settings::HttpSettings;

/// Characters of a wrong value that are shown back.
const MAX_SHOWN: usize = 40;

/// The fields of a JSON object that have not been taken yet.
#[derive(Debug, Default)]
pub(crate) struct Fields {
    fields: BTreeMap<String, Value>,
    given_twice: Option<String>,
}

/// Reads a request's body as one JSON object. That it is announced as JSON is a layer's to check.
pub(crate) async fn read(body: Body, settings: &HttpSettings) -> Result<Fields, Failure> {
    Fields::parse(&read_bytes(body, settings).await?)
}

/// Reads a request's body, within the limits of size and time that every body has.
///
/// # Errors
/// One that is longer, breaks off, or takes longer than a request may.
pub(crate) async fn read_bytes(body: Body, settings: &HttpSettings) -> Result<Bytes, Failure> {
    read_at_most(body, settings.max_body, settings).await
}

/// The same with a limit of its own.
pub(crate) async fn read_at_most(
    body: Body,
    limit: ByteSize,
    settings: &HttpSettings,
) -> Result<Bytes, Failure> {
    let bytes = axum::body::to_bytes(body, usize::try_from(limit.bytes()).unwrap_or(usize::MAX));
    let patience = settings.request_timeout.duration();
    match tokio::time::timeout(patience, bytes).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(error)) if is_length_limit(&error) => Err(too_large(limit)),
        Ok(Err(_)) => {
            let message = "the body ended before its announced length";
            Err(Failure::new(ErrorCode::InvalidArgument, message))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {patience:?}");
            Err(Failure::new(ErrorCode::DeadlineExceeded, message))
        }
    }
}

/// The failure of a body over the limit.
pub(crate) fn too_large(limit: ByteSize) -> Failure {
    let message = format!("the body must be at most {limit}");
    Failure::new(ErrorCode::PayloadTooLarge, message)
}

fn is_length_limit(error: &axum::Error) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if error.is::<LengthLimitError>() {
            return true;
        }
        cause = error.source();
    }
    false
}

/// Whether the headers announce a body that is not compressed.
pub(crate) fn check_coding(headers: &HeaderMap) -> Result<(), Failure> {
    let coding = headers.get(header::CONTENT_ENCODING);
    match coding.and_then(|v| v.to_str().ok()) {
        None | Some("identity") => Ok(()),
        Some(coding) => {
            let coding = shorten(coding);
            let message = format!("the body must not be compressed; Content-Encoding is {coding}");
            Err(Failure::new(ErrorCode::UnsupportedMediaType, message))
        }
    }
}

/// Whether the headers announce a JSON body that is not compressed.
pub(crate) fn check_media_type(headers: &HeaderMap) -> Result<(), Failure> {
    check_coding(headers)?;
    let refuse = |message: String| Err(Failure::new(ErrorCode::UnsupportedMediaType, message));
    let text = |name| headers.get(name).and_then(|v| v.to_str().ok());
    let Some(given) = text(header::CONTENT_TYPE) else {
        return refuse("the body must be JSON: send Content-Type: application/json".to_owned());
    };
    let essence = given
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    if essence == "application/json" || essence.ends_with("+json") {
        return Ok(());
    }
    let given = shorten(given);
    refuse(format!(
        "the body must be JSON: send Content-Type: application/json, not {given}"
    ))
}

/// Reads JSON.
///
/// # Errors
/// An invalid argument that says where the text stops being what is expected.
pub(crate) fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let invalid = |message: String| Failure::new(ErrorCode::InvalidArgument, message);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid(
            "the body is empty; a JSON object is expected".to_owned(),
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let place = error.valid_up_to();
        invalid(format!("the body is not UTF-8 from byte {place} on"))
    })?;
    serde_json::from_str(text)
        .map_err(|error| invalid(format!("the body is not the JSON expected: {error}")))
}

impl Fields {
    /// Reads one JSON object.
    ///
    /// # Errors
    /// An invalid argument that says where the text stops being one.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        parse::<Self>(bytes)?.once()
    }

    /// Refuses a field that was given twice: which of the two counts must not be a matter of luck.
    pub(crate) fn once(self) -> Result<Self, Failure> {
        match self.given_twice {
            Some(name) => {
                let message = format!("{} is given more than once", shorten(&name));
                Err(Failure::invalid(shorten(&name), message))
            }
            None => Ok(self),
        }
    }

    /// Takes a field; `null` is as good as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text.
    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// Takes an object; one that is not given has no fields. Of a field given twice inside, the last one counts.
    pub(crate) fn object(&mut self, name: &str) -> Result<Self, Failure> {
        match self.take(name) {
            None => Ok(Self::default()),
            Some(Value::Object(fields)) => Ok(Self::of(fields)),
            Some(other) => Err(wrong(name, "an object", &other)),
        }
    }

    /// Takes a list of objects.
    pub(crate) fn objects(&mut self, name: &str) -> Result<Vec<Self>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(Vec::new());
        };
        let Value::Array(items) = value else {
            return Err(wrong(name, "a list of objects", &value));
        };
        let object = |(i, item)| match item {
            Value::Object(fields) => Ok(Self::of(fields)),
            other => Err(Failure {
                field: Some(name.to_owned()),
                ..wrong(&format!("{name}[{i}]"), "an object", &other)
            }),
        };
        items.into_iter().enumerate().map(object).collect()
    }

    /// The fields of an object that has been read.
    pub(crate) fn of(fields: serde_json::Map<String, Value>) -> Self {
        Self {
            fields: fields.into_iter().collect(),
            given_twice: None,
        }
    }

    /// Whether a field is there and says something: not `null`, nor an empty text or list, nor `false`.
    pub(crate) fn says(&self, name: &str) -> bool {
        match self.fields.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        }
    }

    /// Whether a field is a text.
    pub(crate) fn is_text(&self, name: &str) -> bool {
        matches!(self.fields.get(name), Some(Value::String(_)))
    }

    /// Takes one of `words`, by the value that it stands for.
    pub(crate) fn word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let known = words.iter().find(|(word, _)| value == *word);
        let Some((_, meaning)) = known else {
            let list: Vec<_> = words.iter().map(|(word, _)| *word).collect();
            return Err(wrong(name, &format!("one of {}", list.join(", ")), &value));
        };
        Ok(Some(*meaning))
    }

    /// Takes a truth value.
    pub(crate) fn truth(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Takes a whole number of 32 bits.
    pub(crate) fn small(&mut self, name: &str) -> Result<Option<u32>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let number = value.as_u64().and_then(|n| u32::try_from(n).ok());
        let expected = "a whole number from 0 to 4294967295";
        number
            .map(Some)
            .ok_or_else(|| wrong(name, expected, &value))
    }

    /// Takes a whole number of 64 bits.
    pub(crate) fn large(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let expected = "a whole number from 0 to 18446744073709551615";
        value
            .as_u64()
            .map(Some)
            .ok_or_else(|| wrong(name, expected, &value))
    }

    /// Takes a number.
    pub(crate) fn number(&mut self, name: &str) -> Result<Option<f32>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        // Single precision is what the engine computes with; what does not fit becomes infinite and is refused
        // with the other limits.
        let number = value.as_f64().map(|n| n as f32);
        number
            .map(Some)
            .ok_or_else(|| wrong(name, "a number", &value))
    }

    /// Takes a list of texts.
    pub(crate) fn texts(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        let Some(value) = self.take(name) else {
            return Ok(Vec::new());
        };
        let Value::Array(items) = value else {
            return Err(wrong(name, "a list of strings", &value));
        };
        let text = |(i, item)| match item {
            Value::String(text) => Ok(text),
            other => Err(Failure {
                field: Some(name.to_owned()),
                ..wrong(&format!("{name}[{i}]"), "a string", &other)
            }),
        };
        items.into_iter().enumerate().map(text).collect()
    }

    /// Refuses what nobody took: a typo must not be taken for a default.
    pub(crate) fn nothing_else(self, known: &[&str]) -> Result<(), Failure> {
        let Some(name) = self.fields.into_keys().next() else {
            return Ok(());
        };
        let name = shorten(&name);
        let message = format!(
            "{name} is not a field of this request; it takes {}",
            known.join(", ")
        );
        Err(Failure::invalid(name, message))
    }
}

fn wrong(name: &str, expected: &str, value: &Value) -> Failure {
    let shown = match value {
        Value::Array(_) => "a list".to_owned(),
        Value::Object(_) => "an object".to_owned(),
        scalar => shorten(&scalar.to_string()),
    };
    Failure::invalid(name, format!("{name} must be {expected}, not {shown}"))
}

/// The beginning of a text that may be long.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(MAX_SHOWN) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

impl<'de> Deserialize<'de> for Fields {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(FieldsVisitor)
    }
}

struct FieldsVisitor;

impl<'de> Visitor<'de> for FieldsVisitor {
    type Value = Fields;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
        let mut read = Fields::default();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            if read.fields.insert(name.clone(), value).is_some() {
                read.given_twice.get_or_insert(name);
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn complaint(body: &[u8]) -> String {
        Fields::parse(body).unwrap_err().message
    }

    #[test]
    fn what_is_not_an_object_is_refused_with_its_place() {
        assert!(complaint(b"").contains("empty"));
        assert!(complaint(b" \n").contains("empty"));
        assert!(complaint(b"{\"a\":\n!}").contains("line 2 column 1"));
        assert!(complaint(b"[1]").contains("a JSON object"));
        assert!(complaint(b"{\"a\": \"\xff\"}").contains("not UTF-8 from byte 7"));
        assert!(complaint(b"{} {}").contains("trailing characters"));
        let deep = format!("{{\"a\":{}", "[".repeat(100_000));
        assert!(complaint(deep.as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn a_field_given_twice_is_named() {
        let failure = Fields::parse(br#"{"seed":1,"seed":2}"#).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("seed"));
        assert!(failure.message.contains("more than once"));
    }

    #[test]
    fn a_field_of_the_wrong_kind_is_named_with_what_it_should_be() {
        let body = br#"{"a":"x","b":1,"c":-1,"d":["x",2],"e":4294967296,"f":1.5,"g":{}}"#;
        let read = || Fields::parse(body).unwrap();
        let failures = [
            read().small("a").unwrap_err(),
            read().text("b").unwrap_err(),
            read().large("c").unwrap_err(),
            read().texts("d").unwrap_err(),
            read().small("e").unwrap_err(),
            read().large("f").unwrap_err(),
            read().number("g").unwrap_err(),
            read().truth("a").unwrap_err(),
            read().word("a", &[("y", 1), ("z", 2)]).unwrap_err(),
        ];
        let messages = failures.map(|f| f.message);
        assert_eq!(
            messages[0],
            "a must be a whole number from 0 to 4294967295, not \"x\""
        );
        assert_eq!(messages[1], "b must be a string, not 1");
        assert_eq!(messages[3], "d[1] must be a string, not 2");
        assert_eq!(messages[6], "g must be a number, not an object");
        assert_eq!(messages[8], "a must be one of y, z, not \"x\"");
    }

    #[test]
    fn null_is_absent_and_the_rest_is_refused_by_name() {
        let mut fields = Fields::parse(br#"{"seed":null,"promt":"x"}"#).unwrap();
        assert_eq!(fields.large("seed").unwrap(), None);
        let failure = fields.nothing_else(&["prompt", "seed"]).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("promt"));
        assert!(failure.message.contains("prompt, seed"));
    }

    #[test]
    fn only_plain_json_is_taken() {
        let with = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            check_media_type(&HeaderMap::from_iter([(header::CONTENT_TYPE, value)]))
        };
        assert!(with("application/json").is_ok());
        assert!(with("Application/JSON; charset=utf-8").is_ok());
        assert!(with("text/plain").is_err());
        let refused = check_media_type(&HeaderMap::new()).unwrap_err();
        assert_eq!(refused.code, ErrorCode::UnsupportedMediaType);
        let packed = [
            (
                header::CONTENT_TYPE,
                HeaderValue::from_static("application/json"),
            ),
            (header::CONTENT_ENCODING, HeaderValue::from_static("gzip")),
        ];
        assert!(check_media_type(&HeaderMap::from_iter(packed)).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::parse(&bytes);
        }
    }
}
