//! JSON as our own dialect has it, in and out: read field by field, so that every complaint names its field, and written with the
//! contract's own names. One decoder, whatever a submission comes by.

mod asked;
mod batch;
mod element;
mod event;
mod submission;
mod task;
mod values;

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde_json::Value;

use crate::limits::MAX_JSON_VALUES;
use crate::words::{self, Words};
use crate::{ErrorCode, Failure};

use asked::Listener;
pub use asked::{Asked, Kind, asked};
pub use batch::submissions;
pub use event::{OutcomeJson, TaskEventJson};
pub use submission::{Names, SUBMISSION_FIELDS, Submission, submission, submission_with_key};
pub use task::TaskJson;

/// Characters of a wrong value that are shown back.
const MAX_SHOWN: usize = 40;
/// Characters of a reader's complaint.
const MAX_TOLD: usize = 200;

/// The fields of a JSON object that have not been taken yet.
#[derive(Debug, Default)]
pub struct Fields {
    fields: BTreeMap<String, Value>,
    given_twice: Option<String>,
    /// Where a description is made, not a request read.
    listener: Option<Listener>,
}

/// Reads one JSON object.
///
/// # Errors
/// An invalid argument that says where the text stops being what is expected, or that it has too many values.
pub fn parse<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    let invalid = |message: String| Failure::new(ErrorCode::InvalidArgument, message);
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Err(invalid(
            "the body is empty; a JSON object is expected".to_owned(),
        ));
    }
    // A list would do for the reader of an object whose fields are known: in their order, without their names.
    if bytes.trim_ascii_start().first() == Some(&b'[') {
        return Err(invalid(
            "the body must be a JSON object, not a list".to_owned(),
        ));
    }
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let place = error.valid_up_to();
        invalid(format!("the body is not UTF-8 from byte {place} on"))
    })?;
    if values::count(bytes) > MAX_JSON_VALUES {
        return Err(invalid(format!(
            "the body may have {MAX_JSON_VALUES} values at most, those in its lists and objects included"
        )));
    }
    serde_json::from_str(text).map_err(|error| {
        invalid(format!(
            "the body is not the JSON expected: {}",
            told(&error)
        ))
    })
}

/// What JSON's reader complains of, with its place.
fn told(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let whole = text.len();
    let cut = cut(text);
    if cut.len() == whole {
        return cut;
    }
    format!("{cut} at line {} column {}", error.line(), error.column())
}

/// The beginning of a reader's complaint: readers repeat names and texts whole, however long they are.
pub fn cut(complaint: String) -> String {
    match complaint.char_indices().nth(MAX_TOLD) {
        Some((end, _)) => format!("{}…", &complaint[..end]),
        None => complaint,
    }
}

impl Fields {
    /// Reads one JSON object.
    ///
    /// # Errors
    /// An invalid argument that says where the text stops being one.
    pub fn parse(bytes: &[u8]) -> Result<Self, Failure> {
        parse::<Self>(bytes)?.once()
    }

    /// Refuses a field that was given twice: which of the two counts must not be a matter of luck.
    pub fn once(self) -> Result<Self, Failure> {
        match self.given_twice {
            Some(name) => {
                let message = format!("{} is given more than once", shorten(&name));
                Err(Failure::invalid(shorten(&name), message))
            }
            None => Ok(self),
        }
    }

    /// Adds a field, and notes the first that is there already.
    fn give(&mut self, name: String, value: Value) {
        if self.fields.insert(name.clone(), value).is_some() {
            self.given_twice.get_or_insert(name);
        }
    }

