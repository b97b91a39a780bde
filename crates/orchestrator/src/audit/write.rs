//! From the task log to the chain.

use std::collections::VecDeque;
use std::time::{Duration, Instant, SystemTime};

use ::audit::{Chain, Head};
use messaging::{EventLog, NewEvent, Replaced};
use task_log::{Following, Happened, TaskLog, What};

use super::{AuditError, BLOCKS, content, last_block, line, number, rest, subject, text};

/// Bytes after which a block takes no more records: half of what the broker takes in one message, and the largest record is far smaller.
const BLOCK_BYTES: usize = 512 * 1024;
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
    /// What reads on. Who has just begun asks by place: it may be that another writes, and that it will never need it.
    following: Option<Following>,
    /// What was read and is not recorded so far.
    read: VecDeque<Happened>,
    /// How many events there were behind that.
    behind: u64,
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
}

/// How old an event is.
fn age(happened: &Happened) -> Option<Duration> {
    let at = match &happened.what {
        What::Submitted(submitted) => submitted.at,
        What::Done(done) => done.at,
        What::Unreadable(_) => None,
    };
    let at = SystemTime::try_from(at?).ok()?;
    contract::clock::system_time().duration_since(at).ok()
}

fn behind(age: Duration) {
    metrics::gauge!("inkstone_orchestrator_audit_behind_seconds").set(age.as_secs_f64());
}

impl Writer {
    pub(super) fn new(log: TaskLog, blocks: EventLog, prompts: bool) -> Self {
        Self {
            log,
            blocks,
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
        if here.read.is_empty() && !self.read(&mut here).await? {
            let log = self.log.last_sequence().await?;
            if log < here.source {
                let recorded = here.source;
                return Err(AuditError::LogBehind { log, recorded });
            }
            behind(Duration::ZERO);
            *place = Some(here);
            return Ok(Turn::Idle);
        }
        let (payload, records, recorded) = self.block(&mut here)?;
        if records > 0 {
            let event = NewEvent::new(subject(here.block), BLOCKS.to_owned(), payload.into());
            // That this block is not there says nothing: it may have been, and be in a file since.
            here.last = match self.blocks.append(&event, here.last).await? {
                Replaced::Stored(sequence) => sequence,
                Replaced::Refused => return Ok(Turn::Outrun),
            };
            here.block += 1;
            metrics::counter!("inkstone_orchestrator_audit_records_total").increment(records);
            if let Some(age) = recorded {
                behind(age);
            }
            if here.following.is_none() {
                // It is this one that writes.
                let last = here.read.back().map(|it| it.sequence);
                let from = last.unwrap_or(here.source);
                here.following = Some(self.log.following(from));
            }
        }
        let more = !here.read.is_empty() || here.behind > 0;
        *place = Some(here);
        Ok(if more { Turn::More } else { Turn::CaughtUp })
    }

    /// Reads what comes next; false when there is nothing.
    async fn read(&self, here: &mut Place) -> Result<bool, AuditError> {
        let stretch = match &mut here.following {
            Some(following) => following.next().await?,
            None => self.log.after(here.source).await?,
        };
        let Some(last) = stretch.last else {
            return Ok(false);
        };
        here.behind = stretch.behind;
        here.read = stretch.happened.into();
        if here.read.is_empty() {
            here.source = last;
        }
        Ok(true)
    }

    /// The text of a block with as much of what was read as fits, how many records that is, and how old the last of them is.
    fn block(&self, here: &mut Place) -> Result<(String, u64, Option<Duration>), AuditError> {
        let (mut text, mut records) = (String::new(), 0);
        let mut recorded = None;
        while text.len() < BLOCK_BYTES
            && let Some(happened) = here.read.pop_front()
        {
            let content = content::of(&happened, self.prompts);
            text.push_str(&here.chain.append(content)?);
            text.push('\n');
            records += 1;
            here.source = happened.sequence;
            recorded = age(&happened);
        }
        Ok((text, records, recorded))
    }

    async fn place(&self) -> Result<Place, AuditError> {
        let (head, block, last, source) = match last_block(&self.blocks).await? {
            None => (Head::genesis(), 0, 0, 0),
            Some(last) => {
                let block = number(&last);
                let text = text(&last)?.lines().next_back();
                let line = line(block, text.ok_or(AuditError::Missing(block))?)?;
                let head = Head {
                    sequence: line.sequence,
                    hash: line.hash,
                };
                (head, block, last.sequence, line.content.source)
            }
        };
        Ok(Place {
            chain: Chain::after(head),
            block: block + 1,
            last,
            source,
            following: None,
            read: VecDeque::new(),
            behind: 0,
        })
    }
}
