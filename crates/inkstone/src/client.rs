//! Calling a running platform's public port.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use contract::v1::image_service_client::ImageServiceClient;
use contract::v1::{CancelRequest, GetRequest, Task, TaskPhase, WatchRequest};
use rpc::{Identity, Peer, PeerSettings, Security};
use settings::Millis;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Uri;
use tonic::{Request, Response, Status};

use crate::cli::{ServerArgs, TlsArgs};
use crate::error::CliError;
use crate::follow::has_ended;
use crate::place::Place;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
const CALL_LIMIT: &str = "30s";
/// Where the address can be given.
const URL: &str = "--url";
/// A record of TLS with a hello that is cut short: whoever speaks TLS answers with an alert, and nobody else does.
const CUT_HELLO: [u8; 10] = [22, 3, 1, 0, 5, 1, 0, 0, 1, 0];
/// How an alert begins.
const ALERT: [u8; 2] = [21, 3];
/// For that answer.
const ALERT_LIMIT: Duration = Duration::from_secs(2);

/// A channel in the clear to `url`.
pub(crate) fn peer(url: &str) -> Result<Peer, CliError> {
    Ok(rpc::peer("server", &PeerSettings::new(url, call_limit()))?)
}

/// A channel to the public port, which may have a certificate.
fn public_peer(url: &str, ca: Option<&Path>) -> Result<Peer, CliError> {
    if !url.starts_with("https://") {
        return peer(url);
    }
    let security = Security::of_public(ca).map_err(CliError::Ca)?;
    let settings = PeerSettings::new(url, call_limit());
    Ok(security.peer("server", Identity::Gateway, &settings)?)
}

fn call_limit() -> Millis {
    let limit = CALL_LIMIT.parse();
    limit.unwrap_or_else(|_| unreachable!("{CALL_LIMIT} is a duration"))
}

/// A channel to a service itself, as an operator: with certificates if there is a folder of them.
pub(crate) fn service_peer(url: &str, who: Identity, tls: &TlsArgs) -> Result<Peer, CliError> {
    let security = match &tls.tls_dir {
        Some(dir) => Security::of_folder(dir, Identity::Operator)?,
        None => Security::off(),
    };
    let settings = PeerSettings::new(url, call_limit());
    Ok(security.peer("server", who, &settings)?)
}

/// A request that carries `Authorization: Bearer …`.
pub(crate) fn with_bearer<T>(message: T, bearer: &str) -> Result<Request<T>, CliError> {
    let mut request = Request::new(message);
    request
        .metadata_mut()
        .insert("authorization", authorization(bearer)?);
    Ok(request)
}

fn authorization(bearer: &str) -> Result<MetadataValue<Ascii>, CliError> {
    let value = format!("Bearer {bearer}").parse();
    value.map_err(|_| CliError::BadKey)
}

/// The public API with a key.
#[derive(Clone)]
pub(crate) struct Client {
    service: ImageServiceClient<Peer>,
    key: String,
    pub(crate) url: String,
}

impl Client {
    /// Finds the platform and the key: what was given, else what runs on the data folder.
    pub(crate) fn find(data: &Path, server: &ServerArgs) -> Result<Self, CliError> {
        let place = Place::at(data);
        let local = place.running().map(|running| running.gateway);
        // A key of its own means a platform elsewhere; the key in the folder is good only for the one that runs there.
        let default = server.key.as_ref().map(|_| DEFAULT_URL.to_owned());
        let url = server.url.clone().or(local).or(default);
        let url = url.ok_or_else(|| CliError::NotRunning {
            data: data.to_owned(),
        })?;
        let url = if url.contains("://") {
            url
        } else {
            format!("http://{url}")
        };
        let key = server.key.clone().or_else(|| place.key());
        Self::new(&url, key.ok_or(CliError::NoKey)?, server.ca.as_deref())
    }

    /// `ca`: the file with whoever has issued the certificate of an https address, if it is not one whom this machine trusts.
    pub(crate) fn new(url: &str, key: String, ca: Option<&Path>) -> Result<Self, CliError> {
        authorization(&key)?;
        let service = ImageServiceClient::new(public_peer(url, ca)?);
        Ok(Self {
            service: rpc::with_limits!(service),
            key,
            url: url.to_owned(),
        })
    }

    pub(crate) fn service(&self) -> ImageServiceClient<Peer> {
        self.service.clone()
    }

