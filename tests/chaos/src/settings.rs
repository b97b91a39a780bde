//! What the processes of the platform under test are told, and the bounds that follow from it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use crate::checker::Rules;

/// The object store, in the run's folder.
pub(crate) const OBJECTS: &str = "objects";
/// Where processes look which requests to it are to fail.
pub(crate) const FAULTS: &str = "store-faults.json";
/// By how many seconds a process's clock is wrong, behind its service's name.
pub(crate) const CLOCK: &str = "PROCESS__CLOCK_OFFSET";
/// The policy of all callers.
pub(crate) const POLICY: &str = "dev";
/// Pictures that a tenant may have drawn in a day: so many, and more for each minute that the run takes, to a limit. More than these machines
/// draw, so that days are counted and nobody is refused, and little, because a part of it is what an orchestrator sets aside and leaves when it is killed.
const IMAGES_PER_DAY: u64 = 500;
const IMAGES_A_MINUTE: u64 = 1_000;
const MOST_IMAGES_PER_DAY: u64 = 20_000;
/// Pictures of one task, at most.
const MOST_OF_A_TASK: u64 = 10;
/// How long an orchestrator waits for a write, and how long until it puts back the next time.
const WRITE_MS: u64 = 5_000;
/// Requests a second of one key.
pub(crate) const REQUESTS_PER_SECOND: u64 = 200;
/// `scheduling.window`: small, so that what runs next is decided late.
const WINDOW: usize = 6;
/// Times that a task is taken up. More workers die here than in a life.
const MAX_ATTEMPTS: u32 = 20;
/// `worker.ack_wait`: no sooner is a task taken up again whose worker is not heard of.
const ACK_WAIT_MS: u64 = 5_000;
const CHECKPOINT_EVERY_MS: u64 = 1_000;
/// The step that is under way when the interval is over, and then the time to write the checkpoint: an object on this disk and a state on two of
/// three brokers. Runs that shared two cores with compilers drew 0.9 s again at most, interval and all; twice the interval on top is for
/// machines that are slower still, and much less than a long task takes.
const CHECKPOINT_MARGIN_MS: u64 = 2_000;
/// The longest of: `worker.ack_wait`, `scheduling.ack_wait`, a breaker's pause, an election of the broker, a start.
const SETTLE_MS: u64 = 20_000;
/// The part of what is left of a day that an orchestrator sets aside at once (ADR 22).
const PART_SET_ASIDE: u64 = 256;

/// How long an audit record waits at most before it is in a file.
const EXPORT_EVERY_MS: u64 = 10_000;

/// `images_per_day` for a run of this length.
pub(crate) fn images_per_day(length_ms: u64) -> u64 {
    let more = IMAGES_A_MINUTE * length_ms.div_ceil(60_000);
    (IMAGES_PER_DAY + more).min(MOST_IMAGES_PER_DAY)
}

/// The bounds that follow for a run of this length.
pub(crate) fn rules(polite: &str, length_ms: u64) -> Rules {
    Rules {
        max_attempts: MAX_ATTEMPTS,
        checkpoint_every_ms: CHECKPOINT_EVERY_MS,
        checkpoint_margin_ms: CHECKPOINT_MARGIN_MS,
        settle_ms: SETTLE_MS,
        polite: polite.to_owned(),
        // Each of two orchestrators may fill the window once from what it holds before it hears of the task, and may just have
        // served the others.
        overtakers: 3 * WINDOW,
        left_by_a_kill: images_per_day(length_ms) / PART_SET_ASIDE + MOST_OF_A_TASK,
        write_ms: WRITE_MS,
        attempt_ms: ACK_WAIT_MS,
        // Whoever writes files may have to come to itself more than once meanwhile.
        audit_within_ms: EXPORT_EVERY_MS + 4 * SETTLE_MS,
    }
}

/// `process.shutdown_grace` of each service, in seconds.
fn grace_s(service: &str) -> u64 {
    match service {
        "gpu-worker" => 30,
        "gateway" => 20,
        _ => 10,
    }
}

/// How long a service may take to end after SIGTERM: its grace, and what a process on a slow machine needs to flush and to go.
pub(crate) fn ends_within(service: &str) -> Duration {
    Duration::from_secs(grace_s(service) + 5)
}

