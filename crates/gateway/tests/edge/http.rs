//! Shapes over HTTP.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;

use crate::Edge;
use crate::client::{ask, send};

const JSON: &str = "Content-Type: application/json";
const KEY: &str = "Authorization: Bearer test-key";

#[tokio::test]
async fn healthz_is_exactly_three_fields_and_verbose_adds_dependencies() {
    let edge = Edge::start(&[]).await;
    let answer = ask(edge.address, "GET /healthz").await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), Some("application/json"));
    let seconds = answer.json()["uptime_seconds"].as_u64().unwrap();
    let version = env!("CARGO_PKG_VERSION");
    let expected = format!(r#"{{"status":"ok","version":"{version}","uptime_seconds":{seconds}}}"#);
    assert_eq!(answer.body, expected);
    let verbose = ask(edge.address, "GET /healthz?verbose").await.json();
    for name in ["auth", "orchestrator", "model-registry", "storage"] {
        assert!(
            verbose["dependencies"][name]["ok"].is_boolean(),
            "{verbose}"
        );
    }
    assert_eq!(verbose["dependencies"]["auth"]["ok"], false);
    edge.stop().await;
}

#[tokio::test]
async fn healthz_is_the_same_over_cleartext_http_2() {
    let edge = Edge::start(&[]).await;
    let stream = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    let io = TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http2::handshake(TokioExecutor::new(), io)
        .await
        .unwrap();
    edge.service.tasks.job("client", async move {
        let _ = connection.await;
    });
    let request = hyper::Request::get(format!("http://{}/healthz", edge.address));
    let request = request
        .header("x-request-id", "over-h2")
        .body(Empty::<bytes::Bytes>::new());
    let response = sender.send_request(request.unwrap()).await.unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["x-request-id"], "over-h2");
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert!(body.starts_with(br#"{"status":"ok""#));
    drop(sender);
    edge.stop().await;
}

#[tokio::test]
async fn a_path_that_is_not_there_is_a_problem_or_an_openai_error() {
    let edge = Edge::start(&[]).await;
    let answer = send(edge.address, "GET /v1/task", &["X-Request-ID: my-id.1"], "").await;
    assert_eq!(answer.status, 404);
    assert_eq!(
        answer.header("content-type"),
        Some("application/problem+json")
    );
    assert_eq!(answer.header("x-request-id"), Some("my-id.1"));
    let expected = json!({"type": "/docs/errors/not_found", "title": "Not found", "status": 404,
        "detail": "there is nothing at /v1/task", "instance": "my-id.1", "code": "not_found"});
    assert_eq!(answer.json(), expected);
    let base = "; the base URL of an OpenAI client ends in /v1";
    for (path, hint) in [
        (
            "/v1/images/variations",
            "; to draw from a picture, use /v1/images/edits",
        ),
        ("/v1/chat/completions", ""),
        ("/v1/responses", ""),
        ("/images/generations", base),
        ("/chat/completions", base),
    ] {
        let answer = ask(edge.address, &format!("POST {path}")).await;
        assert_eq!(answer.status, 404);
        let message = format!("there is nothing at {path}{hint}");
        let expected = json!({"error": {"message": message, "type": "invalid_request_error",
            "param": null, "code": "not_found"}});
        assert_eq!(answer.json(), expected);
    }
    let answer = ask(edge.address, "GET /models").await;
    assert_eq!(answer.status, 404);
    let shown = answer.json();
    assert!(shown["error"]["message"].as_str().unwrap().ends_with(base));
    edge.stop().await;
}

#[tokio::test]
async fn dashscope_and_inference_paths_refuse_in_the_words_of_their_clients() {
    let edge = Edge::start(&[]).await;
    let id = &["X-Request-ID: my-id.1"];
    let answer = ask(edge.address, "GET /api/v1/tasks/x/").await;
    assert_eq!(answer.status, 401);
    let answer = send(edge.address, "GET /api/v1/tasks/x", id, "").await;
    assert_eq!(answer.status, 401);
    let shown = answer.json();
    assert_eq!(shown["code"], "InvalidApiKey");
    assert_eq!(shown["request_id"], "my-id.1");
    assert!(shown["message"].as_str().unwrap().contains("Bearer"));
    let path = "POST /api/v1/services/aigc/text2image/image-synthesis";
    let answer = send(edge.address, path, &[KEY], "x").await;
    assert_eq!(answer.status, 415);
    assert_eq!(answer.json()["code"], "BadRequest.IllegalInput");
    let answer = ask(edge.address, "GET /api/v1/services/aigc/text2video").await;
    assert_eq!(answer.status, 404);
    assert_eq!(answer.json()["code"], "InvalidURL");
    // Where the package asks for a place for a local picture.
    let answer = ask(edge.address, "GET /api/v1/uploads?action=getPolicy&model=m").await;
    assert_eq!(answer.status, 400);
    let shown = answer.json();
    assert_eq!(shown["code"], "InvalidParameter");
    let message = shown["message"].as_str().unwrap();
    assert!(message.contains("data:") && message.contains("1 MiB"));
    for path in ["/v2/models/m", "/v2/models/m/versions/1/ready"] {
        let answer = ask(edge.address, &format!("GET {path}")).await;
        assert_eq!(answer.status, 401);
        assert!(answer.json()["error"].as_str().unwrap().contains("Bearer"));
    }
    edge.stop().await;
}

#[tokio::test]
async fn an_inference_server_says_without_a_key_that_it_lives_and_whether_it_is_ready() {
    let edge = Edge::start(&[]).await;
    let answer = ask(edge.address, "GET /v2/health/live").await;
    assert_eq!((answer.status, answer.json()), (200, json!({"live": true})));
    // Nobody stands behind this gateway.
    let answer = ask(edge.address, "GET /v2/health/ready").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.json()["error"], "the platform is not ready");
    assert_eq!(
        ask(edge.address, "GET /v2").await.json()["name"],
        "inkstone"
    );
    edge.stop().await;
}

