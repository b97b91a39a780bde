//! `KeyService`: decode, call, encode.

use std::sync::Arc;
use std::time::SystemTime;

use contract::auth::key_service_server::{KeyService, KeyServiceServer};
use contract::auth::{
    CreateKeyRequest, CreateKeyResponse, GetWebhookSecretRequest, GetWebhookSecretResponse,
    KeyInfo, ListKeysRequest, ListKeysResponse, RevokeKeyRequest, RevokeKeyResponse,
};
use messaging::Snapshot;
use secrecy::ExposeSecret as _;
use tonic::{Request, Response, Status};

use crate::admin::AdminToken;
use crate::error::AuthError;
use crate::grpc::status;
use crate::keys::{self, Keys, NewKey};
use crate::policy::{self, PolicyRecord};
use crate::store::KeyRecord;

/// The service, for those who show the admin token.
pub(crate) fn server(keys: Keys, admin: Arc<AdminToken>) -> KeyServiceServer<impl KeyService> {
    KeyServiceServer::new(KeyGrpc { keys, admin })
}

struct KeyGrpc {
    keys: Keys,
    admin: Arc<AdminToken>,
}

#[tonic::async_trait]
impl KeyService for KeyGrpc {
    async fn create_key(
        &self,
        request: Request<CreateKeyRequest>,
    ) -> Result<Response<CreateKeyResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let new = decode_new(request.into_inner()).map_err(status)?;
        let made = self.keys.create(&new).await.map_err(status)?;
        Ok(Response::new(CreateKeyResponse {
            key: Some(encode_key(&made.record, &self.keys.policies())),
            secret: made.secret.expose_secret().to_owned(),
            bearer: made.bearer.expose_secret().to_owned(),
        }))
    }

    async fn list_keys(
        &self,
        request: Request<ListKeysRequest>,
    ) -> Result<Response<ListKeysResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let tenant = request.into_inner().tenant;
        let tenant = (!tenant.is_empty()).then(|| keys::tenant(&tenant));
        let tenant = tenant.transpose().map_err(status)?;
        let policies = self.keys.policies();
        let listed = self.keys.list(tenant.as_ref());
        let keys = listed
            .iter()
            .map(|key| encode_key(key, &policies))
            .collect();
        Ok(Response::new(ListKeysResponse { keys }))
    }

    async fn revoke_key(
        &self,
        request: Request<RevokeKeyRequest>,
    ) -> Result<Response<RevokeKeyResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let app_key = keys::app_key(&request.into_inner().app_key).map_err(status)?;
        let record = self.keys.revoke(&app_key).await.map_err(status)?;
        let key = Some(encode_key(&record, &self.keys.policies()));
        Ok(Response::new(RevokeKeyResponse { key }))
    }

    async fn get_webhook_secret(
        &self,
        request: Request<GetWebhookSecretRequest>,
    ) -> Result<Response<GetWebhookSecretResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let app_key = keys::app_key(&request.into_inner().app_key).map_err(status)?;
        let secret = self.keys.webhook_secret(&app_key).await.map_err(status)?;
        let secret = secret.expose_secret().to_owned();
        Ok(Response::new(GetWebhookSecretResponse { secret }))
    }
}

fn decode_new(message: CreateKeyRequest) -> Result<NewKey, AuthError> {
    Ok(NewKey {
        prefix: message.prefix,
        tenant: keys::tenant(&message.tenant)?,
        name: keys::name(message.name)?,
        allow_signature_v1: message.allow_signature_v1,
    })
}

fn encode_key(key: &KeyRecord, policies: &Snapshot<PolicyRecord>) -> KeyInfo {
    KeyInfo {
        app_key: key.app_key.to_string(),
        tenant: key.tenant.to_string(),
        name: key.name.clone(),
        allow_signature_v1: key.allow_signature_v1,
        created_at: Some(SystemTime::from(key.created_at).into()),
        revoked_at: key.revoked_at.map(|at| SystemTime::from(at).into()),
        policy: policy::choose(policies, &key.app_key)
            .map(|(name, policy)| policy::encode(name, policy)),
    }
}
