//! The words that schemas are made of, and the schema of a request out of what its decoder asks for.

use contract::json::{Asked, Kind};
use serde_json::{Value, json};
use utoipa::openapi::schema::{AdditionalProperties, Array, SchemaType, Type};
use utoipa::openapi::{KnownFormat, Object, Ref, RefOr, Schema, SchemaFormat};

/// Where the rules between an object's fields are in its schema.
pub(super) const RULES: &str = "allOf";

/// A text.
pub(crate) fn text() -> Object {
    Object::with_type(Type::String)
}

/// A text that is one of a closed list.
pub(crate) fn word(words: impl IntoIterator<Item = &'static str>) -> Object {
    let mut object = text();
    object.enum_values = Some(words.into_iter().map(Value::from).collect());
    object
}

/// An address.
pub(crate) fn url() -> Object {
    formatted("uri")
}

/// A time as RFC 3339 writes it.
pub(crate) fn time() -> Object {
    formatted("date-time")
}

/// A UUID.
pub(crate) fn uuid() -> Object {
    formatted("uuid")
}

fn formatted(format: &str) -> Object {
    let mut object = text();
    object.format = Some(SchemaFormat::Custom(format.to_owned()));
    object
}

/// A file as it is.
pub(crate) fn file() -> Object {
    let mut object = text();
    object.format = Some(SchemaFormat::KnownFormat(KnownFormat::Binary));
    object
}

/// A whole number.
pub(crate) fn whole(least: u64, most: u64) -> Object {
    let mut object = Object::with_type(Type::Integer);
    object.minimum = Some(least.into());
    object.maximum = Some(most.into());
    object
}

/// A whole number of 32 bits.
pub(crate) fn count() -> Object {
    whole(0, u64::from(u32::MAX))
}

/// A number.
pub(crate) fn number() -> Object {
    Object::with_type(Type::Number)
}

/// A truth value.
pub(crate) fn truth() -> Object {
    Object::with_type(Type::Boolean)
}

/// `null` as well.
pub(crate) fn or_null(mut object: Object) -> Object {
    if let SchemaType::Type(own) = object.schema_type {
        object.schema_type = SchemaType::Array(vec![own, Type::Null]);
    }
    if let Some(values) = &mut object.enum_values {
        values.push(Value::Null);
    }
    object
}

/// A field of an answer: its name, what it means, and its schema. A name with `?` at its end is of a field that may be left out.
pub(crate) type Field = (&'static str, &'static str, RefOr<Schema>);

/// An object of an answer.
pub(crate) fn record<const N: usize>(fields: [Field; N]) -> Object {
    let mut object = Object::with_type(Type::Object);
    for (name, means, mut schema) in fields {
        describe(&mut schema, means);
        let there = name.trim_end_matches('?');
        if there == name {
            object.required.push(name.to_owned());
        }
        object.properties.insert(there.to_owned(), schema);
    }
    object
}

fn describe(schema: &mut RefOr<Schema>, means: &str) {
    if means.is_empty() {
        return;
    }
    match schema {
        RefOr::T(Schema::Object(object)) => object.description = Some(means.to_owned()),
        RefOr::T(Schema::Array(array)) => array.description = Some(means.to_owned()),
        RefOr::Ref(reference) => reference.description = means.to_owned(),
        RefOr::T(_) => {}
    }
}

/// An event of a stream, by its parts.
pub(crate) fn event(names: impl IntoIterator<Item = &'static str>) -> Object {
    record([
        ("event", "", word(names).into()),
        ("id?", "", text().into()),
        ("data", "JSON.", text().into()),
    ])
}

/// What is said of a request's fields beside what its decoder tells: their meaning, and the limits that are checked once they
/// are read. Fields are known by their paths, as in [`Asked`]; what a list holds, by the list's path with `[]` behind it.
pub(crate) struct About {
    /// Completes the schema of a field.
    pub(crate) field: fn(&str, &mut Object),
    /// How many a list may hold.
    pub(crate) most: fn(&str) -> Option<usize>,
    /// Fields that have to be there and not be `null`.
    pub(crate) required: &'static [&'static str],
}

/// Says one more rule between an object's fields, in words of JSON Schema for which the library has none, such as `not`.
pub(crate) fn rule(object: &mut Object, rule: Value) {
    // It writes whatever is there as it stands, and several words in any order: all rules are under one.
    let words = object.extensions.get_or_insert_default();
    let rules = words.entry(RULES.to_owned()).or_insert(json!([]));
    if let Value::Array(rules) = rules {
        rules.push(rule);
    }
}

