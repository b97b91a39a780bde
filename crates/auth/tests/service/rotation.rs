//! The key-encryption key is changed under a running platform.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use contract::auth::RevokeKeyRequest;
use contract::auth::authenticate_request::Proof;
use messaging::{Broker, Bucket};

use crate::bench::{Bench, Instance, app_key, bearer, now, signed, telemetry, until};
use crate::tokens::issue;

/// Auth with `wraps` as the key that wraps, `next` that unwraps, and `old` whose turn is over.
fn settings(bench: &Bench, wraps: &Path, next: &[&Path], old: &[&Path]) -> auth::Settings {
    let owned = |paths: &[&Path]| paths.iter().map(|&path| path.to_owned()).collect();
    let mut settings = bench.settings();
    settings.keys.key_file = wraps.to_owned();
    settings.keys.other_key_files = owned(next);
    settings.keys.old_key_files = owned(old);
    settings
}

/// Which key-encryption keys the records of a bucket are wrapped by.
async fn wrapped_by(bench: &Bench, bucket: &'static str) -> Vec<String> {
    let settings = bench.settings().broker;
    let broker = Broker::connect(&settings, "test").await.unwrap();
    let bucket = broker.bucket(bucket, Duration::ZERO).await;
    let bucket: Bucket<serde_json::Value> = bucket.unwrap();
    let all = bucket.all().await.unwrap();
    let kek = |record: &serde_json::Value| {
        let key = record
            .pointer("/envelope/data_key/kek")
            .or(record.pointer("/data_key/kek"));
        key.unwrap().as_str().unwrap().to_owned()
    };
    let mut ids: Vec<_> = all.values().map(kek).collect();
    ids.sort();
    ids.dedup();
    ids
}

/// Which write each key's record is of.
async fn revisions(bench: &Bench) -> BTreeMap<String, u64> {
    let settings = bench.settings().broker;
    let broker = Broker::connect(&settings, "test").await.unwrap();
    let bucket = broker.bucket("KEYS", Duration::ZERO).await;
    let bucket: Bucket<serde_json::Value> = bucket.unwrap();
    let mut revisions = BTreeMap::new();
    for name in bucket.all().await.unwrap().into_keys() {
        let entry = bucket.get(&name).await.unwrap().unwrap();
        revisions.insert(name, entry.revision);
    }
    revisions
}

async fn all_are_let_in(instance: &mut Instance, keys: &[contract::auth::CreateKeyResponse]) {
    for made in keys {
        instance.authenticate(bearer(made)).await.unwrap();
        instance.authenticate(signed(made, now())).await.unwrap();
    }
}

#[tokio::test]
async fn the_key_encryption_key_is_changed_while_everyone_is_let_in() {
    let bench = Bench::new();
    let (old, new): (PathBuf, PathBuf) = (bench.key_file(), bench.folder.path().join("auth/new"));
    let mut first = bench.instance().await;
    let mut keys = Vec::new();
    for _ in 0..20 {
        keys.push(first.create("dev-").await);
    }
    let token = issue(&mut first, bearer(&keys[0]), 0).await.unwrap().token;
    let before = wrapped_by(&bench, "KEYS").await;
    assert_eq!(wrapped_by(&bench, "SIGNING_KEYS").await, before);
    fs::write(&new, "77".repeat(32)).unwrap();
    let mode = fs::metadata(&old).unwrap().permissions();
    fs::set_permissions(&new, mode).unwrap();

    // First every instance learns to unwrap by the new key, …
    let mut second = bench
        .instance_with(settings(&bench, &old, &[&new], &[]))
        .await;
    first.stop().await;
    // … then they wrap by it, one after the other.
    let mut third = bench
        .instance_with(settings(&bench, &new, &[], &[&old]))
        .await;
    let mut revoked = false;
    let done = async || {
        all_are_let_in(&mut second, &keys[..19]).await;
        all_are_let_in(&mut third, &keys[..19]).await;
        if !revoked {
            // What is written at the same time is not lost.
            let app_key = app_key(&keys[19]);
            let revoke = third.admin(RevokeKeyRequest { app_key });
            third.keys.revoke_key(revoke).await.unwrap();
            revoked = true;
        }
        let (keys, signing) = (
            wrapped_by(&bench, "KEYS").await,
            wrapped_by(&bench, "SIGNING_KEYS").await,
        );
        (keys.len() == 1 && keys != before && signing == keys).then_some(())
    };
    until(Duration::from_secs(20), done).await;
    // The second still wraps by the old key, and leaves alone what the third has wrapped by the new one: it changes nothing, and
    // every look of either would show.
    let revisions = revisions(&bench).await;
    let looks = second.create("dev-").await;
    let wrapped = async || {
        let by = wrapped_by(&bench, "KEYS").await;
        (by.len() == 1 && by != before).then_some(())
    };
    until(Duration::from_secs(20), wrapped).await;
    second.authenticate(bearer(&looks)).await.unwrap();
    let after = self::revisions(&bench).await;
    let changed = revisions.iter().filter(|(key, at)| after[*key] != **at);
    assert_eq!(changed.count(), 0, "{revisions:?} {after:?}");
    second.stop().await;
    third.stop().await;

    // The old key is not needed any more, and without the new one nothing starts.
    let mut last = bench.instance_with(settings(&bench, &new, &[], &[])).await;
    all_are_let_in(&mut last, &keys[..19]).await;
    last.authenticate(bearer(&keys[19])).await.unwrap_err();
    last.authenticate(Proof::Bearer(token)).await.unwrap();
    let refused = auth::start(settings(&bench, &old, &[], &[]), telemetry()).await;
    assert!(matches!(
        refused.err().unwrap(),
        auth::StartError::OtherKey { .. }
    ));
}
