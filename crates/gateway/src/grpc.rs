//! `inkstone.v1.ImageService`: decode, call, encode.
//!
//! The caller has been authenticated by the same layer as over HTTP and lies in the request's extensions.

use std::pin::Pin;
use std::sync::Arc;

use contract::proto::PUBLIC_DESCRIPTORS;
use contract::v1::image_service_server::{ImageService, ImageServiceServer};
use contract::{ErrorCode, Failure, v1, validate, validate_feedback};
use futures::stream::{self, Stream};
use settings::ByteSize;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use tonic_reflection::server::v1::{ServerReflection, ServerReflectionServer};
use tonic_reflection::server::v1alpha;
use tracing::Instrument as _;

use crate::auth::Admitted;
use crate::batch;
use crate::carried;
use crate::edge::Edge;
use crate::error::StartError;
use crate::models;
use crate::oip::grpc::INFERENCE_SERVICE;
use crate::platform::Reader;
use crate::records::Counting;
use crate::tasks::task_id;
use crate::watch::Watch;

/// What gRPC puts in front of a message, bytes: whether it is packed, and its length.
pub(crate) const PREFIX_BYTES: u64 = 5;
/// The largest message to what takes calls without a key, bytes.
pub(crate) const SMALL_MESSAGE: usize = 4 * 1024;
/// The same with what gRPC puts in front of it.
pub(crate) const SMALL_REQUEST: ByteSize = ByteSize::of(SMALL_MESSAGE as u64 + PREFIX_BYTES);
/// The service's name in health checks and reflection.
pub(crate) const IMAGE_SERVICE: &str = "inkstone.v1.ImageService";

/// The gRPC dialect.
pub(crate) struct Images {
    edge: Arc<Edge>,
}

impl Images {
    /// The service. It sends what a picture needs, and takes no more than over HTTP.
    pub(crate) fn server(edge: Arc<Edge>) -> Counting<ImageServiceServer<Self>> {
        let most = usize::try_from(edge.http.max_body.bytes()).unwrap_or(usize::MAX);
        let server = rpc::with_limits!(ImageServiceServer::new(Self { edge }));
        Counting(server.max_decoding_message_size(most))
    }
}

/// Reflection of the public service and of health, and of nothing that is not served here.
pub(crate) fn reflection() -> Result<ServerReflectionServer<impl ServerReflection>, StartError> {
    let server = described().build_v1().map_err(StartError::Reflection)?;
    Ok(server.max_decoding_message_size(SMALL_MESSAGE))
}

/// The same under its older name, which most clients still ask for.
pub(crate) fn reflection_v1alpha()
-> Result<v1alpha::ServerReflectionServer<impl v1alpha::ServerReflection>, StartError> {
    let server = described()
        .build_v1alpha()
        .map_err(StartError::Reflection)?;
    Ok(server.max_decoding_message_size(SMALL_MESSAGE))
}

fn described() -> tonic_reflection::server::Builder<'static> {
    tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(PUBLIC_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .with_service_name(IMAGE_SERVICE)
        .with_service_name(INFERENCE_SERVICE)
        .with_service_name("grpc.health.v1.Health")
}

/// Whom auth has vouched for.
pub(crate) fn caller<T>(request: &Request<T>) -> Result<Admitted, Status> {
    let missing = || Failure::new(ErrorCode::Unauthenticated, "the caller is not known").into();
    request
        .extensions()
        .get::<Admitted>()
        .cloned()
        .ok_or_else(missing)
}

type Events = Pin<Box<dyn Stream<Item = Result<v1::WatchResponse, Status>> + Send>>;

#[tonic::async_trait]
impl ImageService for Images {
    async fn submit(
        &self,
        request: Request<v1::SubmitRequest>,
    ) -> Result<Response<v1::SubmitResponse>, Status> {
        let caller = caller(&request)?;
        let task = request.into_inner().task.unwrap_or_default();
        validate(&task)?;
        let (task, existing) = self.edge.platform.submit(&caller, task).await?;
        let task = Some(task);
        Ok(Response::new(v1::SubmitResponse { task, existing }))
    }

    async fn submit_batch(
        &self,
        request: Request<v1::SubmitBatchRequest>,
    ) -> Result<Response<v1::SubmitBatchResponse>, Status> {
        let caller = caller(&request)?;
        let tasks = request.into_inner().tasks.into_iter().map(Ok).collect();
        let (answers, limit) = batch::submit(&self.edge, &caller, tasks).await?;
        let results = answers.into_iter().map(batch::result).collect();
        let mut response = Response::new(v1::SubmitBatchResponse { results });
        response.extensions_mut().insert(limit);
        Ok(response)
    }

    async fn get(
        &self,
        request: Request<v1::GetRequest>,
    ) -> Result<Response<v1::GetResponse>, Status> {
        let caller = caller(&request)?;
        let task = task_id(&request.into_inner().task_id)?;
        let task = Some(self.edge.platform.get(&caller, task).await?);
        Ok(Response::new(v1::GetResponse { task }))
    }

