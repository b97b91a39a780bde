//! A tenant's tasks, newest first, in pages, without an index: the stream is read backwards in growing windows.

use contract::TenantId;
use contract::task::Submitted;
use futures::{StreamExt as _, TryStreamExt as _};
use messaging::MAX_BATCH;

use crate::{Record, TaskLog, TaskLogError, decode};

/// Sequences looked at first; each further window is four times as large.
const FIRST_WINDOW: u64 = 256;
/// Reads of the stream for one page: a bound on what a page may cost, whatever the log holds.
const MAX_READS: usize = 32;
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
        let last = self.tasks.last_sequence().await? + 1;
        let end = before.map_or(last, |before| before.min(last));
        let mut found: Vec<(u64, Submitted)> = Vec::new();
        let (mut high, mut window, mut reads) = (end, FIRST_WINDOW, 0);
        while high > 1 && found.len() < limit && reads < MAX_READS {
            reads += 1;
            let low = high.saturating_sub(window).max(1);
            match self.between(&filter, low, high).await? {
                Some(mut part) => {
                    part.reverse();
                    found.append(&mut part);
                    high = low;
                    window = window.saturating_mul(4);
                }
                // More than one read returns: look at less. A window of one batch always fits.
                None => window = (window / 4).max(MAX_BATCH as u64 / 2),
            }
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

    /// Events with `low ≤ sequence < high`, in stream order; `None` when they are more than one read returns.
    async fn between(
        &self,
        filter: &str,
        low: u64,
        high: u64,
    ) -> Result<Option<Vec<(u64, Submitted)>>, TaskLogError> {
        let events = self.tasks.from_sequence(filter, low, MAX_BATCH).await?;
        let cut = events.len() == MAX_BATCH && events.last().is_some_and(|e| e.sequence < high - 1);
        if cut {
            return Ok(None);
        }
        let within = events.into_iter().filter(|event| event.sequence < high);
        within
            .map(|event| Ok((event.sequence, decode("submitted", &event.payload)?)))
            .collect::<Result<_, _>>()
            .map(Some)
    }
}
