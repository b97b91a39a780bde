//! Which queues there are, and reading them on.

use std::time::{Duration, Instant};

use contract::task::Submitted;
use futures::FutureExt as _;
use messaging::{BrokerError, Event, MAX_BATCH, Page, Reader, Written};
use prost::Message as _;
use task_log::deadline::Kept;
use task_log::{Cursor, Queue, TaskLog, TaskLogError, Touch};

use super::{Answer, Dispatcher};
use crate::backlog::FORGET_AFTER;
use crate::backlog::line::{Line, REST, Waiting};
use crate::learning::Learned;
use crate::unreadable;

/// Heads in memory, of all queues together; more only where each queue has one.
const MAX_HEADS: usize = 8192;
/// Heads of one queue.
const HEADS_PER_QUEUE: usize = 64;
/// Heads of one queue of which none can run: behind them there may be some of another version.
const HEADS_WHEN_STUCK: usize = 1024;
/// Reads under way at once.
const READS: usize = 16;
/// Queues opened at once.
const OPENINGS: usize = 64;
/// A queue in which no more tasks than this are known to wait is read one by one, one with more with a reader.
const FEW: u64 = 4;
/// Readers at once. What has more queues than that is read page by page, which costs the broker more.
const MAX_READERS: usize = 512;
/// A reader that has found nothing new for so long is dropped; a little before the broker forgets it.
const READER_IDLE: Duration = Duration::from_secs(20);
/// A queue that is believed to be empty is looked at again after this time, if there are few.
const LOOK_AGAIN: Duration = Duration::from_secs(2);
/// Such looks at each tick at most.
const LOOKS: usize = 64;

/// A queue's cursor and its revision, `None` for a queue that never had one.
pub(super) struct Opened {
    queue: Queue,
    cursor: Result<Option<(u64, Cursor)>, BrokerError>,
}

/// What came of reading a queue on.
pub(super) struct Read {
    queue: Queue,
    /// Where reading began.
    from: u64,
    heads: Result<Heads, TaskLogError>,
    /// With when it last found something.
    reader: Option<(Reader, Instant)>,
}

struct Heads {
    taken: Vec<Waiting>,
    seen: u64,
    next: u64,
    behind: u64,
}

impl Dispatcher {
    pub(super) fn ask_for_records(&mut self) {
        if self.asking {
            return;
        }
        self.asking = true;
        let (records, since) = (self.records.clone(), self.known_to);
        let ask = async move { Answer::Records(records.written_since(since).await) };
        self.answers.push(ask.boxed());
    }

