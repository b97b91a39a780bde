//! Room for answers that carry pictures inside, while they are made: so many bytes for all of them, and of these so many for one tenant.
//!
//! What a picture takes is known from its task before any of it is read: its file, and what a dialect makes of that on the way to a body.
//! An answer has its room from then until its body's own bytes are counted (`answers.rs`). One that finds none waits for a while, in the
//! order in which they came: many that are asked for at once are made one after the other.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use settings::ByteSize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, timeout_at};

use crate::room::{Room, refused};

/// Bytes in memory for each byte of pictures that a whole answer carries: the text or message, what it is made of, and room to grow in.
pub(crate) const OF_ANSWER: u64 = 4;
/// The same of an event: the file, its text, the JSON around it and the event around that, at one time.
pub(crate) const OF_EVENT: u64 = 6;
/// How long an answer may wait for room.
pub(crate) const MOST_WAIT: Duration = Duration::from_secs(10);
/// Answers that wait for room.
const MOST_WAITING: u32 = 256;
/// Suggested wait when none was found: answers are made in moments, and many wait for it.
const BUSY_WAIT: Duration = Duration::from_secs(2);
/// What is refused for want of room.
const WHAT: &str = "bytes of answers with pictures inside are being made";
const WAITING: &str = "answers with pictures inside wait to be made";

/// The bytes that there may be, and whose they are.
#[derive(Debug)]
pub(crate) struct CarriedRoom {
    bytes: Arc<Semaphore>,
    /// Of one tenant.
    share: ByteSize,
    /// None where one tenant may have all.
    tenants: Option<Mutex<HashMap<Arc<str>, Tenant>>>,
    waiting: Room,
    most_wait: Duration,
}

/// One tenant's share, while anyone has or waits for any of it.
#[derive(Debug)]
struct Tenant {
    bytes: Arc<Semaphore>,
    users: usize,
}

/// What one answer has of the room, until the last copy of this is dropped. Among the extensions of the answer.
#[derive(Debug, Clone)]
pub(crate) struct Carried(#[expect(dead_code, reason = "it is held")] Arc<Portion>);

/// In the order in which they go back.
#[derive(Debug)]
struct Portion {
    _of_all: Metered,
    _of_tenant: Option<OwnedSemaphorePermit>,
    _user: User,
}

#[derive(Debug)]
struct Metered(OwnedSemaphorePermit);

/// One who has or waits for some of a tenant's share.
#[derive(Debug)]
struct User {
    room: Arc<CarriedRoom>,
    tenant: Arc<str>,
    /// None where the share is all that there is.
    bytes: Option<Arc<Semaphore>>,
}

impl CarriedRoom {
    /// So many bytes, of which one tenant may have `percent`. An answer waits for `most_wait`.
    pub(crate) fn new(all: ByteSize, percent: u32, most_wait: Duration) -> Self {
        let share = u128::from(all.bytes()) * u128::from(percent.min(100)) / 100;
        let share = u64::try_from(share).unwrap_or(u64::MAX).max(1);
        // Validated to be no more than a semaphore counts.
        let bytes = usize::try_from(all.bytes()).unwrap_or(usize::MAX);
        Self {
            bytes: Arc::new(Semaphore::new(bytes)),
            share: ByteSize::of(share),
            tenants: (share < all.bytes()).then(Mutex::default),
            waiting: Room::new(WAITING, MOST_WAITING, percent),
            most_wait,
        }
    }

    /// Room for an answer to this tenant with so many bytes of pictures, each of which takes `times` as many. One that needs more than the
    /// tenant's share has all of that.
    ///
    /// # Errors
    /// Over the limit when the tenant's answers have its share for so long, or too many of them wait; unavailable when those of all have
    /// all, or too many wait.
    pub(crate) async fn room(
        self: &Arc<Self>,
        tenant: &str,
        pictures: u64,
        times: u64,
    ) -> Result<Carried, Failure> {
        let bytes = pictures.saturating_mul(times).min(self.share.bytes());
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let _waits = (self.waiting.enter()?, self.waiting.share(tenant)?);
        let user = self.user(tenant);
        let until = Instant::now() + self.most_wait;
        let of_tenant = match &user.bytes {
            None => None,
            Some(share) => {
                let room = timeout_at(until, share.clone().acquire_many_owned(bytes)).await;
                // Nobody closes a semaphore here.
                Some(
                    room.ok()
                        .and_then(Result::ok)
                        .ok_or_else(|| self.over_share())?,
                )
            }
        };
        let room = timeout_at(until, self.bytes.clone().acquire_many_owned(bytes)).await;
        let room = room.ok().and_then(Result::ok).ok_or_else(full)?;
        metrics::gauge!("inkstone_gateway_carried_bytes").increment(f64::from(bytes));
        Ok(Carried(Arc::new(Portion {
            _of_all: Metered(room),
            _of_tenant: of_tenant,
            _user: user,
        })))
    }

    fn user(self: &Arc<Self>, tenant: &str) -> User {
        let tenant: Arc<str> = tenant.into();
        let bytes = self.tenants().map(|mut tenants| {
            let known = tenants.entry(tenant.clone()).or_insert_with(|| Tenant {
                bytes: Arc::new(Semaphore::new(
                    usize::try_from(self.share.bytes()).unwrap_or(usize::MAX),
                )),
                users: 0,
            });
            known.users += 1;
            known.bytes.clone()
        });
        User {
            room: self.clone(),
            tenant,
            bytes,
        }
    }

    fn tenants(&self) -> Option<MutexGuard<'_, HashMap<Arc<str>, Tenant>>> {
        let tenants = self.tenants.as_ref()?;
        // Every change leaves it whole.
        Some(tenants.lock().unwrap_or_else(|e| e.into_inner()))
    }

    fn over_share(&self) -> Failure {
        refused(WHAT, "share");
        let share = self.share;
        let message = format!(
            "too many {WHAT} for one tenant, which may have {share} at this gateway; the pictures are kept: try again, or fetch them by their task"
        );
        Failure {
            retry_after: Some(BUSY_WAIT),
            ..Failure::new(ErrorCode::RateLimited, message)
        }
    }
}

