//! Which crate may depend on which, and which crate alone may know a library.
//!
//! Why at all: a service that depends on another cannot be deployed, tested or understood alone; a library that
//! many crates know cannot be replaced; and neither shows in any one change.

use crate::workspace::{Crate, Dependency, Kind};

/// What a crate may depend on among our own.
enum Allowed {
    /// These, and nothing else of ours.
    Only(&'static [&'static str]),
    /// The platform crates, and these.
    PlatformAnd(&'static [&'static str]),
    /// All of them: it puts them together.
    Everything,
}

/// What the services stand on.
const PLATFORM: &[&str] = &[
    "contract",
    "settings",
    "telemetry",
    "lifecycle",
    "rpc",
    "messaging",
    "storage",
    "task-log",
];

/// The services. None depends on another, in tests neither: they meet in the contract.
const SERVICES: &[&str] = &[
    "auth",
    "gateway",
    "orchestrator",
    "model-registry",
    "gpu-worker",
];

/// Every crate of the workspace, from the ground up.
const RULES: &[(&str, Allowed)] = &[
    // The words that services share: they must not drag anything along.
    ("contract", Allowed::Only(&[])),
    ("settings", Allowed::Only(&[])),
    ("telemetry", Allowed::Only(&[])),
    (
        "lifecycle",
        Allowed::Only(&["contract", "settings", "telemetry"]),
    ),
    // How services reach each other, the broker and the object store.
    (
        "rpc",
        Allowed::Only(&["contract", "lifecycle", "telemetry", "settings"]),
    ),
    (
        "messaging",
        Allowed::Only(&["lifecycle", "settings", "telemetry"]),
    ),
    ("nats-server", Allowed::Only(&[])),
    ("storage", Allowed::Only(&["contract", "settings"])),
    // How services reach addresses that callers name.
    ("egress", Allowed::Only(&["settings"])),
    // Programs name an allocator, libraries none.
    ("allocator", Allowed::Only(&[])),
    // What orchestrator and worker must agree on about tasks.
    (
        "task-log",
        Allowed::Only(&[
            "contract",
            "messaging",
            "settings",
            "telemetry",
            "lifecycle",
        ]),
    ),
    // An auditor's check needs nothing of the platform.
    ("audit", Allowed::Only(&[])),
    // The engine and its pictures know nothing of services.
    ("imaging", Allowed::Only(&[])),
    ("diffusion", Allowed::Only(&[])),
    ("auth", Allowed::PlatformAnd(&["allocator"])),
    // Pictures as pixels, for callers who want no file.
    (
        "gateway",
        Allowed::PlatformAnd(&["allocator", "imaging", "egress"]),
    ),
    // Webhooks, and who asked for what.
    (
        "orchestrator",
        Allowed::PlatformAnd(&["allocator", "egress", "audit"]),
    ),
    ("model-registry", Allowed::PlatformAnd(&[])),
    // The only service that draws.
    (
        "gpu-worker",
        Allowed::PlatformAnd(&["diffusion", "imaging"]),
    ),
    // The command line: all services in one process.
    ("inkstone", Allowed::Everything),
    // Whatever reads what callers send.
    (
        "fuzz-edge",
        Allowed::Only(&["auth", "gateway", "orchestrator"]),
    ),
    // End-to-end tests see what a caller sees, and kill the broker.
    (
        "e2e",
        Allowed::Only(&["contract", "messaging", "nats-server"]),
    ),
    // Chaos reads the log and disturbs the store besides.
    (
        "chaos",
        Allowed::Only(&[
            "audit",
            "contract",
            "e2e",
            "lifecycle",
            "messaging",
            "nats-server",
            "storage",
        ]),
    ),
    ("xtask", Allowed::Only(&[])),
];

/// Libraries that only these crates may name; the first pattern that matches counts. A `*` at the end matches any rest.
const EXTERNAL: &[(&str, &[&str])] = &[
    ("async-nats", &["messaging"]),
    // The worker names devices and element types.
    ("candle-core", &["diffusion", "gpu-worker"]),
    ("candle-*", &["diffusion"]),
    ("gemm", &["diffusion"]),
    ("tokenizers", &["diffusion"]),
    ("object_store", &["storage"]),
    ("tract-*", &["gpu-worker"]),
    // Who signs, and who verifies.
    ("jsonwebtoken", &["auth", "orchestrator"]),
    // Its options belong to it.
    ("mimalloc", &["allocator"]),
    ("reqwest", &["auth", "egress"]),
    ("rustls", &["rpc"]),
    ("rustls-native-certs", &["rpc"]),
    ("rustls-webpki", &["rpc"]),
    ("tokio-rustls", &["rpc"]),
    ("tonic-reflection", &["gateway"]),
    ("utoipa*", &["gateway"]),
];