#[tokio::test]
async fn a_wrong_method_is_405_with_the_right_ones() {
    let edge = Edge::start(&[]).await;
    let answer = ask(edge.address, "PUT /v1/tasks").await;
    assert_eq!(answer.status, 405);
    let allow = answer.header("allow").unwrap();
    assert!(allow.contains("GET") && allow.contains("POST"), "{allow}");
    assert_eq!(answer.json()["code"], "method_not_allowed");
    let answer = ask(edge.address, "GET /v1/images/generations").await;
    assert_eq!(answer.status, 405);
    assert_eq!(answer.header("allow"), Some("POST"));
    assert_eq!(answer.json()["error"]["code"], "method_not_allowed");
    edge.stop().await;
}

#[tokio::test]
async fn a_body_over_the_limit_is_413_and_names_the_limit() {
    let edge = Edge::start(&[("http.max_body", "1KiB")]).await;
    let body = format!("{{\"prompt\":\"{}\"}}", "x".repeat(2000));
    for (path, message) in [
        ("/v1/tasks", "/detail"),
        ("/v1/images/generations", "/error/message"),
    ] {
        let answer = send(edge.address, &format!("POST {path}"), &[JSON, KEY], &body).await;
        assert_eq!(answer.status, 413);
        let shown = answer.json();
        assert_eq!(
            shown.pointer(message).unwrap(),
            "the body must be at most 1 KiB"
        );
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_body_that_is_not_json_is_415_before_anyone_is_asked() {
    let edge = Edge::start(&[]).await;
    let answer = send(
        edge.address,
        "POST /v1/tasks",
        &[KEY, "Content-Type: text/plain"],
        "x",
    )
    .await;
    assert_eq!(answer.status, 415);
    assert!(
        answer.json()["detail"]
            .as_str()
            .unwrap()
            .contains("application/json")
    );
    let answer = send(edge.address, "POST /v1/images/generations", &[KEY], "{}").await;
    assert_eq!(answer.status, 415);
    assert_eq!(answer.json()["error"]["code"], "unsupported_media_type");
    edge.stop().await;
}

#[tokio::test]
async fn a_header_that_would_have_two_readings_is_refused_by_its_name_in_every_dialect() {
    let edge = Edge::start(&[]).await;
    let twice = [
        ["Content-Type: application/json", "Content-Type: text/plain"],
        ["Content-Encoding: identity", "content-encoding: gzip"],
        ["Idempotency-Key: a", "Idempotency-Key: b"],
        ["Host: here", "Host: there"],
    ];
    for (path, message) in [
        ("/v1/tasks", "/detail"),
        ("/v1/images/generations", "/error/message"),
        (
            "/api/v1/services/aigc/text2image/image-synthesis",
            "/message",
        ),
        ("/v2/models/m/infer", "/error"),
    ] {
        for both in twice {
            let head = [KEY, both[0], both[1]];
            let answer = send(edge.address, &format!("POST {path}"), &head, "{}").await;
            assert_eq!(answer.status, 400, "{path} {both:?}");
            let (name, _) = both[0].split_once(':').unwrap();
            let shown = answer.json();
            let shown = shown.pointer(message).unwrap().as_str().unwrap();
            let told = format!("{name} must be given once");
            assert!(shown.contains(&told), "{path}: {shown}");
        }
    }
    // Who calls is asked about by whoever lets callers in.
    let bearers = [JSON, KEY, "Authorization: Bearer other"];
    let keys = [JSON, "X-App-Key: a", "X-App-Key: b", "X-Timestamp: 1"];
    for head in [&bearers[..], &keys] {
        let answer = send(edge.address, "POST /v1/tasks", head, "{}").await;
        assert_eq!(answer.status, 401);
        let detail = answer.json()["detail"].as_str().unwrap().to_owned();
        assert!(detail.contains("more than once"), "{detail}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn without_credentials_the_answer_names_the_ways_to_show_them() {
    let edge = Edge::start(&[]).await;
    let answer = send(edge.address, "POST /v1/tasks", &[JSON], "{}").await;
    assert_eq!(answer.status, 401);
    assert!(
        answer
            .header("www-authenticate")
            .unwrap()
            .starts_with("Bearer")
    );
    let detail = answer.json()["detail"].as_str().unwrap().to_owned();
    assert!(
        detail.contains("Bearer") && detail.contains("X-App-Key"),
        "{detail}"
    );
    let answer = ask(edge.address, "GET /v1/models").await;
    assert_eq!(answer.json()["error"]["type"], "authentication_error");
    let picture = "GET /v1/tasks/0198c0de-0000-7000-8000-000000000000/images/0";
    assert_eq!(ask(edge.address, picture).await.status, 401);
    // An empty token is no token.
    assert_eq!(
        ask(edge.address, &format!("{picture}?token=")).await.status,
        401
    );
    edge.stop().await;
}

#[tokio::test]
async fn when_auth_is_not_there_the_answer_is_503_with_a_wait() {
    let edge = Edge::start(&[]).await;
    let answer = send(edge.address, "POST /v1/tasks", &[JSON, KEY], "{}").await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["code"], "unavailable");
    assert!(!answer.body.contains("127.0.0.1"), "{}", answer.body);
    let answer = send(
        edge.address,
        "POST /v1/images/generations",
        &[JSON, KEY],
        "{}",
    )
    .await;
    assert_eq!(answer.status, 503);
    assert_eq!(answer.header("retry-after"), Some("1"));
    assert_eq!(answer.json()["error"]["type"], "server_error");
    edge.stop().await;
}

#[tokio::test]
async fn a_request_id_that_is_not_sane_is_replaced() {
    let edge = Edge::start(&[]).await;
    let answer = send(edge.address, "GET /healthz", &["X-Request-ID: a b\"c"], "").await;
    let id = answer.header("x-request-id").unwrap();
    assert_eq!(id.len(), 36, "{id}");
    edge.stop().await;
}

#[tokio::test]
async fn an_error_code_leads_to_its_page() {
    let edge = Edge::start(&[]).await;
    let path = ask(edge.address, "GET /nowhere").await.json()["type"]
        .as_str()
        .unwrap()
        .to_owned();
    let page = ask(edge.address, &format!("GET {path}")).await;
    assert_eq!(page.status, 200);
    assert!(page.body.starts_with("# `not_found`"));
    assert_eq!(
        ask(edge.address, "GET /docs/errors/nonsense").await.status,
        404
    );
    let welcome = ask(edge.address, "GET /").await;
    assert!(welcome.body.contains("<title>Inkstone</title>"));
    let policy = welcome.header("content-security-policy").unwrap();
    assert!(policy.starts_with("default-src 'none'"), "{policy}");
    assert!(!welcome.body.contains("src=") && !welcome.body.contains("<script"));
    edge.stop().await;
}

#[tokio::test]
async fn stopping_with_nothing_under_way_takes_no_grace() {
    let edge = Edge::start(&[("http.drain", "8s")]).await;
    // Kept open by the client, without a request under way.
    let idle = tokio::net::TcpStream::connect(edge.address).await.unwrap();
    assert_eq!(ask(edge.address, "GET /healthz").await.status, 200);
    let began = std::time::Instant::now();
    edge.stop().await;
    assert!(
        began.elapsed() < Duration::from_secs(4),
        "{:?}",
        began.elapsed()
    );
    drop(idle);
}

#[tokio::test]
async fn pages_of_other_origins_may_call_where_the_settings_say_so_and_nowhere_else() {
    let preflight = [
        "Origin: https://studio.example.com",
        "Access-Control-Request-Method: POST",
        "Access-Control-Request-Headers: authorization,content-type",
    ];
    let (line, allowed) = ("OPTIONS /v1/tasks", "access-control-allow-origin");
    // By default no answer says a word of it.
    let edge = Edge::start(&[]).await;
    let answer = send(edge.address, line, &preflight, "").await;
    assert_eq!((answer.status, answer.header(allowed)), (405, None));
    edge.stop().await;

    let origins = (
        "http.cors.allow_origins",
        "[\"https://studio.example.com\"]",
    );
    let edge = Edge::start(&[origins]).await;
    let answer = send(edge.address, line, &preflight, "").await;
    assert_eq!(answer.status, 200);
    let own = Some("https://studio.example.com");
    assert_eq!(answer.header(allowed), own);
    let headers = answer.header("access-control-allow-headers");
    assert_eq!(headers, Some("authorization,content-type"));
    assert_eq!(answer.header("access-control-max-age"), Some("600"));
    let methods = answer.header("access-control-allow-methods").unwrap();
    assert!(methods.contains("DELETE"), "{methods}");
    assert_eq!(answer.header("access-control-allow-credentials"), None);
    // A page reads refusals too, and what stands in their heads.
    let answer = send(edge.address, "POST /v1/tasks", &[preflight[0], JSON], "{}").await;
    assert_eq!((answer.status, answer.header(allowed)), (401, own));
    let exposed = answer.header("access-control-expose-headers").unwrap();
    let exposed: Vec<_> = exposed.split(',').map(str::trim).collect();
    // All that answers say to callers, in whichever dialect; what stands in a refusal's head, among the first.
    for name in [
        "retry-after",
        "x-request-id",
        "www-authenticate",
        "allow",
        "idempotent-replayed",
        "location",
        "etag",
        "content-disposition",
        "ratelimit-limit",
        "ratelimit-remaining",
        "ratelimit-reset",
        "traceparent",
        "x-inkstone-task-id",
        "x-should-retry",
        "inference-header-content-length",
    ] {
        assert!(exposed.contains(&name), "{name} is not among {exposed:?}");
    }
    assert!(answer.header("vary").unwrap().contains("origin"));
    // Another origin's page is told nothing, and its browser keeps the answer from it.
    let other = ["Origin: https://evil.example.com", preflight[1]];
    let answer = send(edge.address, line, &other, "").await;
    assert_eq!(answer.header(allowed), None);
    edge.stop().await;
}
