//! `inkstone keys`: on auth's own address, with its admin token.

use std::path::Path;

use contract::auth::key_service_client::KeyServiceClient;
use contract::auth::{
    CreateKeyRequest, GetWebhookSecretRequest, KeyInfo, ListKeysRequest, RevokeKeyRequest,
};
use rpc::Identity;

use crate::callee::Callee;
use crate::cli::{AuthArgs, KeysCommand, TlsArgs};
use crate::client::{service_peer, with_bearer};
use crate::error::CliError;
use crate::out::say;
use crate::place::Place;

/// Where auth's address can be given.
pub(crate) const AUTH_URL: &str = "--auth-url";

/// Where auth is, and the token that it asks operators for.
pub(crate) struct Operator {
    pub(crate) auth: Callee,
    pub(crate) token: String,
}

impl Operator {
    /// As given, or those of the platform that runs on the data folder.
    pub(crate) fn of(data: &Path, args: &AuthArgs, tls: &TlsArgs) -> Result<Self, CliError> {
        let place = Place::at(data);
        let local = place.running().map(|running| running.auth);
        let url = args
            .auth_url
            .clone()
            .or(local)
            .ok_or_else(|| CliError::NotRunning {
                data: data.to_owned(),
            })?;
        let file = args.admin_token_file.clone();
        let file = file.unwrap_or_else(|| place.admin_token_file());
        let token = std::fs::read_to_string(&file).map_err(CliError::file("read", &file))?;
        let token = token.trim().to_owned();
        let auth = Callee::service(&url, AUTH_URL, tls);
        Ok(Self { auth, token })
    }
}

pub(crate) async fn run(
    data: &Path,
    args: &AuthArgs,
    tls: &TlsArgs,
    command: KeysCommand,
) -> Result<(), CliError> {
    let Operator { auth, token } = Operator::of(data, args, tls)?;
    let token = token.as_str();
    let mut keys = KeyServiceClient::new(service_peer(&auth, Identity::Auth, tls)?);
    match command {
        KeysCommand::Create {
            tenant,
            prefix,
            name,
            no_signature_v1,
        } => {
            let request = CreateKeyRequest {
                prefix,
                tenant,
                name,
                allow_signature_v1: !no_signature_v1,
            };
            let created = keys.create_key(with_bearer(request, token)?);
            let created = auth.call(created).await?;
            let key = created
                .key
                .ok_or(CliError::Answer("a creation without a key"))?;
            say!("app key  {}", key.app_key);
            say!("secret   {}   (signatures)", created.secret);
            say!("bearer   {}   (Authorization: Bearer)", created.bearer);
            say!("Neither is shown again.");
        }
        KeysCommand::List { tenant } => {
            let none = match tenant.as_str() {
                "" => "There are no keys.".to_owned(),
                tenant => format!("The tenant {tenant} has no keys."),
            };
            let listed = keys.list_keys(with_bearer(ListKeysRequest { tenant }, token)?);
            let listed = auth.call(listed).await?;
            if listed.keys.is_empty() {
                say!("{none}");
                return Ok(());
            }
            say!(
                "{:<24} {:<16} {:<9} {:<21} NAME",
                "APP KEY",
                "TENANT",
                "STATE",
                "CREATED"
            );
            for key in listed.keys {
                print_key(&key);
            }
        }
        KeysCommand::WebhookSecret { app_key } => {
            let request = GetWebhookSecretRequest { app_key };
            let found = keys.get_webhook_secret(with_bearer(request, token)?);
            say!("{}", auth.call(found).await?.secret);
        }
        KeysCommand::Revoke { app_key } => {
            let revoked = keys.revoke_key(with_bearer(RevokeKeyRequest { app_key }, token)?);
            let key = auth.call(revoked).await?.key;
            print_key(&key.ok_or(CliError::Answer("a revocation without a key"))?);
        }
    }
    Ok(())
}

fn print_key(key: &KeyInfo) {
    let state = if key.revoked_at.is_some() {
        "revoked"
    } else {
        "good"
    };
    let created = key
        .created_at
        .and_then(|at| jiff::Timestamp::from_second(at.seconds).ok());
    let created = created.map(|at| at.to_string()).unwrap_or_default();
    let KeyInfo {
        app_key,
        tenant,
        name,
        ..
    } = key;
    say!("{app_key:<24} {tenant:<16} {state:<9} {created:<21} {name}");
}
