//! What there is room for, and what a decision has taken of it so far.

use std::collections::BTreeMap;

use contract::TenantId;

use super::{Head, Version};

/// What there is room for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Room {
    /// How many more dispatches each version may have; a version not named has none.
    pub(crate) versions: BTreeMap<Version, usize>,
    /// How many dispatches each tenant has.
    pub(crate) tenants: BTreeMap<TenantId, usize>,
}

/// Room that only shrinks: a head that is kept out once stays out until the next decision.
pub(super) struct Gate<'a> {
    room: &'a Room,
    versions: BTreeMap<&'a Version, usize>,
    tenants: BTreeMap<&'a TenantId, usize>,
}

impl<'a> Gate<'a> {
    pub(super) fn new(room: &'a Room) -> Self {
        Self {
            room,
            versions: BTreeMap::new(),
            tenants: BTreeMap::new(),
        }
    }

    pub(super) fn lets_in(&self, head: &Head) -> bool {
        let left = self.room.versions.get(&head.version).copied().unwrap_or(0);
        // Most often nothing is left at all.
        if left == 0 || left <= self.versions.get(&head.version).copied().unwrap_or(0) {
            return false;
        }
        head.limit.is_none_or(|limit| {
            let before = self.room.tenants.get(&head.tenant).copied().unwrap_or(0);
            let taken = self.tenants.get(&head.tenant).copied().unwrap_or(0);
            before + taken < limit
        })
    }

    pub(super) fn take(&mut self, head: &'a Head) {
        *self.versions.entry(&head.version).or_default() += 1;
        *self.tenants.entry(&head.tenant).or_default() += 1;
    }
}
