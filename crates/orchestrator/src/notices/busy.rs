//! How many deliveries of one tenant, and to one host, are under way: a slow receiver holds a few places and never all of them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

/// Who is being told. Cheap to clone.
#[derive(Clone, Default)]
pub(crate) struct Busy(Arc<Mutex<HashMap<String, u32>>>);

/// Two places, one of the tenant's and one of the host's; free again when it is dropped.
pub(crate) struct Places {
    busy: Busy,
    names: [String; 2],
}

impl Busy {
    /// A place of each, if fewer than `most` are taken.
    pub(crate) fn take(&self, tenant: &str, host: &str, most: u32) -> Option<Places> {
        // A tenant holds no space and no slash, so the two kinds cannot be taken for each other.
        let names = [format!("tenant {tenant}"), format!("host {host}")];
        let mut places = self.places();
        let full = |name: &String| places.get(name).is_some_and(|taken| *taken >= most);
        if names.iter().any(full) {
            return None;
        }
        for name in &names {
            *places.entry(name.clone()).or_default() += 1;
        }
        drop(places);
        let busy = self.clone();
        Some(Places { busy, names })
    }

    fn places(&self) -> std::sync::MutexGuard<'_, HashMap<String, u32>> {
        // Every change leaves the counts whole.
        self.0.lock().unwrap_or_else(|e| e.into_inner())
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        let mut places = self.busy.places();
        for name in &self.names {
            if let Some(taken) = places.get_mut(name) {
                *taken -= 1;
                if *taken == 0 {
                    places.remove(name);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_and_a_host_have_so_many_places_and_give_them_back() {
        let busy = Busy::default();
        let first = busy.take("acme", "a.example", 2).unwrap();
        let _second = busy.take("acme", "b.example", 2).unwrap();
        assert!(busy.take("acme", "c.example", 2).is_none());
        let _other = busy.take("bcme", "a.example", 2).unwrap();
        assert!(busy.take("ccme", "a.example", 2).is_none());
        drop(first);
        assert!(busy.take("acme", "c.example", 2).is_some());
        assert!(busy.take("ccme", "a.example", 2).is_some());
    }

    #[test]
    fn nothing_is_kept_of_those_who_are_done() {
        let busy = Busy::default();
        for number in 0..100 {
            let name = number.to_string();
            let places = busy.take(&name, &name, 1).unwrap();
            assert!(busy.take(&name, "x", 1).is_none());
            drop(places);
        }
        assert!(busy.places().is_empty());
    }
}
