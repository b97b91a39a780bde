//! From the task log to the chain.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use ::audit::{Chain, Event, Head};
use bytes::Bytes;
use messaging::{BrokerError, Bucket, EventLog, Extent, NewEvent, Replaced};
use task_log::{Following, Happened, Stretch, TaskLog, What};

use super::gap::{self, Gap, Witness};
use super::{
    AuditError, BLOCKS, TIME_GOOD_FOR, content, first_line, hold, identity, last_block, last_line,
    number, rest, subject,
};

/// Bytes after which a block takes no more records: half of what the broker takes in one message, and the largest record is far smaller.
pub(super) const BLOCK_BYTES: usize = 512 * 1024;
/// About what a record takes, so that a block's text rarely has to grow.
const RECORD_BYTES: usize = 1024;
/// Before the log is looked at again that had nothing new.
const IDLE: Duration = Duration::from_millis(500);
/// … and that had, and then no more: what comes meanwhile is recorded together.
const CAUGHT_UP: Duration = Duration::from_millis(50);
/// Before another try, after another orchestrator was first: it will be the next time too.
const STAND_BY: Duration = Duration::from_secs(2);
/// … and after an error.
const TRY_AGAIN: Duration = Duration::from_secs(1);

/// Appends to the chain.
pub(super) struct Writer {
    log: TaskLog,
    blocks: EventLog,
    released: Bucket<hold::Released>,
    prompts: bool,
}

/// Where the chain stands, as its last block says.
pub(super) struct Place {
    chain: Chain,
    /// The next block's number.
    block: u64,
    /// Where in the stream the last block is; 0 before the first. It is there for as long as no other is behind it.
    last: u64,
    /// How far the log is recorded.
    source: u64,
    /// Which [log](identity) that is; empty until something is read where the last block does not say it.
    log: String,
    /// What lies there.
    witness: Witness,
    /// What reads on. Who has just begun asks by place: it may be that another writes, and that it will never need it.
    following: Option<Following>,
    /// What was read and is not recorded so far.
    read: VecDeque<Next>,
    /// How many events there were behind that.
    behind: u64,
    /// A block for which there was no room.
    unsent: Option<Block>,
}

impl Place {
    /// Whether this is another log than the one that was recorded so far: then what comes next is the gap between the two, if any was, and after that the new
    /// one from its beginning. What was read may be of either, and is read again where it is of the new one.
    fn begins_anew(&mut self, log: &Extent) -> bool {
        let before = std::mem::replace(&mut self.log, identity(log));
        if before == self.log {
            return false;
        }
        self.following = None;
        self.behind = 0;
        self.read.clear();
        if self.witness == Witness::Begin {
            // Of the one before nothing was recorded, so nothing is missed: the chain begins with this one.
            self.source = 0;
        } else {
            let gap = gap::anew(self.source, log);
            self.read.push_back(Next::Gap(gap));
        }
        true
    }
}

/// What is recorded next.
enum Next {
    Event(Happened),
    Gap(Gap),
}

impl Next {
    /// How far the log is recorded then.
    fn place(&self) -> u64 {
        match self {
            Self::Event(happened) => happened.sequence,
            Self::Gap(gap) => gap.to,
        }
    }
}

/// The next block.
struct Block {
    /// Its lines.
    payload: Bytes,
    records: u64,
    gaps: Vec<Gap>,
    /// When the last event in it happened.
    at: Option<SystemTime>,
}

/// What came of one turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There is more.
    More,
    /// All that was there when the log was read is recorded.
    CaughtUp,
    /// All of the log is recorded.
    Idle,
    /// Another orchestrator has appended meanwhile.
    Outrun,
    /// There is no room until a file has taken some.
    Full,
}

/// When an event happened.
fn at(happened: &Happened) -> Option<SystemTime> {
    let at = match &happened.what {
        What::Submitted(submitted) => submitted.at,
        What::Done(done) => done.at,
        What::Unreadable(_) => None,
    };
    SystemTime::try_from(at?).ok()
}

/// How old the last event is `now` that was recorded, or that should be.
fn behind(at: Option<SystemTime>, now: SystemTime) {
    let age = at.and_then(|at| now.duration_since(at).ok());
    if let Some(age) = age {
        behind_by(age);
    }
}

