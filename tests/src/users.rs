//! The platform on a broker with users: each service is one of them, and so are each tenant's producers.

use std::path::{Path, PathBuf};
use std::process::Command;

use messaging::{Broker, BrokerSettings};
use nats_server::{NatsServer, Options};

use crate::{Platform, SERVICES, prefix, repository};

/// A broker with the users of `docker/nats`, as `scripts/nats-users.sh` makes them in `folder`; these tenants have producers.
pub fn broker_with_users(folder: &Path, tenants: &[&str]) -> NatsServer {
    let script = repository().join("scripts/nats-users.sh");
    let mut command = Command::new(script);
    let made = command.arg(folder).args(tenants).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    let options = Options {
        folder: folder.to_owned(),
        port: None,
        sync_always: false,
        tls: None,
        max_store: None,
        node: None,
        include: Some("accounts.conf".to_owned()),
    };
    NatsServer::start(options).unwrap()
}

fn password_file(folder: &Path, user: &str) -> PathBuf {
    folder.join(format!("{user}.password"))
}

/// The password of one of the users in `folder`.
pub fn password(folder: &Path, user: &str) -> String {
    let text = std::fs::read_to_string(password_file(folder, user)).unwrap();
    text.trim().to_owned()
}

impl Platform {
    /// Everything on a [broker with users](broker_with_users), each service as its own.
    pub async fn start_with_users(folder: &Path, tenants: &[&str]) -> Self {
        let broker = broker_with_users(folder, tenants);
        // The gateway knows no broker.
        let services = SERVICES.iter().filter(|service| **service != "gateway");
        let settings = services.flat_map(|service| {
            let prefix = prefix(service);
            let file = password_file(folder, service).display().to_string();
            [
                (format!("{prefix}BROKER__USER"), (*service).to_owned()),
                (format!("{prefix}BROKER__PASSWORD_FILE"), file),
            ]
        });
        let settings: Vec<(String, String)> = settings.collect();
        let borrowed: Vec<(&str, &str)> = settings.iter().map(|(k, v)| (&**k, &**v)).collect();
        Self::on(broker, &SERVICES, &borrowed).with_key().await
    }

    /// A connection to the broker as one of the users in `folder`.
    pub async fn connect_as(&self, folder: &Path, user: &str) -> Broker {
        let settings = BrokerSettings {
            user: user.to_owned(),
            password_file: password_file(folder, user),
            ..BrokerSettings::new(self.broker.url(), "10s".parse().unwrap())
        };
        Broker::connect(&settings, "test").await.unwrap()
    }
}
