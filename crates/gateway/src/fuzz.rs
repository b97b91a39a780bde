//! Everything here that reads what callers send, for the crate `fuzz-edge`. Not for anyone else.

use axum::extract::Query;
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, Version};
use bytes::Bytes;
use contract::{Failure, limits, v1, validate};
use prost::Message as _;

use crate::json::Fields;
use crate::query::Parameters;
use crate::{auth, dashscope, list, oip, openai, records, tasks};

/// A reader's name, good inputs, and the reader: it says whether it took an input, and panics when it took what it may not.
pub type Target = (&'static str, Vec<Vec<u8>>, Box<dyn Fn(&[u8]) -> bool>);

/// All of them.
pub fn targets() -> Vec<Target> {
    let mut targets = vec![
        target("own JSON", OWN, own),
        target("batch JSON", BATCH, many),
        target("headers", HEADERS, headers),
        target("query", QUERIES, query),
        binary("SubmitTask", messages(), submission),
        binary("SubmitBatch", batches(), submissions),
    ];
    targets.extend(openai::fuzz::targets());
    targets.extend(dashscope::fuzz::targets());
    targets.extend(oip::fuzz::targets());
    targets
}

/// A reader of texts.
pub(crate) fn target(
    name: &'static str,
    seeds: &[&str],
    read: fn(&[u8]) -> Result<(), Failure>,
) -> Target {
    let seeds = seeds.iter().map(|seed| seed.as_bytes().to_vec());
    binary(name, seeds.collect(), read)
}

/// A reader of anything.
pub(crate) fn binary(
    name: &'static str,
    seeds: Vec<Vec<u8>>,
    read: fn(&[u8]) -> Result<(), Failure>,
) -> Target {
    let told = move |input: &[u8]| match read(input) {
        Ok(()) => true,
        Err(failure) => {
            // What is said to the caller is short and plain, whatever was sent.
            assert!(failure.message.len() < 2000, "{failure}");
            assert!(failure.field.is_none_or(|field| field.len() < 400));
            false
        }
    };
    (name, seeds, Box::new(told))
}

/// Checks a task as every dialect does, and then, by other means, that it is within the limits.
pub(crate) fn checked(task: &v1::SubmitTask) -> Result<(), Failure> {
    validate(task)?;
    let prompts = [&task.prompt, &task.negative_prompt];
    assert!(
        prompts
            .iter()
            .all(|text| text.len() <= limits::MAX_PROMPT_BYTES)
            && !task.prompt.trim().is_empty()
    );
    assert!(
        task.model.len() <= limits::MAX_MODEL_BYTES && task.user.len() <= limits::MAX_USER_BYTES
    );
    assert!(task.idempotency_key.len() <= limits::MAX_IDEMPOTENCY_KEY_BYTES);
    assert!(!task.idempotency_key.contains(char::is_control));
    assert!(task.images <= limits::MAX_IMAGES && task.partial_images <= limits::MAX_PARTIAL_IMAGES);
    assert!(
        task.guidance_scale
            .is_none_or(|scale| scale.is_finite() && scale >= 0.0)
    );
    assert!(
        task.guidance_rescale
            .is_none_or(|share| (0.0..=1.0).contains(&share))
    );
    assert!(
        task.output_compression
            .is_none_or(|level| (1..=100).contains(&level))
    );
    assert!(task.style_tags.len() <= limits::MAX_STYLE_TAGS);
    let fits = |tag: &String| (1..=limits::MAX_STYLE_TAG_BYTES).contains(&tag.len());
    assert!(task.style_tags.iter().all(fits));
    // As large as it may be, it fits the broker's messages many times.
    assert!(task.encoded_len() < 32 * 1024);
    // Whoever reads it next reads the same.
    let again = v1::SubmitTask::decode(task.encode_to_vec().as_slice());
    assert_eq!(again.as_ref(), Ok(task));
    Ok(())
}

const OWN: &[&str] = &[
    r#"{"prompt":"a cat"}"#,
    r#"{"model":"m","prompt":"a cat","negative_prompt":"dog","width":64,"height":96,"images":2,"seed":18446744073709551615,
       "steps":20,"guidance_scale":7.5,"scheduler":"dpm++2m","quality":"hd","output_format":"webp","output_compression":80,
       "partial_images":3,"style_tags":["3d","b"],"user":"u","prompt_syntax":"weighted","guidance_rescale":0.7}"#,
    r#"{"prompt":"\u732b \ud83d\ude00 e\u0301","seed":null,"style_tags":[]}"#,
];

fn own(input: &[u8]) -> Result<(), Failure> {
    let written = contract::json::submission(Fields::parse(input)?, String::new())?;
    checked(&written.task)
}

const BATCH: &[&str] = &[
    r#"{"tasks":[{"prompt":"a cat","idempotency_key":"k"},{"prompt":"b","images":3},{"promt":"typo"}]}"#,
    r#"{"tasks":[{"prompt":"a cat"}]}"#,
    r#"{"tasks":[7,{"prompt":"a cat"},null,[{}]]}"#,
];

fn many(input: &[u8]) -> Result<(), Failure> {
    let tasks = contract::json::submissions(input)?;
    assert!((1..=limits::MAX_BATCH_TASKS).contains(&tasks.len()));
    for task in tasks {
        // Each is refused by itself.
        let _ = task.and_then(|written| checked(&written.task));
    }
    Ok(())
}

