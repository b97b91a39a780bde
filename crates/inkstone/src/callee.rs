//! Whom a command calls, and why a call failed: where the other end speaks TLS and the call does not, or the reverse, with what to do.

use std::future::Future;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::transport::Uri;
use tonic::{Code, Response, Status};

use crate::cli::TlsArgs;
use crate::error::CliError;

/// Where the address of the public port can be given.
const PUBLIC_URL: &str = "--url";
/// A record of TLS with a hello that is cut short: whoever speaks TLS answers with an alert, and nobody else does.
const CUT_HELLO: &[u8] = &[22, 3, 1, 0, 5, 1, 0, 0, 1, 0];
/// How an alert begins.
const ALERT: [u8; 2] = [21, 3];
/// What a caller in the clear begins with: the preface of HTTP/2, and settings with nothing in them.
const CLEAR_HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// The type of a frame with settings, with which HTTP/2 is answered; the frame's length stands before it, in three bytes.
const SETTINGS: u8 = 4;
/// For an answer to either.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// How rustls begins to say that it does not trust a certificate.
const BAD_CERTIFICATE: &str = "invalid peer certificate";

/// The other end of a command's calls.
#[derive(Debug, Clone)]
pub(crate) struct Callee {
    pub(crate) url: String,
    /// Where its address can be given.
    option: &'static str,
    tls: Tls,
}

/// When TLS is spoken with it.
#[derive(Debug, Clone, Copy)]
enum Tls {
    /// Where its address begins with https://.
    ByScheme,
    /// There are certificates: always.
    WithCertificates,
    /// There are none: never.
    WithoutCertificates,
}

impl Callee {
    /// The public port.
    pub(crate) fn public(url: &str) -> Self {
        Self {
            url: url.to_owned(),
            option: PUBLIC_URL,
            tls: Tls::ByScheme,
        }
    }

    /// A service itself; `option` can set its address.
    pub(crate) fn service(url: &str, option: &'static str, tls: &TlsArgs) -> Self {
        Self {
            url: url.to_owned(),
            option,
            tls: match &tls.tls_dir {
                Some(_) => Tls::WithCertificates,
                None => Tls::WithoutCertificates,
            },
        }
    }

    /// What a call answers.
    pub(crate) async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> Result<T, CliError> {
        match call.await {
            Ok(answer) => Ok(answer.into_inner()),
            Err(status) => Err(self.why(status).await),
        }
    }

    /// Why a call failed, the other end asked what it speaks where the call does not tell.
    async fn why(&self, status: Status) -> CliError {
        let is_told = contract::error::is_of_a_service(&status);
        let error = self.failed(status);
        let is_certain = matches!(
            error,
            CliError::WrongScheme { .. } | CliError::Untrusted { .. }
        );
        if is_told || is_certain {
            return error;
        }
        let speaks_other = match self.uses_tls() {
            true => speaks_clear(&self.url).await,
            false => speaks_tls(&self.url).await,
        };
        if speaks_other {
            return self.wrong_scheme();
        }
        error
    }

