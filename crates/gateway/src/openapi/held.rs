//! Holds the schema of a request against the decoder that it was made of: at each limit, one beyond it, and with each kind of value.

use contract::Failure;
use serde_json::{Value, json};
use utoipa::openapi::{RefOr, Schema};

use super::schema::RULES;

type Decode<'a> = &'a dyn Fn(&[u8]) -> Result<(), Failure>;

/// Goes over every field of the schema, inside objects and lists too. `sample` is a request that is taken, with an object for each
/// object whose fields are to be gone over.
///
/// # Panics
/// Where the schema and the decoder disagree.
pub(crate) fn held_against_its_decoder(schema: &RefOr<Schema>, sample: &Value, decode: Decode<'_>) {
    let schema = serde_json::to_value(schema).expect("a schema is JSON");
    let takes = |request: &Value| decode(request.to_string().as_bytes());
    takes(sample).expect("the sample is taken");
    assert!(
        !schema["properties"]
            .as_object()
            .expect("an object")
            .is_empty()
    );
    Object {
        takes: &takes,
        sample,
        place: String::new(),
    }
    .check(&schema);
}

/// Holds the rules between the fields of a schema against the decoder: of each of these requests, which are right but for the rules, both
/// must say the same. Some must be taken and some not.
///
/// # Panics
/// Where the two disagree.
pub(crate) fn rules_held_against_decoder(
    schema: &RefOr<Schema>,
    requests: &[Value],
    decode: Decode<'_>,
) {
    let schema = serde_json::to_value(schema).expect("a schema is JSON");
    let rules = schema[RULES].as_array().expect("there are rules");
    let mut taken = 0;
    for request in requests {
        let told = decode(request.to_string().as_bytes());
        let kept = rules.iter().all(|rule| keeps(request, rule));
        assert_eq!(kept, told.is_ok(), "{request}: {told:?}");
        taken += usize::from(told.is_ok());
    }
    assert!(0 < taken && taken < requests.len(), "{taken} are taken");
}

/// Whether a value is as a rule says, by the words that our rules are made of.
fn keeps(value: &Value, rule: &Value) -> bool {
    let words = rule.as_object().expect("a rule is an object");
    words.iter().all(|(word, said)| match word.as_str() {
        "not" => !keeps(value, said),
        "if" => {
            let branch = if keeps(value, said) { "then" } else { "else" };
            rule.get(branch).is_none_or(|rule| keeps(value, rule))
        }
        // With its `if`, or with `contains`.
        "then" | "else" | "minContains" | "maxContains" => true,
        "contains" => contains(value, rule),
        "items" => {
            let mut items = value.as_array().into_iter().flatten();
            items.all(|item| keeps(item, said))
        }
        "required" => {
            let mut names = said.as_array().into_iter().flatten();
            // Of what is no object nothing is required.
            !value.is_object()
                || names.all(|name| value.get(name.as_str().unwrap_or_default()).is_some())
        }
        "properties" => {
            let mut fields = said.as_object().into_iter().flatten();
            fields.all(|(name, rule)| value.get(name).is_none_or(|value| keeps(value, rule)))
        }
        "type" => said == kind_of(value),
        "enum" => said.as_array().is_some_and(|some| some.contains(value)),
        "const" => said == value,
        other => panic!("{other} is not understood here"),
    })
}

/// Whether a list holds as many that are as `contains` says as it may; what is no list does.
fn contains(value: &Value, rule: &Value) -> bool {
    let Some(items) = value.as_array() else {
        return true;
    };
    let fitting = items.iter().filter(|item| keeps(item, &rule["contains"]));
    let (least, most) = (&rule["minContains"], &rule["maxContains"]);
    let count = fitting.count() as u64;
    (least.as_u64().unwrap_or(1)..=most.as_u64().unwrap_or(u64::MAX)).contains(&count)
}

/// The type of a value, as a schema calls it.
pub(super) fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::String(_) => "string",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// Of two fields that are not given together, the one that is tried and the one that is in samples.
const EXCLUDES: &[(&str, &str)] = &[("webhook_url", "webhook"), ("images", "base_image_url")];

struct Object<'a> {
    takes: &'a dyn Fn(&Value) -> Result<(), Failure>,
    sample: &'a Value,
    /// Where the object is in the sample: a JSON pointer.
    place: String,
}

