//! The audit chain: who asked for what, under which key, and what left the platform.
//!
//! [`write`] reads the task log in its own order and appends to the stream AUDIT; [`export`] puts what is there into dated files. A
//! submission pays nothing for it: what was accepted is in the log, and whoever writes the chain comes by later.
//!
//! AUDIT holds blocks: some lines of the chain in one message, at a subject with the block's number. Each is appended only if the last
//! block in the stream is the one that it goes on behind. That is all that keeps the chain one chain: of several orchestrators that
//! append block 7, one does, and the others see it and go on behind it; so does one that has slept until block 7 was in a file. How far
//! the log has been read is in the lines themselves, so an event is recorded exactly once whatever crashes when.
//!
//! The log does not let go of what is not recorded ([`hold`]), for as long as `audit.hold` says. What goes all the same is recorded as missing
//! ([`gap`]). Each block says which log it was made from ([`identity`]): where TASKS is made anew its places begin anew, and that is a gap, too.

mod content;
mod export;
mod gap;
mod hold;
mod write;

use std::time::{Duration, Instant};

use lifecycle::Service;
use messaging::{
    Broker, BrokerError, BrokerSettings, Bucket, Event, EventLog, Extent, RetentionPolicy,
    StreamSpec,
};
use storage::{Storage, StorageError};
use task_log::{TaskLog, TaskLogError};

use crate::settings::{AuditSettings, Settings};

pub(crate) use hold::{Hold, Leave};

const AUDIT: &str = "AUDIT";
const BLOCKS: &str = "inkstone.audit.block.*";

