//! From the chain to dated files in the object store.
//!
//! Which blocks go into a file is decided first, and stored; only then is the file written. So however often it is written, and by
//! whichever orchestrator, it is the same file. Blocks leave the stream when the file has been read back, but for the last one, behind which
//! the chain goes on.

use std::time::{Duration, Instant, SystemTime};

use ::audit::Head;
use ::audit::file::FileWriter;
use bytes::Bytes;
use messaging::{BrokerError, Bucket, Entry, Event, EventLog};
use storage::{Key, Storage, sha256_hex};
use task_log::TaskLog;

use super::write::BLOCK_BYTES;
use super::{AuditError, TIME_GOOD_FOR, first_line, line, number, rest, subject, text};
use crate::settings::AuditSettings;

/// Blocks in one file.
const MAX_BLOCKS: u64 = 4096;
/// Between two looks.
const LOOK_EVERY: Duration = Duration::from_secs(5);
/// Where the state lies in its bucket.
const STATE: &str = "export";
/// Bytes of a day in RFC 3339.
const DAY: usize = 10;

/// How far files go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(super) struct State {
    /// The first block that is in no file.
    pub(super) next: u64,
    /// The last block of the file that is being written.
    pub(super) cut: Option<u64>,
}

/// Puts blocks into files.
pub(super) struct Exporter {
    /// Tells the time, by which records are dated.
    log: TaskLog,
    blocks: EventLog,
    state: Bucket<State>,
    storage: Storage,
    every: Duration,
    size: usize,
}

impl Exporter {
    pub(super) fn new(
        log: TaskLog,
        blocks: EventLog,
        state: Bucket<State>,
        storage: Storage,
        settings: &AuditSettings,
    ) -> Self {
        Self {
            log,
            blocks,
            state,
            storage,
            every: settings.export_every.duration(),
            size: usize::try_from(settings.file_size.bytes()).unwrap_or(usize::MAX),
        }
    }