    pub(super) fn learn(&mut self, records: Result<Vec<Written<Touch>>, BrokerError>) {
        self.asking = false;
        let records = match records {
            Ok(records) => records,
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::debug!(error, "asking for the queues again");
                return;
            }
        };
        let more = records.len() >= MAX_BATCH;
        for record in records {
            self.known_to = self.known_to.max(record.revision);
            let Some(queue) = Queue::of_key(&record.key) else {
                continue;
            };
            if record.value.is_none() {
                self.known.remove(&queue);
                self.backlog.unannounce(&queue);
                self.forget(&queue);
                continue;
            }
            self.known
                .insert(queue.clone(), (record.revision, record.at));
            if self.serves(&queue) {
                self.open(queue, 0);
            }
        }
        if more {
            self.ask_for_records();
        }
    }

    /// Drops a queue whose record is gone, unless there is something in it after all.
    fn forget(&mut self, queue: &Queue) {
        let mut lines = self.backlog.lines();
        let idle = |line: &Line| !line.is_active() && !line.reading;
        if lines.get(queue).is_some_and(idle) {
            lines.remove(queue);
            drop(lines);
            self.readers.remove(queue);
            self.saving.forget(queue);
        }
    }

    /// Opens a queue in which so many submissions were heard of.
    pub(super) fn open(&mut self, queue: Queue, heard: u64) {
        if self.backlog.lines().contains_key(&queue) {
            return;
        }
        if let Some(before) = self.opening.get_mut(&queue) {
            *before = before.saturating_add(heard);
            return;
        }
        self.opening.insert(queue.clone(), heard);
        self.to_open.push_back(queue);
        self.open_on();
    }

    fn open_on(&mut self) {
        while self.opening.len() - self.to_open.len() < OPENINGS
            && let Some(queue) = self.to_open.pop_front()
        {
            let cursors = self.cursors.clone();
            let open = async move {
                let cursor = cursors.get(&queue.key()).await;
                if cursor.is_err() {
                    tokio::time::sleep(REST).await;
                }
                let cursor = cursor.map(|found| {
                    let entry = found?;
                    Some((entry.revision, entry.value))
                });
                Answer::Opened(Opened { queue, cursor })
            };
            self.answers.push(open.boxed());
        }
    }

    pub(super) fn opened(&mut self, Opened { queue, cursor }: Opened) {
        let heard = self.opening.remove(&queue).unwrap_or(0);
        if self.serves(&queue) {
            match cursor {
                Ok(cursor) => {
                    let (from, sequence) =
                        cursor.map_or((1, 1), |(_, cursor)| (cursor.open_from(), cursor.sequence));
                    self.unended.open(&queue, from..sequence);
                    self.saving.opened(&queue, cursor);
                    let now = Instant::now();
                    let mut line = Line::new(queue.clone(), sequence, now);
                    line.expect(heard, now);
                    self.backlog.lines().insert(queue.clone(), line);
                    self.consider(&queue);
                }
                Err(error) => {
                    let error = lifecycle::chain(&error);
                    tracing::debug!(error, %queue, "opening a queue again");
                    self.open(queue, heard);
                }
            }
        }
        self.open_on();
    }

    /// How many heads a queue may have.
    fn cap(&self) -> usize {
        let queues = self.active.len().max(1);
        (MAX_HEADS / queues).clamp(1, HEADS_PER_QUEUE)
    }

    /// After anything has changed about a queue.
    pub(super) fn consider(&mut self, queue: &Queue) {
        let cap = self.cap();
        let mut lines = self.backlog.lines();
        let Some(line) = lines.get_mut(queue) else {
            self.active.remove(queue);
            return;
        };
        if !line.is_active() {
            self.active.remove(queue);
            return;
        }
        if !self.active.contains(queue) {
            self.active.insert(queue.clone());
        }
        let cap = cap_of(line, cap, self.held);
        if !line.queued && line.wants(cap, Instant::now()).is_some() {
            line.queued = true;
            self.to_read.push_back(queue.clone());
        }
    }

    /// Looks at some of the queues that are believed to be empty: a word about them may have been lost.
    pub(super) fn look_in_rotation(&mut self, now: Instant) {
        let mut lines = self.backlog.lines();
        let idle = |line: &&mut Line| {
            let looked = now.saturating_duration_since(line.looked);
            !line.is_active() && !line.reading && !line.queued && looked >= LOOK_AGAIN
        };
        let mut idle: Vec<&mut Line> = lines.values_mut().filter(idle).collect();
        if idle.len() > LOOKS {
            idle.select_nth_unstable_by_key(LOOKS, |line| line.looked);
            idle.truncate(LOOKS);
        }
        for line in idle {
            line.more = true;
            line.queued = true;
            self.to_read.push_back(line.queue.clone());
        }
    }

    /// Reads on in those that want it, as far as there is room for heads.
    pub(super) fn read_on(&mut self) {
        let cap = self.cap();
        while self.reads < READS
            && let Some(queue) = self.to_read.pop_front()
        {
            let is_full = self.held + self.reads * cap >= MAX_HEADS;
            let mut lines = self.backlog.lines();
            let Some(line) = lines.get_mut(&queue) else {
                continue;
            };
            line.queued = false;
            let cap = cap_of(line, cap, self.held);
            let Some(limit) = line.wants(cap, Instant::now()) else {
                continue;
            };
            // However many others have: each has a head, or it would never have a turn.
            let limit = match is_full {
                true if line.heads.is_empty() => 1,
                true => continue,
                false => limit,
            };
            line.begin_reading();
            let (from, behind) = (line.next, line.behind);
            drop(lines);
            self.active.insert(queue.clone());
            let reader = self.readers.remove(&queue);
            let next = |(reader, _): &(Reader, Instant)| reader.next_sequence() == from;
            let how = match reader.filter(next) {
                Some(kept) => How::Reader(Some(Box::new(kept))),
                None if behind <= FEW => How::OneByOne(behind),
                None if self.readers.len() < MAX_READERS => How::Reader(None),
                None => How::Page,
            };
            self.reads += 1;
            let (log, learned, kept) = (self.log.clone(), self.learned.clone(), self.kept);
            let read = async move {
                let read = read((&log, &learned, kept), queue, from, limit, how).await;
                Answer::Read(Box::new(read))
            };
            self.answers.push(read.boxed());
        }
    }

    pub(super) fn read(&mut self, read: Read) {
        self.reads -= 1;
        let now = Instant::now();
        let mut lines = self.backlog.lines();
        let queue = read.queue;
        let Some(line) = lines.get_mut(&queue) else {
            return;
        };
        // Let go and taken again meanwhile.
        if !line.reading || line.next != read.from {
            return;
        }
        match read.heads {
            Ok(mut heads) => {
                if self.held >= MAX_HEADS {
                    // Where each of very many queues has a head, heads keep no submissions.
                    for head in &mut heads.taken {
                        head.submitted = Vec::new();
                    }
                }
                let found = !heads.taken.is_empty();
                self.held += heads.taken.len();
                self.is_due |= found;
                line.read(heads.taken, heads.seen, heads.next, heads.behind, now);
                let active = line.is_active();
                let rest = line.rests_until;
                drop(lines);
                if let Some(until) = rest {
                    self.rest(queue.clone(), until);
                }
                if let Some(reader) = read.reader {
                    self.readers.insert(queue.clone(), reader);
                }
                self.saving.changed(&queue);
                if !active {
                    self.forget_if_old(&queue, now);
                }
            }
            Err(error) => {
                line.not_read(now + REST);
                drop(lines);
                let error = lifecycle::chain(&error);
                tracing::debug!(error, %queue, "reading a queue again soon");
            }
        }
        self.consider(&queue);
    }

    /// Considers a queue again at `until`, which may lie before the next tick.
    fn rest(&mut self, queue: Queue, until: Instant) {
        let rest = async move {
            tokio::time::sleep_until(until.into()).await;
            Answer::Rested(queue)
        };
        self.answers.push(rest.boxed());
    }

    /// Drops readers of queues in which nothing happens.
    pub(super) fn drop_idle_readers(&mut self, now: Instant) {
        let idle = |read: &Instant| now.saturating_duration_since(*read) >= READER_IDLE;
        self.readers.retain(|_, (_, read)| !idle(read));
    }

    /// Removes the record of a queue that is empty and was not announced for a long time. Whoever stores a submission has announced it
    /// much later than that, and if anybody has since it was read here, the record stays.
    fn forget_if_old(&mut self, queue: &Queue, now: Instant) {
        let Some(&(revision, at)) = self.known.get(queue) else {
            return;
        };
        // Who opens it anew finds what is lost of it.
        let is_open = self.unended.first(queue).is_some() || self.saving.is_due(queue);
        if is_open || self.mandate.borrow().age(at, now) < FORGET_AFTER {
            return;
        }
        let (records, key, since) = (self.records.clone(), queue.key(), self.known_to);
        self.asking = true;
        let forget = async move {
            match records.delete_at(&key, revision).await {
                Ok(()) | Err(BrokerError::Conflict { .. }) => {}
                Err(error) => tracing::debug!(%error, key, "a queue's record stays for now"),
            }
            Answer::Records(records.written_since(since).await)
        };
        self.answers.push(forget.boxed());
    }
}

