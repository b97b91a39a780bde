//! `inkstone models`.

use std::path::Path;

use contract::registry::registry_service_client::RegistryServiceClient;
use contract::registry::{Model, RegisterVersionRequest, SetTrafficRequest, VersionWeight};
use contract::v1::ListModelsRequest;
use rpc::{Identity, Peer};

use crate::callee::Callee;
use crate::cli::{ModelsCommand, TlsArgs};
use crate::client::{Client, service_peer};
use crate::error::CliError;
use crate::out::say;
use crate::place::Place;

/// Where the registry's address can be given.
const REGISTRY_URL: &str = "--registry-url";

pub(crate) async fn run(
    data: &Path,
    tls: &TlsArgs,
    command: ModelsCommand,
) -> Result<(), CliError> {
    match command {
        ModelsCommand::List { server } => {
            let client = Client::find(data, &server)?;
            let request = client.request(ListModelsRequest {})?;
            let answer = client.call(client.service().list_models(request)).await?;
            if answer.models.is_empty() {
                say!("There are no models that your key may use.");
            }
            for model in answer.models {
                let aliases = model.aliases.join(", ");
                say!(
                    "{}  versions {}  {}×{}, {} steps{}",
                    model.name,
                    model.versions.join(", "),
                    model.default_width,
                    model.default_height,
                    model.default_steps,
                    if aliases.is_empty() {
                        aliases
                    } else {
                        format!("  also called {aliases}")
                    },
                );
                say!("    {}", model.description);
            }
        }
        ModelsCommand::Register {
            folder,
            registry_url,
        } => {
            let (callee, mut registry) = registry(data, tls, registry_url)?;
            let folder = std::path::absolute(&folder).map_err(CliError::file("find", &folder))?;
            let request = RegisterVersionRequest {
                folder: folder.display().to_string(),
            };
            let registered = registry.register_version(rpc::streaming(request));
            let registered = callee.call(registered).await?;
            say!("published version {}", registered.version);
            print_traffic(registered.model)?;
        }
        ModelsCommand::Traffic {
            model,
            weights,
            registry_url,
        } => {
            let (callee, mut registry) = registry(data, tls, registry_url)?;
            let weight = |(version, weight)| VersionWeight { version, weight };
            let request = SetTrafficRequest {
                model,
                weights: weights.into_iter().map(weight).collect(),
            };
            let set = callee.call(registry.set_traffic(request)).await?;
            print_traffic(set.model)?;
        }
    }
    Ok(())
}

/// The registry at this address, or of the platform that runs on the data folder.
pub(crate) fn registry(
    data: &Path,
    tls: &TlsArgs,
    url: Option<String>,
) -> Result<(Callee, RegistryServiceClient<Peer>), CliError> {
    let local = Place::at(data).running().map(|running| running.registry);
    let url = url.or(local).ok_or_else(|| CliError::NotRunning {
        data: data.to_owned(),
    })?;
    let callee = Callee::service(&url, REGISTRY_URL, tls);
    let client = RegistryServiceClient::new(service_peer(&callee, Identity::ModelRegistry, tls)?);
    Ok((callee, client))
}

fn print_traffic(model: Option<Model>) -> Result<(), CliError> {
    let model = model.ok_or(CliError::Answer("a registry answer without a model"))?;
    for version in model.versions {
        say!(
            "{} {}  weight {}",
            model.name,
            version.version,
            version.weight
        );
    }
    Ok(())
}
