//! How many values a text of JSON can have, told before any of them is made: a tree of them takes a hundred times the bytes of its text.

use std::slice::Iter;

/// The most values that reading a text makes: each but the first comes after a comma or an opening bracket, or after a name that does.
pub(super) fn count(text: &[u8]) -> usize {
    let (mut count, mut bytes) = (1, text.iter());
    while let Some(byte) = bytes.next() {
        match byte {
            b',' | b'[' | b'{' => count += 1,
            b'"' => pass_string(&mut bytes),
            _ => {}
        }
    }
    count
}

/// Goes on behind the quote that ends a string.
fn pass_string(bytes: &mut Iter<'_, u8>) {
    while let Some(byte) = bytes.next() {
        match byte {
            b'"' => return,
            // Whatever comes after it ends nothing.
            b'\\' => {
                bytes.next();
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::json::SUBMISSION_FIELDS;
    use crate::limits::{MAX_BATCH_TASKS, MAX_JSON_VALUES, MAX_STYLE_TAGS};
    use crate::words::{ENDS, all};

    #[test]
    fn the_largest_batch_has_less_than_half_of_the_values_that_are_taken() {
        let value = |name: &str| match name {
            "style_tags" => json!(vec!["x"; MAX_STYLE_TAGS]),
            "webhook" => json!({"url": all(ENDS), "events": vec!["x"; ENDS.len()]}),
            _ => json!("x"),
        };
        let fields = SUBMISSION_FIELDS.iter().chain(&["idempotency_key"]);
        let task: Map<_, _> = fields.map(|&name| (name.to_owned(), value(name))).collect();
        let batch = json!({"tasks": vec![task; MAX_BATCH_TASKS]}).to_string();
        let values = count(batch.as_bytes());
        assert!(values < MAX_JSON_VALUES / 2, "{values}");
    }

    /// Lists of texts, a few levels deep.
    fn lists() -> impl Strategy<Value = Value> {
        let text = "\\PC{0,8}|[\"\\\\,\\[{]{0,8}".prop_map(Value::String);
        text.prop_recursive(4, 40, 5, |inner| {
            proptest::collection::vec(inner, 1..5).prop_map(Value::Array)
        })
    }

    fn size(value: &Value) -> usize {
        let items = value.as_array().into_iter().flatten();
        1 + items.map(size).sum::<usize>()
    }

    proptest! {
        #[test]
        fn every_value_counts_once_and_nothing_that_stands_in_a_text(value in lists()) {
            prop_assert_eq!(count(value.to_string().as_bytes()), size(&value));
        }
    }
}
