//! What can be set; `config.default.toml` says why it is as it is.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use contract::ModelName;
use diffusion::DType;
use lifecycle::{Process, ProcessSettings};
use messaging::BrokerSettings;
use rpc::{PeerSettings, TlsSettings};
use serde::{Deserialize, Deserializer, de};
use settings::{ByteSize, Millis, SettingsError};
use storage::StorageSettings;
use telemetry::TelemetrySettings;

const MAX_NAME: usize = 64;
const MAX_SLOTS: usize = 1024;
const MAX_BATCH: usize = 64;
const ACK_WAIT_SECONDS: std::ops::RangeInclusive<u64> = 1..=3600;

/// The worker's settings.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Settings {
    /// `[process]`
    pub process: ProcessSettings,
    /// `[telemetry]`
    pub telemetry: TelemetrySettings,
    /// `[broker]`
    pub broker: BrokerSettings,
    /// `[storage]`
    pub storage: StorageSettings,
    /// `[tls]`
    pub tls: TlsSettings,
    /// `[registry]`
    pub registry: PeerSettings,
    /// `[worker]`
    pub worker: WorkerSettings,
    /// `[engine]`
    pub engine: EngineSettings,
    /// `[models]`
    pub models: ModelSettings,
    /// `[output]`
    pub output: OutputSettings,
    /// `[label]`
    pub label: LabelSettings,
}

/// `[worker]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WorkerSettings {
    /// What it is called; empty makes one up.
    pub name: String,
    /// Tasks that run at once.
    pub slots: usize,
    /// Pictures in one denoising step.
    pub max_batch: usize,
    /// How long the broker waits for a sign of life.
    pub ack_wait: Millis,
    /// Times that a task is taken up before it is given up.
    pub max_attempts: u32,
    /// How long a task may be drawn in one run, whatever it asks for; zero is any time.
    pub run_floor: Millis,
    /// How long beyond that for each step of each million pixels.
    pub run_per_megapixel_step: Millis,
    /// Models that it serves; none means all.
    #[serde(deserialize_with = "names")]
    pub models: Vec<ModelName>,
    /// Where downloaded models are kept.
    pub cache_dir: PathBuf,
}

/// `[engine]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EngineSettings {
    /// Whether pictures are computed.
    pub kind: EngineKind,
    /// `[engine.simulated]`
    pub simulated: SimulatedSettings,
    /// What it computes on.
    pub device: DeviceName,
    /// The type that the UNet and the text encoders compute in.
    pub dtype: DTypeName,
    /// How often a running task is put away; zero never.
    pub checkpoint_every: Millis,
    /// After how many steps of each picture; zero never for their sake.
    pub checkpoint_steps: u32,
    /// How long a step may take before its thread is taken for hung; zero is any time.
    pub step_timeout: Millis,
    /// What weights and pictures may take.
    pub memory_limit: MemoryLimit,
    /// How long a step of several pictures may take; zero is any time.
    pub max_step: Millis,
}

/// `[models]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModelSettings {
    /// Which versions are loaded.
    pub load: Load,
}

/// Which versions are loaded, of those that a worker serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Load {
    /// All of them.
    All,
    /// Those that are waited for, as memory allows.
    Demand,
}

/// `[output]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputSettings {
    /// How a stored picture is verified.
    pub verify: Verify,
    /// How long a task waits here for the store; zero is any time.
    pub patience: Millis,
    /// How long a task goes from worker to worker whose store takes nothing; zero is any time.
    pub give_up_after: Millis,
}

/// How a stored picture is verified before its task's end is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verify {
    /// It is read back, and its bytes compared by their SHA-256.
    Digest,
    /// The store is asked for its size.
    Size,
}

/// What stands behind the engine's steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Stable Diffusion XL.
    Diffusion,
    /// Nothing: steps take a known time, and pictures are noise.
    Simulated,
}

/// `[engine.simulated]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SimulatedSettings {
    /// How long a step takes, of however many pictures.
    pub step: Millis,
    /// For tests: a step that finds this file removes it and does not come back; empty for none.
    pub hang_file: PathBuf,
}

/// Memory as settings name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryLimit {
    /// What there is when the worker starts.
    Auto,
    /// So many bytes.
    Bytes(u64),
}

