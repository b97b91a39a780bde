//! Whether the keys of what stays open are still good: streams, and requests that wait for pictures.
//!
//! Auth has let them in once. While any is open for a key, one job asks auth about it now and then, and all of the key's end when it is
//! revoked. An auth that does not answer, or cannot tell, ends nothing: it is asked again, and what is open has its own bound.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, Weak};
use std::time::Duration;

use contract::auth::Caller;
use contract::{ErrorCode, Failure};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::edge::Edge;

/// Between two looks at one key. There are no more keys than streams and waiting requests.
const PERIOD: Duration = Duration::from_secs(2);

/// The keys that something is open for, each for as long as that is so.
#[derive(Default)]
pub(crate) struct OpenKeys(Mutex<HashMap<String, Weak<OpenKey>>>);

/// A key that something is open for. Its job ends with the last copy.
pub(crate) struct OpenKey {
    revoked: CancellationToken,
    _let_go: DropGuard,
}

impl OpenKey {
    /// Waits until auth has said that the key is no longer good: what its caller hears then.
    pub(crate) async fn revoked(&self) -> Failure {
        self.revoked.cancelled().await;
        let message = "the key, the token or the signature is not valid any more";
        Failure::new(ErrorCode::Unauthenticated, message)
    }
}

impl OpenKeys {
    fn open(&self) -> MutexGuard<'_, HashMap<String, Weak<OpenKey>>> {
        // Every change leaves it whole.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn forget(&self, app_key: &str) {
        let mut open = self.open();
        // Something else may have been opened meanwhile.
        if open.get(app_key).is_some_and(|key| key.strong_count() == 0) {
            open.remove(app_key);
        }
    }
}

/// The key of a caller for whom something is opened, to be held until that ends.
pub(crate) fn hold(edge: &Arc<Edge>, caller: &Caller) -> Arc<OpenKey> {
    let mut open = edge.open_keys.open();
    if let Some(key) = open.get(&caller.app_key).and_then(Weak::upgrade) {
        return key;
    }
    let (revoked, let_go) = (CancellationToken::new(), CancellationToken::new());
    let key = Arc::new(OpenKey {
        revoked: revoked.clone(),
        _let_go: let_go.clone().drop_guard(),
    });
    open.insert(caller.app_key.clone(), Arc::downgrade(&key));
    drop(open);
    let looks = look_again(edge.clone(), caller.clone(), revoked, let_go);
    // Not within the request's, which may end long before.
    let span = tracing::info_span!(parent: None, "look-again");
    span.in_scope(|| edge.tasks.job("look-again", looks));
    key
}

/// Asks auth about a key until it is revoked or nothing is open for it.
async fn look_again(
    edge: Arc<Edge>,
    mut caller: Caller,
    revoked: CancellationToken,
    let_go: CancellationToken,
) {
    let looks = async {
        loop {
            tokio::time::sleep(PERIOD).await;
            match edge.platform.renew(&caller).await {
                // The next look is by this one: auth takes none that is too old.
                Ok(assertion) => caller.assertion = assertion,
                Err(failure) if failure.code == ErrorCode::Unauthenticated => break,
                Err(failure) => {
                    tracing::debug!(%failure, "auth does not say whether a key is good")
                }
            }
        }
    };
    tokio::select! {
        () = looks => {
            revoked.cancel();
            let_go.cancelled().await;
        }
        () = let_go.cancelled() => {}
    }
    edge.open_keys.forget(&caller.app_key);
}

#[cfg(test)]
mod tests {
    use lifecycle::Service;

    use super::*;
    use crate::edge::tests::edge;

    #[tokio::test]
    async fn what_is_open_for_one_key_shares_its_looks_and_the_last_of_it_ends_them() {
        let (service, storage) = (Service::new("test"), tempfile::tempdir().unwrap());
        let edge = Arc::new(edge(&service, &storage));
        let of = |app_key: &str| {
            let app_key = app_key.to_owned();
            let caller = Caller {
                app_key,
                ..Caller::default()
            };
            hold(&edge, &caller)
        };
        let (first, second, other) = (of("prod-a"), of("prod-a"), of("prod-b"));
        assert!(Arc::ptr_eq(&first, &second) && !Arc::ptr_eq(&first, &other));
        drop((first, other));
        let looks_ended = async {
            while edge.open_keys.open().len() > 1 {
                tokio::task::yield_now().await;
            }
        };
        let limit = Duration::from_secs(10);
        tokio::time::timeout(limit, looks_ended).await.unwrap();
        assert!(Arc::ptr_eq(&second, &of("prod-a")));
    }
}
