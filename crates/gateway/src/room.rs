//! How much this gateway does at once, and how much of that for one tenant.
//!
//! Each kind of thing has places of its own, so that what waits for pictures takes none from who asks how they are doing; and
//! one tenant can hold a share of each kind only, so that the others find some. What is over a limit is refused at once:
//! to let it wait would make everything slow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use axum::http::{HeaderMap, Method};
use contract::{ErrorCode, Failure};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::crowd::Network;
use crate::problem::is_grpc;
use crate::tokens;

/// Suggested wait when a limit of this gateway is reached: load moves in seconds.
const BUSY_WAIT: Duration = Duration::from_secs(1);

/// What a request does with its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    /// It makes tasks, and is soon done.
    Submission,
    /// It makes tasks, and waits for their pictures.
    Generation,
    /// It looks, or ends something, and is soon done.
    Read,
}

/// The calls over gRPC that make tasks, and those that wait for their pictures as well.
const SUBMITTING_CALLS: [&str; 2] = ["Submit", "SubmitBatch"];
const GENERATING_CALLS: [&str; 2] = ["ModelInfer", "ModelStreamInfer"];
/// What waits for pictures over HTTP, by the end of the path.
const GENERATING_PATHS: [&str; 4] = [
    "/images/generations",
    "/images/edits",
    "/multimodal-generation/generation",
    "/infer",
];
/// What is asked by POST and makes no tasks, by the last part of the path.
const LOOKING_POSTS: [&str; 3] = ["cancel", "feedback", "index"];

impl Class {
    /// Tells from a request's head alone: nothing is known of its caller yet.
    pub(crate) fn of(method: &Method, path: &str, headers: &HeaderMap) -> Self {
        let path = path.trim_end_matches('/');
        let last = path.rsplit('/').next().unwrap_or_default();
        let (submits, waits) = if is_grpc(headers) {
            let waits = GENERATING_CALLS.contains(&last);
            (waits || SUBMITTING_CALLS.contains(&last), waits)
        } else {
            let looks = path == tokens::PATH || LOOKING_POSTS.contains(&last);
            let waits = GENERATING_PATHS.iter().any(|end| path.ends_with(end));
            (method == Method::POST && !looks, waits)
        };
        match (submits, waits) {
            (true, true) => Self::Generation,
            (true, false) => Self::Submission,
            (false, _) => Self::Read,
        }
    }
}

/// Places of one kind.
#[derive(Debug)]
pub(crate) struct Room {
    what: &'static str,
    count: u32,
    places: Arc<Semaphore>,
    /// Places that one holder may have.
    most: u32,
    shares: Arc<Shares>,
    /// Of those who are not known yet, by their addresses.
    strangers: Arc<Shares>,
}