fn cap_of(line: &Line, cap: usize, held: usize) -> usize {
    match line.stuck && held < MAX_HEADS / 2 {
        true => HEADS_WHEN_STUCK,
        false => cap,
    }
}

/// How a queue is read on. A batched get counts all that the tenant has in the log behind what it returns, ended tasks too; one get alone
/// and a reader do not.
enum How {
    /// With single gets: of so many that are known of, or, with none, as far as there are a few.
    OneByOne(u64),
    /// With a reader, or a new one.
    Reader(Option<Box<(Reader, Instant)>>),
    /// With one batched get.
    Page,
}

async fn read(
    (log, learned, kept): (&TaskLog, &Learned, Kept),
    queue: Queue,
    from: u64,
    limit: usize,
    how: How,
) -> Read {
    let mut reader = None;
    let page = match how {
        How::OneByOne(known) => one_by_one(log, &queue, from, limit, known).await,
        How::Reader(kept) => read_with(log, &queue, from, limit, kept, &mut reader).await,
        How::Page => log.submissions(&queue, from, limit).await,
    };
    let heads = match page {
        Ok(page) => Ok(heads((log, learned, kept), page, from).await),
        Err(error) => Err(error),
    };
    Read {
        queue,
        from,
        heads,
        reader,
    }
}

