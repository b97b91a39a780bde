//! Settings; documented in `config.default.toml`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use contract::Lane;
use lifecycle::ProcessSettings;
use messaging::BrokerSettings;
use rpc::PeerSettings;
use settings::{Millis, SettingsError};
use storage::StorageSettings;
use task_log::StreamSettings;
use telemetry::TelemetrySettings;

/// All settings of the orchestrator.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// The process.
    pub process: ProcessSettings,
    /// Logs and traces.
    pub telemetry: TelemetrySettings,
    /// NATS.
    pub broker: BrokerSettings,
    /// The object store.
    pub storage: StorageSettings,
    /// Where it is called.
    pub grpc: GrpcSettings,
    /// The model registry.
    pub registry: PeerSettings,
    /// TASKS, WORK and DEAD.
    pub streams: StreamSettings,
    /// What runs next.
    pub scheduling: SchedulingSettings,
}

/// Where it is called.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GrpcSettings {
    /// Address and port.
    pub listen: SocketAddr,
}

/// What runs next.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulingSettings {
    /// The model for requests that name none.
    pub default_model: String,
    /// Dispatches that may be in WORK for one model version.
    pub window: usize,
    /// How long a head may be held.
    pub ack_wait: Millis,
    /// Weight by lane.
    pub lanes: BTreeMap<Lane, u32>,
}

/// The lanes that every tier without its own falls back to.
pub(crate) const FALLBACK_TIER: &str = "standard";

impl settings::Settings for Settings {
    const SERVICE: &'static str = "orchestrator";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        let scheduling = &self.scheduling;
        if !(1..=4096).contains(&scheduling.window) {
            return Err(Self::invalid("scheduling.window", "must be 1 to 4096"));
        }
        if scheduling.ack_wait.duration().as_secs() < 1 {
            return Err(Self::invalid("scheduling.ack_wait", "must be 1s at least"));
        }
        if scheduling.lanes.values().any(|w| !(1..=1000).contains(w)) {
            return Err(Self::invalid(
                "scheduling.lanes",
                "weights must be 1 to 1000",
            ));
        }
        for class in ["image", "hd"] {
            let fallback = format!("{FALLBACK_TIER}-{class}");
            if !scheduling.lanes.keys().any(|l| l.as_str() == fallback) {
                let problem = format!("must hold {fallback}, where every other tier falls back to");
                return Err(Self::invalid("scheduling.lanes", problem));
            }
        }
        Ok(())
    }
}

impl lifecycle::Process for Settings {
    fn process(&self) -> &ProcessSettings {
        &self.process
    }

    fn telemetry(&self) -> &TelemetrySettings {
        &self.telemetry
    }
}