/// Why the chain does not grow, or is not put into files.
#[derive(Debug, thiserror::Error)]
pub(crate) enum AuditError {
    #[error(transparent)]
    Broker(#[from] BrokerError),
    #[error("cannot read the task log")]
    TaskLog(#[from] TaskLogError),
    #[error(transparent)]
    Storage(#[from] StorageError),
    #[error("a record cannot be written")]
    Write(#[from] serde_json::Error),
    #[error("block {block} of the audit chain is not what was written")]
    Block {
        block: u64,
        #[source]
        source: ::audit::LineError,
    },
    #[error("the file of audit blocks {first} to {last} would not be a chain")]
    File {
        first: u64,
        last: u64,
        #[source]
        source: ::audit::file::FileError,
    },
    #[error("block {0} of the audit chain is missing in the stream AUDIT")]
    Missing(u64),
    #[error(
        "the task log ends at {log}, and the audit chain has recorded it up to {recorded}: TASKS has lost its end, as where it was restored from a backup, or was made anew behind a block of an earlier version"
    )]
    LogBehind { log: u64, recorded: u64 },
    #[error("the object store did not return the audit file that it was given")]
    ReadBack,
}

/// Before another try to reach the broker.
const CONNECT_AGAIN: Duration = Duration::from_secs(1);
/// The longest [`rest`].
const MOST_REST: Duration = Duration::from_millis(50);
/// How long what the broker said of the time is good: records are dated by its clock, and files are due by it.
const TIME_GOOD_FOR: Duration = Duration::from_secs(5);

/// Opens the stream, and starts to write the chain and to put it into files. Says what the log must keep for it.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn start(
    service: &Service,
    broker: &Broker,
    storage: Storage,
    settings: &Settings,
) -> Result<Hold, BrokerError> {
    broker.ensure_stream(&spec(&settings.audit)).await?;
    state(broker).await?;
    let hold = Hold::new(broker, settings.audit.hold.duration()).await?;
    let (audit, settings) = (settings.audit.clone(), settings.broker.clone());
    let stopping = service.tasks.stopping();
    // However much there is to record: those who submit wait for answers, and this is only late.
    service.tasks.background("audit", async move {
        tokio::select! {
            () = stopping => {}
            () = keep(&settings, storage, &audit) => {}
        }
        Ok::<(), std::convert::Infallible>(())
    });
    Ok(hold)
}

/// Writes and exports until it is dropped, over a connection of its own: what comes in over it is taken apart by this thread, which comes last,
/// and no answer that somebody waits for lies behind it.
async fn keep(broker: &BrokerSettings, storage: Storage, settings: &AuditSettings) {
    let opened = async || {
        let broker = Broker::connect(broker, "orchestrator, audit").await?;
        let state = state(&broker).await?;
        let released = hold::released(&broker).await?;
        Ok::<_, BrokerError>((broker, state, released))
    };
    let (broker, state, released) = loop {
        match opened().await {
            Ok(opened) => break opened,
            Err(error) => {
                metrics::counter!("inkstone_orchestrator_audit_errors_total").increment(1);
                let error = lifecycle::chain(&error);
                tracing::warn!(error, "the audit chain waits for the broker");
            }
        }
        tokio::time::sleep(CONNECT_AGAIN).await;
    };
    let blocks = broker.log(AUDIT);
    let log = TaskLog::new(broker);
    let writer = write::Writer::new(log.clone(), blocks.clone(), released, settings.prompts);
    let exporter = export::Exporter::new(log, blocks, state, storage, settings);
    tokio::join!(writer.run(), exporter.run());
}

/// Leaves the processors to others for twice as long as what was begun then took: the broker works for this as well, and has no low priority.
async fn rest(began: Instant) {
    tokio::time::sleep((began.elapsed() * 2).min(MOST_REST)).await;
}

async fn state(broker: &Broker) -> Result<Bucket<export::State>, BrokerError> {
    broker.bucket("audit", Duration::ZERO).await
}

fn spec(settings: &AuditSettings) -> StreamSpec {
    StreamSpec {
        name: AUDIT,
        subjects: &["inkstone.audit.>"],
        retention: RetentionPolicy::Limits,
        max_messages: -1,
        max_messages_per_subject: 1,
        shares: false,
        max_message_size: -1,
        // Nothing goes by its age: only what is in a file is removed.
        max_age: Duration::ZERO,
        max_bytes: i64::try_from(settings.max_size.bytes()).unwrap_or(i64::MAX),
        refuse_when_full: true,
        batches: false,
        duplicate_window: Duration::from_secs(120),
        republish: None,
    }
}

fn subject(block: u64) -> String {
    format!("inkstone.audit.block.{block}")
}

/// The number of the block that is stored as `event`.
fn number(event: &Event) -> u64 {
    let number = event.subject.rsplit('.').next();
    number.and_then(|n| n.parse().ok()).unwrap_or_default()
}

/// The text of a block: its lines.
fn text(event: &Event) -> Result<&str, AuditError> {
    std::str::from_utf8(&event.payload).map_err(|_| AuditError::Block {
        block: number(event),
        source: ::audit::LineError::Changed,
    })
}

/// Reads one line of a block.
fn line(block: u64, text: &str) -> Result<::audit::Line, AuditError> {
    ::audit::Line::read(text).map_err(|source| AuditError::Block { block, source })
}

/// The first line of a block.
fn first_line(event: &Event) -> Result<::audit::Line, AuditError> {
    let block = number(event);
    let first = text(event)?.lines().next();
    line(block, first.ok_or(AuditError::Missing(block))?)
}

/// What tells a log from one that was made anew in its place, as the first record of each block has it: when it was made.
fn identity(log: &Extent) -> String {
    let made = jiff::Timestamp::try_from(log.made);
    made.map(|made| made.to_string()).unwrap_or_default()
}

/// The last line of a block.
fn last_line(event: &Event) -> Result<::audit::Line, AuditError> {
    let block = number(event);
    let last = text(event)?.lines().next_back();
    line(block, last.ok_or(AuditError::Missing(block))?)
}

/// The last block; `None` before the first.
async fn last_block(blocks: &EventLog) -> Result<Option<Event>, AuditError> {
    let last = blocks.last_sequence().await?;
    if last == 0 {
        return Ok(None);
    }
    let found = blocks.from_sequence(BLOCKS, last, 1).await?.pop();
    // Never a new beginning: that would be a second chain.
    found.map(Some).ok_or(AuditError::Missing(last))
}

#[cfg(test)]
mod tests;