async fn one_by_one(
    log: &TaskLog,
    queue: &Queue,
    from: u64,
    limit: usize,
    known: u64,
) -> Result<Page, TaskLogError> {
    // To look behind those that are known of costs the broker as much as counting does.
    let wanted = if known > 0 { known } else { FEW + 1 };
    let wanted = usize::try_from(wanted).map_or(limit, |wanted| wanted.min(limit));
    let (mut events, mut next): (Vec<Event>, u64) = (Vec::new(), from);
    while events.len() < wanted {
        let Some(event) = log.next_submission(queue, next).await? else {
            return Ok(Page { events, behind: 0 });
        };
        next = event.sequence + 1;
        events.push(event);
    }
    // Where nothing was known there may be many: a reader tells.
    let behind = match known {
        0 => FEW + 1,
        known => known - events.len() as u64,
    };
    Ok(Page { events, behind })
}

/// With the reader that was kept, or with a new one where the broker has forgotten that.
async fn read_with(
    log: &TaskLog,
    queue: &Queue,
    from: u64,
    limit: usize,
    kept: Option<Box<(Reader, Instant)>>,
    reader: &mut Option<(Reader, Instant)>,
) -> Result<Page, TaskLogError> {
    if let Some((mut kept, found)) = kept.map(|kept| *kept)
        && let Ok(page) = kept.read(limit).await
    {
        let found = if page.events.is_empty() {
            found
        } else {
            Instant::now()
        };
        *reader = Some((kept, found));
        return Ok(page);
    }
    let mut new = log.read_submissions(queue, from).await?;
    let page = new.read(limit).await?;
    *reader = Some((new, Instant::now()));
    Ok(page)
}

/// The tasks of a page, up to the first one that can neither be read nor be buried.
async fn heads((log, learned, kept): (&TaskLog, &Learned, Kept), page: Page, from: u64) -> Heads {
    let mut heads = Heads {
        taken: Vec::new(),
        seen: 0,
        next: from,
        behind: page.behind,
    };
    let all = page.events.len() as u64;
    for event in page.events {
        let submitted = Submitted::decode(event.payload.clone()).ok();
        let waiting = submitted.and_then(|submitted| {
            let cost = learned.cost(&submitted);
            let trace = event.traceparent();
            let mut waiting = Waiting::of(&submitted, event.sequence, cost, trace, kept).ok()?;
            waiting.keep(&event.payload);
            Some(waiting)
        });
        match waiting {
            Some(waiting) => heads.taken.push(waiting),
            None if bury_unreadable(&event, log).await => {}
            None => {
                heads.behind += all - heads.seen;
                return heads;
            }
        }
        heads.seen += 1;
        heads.next = event.sequence + 1;
    }
    heads
}

/// Gives up a submission that cannot be read and can never run. True when that is stored.
async fn bury_unreadable(event: &Event, log: &TaskLog) -> bool {
    tracing::error!(
        subject = event.subject,
        "a submission cannot be decoded; see DEAD"
    );
    let reason = "the submission cannot be decoded".to_owned();
    let letter = unreadable::letter(&event.subject, &event.payload, reason, log.now());
    unreadable::give_up(log, &letter).await
}
