//! From the backlog to the workers' queue.
//!
//! The backlog stays in TASKS. Of each queue (a tenant's tasks in a lane) of this orchestrator's [partitions](crate::partitions) a cursor and
//! a few heads are in memory (invariant I6; [`reading`]), the pure [`schedule`](crate::schedule) picks among them, and what it picks
//! goes to WORK as long as the version's window has room ([`round`]). So a tenant's million tasks are one queue, as another's
//! one task is.
//!
//! A cursor goes past a task only when its dispatch is stored, so an orchestrator that dies loses nothing ([`keep`]); whoever takes over
//! may try a task again that was handed over, which the broker refuses or the worker sees. A dispatch that was lost from WORK is missed there,
//! and made again ([`lost`]).

mod keep;
mod lost;
mod oldest;
mod out;
mod reading;
mod round;
mod unended;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use contract::TaskId;
use contract::task::{Phase, State};
use futures::future::BoxFuture;
use futures::stream::{BoxStream, FuturesUnordered};
use futures::{FutureExt as _, StreamExt as _};
use lifecycle::Service;
use messaging::{Broker, Bucket, Reader};
use prost::Message as _;
use task_log::deadline::Kept;
use task_log::{Cursor, Queue, TaskLog, TaskLogError, Touch};
use tokio::sync::{mpsc, watch};

use crate::backlog::{self, Backlog, Word};
use crate::learning::Learned;
use crate::partitions::{Ends, Mandate, Partition, Partitions, Served};
use crate::schedule::{LanePolicy, Turns, Version};
use crate::settings::{SchedulingSettings, Settings};
use crate::waiting::Waiting as Numbers;
use keep::{Saved, Saving};
use lost::{Asked, Reread};
use out::Out;
use reading::{Opened, Read};
use round::HandedOver;
use unended::Unended;

/// Between two looks at what nobody may have told of.
const TICK: Duration = Duration::from_millis(250);
/// Between two looks at WORK, and two times that cursors are saved.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a stopping orchestrator waits for dispatches on their way.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// What comes back from the broker.
enum Answer {
    Opened(Opened),
    Read(Box<Read>),
    /// A queue has rested for as long as it should.
    Rested(Queue),
    HandedOver(Box<HandedOver>),
    Saved(Saved),
    Asked(Box<Asked>),
    Reread(Box<Reread>),
    /// BACKLOG's records that are new.
    Records(Result<Vec<messaging::Written<Touch>>, messaging::BrokerError>),
    /// WORK, and the last sequence of TASKS, as they were at some time after the moment.
    Work(Instant, Result<(Vec<task_log::Out>, u64), TaskLogError>),
}

struct Dispatcher {
    log: TaskLog,
    backlog: Backlog,
    records: Bucket<Touch>,
    cursors: Bucket<Cursor>,
    numbers: Arc<Numbers>,
    learned: Learned,
    settings: SchedulingSettings,
    /// For how long the log keeps what waits.
    kept: Kept,
    policy: LanePolicy,
    partitions: Partitions,
    mandate: watch::Receiver<Mandate>,
    served: watch::Sender<Served>,
    /// Partitions whose queues are here.
    own: BTreeSet<Partition>,
    /// Those of them that are being let go.
    closing: BTreeSet<Partition>,
    /// All queues that exist, whosever: the last write of each one's record.
    known: HashMap<Queue, (u64, SystemTime)>,
    /// The last write of any.
    known_to: u64,
    /// Queues that are to be opened, and those that are, with how many submissions were heard of since.
    to_open: VecDeque<Queue>,
    opening: HashMap<Queue, u64>,
    /// Queues in which something waits.
    active: BTreeSet<Queue>,
    /// Queues that are to be read on.
    to_read: VecDeque<Queue>,
    reads: usize,
    /// Heads in memory, of all queues.
    held: usize,
    /// With when each last found something.
    readers: HashMap<Queue, (Reader, Instant)>,
    saving: Saving,
    out: Out,
    unended: Unended,
    /// Tasks of which it is being asked whether they have ended.
    asked: usize,
    /// What was handed over before is being read on.
    rereading: bool,
    turns: Turns,
    hands: usize,
    /// Queues with heads of each version, weighted by their lanes.
    demand: BTreeMap<Version, u64>,
    looking: bool,
    asking: bool,
    looked: Option<Instant>,
    /// When it was last said that a task waits for long.
    said_oldest: Option<Instant>,
    /// Something has changed that a round may act on.
    is_due: bool,
    /// Something has changed that estimates go by.
    has_moved: bool,
    /// Not before then are estimates told of it.
    stand_after: Option<Instant>,
    /// How often the measure of costs had changed when what is in memory was costed.
    costed: u64,
    answers: FuturesUnordered<BoxFuture<'static, Answer>>,
}

