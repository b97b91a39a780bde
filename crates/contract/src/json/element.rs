//! A list that should hold objects, and each of its elements, read by themselves: what stands in the place of one is no reason to refuse the
//! others, and what stands in the place of the list is refused by its name.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{Fields, FieldsVisitor, wrong};
use crate::Failure;

/// A list of elements, or what stands in its place; `null` is as good as none.
#[derive(Debug, Default)]
pub(super) struct Elements {
    list: Vec<Element>,
    instead: Option<Value>,
}

impl Elements {
    /// The elements of the list of this name.
    ///
    /// # Errors
    /// An invalid argument that names the list and what is expected, where it is none.
    pub(super) fn list(self, name: &str, expected: &str) -> Result<Vec<Element>, Failure> {
        match self.instead {
            Some(other) => Err(wrong(name, expected, &other)),
            None => Ok(self.list),
        }
    }
}

impl<'de> Deserialize<'de> for Elements {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = deserializer.deserialize_any(ReadVisitor { keeps_lists: true })?;
        let (list, instead) = match read {
            Read::List(list) => (list, None),
            Read::Object(_) => (Vec::new(), Some(Value::Object(Map::new()))),
            Read::Scalar(Value::Null) => (Vec::new(), None),
            Read::Scalar(other) => (Vec::new(), Some(other)),
        };
        Ok(Self { list, instead })
    }
}

/// An object, or what stands in its place; of a list, that it is one.
#[derive(Debug)]
pub(super) struct Element(Result<Fields, Value>);

impl Element {
    /// The fields of the element at `index` of the list of this name.
    ///
    /// # Errors
    /// An invalid argument that names the list and the place, where it is no object.
    pub(super) fn fields(self, list: &str, index: usize) -> Result<Fields, Failure> {
        self.0.map_err(|other| Failure {
            field: Some(list.to_owned()),
            ..wrong(&format!("{list}[{index}]"), "an object", &other)
        })
    }
}

impl<'de> Deserialize<'de> for Element {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let read = deserializer.deserialize_any(ReadVisitor { keeps_lists: false })?;
        Ok(Self(match read {
            Read::Object(fields) => Ok(fields),
            Read::List(_) => Err(Value::Array(Vec::new())),
            Read::Scalar(other) => Err(other),
        }))
    }
}

/// What was read, whatever it is.
enum Read {
    Object(Fields),
    List(Vec<Element>),
    Scalar(Value),
}

struct ReadVisitor {
    /// What is in a list is kept; else only that it is one.
    keeps_lists: bool,
}

impl<'de> Visitor<'de> for ReadVisitor {
    type Value = Read;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Read, A::Error> {
        FieldsVisitor.visit_map(map).map(Read::Object)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Read, A::Error> {
        let mut kept = Vec::new();
        if self.keeps_lists {
            while let Some(element) = list.next_element::<Element>()? {
                kept.push(element);
            }
        } else {
            while list.next_element::<IgnoredAny>()?.is_some() {}
        }
        Ok(Read::List(kept))
    }

    fn visit_unit<E: Error>(self) -> Result<Read, E> {
        Ok(Read::Scalar(Value::Null))
    }

    fn visit_bool<E: Error>(self, truth: bool) -> Result<Read, E> {
        Ok(Read::Scalar(truth.into()))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<Read, E> {
        Ok(Read::Scalar(number.into()))
    }

    fn visit_u64<E: Error>(self, number: u64) -> Result<Read, E> {
        Ok(Read::Scalar(number.into()))
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<Read, E> {
        Ok(Read::Scalar(number.into()))
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Read, E> {
        Ok(Read::Scalar(text.into()))
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

    #[test]
    fn what_is_no_list_is_named_and_null_is_an_empty_one() {
        let list = |body: &str| {
            let read: Elements = serde_json::from_str(body).unwrap();
            read.list("tasks", "a list")
        };
        assert_eq!(list(r#"[{"a": 1}, 7, [[8]]]"#).unwrap().len(), 3);
        assert!(list("[]").unwrap().is_empty() && list("null").unwrap().is_empty());
        for (body, is) in [
            ("5", "5"),
            ("\"x\"", "\"x\""),
            ("{\"0\": {\"a\": 1}}", "an object"),
            ("false", "false"),
            ("-1", "-1"),
            ("2.5", "2.5"),
        ] {
            let refused = list(body).unwrap_err();
            assert_eq!(refused.field.as_deref(), Some("tasks"), "{body}");
            assert_eq!(refused.message, format!("tasks must be a list, not {is}"));
        }
    }
}