/// A text that names no amount of memory.
#[derive(Debug, thiserror::Error)]
#[error("a memory limit is \"auto\", or a size such as \"12GiB\", not {0:?}")]
pub struct UnknownMemoryLimit(String);

impl FromStr for MemoryLimit {
    type Err = UnknownMemoryLimit;

    fn from_str(text: &str) -> Result<Self, UnknownMemoryLimit> {
        if text == "auto" {
            return Ok(Self::Auto);
        }
        let size: Result<ByteSize, _> = text.parse();
        size.map(|size| Self::Bytes(size.bytes()))
            .map_err(|_| UnknownMemoryLimit(text.to_owned()))
    }
}

impl<'de> Deserialize<'de> for MemoryLimit {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// `[label]`
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LabelSettings {
    /// Who generated the pictures.
    pub content_producer: String,
    /// Whether every picture has a visible label, asked for or not.
    pub always_visible: bool,
}

/// A device as settings name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceName {
    /// The processor.
    Cpu,
    /// A GPU by its number.
    Cuda(usize),
}

/// A text that names no device.
#[derive(Debug, thiserror::Error)]
#[error("a device is \"cpu\", \"cuda\" or \"cuda:N\", not {0:?}")]
pub struct UnknownDevice(String);

/// A type of numbers as settings name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DTypeName {
    /// 32 bits.
    F32,
    /// 16 bits, of which 10 are digits.
    F16,
    /// 16 bits with the range of f32, of which 7 are digits.
    Bf16,
}

impl From<DTypeName> for DType {
    fn from(name: DTypeName) -> Self {
        match name {
            DTypeName::F32 => Self::F32,
            DTypeName::F16 => Self::F16,
            DTypeName::Bf16 => Self::BF16,
        }
    }
}

impl FromStr for DeviceName {
    type Err = UnknownDevice;

    fn from_str(text: &str) -> Result<Self, UnknownDevice> {
        let cuda = || text.strip_prefix("cuda:")?.parse().ok();
        match text {
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => cuda()
                .map(Self::Cuda)
                .ok_or_else(|| UnknownDevice(text.to_owned())),
        }
    }
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(number) => write!(f, "cuda:{number}"),
        }
    }
}

impl<'de> Deserialize<'de> for DeviceName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(de::Error::custom)
    }
}

/// The environment can only give a text, a file gives a list.
fn names<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<ModelName>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Names {
        List(Vec<String>),
        Text(String),
    }
    let names = match Names::deserialize(deserializer)? {
        Names::List(names) => names,
        Names::Text(text) => text.split(',').map(|name| name.trim().to_owned()).collect(),
    };
    let named = names.iter().filter(|name| !name.is_empty());
    named
        .map(|name| name.parse().map_err(de::Error::custom))
        .collect()
}

impl settings::Settings for Settings {
    const SERVICE: &'static str = "gpu-worker";
    const DEFAULTS: &'static str = include_str!("../config.default.toml");

    fn validate(&self) -> Result<(), SettingsError> {
        if let Some((key, problem)) = self.tls.problem() {
            return Err(Self::invalid(key, problem));
        }
        let worker = &self.worker;
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        if worker.name.len() > MAX_NAME || !worker.name.bytes().all(plain) {
            let problem = format!("must be at most {MAX_NAME} of a-z, A-Z, 0-9, - and _");
            return Err(Self::invalid("worker.name", problem));
        }
        if !(1..=MAX_SLOTS).contains(&worker.slots) {
            return Err(Self::invalid(
                "worker.slots",
                format!("must be 1 to {MAX_SLOTS}"),
            ));
        }
        if !(1..=MAX_BATCH).contains(&worker.max_batch) {
            return Err(Self::invalid(
                "worker.max_batch",
                format!("must be 1 to {MAX_BATCH}"),
            ));
        }
        if !ACK_WAIT_SECONDS.contains(&worker.ack_wait.duration().as_secs()) {
            return Err(Self::invalid("worker.ack_wait", "must be 1s to 1h"));
        }
        if worker.max_attempts == 0 {
            return Err(Self::invalid("worker.max_attempts", "must be at least 1"));
        }
        if self.engine.memory_limit == MemoryLimit::Bytes(0) {
            return Err(Self::invalid("engine.memory_limit", "must not be 0"));
        }
        if worker.cache_dir.as_os_str().is_empty() {
            return Err(Self::invalid("worker.cache_dir", "must name a folder"));
        }
        if self.engine.device == DeviceName::Cpu && self.engine.dtype != DTypeName::F32 {
            let problem = "must be f32 on the cpu, which has no faster type";
            return Err(Self::invalid("engine.dtype", problem));
        }
        if self.label.content_producer.len() > MAX_PRODUCER {
            let problem = format!("must be at most {MAX_PRODUCER} bytes");
            return Err(Self::invalid("label.content_producer", problem));
        }
        Ok(())
    }
}

