//! Who a peer is by its certificate, and who may call what.
//!
//! A certificate names its holder as a DNS name of the domain `inkstone`, which no resolver has: an address says where a
//! service is, a name which one it is, and only the second is worth verifying. All instances of a service have one name.

use std::fmt;

use rustls::pki_types::{CertificateDer, ServerName};

/// Who can have a certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Identity {
    /// The public edge.
    Gateway,
    /// Keys and policies.
    Auth,
    /// Tasks.
    Orchestrator,
    /// Models.
    ModelRegistry,
    /// Pictures.
    GpuWorker,
    /// A person who runs the platform, with `inkstone keys`, `inkstone models` and `inkstone dead`.
    Operator,
}

use Identity::{Auth, Gateway, GpuWorker, ModelRegistry, Operator, Orchestrator};

impl Identity {
    /// Every identity there is.
    pub const ALL: [Self; 6] = [
        Gateway,
        Auth,
        Orchestrator,
        ModelRegistry,
        GpuWorker,
        Operator,
    ];

    /// The DNS name that stands in its certificates.
    pub fn name(self) -> &'static str {
        match self {
            Gateway => "gateway.inkstone",
            Auth => "auth.inkstone",
            Orchestrator => "orchestrator.inkstone",
            ModelRegistry => "model-registry.inkstone",
            GpuWorker => "gpu-worker.inkstone",
            Operator => "operator.inkstone",
        }
    }

    /// The name as TLS looks for it.
    pub(crate) fn server_name(self) -> ServerName<'static> {
        // A test goes over all of them.
        ServerName::try_from(self.name()).unwrap_or_else(|_| unreachable!("{self} is a DNS name"))
    }

    /// Whom a certificate names, of those there are. The certificate must have been verified.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Vec<Self> {
        let Ok(certificate) = webpki::EndEntityCert::try_from(certificate) else {
            return Vec::new();
        };
        let named: Vec<&str> = certificate.valid_dns_names().collect();
        let known = Self::ALL.into_iter();
        known.filter(|who| named.contains(&who.name())).collect()
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Who may call what. A path that ends with a slash is a whole service; of several that fit, the longest counts. What
/// stands nowhere is called by nobody.
const RULES: &[(&str, &[Identity])] = &[
    // Method by method: a new one is nobody's until somebody says whose it is.
    ("/inkstone.auth.v1.AuthService/", &[]),
    ("/inkstone.auth.v1.AuthService/Authenticate", &[Gateway]),
    ("/inkstone.auth.v1.AuthService/AuthenticateEach", &[Gateway]),
    ("/inkstone.auth.v1.AuthService/Charge", &[Gateway]),
    ("/inkstone.auth.v1.AuthService/IssueToken", &[Gateway]),
    ("/inkstone.auth.v1.AuthService/RenewAssertion", &[Gateway]),
    // Nothing that callers do not read, too. The orchestrator verifies by them whom calls are for.
    (
        "/inkstone.auth.v1.AuthService/ListTokenKeys",
        &[Gateway, Orchestrator],
    ),
    // Proofs that came over the broker, with a word on when: whoever may say that can have an old proof taken for a new one.
    (
        "/inkstone.auth.v1.AuthService/AuthenticateMessages",
        &[Orchestrator],
    ),
    // For a proof that was seen before: whoever calls this can act as any key.
    ("/inkstone.auth.v1.AuthService/Vouch", &[Orchestrator]),
    // Nobody else calls where webhooks go.
    ("/inkstone.auth.v1.AuthService/SignWebhook", &[Orchestrator]),
    // Beside the admin token, not instead of it.
    ("/inkstone.auth.v1.KeyService/", &[Operator]),
    ("/inkstone.auth.v1.PolicyService/", &[Operator]),
    // For the tenants that auth has let in, as it says in an assertion; where none is demanded, for any.
    ("/inkstone.orchestrator.v1.OrchestratorService/", &[Gateway]),
    ("/inkstone.orchestrator.v1.DeadLetterService/", &[Operator]),
    // Whether a service is ready, and why not, which may be in its store's words: for who goes by it.
    ("/grpc.health.v1.Health/Check", &[Gateway]),
    // What models there are is no secret among services; a model that runs is another matter.
    ("/inkstone.registry.v1.RegistryService/", &[Operator]),
    (
        "/inkstone.registry.v1.RegistryService/ListModels",
        &[Gateway, Orchestrator, GpuWorker, Operator],
    ),
    (
        "/inkstone.registry.v1.RegistryService/WatchModels",
        &[Gateway, Orchestrator, GpuWorker, Operator],
    ),
];

