//! `inkstone.v1.ImageService`: decode, call, encode.
//!
//! The caller has been authenticated by the same layer as over HTTP and lies in the request's extensions.

use std::pin::Pin;
use std::sync::Arc;

use axum::http::HeaderMap;
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
use crate::tasks::{IDEMPOTENCY_KEY, by_header, idempotency_key, task_id};
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
        let (metadata, _, request) = request.into_parts();
        let mut task = request.task.unwrap_or_default();
        let keyed = take_key(&mut task, metadata.as_ref())?;
        validate(&task)?;
        let submitted = self.edge.platform.submit(&caller, task).await;
        let told = |failure| if keyed { by_header(failure) } else { failure };
        let (task, existing) = submitted.map_err(told)?;
        let task = Some(task);
        Ok(Response::new(v1::SubmitResponse { task, existing }))
    }

    async fn submit_batch(
        &self,
        request: Request<v1::SubmitBatchRequest>,
    ) -> Result<Response<v1::SubmitBatchResponse>, Status> {
        let caller = caller(&request)?;
        batch::has_no_key(request.metadata().as_ref())?;
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

/// Gives a task without an idempotency key the one that came as metadata, as it comes over HTTP; says whether it did.
///
/// # Errors
/// An invalid argument that names the metadata, where it is no key or not the one that the task has.
fn take_key(task: &mut v1::SubmitTask, metadata: &HeaderMap) -> Result<bool, Failure> {
    let key = idempotency_key(metadata)?;
    if key.is_empty() || key == task.idempotency_key {
        return Ok(false);
    }
    if !task.idempotency_key.is_empty() {
        let message = format!(
            "{IDEMPOTENCY_KEY} in the metadata and the task's idempotency_key are not the same"
        );
        return Err(Failure::invalid(IDEMPOTENCY_KEY, message));
    }
    task.idempotency_key = key;
    Ok(true)
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
    use contract::auth::Caller;
    use lifecycle::Service;

    use super::*;
    use crate::edge::tests::edge;

    /// A request of a known caller, with this key as metadata.
    fn keyed<T>(message: T, key: &str) -> Request<T> {
        let mut request = Request::new(message);
        let metadata = request.metadata_mut();
        metadata.insert("idempotency-key", key.parse().unwrap());
        let caller = Admitted::now(Caller::default());
        request.extensions_mut().insert(caller);
        request
    }

    fn with_key(key: &str) -> v1::SubmitTask {
        v1::SubmitTask {
            prompt: "a cat".to_owned(),
            idempotency_key: key.to_owned(),
            ..Default::default()
        }
    }

    #[test]
    fn a_key_of_the_metadata_is_that_of_a_task_that_has_none() {
        let take = |own: &str, key: Option<&str>| {
            let mut task = with_key(own);
            let mut metadata = HeaderMap::new();
            if let Some(key) = key {
                metadata.insert(IDEMPOTENCY_KEY, key.parse().unwrap());
            }
            let taken = take_key(&mut task, &metadata)?;
            Ok::<_, Failure>((task.idempotency_key, taken))
        };
        let known = |key: &str, taken| Ok::<_, Failure>((key.to_owned(), taken));
        assert_eq!(take("", None), known("", false));
        assert_eq!(take("", Some("k")), known("k", true));
        assert_eq!(take("k", None), known("k", false));
        assert_eq!(take("k", Some("k")), known("k", false));
        for refused in [take("k", Some("other")), take("", Some("a\tb"))] {
            let refused = refused.unwrap_err();
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
            assert_eq!(refused.field.as_deref(), Some("Idempotency-Key"));
        }
    }

    #[tokio::test]
    async fn a_key_of_the_metadata_is_refused_beside_another_and_of_a_batch() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let images = Images {
            edge: Arc::new(edge(&service, &storage)),
        };
        let task = Some(with_key("k"));
        let two = images.submit(keyed(v1::SubmitRequest { task }, "other"));
        let two = two.await.map(drop);
        let tasks = vec![with_key("k")];
        let batch = images.submit_batch(keyed(v1::SubmitBatchRequest { tasks }, "k"));
        let batch = batch.await.map(drop);
        for (refused, why) in [(two, "not the same"), (batch, "give each task")] {
            let refused = Failure::from(refused.unwrap_err());
            assert_eq!(refused.code, ErrorCode::InvalidArgument);
            assert_eq!(refused.field.as_deref(), Some("Idempotency-Key"));
            assert!(refused.message.contains(why), "{refused}");
        }
    }

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