/// Starts the dispatcher.
///
/// # Errors
/// When the broker refuses.
pub(crate) async fn start(
    service: &Service,
    broker: &Broker,
    log: &TaskLog,
    (backlog, own_words): (Backlog, mpsc::Receiver<Word>),
    (numbers, learned): (Arc<Numbers>, Learned),
    settings: &Settings,
    ends: Ends,
) -> Result<(), TaskLogError> {
    log.adopt_older_backlog().await?;
    let known = (numbers, learned.clone());
    let mut dispatcher = Dispatcher::new(log, backlog, known, settings, ends).await?;
    let heard = Heard::listen(broker, own_words, learned).await?;
    let stopping = service.tasks.stopping();
    service.tasks.critical("dispatcher", async move {
        tokio::select! {
            () = stopping => {}
            () = dispatcher.run(heard) => {}
        }
        dispatcher.finish().await;
        Ok::<(), TaskLogError>(())
    });
    Ok(())
}

/// The task whose event is told at `inkstone.event.<tenant>.<lane>.<task>.<event>`.
fn task_of(subject: &str) -> Option<TaskId> {
    subject.split('.').nth(4)?.parse().ok()
}

/// `inkstone.event.<tenant>.<lane>.<task>.state`: which task, and whether a worker has it.
fn state(subject: &str, payload: &[u8]) -> Option<(TaskId, bool)> {
    let state = State::decode(payload).ok()?;
    Some((task_of(subject)?, state.phase() == Phase::Running))
}

struct Heard {
    own: mpsc::Receiver<Word>,
    words: BoxStream<'static, Word>,
    ends: BoxStream<'static, TaskId>,
    states: BoxStream<'static, (TaskId, bool)>,
}

impl Heard {
    /// All that is told from now on.
    async fn listen(
        broker: &Broker,
        own_words: mpsc::Receiver<Word>,
        learned: Learned,
    ) -> Result<Self, TaskLogError> {
        let done = broker.listen("inkstone.event.*.*.*.done".to_owned());
        let done = done.await?.filter_map(move |(subject, _)| {
            learned.hear(&subject);
            std::future::ready(task_of(&subject))
        });
        let states = broker.listen("inkstone.event.*.*.*.state".to_owned());
        let states = states
            .await?
            .filter_map(async |(subject, payload)| state(&subject, &payload));
        let words = broker.listen("inkstone.poke.*".to_owned()).await?;
        let words = words.filter_map(async |(_, payload)| backlog::read_word(&payload));
        Ok(Self {
            own: own_words,
            words: words.boxed(),
            ends: done.boxed(),
            states: states.boxed(),
        })
    }
}

impl Dispatcher {
    /// One that serves nothing so far.
    async fn new(
        log: &TaskLog,
        backlog: Backlog,
        (numbers, learned): (Arc<Numbers>, Learned),
        settings: &Settings,
        ends: Ends,
    ) -> Result<Self, TaskLogError> {
        let kept = settings.streams.kept();
        let settings = &settings.scheduling;
        let partitions = Partitions(settings.partitions);
        Ok(Self {
            log: log.clone(),
            backlog,
            records: log.backlog().await?,
            cursors: log.cursors().await?,
            numbers,
            learned,
            settings: settings.clone(),
            kept,
            policy: settings.policy(),
            partitions,
            mandate: ends.mandate,
            served: ends.served,
            own: BTreeSet::new(),
            closing: BTreeSet::new(),
            known: HashMap::new(),
            known_to: 0,
            to_open: VecDeque::new(),
            opening: HashMap::new(),
            active: BTreeSet::new(),
            to_read: VecDeque::new(),
            reads: 0,
            held: 0,
            demand: BTreeMap::new(),
            readers: HashMap::new(),
            saving: Saving::default(),
            out: Out::new(partitions),
            unended: Unended::default(),
            asked: 0,
            rereading: false,
            turns: Turns::default(),
            hands: 0,
            looking: false,
            asking: false,
            looked: None,
            said_oldest: None,
            is_due: false,
            has_moved: true,
            stand_after: None,
            costed: 0,
            answers: FuturesUnordered::new(),
        })
    }

