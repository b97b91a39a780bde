//! Heads that are read in one way or not at all, and where a request ends.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::Edge;

/// All that comes back on a connection on which these bytes were sent, until the gateway closes it.
async fn exchange(edge: &Edge, said: &str) -> String {
    let mut stream = TcpStream::connect(edge.address).await.unwrap();
    stream.write_all(said.as_bytes()).await.unwrap();
    let mut answers = Vec::new();
    // An end and a reset are both an end.
    let end = tokio::time::timeout(Duration::from_secs(8), stream.read_to_end(&mut answers)).await;
    assert!(end.is_ok(), "still open: {said}");
    String::from_utf8(answers).unwrap()
}

/// The statuses of the answers in a text, in their order.
fn statuses(answers: &str) -> Vec<&str> {
    let lines = answers.split("HTTP/1.").skip(1);
    lines.map(|line| &line[2..5]).collect()
}

#[tokio::test]
async fn a_request_over_http_1_1_that_does_not_name_one_host_is_refused_on_every_path() {
    let edge = Edge::start(&[]).await;
    for line in [
        "GET /healthz",
        "GET /v2/health/live",
        "GET /v1/models",
        "GET /there/is/nothing",
        "GET http://elsewhere.example/healthz",
    ] {
        for hosts in [
            "",
            "Host:\r\n",
            "Host: a b\r\n",
            "Host: a,b\r\n",
            "Host: user@a\r\n",
            "Host: a:http\r\n",
            "Host: a\r\nHost: a\r\n",
        ] {
            let request = format!("{line} HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
            let answer = exchange(&edge, &request).await;
            assert_eq!(statuses(&answer), ["400"], "{request}{answer}");
            assert!(answer.contains("Host "), "{request}{answer}");
        }
    }
    for hosts in [
        "Host: localhost\r\n",
        "Host: 10.0.0.1:8080\r\n",
        "Host: [::1]:80\r\n",
    ] {
        let request = format!("GET /healthz HTTP/1.1\r\n{hosts}Connection: close\r\n\r\n");
        let answer = exchange(&edge, &request).await;
        assert_eq!(statuses(&answer), ["200"], "{request}{answer}");
    }
    edge.stop().await;
}

#[tokio::test]
async fn a_probe_over_http_1_0_needs_no_host() {
    let edge = Edge::start(&[]).await;
    let answer = exchange(&edge, "GET /healthz HTTP/1.0\r\n\r\n").await;
    assert_eq!(statuses(&answer), ["200"], "{answer}");
    let two = "GET /healthz HTTP/1.0\r\nHost: a\r\nHost: b\r\n\r\n";
    assert_eq!(statuses(&exchange(&edge, two).await), ["400"]);
    edge.stop().await;
}

#[tokio::test]
async fn after_a_length_beside_chunks_the_connection_ends_and_nothing_behind_the_body_is_answered()
{
    let edge = Edge::start(&[]).await;
    let smuggled = "GET /healthz HTTP/1.1\r\nHost: smuggled\r\n\r\n";
    let body = format!("0\r\n\r\n{smuggled}");
    let length = body.len();
    for lengths in [
        format!("Content-Length: {length}\r\nTransfer-Encoding: chunked"),
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}"),
        "Content-Length: 0\r\nTransfer-Encoding: chunked".to_owned(),
        "Transfer-Encoding: chunked\r\nContent-Length: 0".to_owned(),
        // The last word of who sends it is not the last word here.
        format!("Transfer-Encoding: chunked\r\nContent-Length: {length}\r\nConnection: keep-alive"),
    ] {
        // Nothing is wrong with this request but its lengths: what is answered is the chunks' body.
        let request = format!("GET /healthz HTTP/1.1\r\nHost: x\r\n{lengths}\r\n\r\n{body}");
        let answers = exchange(&edge, &request).await;
        assert_eq!(statuses(&answers), ["200"], "{lengths}: {answers}");
    }
    edge.stop().await;
}
