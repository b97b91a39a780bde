//! Policies, as operators change them.

use std::time::Duration;

use contract::auth::{ListPoliciesRequest, PolicyInfo, RemovePolicyRequest, SetPolicyRequest};
use contract::{ErrorCode, Failure};
use tonic::Request;

use crate::bench::{Bench, Instance, bearer, failure, until};

async fn list(instance: &mut Instance) -> Vec<PolicyInfo> {
    let request = instance.admin(ListPoliciesRequest {});
    let listed = instance.policies.list_policies(request).await.unwrap();
    listed.into_inner().policies
}

async fn set(instance: &mut Instance, request: SetPolicyRequest) -> Result<PolicyInfo, Failure> {
    let request = instance.admin(request);
    let answer = instance.policies.set_policy(request).await?;
    Ok(answer.into_inner().policy.unwrap())
}

fn changed(info: &PolicyInfo, per_second: u32) -> SetPolicyRequest {
    let mut policy = info.policy.clone().unwrap();
    policy.requests_per_second = per_second;
    policy.images_per_day = Some(77);
    SetPolicyRequest {
        prefix: info.prefix.clone(),
        policy: Some(policy),
        revision: info.revision,
    }
}

#[tokio::test]
async fn a_policy_that_one_instance_sets_is_in_force_at_another_within_a_second() {
    let bench = Bench::new();
    let (mut one, mut two) = tokio::join!(bench.instance(), bench.instance());
    let made = one.create("dev-").await;
    let known = async || two.authenticate(bearer(&made)).await.ok();
    until(Duration::from_secs(2), known).await;
    let before = list(&mut one).await;
    let prefixes: Vec<&str> = before.iter().map(|p| p.prefix.as_str()).collect();
    assert_eq!(prefixes, ["dev-", "prod-", "test-"]);
    assert_eq!((before[0].keys, before[1].keys), (1, 0));

    let stored = set(&mut one, changed(&before[0], 33)).await.unwrap();
    assert_eq!(stored.keys, 1);
    let in_force = async || {
        let caller = two.authenticate(bearer(&made)).await.ok()?.caller?;
        let policy = caller.policy?;
        let as_set = policy.requests_per_second == 33 && policy.images_per_day == Some(77);
        (as_set && policy.name == "dev").then_some(())
    };
    until(Duration::from_secs(1), in_force).await;
    // Whoever looked before that change does not undo it.
    let late = set(&mut two, changed(&before[0], 44)).await.unwrap_err();
    assert_eq!(late.code, ErrorCode::Unavailable);
    assert!(late.message.contains("changed by someone else"), "{late}");
    let new = SetPolicyRequest {
        revision: 0,
        ..changed(&before[0], 44)
    };
    set(&mut two, new.clone()).await.unwrap_err();
    let new = SetPolicyRequest {
        prefix: "gold-".to_owned(),
        ..new
    };
    set(&mut two, new).await.unwrap();
    let there = async || {
        let all = list(&mut one).await;
        all.iter().any(|p| p.prefix == "gold-").then_some(())
    };
    until(Duration::from_secs(1), there).await;
}

#[tokio::test]
async fn a_policy_that_cannot_be_is_refused_by_its_field_and_nobody_else_may_set_one() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let before = list(&mut instance).await;
    let wrong = set(&mut instance, changed(&before[0], 0))
        .await
        .unwrap_err();
    assert_eq!(wrong.code, ErrorCode::InvalidArgument);
    assert_eq!(wrong.field.as_deref(), Some("requests_per_second"));
    assert!(wrong.message.contains("1 to 1000000"), "{wrong}");
    let request = SetPolicyRequest {
        prefix: "dev".to_owned(),
        ..changed(&before[0], 1)
    };
    let wrong = set(&mut instance, request).await.unwrap_err();
    assert_eq!(wrong.field.as_deref(), Some("prefix"));
    let nobody = Request::new(changed(&before[0], 1));
    let refused = failure(instance.policies.set_policy(nobody).await);
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    assert_eq!(list(&mut instance).await, before);
}

#[tokio::test]
async fn a_policy_that_keys_fall_under_is_removed_only_by_who_says_so() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("dev-").await;
    let remove = |even_if_used| RemovePolicyRequest {
        prefix: "dev-".to_owned(),
        even_if_used,
    };
    let request = instance.admin(remove(false));
    let refused = failure(instance.policies.remove_policy(request).await);
    assert!(refused.message.contains("good (1)"), "{refused}");
    let way = r#"inkstone policies remove "dev-" --even-if-used"#;
    assert!(refused.message.contains(way), "{refused}");
    instance.authenticate(bearer(&made)).await.unwrap();
    let request = instance.admin(remove(true));
    instance.policies.remove_policy(request).await.unwrap();
    let refused = instance.authenticate(bearer(&made)).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
    let request = instance.admin(remove(true));
    let gone = failure(instance.policies.remove_policy(request).await);
    assert_eq!(gone.code, ErrorCode::NotFound);
}
