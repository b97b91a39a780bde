//! How many bytes of answers wait for clients to read, and whose they are.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use contract::{ErrorCode, Failure};
use settings::ByteSize;

use crate::crowd::Network;
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

/// Whom an answer is for, if that is known, and where it goes.
#[derive(Debug, Clone, Default)]
pub(crate) struct Whose {
    pub(crate) to: Option<Addressee>,
    pub(crate) from: Option<Network>,
}

/// Bytes of answers that clients have not read yet, of all connections. Of those to callers with a key each tenant has a share. What is
/// read by tokens has one share more, all of it together, and those of one task a share of that; what anyone may have has room of its
/// own. So neither takes any from callers with a key. Of both, one address has the part that it may have of connections.
#[derive(Debug)]
pub(crate) struct Unread {
    most: ByteSize,
    share: ByteSize,
    /// Of one task, by its tokens.
    task_share: ByteSize,
    most_without_key: ByteSize,
    /// Of one address, of what is read by tokens and of what anyone may have; none where an address may have all.
    address_shares: Option<[ByteSize; 2]>,
    tenants: Counted<Arc<str>>,
    tasks: Counted<Arc<str>>,
    /// Those of tasks, by where they go.
    by_token: Counted<Network>,
    without_key: Counted<Network>,
}

/// Bytes that wait for addressees of one kind.
#[derive(Debug)]
struct Counted<K> {
    all: AtomicU64,
    /// Those for whom nothing waits are not in it.
    each: Mutex<HashMap<K, u64>>,
}

impl<K> Default for Counted<K> {
    fn default() -> Self {
        Self {
            all: AtomicU64::new(0),
            each: Mutex::default(),
        }
    }
}

