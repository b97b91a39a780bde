//! Heads that mean one thing to one reader and another to the next: paths, and where a request ends.

use e2e::Platform;

use super::{FRONT, exchange, statuses, under_attack};

/// A request that must never be carried out, as it would be smuggled behind another.
const SMUGGLED: &str = "GET /healthz HTTP/1.1\r\nhost: smuggled\r\n\r\n";

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_of_a_path_leads_anywhere_that_its_plain_form_does_not() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    under_attack(&platform, "paths", 16, async {
        tokio::task::block_in_place(|| paths(&platform));
    })
    .await;
}

fn paths(platform: &Platform) {
    let bearer = platform.authorization();
    let get = |target: &str| {
        let request = format!(
            "GET {target} HTTP/1.1\r\nhost: x\r\nauthorization: {bearer}\r\nconnection: close\r\n\r\n"
        );
        let answer = exchange(platform, request.as_bytes());
        let [status] = statuses(&answer)[..] else {
            panic!("{target}: {answer}");
        };
        (status, answer)
    };
    assert_eq!(get("/v1/models").0, 200);
    for (target, status) in [
        // Nobody else's idea of where a path leads.
        ("/v1/../v1/models", 404),
        ("/v1/%2e%2e/v1/models", 404),
        ("/v1/./models", 404),
        ("//v1/models", 404),
        ("/v1//models", 404),
        ("/v1/models/", 404),
        ("/V1/models", 404),
        ("/v1%2fmodels", 404),
        ("/v1\\models", 404),
        ("/v1/models;x=y", 404),
        ("/%76%31/models", 404),
        ("/v1/models%00", 404),
        // What a parameter of a path is, is looked up and never opened.
        ("/v1/tasks/..%2f..%2fetc%2fpasswd", 404),
        ("/v1/tasks/%2e%2e", 404),
        ("/v1/tasks/%00", 404),
        ("/v1/tasks/%ff%fe", 404),
        ("/v1/tasks/x/images/..%2f..%2f0", 404),
        ("/v1/models/..%2f..%2fetc%2fpasswd", 404),
        ("/v2/models/%2e%2e/versions/%2e%2e", 404),
        ("/docs/errors/..%2f..%2fCargo.toml", 404),
        // DashScope knows no 404 here, but a status UNKNOWN.
        ("/api/v1/tasks/..%2f..", 200),
        // The absolute form is the path in it, whatever host it names.
        ("http://elsewhere.example/v1/models", 200),
        ("http://elsewhere.example/v1/../v1/models", 404),
    ] {
        let (found, answer) = get(target);
        assert_eq!(found, status, "{target}: {answer}");
        assert!(!answer.contains("root:"), "{target}: {answer}");
    }
    // A path is not repeated in an answer's head.
    let (status, answer) = get("/v1/%0d%0aset-cookie:%20a=b");
    assert_eq!(status, 404);
    assert!(
        !answer.to_lowercase().contains("\r\nset-cookie"),
        "{answer}"
    );
    for target in [
        "/v1/mod\0els",
        "/v1/models\u{7f}",
        "/v1 /models",
        "v1/models",
        "",
    ] {
        let request = format!("GET {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        assert_eq!(
            statuses(&exchange(platform, request.as_bytes())),
            [400],
            "{target:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_request_is_smuggled_behind_another() {
    let platform = Platform::start_services(&FRONT, &[], false).await;
    under_attack(&platform, "smuggling", 16, async {
        tokio::task::block_in_place(|| smuggling(&platform));
    })
    .await;
}

/// The statuses of what the gateway answers to a POST of these header fields and body.
fn post(platform: &Platform, headers: &str, body: &str) -> Vec<u16> {
    let request = format!("POST /healthz HTTP/1.1\r\nhost: x\r\n{headers}\r\n\r\n{body}");
    statuses(&exchange(platform, request.as_bytes()))
}

fn smuggling(platform: &Platform) {
    let in_chunks = format!("0\r\n\r\n{SMUGGLED}");
    let length = in_chunks.len();
    // Both lengths: whichever a proxy in front has believed, nothing behind the body is taken for a request of its own.
    for headers in [
        format!("content-length: {length}\r\ntransfer-encoding: chunked"),
        format!("transfer-encoding: chunked\r\ncontent-length: {length}"),
    ] {
        let found = post(platform, &headers, &in_chunks);
        assert_eq!(found.len(), 1, "{headers}: {found:?}");
        assert!(found[0] >= 400, "{headers}: {found:?}");
    }
    for headers in [
        // Two lengths.
        "content-length: 0\r\ncontent-length: 10",
        "content-length: 0, 10",
        // Lengths that are none.
        "content-length: +0",
        "content-length: -1",
        "content-length: 0x0",
        "content-length: 0 0",
        "content-length: 99999999999999999999999",
        // Codings that are not, or not at the end, `chunked`.
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
        "transfer-encoding: \x0bchunked",
        // A field that goes on in the next line (RFC 9112, 5.2), and lines that are none.
        "x-folded: a\r\n b: c",
        "content-length : 0",
        " content-length: 0",
        "x\0: y",
        "no colon here",
    ] {
        let found = post(platform, headers, SMUGGLED);
        assert_eq!(found, [400], "{headers:?}");
    }
    // Chunks whose lengths are not what they seem.
    for body in [
        "0x0\r\n\r\n",
        "-1\r\n\r\n",
        "ffffffffffffffff1\r\n\r\n",
        "1\r\nab\r\n0\r\n\r\n",
        "\r\n\r\n",
    ] {
        let body = format!("{body}{SMUGGLED}");
        let found = post(platform, "transfer-encoding: chunked", &body);
        assert!(found.len() <= 1, "{body:?}: {found:?}");
    }
    // Lines that end with a line feed alone are lines (RFC 9112, 2.2), wherever they stand: one request, one answer each.
    let bare = "GET /healthz HTTP/1.1\nhost: x\n\n";
    assert_eq!(statuses(&exchange(platform, bare.as_bytes())), [200]);
    // HTTP/1.0 knows no chunks.
    let old = format!("POST /healthz HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n{in_chunks}");
    assert_eq!(statuses(&exchange(platform, old.as_bytes())), [400]);
    // Two requests that are two are two.
    let both = [SMUGGLED, SMUGGLED].concat();
    assert_eq!(statuses(&exchange(platform, both.as_bytes())), [200, 200]);
    // More than the head may have, in one field and in many.
    for headers in ["x".repeat(40_000), "x: y\r\n".repeat(200)] {
        let request = format!("GET /healthz HTTP/1.1\r\nhost: x\r\n{headers}: y\r\n\r\n");
        // Where the connection was closed under the sender, the answer may be lost with it.
        let found = statuses(&exchange(platform, request.as_bytes()));
        assert!(found.is_empty() || found == [431], "{found:?}");
    }
}