/// The services that a service calls.
pub(crate) fn callees(service: &str) -> &'static [&'static str] {
    match service {
        "gateway" => &["auth", "orchestrator", "model-registry"],
        "orchestrator" => &["auth", "model-registry"],
        "gpu-worker" => &["model-registry"],
        _ => &[],
    }
}

/// The environment of an instance: `ports` are where it serves and where its admin port is; `urls` where the broker and other
/// services are; its clock is wrong by `skew` seconds.
pub(crate) fn environment(
    name: &str,
    service: &str,
    ports: (u16, u16),
    urls: &BTreeMap<&str, String>,
    folder: &Path,
    skew: i64,
) -> Vec<(String, String)> {
    let text = |path: &str| folder.join(path).display().to_string();
    let address = |port: u16| format!("127.0.0.1:{port}");
    let mut settings = vec![
        ("PROCESS__ADMIN_LISTEN", address(ports.1)),
        (CLOCK, skew.to_string()),
        ("PROCESS__SHUTDOWN_GRACE", format!("{}s", grace_s(service))),
    ];
    if let Some(url) = urls.get("broker") {
        settings.push(("BROKER__URL", url.clone()));
        settings.push(("BROKER__REPLICAS", crate::plan::NODES.to_string()));
        settings.push(("BROKER__START_TIMEOUT", "60s".to_owned()));
    }
    if service != "auth" {
        settings.push(("STORAGE__URL", format!("file://{}", text(OBJECTS))));
        settings.push(("STORAGE__FAULTS", text(FAULTS)));
    }
    for (callee, key) in [
        ("auth", "AUTH__URL"),
        ("orchestrator", "ORCHESTRATOR__URL"),
        ("model-registry", "REGISTRY__URL"),
    ] {
        if let Some(url) = urls.get(callee) {
            settings.push((key, url.clone()));
        }
    }
    let listen = if service == "gateway" {
        "HTTP__LISTEN"
    } else {
        "GRPC__LISTEN"
    };
    if service != "gpu-worker" {
        settings.push((listen, address(ports.0)));
    }
    settings.extend(own(name, service, &text));
    let service = service.to_uppercase().replace('-', "_");
    let named = |(key, value)| (format!("INKSTONE_{service}__{key}"), value);
    let mut all: Vec<_> = settings.into_iter().map(named).collect();
    // Three workers share one machine.
    all.push(("RAYON_NUM_THREADS".to_owned(), "1".to_owned()));
    all
}

/// What only this service has.
fn own(name: &str, service: &str, text: &impl Fn(&str) -> String) -> Vec<(&'static str, String)> {
    match service {
        "auth" => vec![
            ("KEYS__KEY_FILE", text("auth/kek")),
            ("KEYS__ADMIN_TOKEN_FILE", text("auth/admin-token")),
        ],
        "model-registry" => {
            let demo = e2e::repository().join("assets/models/inkstone-demo");
            vec![(
                "MODELS__BOOTSTRAP",
                format!("[{:?}]", demo.display().to_string()),
            )]
        }
        "orchestrator" => {
            // The broker sets these aside on the disk, three times.
            let small = [
                "STREAMS__DEAD_MAX_SIZE",
                "INTAKE__MAX_SIZE",
                "NOTICES__OUTCOMES_MAX_SIZE",
                "WEBHOOKS__MAX_SIZE",
            ];
            let mut settings: Vec<_> = small.map(|key| (key, "16MiB".to_owned())).into();
            settings.push(("STREAMS__TASK_MAX_SIZE", "256MiB".to_owned()));
            settings.push(("AUDIT__MAX_SIZE", "32MiB".to_owned()));
            // So that there are files when a short run is over.
            settings.push(("AUDIT__EXPORT_EVERY", format!("{EXPORT_EVERY_MS}ms")));
            settings.push(("SCHEDULING__WINDOW", WINDOW.to_string()));
            settings
        }
        "gpu-worker" => vec![
            ("WORKER__NAME", name.to_owned()),
            ("WORKER__CACHE_DIR", text(&format!("cache/{name}"))),
            ("WORKER__ACK_WAIT", format!("{ACK_WAIT_MS}ms")),
            ("WORKER__MAX_ATTEMPTS", MAX_ATTEMPTS.to_string()),
            (
                "ENGINE__CHECKPOINT_EVERY",
                format!("{CHECKPOINT_EVERY_MS}ms"),
            ),
        ],
        "gateway" => vec![("HEALTH__INTERVAL", "1s".to_owned())],
        _ => Vec::new(),
    }
}
