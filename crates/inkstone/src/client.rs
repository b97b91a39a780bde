//! Calling a running platform's public port.

use std::future::Future;
use std::path::Path;
use std::time::Duration;

use contract::v1::image_service_client::ImageServiceClient;
use contract::v1::{CancelRequest, GetRequest, Task, TaskPhase, WatchRequest};
use rpc::{Identity, Peer, PeerSettings, RpcError, Security};
use settings::Millis;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::{Request, Response, Status};

use crate::callee::Callee;
use crate::cli::{ServerArgs, TlsArgs};
use crate::error::CliError;
use crate::follow::has_ended;
use crate::out::say;
use crate::place::Place;
use crate::span::in_words;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";
const CALL_LIMIT: &str = "30s";

/// A channel in the clear to `url`.
fn peer(url: &str) -> Result<Peer, CliError> {
    Ok(rpc::peer("server", &PeerSettings::new(url, call_limit()))?)
}

/// A channel to the public port, which may have a certificate.
pub(crate) fn public_peer(url: &str, ca: Option<&Path>) -> Result<Peer, CliError> {
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
pub(crate) fn service_peer(
    callee: &Callee,
    who: Identity,
    tls: &TlsArgs,
) -> Result<Peer, CliError> {
    let security = match &tls.tls_dir {
        Some(dir) => Security::of_folder(dir, Identity::Operator)?,
        None => Security::off(),
    };
    let settings = PeerSettings::new(callee.url.as_str(), call_limit());
    let peer = security.peer("server", who, &settings);
    peer.map_err(|error| match error {
        RpcError::NoCertificates { .. } => callee.needs_certificates(),
        error => error.into(),
    })
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
    callee: Callee,
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
        let key = match &server.key {
            Some(key) => Some(key.clone()),
            None => place.key()?,
        };
        Self::new(&url, key.ok_or(CliError::NoKey)?, server.ca.as_deref())
    }

    /// `ca`: the file with whoever has issued the certificate of an https address, if it is not one whom this machine trusts.
    pub(crate) fn new(url: &str, key: String, ca: Option<&Path>) -> Result<Self, CliError> {
        authorization(&key)?;
        let service = ImageServiceClient::new(public_peer(url, ca)?);
        Ok(Self {
            service: rpc::with_limits!(service),
            key,
            callee: Callee::public(url),
        })
    }

    /// Of the public port.
    pub(crate) fn url(&self) -> &str {
        &self.callee.url
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
        self.callee.call(call).await
    }

    /// Why a call failed, by what it has heard.
    pub(crate) fn failed(&self, status: Status) -> CliError {
        self.callee.failed(status)
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
    let how = too_late(&task, late);
    say!("{}  {}", task.id, outcome(&task, how.is_some()));
    match how {
        Some(how) => Err(CliError::HadEnded { task: task.id, how }),
        None => Ok(()),
    }
}

/// How a task is that was to be cancelled. `before`: it had ended without that, and when it had.
fn outcome(task: &Task, before: bool) -> String {
    let phase = phase(task);
    if !before {
        return phase.to_owned();
    }
    let ended = task.ended_at.as_ref();
    let ended = ended.and_then(|at| jiff::Timestamp::from_second(at.seconds).ok());
    match ended {
        Some(at) => format!("{phase} before, at {at}"),
        None => format!("{phase} before"),
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
    let wait = task.estimated_wait_ms.map(|wait| match wait {
        0 => ", begins at once".to_owned(),
        wait => format!(
            ", begins in about {}",
            in_words(Duration::from_millis(wait))
        ),
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
    fn a_cancel_of_what_was_cancelled_before_does_not_look_like_the_first() {
        let mut task = Task::default();
        task.set_phase(TaskPhase::Cancelled);
        assert_eq!(outcome(&task, false), "cancelled");
        assert_eq!(outcome(&task, true), "cancelled before");
        let at = jiff::Timestamp::from_second(1_767_323_045).unwrap();
        task.ended_at = Some(std::time::SystemTime::from(at).into());
        assert_eq!(
            outcome(&task, true),
            "cancelled before, at 2026-01-02T03:04:05Z"
        );
        assert_eq!(outcome(&task, false), "cancelled");
    }
}
