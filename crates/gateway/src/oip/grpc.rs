//! The protocol over gRPC: `inference.GRPCInferenceService`.
//!
//! The server's own state needs no key, as over HTTP; everything else is let in by its headers, before a message is read. Each
//! further request of a stream is charged like a request of its own.

use std::pin::Pin;
use std::sync::Arc;

use axum::extract::State;
use axum::http::HeaderMap;
use axum::middleware::Next;
use contract::auth::RateLimit;
use contract::inference::grpc_inference_service_server::{
    GrpcInferenceService, GrpcInferenceServiceServer,
};
use contract::inference::{
    ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
    ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
    ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest,
    ServerLiveResponse, ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest,
    ServerReadyResponse,
};
use contract::{ErrorCode, Failure};
use futures::stream::{self, Stream};
use settings::ByteSize;
use tokio::time::Instant;
use tonic::{Request, Response, Status, Streaming};
use tracing::Instrument as _;

use super::infer::infer;
use super::model::{EXTENSIONS, PLATFORM, find};
use super::protobuf;
use crate::auth::{self, Admitted, identify, proof_of_message};
use crate::carried::Carried;
use crate::crowd::Network;
use crate::edge::{Edge, OpenStream};
use crate::grpc::{PREFIX_BYTES, SMALL_REQUEST, caller};
use crate::layers;
use crate::models::allowed;
use crate::problem::of_the_library;
use crate::records::{Counting, MODEL_STREAM_INFER};
use crate::revoked::{self, OpenKey};
use crate::room::Class;
use crate::tasks::{IDEMPOTENCY_KEY, idempotency_key};

/// Bytes of one request: ten prompts and what goes with them.
const MAX_REQUEST_BYTES: usize = 256 * 1024;
/// The same with what gRPC puts in front of it.
pub(crate) const MAX_REQUEST: ByteSize = ByteSize::of(MAX_REQUEST_BYTES as u64 + PREFIX_BYTES);
/// Bytes of all pictures of one answer: what one message carries.
const MAX_ANSWER_BYTES: u64 = 32 * 1024 * 1024;
/// The service's name in reflection.
pub(crate) const INFERENCE_SERVICE: &str = "inference.GRPCInferenceService";

/// The service.
pub(crate) struct Inference {
    edge: Arc<Edge>,
}

impl Inference {
    /// The service. It sends what pictures need.
    pub(crate) fn server(edge: Arc<Edge>) -> Counting<GrpcInferenceServiceServer<Self>> {
        let server = rpc::with_limits!(GrpcInferenceServiceServer::new(Self { edge }));
        Counting(server.max_decoding_message_size(MAX_REQUEST_BYTES))
    }
}

/// What needs no key, and is short.
const OPEN: [&str; 3] = [
    "/inference.GRPCInferenceService/ServerLive",
    "/inference.GRPCInferenceService/ServerReady",
    "/inference.GRPCInferenceService/ServerMetadata",
];

/// Refuses what there is no room for; the server's own state is told whatever is unread, to whoever has asked for it whole.
pub(crate) async fn shed(
    edge: State<Arc<Edge>>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    if OPEN.contains(&request.uri().path()) {
        return match layers::arrived(&edge, SMALL_REQUEST, request).await {
            Ok(request) => layers::shed_but_for_unread(edge, request, next).await,
            Err(failure) => auth::refuse(failure),
        };
    }
    layers::shed(edge, request, next).await
}

/// Lets calls through whose callers auth knows, and, for a short while, those that need no key.
pub(crate) async fn admit(
    State(edge): State<Arc<Edge>>,
    request: axum::extract::Request,
    next: Next,
) -> axum::response::Response {
    if OPEN.contains(&request.uri().path()) {
        return layers::grpc_deadline(State(edge), request, next).await;
    }
    if request.uri().path() == MODEL_STREAM_INFER
        && let Err(failure) = check_stream(request.headers())
    {
        return auth::refuse(failure);
    }
    auth::authenticate(State(edge), request, next).await
}

/// Looks for what the headers of a stream may not have, because they are those of all its requests.
///
/// # Errors
/// Unauthenticated without a proof, or with one that signs a body, which would be waited for; invalid with an idempotency key.
fn check_stream(headers: &HeaderMap) -> Result<(), Failure> {
    proof_of_message(headers)?;
    if idempotency_key(headers)?.is_empty() {
        return Ok(());
    }
    let message = "a stream has no idempotency key, which would be that of all its requests: send each as ModelInfer, with a \
                   key of its own";
    Err(Failure::invalid(IDEMPOTENCY_KEY, message))
}

/// Draws one request of a caller; beside the answer what is left of its limit, if more was charged, and the room of the pictures inside.
async fn answer(
    edge: &Arc<Edge>,
    caller: &Admitted,
    idempotency_key: &str,
    request: ModelInferRequest,
) -> Result<(ModelInferResponse, Option<RateLimit>, Option<Carried>), Failure> {
    let asked = protobuf::decode(request)?;
    let drawn = infer(edge, caller, asked, idempotency_key, MAX_ANSWER_BYTES).await?;
    Ok((protobuf::encode(drawn.answer), drawn.limit, drawn.carried))
}

