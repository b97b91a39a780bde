//! The thread that owns every picture and takes them step by step.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use diffusion::Latents;
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, watch};

use super::decoder::{Wanted, Work};
use super::entry::{Entry, flows};
use super::estimate::Estimates;
use super::loaded::{Adopted, Loaded};
use super::memory::{Account, Budget, Rank};
use super::model::Job;
use super::pass::{self, Step};
use super::plan::{Bucket, Cost, Limits, plan};
use super::room::PendingWeights;
use super::shares::{Flow, Shares};
use super::watchdog::Pulse;
use super::{Begin, Broken, Command, EngineError};
use crate::error::StartError;
use crate::metrics;
use lifecycle::chain;

const THREAD: &str = "engine";
/// What the thread is at when it takes no step and begins no picture.
pub(super) const BETWEEN: &str = "its work between two steps";
/// When the code fails at everything of this many tasks in a row, and as many times, the engine is taken for broken, and the worker
/// ends rather than spoil one task after the other. Of tasks: one at which it always fails takes no worker with it. And times: neither
/// do two that share a step.
const BROKEN_AT: usize = 2;

pub(super) struct Stepper {
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) engine: mpsc::WeakSender<Command>,
    decoder: SyncSender<Work>,
    /// Bytes that each work of the decoder takes, until it has told that it is done with it.
    pub(super) decoding: BTreeMap<u64, u64>,
    works: u64,
    step: Step,
    max_batch: usize,
    max_step: Option<Duration>,
    pub(super) budget: Budget,
    pub(super) weights: Arc<AtomicU64>,
    pub(super) pending: VecDeque<PendingWeights>,
    /// Models that are loaded.
    pub(super) adopted: Vec<Adopted>,
    pub(super) entries: BTreeMap<u64, Entry>,
    shares: Shares,
    estimates: Estimates,
    pub(super) account: watch::Sender<Account>,
    began: Instant,
    /// Steps taken so far, whoever took part.
    steps: u64,
    /// Tasks at which the code failed since it last did not.
    broken_at: BTreeSet<Flow>,
    /// Steps and decodings at which it did.
    broken_times: usize,
    /// Tells `broken_at` at the end.
    broken: Broken,
    pub(super) pulse: Pulse,
}

/// What the thread is started with.
pub(super) struct Setup {
    pub(super) pulse: Pulse,
    pub(super) commands: mpsc::Receiver<Command>,
    pub(super) engine: mpsc::WeakSender<Command>,
    pub(super) decoder: SyncSender<Work>,
    pub(super) step: Step,
    pub(super) max_batch: usize,
    pub(super) max_step: Option<Duration>,
    pub(super) memory_limit: u64,
    pub(super) weights: Arc<AtomicU64>,
    pub(super) account: watch::Sender<Account>,
    pub(super) broken: Broken,
}

/// Starts the thread; it ends when all senders of commands are gone, or when the engine is broken.
pub(super) fn start(setup: Setup) -> Result<(), StartError> {
    let mut stepper = Stepper {
        commands: setup.commands,
        engine: setup.engine,
        decoder: setup.decoder,
        decoding: BTreeMap::new(),
        works: 0,
        step: setup.step,
        max_batch: setup.max_batch,
        max_step: setup.max_step,
        budget: Budget::new(setup.memory_limit),
        weights: setup.weights,
        pending: VecDeque::new(),
        adopted: Vec::new(),
        entries: BTreeMap::new(),
        shares: Shares::default(),
        estimates: Estimates::default(),
        account: setup.account,
        began: Instant::now(),
        steps: 0,
        broken_at: BTreeSet::new(),
        broken_times: 0,
        broken: setup.broken,
        pulse: setup.pulse,
    };
    let thread = std::thread::Builder::new().name(THREAD.to_owned());
    let started = thread.spawn(move || stepper.run());
    started.map(drop).map_err(|source| StartError::Thread {
        thread: THREAD,
        source,
    })
}

impl Stepper {
    fn run(&mut self) {
        metrics::memory_limit(self.budget.limit());
        let mut stepped = false;
        while !self.is_broken() && self.obey_commands(!stepped) {
            self.forget_dropped();
            self.make_room_for_weights();
            self.let_in();
            stepped = self.take_step();
            self.send_to_decoder();
            self.tell_account(0);
        }
        // Before anybody finds out that the thread has ended: nobody else sets it.
        let _ = self.broken.set(std::mem::take(&mut self.broken_at));
        self.pulse.idle();
    }

