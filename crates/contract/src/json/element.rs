//! One of a list that should hold objects, read by itself: what stands in the place of another is no reason to refuse that one.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

use super::{Fields, FieldsVisitor, wrong};
use crate::Failure;

/// An object, or what stands in its place; of a list, that it is one.
#[derive(Debug)]
pub struct Element(Result<Fields, Value>);

impl Element {
    /// The fields of the element at `index` of the list of this name.
    ///
    /// # Errors
    /// An invalid argument that names the list and the place, where it is no object.
    pub fn fields(self, list: &str, index: usize) -> Result<Fields, Failure> {
        self.0.map_err(|other| Failure {
            field: Some(list.to_owned()),
            ..wrong(&format!("{list}[{index}]"), "an object", &other)
        })
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ElementVisitor).map(Self)
    }
}

struct ElementVisitor;

impl<'de> Visitor<'de> for ElementVisitor {
    type Value = Result<Fields, Value>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        FieldsVisitor.visit_map(map).map(Ok)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        while list.next_element::<IgnoredAny>()?.is_some() {}
        Ok(Err(Value::Array(Vec::new())))
    }

    fn visit_unit<E: Error>(self) -> Result<Self::Value, E> {
        Ok(Err(Value::Null))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Self::Value, E> {
        Ok(Err(truth.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Self::Value, E> {
        Ok(Err(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Self::Value, E> {
        Ok(Err(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Self::Value, E> {
        Ok(Err(number.into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Self::Value, E> {
        Ok(Err(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_object_is_named_with_its_place_and_the_others_are_read() {
        let body = r#"[7, {"a": 1}, null, [1, [2]], "x", true, -1.5, -2, {"a": 1, "a": 2}]"#;
        let list: Vec<Element> = serde_json::from_str(body).unwrap();
        let read = |(index, one): (usize, Element)| {
            let fields = one.fields("tasks", index).and_then(Fields::once);
            fields.map_err(|failure| (failure.field.unwrap(), failure.message))
        };
        let read = list.into_iter().enumerate().map(read);
        let mut told: Vec<_> = read.map(Result::err).collect();
        let twice = told.pop().flatten().unwrap();
        assert_eq!(twice.0, "a");
        for (index, told) in told.into_iter().enumerate() {
            let is = ["7", "", "null", "a list", "\"x\"", "true", "-1.5", "-2"][index];
            let expected = format!("tasks[{index}] must be an object, not {is}");
            let expected = (!is.is_empty()).then(|| ("tasks".to_owned(), expected));
            assert_eq!(told, expected);
        }
    }
}
