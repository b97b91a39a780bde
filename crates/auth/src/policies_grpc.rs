//! `PolicyService`: decode, call, encode.

use std::sync::Arc;

use contract::auth::policy_service_server::{PolicyService, PolicyServiceServer};
use contract::auth::{
    ListPoliciesRequest, ListPoliciesResponse, PolicyInfo, RemovePolicyRequest,
    RemovePolicyResponse, SetPolicyRequest, SetPolicyResponse,
};
use tonic::{Request, Response, Status};

use crate::admin::AdminToken;
use crate::error::AuthError;
use crate::grpc::status;
use crate::policies::{Policies, Stored};
use crate::policy;

struct PolicyGrpc {
    policies: Policies,
    admin: Arc<AdminToken>,
}

/// The service, for those who show the admin token.
pub(crate) fn server(
    policies: Policies,
    admin: Arc<AdminToken>,
) -> PolicyServiceServer<impl PolicyService> {
    PolicyServiceServer::new(PolicyGrpc { policies, admin })
}

#[tonic::async_trait]
impl PolicyService for PolicyGrpc {
    async fn list_policies(
        &self,
        request: Request<ListPoliciesRequest>,
    ) -> Result<Response<ListPoliciesResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let all = self.policies.list().await.map_err(status)?;
        let policies = all.into_iter().map(encode).collect();
        Ok(Response::new(ListPoliciesResponse { policies }))
    }

    async fn set_policy(
        &self,
        request: Request<SetPolicyRequest>,
    ) -> Result<Response<SetPolicyResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let SetPolicyRequest {
            prefix,
            policy,
            revision,
        } = request.into_inner();
        let policy = policy.ok_or_else(|| AuthError::Invalid {
            field: "policy",
            problem: "is missing".to_owned(),
        });
        let policy = policy.and_then(policy::decode).map_err(status)?;
        let stored = self.policies.set(&prefix, policy, revision).await;
        let policy = Some(encode(stored.map_err(status)?));
        Ok(Response::new(SetPolicyResponse { policy }))
    }

    async fn remove_policy(
        &self,
        request: Request<RemovePolicyRequest>,
    ) -> Result<Response<RemovePolicyResponse>, Status> {
        self.admin.admit(request.metadata()).map_err(status)?;
        let RemovePolicyRequest {
            prefix,
            even_if_used,
        } = request.into_inner();
        let removed = self.policies.remove(&prefix, even_if_used).await;
        let policy = Some(encode(removed.map_err(status)?));
        Ok(Response::new(RemovePolicyResponse { policy }))
    }
}

fn encode(stored: Stored) -> PolicyInfo {
    PolicyInfo {
        prefix: format!("{}-", stored.name),
        policy: Some(policy::encode(&stored.name, &stored.policy)),
        revision: stored.revision,
        keys: u32::try_from(stored.keys).unwrap_or(u32::MAX),
    }
}
