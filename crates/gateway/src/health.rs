//! Whether the gateway and what stands behind it are well: `/healthz`, and the probes behind `/readyz`.
//!
//! A probe asks what callers ask, so what passes it serves them. Auth and the orchestrator are then asked whether they are
//! ready, too: one that answers and is not still does a part of its work (it reads, cancels and streams while it takes no
//! submissions), so it limits the gateway and does not take it out of service (`docs/adr/0020`). `/readyz`, gRPC's health protocol and
//! Open Inference's readiness go by the same word for it, [`Health::not_ready`], so load balancers agree whichever they ask.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{RawQuery, State};
use axum::response::Response;
use contract::{ErrorCode, Failure};
use lifecycle::{Check, Health, Service};
use rpc::BreakerState;
use serde::Serialize;
use tokio::sync::watch;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use utoipa::ToSchema;

use crate::edge::Edge;
use crate::grpc::IMAGE_SERVICE;
use crate::oip::grpc::INFERENCE_SERVICE;
use crate::openapi::params::{params, query};
use crate::openapi::schema::text;
use crate::problem::json;
use crate::settings::HealthSettings;

/// The checks of services that are asked whether they are ready.
const AUTH: &str = "auth";
const ORCHESTRATOR: &str = "orchestrator";
/// Between two looks while the start waits.
const START_LOOK: Duration = Duration::from_millis(50);
/// Between two probes of what is not well.
const RETRY: Duration = Duration::from_secs(1);
/// The longest that one probe may take.
const PROBE_TIMEOUT: Duration = Duration::from_secs(5);

/// What a probe has found of what answers: nothing, or what keeps it from doing all that it should.
type Limits = Option<String>;

#[derive(Serialize, ToSchema)]
#[schema(as = Health)]
struct Healthz {
    /// `ok`.
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    /// With `?verbose`.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<BTreeMap<String, DependencyJson>>, nullable = false)]
    dependencies: Option<BTreeMap<&'static str, DependencyJson>>,
}

#[derive(Serialize, ToSchema)]
#[schema(as = Dependency)]
struct DependencyJson {
    ok: bool,
}

params!(
    /// Whether to look behind the gateway.
    HealthParams,
    [query("verbose", "Adds the dependencies, as they were last seen.", text())]
);

/// `GET /healthz`: that the gateway runs. It waits for nothing and nobody.
#[utoipa::path(
    get,
    path = "/healthz",
    operation_id = "healthz",
    summary = "That the gateway runs",
    params(HealthParams),
    responses((status = 200, description = "It does.", body = Healthz))
)]
pub(crate) async fn healthz(State(edge): State<Arc<Edge>>, RawQuery(query): RawQuery) -> Response {
    let verbose = query.is_some_and(|query| {
        query
            .split('&')
            .any(|part| part == "verbose" || part.starts_with("verbose="))
    });
    let dependencies = verbose.then(|| {
        let findings = edge.health.findings().into_iter();
        findings
            // What exactly is wrong is for operators: /readyz on the admin port.
            .map(|(name, finding)| (name, DependencyJson { ok: finding.ok }))
            .collect()
    });
    json(&Healthz {
        status: "ok",
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: edge.uptime_seconds(),
        dependencies,
    })
}

/// Watches every dependency from now on, and waits until all are well or the start's patience is over.
pub(crate) async fn start(
    service: &Service,
    edge: &Arc<Edge>,
    settings: &HealthSettings,
    reporter: HealthReporter,
) {
    let interval = settings.interval.duration();
    watch(service, edge, AUTH, interval, auth_answers);
    watch(service, edge, ORCHESTRATOR, interval, orchestrator_answers);
    watch(service, edge, "model-registry", interval, registry_answers);
    watch(
        service,
        edge,
        "storage",
        settings.storage_interval.duration(),
        storage_answers,
    );
    report(service, reporter);
    if let Some(problem) = wait(&service.health, settings.start_timeout.duration()).await {
        tracing::warn!("serves although {problem}");
    }
}

/// Waits until everything is well, for `patience` at most: what is not, then. What only limits the gateway is waited for, too: mostly it is a
/// service that starts as well, and whoever is sent here before it is ready hears refusals.
async fn wait(health: &Health, patience: Duration) -> Option<String> {
    let missing = || health.problem().or_else(|| health.limit());
    let well = async {
        while missing().is_some() {
            tokio::time::sleep(START_LOOK).await;
        }
    };
    match tokio::time::timeout(patience, well).await {
        Ok(()) => None,
        Err(_) => missing(),
    }
}

fn watch<F, P>(
    service: &Service,
    edge: &Arc<Edge>,
    name: &'static str,
    interval: Duration,
    probe: P,
) where
    F: Future<Output = Result<Limits, Failure>> + Send + 'static,
    P: Fn(Arc<Edge>) -> F + Send + Sync + 'static,
{
    let check: Check = service.health.check(name);
    let edge = edge.clone();
    let stop = service.tasks.stop_token();
    let mut breaker = edge.platform.breaker(name);
    let probing = async move {
        loop {
            let answer = tokio::time::timeout(PROBE_TIMEOUT, probe(edge.clone())).await;
            let next = match answer {
                Ok(Ok(None)) => {
                    check.pass();
                    interval
                }
                Ok(Ok(Some(problem))) => {
                    check.limit(problem);
                    interval.min(RETRY)
                }
                Ok(Err(failure)) => {
                    check.fail(failure.message);
                    interval.min(RETRY)
                }
                Err(_) => {
                    check.fail(format!("did not answer within {PROBE_TIMEOUT:?}"));
                    interval.min(RETRY)
                }
            };
            tokio::select! {
                () = tokio::time::sleep(next) => {}
                // What every caller hears from now on, readiness says from now on.
                () = turned(&mut breaker) => {}
            }
        }
    };
    service.tasks.critical("health", async move {
        stop.run_until_cancelled(probing).await;
        Ok::<(), Infallible>(())
    });
}

