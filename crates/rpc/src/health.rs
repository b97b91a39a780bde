//! Whether a service is ready, as it says itself: `grpc.health.v1` on each of our gRPC ports, and the question to a peer.
//!
//! The protocol says whether and not why, so that stands in the answer's metadata. The answer costs nothing: it is what the
//! service's own checks have found last.

use futures::stream::BoxStream;
use lifecycle::Health;
use tonic::metadata::{BinaryMetadataValue, MetadataMap};
use tonic::{Code, Request, Response, Status};
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_health::pb::health_server::{self, HealthServer};
use tonic_health::pb::{HealthCheckRequest, HealthCheckResponse};

use crate::{Peer, idempotent};

/// Why a service is not ready, in the metadata of its answer: a store's own words may have any letters.
const PROBLEM: &str = "inkstone-problem-bin";
/// The longest reason that is sent, bytes. It travels among headers, which have a limit.
const MOST_PROBLEM: usize = 1024;
/// The largest question and answer, bytes.
const SMALL_MESSAGE: usize = 4 * 1024;

/// What a service's checks say, for whoever asks.
pub(crate) struct Told(Health);

impl Told {
    /// The service that says it.
    pub(crate) fn server(health: Health) -> HealthServer<Self> {
        HealthServer::new(Self(health)).max_decoding_message_size(SMALL_MESSAGE)
    }
}

#[tonic::async_trait]
impl health_server::Health for Told {
    type WatchStream = BoxStream<'static, Result<HealthCheckResponse, Status>>;

    async fn check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        if !request.into_inner().service.is_empty() {
            let message = "readiness is told of the service as a whole: ask without a name";
            return Err(Status::not_found(message));
        }
        let problem = self.0.not_ready();
        let status = match &problem {
            None => ServingStatus::Serving,
            Some(_) => ServingStatus::NotServing,
        };
        let status = status as i32;
        let mut response = Response::new(HealthCheckResponse { status });
        if let Some(problem) = problem {
            let problem = &problem[..problem.floor_char_boundary(MOST_PROBLEM)];
            let problem = BinaryMetadataValue::from_bytes(problem.as_bytes());
            response.metadata_mut().insert_bin(PROBLEM, problem);
        }
        Ok(response)
    }

    async fn watch(
        &self,
        _: Request<HealthCheckRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("readiness is asked for by Check"))
    }
}

impl Peer {
    /// Why the peer is not ready, as it says itself; none when it is. Against one of a release that cannot be asked nothing is known.
    ///
    /// # Errors
    /// When it does not answer.
    pub async fn not_ready(&self) -> Result<Option<String>, Status> {
        let mut client = HealthClient::new(self.clone()).max_decoding_message_size(SMALL_MESSAGE);
        let question = idempotent(HealthCheckRequest::default());
        let answer = match client.check(question).await {
            Ok(answer) => answer,
            // There, nobody has this service, or nobody may call it.
            Err(status)
                if matches!(status.code(), Code::Unimplemented | Code::PermissionDenied) =>
            {
                return Ok(None);
            }
            Err(status) => return Err(status),
        };
        Ok(match answer.get_ref().status() {
            ServingStatus::Serving => None,
            _ => Some(reason(answer.metadata())),
        })
    }
}

fn reason(metadata: &MetadataMap) -> String {
    let problem = metadata.get_bin(PROBLEM).and_then(|v| v.to_bytes().ok());
    match problem {
        Some(problem) => String::from_utf8_lossy(&problem).into_owned(),
        None => "it does not say why".to_owned(),
    }
}