    /// Why a call failed, by what it has heard.
    pub(crate) fn failed(&self, status: Status) -> CliError {
        if contract::error::is_of_a_service(&status) {
            return CliError::Refused(status.into());
        }
        if self.shows_other(&status) {
            return self.wrong_scheme();
        }
        if status.code() != Code::Unavailable {
            return CliError::Refused(status.into());
        }
        let mut reason: &(dyn std::error::Error + 'static) = &status;
        while let Some(cause) = reason.source() {
            reason = cause;
        }
        let reason = match reason.downcast_ref::<Status>() {
            Some(status) => status.message().to_owned(),
            None => reason.to_string(),
        };
        if reason.contains(BAD_CERTIFICATE) {
            return self.untrusted(reason);
        }
        CliError::Unreachable {
            url: self.url.clone(),
            reason,
            option: self.option,
        }
    }

    /// An https:// address, and no certificates to show there.
    pub(crate) fn needs_certificates(&self) -> CliError {
        CliError::NoCertificates {
            url: self.url.clone(),
            option: self.option,
        }
    }

    fn uses_tls(&self) -> bool {
        match self.tls {
            Tls::ByScheme => self.url.starts_with("https://"),
            Tls::WithCertificates => true,
            Tls::WithoutCertificates => false,
        }
    }

    /// Whether the answer shows that the other end speaks TLS and the call does not, or the reverse.
    fn shows_other(&self, status: &Status) -> bool {
        let what = match self.uses_tls() {
            // rustls, of the first bytes of an answer in the clear.
            true => "InvalidContentType",
            // h2, which takes the head of a TLS alert (0x15 0x03 0x03) for the length of a frame.
            false => "frame with invalid size",
        };
        let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(status);
        while let Some(error) = cause {
            if error.to_string().contains(what) {
                return true;
            }
            cause = error.source();
        }
        false
    }

    /// The other end shows a certificate that is not to be trusted.
    fn untrusted(&self, reason: String) -> CliError {
        let remedy = match (self.tls, reason.contains("UnknownIssuer")) {
            (Tls::ByScheme, true) => {
                "give the file of the CA that issued it with --ca FILE (INKSTONE_CA)".to_owned()
            }
            (_, true) => {
                "ca.pem in the folder of --tls-dir must be of the CA that issued it".to_owned()
            }
            (_, false) => format!("compare it with the address given by {}", self.option),
        };
        CliError::Untrusted {
            url: self.url.clone(),
            reason,
            remedy,
        }
    }

    /// The other end speaks TLS and the call does not, or the reverse.
    fn wrong_scheme(&self) -> CliError {
        let option = self.option;
        let (speaks, remedy) = match (self.tls, self.uses_tls()) {
            (Tls::ByScheme, true) => ("does not speak TLS", format!("say http:// with {option}")),
            (Tls::ByScheme, false) => ("speaks TLS", format!("say https:// with {option}")),
            (_, true) => (
                "does not speak TLS",
                "leave out --tls-dir (INKSTONE_TLS_DIR)".to_owned(),
            ),
            (_, false) => (
                "speaks TLS",
                "give the folder of operator.inkstone's certificates with --tls-dir".to_owned(),
            ),
        };
        CliError::WrongScheme {
            url: self.url.clone(),
            speaks,
            remedy,
        }
    }
}

/// Whether TLS is spoken at an address that is called in the clear. A call there is sent an alert as well, but seldom hears it: a
/// connection that is closed before all of a call was read is reset, and the alert goes with it. This asks for one with nothing behind it.
async fn speaks_tls(url: &str) -> bool {
    answer::<{ ALERT.len() }>(url, CUT_HELLO).await == Some(ALERT)
}

/// Whether HTTP/2 is spoken in the clear at an address that is called with TLS. What such a server says to a TLS hello is lost as an
/// alert is.
async fn speaks_clear(url: &str) -> bool {
    let answer = answer::<4>(url, CLEAR_HELLO).await;
    answer.is_some_and(|head| head[0] == 0 && head[3] == SETTINGS)
}

/// The first bytes that are answered to `hello`.
async fn answer<const N: usize>(url: &str, hello: &[u8]) -> Option<[u8; N]> {
    let url = url.parse::<Uri>().ok()?;
    let host = url.host()?;
    let default = match url.scheme_str() {
        Some("https") => 443,
        _ => 80,
    };
    let port = url.port_u16().unwrap_or(default);
    // An address of IPv6 stands in brackets in a URL and nowhere else.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        stream.write_all(hello).await.ok()?;
        let mut answer = [0_u8; N];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer)
    };
    tokio::time::timeout(ANSWER_LIMIT, asked).await.ok()?
}

#[cfg(test)]
mod tests {
    use contract::v1::ListModelsRequest;
    use contract::v1::image_service_client::ImageServiceClient;
    use rpc::{Identity, Peer};
    use tokio::net::TcpListener;
    use tonic::Request;

    use crate::client::{public_peer, service_peer};

    use super::*;

    const AUTH_URL: &str = "--auth-url";
    /// What rustls answers to a message that it cannot read: a fatal alert, decode_error.
    const DECODE_ERROR: &[u8] = b"\x15\x03\x03\x00\x02\x02\x32";

    fn public(url: &str) -> (Callee, Peer) {
        (Callee::public(url), public_peer(url, None).unwrap())
    }

    fn service(url: &str) -> (Callee, Peer) {
        let clear = TlsArgs { tls_dir: None };
        let callee = Callee::service(url, AUTH_URL, &clear);
        let peer = service_peer(&callee, Identity::Auth, &clear).unwrap();
        (callee, peer)
    }

    /// What a call hears while somebody answers there.
    async fn told((callee, peer): (Callee, Peer), answering: impl Future<Output = ()>) -> String {
        let mut service = ImageServiceClient::new(peer);
        let told = callee.call(service.list_models(Request::new(ListModelsRequest {})));
        tokio::select! {
            () = answering => unreachable!("it answers for ever"),
            told = told => told.unwrap_err().to_string(),
        }
    }