impl Object<'_> {
    fn check(&self, schema: &Value) {
        let required = schema["required"].as_array().cloned().unwrap_or_default();
        for (name, field) in schema["properties"].as_object().into_iter().flatten() {
            self.field(name, field, required.contains(&json!(name)));
        }
        let closed = schema["additionalProperties"] == json!(false);
        self.expect("no_such_field", Some(json!(1)), !closed);
    }

    fn field(&self, name: &str, schema: &Value, required: bool) {
        let kinds = kinds(schema);
        let among = |kind: &str| kinds.iter().any(|k| k == kind);
        // Required is what the sample has and is refused without.
        self.expect(name, None, !required);
        self.expect(name, Some(Value::Null), among("null"));
        // Not empty: an empty list says as little as `null` where a field is read only if it says something.
        let others = [
            ("string", json!("no such word")),
            ("boolean", json!(true)),
            ("integer", json!(1)),
            ("number", json!(0.5)),
            ("array", json!([1])),
            ("object", json!({"no_such_field": 1})),
        ];
        for (kind, value) in others {
            let fits = among(kind) || (kind == "integer" && among("number"));
            if !fits {
                self.expect(name, Some(value), false);
            }
        }
        for value in within(schema) {
            self.expect(name, Some(value), true);
        }
        for value in beyond(schema) {
            self.expect(name, Some(value), false);
        }
        let inner = format!("{}/{name}", self.place);
        let inside = |place: String| Object { place, ..*self };
        if self.sample.pointer(&inner).is_some_and(Value::is_object) {
            inside(inner).check(schema);
        } else if self
            .sample
            .pointer(&format!("{inner}/0"))
            .is_some_and(Value::is_object)
        {
            inside(format!("{inner}/0")).check(&schema["items"]);
        }
    }

    /// Sets a field of the sample, or takes it away, and looks whether the decoder takes the request then.
    fn expect(&self, name: &str, value: Option<Value>, taken: bool) {
        let mut request = self.sample.clone();
        let object = request
            .pointer_mut(&self.place)
            .and_then(Value::as_object_mut);
        let object = object.expect("the sample has an object there");
        match &value {
            Some(value) => drop(object.insert(name.to_owned(), value.clone())),
            None => drop(object.remove(name)),
        }
        // Two that exclude each other are tried one without the other.
        let excluded = EXCLUDES.iter().find(|(one, _)| *one == name);
        if let (Some((_, other)), Some(true)) = (excluded, value.as_ref().map(|v| !v.is_null())) {
            object.remove(*other);
        }
        let place = format!("{}/{name}", self.place);
        match ((self.takes)(&request), taken) {
            (Ok(()), true) | (Err(_), false) => {}
            (Ok(()), false) => panic!("{place}: the decoder takes {value:?}, the schema does not"),
            (Err(failure), true) => panic!("{place}: the schema takes {value:?}: {failure}"),
        }
    }
}

fn kinds(schema: &Value) -> Vec<String> {
    let own = match &schema["type"] {
        Value::String(kind) => vec![kind.clone()],
        Value::Array(kinds) => kinds
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    };
    let alternatives = schema["oneOf"].as_array().into_iter().flatten();
    own.into_iter()
        .chain(alternatives.flat_map(kinds))
        .collect()
}

/// Values at the limits.
fn within(schema: &Value) -> Vec<Value> {
    if let Some(words) = schema["enum"].as_array() {
        return words.clone();
    }
    let mut values = Vec::new();
    for limit in ["minimum", "maximum"] {
        values.extend(schema.get(limit).cloned());
    }
    if let Some(length) = schema["maxLength"].as_u64() {
        values.push(json!(text(schema, length)));
    }
    if let (Some(count), true) = (
        schema["maxItems"].as_u64(),
        schema["items"]["type"] == "string",
    ) {
        values.push(Value::Array(items(schema, count)));
        let longest = schema["items"]["maxLength"].as_u64();
        values.extend(longest.map(|length| json!([text(&schema["items"], length)])));
    }
    values
}

/// Values one beyond the limits.
fn beyond(schema: &Value) -> Vec<Value> {
    let mut values = Vec::new();
    if schema["enum"].is_array() {
        values.push(json!("no such word"));
    }
    if let Some(least) = schema["minimum"].as_f64() {
        values.push(json!(least as i64 - 1));
    }
    match &schema["maximum"] {
        Value::Number(most) if most.as_u64() == Some(u64::MAX) => values.push(json!(1.9e19)),
        Value::Number(most) if most.is_u64() => values.push(json!(most.as_u64().unwrap_or(0) + 1)),
        // Single precision ends where the limit is.
        Value::Number(most) => values.extend(most.as_f64().map(|most| json!(most * 1.5))),
        _ => {}
    }
    if let Some(length) = schema["maxLength"].as_u64() {
        values.push(json!(text(schema, length + 1)));
    }
    if schema["minLength"].as_u64() == Some(1) {
        values.push(json!(""));
    }
    if schema["pattern"].is_string() {
        values.push(json!(" "));
    }
    if let (Some(count), true) = (
        schema["maxItems"].as_u64(),
        schema["items"]["type"] == "string",
    ) {
        values.push(Value::Array(items(schema, count + 1)));
        let longest = schema["items"]["maxLength"].as_u64();
        values.extend(longest.map(|length| json!([text(&schema["items"], length + 1)])));
    }
    if schema["items"]["type"] == "string" {
        values.push(json!([1]));
    }
    values
}

fn text(schema: &Value, length: u64) -> String {
    let start = match schema["pattern"].as_str() {
        Some(pattern) if pattern.contains("https") => "https://",
        _ => "",
    };
    format!("{start}{}", "x".repeat(length as usize - start.len()))
}

fn items(schema: &Value, count: u64) -> Vec<Value> {
    let words = schema["items"]["enum"].as_array();
    let item = |i: usize| match words {
        Some(words) => words[i % words.len()].clone(),
        None => json!(format!("tag {i}")),
    };
    (0..count as usize).map(item).collect()
}