/// A place, for as long as it is held.
#[derive(Debug)]
pub(crate) struct Place(#[expect(dead_code, reason = "it is held")] OwnedSemaphorePermit);

impl Room {
    /// So many places, of which one tenant may hold `percent`, one at least. `what` are they for: such as `streams are open`.
    pub(crate) fn new(what: &'static str, places: u32, percent: u32) -> Self {
        Self::shared(what, places, share(places, percent))
    }

    /// So many places, of which one holder may have `most`.
    pub(crate) fn shared(what: &'static str, places: u32, most: u32) -> Self {
        Self {
            what,
            count: places,
            places: Arc::new(Semaphore::new(places as usize)),
            most,
            shares: Arc::new(Shares::new(what)),
            strangers: Arc::new(Shares::new(what)),
        }
    }

    /// How many places there are, taken or not.
    pub(crate) fn places(&self) -> u32 {
        self.count
    }

    /// A place for someone who is not known yet.
    ///
    /// # Errors
    /// Unavailable when all are taken.
    pub(crate) fn enter(&self) -> Result<Place, Failure> {
        let what = self.what;
        let place = self.places.clone().try_acquire_owned();
        place.map(Place).map_err(|_| {
            refused(what, "full");
            Failure::unavailable(format!("too many {what}; try again"), BUSY_WAIT)
        })
    }

    /// One more of those that a tenant may hold. To be held together with a place, which bounds how many tenants are known.
    ///
    /// # Errors
    /// Over the limit when it holds its share already.
    pub(crate) fn share(&self, tenant: &str) -> Result<Share, Failure> {
        self.shares.take(tenant, "for one tenant", (1, self.most))
    }

    /// The same of whoever looks for a task's pictures, where all who do have shown tokens.
    ///
    /// # Errors
    /// As of a tenant.
    pub(crate) fn share_of_task(&self, task: &str) -> Result<Share, Failure> {
        self.shares.take(task, "for one task", (1, self.most))
    }

    /// The same of whoever calls from one address.
    ///
    /// # Errors
    /// As of a tenant.
    pub(crate) fn share_of_address(&self, network: Network) -> Result<Share, Failure> {
        let address = network.to_string();
        self.shares
            .take(&address, "for one address", (1, self.most))
    }

    /// The same of whoever reads a task's pictures by their tokens.
    ///
    /// # Errors
    /// As of a tenant.
    pub(crate) fn share_by_token(&self, task: &str) -> Result<Share, Failure> {
        let whose = "by the tokens of one task";
        self.shares.take(task, whose, (1, self.most))
    }

    /// Callers who are not known yet, from all addresses.
    pub(crate) fn strangers(&self) -> u32 {
        self.strangers.held().all
    }

    /// One more from one address whose callers are not known yet, to be held until they are: of `most`, or of more while all addresses
    /// together have fewer than `spare`.
    ///
    /// # Errors
    /// As of a tenant.
    pub(crate) fn share_of_stranger(
        &self,
        network: Network,
        most: u32,
        spare: u32,
    ) -> Result<Share, Failure> {
        let address = network.to_string();
        let whose = "of callers not known yet from one address";
        self.strangers.take_spare(&address, whose, (1, most), spare)
    }
}

/// Counts a request that there was no room for.
pub(crate) fn refused(what: &'static str, why: &'static str) {
    metrics::counter!("inkstone_gateway_shed_total", "what" => what, "why" => why).increment(1);
}

/// So many percent of `places`, one at least.
pub(crate) fn share(places: u32, percent: u32) -> u32 {
    part(places, percent, 100)
}

/// As much of `places` as `some` are of `all`, one at least, and no more than there are.
pub(crate) fn part(places: u32, some: u32, all: u32) -> u32 {
    let part = u64::from(places) * u64::from(some) / u64::from(all.max(1));
    u32::try_from(part)
        .unwrap_or(places)
        .clamp(1, places.max(1))
}

/// How many places each tenant holds, or each task's readers, or each address. Those who hold none are not in it.
#[derive(Debug)]
pub(crate) struct Shares {
    what: &'static str,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    by: HashMap<Arc<str>, u32>,
    all: u32,
}

impl Shares {
    /// Of such things as `streams are open`.
    pub(crate) fn new(what: &'static str) -> Self {
        Self {
            what,
            held: Mutex::default(),
        }
    }

    fn held(&self) -> MutexGuard<'_, Held> {
        // Every change leaves it whole.
        self.held.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// So many more, of the most that a holder may have just now: they go in together where one would. `whose`: in a refusal, such as
    /// `for one tenant`.
    ///
    /// # Errors
    /// Over the limit when it holds its share already.
    pub(crate) fn take(
        self: &Arc<Self>,
        holder: &str,
        whose: &str,
        share: (u32, u32),
    ) -> Result<Share, Failure> {
        self.take_spare(holder, whose, share, 0)
    }

    /// The same, but that who holds its share already is not refused while all together hold fewer than `spare`.
    ///
    /// # Errors
    /// As of [`take`](Self::take).
    fn take_spare(
        self: &Arc<Self>,
        holder: &str,
        whose: &str,
        (places, most): (u32, u32),
        spare: u32,
    ) -> Result<Share, Failure> {
        let mut held = self.held();
        let holder = match held.by.get_key_value(holder) {
            Some((known, _)) => known.clone(),
            None => Arc::from(holder),
        };
        let count = held.by.get(&holder).copied().unwrap_or_default();
        if count >= most && held.all >= spare {
            let what = self.what;
            refused(what, "share");
            let message = format!(
                "too many {what} {whose}, which may have {most} at this gateway; try again"
            );
            return Err(Failure {
                retry_after: Some(BUSY_WAIT),
                // Of this refusal the share is the limit, as the key's rate is that of others.
                rate_limit: Some(most),
                ..Failure::new(ErrorCode::RateLimited, message)
            });
        }
        held.by.insert(holder.clone(), count.saturating_add(places));
        held.all = held.all.saturating_add(places);
        Ok(Share {
            shares: self.clone(),
            holder,
            places,
        })
    }
}

/// One of the places that a tenant holds, or a task's readers, or an address; or several that go together.
#[derive(Debug)]
pub(crate) struct Share {
    shares: Arc<Shares>,
    holder: Arc<str>,
    places: u32,
}

impl Share {
    /// Whose it is.
    pub(crate) fn holder(&self) -> Arc<str> {
        self.holder.clone()
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held = self.shares.held();
        held.all = held.all.saturating_sub(self.places);
        match held.by.get_mut(&self.holder) {
            Some(count) if *count > self.places => *count -= self.places,
            _ => {
                held.by.remove(&self.holder);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;
    use proptest::prelude::*;

    use super::*;

    fn class(method: &str, path: &str, grpc: bool) -> Class {
        let mut headers = HeaderMap::new();
        if grpc {
            let kind = HeaderValue::from_static("application/grpc");
            headers.insert("content-type", kind);
        }
        Class::of(&method.parse().unwrap(), path, &headers)
    }

    #[test]
    fn what_makes_tasks_what_waits_for_pictures_and_what_only_looks_are_told_apart() {
        for (path, expected) in [
            ("/v1/tasks", Class::Submission),
            ("/v1/tasks/batch", Class::Submission),
            ("/v1/images/generations", Class::Generation),
            ("/v1/images/edits", Class::Generation),
            (
                "/api/v1/services/aigc/text2image/image-synthesis",
                Class::Submission,
            ),
            (
                "/api/v1/services/aigc/image-generation/generation",
                Class::Submission,
            ),
            (
                "/api/v1/services/aigc/multimodal-generation/generation",
                Class::Generation,
            ),
            ("/v2/models/m/infer", Class::Generation),
            ("/v2/models/m/versions/1/infer", Class::Generation),
        ] {
            assert_eq!(class("POST", path, false), expected, "{path}");
            assert_eq!(class("GET", path, false), Class::Read, "{path}");
        }
        for path in [
            "/v1/token",
            "/v2/repository/index",
            "/api/v1/tasks/x/cancel",
            "/api/v1/tasks/x/cancel/",
        ] {
            assert_eq!(class("POST", path, false), Class::Read, "{path}");
        }
        assert_eq!(class("DELETE", "/v1/tasks/x", false), Class::Read);
        let call = |name: &str| class("POST", &format!("/inkstone.v1.ImageService/{name}"), true);
        assert_eq!(call("Submit"), Class::Submission);
        assert_eq!(call("SubmitBatch"), Class::Submission);
        assert_eq!(call("ModelInfer"), Class::Generation);
        assert_eq!(call("ModelStreamInfer"), Class::Generation);
        assert_eq!(call("Get"), Class::Read);
        assert_eq!(
            class("POST", "/grpc.health.v1.Health/Check", true),
            Class::Read
        );
    }

    #[test]
    fn a_tenant_at_its_share_is_refused_and_another_is_not() {
        let room = Room::new("things are done", 4, 50);
        let first = room.share("a").unwrap();
        let _second = room.share("a").unwrap();
        let refused = room.share("a").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert_eq!(refused.retry_after, Some(BUSY_WAIT));
        assert_eq!(refused.rate_limit, Some(2));
        assert!(refused.message.contains("may have 2"), "{refused}");
        room.share("b").unwrap();
        drop(first);
        room.share("a").unwrap();
    }

    #[test]
    fn an_address_has_more_than_its_part_while_nobody_else_asks_for_it() {
        let room = Room::new("things are done", 8, 50);
        let network = |last| Network::of(std::net::Ipv4Addr::new(10, 0, 0, last).into());
        let enter = |from| room.share_of_stranger(network(from), 2, 6);
        let mut busy: Vec<Share> = (0..6).map(|_| enter(1).unwrap()).collect();
        assert_eq!(enter(1).unwrap_err().code, ErrorCode::RateLimited);
        let _others = [enter(2).unwrap(), enter(3).unwrap()];
        assert!(enter(1).is_err(), "it has more than its part");
        assert_eq!(room.strangers(), 8);
        busy.truncate(3);
        busy.push(enter(1).unwrap());
        assert!(enter(1).is_err() && enter(2).is_ok());
    }

    #[test]
    fn who_reads_by_a_token_is_told_of_its_task_and_not_of_a_tenant() {
        let room = Room::new("things are done", 1, 100);
        let _first = room.share_by_token("a").unwrap();
        let refused = room.share_by_token("a").unwrap_err();
        assert_eq!(refused.code, ErrorCode::RateLimited);
        assert!(refused.message.contains("by the tokens of one task"));
        assert!(!refused.message.contains("tenant"), "{refused}");
    }

    #[test]
    fn an_address_has_as_much_of_a_room_as_it_may_have_of_all_connections() {
        assert_eq!(part(256, 1024, 4096), 64);
        // Behind a proxy, where all are one.
        assert_eq!(part(256, 4096, 4096), 256);
        assert_eq!(part(256, 4096, 1), 256);
        assert_eq!(part(256, 1, 4096), 1);
    }

    #[test]
    fn a_room_that_is_full_refuses_until_a_place_is_left() {
        let room = Room::new("things are done", 1, 100);
        let place = room.enter().unwrap();
        let refused = room.enter().unwrap_err();
        assert_eq!(refused.code, ErrorCode::Unavailable);
        drop(place);
        room.enter().unwrap();
    }

    proptest! {
        #[test]
        fn no_tenant_ever_holds_more_than_its_share_and_nobody_is_remembered_who_holds_none(
            places in 1..20u32,
            percent in 1..=100u32,
            steps in prop::collection::vec((0..3usize, any::<bool>()), 1..200),
        ) {
            let room = Room::new("things are done", places, percent);
            let most = share(places, percent);
            prop_assert!(most >= 1 && most <= places);
            let mut held: [Vec<Share>; 3] = Default::default();
            for (tenant, take) in steps {
                let mine = held[tenant].len() as u32;
                if take {
                    match room.share(["a", "b", "c"][tenant]) {
                        Ok(share) => held[tenant].push(share),
                        Err(_) => prop_assert_eq!(mine, most),
                    }
                } else {
                    held[tenant].pop();
                }
                prop_assert!(held[tenant].len() as u32 <= most);
            }
            let holding = held.iter().filter(|shares| !shares.is_empty()).count();
            prop_assert_eq!(room.shares.held().by.len(), holding);
            drop(held);
            prop_assert_eq!(room.shares.held().by.len(), 0);
        }
    }
}