/// Resolves when a breaker opens or closes.
async fn turned(breaker: &mut Option<watch::Receiver<BreakerState>>) {
    let changed = match breaker {
        Some(state) => {
            let half = |state: &BreakerState| *state == BreakerState::HalfOpen;
            let changed = state.changed().await.is_ok();
            // Its probes are not over: the next change tells.
            changed && !half(&state.borrow_and_update())
        }
        None => false,
    };
    if !changed {
        std::future::pending::<()>().await;
    }
}

/// Says over gRPC's health protocol what the status of `/readyz` says over HTTP: a gateway that is limited serves.
fn report(service: &Service, reporter: HealthReporter) {
    let health = service.health.clone();
    let stop = service.tasks.stop_token();
    service.tasks.critical("grpc-health", async move {
        let mut told = None;
        loop {
            let status = match health.not_ready() {
                None if !stop.is_cancelled() => ServingStatus::Serving,
                _ => ServingStatus::NotServing,
            };
            if told != Some(status) {
                for service in ["", IMAGE_SERVICE, INFERENCE_SERVICE] {
                    reporter.set_service_status(service, status).await;
                }
                told = Some(status);
            }
            if stop.is_cancelled() {
                return Ok::<(), Infallible>(());
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                () = stop.cancelled() => {}
            }
        }
    });
}

async fn auth_answers(edge: Arc<Edge>) -> Result<Limits, Failure> {
    // No proof at all: whoever refuses it is alive.
    match edge.platform.probe_auth().await {
        Err(failure)
            if !matches!(
                failure.code,
                ErrorCode::Unauthenticated | ErrorCode::InvalidArgument
            ) =>
        {
            Err(failure)
        }
        Ok(_) | Err(_) => limits(&edge, AUTH).await,
    }
}

async fn orchestrator_answers(edge: Arc<Edge>) -> Result<Limits, Failure> {
    edge.platform.probe_orchestrator().await?;
    limits(&edge, ORCHESTRATOR).await
}

/// What a service that answers says of itself.
async fn limits(edge: &Edge, name: &str) -> Result<Limits, Failure> {
    let problem = edge.platform.not_ready(name).await?;
    Ok(problem.map(|problem| format!("answers and is not ready: {problem}")))
}

async fn registry_answers(edge: Arc<Edge>) -> Result<Limits, Failure> {
    edge.platform.models().await.map(|_| None)
}

async fn storage_answers(edge: Arc<Edge>) -> Result<Limits, Failure> {
    let failed = |error: storage::StorageError| {
        let mut text = error.to_string();
        let mut cause = std::error::Error::source(&error);
        while let Some(next) = cause {
            text = format!("{text}: {next}");
            cause = next.source();
        }
        Failure::unavailable(text, RETRY)
    };
    let probed = edge.platform.probe_storage().await;
    probed.map(|()| None).map_err(failed)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_check_response::ServingStatus as Told;
    use tonic_health::pb::health_server::Health as _;
    use tonic_health::server::HealthService;

    use super::*;

    /// What is told of our own service, once anything is.
    async fn told(health: &HealthService) -> Told {
        loop {
            let service = IMAGE_SERVICE.to_owned();
            let asked = tonic::Request::new(HealthCheckRequest { service });
            match health.check(asked).await {
                Ok(answer) => return answer.into_inner().status(),
                Err(_) => tokio::task::yield_now().await,
            }
        }
    }

    #[tokio::test]
    async fn grpc_health_tells_the_start_like_readyz_and_that_a_limited_gateway_serves() {
        let service = Service::new("test");
        let check = service.health.check(ORCHESTRATOR);
        check.limit("answers and is not ready: task log: full");
        let reporter = HealthReporter::new();
        let health = HealthService::from_health_reporter(reporter.clone());
        report(&service, reporter);
        assert_eq!(service.health.not_ready().unwrap(), "still starting");
        assert_eq!(told(&health).await, Told::NotServing);
        let service = service.started();
        assert_eq!(service.health.not_ready(), None);
        let serving = async {
            while told(&health).await != Told::Serving {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let in_time = tokio::time::timeout(10 * RETRY, serving).await;
        in_time.expect("a limited gateway must be in service");
        assert!(service.stop(Duration::from_secs(10)).await);
        assert_eq!(told(&health).await, Told::NotServing);
    }

    #[tokio::test]
    async fn the_start_waits_for_who_only_limits_the_gateway_and_not_for_ever() {
        let health = Health::default();
        let (auth, orchestrator) = (health.check(AUTH), health.check(ORCHESTRATOR));
        auth.pass();
        orchestrator.limit("answers and is not ready: still starting");
        let mut waiting = pin!(wait(&health, Duration::from_secs(60)));
        let goes_on = futures::poll!(waiting.as_mut()).is_pending();
        assert!(goes_on, "who is not ready is not waited for");
        orchestrator.pass();
        assert_eq!(waiting.await, None);
        orchestrator.limit("task log: full");
        let missing = wait(&health, Duration::ZERO).await;
        assert_eq!(missing.unwrap(), "orchestrator: task log: full");
        // What does not serve at all is named first.
        auth.fail("away");
        let missing = wait(&health, Duration::ZERO).await;
        assert_eq!(missing.unwrap(), "auth: away");
    }
}
