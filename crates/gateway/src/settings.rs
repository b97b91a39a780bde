//! The gateway's settings; `config.default.toml` documents each.

use std::net::SocketAddr;

use lifecycle::ProcessSettings;
use rpc::PeerSettings;
use settings::{ByteSize, Millis, SettingsError};
use storage::StorageSettings;
use telemetry::TelemetrySettings;

/// Everything that can be set.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// What every process has.
    pub process: ProcessSettings,
    /// Logs and traces.
    pub telemetry: TelemetrySettings,
    /// The public port.
    pub http: HttpSettings,
    /// How dependencies are watched.
    pub health: HealthSettings,
    /// The auth service.
    pub auth: PeerSettings,
    /// The orchestrator.
    pub orchestrator: PeerSettings,
    /// The model registry.
    pub registry: PeerSettings,
    /// The object store that pictures are read from.
    pub storage: StorageSettings,
}

/// The public port and its limits.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpSettings {
    /// HTTP/1.1, HTTP/2 and gRPC.
    pub listen: SocketAddr,
    /// Stands before the paths of pictures; empty derives it from the request.
    pub public_url: String,
    /// The largest request body.
    pub max_body: ByteSize,
    /// The largest request body that carries pictures.
    pub max_upload: ByteSize,
    /// Bodies with pictures that arrive at once.
    pub max_uploads: u32,
    /// For requests that answer at once.
    pub request_timeout: Millis,
    /// For requests that wait for pictures.
    pub generation_timeout: Millis,
    /// For streams of task events.
    pub stream_timeout: Millis,
    /// For the head of a request.
    pub header_read_timeout: Millis,
    /// For connections that ask nothing.
    pub idle_timeout: Millis,
    /// All header fields of one request.
    pub max_header_bytes: ByteSize,
    /// Open connections.
    pub max_connections: u32,
    /// Requests under way.
    pub max_concurrent_requests: u32,
    /// Open streams of events.
    pub max_event_streams: u32,
    /// Requests under way on one HTTP/2 connection.
    pub max_streams_per_connection: u32,
    /// Between two HTTP/2 pings.
    pub keep_alive: Millis,
    /// For the answer to one.
    pub keep_alive_timeout: Millis,
    /// Between two comments on a quiet stream of events.
    pub event_keep_alive: Millis,
    /// For what waits or streams when the gateway stops.
    pub drain: Millis,
}

/// How dependencies are watched.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HealthSettings {
    /// Between two questions to a service.
    pub interval: Millis,
    /// Between two probes of the object store.
    pub storage_interval: Millis,
    /// For all of them to be well at the start.
    pub start_timeout: Millis,
}

/// What hyper needs to parse any head at all.
const LEAST_HEADER_BYTES: u64 = 8192;
/// More would not fit HTTP/2's own field.
const MOST_HEADER_BYTES: u64 = 1 << 20;

impl settings::Settings for Settings {
    const SERVICE: &'static str = "gateway";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        let http = &self.http;
        let url = &http.public_url;
        let absolute = url.starts_with("http://") || url.starts_with("https://");
        if !url.is_empty() && (!absolute || url.ends_with('/')) {
            let problem =
                "must be empty or begin with http:// or https:// and not end with a slash";
            return Err(Self::invalid("http.public_url", problem));
        }
        if !(LEAST_HEADER_BYTES..=MOST_HEADER_BYTES).contains(&http.max_header_bytes.bytes()) {
            return Err(Self::invalid(
                "http.max_header_bytes",
                "must be 8KiB to 1MiB",
            ));
        }
        let counts = [
            ("http.max_connections", http.max_connections),
            ("http.max_concurrent_requests", http.max_concurrent_requests),
            ("http.max_event_streams", http.max_event_streams),
            ("http.max_uploads", http.max_uploads),
            (
                "http.max_streams_per_connection",
                http.max_streams_per_connection,
            ),
        ];
        let times = [
            ("http.request_timeout", http.request_timeout),
            ("http.generation_timeout", http.generation_timeout),
            ("http.stream_timeout", http.stream_timeout),
            ("http.header_read_timeout", http.header_read_timeout),
            ("http.idle_timeout", http.idle_timeout),
            ("http.keep_alive", http.keep_alive),
            ("http.keep_alive_timeout", http.keep_alive_timeout),
            ("http.event_keep_alive", http.event_keep_alive),
            ("health.interval", self.health.interval),
            ("health.storage_interval", self.health.storage_interval),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Self::invalid(key, "must be at least 1"));
        }
        if let Some((key, _)) = times.iter().find(|(_, time)| time.duration().is_zero()) {
            return Err(Self::invalid(key, "must be longer than nothing"));
        }
        if http.max_body.bytes() == 0 {
            return Err(Self::invalid("http.max_body", "must be at least 1B"));
        }
        if http.max_upload.bytes() < http.max_body.bytes() {
            let rule = "must be at least http.max_body";
            return Err(Self::invalid("http.max_upload", rule));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid_settings() {
        let loaded: Settings = settings::load(None, &[]).unwrap();
        assert_eq!(loaded.http.listen.port(), 8080);
        assert_eq!(loaded.http.max_body.bytes(), 1 << 20);
    }

    #[test]
    fn what_cannot_work_is_refused_by_its_key() {
        for (key, value) in [
            ("http.public_url", "images.example.com"),
            ("http.public_url", "https://images.example.com/"),
            ("http.max_connections", "0"),
            ("http.request_timeout", "0s"),
            ("http.max_header_bytes", "1KiB"),
            ("http.max_body", "0B"),
            ("http.max_upload", "1KiB"),
            ("http.max_uploads", "0"),
        ] {
            let error = settings::load::<Settings>(None, &[(key, value.to_owned())]).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
