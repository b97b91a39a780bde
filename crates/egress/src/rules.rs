//! Which URLs and which addresses are gone to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use reqwest::Url;

use crate::address::{Network, faces, is_public};
use crate::{EgressError, EgressSettings};

/// The longest URL, bytes. Signed ones of object stores have up to two KiB.
pub(crate) const MAX_URL_BYTES: usize = 4096;

/// Where names of the machine itself lead.
const LOOPBACK: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::LOCALHOST),
    IpAddr::V6(Ipv6Addr::LOCALHOST),
];

/// What the settings say about where to go.
#[derive(Debug)]
pub(crate) struct Rules {
    https_only: bool,
    allow: Vec<Network>,
    deny: Vec<Network>,
}

impl Rules {
    pub(crate) fn new(settings: &EgressSettings) -> Self {
        Self {
            https_only: settings.https_only,
            allow: settings.allow.clone(),
            deny: settings.deny.clone(),
        }
    }

    /// Whether a connection may be made to this address.
    pub(crate) fn permit(&self, address: IpAddr) -> bool {
        let listed = |list: &[Network], face: IpAddr| list.iter().any(|n| n.contains(face));
        if faces(address).any(|face| listed(&self.deny, face)) {
            return false;
        }
        is_public(address) || faces(address).any(|face| listed(&self.allow, face))
    }

    /// Reads a URL that could be gone to, by its text alone.
    pub(crate) fn check(&self, text: &str) -> Result<Url, EgressError> {
        let wrong = |problem| Err(EgressError::Url { problem });
        if text.len() > MAX_URL_BYTES {
            return wrong("must be a URL of at most 4096 bytes");
        }
        // The parser would skip these, and what was checked would not be what is shown.
        if text.bytes().any(|b| b.is_ascii_control() || b == b' ') {
            return wrong("must be a URL without spaces and control characters");
        }
        let Ok(url) = Url::parse(text) else {
            return wrong(match self.https_only {
                true => "must be a URL such as https://example.com/path",
                false => {
                    "must be a URL such as https://example.com/path or http://example.com/path"
                }
            });
        };
        match url.scheme() {
            "https" => {}
            "http" if !self.https_only => {}
            _ if self.https_only => return wrong("must begin with https://"),
            _ => return wrong("must begin with https:// or http://"),
        }
        if !url.username().is_empty() || url.password().is_some() {
            return wrong("must have no user name and no password");
        }
        // Below lie the ports of services that were never meant for strangers' HTTP, such as mail and file shares.
        match url.port_or_known_default() {
            Some(80 | 443 | 1024..) => {}
            _ => return wrong("must have port 443, port 80 or one from 1024 on"),
        }
        let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
            return wrong("must name a host");
        };
        // An address needs no look-up, so nobody else would check it. Whatever way it was written, it is in its own now.
        let address = host.trim_matches(['[', ']']).parse::<IpAddr>();
        let inside = match address {
            Ok(address) => !self.permit(address),
            Err(_) => is_of_the_machine(host) && !LOOPBACK.iter().any(|at| self.permit(*at)),
        };
        if inside {
            let host = host.to_owned();
            return Err(EgressError::NotPublic { host });
        }
        Ok(url)
    }
}