/// Whether someone whose certificate names `who` may call `path`.
pub(crate) fn may_call(who: &[Identity], path: &str) -> bool {
    let fits = |rule: &str| path == rule || (rule.ends_with('/') && path.starts_with(rule));
    let fitting = RULES.iter().filter(|(rule, _)| fits(rule));
    let nearest = fitting.max_by_key(|(rule, _)| rule.len());
    nearest.is_some_and(|(_, allowed)| who.iter().any(|one| allowed.contains(one)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_identity_has_a_name_of_its_own_that_tls_can_look_for() {
        for who in Identity::ALL {
            let same = Identity::ALL.iter().filter(|o| o.name() == who.name());
            assert_eq!(same.count(), 1);
            assert!(matches!(who.server_name(), ServerName::DnsName(_)));
        }
    }

    #[test]
    fn each_may_call_what_it_needs_and_nothing_else() {
        let allowed = |path: &str| {
            let may = |who: &Identity| may_call(&[*who], path);
            Identity::ALL.into_iter().filter(may).collect::<Vec<_>>()
        };
        for method in [
            "Authenticate",
            "AuthenticateEach",
            "Charge",
            "IssueToken",
            "RenewAssertion",
        ] {
            let path = format!("/inkstone.auth.v1.AuthService/{method}");
            assert_eq!(allowed(&path), [Gateway], "{method}");
        }
        for method in ["AuthenticateMessages", "SignWebhook", "Vouch"] {
            let path = format!("/inkstone.auth.v1.AuthService/{method}");
            assert_eq!(allowed(&path), [Orchestrator], "{method}");
        }
        assert_eq!(
            allowed("/inkstone.auth.v1.AuthService/ListTokenKeys"),
            [Gateway, Orchestrator]
        );
        assert_eq!(allowed("/inkstone.auth.v1.AuthService/Unheard"), []);
        assert_eq!(
            allowed("/inkstone.auth.v1.KeyService/CreateKey"),
            [Operator]
        );
        assert_eq!(
            allowed("/inkstone.orchestrator.v1.OrchestratorService/Submit"),
            [Gateway]
        );
        assert_eq!(
            allowed("/inkstone.orchestrator.v1.DeadLetterService/RetryDeadLetter"),
            [Operator]
        );
        assert_eq!(
            allowed("/inkstone.registry.v1.RegistryService/WatchModels"),
            [Gateway, Orchestrator, GpuWorker, Operator]
        );
        assert_eq!(allowed("/grpc.health.v1.Health/Check"), [Gateway]);
        assert_eq!(
            allowed("/inkstone.registry.v1.RegistryService/RegisterVersion"),
            [Operator]
        );
    }

    #[test]
    fn every_service_that_is_not_for_the_public_has_a_rule() {
        let proto = concat!(env!("CARGO_MANIFEST_DIR"), "/../../proto/inkstone");
        let mut found = 0;
        for folder in std::fs::read_dir(proto).unwrap() {
            let folder = folder.unwrap();
            // inkstone.v1 is the public one; it is not served by this crate.
            if folder.file_name() == "v1" {
                continue;
            }
            for file in std::fs::read_dir(folder.path().join("v1")).unwrap() {
                let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
                let named = |word: &'static str| {
                    let lines = text.lines().filter_map(move |l| l.strip_prefix(word));
                    lines.filter_map(|rest| rest.split([' ', ';']).next())
                };
                let package = named("package ").next().unwrap();
                for service in named("service ") {
                    let path = format!("/{package}.{service}/");
                    assert!(RULES.iter().any(|(rule, _)| *rule == path), "{path}");
                    found += 1;
                }
            }
        }
        assert!(found >= 4, "{found}");
    }

    #[test]
    fn a_path_that_only_looks_like_one_of_ours_is_called_by_nobody() {
        for path in [
            "",
            "/",
            "/grpc.health.v1.Health/Watch",
            "/inkstone.auth.v1.KeyService",
            "/inkstone.auth.v1.KeyServices/CreateKey",
            "inkstone.auth.v1.KeyService/CreateKey",
            "//inkstone.auth.v1.KeyService/CreateKey",
        ] {
            assert!(!may_call(&Identity::ALL, path), "{path}");
        }
    }

    proptest! {
        #[test]
        fn whoever_has_no_name_calls_nothing_and_more_names_never_allow_less(
            rule in 0..RULES.len(),
            rest in "[A-Za-z/]{0,12}",
            names in prop::collection::vec(0..Identity::ALL.len(), 0..4),
        ) {
            let path = format!("{}{rest}", RULES[rule].0);
            prop_assert!(!may_call(&[], &path));
            let who: Vec<Identity> = names.iter().map(|i| Identity::ALL[*i]).collect();
            let one_may = who.iter().any(|one| may_call(&[*one], &path));
            prop_assert_eq!(may_call(&who, &path), one_may);
        }
    }
}
