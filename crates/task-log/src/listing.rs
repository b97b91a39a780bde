//! A tenant's tasks, newest first, in pages, without an index: the stream is read backwards in growing windows.

use contract::TenantId;
use contract::task::Submitted;
use futures::{StreamExt as _, TryStreamExt as _};

use crate::{Record, TaskLog, TaskLogError, decode};

/// Sequences looked at first; each further window is four times as large.
const FIRST_WINDOW: u64 = 256;
/// Events of one tenant read for one page: a bound on what a page may cost.
const MAX_EVENTS: usize = 4096;
/// Tasks read at the same time.
const READS: usize = 16;

/// Some of a tenant's tasks.
#[derive(Debug, Clone)]
pub struct Page {
    /// Newest first.
    pub records: Vec<Record>,
    /// What to pass as `before` for the next page; `None` on the last.
    pub next: Option<u64>,
}

impl TaskLog {
    /// Up to `limit` tasks of `tenant` that were submitted before sequence `before`, newest first.
    ///
    /// # Errors
    /// When the broker does not answer or an event cannot be decoded.
    pub async fn list(
        &self,
        tenant: &TenantId,
        before: Option<u64>,
        limit: usize,
    ) -> Result<Page, TaskLogError> {
        let filter = format!("inkstone.task.{tenant}.*.*.submitted");
        let end = match before {
            Some(before) => before,
            None => self.tasks.last_sequence().await? + 1,
        };
        let mut found: Vec<(u64, Submitted)> = Vec::new();
        let (mut high, mut window, mut seen) = (end, FIRST_WINDOW, 0);
        while high > 1 && found.len() < limit && seen < MAX_EVENTS {
            let low = high.saturating_sub(window).max(1);
            let mut part = self.between(&filter, low, high).await?;
            seen += part.len();
            part.reverse();
            found.append(&mut part);
            high = low;
            window = window.saturating_mul(4);
        }
        let more = found.len() > limit || high > 1;
        found.truncate(limit);
        let next = match found.last() {
            Some((sequence, _)) if found.len() == limit => Some(*sequence),
            _ => Some(high),
        };
        let records = futures::stream::iter(found)
            .map(|(_, submitted)| self.of_listing(tenant, submitted))
            .buffered(READS)
            .try_filter_map(async |record| Ok(record))
            .try_collect()
            .await?;
        Ok(Page {
            records,
            next: next.filter(|_| more),
        })
    }

    async fn of_listing(
        &self,
        tenant: &TenantId,
        submitted: Submitted,
    ) -> Result<Option<Record>, TaskLogError> {
        self.read(tenant, submitted.task_id.parse()?).await
    }

    /// Events with `low ≤ sequence < high`, in stream order.
    async fn between(
        &self,
        filter: &str,
        low: u64,
        high: u64,
    ) -> Result<Vec<(u64, Submitted)>, TaskLogError> {
        let mut found = Vec::new();
        let mut from = low;
        loop {
            let part = self.tasks.from_sequence(filter, from, usize::MAX).await?;
            let Some(last) = part.last().map(|event| event.sequence) else {
                return Ok(found);
            };
            for event in part.into_iter().filter(|event| event.sequence < high) {
                found.push((event.sequence, decode("submitted", &event.payload)?));
            }
            if last >= high {
                return Ok(found);
            }
            from = last + 1;
        }
    }
}