/// Bytes of a producer's name: it goes into every file.
const MAX_PRODUCER: usize = 256;

impl Process for Settings {
    // It sees prompts and no secrets, and a driver's crash is found out by nothing else.
    const CORE_DUMPS: bool = true;

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

    fn load(key: &str, value: &str) -> Result<Settings, SettingsError> {
        settings::load(None, &[(key, value.to_owned())])
    }

    #[test]
    fn the_defaults_can_be_used() {
        let settings: Settings = settings::load(None, &[]).unwrap();
        assert!(settings.worker.models.is_empty());
        assert_eq!(settings.engine.device, DeviceName::Cpu);
    }

    #[test]
    fn by_default_a_task_does_not_wait_for_ever_for_its_own_workers_store() {
        let settings: Settings = settings::load(None, &[]).unwrap();
        let OutputSettings {
            patience,
            give_up_after,
            ..
        } = settings.output;
        assert!(!patience.duration().is_zero());
        // Another worker has its turn many times before the task is given up.
        assert!(patience.duration() * 100 < give_up_after.duration());
    }

    #[test]
    fn models_may_be_named_in_one_text() {
        let settings = load("worker.models", "a-model, another").unwrap();
        let names: Vec<&str> = settings
            .worker
            .models
            .iter()
            .map(ModelName::as_str)
            .collect();
        assert_eq!(names, ["a-model", "another"]);
    }

    #[test]
    fn what_cannot_work_is_refused_by_name() {
        for (key, value) in [
            ("worker.name", "a b"),
            ("worker.slots", "0"),
            ("worker.max_batch", "0"),
            ("worker.ack_wait", "0s"),
            ("worker.max_attempts", "0"),
            ("worker.models", "Not A Name"),
            ("engine.device", "tpu"),
            ("engine.device", "cuda:"),
            ("engine.memory_limit", "0B"),
            ("engine.memory_limit", "lots"),
            ("engine.dtype", "f16"),
            ("engine.dtype", "f64"),
        ] {
            let error = load(key, value).unwrap_err();
            let text = lifecycle::chain(&error);
            let named = [key, "model name", "device", "memory limit", "f64"]
                .iter()
                .any(|what| text.contains(what));
            assert!(named, "{key}={value}: {text}");
        }
    }

    #[test]
    fn a_memory_limit_is_a_size_or_found_out() {
        let limit = |text| {
            load("engine.memory_limit", text)
                .unwrap()
                .engine
                .memory_limit
        };
        assert_eq!(limit("auto"), MemoryLimit::Auto);
        assert_eq!(limit("2GiB"), MemoryLimit::Bytes(2 << 30));
    }

    #[test]
    fn a_gpu_is_named_by_its_number() {
        assert_eq!("cuda:3".parse::<DeviceName>().unwrap(), DeviceName::Cuda(3));
        assert_eq!("cuda".parse::<DeviceName>().unwrap(), DeviceName::Cuda(0));
        assert_eq!(DeviceName::Cuda(3).to_string(), "cuda:3");
    }

    #[test]
    fn a_gpu_computes_in_the_type_that_is_asked_for() {
        let settings: Settings = settings::load(
            None,
            &[
                ("engine.device", "cuda".to_owned()),
                ("engine.dtype", "bf16".to_owned()),
            ],
        )
        .unwrap();
        assert_eq!(DType::from(settings.engine.dtype), DType::BF16);
    }
}
