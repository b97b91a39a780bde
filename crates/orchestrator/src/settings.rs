//! Settings; documented in `config.default.toml`.

use std::collections::BTreeMap;
use std::time::Duration;

use contract::Lane;
use egress::EgressSettings;
use lifecycle::ProcessSettings;
use messaging::BrokerSettings;
use rpc::{GrpcSettings, PeerSettings, TlsSettings};
use settings::{ByteSize, Millis, SettingsError};
use storage::StorageSettings;
use task_log::{Commit, StreamSettings};
use telemetry::TelemetrySettings;

use crate::route::{self, ClassRule, RouteRule};
use crate::schedule::LanePolicy;

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
    /// TLS between services.
    pub tls: TlsSettings,
    /// The model registry.
    pub registry: PeerSettings,
    /// TASKS, WORK, DEAD and DEADLINES.
    pub streams: StreamSettings,
    /// How submissions are stored.
    pub commit: CommitSettings,
    /// What runs next.
    pub scheduling: SchedulingSettings,
    /// Who vouches for producers, and signs webhooks.
    pub auth: PeerSettings,
    /// Whom calls are for.
    pub callers: CallerSettings,
    /// Submissions over NATS.
    pub intake: IntakeSettings,
    /// What producers hear.
    pub notices: NoticeSettings,
    /// Webhooks.
    pub webhooks: WebhookSettings,
    /// What is known of charges that were given back.
    pub refunds: RefundSettings,
    /// The way to addresses that callers name.
    pub egress: EgressSettings,
    /// Files that callers have sent.
    pub inputs: InputSettings,
    /// Who asked for what.
    pub audit: AuditSettings,
    /// How long what was drawn stays.
    pub retention: RetentionSettings,
}

/// How submissions are stored.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommitSettings {
    /// Each by itself or together.
    pub manner: Commit,
}

/// How long what workers stored for tasks stays.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionSettings {
    /// Pictures, after they were drawn.
    pub pictures: Millis,
    /// What nobody can want, after it was stored.
    pub grace: Millis,
    /// Between two sweeps.
    pub sweep_every: Millis,
    /// Whether a sweep, also that of files that callers have sent, removes nothing, and says what it would.
    pub dry_run: bool,
}

/// Who asked for what.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AuditSettings {
    /// Whether it is recorded.
    pub enabled: bool,
    /// Whether records hold the prompts themselves, beside their digests.
    pub prompts: bool,
    /// How long a record waits at most to be put into a file.
    pub export_every: Millis,
    /// A file's size.
    pub file_size: ByteSize,
    /// Bytes of records that wait to be put into files.
    pub max_size: ByteSize,
    /// How long the log keeps what is not recorded, beyond the time for which it keeps tasks.
    pub hold: Millis,
}

/// Files that callers have sent for tasks to begin from.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InputSettings {
    /// How long one stays after it was last sent.
    pub keep: Millis,
    /// Between two sweeps.
    pub sweep_every: Millis,
}

/// What runs next.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SchedulingSettings {
    /// The model for requests that name none.
    pub default_model: String,
    /// Dispatches that may be in WORK for one model version.
    pub window: usize,
    /// Parts into which tenants are divided between orchestrators.
    pub partitions: u16,
    /// Device time that a tenant is served at a time.
    pub quantum: Millis,
    /// After which a waiting task gives its lane weight; zero never.
    pub ageing: Millis,
    /// Kinds of work.
    pub classes: Vec<ClassRule>,
    /// Where requests go that leave the model open.
    pub routes: Vec<RouteRule>,
    /// Weight by lane.
    pub lanes: BTreeMap<Lane, u32>,
}

impl SchedulingSettings {
    /// How lanes and tenants share.
    pub(crate) fn policy(&self) -> LanePolicy {
        LanePolicy {
            weights: self.lanes.clone(),
            quantum: u64::try_from(self.quantum.duration().as_micros()).unwrap_or(u64::MAX),
            ageing: self.ageing.duration(),
        }
    }
}

/// Whom calls are for.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CallerSettings {
    /// Whether auth's word on the caller is asked for.
    pub demand_assertion: bool,
}

