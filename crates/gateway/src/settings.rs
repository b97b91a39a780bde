//! The gateway's settings; `config.default.toml` documents each.

use std::net::SocketAddr;
use std::path::PathBuf;

use egress::EgressSettings;
use lifecycle::ProcessSettings;
use rpc::{PeerSettings, TlsSettings};
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
    /// TLS between services.
    pub tls: TlsSettings,
    /// The auth service.
    pub auth: PeerSettings,
    /// The orchestrator.
    pub orchestrator: PeerSettings,
    /// The model registry.
    pub registry: PeerSettings,
    /// The object store that pictures are read from.
    pub storage: StorageSettings,
    /// To pictures that callers name by URL.
    pub egress: EgressSettings,
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
    /// Requests with pictures whose pictures are in memory at once.
    pub max_uploads: u32,
    /// Bytes of request bodies in memory.
    pub max_body_bytes: ByteSize,
    /// Bytes of answers that callers with a key have not read.
    pub max_unread_bytes: ByteSize,
    /// The same of what anyone may have.
    pub max_unread_bytes_without_key: ByteSize,
    /// Bytes that answers with pictures inside take while they are made.
    pub max_carried_bytes: ByteSize,
    /// For requests that answer at once.
    pub request_timeout: Millis,
    /// For requests that wait for pictures.
    pub generation_timeout: Millis,
    /// For streams of task events.
    pub stream_timeout: Millis,
    /// For the head of a request.
    pub header_read_timeout: Millis,
    /// For clients that do not read their answers.
    pub read_timeout: Millis,
    /// For connections that ask nothing.
    pub idle_timeout: Millis,
    /// All header fields of one request.
    pub max_header_bytes: ByteSize,
    /// Open connections.
    pub max_connections: u32,
    /// Open connections of one address.
    pub max_connections_per_address: u32,
    /// Requests under way that make tasks.
    pub max_concurrent_requests: u32,
    /// Requests under way that wait for the pictures of theirs.
    pub max_concurrent_generations: u32,
    /// Requests under way that do not.
    pub max_concurrent_reads: u32,
    /// What one tenant may hold of them, of streams, of uploads and of the bytes of bodies, of answers that are made and of what is not read, in percent.
    pub tenant_share: u32,
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
    /// TLS on the public port.
    pub tls: HttpTlsSettings,
    /// Web pages of other origins.
    pub cors: CorsSettings,
}

/// Web pages of other origins, under `[http.cors]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CorsSettings {
    /// The origins; `*` alone is every one, and none turns it off.
    pub allow_origins: Vec<String>,
    /// How long a browser may go by an answer to a preflight.
    pub max_age: Millis,
}

/// TLS on the public port, under `[http.tls]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HttpTlsSettings {
    /// The certificate; empty is no TLS.
    pub cert: PathBuf,
    /// Its key.
    pub key: PathBuf,
    /// How often both are looked at.
    pub check_every: Millis,
    /// For a handshake.
    pub handshake_timeout: Millis,
}

impl HttpTlsSettings {
    /// Whether the port speaks TLS.
    pub fn is_on(&self) -> bool {
        !self.cert.as_os_str().is_empty()
    }
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

/// No machine has more, and a semaphore can count it.
const MOST_BODY_BYTES: u64 = 1 << 40;

impl settings::Settings for Settings {
    const SERVICE: &'static str = "gateway";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        if let Some((key, problem)) = self.tls.problem() {
            return Err(Self::invalid(key, problem));
        }
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
            (
                "http.max_connections_per_address",
                http.max_connections_per_address,
            ),
            ("http.max_concurrent_requests", http.max_concurrent_requests),
            (
                "http.max_concurrent_generations",
                http.max_concurrent_generations,
            ),
            ("http.max_concurrent_reads", http.max_concurrent_reads),
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
            ("http.read_timeout", http.read_timeout),
            ("http.keep_alive", http.keep_alive),
            ("http.keep_alive_timeout", http.keep_alive_timeout),
            ("http.event_keep_alive", http.event_keep_alive),
            ("http.tls.check_every", http.tls.check_every),
            ("http.tls.handshake_timeout", http.tls.handshake_timeout),
            ("health.interval", self.health.interval),
            ("health.storage_interval", self.health.storage_interval),
        ];
        if let Some((key, _)) = counts.iter().find(|(_, count)| *count == 0) {
            return Err(Self::invalid(key, "must be at least 1"));
        }
        if let Some((key, _)) = times.iter().find(|(_, time)| time.duration().is_zero()) {
            return Err(Self::invalid(key, "must be longer than nothing"));
        }
        if http.tls.is_on() == http.tls.key.as_os_str().is_empty() {
            let rule = "must be there when http.tls.cert is, and only then";
            return Err(Self::invalid("http.tls.key", rule));
        }
        if !(1..=100).contains(&http.tenant_share) {
            return Err(Self::invalid("http.tenant_share", "must be 1 to 100"));
        }
        if http.max_body.bytes() == 0 {
            return Err(Self::invalid("http.max_body", "must be at least 1B"));
        }
        if http.max_upload.bytes() < http.max_body.bytes() {
            let rule = "must be at least http.max_body";
            return Err(Self::invalid("http.max_upload", rule));
        }
        if let Some(problem) = crate::cors::problem(&http.cors.allow_origins) {
            return Err(Self::invalid("http.cors.allow_origins", problem));
        }
        if let Err((key, rule)) = self.egress.validate() {
            return Err(Self::invalid(key, rule));
        }
        if !(http.max_upload.bytes()..=MOST_BODY_BYTES).contains(&http.max_body_bytes.bytes()) {
            let rule = "must be at least http.max_upload and at most 1TiB";
            return Err(Self::invalid("http.max_body_bytes", rule));
        }
        if !(1..=MOST_BODY_BYTES).contains(&http.max_carried_bytes.bytes()) {
            let rule = "must be at least 1B and at most 1TiB";
            return Err(Self::invalid("http.max_carried_bytes", rule));
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
            ("egress.max_per_host", "0"),
            ("egress.timeout", "0s"),
            ("egress.allow", "[\"10.0.0.0/33\"]"),
            ("http.max_concurrent_generations", "0"),
            ("http.max_concurrent_reads", "0"),
            ("http.tenant_share", "0"),
            ("http.tenant_share", "101"),
            ("http.tls.key", "/etc/inkstone/key.pem"),
            ("http.tls.handshake_timeout", "0s"),
            ("tls.check_every", "0s"),
            ("tls.cut_after", "59m"),
            ("http.max_body_bytes", "1MiB"),
            ("http.max_carried_bytes", "0B"),
            ("http.max_carried_bytes", "2048GiB"),
            ("http.read_timeout", "0s"),
            ("http.max_connections_per_address", "0"),
            ("http.cors.allow_origins", "[\"studio.example.com\"]"),
            ("http.cors.allow_origins", "[\"https://h/\"]"),
            ("http.cors.allow_origins", "[\"*\", \"https://h\"]"),
        ] {
            let error = settings::load::<Settings>(None, &[(key, value.to_owned())]).unwrap_err();
            assert!(error.to_string().contains(key), "{error}");
        }
    }
}
