//! How keys are managed, and with what auth refuses to start.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use aws_lc_rs::hmac;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use contract::ErrorCode;
use contract::auth::{
    CreateKeyRequest, GetWebhookSecretRequest, ListKeysRequest, RevokeKeyRequest,
    SignWebhookRequest,
};
use tonic::Request;

use crate::bench::{self, Bench, app_key, bearer, new_key, telemetry, with_token};

#[tokio::test]
async fn keys_are_managed_only_with_the_admin_token() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("prod-").await;
    let wrong = "x".repeat(43);
    for token in [
        None,
        Some(""),
        Some(wrong.as_str()),
        Some(made.bearer.as_str()),
    ] {
        fn request<T>(token: Option<&str>, message: T) -> Request<T> {
            match token {
                Some(token) => with_token(message, token),
                None => Request::new(message),
            }
        }
        let revoke = RevokeKeyRequest {
            app_key: app_key(&made),
        };
        let keys = &mut instance.keys;
        let refusals = [
            bench::failure(keys.create_key(request(token, new_key("prod-"))).await),
            bench::failure(
                keys.list_keys(request(token, ListKeysRequest::default()))
                    .await,
            ),
            bench::failure(keys.revoke_key(request(token, revoke)).await),
        ];
        for refused in refusals {
            assert_eq!(refused.code, ErrorCode::Unauthenticated, "{refused}");
            assert!(refused.message.contains("admin_token_file"), "{refused}");
        }
    }
    instance.authenticate(bearer(&made)).await.unwrap();
}

#[tokio::test]
async fn what_is_wrong_with_a_new_key_is_named_by_field() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let good = new_key("prod-");
    let wrong = [
        (
            "prefix",
            CreateKeyRequest {
                prefix: "staging-".into(),
                ..good.clone()
            },
        ),
        (
            "tenant",
            CreateKeyRequest {
                tenant: "Acme".into(),
                ..good.clone()
            },
        ),
        (
            "name",
            CreateKeyRequest {
                name: "n".repeat(81),
                ..good
            },
        ),
    ];
    for (field, request) in wrong {
        let request = instance.admin(request);
        let refused = bench::failure(instance.keys.create_key(request).await);
        assert_eq!(refused.code, ErrorCode::InvalidArgument);
        assert_eq!(refused.field.as_deref(), Some(field), "{refused}");
    }
    let unknown = instance.admin(RevokeKeyRequest {
        app_key: "prod-unknown".into(),
    });
    let refused = bench::failure(instance.keys.revoke_key(unknown).await);
    assert_eq!(refused.code, ErrorCode::NotFound);
    assert_eq!(refused.field.as_deref(), Some("app_key"));
}

#[tokio::test]
async fn keys_are_listed_in_order_by_tenant_and_show_no_secret() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let mut made = Vec::new();
    for (prefix, tenant) in [("test-", "acme"), ("prod-", "acme"), ("dev-", "bcme")] {
        let tenant = tenant.to_owned();
        let request = instance.admin(CreateKeyRequest {
            tenant,
            ..new_key(prefix)
        });
        made.push(
            instance
                .keys
                .create_key(request)
                .await
                .unwrap()
                .into_inner(),
        );
    }
    let mut names: Vec<_> = made.iter().map(app_key).collect();
    names.sort();
    let all = instance.admin(ListKeysRequest::default());
    let all = instance.keys.list_keys(all).await.unwrap().into_inner();
    let listed: Vec<_> = all.keys.iter().map(|k| k.app_key.clone()).collect();
    assert_eq!(listed, names);
    let shown = format!("{all:?}");
    for key in &made {
        let random = key.bearer.rsplit_once('-').map_or("", |(_, r)| r);
        assert!(!shown.contains(&key.secret) && !shown.contains(&key.bearer) && !random.is_empty());
    }
    let first = &all.keys[0];
    assert_eq!(first.policy.as_ref().unwrap().models, ["*"]);
    assert!(first.created_at.is_some() && first.revoked_at.is_none());
    let one = instance.admin(ListKeysRequest {
        tenant: "bcme".into(),
    });
    let one = instance.keys.list_keys(one).await.unwrap().into_inner();
    assert_eq!(one.keys.len(), 1);
}

