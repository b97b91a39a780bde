//! AWS Signature Version 4 for one kind of request: no query, all headers given, a body that is there
//! (docs.aws.amazon.com, "Create a signed AWS API request").

use aws_lc_rs::{digest, hmac};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use secrecy::{ExposeSecret as _, SecretString};
use zeroize::Zeroizing;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";

/// Who signs.
#[derive(Debug, Clone)]
pub(crate) struct Credentials {
    pub(crate) access_key_id: String,
    pub(crate) secret_access_key: SecretString,
    /// Of credentials that were lent.
    pub(crate) session_token: Option<SecretString>,
}

/// What is signed.
pub(crate) struct Signed<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a str,
    /// Lower case, in the order of their names.
    pub(crate) headers: &'a [(&'a str, &'a str)],
    pub(crate) body: &'a [u8],
}

/// The time as `x-amz-date` has it.
pub(crate) fn amz_date(at: Timestamp) -> String {
    at.to_zoned(TimeZone::UTC)
        .strftime("%Y%m%dT%H%M%SZ")
        .to_string()
}

/// The value of `Authorization`; `date` is that of the header `x-amz-date`.
pub(crate) fn authorization(
    request: &Signed<'_>,
    credentials: &Credentials,
    (region, service): (&str, &str),
    date: &str,
) -> String {
    let day = date.get(..8).unwrap_or_default();
    let scope = [day, region, service, "aws4_request"].join("/");
    let names: Vec<&str> = request.headers.iter().map(|(name, _)| *name).collect();
    let names = names.join(";");
    let lines = request
        .headers
        .iter()
        .map(|(name, value)| format!("{name}:{}\n", value.trim()));
    let canonical = [
        request.method,
        request.path,
        "",
        &lines.collect::<String>(),
        &names,
        &sha256(request.body),
    ]
    .join("\n");
    let signed = [ALGORITHM, date, &scope, &sha256(canonical.as_bytes())].join("\n");
    let secret = ["AWS4", credentials.secret_access_key.expose_secret()].concat();
    let mut key = Zeroizing::new(secret.into_bytes());
    for part in [day, region, service, "aws4_request"] {
        key = Zeroizing::new(mac(&key, part).as_ref().to_vec());
    }
    let signature = hex::encode(mac(&key, &signed));
    let id = &credentials.access_key_id;
    format!("{ALGORITHM} Credential={id}/{scope}, SignedHeaders={names}, Signature={signature}")
}

fn sha256(bytes: &[u8]) -> String {
    hex::encode(digest::digest(&digest::SHA256, bytes))
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    // AWS's own test suite for Signature Version 4: `get-vanilla` and `post-vanilla`.
    #[test]
    fn signatures_are_those_of_awss_test_suite() {
        let credentials = Credentials {
            access_key_id: "AKIDEXAMPLE".to_owned(),
            secret_access_key: "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY".into(),
            session_token: None,
        };
        let date = amz_date("2015-08-30T12:36:00Z".parse().unwrap());
        assert_eq!(date, "20150830T123600Z");
        for (method, signature) in [
            (
                "GET",
                "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31",
            ),
            (
                "POST",
                "5da7c1a2acd57cee7505fc6676e4e544621c30862966e37dddb68e92efbe5d6b",
            ),
        ] {
            let request = Signed {
                method,
                path: "/",
                headers: &[("host", "example.amazonaws.com"), ("x-amz-date", &date)],
                body: b"",
            };
            let value = authorization(&request, &credentials, ("us-east-1", "service"), &date);
            let expected = format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, \
                 SignedHeaders=host;x-amz-date, Signature={signature}"
            );
            assert_eq!(value, expected);
        }
        let shown = format!("{credentials:?}");
        assert!(!shown.contains("wJalr"), "{shown}");
    }
}
