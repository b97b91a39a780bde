//! The admin port of every service: `/livez`, `/readyz`, `/metrics`.

use std::net::SocketAddr;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Json};
use axum::routing::get;
use telemetry::Telemetry;
use tokio::net::TcpListener;

use crate::{Health, Service};

/// The admin port could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address} for admin requests (setting process.admin_listen)")]
pub struct AdminError {
    address: SocketAddr,
    #[source]
    source: std::io::Error,
}

#[derive(Clone)]
struct Admin {
    health: Health,
    telemetry: Telemetry,
}

/// Serves a service's health and the process's metrics until the service stops.
///
/// # Errors
/// When the address cannot be listened on.
pub async fn serve(
    service: &mut Service,
    address: SocketAddr,
    telemetry: &Telemetry,
) -> Result<(), AdminError> {
    let failed = |source| AdminError { address, source };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    service.listens("admin", listener.local_addr().map_err(failed)?);
    let router = Router::new()
        .route("/livez", get(livez))
        .route("/readyz", get(readyz))
        .route("/metrics", get(metrics))
        .with_state(Admin {
            health: service.health.clone(),
            telemetry: telemetry.clone(),
        });
    let stopping = service.tasks.stopping();
    service.tasks.critical("admin", async move {
        axum::serve(listener, router)
            .with_graceful_shutdown(stopping)
            .await
    });
    Ok(())
}

async fn livez(State(admin): State<Admin>) -> (StatusCode, String) {
    match admin.health.hung() {
        None => (StatusCode::OK, "ok\n".to_owned()),
        Some(problem) => (StatusCode::SERVICE_UNAVAILABLE, format!("{problem}\n")),
    }
}

async fn readyz(State(admin): State<Admin>) -> impl IntoResponse {
    let (not_ready, limit) = (admin.health.not_ready(), admin.health.limit());
    let (code, status) = match (&not_ready, &limit) {
        (Some(_), _) => (StatusCode::SERVICE_UNAVAILABLE, "not ready"),
        // Whoever sends work here goes by the code, and what still works is worth sending.
        (None, Some(_)) => (StatusCode::OK, "limited"),
        (None, None) => (StatusCode::OK, "ready"),
    };
    let body = serde_json::json!({
        "status": status,
        "problem": not_ready.or(limit),
        "checks": admin.health.findings(),
    });
    (code, Json(body))
}

async fn metrics(State(admin): State<Admin>) -> impl IntoResponse {
    let text = (header::CONTENT_TYPE, "text/plain; version=0.0.4");
    ([text], admin.telemetry.render_metrics())
}
