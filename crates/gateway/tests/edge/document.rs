//! The description of what HTTP callers can reach.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::Edge;
use crate::client::{ask, send};

/// A task's id, of no task.
const ID: &str = "00000000-0000-4000-8000-000000000000";

/// Every operation of a document, with its path and method.
fn operations(document: &Value) -> Vec<(&str, String, &Value)> {
    let paths = document["paths"].as_object().unwrap();
    let of = |(path, item): (&'_ String, &'_ Value)| -> Vec<_> {
        let methods = item.as_object().unwrap().keys();
        methods
            .map(|method| (path.clone(), method.clone()))
            .collect()
    };
    let all: Vec<_> = paths.iter().flat_map(of).collect();
    let find = |(path, method): (String, String)| {
        let (path, item) = paths.get_key_value(&path).unwrap();
        (path.as_str(), method.to_uppercase(), &item[&method])
    };
    all.into_iter().map(find).collect()
}

fn references<'a>(value: &'a Value, found: &mut BTreeSet<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|inner| references(inner, found));
        }
        Value::Array(items) => items.iter().for_each(|inner| references(inner, found)),
        _ => {}
    }
}

#[tokio::test]
async fn the_document_is_whole_and_every_operation_in_it_is_there() {
    let edge = Edge::start(&[]).await;
    let answer = ask(edge.address, "GET /openapi.json").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let mut found = BTreeSet::new();
    references(&document, &mut found);
    assert!(found.len() > 30, "{found:?}");
    for place in found {
        let pointer = place.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{place} leads nowhere");
    }
    let operations = operations(&document);
    let ids: BTreeSet<_> = operations
        .iter()
        .map(|(_, _, op)| op["operationId"].as_str().unwrap())
        .collect();
    assert_eq!(
        ids.len(),
        operations.len(),
        "an operation id is used twice: {ids:?}"
    );
    for (path, method, operation) in &operations {
        let place = path.replace("{id}", ID).replace("{index}", "0");
        let place = place.replace(['{', '}'], "");
        let line = format!("{method} {place}");
        let answer = send(edge.address, &line, &["Content-Type: application/json"], "").await;
        let told = &operation["responses"][answer.status.to_string()];
        assert!(
            told.is_object(),
            "{method} {path} answers {}",
            answer.status
        );
        // Nobody is behind this gateway: what needs a caller refuses one that shows nothing.
        if !operation["security"].is_null() {
            assert_eq!(answer.status, 401, "{method} {path}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn every_refusal_is_described_in_the_words_of_its_dialect_and_explained() {
    let edge = Edge::start(&[]).await;
    let document = ask(edge.address, "GET /openapi.json").await.json();
    for (path, method, operation) in operations(&document) {
        let summary = operation["summary"].as_str().unwrap_or_default();
        assert!(!summary.is_empty(), "{method} {path} has no summary");
        for (status, answer) in operation["responses"].as_object().unwrap() {
            let (place, answer) = (format!("{method} {path} {status}"), answer);
            assert!(answer["headers"]["X-Request-ID"].is_object(), "{place}");
            if !status.starts_with(['4', '5']) {
                continue;
            }
            let means = answer["description"].as_str().unwrap();
            for line in means.split("\n\n") {
                assert!(
                    line.starts_with('`') && line.contains("`: "),
                    "{place}: {line}"
                );
            }
            let kind = if path.starts_with("/v1/images") || path.starts_with("/v1/models") {
                ("application/json", "OpenAiError")
            } else if path.starts_with("/api/v1") {
                ("application/json", "DashScopeError")
            } else if path.starts_with("/v2") {
                ("application/json", "InferError")
            } else {
                ("application/problem+json", "Problem")
            };
            let schema = &answer["content"][kind.0]["schema"]["$ref"];
            let expected = format!("#/components/schemas/{}", kind.1);
            assert_eq!(schema, &expected, "{place}");
        }
    }
    edge.stop().await;
}

#[tokio::test]
async fn the_page_of_the_document_takes_nothing_from_elsewhere() {
    let edge = Edge::start(&[]).await;
    let answer = ask(edge.address, "GET /docs").await;
    assert_eq!(answer.status, 200);
    assert_eq!(
        answer.header("content-type"),
        Some("text/html; charset=utf-8")
    );
    let policy = answer.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(answer.body.contains("fetch(\"/openapi.json\")"));
    assert!(
        !answer.body.contains("src=") && !answer.body.contains("://"),
        "something is loaded"
    );
    edge.stop().await;
}
