//! Trying again, with pauses that grow up to a bound, until it works or the worker stops; and waiting no longer than that, or
//! not much longer.

use std::error::Error;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

use lifecycle::chain;

const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// Pauses that double from `first` to `longest`.
#[derive(Debug, Clone)]
pub(crate) struct Backoff {
    first: Duration,
    next: Duration,
    longest: Duration,
}

impl Backoff {
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self {
            first,
            next: first,
            longest,
        }
    }

    /// How long to wait now.
    pub(crate) fn pause(&mut self) -> Duration {
        let now = self.next;
        self.next = (now * 2).min(self.longest);
        now
    }

    /// It worked: the next pause is the first again.
    pub(crate) fn reset(&mut self) {
        self.next = self.first;
    }
}

/// The worker was asked to stop before it worked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the worker stops")]
pub(crate) struct Stopped;

/// Tries `operation` until it succeeds, at least once. For what is idempotent and waits for a part of the platform
/// that is down: the task keeps its place meanwhile, and no attempt is counted.
pub(crate) async fn until_stopped<T, E, F>(
    stop: &CancellationToken,
    what: &'static str,
    mut operation: impl FnMut() -> F,
) -> Result<T, Stopped>
where
    E: Error,
    F: Future<Output = Result<T, E>>,
{
    let mut backoff = Backoff::new(FIRST_PAUSE, LONGEST_PAUSE);
    loop {
        let pause = match operation().await {
            Ok(value) => return Ok(value),
            Err(error) => {
                let pause = backoff.pause();
                tracing::warn!(error = chain(&error), ?pause, "{what} failed; trying again");
                pause
            }
        };
        tokio::select! {
            () = stop.cancelled() => return Err(Stopped),
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Waits for `operation`, unless the worker is asked to stop, or has been. For what may be dropped half-way, and may take longer than a
/// worker that stops has.
pub(crate) async fn unless_stopped<T>(
    stop: &CancellationToken,
    operation: impl Future<Output = T>,
) -> Result<T, Stopped> {
    tokio::select! {
        biased;
        () = stop.cancelled() => Err(Stopped),
        done = operation => Ok(done),
    }
}

/// Waits for `operation`, and for `longer` at most from when the worker is asked to stop, or from now if it has been. For what is worth a
/// moment of the time that a worker that stops has, and may be dropped half-way.
pub(crate) async fn soon_if_stopped<T>(
    stop: &CancellationToken,
    longer: Duration,
    operation: impl Future<Output = T>,
) -> Result<T, Stopped> {
    let too_late = async {
        stop.cancelled().await;
        tokio::time::sleep(longer).await;
    };
    tokio::select! {
        biased;
        done = operation => Ok(done),
        () = too_late => Err(Stopped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_their_bound_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(1), Duration::from_secs(3));
        let pauses: Vec<u64> = (0..4).map(|_| backoff.pause().as_secs()).collect();
        assert_eq!(pauses, [1, 2, 3, 3]);
        backoff.reset();
        assert_eq!(backoff.pause().as_secs(), 1);
    }

    #[tokio::test]
    async fn a_stop_ends_the_trying_but_not_the_first_try() {
        let stop = CancellationToken::new();
        stop.cancel();
        let mut tries = 0;
        let outcome = until_stopped(&stop, "reading", || {
            tries += 1;
            std::future::ready(Err::<(), _>(std::io::Error::other("down")))
        });
        assert_eq!(outcome.await, Err(Stopped));
        assert_eq!(tries, 1);
        let outcome = until_stopped(&stop, "reading", || {
            std::future::ready(Ok::<_, std::io::Error>(7))
        });
        assert_eq!(outcome.await, Ok(7));
    }

    #[tokio::test]
    async fn a_stop_ends_the_wait_for_what_does_not_answer() {
        let stop = CancellationToken::new();
        assert_eq!(unless_stopped(&stop, std::future::ready(7)).await, Ok(7));
        let waiting = unless_stopped(&stop, std::future::pending::<()>());
        let (waited, ()) = tokio::join!(waiting, async { stop.cancel() });
        assert_eq!(waited, Err(Stopped));
        let late = unless_stopped(&stop, std::future::pending::<()>());
        assert_eq!(late.await, Err(Stopped));
    }

    #[tokio::test]
    async fn what_ends_soon_after_a_stop_is_waited_for_and_nothing_longer() {
        let stop = CancellationToken::new();
        let (moment, long) = (Duration::from_millis(1), Duration::from_secs(600));
        let done = soon_if_stopped(&stop, moment, std::future::ready(7)).await;
        assert_eq!(done, Ok(7));
        let soon = soon_if_stopped(&stop, long, async {
            stop.cancelled().await;
            tokio::time::sleep(moment).await;
            7
        });
        let (waited, ()) = tokio::join!(soon, async { stop.cancel() });
        assert_eq!(waited, Ok(7));
        let hangs = soon_if_stopped(&stop, moment, std::future::pending::<()>());
        assert_eq!(hangs.await, Err(Stopped));
    }
}