/// Each dependency that is against the rules, as a sentence. Tests may use what they like, but no service another.
pub(crate) fn violations(graph: &[Crate]) -> Vec<String> {
    let mut found = Vec::new();
    for member in graph {
        let Some((name, allowed)) = RULES.iter().find(|(name, _)| *name == member.name) else {
            let name = &member.name;
            found.push(format!(
                "{name}: no rule names this crate; add one to RULES"
            ));
            continue;
        };
        for dependency in &member.dependencies {
            let ours = graph.iter().any(|other| other.name == dependency.name);
            let problem = if ours {
                internal(name, allowed, dependency)
            } else {
                external(name, dependency)
            };
            found.extend(problem);
        }
    }
    found
}

fn internal(name: &str, allowed: &Allowed, dependency: &Dependency) -> Option<String> {
    let other = dependency.name.as_str();
    let services = SERVICES.contains(&name) && SERVICES.contains(&other);
    if services && name != other {
        return Some(format!(
            "{name} → {other}: a service never depends on another; what both need is in the contract"
        ));
    }
    let (fine, may) = match allowed {
        Allowed::Only(list) => (list.contains(&other), listed(list)),
        Allowed::PlatformAnd(list) => (
            PLATFORM.contains(&other) || list.contains(&other),
            listed(&[PLATFORM, list].concat()),
        ),
        Allowed::Everything => return None,
    };
    if fine || dependency.kind == Some(Kind::Dev) {
        return None;
    }
    Some(format!("{name} → {other}: {name} may depend on {may}"))
}

fn listed(list: &[&str]) -> String {
    if list.is_empty() {
        return "no other crate of ours".to_owned();
    }
    list.join(", ")
}

fn external(name: &str, dependency: &Dependency) -> Option<String> {
    let library = dependency.name.as_str();
    let (_, owners) = EXTERNAL
        .iter()
        .find(|(pattern, _)| matches(pattern, library))?;
    if owners.contains(&name) || dependency.kind == Some(Kind::Dev) {
        return None;
    }
    let owners = owners.join(" and ");
    Some(format!(
        "{name} → {library}: only {owners} may know this library"
    ))
}

fn matches(pattern: &str, library: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(start) => library.starts_with(start),
        None => library == pattern,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workspace::Workspace;

    fn member(name: &str, dependencies: &[(&str, Option<Kind>)]) -> Crate {
        let dependency = |&(name, kind): &(&str, Option<Kind>)| Dependency {
            name: name.to_owned(),
            kind,
        };
        Crate {
            name: name.to_owned(),
            dependencies: dependencies.iter().map(dependency).collect(),
        }
    }

    /// All crates, where one has these dependencies.
    fn graph(name: &str, dependencies: &[(&str, Option<Kind>)]) -> Vec<Crate> {
        let of = |rule: &str| {
            if rule == name {
                member(rule, dependencies)
            } else {
                member(rule, &[])
            }
        };
        RULES.iter().map(|(rule, _)| of(rule)).collect()
    }

    #[test]
    fn this_repository_depends_in_the_right_direction() {
        let graph = Workspace::here().graph().unwrap();
        assert!(graph.len() > 15, "{} crates", graph.len());
        assert_eq!(violations(&graph), Vec::<String>::new());
    }

    #[test]
    fn each_dependency_against_the_direction_is_found() {
        for (name, other, kind) in [
            ("contract", "settings", None),
            ("telemetry", "lifecycle", None),
            ("messaging", "rpc", Some(Kind::Build)),
            ("diffusion", "imaging", None),
            ("gateway", "diffusion", None),
            ("auth", "orchestrator", None),
            ("orchestrator", "model-registry", Some(Kind::Dev)),
            ("e2e", "gateway", None),
            ("xtask", "contract", None),
            ("orchestrator", "async-nats", None),
            ("gateway", "candle-core", None),
            ("gpu-worker", "candle-nn", None),
            ("gateway", "tract-onnx", None),
            ("auth", "tonic-reflection", None),
            ("model-registry", "object_store", None),
            ("gateway", "mimalloc", None),
        ] {
            let found = violations(&graph(name, &[(other, kind)]));
            assert_eq!(found.len(), 1, "{name} → {other}: {found:?}");
            assert!(
                found[0].starts_with(&format!("{name} → {other}")),
                "{found:?}"
            );
        }
    }

    #[test]
    fn what_is_allowed_is_not_found() {
        for (name, other, kind) in [
            ("gateway", "rpc", None),
            ("gpu-worker", "diffusion", None),
            ("gpu-worker", "candle-core", None),
            ("inkstone", "gateway", None),
            ("inkstone", "imaging", None),
            ("auth", "nats-server", Some(Kind::Dev)),
            ("orchestrator", "tokio", None),
            ("messaging", "async-nats", None),
        ] {
            let found = violations(&graph(name, &[(other, kind)]));
            assert!(found.is_empty(), "{found:?}");
        }
    }

    #[test]
    fn a_crate_that_no_rule_names_is_found() {
        let found = violations(&[member("shiny", &[])]);
        assert_eq!(found.len(), 1);
        assert!(found[0].contains("shiny"), "{found:?}");
    }
}
