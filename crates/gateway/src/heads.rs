//! What a head may say only once, so that whoever reads it, a proxy in front of the gateway too, reads the same.
//!
//! Two headers are looked at elsewhere: lengths that differ end the connection in HTTP itself, and those that show who calls are
//! refused by their one reader ([`contract::proof`]). Lists that may come in several lines have no other reading and stay.
//!
//! A length beside chunks does not come this far. HTTP itself takes the length out of the head, reads the body by its chunks, and ends
//! the connection with the answer (RFC 9112, 6.3), so nothing behind the body is taken for a request. That there was one cannot be seen here.

use std::net::Ipv6Addr;

use axum::extract::Request;
use axum::http::{HeaderMap, Uri, Version, header};
use contract::Failure;

/// Whoever reads the first of two would be told another thing than whoever reads the last.
const ONCE: [&str; 9] = [
    "Host",
    "Content-Type",
    "Content-Encoding",
    "Idempotency-Key",
    "Last-Event-ID",
    "X-DashScope-Async",
    "Inference-Header-Content-Length",
    "grpc-encoding",
    "grpc-timeout",
];

/// Whether a request's head can be read in one way only.
///
/// # Errors
/// An invalid argument that names what can be read in two.
pub(crate) fn is_read_in_one_way(request: &Request) -> Result<(), Failure> {
    let headers = request.headers();
    check(headers)?;
    addressed(request.version(), request.uri(), headers)
}

/// Whether each header is there once that can mean one thing only; the same twice is refused too.
///
/// # Errors
/// An invalid argument that names the header.
pub(crate) fn check(headers: &HeaderMap) -> Result<(), Failure> {
    // Nearly every request has no name twice.
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    match ONCE.iter().find(|name| is_repeated(headers, name)) {
        Some(name) => {
            let message = format!("{name} must be given once: the header is there more than once");
            Err(Failure::invalid(*name, message))
        }
        None => Ok(()),
    }
}

/// Whether a request says in one way which host it asks: over HTTP/1.1 in `Host` (RFC 9112, 3.2), over HTTP/2 in its authority or, from a
/// proxy that translates, there (RFC 9113, 8.3.1). HTTP/1.0 need not. A whole URL in the first line goes before `Host`, whatever that says
/// (RFC 9112, 3.2.2).
///
/// # Errors
/// An invalid argument that names where the host is missing, is none, or is another one.
pub(crate) fn addressed(version: Version, uri: &Uri, headers: &HeaderMap) -> Result<(), Failure> {
    let line = if version < Version::HTTP_2 {
        "request target"
    } else {
        ":authority"
    };
    let in_line = uri.authority();
    let in_line = in_line.map(|authority| Host::read(line, authority.as_str().as_bytes()));
    let in_head = headers.get(header::HOST);
    let in_head = in_head.map(|value| Host::read("Host", value.as_bytes()));
    match (in_line.transpose()?, in_head.transpose()?) {
        (_, None) if version == Version::HTTP_11 => {
            let message =
                "Host is missing: every request but one of HTTP 1.0 says which host it asks";
            Err(Failure::invalid("Host", message))
        }
        (None, None) if version >= Version::HTTP_2 => {
            let message = ":authority is missing, and there is no Host in its place";
            Err(Failure::invalid(":authority", message))
        }
        (Some(asked), Some(head)) if version >= Version::HTTP_2 && !asked.is_same(&head) => {
            let message = "Host names another host than :authority";
            Err(Failure::invalid("Host", message))
        }
        _ => Ok(()),
    }
}

/// Which host a request asks.
struct Host<'a> {
    name: &'a str,
    port: Option<u16>,
}

impl<'a> Host<'a> {
    /// What the part of a head says that is called `part`.
    fn read(part: &str, bytes: &'a [u8]) -> Result<Self, Failure> {
        let host = std::str::from_utf8(bytes).ok().and_then(Self::parse);
        host.ok_or_else(|| {
            let message =
                format!("{part} must be a host, with a port or without, and nothing else");
            Failure::invalid(part, message)
        })
    }

    /// Reads `host [":" port]` (RFC 9110, 7.2). Of names only the characters that some name has: by the grammar `a,b` is one too, and two to
    /// whoever reads a list. No zone of an address is sent (RFC 6874, 4), nor, to a server, who logs in.
    fn parse(text: &'a str) -> Option<Self> {
        let (name, rest) = match text.strip_prefix('[') {
            Some(inside) => {
                let (address, rest) = inside.split_once(']')?;
                address.parse::<Ipv6Addr>().ok()?;
                (address, rest)
            }
            None => {
                let (name, rest) = text.split_at(text.find(':').unwrap_or(text.len()));
                let plain = |b: u8| b.is_ascii_alphanumeric() || b"-._~".contains(&b);
                if name.is_empty() || !name.bytes().all(plain) {
                    return None;
                }
                (name, rest)
            }
        };
        let port = match rest {
            "" | ":" => None,
            _ => {
                let digits = rest.strip_prefix(':')?;
                let digits = Some(digits).filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?;
                Some(digits.parse().ok()?)
            }
        };
        Some(Self { name, port })
    }

