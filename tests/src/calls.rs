//! Calls of the tenant `acme`, and waiting for what comes of them.

use std::time::Instant;

use contract::v1::image_service_client::ImageServiceClient;
use contract::v1::{GetRequest, ListRequest, SubmitRequest, SubmitTask, Task, TaskPhase};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use crate::{LIMIT, POLL, Platform, SERVICES, has_ended};

impl Platform {
    /// A connection to a service's own port, past the gateway.
    pub fn channel(&self, service: &str) -> Channel {
        let url = format!("http://127.0.0.1:{}", self.ports[service].0);
        Endpoint::from_shared(url).unwrap().connect_lazy()
    }

    /// A gRPC client of the public port.
    pub fn client(&self) -> ImageServiceClient<Channel> {
        self.client_of("gateway")
    }

    /// A gRPC client of a gateway.
    pub fn client_of(&self, instance: &str) -> ImageServiceClient<Channel> {
        ImageServiceClient::new(self.channel(instance))
            .max_decoding_message_size(contract::limits::MAX_GRPC_MESSAGE_BYTES)
    }

    /// A gRPC request of the tenant `acme`.
    pub fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        let bearer = self.authorization().parse().unwrap();
        request.metadata_mut().insert("authorization", bearer);
        request
    }

    /// Submits a task.
    ///
    /// # Errors
    /// What the platform answered.
    pub async fn submit(&self, task: SubmitTask) -> Result<Task, Status> {
        let request = self.request(SubmitRequest { task: Some(task) });
        let answer = self.client().submit(request).await?;
        Ok(answer.into_inner().task.unwrap())
    }

    /// Reads a task.
    ///
    /// # Errors
    /// What the platform answered.
    pub async fn get(&self, id: &str) -> Result<Task, Status> {
        let request = self.request(GetRequest {
            task_id: id.to_owned(),
        });
        Ok(self.client().get(request).await?.into_inner().task.unwrap())
    }

    /// The tenant's tasks, newest first.
    pub async fn list(&self) -> Vec<Task> {
        let request = self.request(ListRequest {
            page_size: 100,
            ..ListRequest::default()
        });
        self.client()
            .list(request)
            .await
            .unwrap()
            .into_inner()
            .tasks
    }

    /// Waits until a task is as `wanted` says, through whatever is down meanwhile.
    pub async fn wait_for(&self, id: &str, what: &str, wanted: impl Fn(&Task) -> bool) -> Task {
        let deadline = Instant::now() + LIMIT;
        let mut last = None;
        while Instant::now() < deadline {
            if let Ok(task) = self.get(id).await {
                if wanted(&task) {
                    return task;
                }
                last = Some(task);
            }
            tokio::time::sleep(POLL).await;
        }
        let logs = SERVICES
            .map(|s| format!("== {s}\n{}", self.log(s)))
            .join("\n");
        panic!("task {id} is not {what}: {last:?}\n{logs}");
    }

    /// Waits until a worker has taken a task up.
    pub async fn wait_running(&self, id: &str) -> Task {
        let running = |task: &Task| task.phase() == TaskPhase::Running;
        self.wait_for(id, "running", running).await
    }

    /// Waits until a task has ended.
    pub async fn wait_ended(&self, id: &str) -> Task {
        self.wait_for(id, "ended", has_ended).await
    }
}