fn full() -> Failure {
    refused(WHAT, "full");
    let message =
        format!("too many {WHAT}; the pictures are kept: try again, or fetch them by their task");
    Failure::unavailable(message, BUSY_WAIT)
}

impl Drop for Metered {
    fn drop(&mut self) {
        let bytes = self.0.num_permits() as f64;
        metrics::gauge!("inkstone_gateway_carried_bytes").decrement(bytes);
    }
}

impl Drop for User {
    fn drop(&mut self) {
        let Some(mut tenants) = self.room.tenants() else {
            return;
        };
        match tenants.get_mut(&self.tenant) {
            Some(known) if known.users > 1 => known.users -= 1,
            _ => {
                tenants.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;
    use crate::room::share;

    const LONG: Duration = Duration::from_secs(600);

    /// Of 1000 bytes one tenant may have half.
    fn room(most_wait: Duration) -> Arc<CarriedRoom> {
        Arc::new(CarriedRoom::new(ByteSize::of(1000), 50, most_wait))
    }

    fn knows_nobody(room: &CarriedRoom) -> bool {
        room.tenants().unwrap().is_empty()
    }

    #[tokio::test]
    async fn answers_that_would_take_too_much_together_are_made_one_after_the_other() {
        let room = room(LONG);
        let first = room.room("one", 100, OF_ANSWER).await.unwrap();
        let mut second = Box::pin(room.room("one", 100, OF_ANSWER));
        assert!(second.as_mut().now_or_never().is_none());
        // Another tenant waits for none of its own.
        let other = room.room("other", 100, OF_ANSWER).await.unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        drop(first);
        let second = second.await.unwrap();
        // What is left is less than a third tenant's answer takes.
        let mut third = Box::pin(room.room("third", 100, OF_ANSWER));
        assert!(third.as_mut().now_or_never().is_none());
        drop(other);
        let third = third.await.unwrap();
        drop((second, third));
        assert_eq!(room.bytes.available_permits(), 1000);
        assert!(knows_nobody(&room));
    }

    #[tokio::test]
    async fn who_has_its_share_for_long_is_told_and_so_is_everyone_when_all_is_taken() {
        let room = room(Duration::from_millis(10));
        let one = room.room("one", 125, OF_ANSWER).await.unwrap();
        let refused = room.room("one", 1, OF_ANSWER).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.retry_after.is_some(), "{refused}");
        assert!(refused.message.contains("may have 500 B"), "{refused}");
        let other = room.room("other", 125, OF_ANSWER).await.unwrap();
        let refused = room.room("third", 1, OF_ANSWER).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        assert!(refused.retry_after.is_some(), "{refused}");
        drop((one, other));
        assert!(knows_nobody(&room));
    }

    #[tokio::test]
    async fn an_answer_larger_than_a_share_has_all_of_it() {
        let room = room(LONG);
        let large = room.room("one", u64::MAX, OF_ANSWER).await.unwrap();
        assert_eq!(room.bytes.available_permits(), 500);
        drop(large);
        let alone = Arc::new(CarriedRoom::new(ByteSize::of(1000), 100, LONG));
        let large = alone.room("one", u64::MAX, OF_EVENT).await.unwrap();
        assert_eq!(alone.bytes.available_permits(), 0);
        drop(large);
        assert_eq!(alone.bytes.available_permits(), 1000);
    }

    #[tokio::test]
    async fn no_more_answers_wait_than_may_and_one_tenants_leave_places_to_others() {
        let room = room(LONG);
        let taken = [
            room.room("one", 125, OF_ANSWER).await.unwrap(),
            room.room("other", 125, OF_ANSWER).await.unwrap(),
        ];
        let most = share(MOST_WAITING, 50);
        let mut waiting = Vec::new();
        for tenant in ["one", "other"] {
            for _ in 0..most {
                let mut wait = Box::pin(room.room(tenant, 125, OF_ANSWER));
                assert!(wait.as_mut().now_or_never().is_none());
                waiting.push(wait);
            }
            if tenant == "one" {
                let refused = room.room(tenant, 125, OF_ANSWER).await.unwrap_err();
                assert_eq!(refused.code, ErrorCode::RateLimited);
            }
        }
        let refused = room.room("third", 125, OF_ANSWER).await.unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        drop((waiting, taken));
        assert!(knows_nobody(&room));
    }
}
