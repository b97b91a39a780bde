//! Tokens over several instances.

use std::time::Duration;

use contract::ErrorCode;
use contract::Failure;
use contract::auth::authenticate_request::Proof;
use contract::auth::{
    AuthenticateRequest, IssueTokenRequest, IssueTokenResponse, ListTokenKeysRequest,
    ListTokenKeysResponse, RenewAssertionRequest, RevokeKeyRequest,
};

use crate::bench::{Bench, Instance, app_key, bearer, now, until};
use crate::signatures::signed_v2;

pub(crate) async fn issue(
    instance: &mut Instance,
    proof: Proof,
    lifetime_seconds: u32,
) -> Result<IssueTokenResponse, Failure> {
    let request = IssueTokenRequest {
        caller: Some(AuthenticateRequest {
            proof: Some(proof),
            receipt: None,
        }),
        lifetime_seconds,
    };
    let issued = instance.auth.issue_token(request).await;
    issued
        .map(tonic::Response::into_inner)
        .map_err(Failure::from)
}

async fn listed(instance: &mut Instance) -> ListTokenKeysResponse {
    let keys = instance.auth.list_token_keys(ListTokenKeysRequest {}).await;
    keys.unwrap().into_inner()
}

async fn kids(instance: &mut Instance) -> Vec<String> {
    let keys = listed(instance).await.keys;
    keys.into_iter().map(|key| key.kid).collect()
}

#[tokio::test]
async fn no_signing_key_is_made_or_removed_by_an_instance_for_its_own_clock() {
    let bench = Bench::new();
    let mut settings = bench.settings();
    settings.tokens.rotate_every = "3h".parse().unwrap();
    let mut one = bench.instance_with(settings.clone()).await;
    let ids = kids(&mut one).await;
    // Of this process, which has no other test in it.
    contract::clock::set_offset(24 * 3600);
    // It does what is due before it has started.
    let mut ahead = bench.instance_with(settings).await;
    assert_eq!(kids(&mut ahead).await, ids);
}

#[tokio::test]
async fn the_first_instance_issues_tokens_at_once_though_its_clock_is_behind() {
    contract::clock::set_offset(-3600);
    let bench = Bench::new();
    let mut one = bench.instance().await;
    let made = one.create("prod-").await;
    let issued = issue(&mut one, bearer(&made), 0).await.unwrap();
    assert!(!issued.token.is_empty());
}

#[tokio::test]
async fn a_token_of_one_instance_is_good_at_all_until_its_key_is_revoked() {
    let bench = Bench::new();
    // They start at the same moment, and agree on one key.
    let (mut one, mut two, mut three) =
        tokio::join!(bench.instance(), bench.instance(), bench.instance());
    let ids = kids(&mut one).await;
    assert_eq!(ids.len(), 1);
    assert_eq!(
        (kids(&mut two).await, kids(&mut three).await),
        (ids.clone(), ids.clone())
    );

    let made = one.create("prod-").await;
    let known = async || two.authenticate(bearer(&made)).await.ok();
    until(Duration::from_secs(2), known).await;
    let issued = issue(&mut one, bearer(&made), 0).await.unwrap();
    assert_eq!(issued.lifetime_seconds, 900);
    assert!(issued.rate_limit.unwrap().remaining < 50);
    let v2 = signed_v2(&made, now(), "a-nonce-for-a-token");
    let short = issue(&mut one, v2, 60).await.unwrap();
    assert_eq!(short.lifetime_seconds, 60);
    for token in [&issued.token, &short.token] {
        for instance in [&mut one, &mut two] {
            let answer = instance.authenticate(Proof::Bearer(token.clone())).await;
            let caller = answer.unwrap().caller.unwrap();
            assert_eq!(
                (caller.tenant.as_str(), caller.app_key),
                ("acme", app_key(&made))
            );
        }
    }

    let revoke = RevokeKeyRequest {
        app_key: app_key(&made),
    };
    one.keys.revoke_key(one.admin(revoke)).await.unwrap();
    let token = Proof::Bearer(issued.token);
    let refused = one.authenticate(token.clone()).await.unwrap_err();
    assert_eq!(refused.field.as_deref(), Some("Authorization"));
    let gone = async || two.authenticate(token.clone()).await.err();
    let (refused, _) = until(Duration::from_secs(1), gone).await;
    assert_eq!(
        refused.message,
        "the key, the token or the signature is not valid"
    );
    // An instance that starts later has the same key, and turns the same token away.
    let mut four = bench.instance().await;
    assert_eq!(kids(&mut four).await, ids);
    four.authenticate(token).await.unwrap_err();
}

#[tokio::test]
async fn an_instance_says_of_which_signing_keys_it_cannot_tell_the_public_half() {
    let bench = Bench::new();
    let mut opens = bench.instance().await;
    let mut settings = bench.settings();
    // It finds none there and makes one, by which nothing was sealed.
    settings.keys.key_file = bench.folder.path().join("auth/another-kek");
    let mut opens_none = bench.instance_with(settings).await;
    let whole = listed(&mut opens).await;
    let generations: Vec<_> = whole.keys.iter().map(|key| key.generation).collect();
    assert_eq!((generations, whole.unopened), (vec![1], vec![]));
    let partial = listed(&mut opens_none).await;
    assert_eq!((partial.keys, partial.unopened), (vec![], vec![1]));
    opens.stop().await;
    opens_none.stop().await;
}