/// Submissions over NATS.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IntakeSettings {
    /// Whether they are taken.
    pub enabled: bool,
    /// Whether they may show a key as it is.
    pub bearer_keys: bool,
    /// One message, headers included.
    pub max_message_size: ByteSize,
    /// Messages that wait, in all.
    pub max_messages: u32,
    /// Messages of one tenant that wait.
    pub max_messages_per_tenant: u32,
    /// Bytes of all that wait.
    pub max_size: ByteSize,
    /// After which one that nobody took vanishes.
    pub max_age: Millis,
    /// For how long one may wait for a limit, or for a part of the platform.
    pub max_wait: Millis,
    /// Messages worked on at once.
    pub max_concurrent: u32,
    /// How long a silent orchestrator keeps one.
    pub ack_wait: Millis,
}

/// What producers hear.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NoticeSettings {
    /// In front of pictures' paths, in outcomes and webhooks; may be empty.
    pub public_url: String,
    /// How long outcomes are kept.
    pub outcome_retention: Millis,
    /// Outcomes that are kept.
    pub max_outcomes: u32,
    /// Outcomes of one tenant that are kept, more or less.
    pub max_outcomes_per_tenant: u32,
    /// Bytes of them.
    pub outcomes_max_size: ByteSize,
}

/// Webhooks.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookSettings {
    /// Before the second, third … attempt; the last goes on.
    pub pauses: Vec<Millis>,
    /// After which an end is told no more.
    pub give_up_after: Millis,
    /// For one attempt.
    pub timeout: Millis,
    /// Attempts at once.
    pub max_concurrent: u32,
    /// Attempts at once for one tenant, and to one host.
    pub max_per_tenant: u32,
    /// Ends that wait to be told, in all.
    pub max_waiting: u32,
    /// Ends of one tenant that wait.
    pub max_waiting_per_tenant: u32,
    /// Bytes of all that wait.
    pub max_size: ByteSize,
}

impl WebhookSettings {
    pub(crate) fn pauses(&self) -> Vec<Duration> {
        self.pauses.iter().map(|pause| pause.duration()).collect()
    }
}

/// What is known of charges that were given back.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefundSettings {
    /// Bytes of it.
    pub max_size: ByteSize,
}

/// The lanes that every tier without its own falls back to.
pub(crate) const FALLBACK_TIER: &str = "standard";

/// The longest that a message may wait: auth takes no older proof.
const MAX_AGE: Duration = Duration::from_secs(8 * 24 * 60 * 60);

/// The smallest size of what is known of charges that were given back: with zero the broker would set no limit.
const MIN_REFUNDS: ByteSize = ByteSize::of(64 << 10);

/// The shortest grace: longer than a worker takes from storing a picture to naming it.
const MIN_GRACE: Duration = Duration::from_secs(60);