/// As on the wire: a request line, and header fields.
const HEADERS: &[&str] = &[
    "GET /v1/models\nhost: [::1]:8080\nauthorization: Bearer ink_prod-a_0123456789abcdef",
    "POST /v1/tasks?a=b&c=%20d\nx-app-key: prod-a\nx-timestamp: 1700000000\nx-nonce: abcdefghijklmnop\nx-signature: 00ff\n\
     x-content-sha256: e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855\nidempotency-key: k",
    "POST http://a.example/v1/tasks\nhost: a.example:80\nx-app-key: prod-a\nx-timestamp: 1700000000\nx-signature: 00ff\ngrpc-timeout: 5S",
    "POST /v1/tasks\nauthorization: bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.\ncontent-type: application/json; charset=utf-8\n\
     content-encoding: identity",
];

fn headers(input: &[u8]) -> Result<(), Failure> {
    let mut lines = input.split(|byte| *byte == b'\n');
    let line = lines.next().unwrap_or_default();
    let mut words = line.splitn(2, |byte| *byte == b' ');
    let mut word = || words.next().unwrap_or_default();
    let method = Method::from_bytes(word()).unwrap_or_default();
    let uri = Uri::try_from(word()).unwrap_or_default();
    let mut headers = HeaderMap::new();
    for line in lines {
        let mut parts = line.splitn(2, |byte| *byte == b':');
        let mut part = || parts.next().unwrap_or_default().trim_ascii();
        // What is no header field does not come this far.
        let field = HeaderName::from_bytes(part())
            .ok()
            .zip(HeaderValue::from_bytes(part()).ok());
        if let Some((name, value)) = field {
            headers.append(name, value);
        }
    }
    let timeout = headers
        .get("grpc-timeout")
        .and_then(|value| value.to_str().ok());
    let _ = timeout.and_then(rpc::deadline::parse);
    let _ = crate::heads::check(&headers);
    for version in [Version::HTTP_11, Version::HTTP_2] {
        let _ = crate::heads::addressed(version, &uri, &headers);
    }
    let _ = crate::json::check_media_type(&headers);
    let key = tasks::idempotency_key(&headers)?;
    assert!(key.is_ascii());
    let proven = auth::proven_by(&method, &uri, &headers);
    let _ = auth::proof_of_message(&headers);
    proven.map(|_| ())
}

const QUERIES: &[&str] = &[
    "limit=5&cursor=abc&phase=queued",
    "limit=%31%30",
    "cursor=a+b%2Bc",
    "",
];

fn query(input: &[u8]) -> Result<(), Failure> {
    let text = String::from_utf8_lossy(input);
    let uri = Uri::builder().path_and_query(format!("/?{text}")).build();
    let page = list::page(Parameters::of(&uri.unwrap_or_default())?)?;
    assert!((1..=limits::MAX_PAGE_SIZE).contains(&page.page_size));
    dashscope::fuzz::query(input)
}

/// What an extractor reads of a query.
pub(crate) fn read<T: serde::de::DeserializeOwned>(query: &[u8]) -> Result<T, Failure> {
    let text = String::from_utf8_lossy(query);
    let uri = Uri::builder().path_and_query(format!("/?{text}")).build();
    tasks::read_query(Query::try_from_uri(&uri.unwrap_or_default()))
}

/// The names and values that handlers see of a query; none where it cannot stand in a request.
pub fn read_query(query: &str) -> Option<Vec<(String, String)>> {
    let uri = Uri::builder()
        .path_and_query(format!("/?{query}"))
        .build()
        .ok()?;
    // A `#` would end it.
    (uri.query() == Some(query))
        .then(|| read(query.as_bytes()).ok())
        .flatten()
}

fn messages() -> Vec<Vec<u8>> {
    let read = |input: &str| {
        contract::json::submission(Fields::parse(input.as_bytes())?, "key".to_owned())
    };
    let tasks = OWN.iter().filter_map(|input| read(input).ok());
    let tasks: Vec<_> = tasks.map(|written| written.task).collect();
    let request = |task: &v1::SubmitTask| v1::SubmitRequest {
        task: Some(task.clone()),
    };
    let mut all: Vec<_> = tasks
        .iter()
        .map(|task| request(task).encode_to_vec())
        .collect();
    let source = v1::Source {
        image_key: "inputs/acme/0123".to_owned(),
        mask_key: "inputs/acme/4567".to_owned(),
        strength: Some(0.5),
    };
    let edit = v1::SubmitTask {
        source: Some(source),
        ..tasks[0].clone()
    };
    all.push(request(&edit).encode_to_vec());
    all
}

fn submission(input: &[u8]) -> Result<(), Failure> {
    let unread = |_| Failure::invalid("message", "cannot be read");
    let bytes = Bytes::copy_from_slice(input);
    let request = v1::SubmitRequest::decode(bytes).map_err(unread)?;
    checked(&request.task.unwrap_or_default())
}

/// Of one task, and of as many as there may be.
fn batches() -> Vec<Vec<u8>> {
    // The tasks stand in the field that one stands in by itself.
    let one = messages();
    let most = one[0].repeat(limits::MAX_BATCH_TASKS);
    one.into_iter().chain([most]).collect()
}

fn submissions(input: &[u8]) -> Result<(), Failure> {
    let counted = records::check(records::SUBMIT_BATCH, input, 1000);
    // Whatever pieces it comes in.
    let pieces = records::check(records::SUBMIT_BATCH, input, 3);
    assert_eq!(counted.is_ok(), pieces.is_ok());
    counted?;
    let unread = |_| Failure::invalid("message", "cannot be read");
    let batch = v1::SubmitBatchRequest::decode(input).map_err(unread)?;
    assert!(batch.tasks.len() <= limits::MAX_BATCH_TASKS);
    for task in &batch.tasks {
        let _ = checked(task);
    }
    Ok(())
}