#[tokio::test]
async fn revoking_from_everywhere_at_once_is_revoking_once() {
    let bench = Bench::new();
    let mut one = bench.instance().await;
    let two = bench.instance().await;
    let made = one.create("prod-").await;
    let revoke = async |instance: &bench::Instance| {
        let request = instance.admin(RevokeKeyRequest {
            app_key: app_key(&made),
        });
        let answer = instance.keys.clone().revoke_key(request).await;
        answer
            .unwrap()
            .into_inner()
            .key
            .unwrap()
            .revoked_at
            .unwrap()
    };
    let times = tokio::join!(revoke(&one), revoke(&two), revoke(&one), revoke(&two));
    let later = revoke(&two).await;
    for at in [times.0, times.1, times.2, times.3] {
        assert_eq!(at, later);
    }
}

#[tokio::test]
async fn the_files_are_made_for_their_owner_only_and_refused_when_others_can_read_them() {
    let bench = Bench::new();
    bench.instance().await.stop().await;
    for file in [bench.key_file(), bench.token_file()] {
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
        let refused = auth::start(bench.settings(), telemetry())
            .await
            .err()
            .unwrap();
        let refused = refused.to_string();
        assert!(
            refused.contains("0644") && refused.contains("chmod 600"),
            "{refused}"
        );
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    bench.instance().await.stop().await;
}

#[tokio::test]
async fn a_key_file_that_opens_none_of_the_stored_keys_is_refused() {
    let bench = Bench::new();
    let mut instance = bench.instance().await;
    let made = instance.create("prod-").await;
    instance.stop().await;
    let kept = fs::read(bench.key_file()).unwrap();
    fs::remove_file(bench.key_file()).unwrap();
    let refused = auth::start(bench.settings(), telemetry())
        .await
        .err()
        .unwrap();
    let text = refused.to_string();
    assert!(
        matches!(refused, auth::StartError::OtherKey { keys: 1, .. }),
        "{text}"
    );
    assert!(text.contains("keys.key_file"), "{text}");
    fs::write(bench.key_file(), kept).unwrap();
    let mut again = bench.instance().await;
    again.authenticate(bearer(&made)).await.unwrap();
}

#[tokio::test]
async fn a_keys_webhooks_are_signed_with_a_secret_that_only_its_owner_is_shown() {
    let bench = Bench::new();
    let mut auth = bench.instance().await;
    let made = auth.create("dev-").await;
    let ask = GetWebhookSecretRequest {
        app_key: app_key(&made),
    };
    let stranger = auth.keys.get_webhook_secret(Request::new(ask.clone()));
    let refused = bench::failure(stranger.await);
    assert_eq!(refused.code, ErrorCode::Unauthenticated);
    let request = auth.admin(ask.clone());
    let secret = auth.keys.get_webhook_secret(request).await.unwrap();
    let secret = secret.into_inner().secret;
    assert!(secret.starts_with("whsec_"), "not in its form");

    let sign = SignWebhookRequest {
        app_key: app_key(&made),
        tenant: "acme".to_owned(),
        message_id: "m-1".to_owned(),
        timestamp: 1_700_000_000,
        body: b"{}".to_vec(),
    };
    let signed = auth.auth.sign_webhook(sign.clone()).await.unwrap();
    let base64 = secret.trim_start_matches("whsec_");
    let key = STANDARD.decode(base64).unwrap();
    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
    let expected = hmac::sign(&key, b"m-1.1700000000.{}");
    let expected = format!("v1,{}", STANDARD.encode(expected));
    assert_eq!(signed.into_inner().signature, expected);

    // Another tenant cannot have its words signed with this key.
    let foreign = SignWebhookRequest {
        tenant: "bcme".to_owned(),
        ..sign.clone()
    };
    let refused = bench::failure(auth.auth.sign_webhook(foreign).await);
    assert_eq!(refused.code, ErrorCode::NotFound);
    // Another instance, and the same key after it was revoked, sign alike.
    let revoke = auth.admin(RevokeKeyRequest {
        app_key: app_key(&made),
    });
    auth.keys.revoke_key(revoke).await.unwrap();
    let mut other = bench.instance().await;
    let again = other.auth.sign_webhook(sign).await.unwrap();
    assert_eq!(again.into_inner().signature, expected);
}
