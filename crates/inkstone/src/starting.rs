//! The five services, started one after the other: what each has to be told of the place, the broker and those before it.

use std::net::SocketAddr;
use std::path::PathBuf;

use contract::registry::ListModelsRequest;
use lifecycle::Service;
use telemetry::Telemetry;

use crate::cli::TlsArgs;
use crate::error::CliError;
use crate::models;
use crate::place::Place;

/// Where an operator says what callers know the platform by.
const PUBLIC_URL: &str = "INKSTONE_ORCHESTRATOR__NOTICES__PUBLIC_URL";
/// Where an operator says how submissions are stored. Here nobody has to: the broker is our own.
const COMMIT: &str = "INKSTONE_ORCHESTRATOR__COMMIT__MANNER";

/// A setting and its value.
type Setting = (&'static str, String);

/// The services that run so far, and what each needs to start.
pub(crate) struct Starting<'a> {
    pub(crate) place: &'a Place,
    pub(crate) broker_url: String,
    pub(crate) telemetry: &'a Telemetry,
    pub(crate) services: Vec<Service>,
    /// What the public port speaks, once its settings are read.
    pub(crate) scheme: &'static str,
    /// Where the public port is to be.
    pub(crate) listen: SocketAddr,
    /// Of the broker.
    pub(crate) sync_always: bool,
}

impl Starting<'_> {
    /// In the order in which they need each other.
    pub(crate) async fn all(&mut self, models: &[PathBuf]) -> Result<(), CliError> {
        let auth = ("auth.url", self.auth().await?);
        let registry = ("registry.url", self.registry(models).await?);
        // As the gateway will read it: what the environment says holds.
        self.scheme = scheme_of(&settings::load(None, &[])?);
        let orchestrator = self.orchestrator(&auth, &registry).await?;
        self.worker(&registry).await?;
        let orchestrator = ("orchestrator.url", orchestrator);
        self.gateway(auth, registry, orchestrator).await
    }

    async fn auth(&mut self) -> Result<String, CliError> {
        let settings = [
            self.broker(),
            admin(),
            grpc(),
            ("keys.key_file", self.path("auth/kek")),
            ("keys.admin_token_file", self.path("auth/admin-token")),
        ];
        let settings = settings::load(None, &settings)?;
        let auth = auth::start(settings, self.telemetry.clone()).await;
        Ok(self.called(started("auth", auth)?))
    }

    async fn registry(&mut self, models: &[PathBuf]) -> Result<String, CliError> {
        let bootstrap: Vec<String> = models
            .iter()
            .map(|m| format!("{:?}", m.display().to_string()))
            .collect();
        let settings = [
            self.broker(),
            admin(),
            self.storage(),
            grpc(),
            ("models.bootstrap", format!("[{}]", bootstrap.join(", "))),
        ];
        let settings = settings::load(None, &settings)?;
        let registry = model_registry::start(settings, self.telemetry.clone()).await;
        let url = self.called(started("model-registry", registry)?);
        if models.is_empty() {
            self.some_model(&url).await?;
        }
        Ok(url)
    }

    /// With nothing to publish, something must have been published before.
    async fn some_model(&self, registry: &str) -> Result<(), CliError> {
        let clear = TlsArgs { tls_dir: None };
        let data = self.place.folder();
        let url = Some(registry.to_owned());
        let (callee, mut registry) = models::registry(data, &clear, url)?;
        let listed = registry.list_models(rpc::idempotent(ListModelsRequest {}));
        if callee.call(listed).await?.models.is_empty() {
            let data = data.to_owned();
            return Err(CliError::NoModels { data });
        }
        Ok(())
    }

    async fn orchestrator(
        &mut self,
        auth: &Setting,
        registry: &Setting,
    ) -> Result<String, CliError> {
        let mut settings = vec![
            self.broker(),
            admin(),
            self.storage(),
            registry.clone(),
            auth.clone(),
            grpc(),
            // The broker sets these aside on the disk; a laptop's may be small.
            ("streams.task_max_size", "1GiB".to_owned()),
            ("streams.dead_max_size", "64MiB".to_owned()),
            ("intake.max_size", "64MiB".to_owned()),
            ("notices.outcomes_max_size", "64MiB".to_owned()),
            ("webhooks.max_size", "64MiB".to_owned()),
            ("refunds.max_size", "16MiB".to_owned()),
            ("audit.max_size", "64MiB".to_owned()),
        ];
        // A port that the system picks is not known before the gateway has it.
        let given = std::env::var_os(PUBLIC_URL).is_some();
        settings.extend(public_url(self.scheme, self.listen, given));
        if std::env::var_os(COMMIT).is_none() {
            let manner = match self.sync_always {
                true => "together",
                false => "one_by_one",
            };
            settings.push(("commit.manner", manner.to_owned()));
        }
        let settings = settings::load(None, &settings)?;
        let orchestrator = orchestrator::start(settings, self.telemetry.clone()).await;
        Ok(self.called(started("orchestrator", orchestrator)?))
    }

    async fn worker(&mut self, registry: &Setting) -> Result<(), CliError> {
        let settings = [
            self.broker(),
            admin(),
            self.storage(),
            registry.clone(),
            ("worker.cache_dir", self.path("cache")),
        ];
        let settings = settings::load(None, &settings)?;
        let worker = gpu_worker::start(settings, self.telemetry.clone()).await;
        self.services.push(started("gpu-worker", worker)?);
        Ok(())
    }

    async fn gateway(
        &mut self,
        auth: Setting,
        registry: Setting,
        orchestrator: Setting,
    ) -> Result<(), CliError> {
        let settings = [
            admin(),
            self.storage(),
            registry,
            auth,
            orchestrator,
            ("http.listen", self.listen.to_string()),
        ];
        let settings = settings::load(None, &settings)?;
        let gateway = gateway::start(settings, self.telemetry.clone()).await;
        self.services.push(started("gateway", gateway)?);
        Ok(())
    }

    /// Keeps a service that others call, and says where it is.
    fn called(&mut self, service: Service) -> String {
        let url = format!("http://{}", service.address("grpc"));
        self.services.push(service);
        url
    }

    fn path(&self, name: &str) -> String {
        self.place.join(name).display().to_string()
    }

    fn broker(&self) -> Setting {
        ("broker.url", self.broker_url.clone())
    }

    fn storage(&self) -> Setting {
        ("storage.url", format!("file://{}", self.path("objects")))
    }
}