    async fn run(&mut self, mut heard: Heard) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                Some(word) = heard.own.recv() => self.hear(word),
                Some(word) = heard.words.next() => self.hear(word),
                Some(task) = heard.ends.next() => {
                    self.drain_states(&mut heard);
                    self.end(task);
                }
                Some(state) = heard.states.next() => self.begin(state),
                Some(answer) = self.answers.next(), if !self.answers.is_empty() => {
                    self.take(answer);
                }
                Ok(()) = self.mandate.changed() => self.change_partitions(),
                _ = tick.tick() => self.tick(),
            }
            self.drain(&mut heard);
            self.read_on();
            self.close().await;
            if self.is_due {
                self.is_due = false;
                self.round();
            }
            self.stand();
        }
    }

    /// What else is there by now: a round is for all of it.
    fn drain(&mut self, heard: &mut Heard) {
        while let Ok(word) = heard.own.try_recv() {
            self.hear(word);
        }
        while let Some(Some(word)) = heard.words.next().now_or_never() {
            self.hear(word);
        }
        self.drain_states(heard);
        while let Some(Some(task)) = heard.ends.next().now_or_never() {
            self.end(task);
        }
        while let Some(Some(answer)) = self.answers.next().now_or_never() {
            self.take(answer);
        }
    }

    /// Before ends, so that of what was short it is known that it had begun.
    fn drain_states(&mut self, heard: &mut Heard) {
        while let Some(Some(state)) = heard.states.next().now_or_never() {
            self.begin(state);
        }
    }

    fn take(&mut self, answer: Answer) {
        match answer {
            Answer::Opened(opened) => self.opened(opened),
            Answer::Read(read) => self.read(*read),
            Answer::Rested(queue) => self.consider(&queue),
            Answer::HandedOver(handed) => self.handed_over(*handed),
            Answer::Saved(saved) => self.saved(saved),
            Answer::Asked(asked) => self.asked(*asked),
            Answer::Reread(read) => self.reread(*read),
            Answer::Records(records) => self.learn(records),
            Answer::Work(began, work) => self.look(began, work),
        }
    }

    fn hear(&mut self, (queue, count): Word) {
        if !self.serves(&queue) {
            return;
        }
        let mut lines = self.backlog.lines();
        match lines.get_mut(&queue) {
            Some(line) => line.hear(count, Instant::now()),
            None => {
                drop(lines);
                return self.open(queue, count);
            }
        }
        drop(lines);
        self.consider(&queue);
    }

    fn serves(&self, queue: &Queue) -> bool {
        let partition = self.partitions.of(&queue.tenant);
        self.own.contains(&partition) && !self.closing.contains(&partition)
    }

    fn end(&mut self, task: TaskId) {
        self.unended.end(task);
        if self.out.end(task, Instant::now()) {
            self.is_due = true;
            self.has_moved = true;
        }
    }

    fn begin(&mut self, (task, is_running): (TaskId, bool)) {
        self.out.begin(task, is_running, Instant::now());
        self.has_moved = true;
    }

    fn tick(&mut self) {
        let now = Instant::now();
        self.ask_for_records();
        if self
            .looked
            .is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY)
        {
            self.looked = Some(now);
            self.look_at_work();
            self.save_cursors();
            self.drop_idle_readers(now);
            self.tell_demand();
            self.tell_oldest(now);
        }
        self.cost_anew();
        self.has_moved = true;
        self.look_in_rotation(now);
        self.reread_on();
        // Those that rested, and those whose share of the heads has grown.
        let active: Vec<Queue> = self.active.iter().cloned().collect();
        for queue in active {
            self.consider(&queue);
        }
        self.is_due = true;
    }

    fn look_at_work(&mut self) {
        if self.looking {
            return;
        }
        self.looking = true;
        let log = self.log.clone();
        let began = Instant::now();
        let look = async move {
            let look = async { Ok((log.out().await?, log.last_sequence().await?)) };
            Answer::Work(began, look.await)
        };
        self.answers.push(look.boxed());
    }

    fn look(&mut self, began: Instant, work: Result<(Vec<task_log::Out>, u64), TaskLogError>) {
        self.looking = false;
        match work {
            Ok((listed, last)) => {
                let there: HashSet<TaskId> = listed.iter().filter_map(|one| one.task).collect();
                let unended = &self.unended;
                let keeps = |task| unended.keeps_its_place(task);
                self.out.look(listed, began, Instant::now(), keeps);
                self.look_for_lost(&there, began);
                let mut lines = self.backlog.lines();
                for queue in &self.active {
                    if let Some(line) = lines.get_mut(queue) {
                        line.note_end(last + 1);
                    }
                }
                let lost = lines
                    .values_mut()
                    .filter_map(|line| line.rewind(last, began).then(|| line.queue.clone()));
                let lost: HashSet<Queue> = lost.collect();
                drop(lines);
                if !lost.is_empty() {
                    tracing::warn!(
                        queues = lost.len(),
                        "the log has lost its end, or was made anew: queues are read from its beginning"
                    );
                    // What was handed over has other places in it.
                    self.unended.retain(|queue| !lost.contains(queue));
                }
                for queue in lost {
                    self.readers.remove(&queue);
                    self.consider(&queue);
                }
                self.is_due = true;
            }
            Err(error) => {
                let error = lifecycle::chain(&error);
                tracing::debug!(error, "looking at WORK again");
            }
        }
    }
}