    /// Takes a field; `null` is as good as absent.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Takes a text.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Failure> {
        self.hear(name, || Kind::Text);
        match self.take(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(name, "a string", &other)),
        }
    }

    /// Takes an object; one that is not given has no fields. Of a field given twice inside, the last one counts.
    pub fn object(&mut self, name: &str) -> Result<Self, Failure> {
        self.hear(name, || Kind::Object);
        match self.take(name) {
            None => Ok(self.inside(name, serde_json::Map::new())),
            Some(Value::Object(fields)) => Ok(self.inside(name, fields)),
            Some(other) => Err(wrong(name, "an object", &other)),
        }
    }

    /// Takes a list of objects.
    pub fn objects(&mut self, name: &str) -> Result<Vec<Self>, Failure> {
        self.hear(name, || Kind::Objects);
        let Some(value) = self.take(name) else {
            return Ok(Vec::new());
        };
        let Value::Array(items) = value else {
            return Err(wrong(name, "a list of objects", &value));
        };
        let object = |(i, item)| match item {
            Value::Object(fields) => Ok(self.inside(&format!("{name}[]"), fields)),
            other => Err(Failure {
                field: Some(name.to_owned()),
                ..wrong(&format!("{name}[{i}]"), "an object", &other)
            }),
        };
        items.into_iter().enumerate().map(object).collect()
    }

    /// The fields of an object that has been read.
    pub fn of(fields: serde_json::Map<String, Value>) -> Self {
        Self {
            fields: fields.into_iter().collect(),
            given_twice: None,
            listener: None,
        }
    }

    fn hear(&self, name: &str, kind: impl FnOnce() -> Kind) {
        if let Some(listener) = &self.listener {
            listener.hear(name, kind());
        }
    }

    /// As [`Fields::of`], for the object at `name`.
    fn inside(&self, name: &str, fields: serde_json::Map<String, Value>) -> Self {
        let listener = self.listener.as_ref().map(|l| l.inside(name));
        Self {
            listener,
            ..Self::of(fields)
        }
    }

    /// Whether a field is there and says something: not `null`, nor an empty text or list, nor `false`.
    pub fn says(&self, name: &str) -> bool {
        match self.fields.get(name) {
            None | Some(Value::Null | Value::Bool(false)) => false,
            Some(Value::String(text)) => !text.is_empty(),
            Some(Value::Array(items)) => !items.is_empty(),
            Some(_) => true,
        }
    }

    /// Whether a field is there, with whatever value but `null`.
    pub fn is_given(&self, name: &str) -> bool {
        self.fields.get(name).is_some_and(|value| !value.is_null())
    }

    /// Whether a field is a text.
    pub fn is_text(&self, name: &str) -> bool {
        matches!(self.fields.get(name), Some(Value::String(_)))
    }

    /// Takes one of `words`, by the value that it stands for.
    pub fn word<T: Copy>(
        &mut self,
        name: &str,
        words: &[(&'static str, T)],
    ) -> Result<Option<T>, Failure> {
        self.hear(name, || {
            Kind::Word(words.iter().map(|(word, _)| *word).collect())
        });
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

    /// Takes a list of `words`, by the values that they stand for.
    ///
    /// # Errors
    /// When it is none, or holds another word.
    pub fn words<T: Copy>(&mut self, name: &str, words: Words<T>) -> Result<Vec<T>, Failure> {
        self.hear(name, || {
            Kind::Words(words.iter().map(|(word, _)| *word).collect())
        });
        let texts = self.list_of_texts(name)?;
        let known = |text: &String| {
            words::meaning(words, text).ok_or_else(|| {
                let (all, shown) = (words::all(words), shorten(text));
                let message = format!("{name} may hold {all}, not {shown:?}");
                Failure::invalid(name, message)
            })
        };
        texts.iter().map(known).collect()
    }

    /// Takes a truth value.
    pub fn truth(&mut self, name: &str) -> Result<Option<bool>, Failure> {
        self.hear(name, || Kind::Truth);
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(truth)) => Ok(Some(truth)),
            Some(other) => Err(wrong(name, "true or false", &other)),
        }
    }

    /// Takes a whole number of 32 bits.
    pub fn small(&mut self, name: &str) -> Result<Option<u32>, Failure> {
        self.hear(name, || Kind::Small);
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        // Each has limits of its own, far below those of 32 bits: naming these would mislead.
        let refused = |expected| wrong(name, expected, &value);
        let number = whole(&value).ok_or_else(|| refused("a whole number of 0 or more"))?;
        let small = u32::try_from(number).map_err(|_| refused("a smaller whole number"))?;
        Ok(Some(small))
    }

    /// Takes a whole number of 64 bits.
    pub fn large(&mut self, name: &str) -> Result<Option<u64>, Failure> {
        self.hear(name, || Kind::Large);
        let Some(value) = self.take(name) else {
            return Ok(None);
        };
        let expected = "a whole number from 0 to 18446744073709551615";
        whole(&value)
            .map(Some)
            .ok_or_else(|| wrong(name, expected, &value))
    }

    /// Takes a number.
    pub fn number(&mut self, name: &str) -> Result<Option<f32>, Failure> {
        self.hear(name, || Kind::Number);
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
    pub fn texts(&mut self, name: &str) -> Result<Vec<String>, Failure> {
        self.hear(name, || Kind::Texts);
        self.list_of_texts(name)
    }

    fn list_of_texts(&mut self, name: &str) -> Result<Vec<String>, Failure> {
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
    pub fn nothing_else(self, known: &[&str]) -> Result<(), Failure> {
        self.hear("", || Kind::Closed);
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

/// A whole number, however it is written: to JSON Schema 2.0 is one, and some clients write all numbers so.
fn whole(value: &Value) -> Option<u64> {
    // From here on, not every whole number can be told from its neighbours.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let written = |number: f64| {
        (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then_some(number as u64)
    };
    value.as_u64().or_else(|| value.as_f64().and_then(written))
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
pub fn shorten(text: &str) -> String {
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
            read.give(name, value);
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
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
        for list in [&b"[1]"[..], b" \n[[{}]]", b"["] {
            assert_eq!(
                complaint(list),
                "the body must be a JSON object, not a list"
            );
        }
        assert!(complaint(b"{\"a\": \"\xff\"}").contains("not UTF-8 from byte 7"));
        assert!(complaint(b"{} {}").contains("trailing characters"));
        let deep = format!("{{\"a\":{}", "[".repeat(1000));
        assert!(complaint(deep.as_bytes()).contains("recursion limit"));
    }

    #[test]
    fn more_values_than_any_request_has_are_refused_with_the_limit() {
        let objects = |count| format!("{{\"x\":[{}]}}", vec!["{}"; count].join(","));
        let told = complaint(objects(MAX_JSON_VALUES).as_bytes());
        let limit = format!("{MAX_JSON_VALUES} values at most");
        assert!(told.contains(&limit), "{told}");
        Fields::parse(objects(MAX_JSON_VALUES / 2 - 1).as_bytes()).unwrap();
        let text = serde_json::json!({"prompt": "\",[{\\".repeat(MAX_JSON_VALUES)});
        Fields::parse(text.to_string().as_bytes()).unwrap();
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
            "a must be a whole number of 0 or more, not \"x\""
        );
        assert_eq!(messages[1], "b must be a string, not 1");
        assert_eq!(messages[3], "d[1] must be a string, not 2");
        assert_eq!(
            messages[4],
            "e must be a smaller whole number, not 4294967296"
        );
        assert_eq!(messages[6], "g must be a number, not an object");
        assert_eq!(messages[8], "a must be one of y, z, not \"x\"");
    }

    #[test]
    fn a_whole_number_may_have_a_point() {
        let read = |body: &str| Fields::parse(body.as_bytes()).unwrap().large("a");
        assert_eq!(read(r#"{"a":2.0}"#).unwrap(), Some(2));
        assert_eq!(read(r#"{"a":1e3}"#).unwrap(), Some(1000));
        for bad in ["2.5", "-1.0", "1e300", "9007199254740993.5"] {
            read(&format!("{{\"a\":{bad}}}")).unwrap_err();
        }
    }

    #[test]
    fn null_is_absent_and_the_rest_is_refused_by_name() {
        let mut fields = Fields::parse(br#"{"seed":null,"promt":"x"}"#).unwrap();
        assert_eq!(fields.large("seed").unwrap(), None);
        let failure = fields.nothing_else(&["prompt", "seed"]).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("promt"));
        assert!(failure.message.contains("prompt, seed"));
    }

    proptest! {
        #[test]
        fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Fields::parse(&bytes);
        }
    }
}