    /// Whether both are one host. A proxy may have left out a port that goes without saying.
    fn is_same(&self, other: &Host<'_>) -> bool {
        let (one, two) = (self.port, other.port);
        let unsaid = |port: Option<u16>| matches!(port, None | Some(80 | 443));
        let left_out = (one.is_none() || two.is_none()) && unsaid(one) && unsaid(two);
        self.name.eq_ignore_ascii_case(other.name) && (one == two || left_out)
    }
}

/// Whether a header is there more than once.
pub(crate) fn is_repeated(headers: &HeaderMap, name: &str) -> bool {
    headers.get_all(name).iter().nth(1).is_some()
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    fn with(name: &str, values: &[&'static str]) -> HeaderMap {
        let name: HeaderName = name.parse().unwrap();
        let mut headers = HeaderMap::new();
        for value in values {
            headers.append(name.clone(), HeaderValue::from_static(value));
        }
        headers
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_refused_by_its_name_and_lists_pass() {
        for name in ONCE {
            assert!(check(&with(name, &["a"])).is_ok(), "{name}");
            for values in [["a", "b"], ["a", "a"]] {
                let failure = check(&with(name, &values)).unwrap_err();
                assert_eq!(failure.field.as_deref(), Some(name));
                assert!(failure.message.starts_with(name), "{failure}");
            }
        }
        for list in ["accept", "cookie", "if-none-match", "x-forwarded-for"] {
            assert!(check(&with(list, &["a", "b"])).is_ok(), "{list}");
        }
    }

    /// The field that a request is refused by, if it is.
    fn refused(version: Version, uri: &str, host: Option<&'static str>) -> Option<String> {
        let host = host.map(|host| with("host", &[host])).unwrap_or_default();
        let refused = addressed(version, &uri.parse().unwrap(), &host).err()?;
        let field = refused.field.unwrap();
        assert!(refused.message.starts_with(&field), "{}", refused.message);
        Some(field)
    }

    #[test]
    fn a_host_is_one_name_or_address_with_a_port_at_most() {
        for good in [
            "x",
            "X-1_a.example:8080",
            "10.0.0.1:",
            "[::1]",
            "[fe80::1]:443",
        ] {
            for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                assert_eq!(refused(version, "/", Some(good)), None, "{good}");
            }
        }
        for bad in [
            "",
            ":80",
            "a b",
            "a,b",
            "a/b",
            "a@b",
            "a%62",
            "a:b",
            "a:+1",
            "a:65536",
            "a:1:2",
            "::1",
            "[::1",
            "[]",
            "[a]",
            "[::1]a",
            "[::1]80",
            "[fe80::1%25eth0]",
            "[::1][::1]",
        ] {
            for version in [Version::HTTP_10, Version::HTTP_11, Version::HTTP_2] {
                let field = refused(version, "/", Some(bad));
                assert_eq!(field.as_deref(), Some("Host"), "{bad:?}");
            }
        }
        let mut bytes = HeaderMap::new();
        bytes.insert(header::HOST, HeaderValue::from_bytes(b"\xe9").unwrap());
        assert!(addressed(Version::HTTP_11, &Uri::from_static("/"), &bytes).is_err());
    }

    #[test]
    fn http_1_1_names_its_host_in_the_head_and_http_2_in_its_authority_or_there() {
        let (old, one, two) = (Version::HTTP_10, Version::HTTP_11, Version::HTTP_2);
        assert_eq!(refused(old, "/", None), None);
        let none = |version, uri| refused(version, uri, None);
        assert_eq!(none(one, "/").as_deref(), Some("Host"));
        assert_eq!(none(one, "http://x/").as_deref(), Some("Host"));
        assert_eq!(none(two, "/").as_deref(), Some(":authority"));
        assert_eq!(none(two, "http://x/"), None);
        for line in ["http://u@x/", "http://u:p@x/"] {
            let field = |version| refused(version, line, Some("x"));
            assert_eq!(field(one).as_deref(), Some("request target"));
            assert_eq!(field(two).as_deref(), Some(":authority"));
        }
        for same in ["x.example", "X.Example", "x.example:80", "x.example:443"] {
            assert_eq!(
                refused(two, "http://x.example/", Some(same)),
                None,
                "{same}"
            );
        }
        for other in ["y.example", "x.example:8080"] {
            let field = refused(two, "http://x.example/", Some(other));
            assert_eq!(field.as_deref(), Some("Host"), "{other}");
            assert_eq!(refused(one, "http://x.example/", Some(other)), None);
        }
    }
}
