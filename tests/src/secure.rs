//! The platform with certificates, and `inkstone keys` as an operator runs it.

use std::path::Path;
use std::process::{Command, Output};

use nats_server::NatsServer;

use crate::{Platform, SERVICES, binary, prefix};

impl Platform {
    /// Everything with certificates on both sides of every connection, the broker's included; `certificates` is what
    /// `scripts/dev-certs.sh` makes.
    pub fn start_secure(certificates: &Path) -> Self {
        let broker = NatsServer::scratch_of(false, Some(certificates.join("nats"))).unwrap();
        let settings: Vec<(String, String)> = SERVICES
            .iter()
            .flat_map(|service| {
                let folder = certificates.join(service).display().to_string();
                let tls = (format!("{}TLS__DIR", prefix(service)), folder.clone());
                let broker = (format!("{}BROKER__TLS_DIR", prefix(service)), folder);
                // The gateway knows no broker.
                if *service == "gateway" {
                    vec![tls]
                } else {
                    vec![tls, broker]
                }
            })
            .collect();
        let borrowed: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (&**k, &**v)).collect();
        let mut platform = Self::on(broker, &SERVICES, &borrowed);
        let made = platform.keys(&["create", "--tenant", "acme"], Some(certificates));
        assert!(made.status.success(), "{made:?}");
        let text = String::from_utf8(made.stdout).unwrap();
        let bearer = text.lines().find_map(|line| line.strip_prefix("bearer"));
        platform.bearer = bearer
            .unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .to_owned();
        platform
    }

    /// Runs `inkstone keys` against auth's own address, as the operator whose certificate lies there.
    pub fn keys(&self, arguments: &[&str], certificates: Option<&Path>) -> Output {
        let mut command = Command::new(binary("inkstone"));
        command.arg("keys").args(arguments);
        command
            .arg("--admin-token-file")
            .arg(self.path("auth/admin-token"));
        command.args([
            "--auth-url",
            &format!("http://127.0.0.1:{}", self.ports["auth"].0),
        ]);
        if let Some(folder) = certificates {
            command.arg("--tls-dir").arg(folder.join("operator"));
        }
        command.output().unwrap()
    }
}