/// A stream of requests on its way through.
struct Answering {
    edge: Arc<Edge>,
    headers: HeaderMap,
    from: Option<Network>,
    /// Who opened the stream, until its first request, which was charged with the opening.
    opened_by: Option<Admitted>,
    /// Of who opened it.
    key: Arc<OpenKey>,
    requests: Streaming<ModelInferRequest>,
    deadline: Instant,
    _open: OpenStream,
}

impl Answering {
    /// The answer to the next request; none when the caller has no more.
    async fn next(&mut self) -> Option<Result<ModelStreamInferResponse, Status>> {
        let drained = self.edge.drained.clone();
        let next = async {
            let request = tokio::select! {
                request = self.requests.message() => match request {
                    Ok(request) => request?,
                    Err(status) => {
                        let ours = of_the_library(MODEL_STREAM_INFER, &status);
                        return Some(Err(ours.map_or(status, Status::from)));
                    }
                },
                failure = self.key.revoked() => return Some(Err(Status::from(failure))),
            };
            let id = request.id.clone();
            let answered = async {
                let caller = match self.opened_by.take() {
                    Some(caller) => caller,
                    None => {
                        let proof = proof_of_message(&self.headers)?;
                        let known = identify(&self.edge, proof, Class::Generation, self.from);
                        Admitted::now(known.await?.0)
                    }
                };
                let answer = answer(&self.edge, &caller, "", request).await;
                // Its headers are sent, so there is no place for what is left; and it is written out, and counted by itself, in this moment.
                answer.map(|(response, _, _)| response)
            };
            Some(Ok(protobuf::streamed(answered.await, id)))
        };
        tokio::select! {
            answer = next => answer,
            () = tokio::time::sleep_until(self.deadline) => {
                let message = "the stream was open as long as one may be; open another";
                Some(Err(Failure::new(ErrorCode::DeadlineExceeded, message).into()))
            }
            () = drained.cancelled() => {
                let wait = std::time::Duration::from_secs(2);
                Some(Err(Failure::unavailable("this gateway stops; open another stream", wait).into()))
            }
        }
    }
}

type Answers = Pin<Box<dyn Stream<Item = Result<ModelStreamInferResponse, Status>> + Send>>;

#[tonic::async_trait]
impl GrpcInferenceService for Inference {
    async fn server_live(
        &self,
        _: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        Ok(Response::new(ServerLiveResponse { live: true }))
    }

    async fn server_ready(
        &self,
        _: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let ready = self.edge.health.not_ready().is_none();
        Ok(Response::new(ServerReadyResponse { ready }))
    }

    async fn server_metadata(
        &self,
        _: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        Ok(Response::new(ServerMetadataResponse {
            name: PLATFORM.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            extensions: EXTENSIONS.iter().map(|name| (*name).to_owned()).collect(),
        }))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let models = allowed(&self.edge, &caller).await?;
        let ready = find(&models, &request.name, &request.version).is_ok();
        Ok(Response::new(ModelReadyResponse { ready }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let models = allowed(&self.edge, &caller).await?;
        let model = find(&models, &request.name, &request.version)?;
        Ok(Response::new(protobuf::metadata(model)))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let models = allowed(&self.edge, &caller).await?;
        let model = find(&models, &request.name, &request.version)?;
        let config = Some(protobuf::config(model));
        Ok(Response::new(ModelConfigResponse { config }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let caller = caller(&request)?;
        let key = idempotency_key(request.metadata().as_ref())?;
        let (answer, limit, carried) =
            answer(&self.edge, &caller, &key, request.into_inner()).await?;
        let mut response = Response::new(answer);
        // For the layer that tells the caller what is left.
        response.extensions_mut().insert(limit);
        if let Some(carried) = carried {
            response.extensions_mut().insert(carried);
        }
        Ok(response)
    }

    type ModelStreamInferStream = Answers;

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let caller = caller(&request)?;
        let open = self.edge.open_stream(&caller.tenant)?;
        let answering = Answering {
            key: revoked::hold(&self.edge, &caller),
            opened_by: Some(caller),
            edge: self.edge.clone(),
            headers: request.metadata().clone().into_headers(),
            from: request.extensions().get().copied(),
            _open: open,
            deadline: Instant::now() + self.edge.http.stream_timeout.duration(),
            requests: request.into_inner(),
        };
        let span = tracing::Span::current();
        let answers = stream::unfold(Some(answering), move |state| {
            async move {
                let mut answering = state?;
                let answer = answering.next().await?;
                let goes_on = answer.is_ok().then_some(answering);
                Some((answer, goes_on))
            }
            .instrument(span.clone())
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let caller = caller(&request)?;
        let models = allowed(&self.edge, &caller).await?;
        Ok(Response::new(protobuf::index(&models)))
    }
}