/// A field that is there, of which `said` holds: a part of a rule.
pub(crate) fn with(field: &str, said: Value) -> Value {
    let fields = serde_json::Map::from_iter([(field.to_owned(), said)]);
    json!({"type": "object", "required": [field], "properties": fields})
}

/// A field of which `said` holds if it is there.
pub(crate) fn where_there(field: &str, said: Value) -> Value {
    let fields = serde_json::Map::from_iter([(field.to_owned(), said)]);
    json!({"properties": fields})
}

/// A field that is there, and not `null`.
pub(crate) fn given(field: &str) -> Value {
    with(field, json!({"not": {"const": null}}))
}

/// The schema of a request whose decoder asked for this.
pub(crate) fn request(asked: &[Asked], about: &About) -> Object {
    object(asked, "", about)
}

/// `within` is empty, or a path with its dot.
fn object(asked: &[Asked], within: &str, about: &About) -> Object {
    let mut object = Object::with_type(Type::Object);
    for Asked { path, kind } in asked {
        if *kind == Kind::Closed {
            if path == within.trim_end_matches('.') {
                object.additional_properties =
                    Some(Box::new(AdditionalProperties::FreeForm(false)));
            }
            continue;
        }
        let name = path.strip_prefix(within).filter(|name| !name.contains('.'));
        let Some(name) = name else { continue };
        let required = about.required.contains(&path.as_str());
        if required {
            object.required.push(name.to_owned());
        }
        let property = property(asked, path, kind, about, required);
        object.properties.insert(name.to_owned(), property);
    }
    object
}

fn property(
    asked: &[Asked],
    path: &str,
    kind: &Kind,
    about: &About,
    required: bool,
) -> RefOr<Schema> {
    let completed = |mut object: Object, path: &str| {
        (about.field)(path, &mut object);
        object
    };
    let many = |of: Object| {
        let mut array = Array::new(of);
        array.description = completed(Object::new(), path).description;
        array.max_items = (about.most)(path);
        if !required {
            array.schema_type = SchemaType::Array(vec![Type::Array, Type::Null]);
        }
        array
    };
    let inside = format!("{path}[]");
    let one = match kind {
        Kind::Text => text(),
        Kind::Word(words) => word(words.iter().copied()),
        Kind::Truth => truth(),
        Kind::Small => count(),
        Kind::Large => whole(0, u64::MAX),
        Kind::Number => number(),
        Kind::Object => object(asked, &format!("{path}."), about),
        Kind::Texts => return many(completed(text(), &inside)).into(),
        Kind::Words(words) => return many(completed(word(words.iter().copied()), &inside)).into(),
        Kind::Objects => return many(object(asked, &format!("{inside}."), about)).into(),
        Kind::Closed => Object::new(),
    };
    let one = completed(one, path);
    if required {
        one.into()
    } else {
        or_null(one).into()
    }
}

/// A named part of the document.
macro_rules! component {
    ($(#[$doc:meta])* $type:ident, $name:literal, [$($part:ty),* $(,)?], $schema:expr) => {
        $(#[$doc])*
        pub(crate) struct $type;

        impl utoipa::PartialSchema for $type {
            fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::Schema> {
                $schema.into()
            }
        }

        impl utoipa::ToSchema for $type {
            fn name() -> std::borrow::Cow<'static, str> {
                $name.into()
            }

            fn schemas(
                schemas: &mut Vec<(String, utoipa::openapi::RefOr<utoipa::openapi::Schema>)>,
            ) {
                let _ = &schemas;
                $(
                    let name = <$part as utoipa::ToSchema>::name().into_owned();
                    schemas.push((name, <$part as utoipa::PartialSchema>::schema()));
                    <$part as utoipa::ToSchema>::schemas(schemas);
                )*
            }
        }
    };
}
pub(crate) use component;

/// Refers to a component.
pub(crate) fn part<T: utoipa::ToSchema>() -> RefOr<Schema> {
    Ref::from_schema_name(T::name()).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_each_of_its_rules() {
        let mut object = Object::with_type(Type::Object);
        let rules = [
            json!({"not": {"required": ["a"]}}),
            json!({"required": ["b"]}),
        ];
        for said in &rules {
            rule(&mut object, said.clone());
        }
        let written = serde_json::to_value(&object).unwrap();
        assert_eq!(written, json!({"type": "object", "allOf": rules}));
    }
}
