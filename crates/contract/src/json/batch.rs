//! Many submissions out of their JSON: the body of `POST /v1/tasks/batch`.

use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, Visitor};
use serde_json::Value;

use super::element::{Element, Elements};
use super::{Fields, Submission, parse, submission_with_key};
use crate::limits::MAX_BATCH_TASKS;
use crate::{Failure, check_batch};

/// The one field that a batch has.
const TASKS: &str = "tasks";

/// Reads the submissions of a batch, each by itself.
///
/// # Errors
/// An invalid argument where the body is no batch, or has no task or too many; it names the field, where one is at fault.
pub fn submissions(body: &[u8]) -> Result<Vec<Result<Submission, Failure>>, Failure> {
    let Batch { tasks, fields } = parse::<Batch>(body)?;
    let mut fields = fields.once()?;
    fields.take(TASKS);
    let expected = format!("a list of 1 to {MAX_BATCH_TASKS} tasks");
    let tasks = tasks.list(TASKS, &expected)?;
    fields.nothing_else(&[TASKS])?;
    check_batch(tasks.len())?;
    let read = |(index, one): (usize, Element)| submission_with_key(one.fields(TASKS, index)?);
    Ok(tasks.into_iter().enumerate().map(read).collect())
}

/// A body, with nothing refused yet that has a name.
#[derive(Debug, Default)]
struct Batch {
    tasks: Elements,
    /// Which fields there are, without their values.
    fields: Fields,
}

impl<'de> Deserialize<'de> for Batch {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(BatchVisitor)
    }
}

struct BatchVisitor;

impl<'de> Visitor<'de> for BatchVisitor {
    type Value = Batch;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Batch, A::Error> {
        let mut batch = Batch::default();
        while let Some(name) = map.next_key::<String>()? {
            if name == TASKS {
                batch.tasks = map.next_value()?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
            batch.fields.give(name, Value::Null);
        }
        Ok(batch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ErrorCode;

    /// The field and the message of what refuses a batch as a whole.
    fn refused(body: &str) -> (String, String) {
        let failure = submissions(body.as_bytes()).unwrap_err();
        assert_eq!(failure.code, ErrorCode::InvalidArgument, "{body}");
        (failure.field.unwrap_or_default(), failure.message)
    }

    #[test]
    fn what_is_no_object_is_refused_by_itself_with_its_place() {
        // A list of batches is none, nor are the tasks alone.
        for list in [r#"[[{"prompt":"a"}]]"#, r#"[{"prompt":"a"}]"#] {
            let (field, message) = refused(list);
            assert!(
                field.is_empty() && message.contains("not a list"),
                "{message}"
            );
        }
        let body = br#"{"tasks":[{"prompt":"a"},7,{"promt":"b"},{"prompt":"c"}]}"#;
        let read = submissions(body).unwrap();
        let failures: Vec<_> = read.into_iter().map(Result::err).collect();
        assert!(failures[0].is_none() && failures[3].is_none());
        let [second, third] = [1, 2].map(|index| failures[index].as_ref().unwrap());
        assert_eq!(second.code, ErrorCode::InvalidArgument);
        assert_eq!(second.field.as_deref(), Some("tasks"));
        assert_eq!(second.message, "tasks[1] must be an object, not 7");
        assert_eq!(third.field.as_deref(), Some("promt"));
    }

    #[test]
    fn tasks_that_are_no_list_are_refused_by_name_with_the_limit() {
        for (value, is) in [
            ("5", "5"),
            ("\"x\"", "\"x\""),
            ("{}", "an object"),
            ("true", "true"),
        ] {
            let told = format!("tasks must be a list of 1 to {MAX_BATCH_TASKS} tasks, not {is}");
            let body = format!("{{\"tasks\":{value}}}");
            assert_eq!(refused(&body), (TASKS.to_owned(), told));
        }
        // As good as left out, which is as good as an empty list.
        let many = format!(
            "{{\"tasks\":[{}]}}",
            vec!["{}"; MAX_BATCH_TASKS + 1].join(",")
        );
        for (body, count) in [
            ("{}", 0),
            (r#"{"tasks":null}"#, 0),
            (r#"{"tasks":[]}"#, 0),
            (&*many, MAX_BATCH_TASKS + 1),
        ] {
            let told = format!("tasks must hold 1 to {MAX_BATCH_TASKS} tasks, not {count}");
            assert_eq!(refused(body), (TASKS.to_owned(), told));
        }
    }

    #[test]
    fn a_field_that_a_batch_does_not_have_or_has_twice_is_refused_by_name() {
        for body in [
            r#"{"tasks":[{"prompt":"a"}],"foo":{"bar":[1]}}"#,
            r#"{"foo":null,"tasks":[{"prompt":"a"}]}"#,
            r#"{"foo":[{"prompt":"a"}]}"#,
        ] {
            let told = "foo is not a field of this request; it takes tasks".to_owned();
            assert_eq!(refused(body), ("foo".to_owned(), told));
        }
        for (body, name) in [
            (
                r#"{"tasks":[{"prompt":"a"}],"tasks":[{"prompt":"b"}]}"#,
                TASKS,
            ),
            (r#"{"tasks":5,"tasks":null}"#, TASKS),
            (r#"{"foo":1,"tasks":[{"prompt":"a"}],"foo":2}"#, "foo"),
        ] {
            let told = format!("{name} is given more than once");
            assert_eq!(refused(body), (name.to_owned(), told));
        }
        // What comes behind a fault is read all the same: that it is no JSON is said first.
        let (field, message) = refused(r#"{"foo":1,"tasks":[{}"#);
        assert!(field.is_empty() && message.contains("line 1"), "{message}");
    }
}