fn admin() -> Setting {
    ("process.admin_listen", free())
}

fn grpc() -> Setting {
    ("grpc.listen", free())
}

/// A port that the system picks.
fn free() -> String {
    "127.0.0.1:0".to_owned()
}

/// What webhooks and notices call the platform by, where the operator says nothing and it is known.
fn public_url(scheme: &str, listen: SocketAddr, given: bool) -> Option<(&'static str, String)> {
    let known = !given && listen.port() != 0;
    known.then(|| ("notices.public_url", format!("{scheme}://{listen}")))
}

fn scheme_of(gateway: &gateway::Settings) -> &'static str {
    match gateway.http.tls.is_on() {
        true => "https",
        false => "http",
    }
}

fn started<E>(service: &'static str, result: Result<Service, E>) -> Result<Service, CliError>
where
    E: std::error::Error + Send + Sync + 'static,
{
    result.map_err(|source| CliError::Start {
        service,
        source: Box::new(source),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_port_with_a_certificate_is_announced_as_https() {
        let gateway = |overrides: &[(&str, String)]| settings::load(None, overrides).unwrap();
        assert_eq!(scheme_of(&gateway(&[])), "http");
        let tls = [
            ("http.tls.cert", "/c.pem".to_owned()),
            ("http.tls.key", "/k.pem".to_owned()),
        ];
        assert_eq!(scheme_of(&gateway(&tls)), "https");
    }

    #[test]
    fn what_the_operator_calls_the_platform_by_is_not_overruled() {
        let listen = "127.0.0.1:8080".parse().unwrap();
        let own = ("notices.public_url", "https://127.0.0.1:8080".to_owned());
        assert_eq!(public_url("https", listen, false), Some(own));
        assert_eq!(public_url("https", listen, true), None);
        // Which port it will be is not known yet.
        assert_eq!(
            public_url("http", "127.0.0.1:0".parse().unwrap(), false),
            None
        );
    }
}