impl settings::Settings for Settings {
    const SERVICE: &'static str = "orchestrator";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        if let Some((key, problem)) = self.tls.problem() {
            return Err(Self::invalid(key, problem));
        }
        let scheduling = &self.scheduling;
        if !(1..=4096).contains(&scheduling.window) {
            return Err(Self::invalid("scheduling.window", "must be 1 to 4096"));
        }
        if !(1..=256).contains(&scheduling.partitions) {
            return Err(Self::invalid("scheduling.partitions", "must be 1 to 256"));
        }
        if scheduling.lanes.values().any(|w| !(1..=1000).contains(w)) {
            return Err(Self::invalid(
                "scheduling.lanes",
                "weights must be 1 to 1000",
            ));
        }
        if self.inputs.keep.duration().as_secs() < 2 {
            return Err(Self::invalid("inputs.keep", "must be 2s at least"));
        }
        if self.inputs.sweep_every.duration().is_zero() {
            let problem = "must be longer than nothing";
            return Err(Self::invalid("inputs.sweep_every", problem));
        }
        if scheduling.quantum.duration().is_zero() {
            let problem = "must be longer than nothing";
            return Err(Self::invalid("scheduling.quantum", problem));
        }
        if let Err(problem) = route::check_classes(&scheduling.classes) {
            return Err(Self::invalid("scheduling.classes", problem));
        }
        if let Err(problem) = route::check_routes(&scheduling.routes) {
            return Err(Self::invalid("scheduling.routes", problem));
        }
        for ClassRule { name: class, .. } in &scheduling.classes {
            let fallback = format!("{FALLBACK_TIER}-{class}");
            if !scheduling.lanes.keys().any(|l| l.as_str() == fallback) {
                let problem = format!("must hold {fallback}, where every other tier falls back to");
                return Err(Self::invalid("scheduling.lanes", problem));
            }
        }
        let retention = &self.retention;
        if retention.pictures < self.streams.task_retention {
            let problem =
                "must be streams.task_retention at least, or tasks name pictures that are gone";
            return Err(Self::invalid("retention.pictures", problem));
        }
        if retention.grace.duration() < MIN_GRACE {
            return Err(Self::invalid("retention.grace", "must be 1m at least"));
        }
        if retention.sweep_every.duration().is_zero() {
            let problem = "must be longer than nothing";
            return Err(Self::invalid("retention.sweep_every", problem));
        }
        if self.refunds.max_size < MIN_REFUNDS {
            return Err(Self::invalid("refunds.max_size", "must be 64KiB at least"));
        }
        let file = self.audit.file_size.bytes();
        if !(1024..=64 << 20).contains(&file) {
            let problem = "must be 1KiB to 64MiB";
            return Err(Self::invalid("audit.file_size", problem));
        }
        if self.audit.max_size.bytes() < 2 * file {
            let problem = "must be twice audit.file_size at least, or no file is ever full";
            return Err(Self::invalid("audit.max_size", problem));
        }
        self.validate_exchange()
    }
}

impl Settings {
    /// What producers and receivers of webhooks have to do with.
    fn validate_exchange(&self) -> Result<(), SettingsError> {
        use settings::Settings as _;
        const SOME: &str = "must be at least 1";
        let Self {
            intake, webhooks, ..
        } = self;
        let counts = [
            ("intake.max_messages", intake.max_messages),
            ("intake.max_concurrent", intake.max_concurrent),
            (
                "intake.max_messages_per_tenant",
                intake.max_messages_per_tenant,
            ),
            ("notices.max_outcomes", self.notices.max_outcomes),
            (
                "notices.max_outcomes_per_tenant",
                self.notices.max_outcomes_per_tenant,
            ),
            ("webhooks.max_concurrent", webhooks.max_concurrent),
            ("webhooks.max_per_tenant", webhooks.max_per_tenant),
            ("webhooks.max_waiting", webhooks.max_waiting),
            (
                "webhooks.max_waiting_per_tenant",
                webhooks.max_waiting_per_tenant,
            ),
        ];
        if let Some((key, _)) = counts.into_iter().find(|(_, count)| *count == 0) {
            return Err(Self::invalid(key, SOME));
        }
        if intake.max_wait >= intake.max_age {
            let problem = "must be shorter than intake.max_age, or submissions vanish unanswered";
            return Err(Self::invalid("intake.max_wait", problem));
        }
        if intake.max_age.duration() > MAX_AGE {
            let problem = "must be 8d at most: auth takes no older signature";
            return Err(Self::invalid("intake.max_age", problem));
        }
        if intake.ack_wait.duration().as_secs() < 1 {
            return Err(Self::invalid("intake.ack_wait", "must be 1s at least"));
        }
        if webhooks.pauses.is_empty() || webhooks.pauses().iter().any(Duration::is_zero) {
            let problem = "must hold one at least, each longer than nothing";
            return Err(Self::invalid("webhooks.pauses", problem));
        }
        if webhooks.timeout.duration().is_zero() {
            return Err(Self::invalid(
                "webhooks.timeout",
                "must be longer than nothing",
            ));
        }
        let url = &self.notices.public_url;
        let good = url.is_empty() || url.starts_with("http://") || url.starts_with("https://");
        if !good || url.ends_with('/') {
            let problem =
                "must be empty or begin with http:// or https://, without a slash at its end";
            return Err(Self::invalid("notices.public_url", problem));
        }
        let checked = self.egress.validate();
        checked.map_err(|(key, problem)| Self::invalid(key, problem))
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
