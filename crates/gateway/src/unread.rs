//! How many bytes of answers wait for clients to read, and whose they are.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use settings::ByteSize;

use crate::room::refused;

/// Suggested wait when too much is unread: it is read, or its reader cut off, in seconds.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// What is refused for want of room, in metrics.
const WAITING: &str = "answers wait to be read";
const WAITING_BY_TOKEN: &str = "pictures by token wait to be read";
const WAITING_STRANGERS: &str = "answers without a key wait to be read";

/// Whom an answer is for, among its extensions. For anyone else there is none.
#[derive(Debug, Clone)]
pub(crate) enum Addressee {
    /// A caller with a key, by its tenant.
    Tenant(Arc<str>),
    /// Whoever reads a picture by its token, by its task.
    Token(Arc<str>),
}

/// Bytes of answers that clients have not read yet, of all connections. Of those to callers with a key each tenant has a share. What is
/// read by tokens has one share more, all of it together, and those of one task a share of that; what anyone may have has room of its
/// own. So neither takes any from callers with a key.
#[derive(Debug)]
pub(crate) struct Unread {
    most: ByteSize,
    share: ByteSize,
    /// Of one task, by its tokens.
    task_share: ByteSize,
    most_without_key: ByteSize,
    tenants: Counted,
    tasks: Counted,
    without_key: AtomicU64,
}

/// Bytes that wait for addressees of one kind.
#[derive(Debug, Default)]
struct Counted {
    all: AtomicU64,
    /// Those for whom nothing waits are not in it.
    each: Mutex<HashMap<Arc<str>, u64>>,
}

impl Counted {
    fn each(&self) -> MutexGuard<'_, HashMap<Arc<str>, u64>> {
        // Every change leaves it whole.
        self.each.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    fn of(&self, whose: &str) -> u64 {
        self.each().get(whose).copied().unwrap_or_default()
    }

    fn add(&self, whose: &Arc<str>, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        *self.each().entry(whose.clone()).or_default() += bytes;
    }

    fn take_away(&self, whose: &Arc<str>, bytes: u64) {
        self.all.fetch_sub(bytes, Ordering::Relaxed);
        let mut each = self.each();
        match each.get_mut(whose) {
            Some(waiting) if *waiting > bytes => *waiting -= bytes,
            _ => {
                each.remove(whose);
            }
        }
    }
}

impl Unread {
    /// Of `most` bytes, one tenant may have `percent`; and one task by its tokens `percent` of as many as a tenant.
    pub(crate) fn new(most: ByteSize, percent: u32, most_without_key: ByteSize) -> Self {
        let part =
            |bytes: ByteSize| ByteSize::of(bytes.bytes().saturating_mul(percent.into()) / 100);
        let share = part(most);
        Self {
            most,
            share,
            task_share: part(share),
            most_without_key,
            tenants: Counted::default(),
            tasks: Counted::default(),
            without_key: AtomicU64::new(0),
        }
    }

    /// Whether there may be one more answer to a caller who is not known yet: not while those to callers with a key have more
    /// than the most together.
    ///
    /// # Errors
    /// Unavailable if not.
    pub(crate) fn admit(&self) -> Result<(), Failure> {
        if self.tenants.all() <= self.most.bytes() {
            return Ok(());
        }
        refused(WAITING, "full");
        let message = "too many bytes of answers wait to be read; try again";
        Err(Failure::unavailable(message, BUSY_WAIT))
    }

    /// Whether there may be one more answer to this tenant: not while those that it has not read have more than its share.
    ///
    /// # Errors
    /// Over the limit if not.
    pub(crate) fn admit_tenant(&self, tenant: &str) -> Result<(), Failure> {
        if self.tenants.of(tenant) <= self.share.bytes() {
            return Ok(());
        }
        refused(WAITING, "share");
        Err(over_share("answers for one tenant", self.share))
    }

    /// Whether there may be one more picture of this task by its token: not while those that were not read have more than a task's
    /// share, nor while those of all tasks have more than a tenant's.
    ///
    /// # Errors
    /// Over the limit if the task's own have; unavailable if all together have.
    pub(crate) fn admit_by_token(&self, task: &str) -> Result<(), Failure> {
        if self.tasks.of(task) > self.task_share.bytes() {
            refused(WAITING_BY_TOKEN, "share");
            let of = "pictures by the tokens of one task";
            return Err(over_share(of, self.task_share));
        }
        if self.tasks.all() <= self.share.bytes() {
            return Ok(());
        }
        refused(WAITING_BY_TOKEN, "full");
        let message = "too many bytes of pictures by token wait to be read; try again";
        Err(Failure::unavailable(message, BUSY_WAIT))
    }

    /// Whether there may be one more answer to someone without a key.
    ///
    /// # Errors
    /// Unavailable if not.
    pub(crate) fn admit_without_key(&self) -> Result<(), Failure> {
        if self.without_key.load(Ordering::Relaxed) <= self.most_without_key.bytes() {
            return Ok(());
        }
        refused(WAITING_STRANGERS, "full");
        let message =
            "too many bytes of answers to callers without a key wait to be read; try again";
        Err(Failure::unavailable(message, BUSY_WAIT))
    }