fn behind_by(age: Duration) {
    metrics::gauge!("inkstone_orchestrator_audit_behind_seconds").set(age.as_secs_f64());
}

impl Writer {
    pub(super) fn new(
        log: TaskLog,
        blocks: EventLog,
        released: Bucket<hold::Released>,
        prompts: bool,
    ) -> Self {
        Self {
            log,
            blocks,
            released,
            prompts,
        }
    }

    /// Keeps up with the log until it is dropped.
    pub(super) async fn run(&self) {
        let mut place = None;
        loop {
            let began = Instant::now();
            let pause = match self.turn(&mut place).await {
                Ok(Turn::More) => {
                    rest(began).await;
                    continue;
                }
                Ok(Turn::CaughtUp) => CAUGHT_UP,
                Ok(Turn::Idle) => IDLE,
                Ok(Turn::Outrun) => STAND_BY,
                Ok(Turn::Full) => TRY_AGAIN,
                Err(error) => {
                    metrics::counter!("inkstone_orchestrator_audit_errors_total").increment(1);
                    let error = lifecycle::chain(&error);
                    tracing::warn!(error, "the audit chain is behind");
                    place = None;
                    TRY_AGAIN
                }
            };
            tokio::time::sleep(pause).await;
        }
    }

    /// Records a block at most. `place` is kept between turns.
    pub(super) async fn turn(&self, place: &mut Option<Place>) -> Result<Turn, AuditError> {
        let mut here = match place.take() {
            Some(here) => here,
            None => self.place().await?,
        };
        let kept = here.unsent.take();
        if kept.is_none() && here.read.is_empty() && !self.read(&mut here).await? {
            behind_by(Duration::ZERO);
            *place = Some(here);
            return Ok(Turn::Idle);
        }
        let was_full = kept.is_some();
        let block = match kept {
            Some(block) => block,
            None => {
                let now = self.log.time_within(TIME_GOOD_FOR).await?;
                self.block(&mut here, now)?
            }
        };
        if block.records > 0 {
            match self.append(&mut here, &block).await {
                Ok(true) => {}
                Ok(false) => return Ok(Turn::Outrun),
                // Nothing is read again meanwhile: where much waits, to begin anew costs the broker time in which nobody can submit.
                Err(BrokerError::Full { .. }) => {
                    full(&block, was_full, self.log.now());
                    here.unsent = Some(block);
                    *place = Some(here);
                    return Ok(Turn::Full);
                }
                Err(error) => return Err(error.into()),
            }
        }
        let more = !here.read.is_empty() || here.behind > 0;
        *place = Some(here);
        Ok(if more { Turn::More } else { Turn::CaughtUp })
    }

    /// Appends a block; false when another orchestrator was first.
    async fn append(&self, here: &mut Place, block: &Block) -> Result<bool, BrokerError> {
        let event = NewEvent::new(
            subject(here.block),
            BLOCKS.to_owned(),
            block.payload.clone(),
        );
        // That this block is not there says nothing: it may have been, and be in a file since.
        here.last = match self.blocks.append(&event, here.last).await? {
            Replaced::Stored(sequence) => sequence,
            Replaced::Refused => return Ok(false),
        };
        here.block += 1;
        metrics::counter!("inkstone_orchestrator_audit_records_total").increment(block.records);
        // Only now: another may have read it before it went.
        block.gaps.iter().for_each(gap::tell);
        behind(block.at, self.log.now());
        if here.following.is_none() {
            // It is this one that writes.
            let last = here.read.back().map(Next::place);
            let from = last.unwrap_or(here.source);
            here.following = Some(self.log.following(from));
        }
        Ok(true)
    }

