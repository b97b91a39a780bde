//! The registry over gRPC: decode, call, encode.

use std::path::PathBuf;
use std::pin::Pin;

use contract::registry as proto;
use contract::registry::registry_service_server::RegistryService;
use contract::{ErrorCode, Failure};
use futures::{Stream, StreamExt as _};
use lifecycle::Tasks;
use messaging::Snapshot;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tonic::{Request, Response, Status};

use crate::error::RegistryError;
use crate::record::ModelRecord;
use crate::registry::Registry;

/// The gRPC service.
pub(crate) struct Grpc {
    pub(crate) registry: Registry,
    pub(crate) live: watch::Receiver<Snapshot<ModelRecord>>,
    pub(crate) tasks: Tasks,
}

#[tonic::async_trait]
impl RegistryService for Grpc {
    async fn list_models(
        &self,
        _: Request<proto::ListModelsRequest>,
    ) -> Result<Response<proto::ListModelsResponse>, Status> {
        let models = self.live.borrow().clone();
        let models = models.values().map(Into::into).collect();
        Ok(Response::new(proto::ListModelsResponse { models }))
    }

    type WatchModelsStream =
        Pin<Box<dyn Stream<Item = Result<proto::WatchModelsResponse, Status>> + Send>>;

    async fn watch_models(
        &self,
        _: Request<proto::WatchModelsRequest>,
    ) -> Result<Response<Self::WatchModelsStream>, Status> {
        let mut last: Option<Snapshot<ModelRecord>> = None;
        let changes = WatchStream::new(self.live.clone()).filter_map(move |now| {
            // The live copy is read anew now and then, mostly without a difference.
            let changed = last.as_ref() != Some(&now);
            last = Some(now.clone());
            std::future::ready(changed.then_some(now))
        });
        let responses = changes.map(|models| {
            let models = models.values().map(Into::into).collect();
            Ok(proto::WatchModelsResponse { models })
        });
        // An open stream would hold the server until its grace time is over.
        let responses = responses.take_until(self.tasks.stopping());
        Ok(Response::new(Box::pin(responses)))
    }

    async fn register_version(
        &self,
        request: Request<proto::RegisterVersionRequest>,
    ) -> Result<Response<proto::RegisterVersionResponse>, Status> {
        let given = request.into_inner().folder;
        let folder = PathBuf::from(&given);
        if !folder.is_absolute() {
            return Err(refuse(RegistryError::RelativeFolder { given }));
        }
        let (record, version) = self.registry.register(folder).await.map_err(refuse)?;
        let model = Some((&record).into());
        Ok(Response::new(proto::RegisterVersionResponse {
            model,
            version,
        }))
    }

    async fn set_traffic(
        &self,
        request: Request<proto::SetTrafficRequest>,
    ) -> Result<Response<proto::SetTrafficResponse>, Status> {
        let proto::SetTrafficRequest { model, weights } = request.into_inner();
        let record = self
            .registry
            .set_traffic(&model, &weights)
            .await
            .map_err(refuse)?;
        let model = Some((&record).into());
        Ok(Response::new(proto::SetTrafficResponse { model }))
    }
}

/// The edge: what is not the caller's fault is logged here, with its causes, and told to the caller without them.
fn refuse(error: RegistryError) -> Status {
    let cause = std::error::Error::source(&error).map(ToString::to_string);
    let text = error.to_string();
    let failure = Failure::from(error);
    if matches!(failure.code, ErrorCode::Internal | ErrorCode::Unavailable) {
        tracing::warn!(cause, "{text}");
    }
    failure.into()
}
