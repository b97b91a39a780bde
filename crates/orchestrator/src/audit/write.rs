//! From the task log to the chain.

use std::time::{Duration, SystemTime};

use ::audit::{Chain, Head};
use messaging::{Appended, EventLog, NewEvent};
use task_log::{Happened, Stretch, TaskLog, What};

use super::{AuditError, content, last_block, line, lines, number, subject};

/// Bytes after which a block takes no more records: half of what the broker takes in one message, and the largest record is far smaller.
const BLOCK_BYTES: usize = 512 * 1024;
/// Before the log is looked at again that had nothing new.
const IDLE: Duration = Duration::from_millis(500);
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
    /// How far the log has been read.
    source: u64,
}

/// What came of one turn.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Turn {
    /// There may be more.
    More,
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
            let pause = match self.turn(&mut place).await {
                Ok(Turn::More) => continue,
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

    /// Records a stretch of the log at most. `place` is kept between turns.
    pub(super) async fn turn(&self, place: &mut Option<Place>) -> Result<Turn, AuditError> {
        let mut here = match place.take() {
            Some(here) => here,
            None => self.place().await?,
        };
        let stretch = self.log.after(here.source).await?;
        let Some(last) = stretch.last else {
            let log = self.log.last_sequence().await?;
            if log < here.source {
                let recorded = here.source;
                return Err(AuditError::LogBehind { log, recorded });
            }
            behind(Duration::ZERO);
            *place = Some(here);
            return Ok(Turn::Idle);
        };
        let (payload, records, source) = self.block(&mut here.chain, &stretch, last)?;
        if records > 0 {
            let subject = subject(here.block);
            let event = NewEvent::new(subject.clone(), subject, payload.into());
            if let Appended::Exists(_) = self.blocks.create(&event).await? {
                return Ok(Turn::Outrun);
            }
            here.block += 1;
            metrics::counter!("inkstone_orchestrator_audit_records_total").increment(records);
            let recorded = stretch.happened.iter().rfind(|it| it.sequence <= source);
            if let Some(age) = recorded.and_then(age) {
                behind(age);
            }
        }
        here.source = source;
        *place = Some(here);
        Ok(Turn::More)
    }

    /// The text of a block with as much of the stretch as fits, how many records that is, and up to where it goes.
    fn block(
        &self,
        chain: &mut Chain,
        stretch: &Stretch,
        last: u64,
    ) -> Result<(String, u64, u64), AuditError> {
        let (mut text, mut records, mut source) = (String::new(), 0, 0);
        for happened in &stretch.happened {
            if text.len() >= BLOCK_BYTES {
                return Ok((text, records, source));
            }
            text.push_str(&chain.append(content::of(happened, self.prompts))?);
            text.push('\n');
            records += 1;
            source = happened.sequence;
        }
        Ok((text, records, last))
    }

    async fn place(&self) -> Result<Place, AuditError> {
        let Some(last) = last_block(&self.blocks).await? else {
            return Ok(Place {
                chain: Chain::after(Head::genesis()),
                block: 1,
                source: 0,
            });
        };
        let block = number(&last);
        let text = lines(&last)?.pop().ok_or(AuditError::Missing(block))?;
        let line = line(block, &text)?;
        let head = Head {
            sequence: line.sequence,
            hash: line.hash,
        };
        Ok(Place {
            chain: Chain::after(head),
            block: block + 1,
            source: line.content.source,
        })
    }
}