    /// Writes files until it is dropped.
    pub(super) async fn run(&self) {
        loop {
            match self.look().await {
                Ok(true) => continue,
                Ok(false) => {}
                // Another orchestrator does the same.
                Err(AuditError::Broker(BrokerError::Conflict { .. })) => {}
                Err(error) => {
                    metrics::counter!("inkstone_orchestrator_audit_errors_total").increment(1);
                    let error = lifecycle::chain(&error);
                    tracing::warn!(error, "audit records wait to be put into a file");
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Writes one file if it is time for one by the broker's clock; true when it did.
    pub(super) async fn look(&self) -> Result<bool, AuditError> {
        let now = self.log.time_within(TIME_GOOD_FOR).await?;
        self.turn(now).await
    }

    /// Writes one file if it is time for one `now`; true when it did.
    pub(super) async fn turn(&self, now: SystemTime) -> Result<bool, AuditError> {
        let Entry { value, revision } = match self.state.get(STATE).await? {
            Some(entry) => entry,
            None => {
                let value = State { next: 1, cut: None };
                let revision = self.state.create(STATE, &value).await?;
                Entry { value, revision }
            }
        };
        let first = value.next;
        let (last, revision) = match value.cut {
            Some(last) => (last, revision),
            None => {
                let Some(last) = self.cut(first, now).await? else {
                    return Ok(false);
                };
                let cut = State {
                    next: first,
                    cut: Some(last),
                };
                (last, self.state.update(STATE, &cut, revision).await?)
            }
        };
        let kept = self.write(first, last).await?;
        let done = State {
            next: last + 1,
            cut: None,
        };
        self.state.update(STATE, &done, revision).await?;
        self.blocks.remove_before(kept).await?;
        Ok(true)
    }

    /// Whether it may be time for a file. It reads one block: all of them would be read again at each look.
    async fn may_be_due(&self, first: u64, now: SystemTime) -> Result<bool, AuditError> {
        let Some(oldest) = self.block(first).await? else {
            return Ok(false);
        };
        let recorded = recorded(&oldest)?;
        let today = jiff::Timestamp::try_from(now).map(|now| now.to_string());
        let same_day = today.is_ok_and(|today| today.get(..DAY) == recorded.get(..DAY));
        let due = !same_day || is_older(&recorded, self.every, now);
        // The stream holds the last block of the file before besides, and headers: it may be too much, and is never too little.
        Ok(due || self.blocks.size().await? >= self.size as u64)
    }

    /// The last block of the next file, if it is time for one.
    async fn cut(&self, first: u64, now: SystemTime) -> Result<Option<u64>, AuditError> {
        if !self.may_be_due(first, now).await? {
            return Ok(None);
        }
        let (mut size, mut day, mut due) = (0, None, false);
        let mut next = first;
        while next < first + MAX_BLOCKS {
            let began = Instant::now();
            let Some(event) = self.block(next).await? else {
                break;
            };
            let recorded = recorded(&event)?;
            let today = day.get_or_insert_with(|| recorded[..DAY].to_owned());
            if recorded[..DAY] != **today {
                return Ok(Some(next - 1));
            }
            due |= is_older(&recorded, self.every, now);
            size += event.payload.len();
            next += 1;
            if size >= self.size {
                return Ok(Some(next - 1));
            }
            rest(began).await;
        }
        let full = next == first + MAX_BLOCKS;
        Ok((next > first && (due || full)).then_some(next - 1))
    }

    /// Writes the file of these blocks and reads it back; says where in the stream the last one is.
    async fn write(&self, first: u64, last: u64) -> Result<u64, AuditError> {
        let wrong = |source| AuditError::File {
            first,
            last,
            source,
        };
        let (mut begun, mut kept) = (None, 0);
        for block in first..=last {
            let began = Instant::now();
            let event = self.block(block).await?;
            let event = event.ok_or(AuditError::Missing(block))?;
            let text = text(&event)?;
            let (file, _) = match &mut begun {
                Some(begun) => begun,
                // What a file is cut at, and the block that goes beyond it.
                None => begun.insert(begin(block, text, self.size + 2 * BLOCK_BYTES)?),
            };
            for line in text.lines() {
                file.line(line).map_err(wrong)?;
            }
            kept = event.sequence;
            rest(began).await;
        }
        let (file, day) = begun.ok_or(AuditError::Missing(first))?;
        let (begin, end) = (file.first_sequence(), file.head().sequence);
        let key = Key::audit(&day, begin, end).ok_or(AuditError::Missing(first))?;
        let data = Bytes::from(file.finish().map_err(wrong)?);
        // Never both in memory, what was written and what is read back.
        let (size, digest) = (data.len() as u64, sha256_hex(&data));
        self.storage.put(&key, data).await?;
        let read = self.storage.get(&key, size).await?;
        if read.len() as u64 != size || sha256_hex(&read) != digest {
            return Err(AuditError::ReadBack);
        }
        let records = (end + 1).saturating_sub(begin);
        tracing::info!(%key, records, "an audit file is stored");
        metrics::counter!("inkstone_orchestrator_audit_files_total").increment(1);
        Ok(kept)
    }

    /// The block with this number, if there is one.
    async fn block(&self, number: u64) -> Result<Option<Event>, AuditError> {
        Ok(self.blocks.at(&subject(number)).await?)
    }
}

/// A file whose first block is `text`, with room for so many bytes, and its day.
fn begin(block: u64, text: &str, room: usize) -> Result<(FileWriter, String), AuditError> {
    let first = text.lines().next().ok_or(AuditError::Missing(block))?;
    let first = line(block, first)?;
    let before = Head {
        sequence: first.sequence.saturating_sub(1),
        hash: first.prev_hash,
    };
    let day = first.content.recorded.get(..DAY).unwrap_or_default();
    Ok((FileWriter::with_room(before, room), day.to_owned()))
}

/// When a block's first record was made.
fn recorded(event: &Event) -> Result<String, AuditError> {
    let recorded = first_line(event)?.content.recorded;
    if recorded.is_char_boundary(DAY) && recorded.len() > DAY {
        Ok(recorded)
    } else {
        Err(AuditError::Missing(number(event)))
    }
}

fn is_older(recorded: &str, than: Duration, now: SystemTime) -> bool {
    let at: Option<jiff::Timestamp> = recorded.parse().ok();
    // What has no time that can be read waits no longer.
    at.is_none_or(|at| {
        let age = now.duration_since(SystemTime::from(at));
        age.is_ok_and(|age| age >= than)
    })
}