    pub(crate) fn request<T>(&self, message: T) -> Result<Request<T>, CliError> {
        with_bearer(message, &self.key)
    }

    pub(crate) fn streaming<T>(&self, message: T) -> Result<Request<T>, CliError> {
        let mut request = rpc::streaming(message);
        request
            .metadata_mut()
            .insert("authorization", authorization(&self.key)?);
        Ok(request)
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
        let error = self.failed()(status);
        if is_told || matches!(error, CliError::WrongScheme { .. }) {
            return error;
        }
        if self.url.starts_with("http://") && speaks_tls(&self.url).await {
            return CliError::speaks_tls(&self.url, URL);
        }
        error
    }

    /// Why a call failed.
    pub(crate) fn failed(&self) -> impl FnOnce(Status) -> CliError {
        CliError::call(&self.url, URL)
    }

    pub(crate) async fn get(&self, task: &str) -> Result<Task, CliError> {
        let request = self.request(GetRequest {
            task_id: task.to_owned(),
        })?;
        let task = self.call(self.service().get(request)).await?.task;
        task.ok_or(CliError::Answer("a task that is none"))
    }

    pub(crate) async fn cancel(&self, task: &str) -> Result<Task, CliError> {
        let request = self.request(CancelRequest {
            task_id: task.to_owned(),
        })?;
        let task = self.call(self.service().cancel(request)).await?.task;
        task.ok_or(CliError::Answer("a cancel without a task"))
    }

    pub(crate) async fn watch(
        &self,
        task: &str,
    ) -> Result<tonic::Streaming<contract::v1::WatchResponse>, CliError> {
        let request = self.streaming(WatchRequest {
            task_id: task.to_owned(),
            previews: false,
        })?;
        self.call(self.service().watch(request)).await
    }
}

/// Whether TLS is spoken at an address that is given as one in the clear. A call there is sent an alert as well, but seldom hears it: a
/// connection that is closed before all of a call was read is reset, and the alert goes with it. This asks for one with nothing behind it.
async fn speaks_tls(url: &str) -> bool {
    let url = url.parse::<Uri>().unwrap_or_default();
    let (Some(host), port) = (url.host(), url.port_u16().unwrap_or(80)) else {
        return false;
    };
    // An address of IPv6 stands in brackets in a URL and nowhere else.
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let asked = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        stream.write_all(&CUT_HELLO).await.ok()?;
        let mut answer = [0; ALERT.len()];
        stream.read_exact(&mut answer).await.ok()?;
        Some(answer)
    };
    let answer = tokio::time::timeout(ALERT_LIMIT, asked).await;
    answer.ok().flatten() == Some(ALERT)
}

/// `inkstone cancel`: fails when there was nothing left to cancel.
pub(crate) async fn cancel(data: &Path, server: &ServerArgs, task: &str) -> Result<(), CliError> {
    let client = Client::find(data, server)?;
    // To the platform cancelling too late is no error: it answers with the task alone.
    let before = client.get(task).await?;
    let late = has_ended(&before);
    let task = match late {
        true => before,
        false => client.cancel(task).await?,
    };
    println!("{}  {}", task.id, phase(&task));
    match too_late(&task, late) {
        Some(how) => Err(CliError::HadEnded { task: task.id, how }),
        None => Ok(()),
    }
}

/// How a task had ended that was to be cancelled; `None` if it was cancelled. `late`: it had ended when it was first looked at. Even if
/// not, it may have ended between that and the call.
fn too_late(task: &Task, late: bool) -> Option<&'static str> {
    match task.phase() {
        TaskPhase::Succeeded => Some("had succeeded"),
        TaskPhase::Failed => Some("had failed"),
        TaskPhase::Cancelled if late => Some("had been cancelled"),
        _ => None,
    }
}

/// What is known of a task's wait.
pub(crate) fn wait(task: &Task) -> String {
    let before = task
        .queue_position
        .map(|before| format!(", {before} before it"));
    let wait = task.estimated_wait_ms.map(|wait| {
        let seconds = wait.div_ceil(1000);
        format!(", begins in about {seconds} s")
    });
    before.unwrap_or_default() + &wait.unwrap_or_default()
}