    async fn cancel(
        &self,
        request: Request<v1::CancelRequest>,
    ) -> Result<Response<v1::CancelResponse>, Status> {
        let caller = caller(&request)?;
        let task = task_id(&request.into_inner().task_id)?;
        let reason = "asked for by the caller";
        let task = Some(self.edge.platform.cancel(&caller, task, reason).await?);
        Ok(Response::new(v1::CancelResponse { task }))
    }

    async fn feedback(
        &self,
        request: Request<v1::FeedbackRequest>,
    ) -> Result<Response<v1::FeedbackResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let task = task_id(&request.task_id)?;
        let feedback = request.feedback.unwrap_or_default();
        validate_feedback(&feedback)?;
        let platform = &self.edge.platform;
        let task = Some(platform.feedback(&caller, task, feedback).await?);
        Ok(Response::new(v1::FeedbackResponse { task }))
    }

    async fn list(
        &self,
        request: Request<v1::ListRequest>,
    ) -> Result<Response<v1::ListResponse>, Status> {
        let caller = caller(&request)?;
        let page = page(request.into_inner())?;
        Ok(Response::new(self.edge.platform.list(&caller, page).await?))
    }

    type WatchStream = Events;

    async fn watch(&self, request: Request<v1::WatchRequest>) -> Result<Response<Events>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let task = task_id(&request.task_id)?;
        let open = self.edge.open_stream(&caller.tenant)?;
        // A task that is not there is a status, not a stream.
        self.edge.platform.get(&caller, task).await?;
        let deadline = Instant::now() + self.edge.http.stream_timeout.duration();
        let watch = Watch::new(self.edge.clone(), &caller, task, request.previews, deadline);
        let span = tracing::Span::current();
        let events = stream::unfold(Some((watch, open)), move |state| {
            async move {
                let (mut watch, open) = state?;
                match watch.next().await {
                    Ok(event) => {
                        let event = v1::WatchResponse {
                            event: Some(event?),
                        };
                        Some((Ok(event), Some((watch, open))))
                    }
                    Err(parted) => Some((Err(Failure::from(parted).into()), None)),
                }
            }
            .instrument(span.clone())
        });
        Ok(Response::new(Box::pin(events)))
    }

    async fn get_image(
        &self,
        request: Request<v1::GetImageRequest>,
    ) -> Result<Response<v1::GetImageResponse>, Status> {
        let caller = caller(&request)?;
        let request = request.into_inner();
        let task = task_id(&request.task_id)?;
        let reader = Reader::Tenant(&caller);
        let platform = &self.edge.platform;
        let found = platform.find_picture(reader, task, request.index).await?;
        let room = &self.edge.carried;
        let room = room.room(&caller.tenant, found.info.size_bytes, carried::OF_ANSWER);
        let carried = room.await?;
        let picture = platform.read_picture(found).await?;
        let mut response = Response::new(v1::GetImageResponse {
            info: Some(picture.info),
            data: picture.data.into(),
        });
        response.extensions_mut().insert(carried);
        Ok(response)
    }

    async fn list_models(
        &self,
        request: Request<v1::ListModelsRequest>,
    ) -> Result<Response<v1::ListModelsResponse>, Status> {
        let caller = caller(&request)?;
        let models = models::allowed(&self.edge, &caller).await?;
        Ok(Response::new(v1::ListModelsResponse { models }))
    }
}

fn page(page: v1::ListRequest) -> Result<v1::ListRequest, Failure> {
    use contract::limits::{DEFAULT_PAGE_SIZE, MAX_PAGE_SIZE, MAX_PHASES};
    if page.page_size > MAX_PAGE_SIZE {
        let message = format!(
            "page_size must be at most {MAX_PAGE_SIZE}, not {}",
            page.page_size
        );
        return Err(Failure::invalid("page_size", message));
    }
    if v1::TaskPhase::try_from(page.phase).is_err() {
        let message = format!("phase has no value {} in this version", page.phase);
        return Err(Failure::invalid("phase", message));
    }
    if page.phases.len() > MAX_PHASES {
        let message = format!("phases must be at most {MAX_PHASES}");
        return Err(Failure::invalid("phases", message));
    }
    let page_size = if page.page_size == 0 {
        DEFAULT_PAGE_SIZE
    } else {
        page.page_size
    };
    Ok(v1::ListRequest { page_size, ..page })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_over_the_limit_is_refused_and_none_means_the_default() {
        let with = |page_size| {
            page(v1::ListRequest {
                page_size,
                ..Default::default()
            })
        };
        assert_eq!(with(0).unwrap().page_size, 20);
        assert_eq!(with(101).unwrap_err().field.as_deref(), Some("page_size"));
    }

    #[test]
    fn no_more_phases_are_asked_for_than_the_orchestrator_takes() {
        let with = |count| {
            page(v1::ListRequest {
                phases: vec![v1::TaskPhase::Queued.into(); count],
                ..Default::default()
            })
        };
        let most = contract::limits::MAX_PHASES;
        assert_eq!(with(most).unwrap().phases.len(), most);
        let refused = with(most + 1).unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("phases"));
    }
}