    /// Answers every connection with these bytes.
    async fn answering(listener: TcpListener, answer: &[u8]) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut heard = Vec::with_capacity(4096);
            let _ = stream.read_buf(&mut heard).await;
            let _ = stream.write_all(answer).await;
            let _ = stream.shutdown().await;
            // Until the caller is gone: a reset could overtake the answer.
            let _ = stream.read_to_end(&mut heard).await;
        }
    }

    /// Answers those who say `hello` alone. Closed with more to read, a connection is reset, and what was written to it is lost.
    async fn answering_only(listener: TcpListener, hello: &[u8], answer: &[u8]) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut first = [0];
            let _ = stream.peek(&mut first).await;
            if first != hello[..1] {
                continue;
            }
            let mut heard = vec![0; hello.len()];
            stream.read_exact(&mut heard).await.unwrap();
            stream.write_all(answer).await.unwrap();
        }
    }

    async fn listen(scheme: &str) -> (TcpListener, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        (listener, url)
    }

    #[tokio::test]
    async fn tls_is_told_where_its_alert_was_lost_with_the_connection() {
        let (listener, url) = listen("http").await;
        let answers = answering_only(listener, CUT_HELLO, DECODE_ERROR);
        let told_of = told(public(&url), answers).await;
        assert!(
            told_of.contains("speaks TLS; say https:// with --url"),
            "{told_of}"
        );
        let (listener, url) = listen("http").await;
        let answers = answering_only(listener, CUT_HELLO, DECODE_ERROR);
        let told_of = told(service(&url), answers).await;
        assert!(
            told_of.contains("speaks TLS") && told_of.contains("with --tls-dir"),
            "{told_of}"
        );
    }

    #[tokio::test]
    async fn a_port_in_the_clear_is_told_where_its_answer_was_lost_with_the_connection() {
        let (listener, url) = listen("https").await;
        let settings = b"\0\0\0\x04\0\0\0\0\0";
        let answers = answering_only(listener, CLEAR_HELLO, settings);
        let told_of = told(public(&url), answers).await;
        assert!(
            told_of.contains("does not speak TLS; say http:// with --url"),
            "{told_of}"
        );
    }

    #[tokio::test]
    async fn an_address_with_the_wrong_scheme_is_answered_with_the_right_one() {
        // What rustls answers to what is not TLS: a fatal alert, unexpected_message.
        let alert = b"\x15\x03\x03\x00\x02\x02\x0a";
        let (listener, url) = listen("http").await;
        let told_of = told(public(&url), answering(listener, alert)).await;
        assert!(
            told_of.contains("speaks TLS") && told_of.contains("https://"),
            "{told_of}"
        );
        let (listener, url) = listen("https").await;
        let answers = answering(listener, b"HTTP/1.1 400 Bad Request\r\n\r\n");
        let told_of = told(public(&url), answers).await;
        assert!(
            told_of.contains("does not speak TLS") && told_of.contains("http://"),
            "{told_of}"
        );
    }

    #[test]
    fn a_service_in_the_clear_is_to_be_called_without_certificates_and_any_other_with_them() {
        let tls_dir = Some("certificates".into());
        let callee = Callee::service("http://h:1", AUTH_URL, &TlsArgs { tls_dir });
        let heard = Status::unknown("received corrupt message of type InvalidContentType");
        let told = callee.failed(heard).to_string();
        assert!(
            told.contains("does not speak TLS; leave out --tls-dir"),
            "{told}"
        );
        let clear = TlsArgs { tls_dir: None };
        let callee = Callee::service("https://h:1", AUTH_URL, &clear);
        let refused = service_peer(&callee, Identity::Auth, &clear);
        let told = refused.err().unwrap().to_string();
        for part in ["https://h:1", "--tls-dir", AUTH_URL] {
            assert!(told.contains(part), "{told}");
        }
    }

    #[test]
    fn a_certificate_of_an_unknown_issuer_is_answered_with_where_to_name_the_issuer() {
        let heard =
            |reason: &str| Status::unavailable(format!("invalid peer certificate: {reason}"));
        let told = |reason: &str| {
            Callee::public("https://h")
                .failed(heard(reason))
                .to_string()
        };
        assert!(told("UnknownIssuer").contains("with --ca FILE"));
        assert!(told("Expired").contains("not trusted (invalid peer certificate: Expired)"));
        let tls_dir = Some("certificates".into());
        let callee = Callee::service("https://h", AUTH_URL, &TlsArgs { tls_dir });
        let told = callee.failed(heard("UnknownIssuer")).to_string();
        assert!(told.contains("--tls-dir"), "{told}");
    }

    #[test]
    fn what_the_platform_itself_says_is_not_taken_for_a_broken_connection() {
        let busy = contract::Failure::unavailable("too busy", Duration::from_secs(1));
        let error = Callee::public("http://h").failed(busy.into());
        assert!(matches!(&error, CliError::Refused(failure) if failure.message == "too busy"));
    }
}