/// A task's phase in one word.
pub(crate) fn phase(task: &Task) -> &'static str {
    match task.phase() {
        TaskPhase::Queued => "queued",
        TaskPhase::Scheduled => "scheduled",
        TaskPhase::Running => "running",
        TaskPhase::Succeeded => "succeeded",
        TaskPhase::Failed => "failed",
        TaskPhase::Cancelled => "cancelled",
        TaskPhase::Unspecified => "unknown",
    }
}

#[cfg(test)]
mod tests {
    use contract::v1::ListModelsRequest;

    use super::*;

    #[tokio::test]
    async fn a_platform_that_is_not_there_is_named_with_what_to_do() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let server = ServerArgs {
            url: Some(address.to_string()),
            key: Some("ink_x".to_owned()),
            ca: None,
        };
        let client = Client::find(Path::new("nowhere"), &server).unwrap();
        let request = client.request(ListModelsRequest {}).unwrap();
        let answer = client.call(client.service().list_models(request)).await;
        let text = answer.unwrap_err().to_string();
        let url = format!("http://{address}");
        for part in [url.as_str(), "inkstone up", "--url", "refused"] {
            assert!(text.contains(part), "{text}");
        }
    }

    /// What a call to this address hears while somebody answers there.
    async fn told_at(url: &str, answering: impl Future<Output = ()>) -> String {
        let client = Client::new(url, "ink_x".to_owned(), None).unwrap();
        let request = client.request(ListModelsRequest {}).unwrap();
        let mut service = client.service();
        let told = client.call(service.list_models(request));
        tokio::select! {
            () = answering => unreachable!("it answers for ever"),
            told = told => told.unwrap_err().to_string(),
        }
    }

    /// What a call hears of one who answers every connection with these bytes.
    async fn told_by(scheme: &str, answer: &'static [u8]) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{scheme}://{}", listener.local_addr().unwrap());
        let answering = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut heard = Vec::with_capacity(4096);
                let _ = stream.read_buf(&mut heard).await;
                let _ = stream.write_all(answer).await;
                let _ = stream.shutdown().await;
                // Until the caller is gone: a reset could overtake the answer.
                let _ = stream.read_to_end(&mut heard).await;
            }
        };
        told_at(&url, answering).await
    }

    #[tokio::test]
    async fn tls_is_told_where_its_alert_was_lost_with_the_connection() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answering = async {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut first = [0];
                let _ = stream.peek(&mut first).await;
                // Closed with more to read, a connection is reset, and what was written to it is lost.
                if first != CUT_HELLO[..1] {
                    continue;
                }
                stream.read_exact(&mut [0; CUT_HELLO.len()]).await.unwrap();
                // What rustls answers to a message that it cannot read: a fatal alert, decode_error.
                let alert = b"\x15\x03\x03\x00\x02\x02\x32";
                stream.write_all(alert).await.unwrap();
            }
        };
        let told = told_at(&url, answering).await;
        assert!(told.contains("speaks TLS; say https://"), "{told}");
    }

    #[tokio::test]
    async fn an_address_with_the_wrong_scheme_is_answered_with_the_right_one() {
        // What rustls answers to what is not TLS: a fatal alert, unexpected_message.
        let told = told_by("http", b"\x15\x03\x03\x00\x02\x02\x0a").await;
        assert!(
            told.contains("speaks TLS") && told.contains("https://"),
            "{told}"
        );
        let told = told_by("https", b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        assert!(
            told.contains("does not speak TLS") && told.contains("http://"),
            "{told}"
        );
    }

    #[test]
    fn a_cancel_that_comes_too_late_says_how_the_task_had_ended() {
        let ended = |phase: TaskPhase, late| {
            let mut task = Task::default();
            task.set_phase(phase);
            too_late(&task, late)
        };
        assert_eq!(ended(TaskPhase::Cancelled, false), None);
        assert_eq!(
            ended(TaskPhase::Cancelled, true),
            Some("had been cancelled")
        );
        // It ended between the look and the call.
        assert_eq!(ended(TaskPhase::Succeeded, false), Some("had succeeded"));
        assert_eq!(ended(TaskPhase::Failed, true), Some("had failed"));
    }

    #[test]
    fn what_the_platform_itself_says_is_not_taken_for_a_broken_connection() {
        let busy = contract::Failure::unavailable("too busy", std::time::Duration::from_secs(1));
        let error = CliError::call("http://h", "--url")(busy.into());
        assert!(matches!(&error, CliError::Refused(failure) if failure.message == "too busy"));
    }
}