    fn is_broken(&self) -> bool {
        self.broken_times >= BROKEN_AT && self.broken_at.len() >= BROKEN_AT
    }

    /// The code failed at everything of a step, or at a decoding.
    fn broke(&mut self, flows: impl IntoIterator<Item = Flow>) {
        self.broken_times += 1;
        self.broken_at.extend(flows);
    }

    /// Obeys what has come; waits for something to come if there was nothing to step. False when nothing can come.
    fn obey_commands(&mut self, wait: bool) -> bool {
        let mut command = None;
        if wait {
            self.pulse.idle();
            command = self.commands.blocking_recv();
            if command.is_none() {
                return false;
            }
        }
        self.pulse.at(BETWEEN, Vec::new(), None);
        if let Some(command) = command {
            self.obey(command);
        }
        loop {
            match self.commands.try_recv() {
                Ok(command) => self.obey(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Begin(begin) => self.take_in(*begin),
            Command::Snapshot { ids, reply } => {
                let snapshots = ids
                    .iter()
                    .map(|id| self.entries.get(id).and_then(Entry::snapshot));
                // Nobody may be waiting any more.
                let _ = reply.send(snapshots.collect());
            }
            Command::Decoded { number, broken } => {
                if let Some(flow) = broken {
                    self.broke([flow]);
                }
                self.decoding.remove(&number);
            }
            Command::Weights(pending) => self.pending.push_back(pending),
            Command::Wake => {}
        }
    }

    fn take_in(&mut self, begin: Begin) {
        let id = begin.id;
        let rank = Rank::new(begin.start.flow.weight(), self.began.elapsed());
        // As if just stepped: a newcomer does not push in before others of its task.
        let entry = Entry::new(begin, rank, self.steps);
        self.entries.insert(id, entry);
    }

    fn forget_dropped(&mut self) {
        self.entries.retain(|_, entry| !entry.progress.is_closed());
        self.shares.retain(&flows(self.entries.values()));
    }

    /// Takes those whom the planner names one step further. False when there are none.
    fn take_step(&mut self) -> bool {
        let planned = self.planned();
        let leader = planned.first().and_then(|id| self.entries.get(id));
        let Some((leader, bucket)) = leader.map(|entry| (entry.flow, entry.bucket())) else {
            return false;
        };
        let members: Vec<&Entry> = planned
            .iter()
            .filter_map(|id| self.entries.get(id))
            .collect();
        let Some(model) = members.first().map(|entry| Arc::clone(&entry.model)) else {
            return false;
        };
        let rows = members.iter().map(|entry| entry.rows()).sum();
        let led = members.iter().filter(|entry| entry.flow == leader);
        let led = led.map(|entry| entry.work()).sum();
        self.shares.lead(leader, led);
        let taken = model.step_memory(bucket.width, bucket.height, rows);
        self.tell_account(taken.bytes());
        let mut batch: Vec<(u64, Box<Job>)> = Vec::with_capacity(planned.len());
        for id in planned {
            if let Some(entry) = self.entries.get_mut(&id)
                && let Some(job) = entry.take_job()
            {
                batch.push((id, job));
            }
        }
        let pictures = batch.len();
        let expected = self.estimates.expected(bucket, rows);
        let ids = batch.iter().map(|&(id, _)| id).collect();
        self.pulse.at("a step", ids, expected);
        let started = Instant::now();
        let taken = pass::take(&mut self.step, &model, batch);
        let took = started.elapsed();
        self.pulse.at(BETWEEN, Vec::new(), None);
        self.steps += 1;
        metrics::step(pictures, rows, took);
        metrics::taken_again(taken.again);
        if taken.again == 0 {
            self.estimates.observe(bucket, rows, took);
        }
        if taken.is_broken() {
            let failed = taken.results.iter();
            let failed = failed.filter_map(|(id, _)| Some(self.entries.get(id)?.flow));
            let failed: Vec<Flow> = failed.collect();
            self.broke(failed);
        } else {
            self.broken_at.clear();
            self.broken_times = 0;
        }
        let share = took / pictures.max(1) as u32;
        let mut due = Vec::new();
        for (id, result) in taken.results {
            match result {
                Ok(job) => due.extend(self.stepped(id, job, share)),
                Err(error) => self.fail(id, error),
            }
        }
        // Once all are back: what a preview may take depends on every one of them.
        for (id, preview, latents) in due {
            self.show(id, preview, latents);
        }
        true
    }

    fn planned(&mut self) -> Vec<u64> {
        let drawing = || self.entries.iter().filter(|(_, entry)| entry.is_drawing());
        self.shares.look(flows(drawing().map(|(_, entry)| entry)));
        let candidates: Vec<_> = drawing()
            .filter_map(|(&id, entry)| entry.candidate(id, &self.shares))
            .collect();
        let models: BTreeMap<u64, &Loaded> = drawing()
            .map(|(_, entry)| (entry.model.number(), &*entry.model))
            .collect();
        let limits = Limits {
            max_batch: self.max_batch,
            max_step: self.max_step,
            room: self.room_for_step(),
        };
        plan(&candidates, limits, |bucket: Bucket, rows| Cost {
            bytes: models.get(&bucket.model).map_or(u64::MAX, |model| {
                model.step_memory(bucket.width, bucket.height, rows).bytes()
            }),
            time: self.estimates.expected(bucket, rows),
        })
    }

    /// Puts a job back that was taken a step further. What there is to be shown of it: the number of the preview, and the
    /// picture as it is.
    fn stepped(&mut self, id: u64, job: Box<Job>, share: Duration) -> Option<(u64, u32, Latents)> {
        let (steps, room) = (self.steps, self.room_aside());
        let entry = self.entries.get_mut(&id)?;
        let due = entry.stepped(job, share, steps);
        entry.finish(room);
        due.map(|(preview, latents)| (id, preview, latents))
    }

    /// Has a picture shown as it is; it goes on meanwhile. Left out when the decoder is busy, or when there is no
    /// room for decoding beside any picture's step.
    fn show(&mut self, id: u64, preview: u32, latents: Latents) {
        let Some(entry) = self.entries.get(&id) else {
            return;
        };
        let (decode, flow) = (entry.needs.decode, entry.flow);
        let wanted = Wanted::Preview {
            index: entry.index,
            preview,
            seen: entry.seen.clone(),
        };
        let model = Arc::clone(&entry.model);
        let shown = self.room_for_preview(decode)
            && self
                .send((id, flow), model, latents, decode, wanted)
                .is_ok();
        if !shown {
            metrics::preview_left_out();
        }
    }

    /// Hands finished pictures to the decoder, as far as it has room; when it has done one there is room again.
    fn send_to_decoder(&mut self) {
        let waiting: BTreeSet<u64> = self
            .entries
            .iter()
            .filter(|(_, entry)| entry.is_undecoded())
            .map(|(&id, _)| id)
            .collect();
        for id in waiting {
            let Some(entry) = self.entries.get_mut(&id) else {
                continue;
            };
            let (Some(latents), Some(outcome)) = (entry.take_latents(), entry.outcome.take())
            else {
                continue;
            };
            let (model, decode) = (Arc::clone(&entry.model), entry.needs.decode);
            let (busy, flow) = (entry.busy, entry.flow);
            let wanted = Wanted::Picture { outcome, busy };
            let work = match self.send((id, flow), model, latents, decode, wanted) {
                Ok(()) => continue,
                Err(TrySendError::Full(work)) => work,
                Err(TrySendError::Disconnected(work)) => {
                    if let Wanted::Picture { outcome, .. } = work.wanted {
                        // Nobody may be waiting any more.
                        let _ = outcome.send(Err(EngineError::Gone));
                    }
                    continue;
                }
            };
            if let Some(entry) = self.entries.get_mut(&id)
                && let Wanted::Picture { outcome, .. } = work.wanted
            {
                entry.outcome = Some(outcome);
                entry.give_latents_back(work.latents);
            }
            return;
        }
    }

    fn send(
        &mut self,
        (picture, flow): (u64, Flow),
        model: Arc<Loaded>,
        latents: Latents,
        bytes: u64,
        wanted: Wanted,
    ) -> Result<(), TrySendError<Work>> {
        self.works += 1;
        let number = self.works;
        self.decoder.try_send(Work {
            number,
            picture,
            flow,
            model,
            latents,
            wanted,
        })?;
        self.decoding.insert(number, bytes);
        Ok(())
    }

    /// Ends a picture; the others go on.
    pub(super) fn fail(&mut self, id: u64, error: EngineError) {
        metrics::engine_error(error.kind());
        if error.is_callers() {
            tracing::info!(error = chain(&error), "a picture was refused");
        } else {
            tracing::error!(error = chain(&error), "a picture failed");
        }
        let entry = self.entries.remove(&id);
        if let Some(outcome) = entry.and_then(|entry| entry.outcome) {
            // Nobody may be waiting any more.
            let _ = outcome.send(Err(error));
        }
    }
}