    /// So many more bytes wait for an addressee, or for anyone.
    pub(crate) fn add(&self, whose: Option<&Addressee>, bytes: u64) {
        match whose {
            Some(Addressee::Tenant(tenant)) => self.tenants.add(tenant, bytes),
            Some(Addressee::Token(task)) => self.tasks.add(task, bytes),
            None => {
                self.without_key.fetch_add(bytes, Ordering::Relaxed);
            }
        }
    }

    /// They wait no more.
    pub(crate) fn take_away(&self, whose: Option<&Addressee>, bytes: u64) {
        match whose {
            Some(Addressee::Tenant(tenant)) => self.tenants.take_away(tenant, bytes),
            Some(Addressee::Token(task)) => self.tasks.take_away(task, bytes),
            None => {
                self.without_key.fetch_sub(bytes, Ordering::Relaxed);
            }
        }
    }
}

fn over_share(of: &str, share: ByteSize) -> Failure {
    let message = format!(
        "too many bytes of {of} wait to be read, which may have {share} at this gateway; read them, or try again"
    );
    Failure {
        retry_after: Some(BUSY_WAIT),
        ..Failure::new(ErrorCode::RateLimited, message)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Of 1000 bytes, half are one tenant's, and half of as many one task's by its tokens; without a key there are 100.
    pub(crate) fn unread() -> Arc<Unread> {
        Arc::new(Unread::new(ByteSize::of(1000), 50, ByteSize::of(100)))
    }

    impl Unread {
        /// Bytes to callers with a key, by token, and without either.
        pub(crate) fn waiting(&self) -> [u64; 3] {
            let without_key = self.without_key.load(Ordering::Relaxed);
            [self.tenants.all(), self.tasks.all(), without_key]
        }

        /// Whether nothing is kept of those for whom nothing waits.
        pub(crate) fn knows_nobody(&self) -> bool {
            self.tenants.each().is_empty() && self.tasks.each().is_empty()
        }
    }

    pub(crate) fn tenant(name: &str) -> Addressee {
        Addressee::Tenant(name.into())
    }

    pub(crate) fn token(task: &str) -> Addressee {
        Addressee::Token(task.into())
    }

    #[test]
    fn a_tenant_that_leaves_its_share_unread_is_refused_and_another_is_not() {
        let unread = unread();
        let (one, other) = (tenant("one"), tenant("other"));
        unread.add(Some(&one), 500);
        unread.admit_tenant("one").unwrap();
        unread.add(Some(&one), 1);
        let refused = unread.admit_tenant("one").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.retry_after.is_some(), "{refused}");
        assert!(refused.message.contains("may have 500 B"), "{refused}");
        unread.admit_tenant("other").unwrap();
        unread.admit().unwrap();
        // Together they have more than there may be.
        unread.add(Some(&other), 500);
        assert_eq!(unread.admit().unwrap_err().code, ErrorCode::Unavailable);
        unread.take_away(Some(&one), 1);
        unread.admit_tenant("one").unwrap();
        unread.admit().unwrap();
    }

    #[test]
    fn what_callers_without_a_key_leave_unread_takes_no_room_from_those_with_one() {
        let unread = unread();
        unread.add(None, 100);
        unread.admit_without_key().unwrap();
        unread.add(None, 1_000_000);
        let refused = unread.admit_without_key().unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        unread.admit().unwrap();
        unread.admit_tenant("").unwrap();
        unread.take_away(None, 1_000_000);
        unread.add(Some(&tenant("one")), 1_000_000);
        unread.admit_without_key().unwrap();
    }

    #[test]
    fn pictures_by_token_have_one_share_together_and_take_none_from_callers_with_a_key() {
        let unread = unread();
        let tasks: Vec<_> = (0..9).map(|task| format!("task {task}")).collect();
        for task in &tasks {
            unread.add(Some(&token(task)), 50);
        }
        unread.add(Some(&token("task 0")), 50);
        unread.admit_by_token("task 0").unwrap();
        unread.add(Some(&token("task 0")), 1);
        // None of them has a share's bytes, and together they have more.
        for task in ["task 0", "another"] {
            let refused = unread.admit_by_token(task).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unavailable);
            assert!(refused.retry_after.is_some(), "{refused}");
        }
        unread.add(Some(&token("task 0")), 1_000_000);
        let refused = unread.admit_by_token("task 0").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.message.contains("may have 250 B"), "{refused}");
        assert!(!refused.message.contains("tenant"), "{refused}");
        // One of the same name has another share.
        unread.admit_tenant("task 0").unwrap();
        unread.admit().unwrap();
        unread.admit_without_key().unwrap();
        unread.take_away(Some(&token("task 0")), 1_000_001);
        unread.admit_by_token("task 0").unwrap();
        // Nor do those take any from them.
        unread.add(Some(&tenant("one")), 1_000_000);
        unread.admit_by_token("another").unwrap();
    }

    #[test]
    fn what_readers_of_one_link_leave_unread_leaves_room_for_those_of_another() {
        let unread = unread();
        unread.add(Some(&token("popular")), 250);
        unread.admit_by_token("popular").unwrap();
        unread.add(Some(&token("popular")), 1);
        let refused = unread.admit_by_token("popular").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        unread.admit_by_token("another").unwrap();
        unread.take_away(Some(&token("popular")), 1);
        unread.admit_by_token("popular").unwrap();
    }
}