impl<K: Hash + Eq + Clone> Counted<K> {
    fn each(&self) -> MutexGuard<'_, HashMap<K, u64>> {
        // Every change leaves it whole.
        self.each.lock().unwrap_or_else(|e| e.into_inner())
    }

    fn all(&self) -> u64 {
        self.all.load(Ordering::Relaxed)
    }

    fn of<Q: Hash + Eq + ?Sized>(&self, whose: &Q) -> u64
    where
        K: Borrow<Q>,
    {
        self.each().get(whose).copied().unwrap_or_default()
    }

    /// `whose`: none where that is not known.
    fn add(&self, whose: Option<&K>, bytes: u64) {
        self.all.fetch_add(bytes, Ordering::Relaxed);
        if let Some(whose) = whose {
            *self.each().entry(whose.clone()).or_default() += bytes;
        }
    }

    fn take_away(&self, whose: Option<&K>, bytes: u64) {
        self.all.fetch_sub(bytes, Ordering::Relaxed);
        let Some(whose) = whose else { return };
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
    /// Of `most` bytes, one tenant may have `percent`; and one task by its tokens `percent` of as many as a tenant. Without a key one address
    /// may have as much as the first of `address` is of the second.
    pub(crate) fn new(
        most: ByteSize,
        percent: u32,
        most_without_key: ByteSize,
        address: (u32, u32),
    ) -> Self {
        let part = |bytes: ByteSize, some: u32, all: u32| {
            ByteSize::of(bytes.bytes().saturating_mul(some.into()) / u64::from(all.max(1)))
        };
        let share = part(most, percent, 100);
        let (some, all) = address;
        let of_address = |bytes| part(bytes, some, all);
        Self {
            most,
            share,
            task_share: part(share, percent, 100),
            most_without_key,
            address_shares: (some < all).then(|| [share, most_without_key].map(of_address)),
            tenants: Counted::default(),
            tasks: Counted::default(),
            by_token: Counted::default(),
            without_key: Counted::default(),
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
    /// share, nor while those of all tasks have more than a tenant's, nor while those that go to the same address have more than its part.
    ///
    /// # Errors
    /// Over the limit if the task's own have, or the address's; unavailable if all together have.
    pub(crate) fn admit_by_token(&self, task: &str, from: Option<Network>) -> Result<(), Failure> {
        if self.tasks.of(task) > self.task_share.bytes() {
            refused(WAITING_BY_TOKEN, "share");
            let of = "pictures by the tokens of one task";
            return Err(over_share(of, self.task_share));
        }
        if self.tasks.all() > self.share.bytes() {
            refused(WAITING_BY_TOKEN, "full");
            let message = "too many bytes of pictures by token wait to be read; try again";
            return Err(Failure::unavailable(message, BUSY_WAIT));
        }
        let share = self.address_shares.map(|[by_token, _]| by_token);
        within_share(&self.by_token, from, share, WAITING_BY_TOKEN)
    }

    /// Whether there may be one more answer to someone without a key: not while all have more than the most together, nor while those that
    /// go to the same address have more than its part.
    ///
    /// # Errors
    /// Unavailable if all have; over the limit if the address's have.
    pub(crate) fn admit_without_key(&self, from: Option<Network>) -> Result<(), Failure> {
        if self.without_key.all() > self.most_without_key.bytes() {
            refused(WAITING_STRANGERS, "full");
            let message =
                "too many bytes of answers to callers without a key wait to be read; try again";
            return Err(Failure::unavailable(message, BUSY_WAIT));
        }
        let share = self.address_shares.map(|[_, without_key]| without_key);
        within_share(&self.without_key, from, share, WAITING_STRANGERS)
    }

    /// So many more bytes wait for an addressee, or for anyone.
    pub(crate) fn add(&self, whose: &Whose, bytes: u64) {
        let from = whose.from.as_ref();
        match &whose.to {
            Some(Addressee::Tenant(tenant)) => self.tenants.add(Some(tenant), bytes),
            Some(Addressee::Token(task)) => {
                self.tasks.add(Some(task), bytes);
                self.by_token.add(from, bytes);
            }
            None => self.without_key.add(from, bytes),
        }
    }

    /// They wait no more.
    pub(crate) fn take_away(&self, whose: &Whose, bytes: u64) {
        let from = whose.from.as_ref();
        match &whose.to {
            Some(Addressee::Tenant(tenant)) => self.tenants.take_away(Some(tenant), bytes),
            Some(Addressee::Token(task)) => {
                self.tasks.take_away(Some(task), bytes);
                self.by_token.take_away(from, bytes);
            }
            None => self.without_key.take_away(from, bytes),
        }
    }
}

/// Whether an address may have one more answer of a kind, where it has a share of them.
fn within_share(
    counted: &Counted<Network>,
    from: Option<Network>,
    share: Option<ByteSize>,
    what: &'static str,
) -> Result<(), Failure> {
    match (from, share) {
        (Some(network), Some(share)) if counted.of(&network) > share.bytes() => {
            refused(what, "share");
            Err(over_share("answers to callers at one address", share))
        }
        _ => Ok(()),
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

    /// Of 1000 bytes, half are one tenant's, and half of as many one task's by its tokens; without a key there are 100. An address may have a
    /// quarter.
    pub(crate) fn unread() -> Arc<Unread> {
        let (most, without_key) = (ByteSize::of(1000), ByteSize::of(100));
        Arc::new(Unread::new(most, 50, without_key, (1, 4)))
    }

    impl Unread {
        /// Bytes to callers with a key, by token, and without either.
        pub(crate) fn waiting(&self) -> [u64; 3] {
            let without_key = self.without_key.all();
            [self.tenants.all(), self.tasks.all(), without_key]
        }

        /// Whether nothing is kept of those for whom nothing waits.
        pub(crate) fn knows_nobody(&self) -> bool {
            let addresses = [&self.by_token, &self.without_key];
            let nobody_there = addresses.iter().all(|one| one.each().is_empty());
            nobody_there && self.tenants.each().is_empty() && self.tasks.each().is_empty()
        }
    }

    pub(crate) fn tenant(name: &str) -> Whose {
        to(Addressee::Tenant(name.into()))
    }

    pub(crate) fn token(task: &str) -> Whose {
        to(Addressee::Token(task.into()))
    }

    fn to(addressee: Addressee) -> Whose {
        let to = Some(addressee);
        Whose { to, from: None }
    }

    #[test]
    fn a_tenant_that_leaves_its_share_unread_is_refused_and_another_is_not() {
        let unread = unread();
        let (one, other) = (tenant("one"), tenant("other"));
        unread.add(&one, 500);
        unread.admit_tenant("one").unwrap();
        unread.add(&one, 1);
        let refused = unread.admit_tenant("one").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.retry_after.is_some(), "{refused}");
        assert!(refused.message.contains("may have 500 B"), "{refused}");
        unread.admit_tenant("other").unwrap();
        unread.admit().unwrap();
        // Together they have more than there may be.
        unread.add(&other, 500);
        assert_eq!(unread.admit().unwrap_err().code, ErrorCode::Unavailable);
        unread.take_away(&one, 1);
        unread.admit_tenant("one").unwrap();
        unread.admit().unwrap();
    }

    #[test]
    fn what_callers_without_a_key_leave_unread_takes_no_room_from_those_with_one() {
        let unread = unread();
        unread.add(&Whose::default(), 100);
        unread.admit_without_key(None).unwrap();
        unread.add(&Whose::default(), 1_000_000);
        let refused = unread.admit_without_key(None).unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        unread.admit().unwrap();
        unread.admit_tenant("").unwrap();
        unread.take_away(&Whose::default(), 1_000_000);
        unread.add(&tenant("one"), 1_000_000);
        unread.admit_without_key(None).unwrap();
    }

    #[test]
    fn pictures_by_token_have_one_share_together_and_take_none_from_callers_with_a_key() {
        let unread = unread();
        let tasks: Vec<_> = (0..9).map(|task| format!("task {task}")).collect();
        for task in &tasks {
            unread.add(&token(task), 50);
        }
        unread.add(&token("task 0"), 50);
        unread.admit_by_token("task 0", None).unwrap();
        unread.add(&token("task 0"), 1);
        // None of them has a share's bytes, and together they have more.
        for task in ["task 0", "another"] {
            let refused = unread.admit_by_token(task, None).unwrap_err();
            assert_eq!(refused.code, ErrorCode::Unavailable);
            assert!(refused.retry_after.is_some(), "{refused}");
        }
        unread.add(&token("task 0"), 1_000_000);
        let refused = unread.admit_by_token("task 0", None).unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.message.contains("may have 250 B"), "{refused}");
        assert!(!refused.message.contains("tenant"), "{refused}");
        // One of the same name has another share.
        unread.admit_tenant("task 0").unwrap();
        unread.admit().unwrap();
        unread.admit_without_key(None).unwrap();
        unread.take_away(&token("task 0"), 1_000_001);
        unread.admit_by_token("task 0", None).unwrap();
        // Nor do those take any from them.
        unread.add(&tenant("one"), 1_000_000);
        unread.admit_by_token("another", None).unwrap();
    }

    #[test]
    fn what_readers_of_one_link_leave_unread_leaves_room_for_those_of_another() {
        let unread = unread();
        unread.add(&token("popular"), 250);
        unread.admit_by_token("popular", None).unwrap();
        unread.add(&token("popular"), 1);
        let refused = unread.admit_by_token("popular", None).unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        unread.admit_by_token("another", None).unwrap();
        unread.take_away(&token("popular"), 1);
        unread.admit_by_token("popular", None).unwrap();
    }

    #[test]
    fn an_address_that_leaves_its_part_unread_leaves_room_for_others() {
        let unread = unread();
        let network = |last| Network::of(std::net::Ipv4Addr::new(10, 0, 0, last).into());
        let (one, other) = (Some(network(1)), Some(network(2)));
        let to = Some(Addressee::Token("task".into()));
        let page = Whose {
            to: None,
            from: one,
        };
        let picture = Whose { to, from: one };
        for (whose, share) in [(&page, 25), (&picture, 125)] {
            let admit = |from| match whose.to {
                None => unread.admit_without_key(from),
                Some(_) => unread.admit_by_token("another", from),
            };
            unread.add(whose, share);
            admit(one).unwrap();
            unread.add(whose, 1);
            let refused = admit(one).unwrap_err();
            assert_eq!(refused.code, ErrorCode::RateLimited);
            assert!(refused.retry_after.is_some(), "{refused}");
            let why = format!("at one address wait to be read, which may have {share} B");
            assert!(refused.message.contains(&why), "{refused}");
            admit(other).unwrap();
            unread.take_away(whose, 1);
            admit(one).unwrap();
            unread.take_away(whose, share);
        }
        assert!(unread.knows_nobody());
        // Behind a proxy, where all are one.
        let (most, without_key) = (ByteSize::of(1000), ByteSize::of(100));
        let unread = Unread::new(most, 50, without_key, (4, 4));
        unread.add(&page, 100);
        unread.admit_without_key(one).unwrap();
    }
}