async fn renew(instance: &mut Instance, assertion: &str) -> Result<String, Failure> {
    let request = RenewAssertionRequest {
        assertion: assertion.to_owned(),
    };
    let renewed = instance.auth.renew_assertion(request).await;
    let renewed = renewed.map_err(Failure::from)?;
    Ok(renewed.into_inner().assertion)
}

#[tokio::test]
async fn an_instance_that_cannot_open_a_signing_key_does_not_answer_as_if_the_callers_key_were_revoked()
 {
    let bench = Bench::new();
    let mut opens = bench.instance().await;
    let mut settings = bench.settings();
    settings.keys.key_file = bench.folder.path().join("auth/another-kek");
    let mut opens_none = bench.instance_with(settings).await;
    let made = opens.create("prod-").await;
    let admitted = opens.authenticate(bearer(&made)).await.unwrap();
    let assertion = admitted.caller.unwrap().assertion;
    let refused = renew(&mut opens_none, &assertion).await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unavailable, "{refused}");
    assert!(refused.retry_after.is_some(), "{refused}");
    let refused = renew(&mut opens_none, "").await.unwrap_err();
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    renew(&mut opens, &assertion).await.unwrap();
    opens.stop().await;
    opens_none.stop().await;
}

#[tokio::test]
async fn an_assertion_lets_nobody_in_and_is_renewed_at_any_instance_until_its_key_is_revoked() {
    let bench = Bench::new();
    let (mut one, mut two) = tokio::join!(bench.instance(), bench.instance());
    let made = one.create("prod-").await;
    let known = async || two.authenticate(bearer(&made)).await.ok();
    until(Duration::from_secs(2), known).await;
    let asserted = async |instance: &mut Instance, proof: Proof| {
        let answer = instance.authenticate(proof).await.unwrap();
        answer.caller.unwrap().assertion
    };
    let assertion = asserted(&mut one, bearer(&made)).await;
    // However the key was shown, and not signed anew for each request.
    let v2 = signed_v2(&made, now(), "a-nonce-for-an-assertion");
    assert_eq!(asserted(&mut one, v2).await, assertion);
    let token = issue(&mut one, bearer(&made), 0).await.unwrap().token;
    let by_token = asserted(&mut one, Proof::Bearer(token.clone())).await;
    assert_eq!(by_token, assertion);

    for instance in [&mut one, &mut two] {
        let shown = Proof::Bearer(assertion.clone());
        let refused = instance.authenticate(shown.clone()).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unauthenticated);
        let refused = issue(instance, shown, 0).await.unwrap_err();
        assert_ne!(refused.code, ErrorCode::Internal);
        let renewed = renew(instance, &assertion).await.unwrap();
        assert_eq!(renewed.matches('.').count(), 2);
        for other in ["", &token, &made.bearer] {
            let refused = renew(instance, other).await.unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unauthenticated);
        }
    }
    assert_eq!(renew(&mut one, &assertion).await.unwrap(), assertion);

    let revoke = RevokeKeyRequest {
        app_key: app_key(&made),
    };
    one.keys.revoke_key(one.admin(revoke)).await.unwrap();
    let gone = async || renew(&mut two, &assertion).await.err();
    let (refused, _) = until(Duration::from_secs(1), gone).await;
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn a_token_buys_no_token_and_a_lifetime_is_within_its_limits() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("prod-").await;
    let token = issue(&mut instance, bearer(&made), 0).await.unwrap().token;
    let refused = issue(&mut instance, Proof::Bearer(token), 0)
        .await
        .unwrap_err();
    assert_eq!(refused.code, ErrorCode::PermissionDenied);
    for lifetime in [59, 901] {
        let refused = issue(&mut instance, bearer(&made), lifetime)
            .await
            .unwrap_err();
        assert_eq!(refused.field.as_deref(), Some("lifetime_seconds"));
        assert!(refused.message.contains("60 to 900"), "{refused}");
    }
    let refused = issue(&mut instance, Proof::Bearer("ink_prod-x_y".to_owned()), 0).await;
    assert_eq!(refused.unwrap_err().code, ErrorCode::Unauthenticated);
}

#[tokio::test]
async fn tokens_are_verified_while_the_broker_is_down_and_after_a_restart() {
    let mut bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("prod-").await;
    let token = issue(&mut instance, bearer(&made), 0).await.unwrap().token;
    let token = Proof::Bearer(token);
    bench.broker.kill();
    instance.authenticate(token.clone()).await.unwrap();
    issue(&mut instance, bearer(&made), 0).await.unwrap();
    bench.broker.restart().unwrap();
    let mut again = bench.instance().await;
    again.authenticate(token).await.unwrap();
}
