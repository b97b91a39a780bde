//! The public edge: every dialect in, one internal request out.
//!
//! One port speaks HTTP/1.1, HTTP/2 and gRPC, in the clear or with TLS. A request is authenticated, limited, decoded from its
//! dialect into `SubmitTask`, validated once, and handed to the orchestrator; the answer is put
//! back into the words of the dialect. Pictures come from the object store, by keys that the orchestrator vouches for.
//!
//! Invariants: the gateway holds no state that matters, so killing it loses nothing that was accepted; `/healthz` waits
//! for nobody; everything a caller can make grow has a limit in the settings (connections, requests, streams, heads,
//! bodies, time); a failure is put into words in one place (`problem.rs`); the gateway knows no broker.

mod answers;
mod auth;
mod batch;
mod bodies;
mod body_room;
mod carried;
mod cors;
mod counts;
mod crowd;
mod dashscope;
mod edge;
mod error;
mod events;
mod feedback;
#[doc(hidden)]
pub mod fuzz;
mod grpc;
mod heads;
mod health;
mod images;
mod json;
mod layers;
mod list;
mod models;
mod oip;
mod openai;
mod openapi;
mod pace;
mod pictures;
mod platform;
mod problem;
mod query;
mod records;
mod revoked;
mod room;
mod router;
mod server;
mod settings;
mod signed_body;
mod styles;
mod task_json;
mod tasks;
mod tokens;
mod unread;
mod waiting;
mod watch;
mod welcome;

use std::sync::Arc;

use egress::Egress;
use lifecycle::Service;
use rpc::{Identity, Security};
use telemetry::Telemetry;

pub use error::StartError;
pub use settings::{CorsSettings, HealthSettings, HttpSettings, HttpTlsSettings, Settings};

use edge::Edge;
use platform::Platform;
use server::App;

/// Starts the gateway. It serves when this returns, and has waited for the services behind it for a while.
///
/// The service's addresses are `http` (public) and `admin`.
///
/// # Errors
/// When a port cannot be listened on or the settings name something that cannot be.
pub async fn start(settings: Settings, telemetry: Telemetry) -> Result<Service, StartError> {
    let mut service = Service::new("gateway");
    lifecycle::admin::serve(&mut service, settings.process.admin_listen, &telemetry).await?;
    serve(&mut service, &settings).await?;
    Ok(service.started())
}

/// The gateway without its admin port, for those who bring a service of their own.
///
/// # Errors
/// As [`start`].
pub async fn serve(service: &mut Service, settings: &Settings) -> Result<(), StartError> {
    let security = Security::start(service, Identity::Gateway, &settings.tls)?;
    let (tasks, health) = (service.tasks.clone(), service.health.clone());
    let platform = Platform::new(settings, &security, &tasks)?;
    let egress = Egress::new(&settings.egress)?;
    let edge = Arc::new(Edge::new(settings, platform, egress, tasks, health));
    let (grpc, reporter) = router::grpc(&edge)?;
    let http = router::http(&edge);
    server::serve(service, &edge, App { http, grpc }).await?;
    health::start(service, &edge, &settings.health, reporter).await;
    Ok(())
}