    /// Reads what comes next; false when there is nothing.
    async fn read(&self, here: &mut Place) -> Result<bool, AuditError> {
        let is_same = here.following.as_ref().is_some_and(Following::has_begun);
        if here.log.is_empty() {
            here.log = identity(&self.log.extent().await?);
        }
        let stretch = match &mut here.following {
            Some(following) => following.next().await?,
            None => self.log.after(here.source).await?,
        };
        let mut missing = None;
        if !is_same || !stretch.is_whole() {
            // Asked last: the log cannot have been another when that was read, and be the same now. (By place any replica answers: one that has not heard for
            // seconds that the log is another may tell of the old one.)
            let log = self.log.extent().await?;
            if here.begins_anew(&log) {
                return Ok(!here.read.is_empty());
            }
            if !stretch.is_whole() {
                let (witness, source) = (here.witness, here.source);
                missing = self.missing(witness, source, &stretch, &log).await?;
            }
        }
        here.behind = stretch.behind;
        here.read = stretch.happened.into_iter().map(Next::Event).collect();
        if let Some(gap) = missing {
            let before = here.read.partition_point(|next| next.place() < gap.from);
            here.read.insert(before, Next::Gap(gap));
        }
        let Some(last) = stretch.last else {
            return Ok(!here.read.is_empty());
        };
        if here.read.is_empty() {
            here.source = here.source.max(last);
        }
        Ok(true)
    }

    /// What had gone behind `source` before it was read, as the log is now that `stretch` was read.
    async fn missing(
        &self,
        witness: Witness,
        source: u64,
        stretch: &Stretch,
        log: &Extent,
    ) -> Result<Option<Gap>, AuditError> {
        if stretch.last.is_none() && log.last < source {
            return Err(AuditError::LogBehind {
                log: log.last,
                recorded: source,
            });
        }
        // What reads on may stand in front of a gap that is recorded by now.
        let after = stretch.after.max(source);
        // States are no reason to tell of a gap behind a gap.
        let read: &[u64] = match stretch.happened.is_empty() {
            true if witness == Witness::Gap => &[],
            _ => &stretch.places,
        };
        gap::find(witness, after, read, (log, &self.released)).await
    }

    /// A block with as much of what was read as fits, recorded `now`.
    fn block(&self, here: &mut Place, now: SystemTime) -> Result<Block, AuditError> {
        // At once: a text that grows is copied into ever new memory, a fresh page for each.
        let room = here.read.len().saturating_mul(RECORD_BYTES);
        let mut text = String::with_capacity(room.min(BLOCK_BYTES + RECORD_BYTES));
        let (mut records, mut gaps, mut last) = (0, Vec::new(), None);
        while text.len() < BLOCK_BYTES
            && let Some(next) = here.read.pop_front()
        {
            here.source = next.place();
            let mut content = match next {
                Next::Event(happened) => {
                    here.witness = Witness::At(happened.sequence);
                    last = at(&happened);
                    content::of(&happened, self.prompts, now)
                }
                Next::Gap(gap) => {
                    here.witness = Witness::Gap;
                    gaps.push(gap);
                    content::of_gap(&gap, now)
                }
            };
            if records == 0 {
                content.log = here.log.clone();
            }
            text.push_str(&here.chain.append(content)?);
            text.push('\n');
            records += 1;
        }
        Ok(Block {
            payload: text.into(),
            records,
            gaps,
            at: last,
        })
    }

    async fn place(&self) -> Result<Place, AuditError> {
        let mut log = String::new();
        let (head, block, last, source, witness) = match last_block(&self.blocks).await? {
            None => (Head::genesis(), 0, 0, 0, Witness::Begin),
            Some(last) => {
                log = first_line(&last)?.content.log;
                let line = last_line(&last)?;
                let source = line.content.source;
                let witness = match line.content.event {
                    Event::Gap { .. } => Witness::Gap,
                    _ => Witness::At(source),
                };
                let head = Head {
                    sequence: line.sequence,
                    hash: line.hash,
                };
                (head, number(&last), last.sequence, source, witness)
            }
        };
        Ok(Place {
            chain: Chain::after(head),
            block: block + 1,
            last,
            source,
            log,
            witness,
            following: None,
            read: VecDeque::new(),
            behind: 0,
            unsent: None,
        })
    }
}

/// Says once that there is no room, and how far behind the chain is each time.
fn full(block: &Block, was_full: bool, now: SystemTime) {
    behind(block.at, now);
    metrics::counter!("inkstone_orchestrator_audit_errors_total").increment(1);
    if !was_full {
        tracing::warn!(
            "AUDIT is full (audit.max_size), or the broker's disk is: the audit chain goes on when a file has taken some of it, and what happens meanwhile waits in TASKS"
        );
    }
}