/// Whether a name, in lower case as the parser has it, is one that leads to the machine itself wherever it is looked up (RFC 6761, 6.3).
fn is_of_the_machine(host: &str) -> bool {
    let name = host.strip_suffix('.').unwrap_or(host);
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rules(https_only: bool, allow: &[&str], deny: &[&str]) -> Rules {
        let networks = |list: &[&str]| list.iter().map(|text| text.parse().unwrap()).collect();
        Rules {
            https_only,
            allow: networks(allow),
            deny: networks(deny),
        }
    }

    #[test]
    fn a_url_is_taken_or_refused_by_its_text() {
        let open = rules(false, &[], &[]);
        for good in [
            "https://example.com",
            "https://example.com:8443/a?b#c",
            "http://example.com/x.png",
            "https://8.8.8.8/",
            "https://[2606:4700:4700::1111]:1024/",
        ] {
            assert!(open.check(good).is_ok(), "{good}");
        }
        for (bad, says) in [
            ("", "must be a URL"),
            ("example.com", "must be a URL"),
            ("/etc/passwd", "must be a URL"),
            ("https://", "must be a URL"),
            ("https://exa mple.com", "spaces"),
            ("https://example.com/\nx", "control"),
            ("\thttps://example.com", "control"),
            ("ftp://example.com", "must begin"),
            ("file:///etc/passwd", "must begin"),
            ("gopher://example.com:1024/", "must begin"),
            ("data:image/png;base64,AAAA", "must begin"),
            ("https://user@example.com", "user name"),
            ("https://:word@example.com", "user name"),
            ("https://example.com:22/", "port"),
            ("https://example.com:0/", "port"),
            ("http://example.com:25/", "port"),
            ("https://example.com:99999/", "must be a URL"),
        ] {
            let error = open.check(bad).unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
        let long = format!("https://example.com/{}", "x".repeat(MAX_URL_BYTES));
        assert!(open.check(&long).is_err());
        let error = rules(true, &[], &[])
            .check("http://example.com")
            .unwrap_err();
        assert_eq!(error.to_string(), "must begin with https://");
    }

    #[test]
    fn an_address_that_is_not_public_is_found_however_it_is_written() {
        let rules = rules(false, &[], &[]);
        for bad in [
            "http://127.0.0.1/",
            "http://127.1/",
            "http://2130706433/",
            "http://0x7f000001/",
            "http://0x7f.0.0.1/",
            "http://017700000001/",
            "http://0/",
            "http://127.0.0.1./",
            "http://%31%32%37.0.0.1/",
            "http://１２７.0.0.1/",
            "http://169.254.169.254/latest/meta-data/",
            "http://[::1]/",
            "http://[::ffff:7f00:1]/",
            "http://[0:0:0:0:0:ffff:127.0.0.1]/",
            "http://[64:ff9b::127.0.0.1]/",
            "http://[fd00:ec2::254]/",
        ] {
            let error = rules.check(bad).unwrap_err();
            assert!(
                matches!(error, EgressError::NotPublic { .. }),
                "{bad}: {error}"
            );
        }
    }

    #[test]
    fn a_name_of_the_machine_itself_is_found_by_its_text_and_another_is_left_to_the_look_up() {
        let closed = rules(true, &[], &[]);
        for bad in [
            "https://localhost/hook",
            "https://LOCALHOST:8443/",
            "https://localhost./",
            "https://a.localhost/",
            "https://a.b.LocalHost.:1024/",
            "https://%6cocalhost/",
        ] {
            let error = closed.check(bad).unwrap_err();
            assert!(
                matches!(error, EgressError::NotPublic { .. }),
                "{bad}: {error}"
            );
        }
        for name in ["localhost.example.com", "mylocalhost", "inside.test"] {
            assert!(closed.check(&format!("https://{name}/")).is_ok(), "{name}");
        }
        for network in ["127.0.0.0/8", "::1"] {
            let open = rules(true, &[network], &[]);
            assert!(open.check("https://localhost/").is_ok(), "{network}");
        }
    }

    #[test]
    fn what_is_allowed_is_gone_to_and_what_is_denied_never() {
        let rules = rules(false, &["127.0.0.0/8"], &["8.8.8.0/24", "127.0.0.9"]);
        assert!(rules.check("http://127.0.0.1:8080/").is_ok());
        assert!(rules.check("http://[::ffff:127.0.0.1]:8080/").is_ok());
        for bad in [
            "http://127.0.0.9:8080/",
            "http://10.0.0.1:8080/",
            "http://[::1]:8080/",
            "http://8.8.8.8:8080/",
            "http://[64:ff9b::808:808]:8080/",
        ] {
            assert!(rules.check(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn what_a_check_lets_through_is_public_or_a_name(text in "https?://[0-9a-fx.:\\[\\]@%]{1,24}(/\\PC{0,8})?|\\PC{0,40}") {
            if let Ok(url) = rules(false, &[], &[]).check(&text) {
                prop_assert!(matches!(url.scheme(), "http" | "https"));
                prop_assert!(url.username().is_empty() && url.password().is_none());
                let host = url.host_str().unwrap().trim_matches(['[', ']']);
                prop_assert!(host.parse().map_or(true, is_public), "{}", host);
            }
        }
    }
}
