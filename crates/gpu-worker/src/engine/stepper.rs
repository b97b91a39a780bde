//! The thread that owns every picture and takes them step by step.

use std::collections::{BTreeMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, TrySendError};
use std::time::{Duration, Instant};

use diffusion::{Job, Model, Progress, StepError};
use tokio::sync::mpsc::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};

use super::decoder::{Wanted, Work};
use super::plan::{Candidate, Limits, plan};
use super::{Begin, Command, Drawn, EngineError, Seen, Start};
use crate::error::StartError;
use crate::metrics;
use lifecycle::{chain, panic_text};

const THREAD: &str = "engine";
/// After this many panics without a good step between them the engine is taken for broken, and the worker ends rather
/// than spoil one task after the other.
const PANICS_IN_A_ROW: u32 = 3;

/// A picture on its way. It stays until its claim is dropped, so that it can be put away even when it is done.
struct Entry {
    model: Arc<Model>,
    /// `None` while the decoder has it.
    job: Option<Job>,
    /// `None` once the decoder is to answer, or has.
    outcome: Option<oneshot::Sender<Result<Drawn, EngineError>>>,
    progress: watch::Sender<Progress>,
    index: u32,
    /// Number and step of the previews to come.
    previews: VecDeque<(u32, u32)>,
    seen: mpsc::Sender<Seen>,
    /// Who waits for the job to come back, to have it as bytes.
    snapshots: Vec<oneshot::Sender<Vec<u8>>>,
    last_step: u64,
    busy: Duration,
}

impl Entry {
    fn can_step(&self) -> bool {
        self.outcome.is_some() && self.job.as_ref().is_some_and(|job| !job.is_finished())
    }

    fn can_be_decoded(&self) -> bool {
        self.outcome.is_some() && self.job.as_ref().is_some_and(Job::is_finished)
    }
}

struct Stepper {
    commands: mpsc::Receiver<Command>,
    decoder: SyncSender<Work>,
    limits: Limits,
    entries: BTreeMap<u64, Entry>,
    /// Steps taken so far, whoever took part.
    steps: u64,
    panics: u32,
}

/// Starts the thread; it ends when all senders of commands are gone, or when the engine is broken.
pub(super) fn start(
    commands: mpsc::Receiver<Command>,
    decoder: SyncSender<Work>,
    limits: Limits,
) -> Result<(), StartError> {
    let mut stepper = Stepper {
        commands,
        decoder,
        limits,
        entries: BTreeMap::new(),
        steps: 0,
        panics: 0,
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
        while self.panics < PANICS_IN_A_ROW && self.obey_commands() {
            self.entries.retain(|_, entry| !entry.progress.is_closed());
            metrics::jobs_running(self.entries.len());
            self.step();
            self.send_to_decoder();
        }
    }

    /// Obeys what has come; waits for something to come when there is nothing to step. False when nothing can come.
    fn obey_commands(&mut self) -> bool {
        if !self.entries.values().any(Entry::can_step) {
            match self.commands.blocking_recv() {
                Some(command) => self.obey(command),
                None => return false,
            }
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
            Command::Begin(begin) => self.begin(*begin),
            Command::Snapshot { id, reply } => {
                // Without an entry the reply is dropped, which is an answer.
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.snapshots.push(reply);
                    put_away(entry);
                }
            }
            Command::Returned { id, job, panicked } => {
                self.panics += u32::from(panicked);
                if let Some(entry) = self.entries.get_mut(&id) {
                    entry.job = Some(*job);
                    put_away(entry);
                }
            }
            Command::Wake => {}
        }
    }

    fn begin(&mut self, begin: Begin) {
        let Begin {
            id,
            start,
            begun,
            outcome,
        } = begin;
        let job = match self.guarded("beginning a picture", || first_job(&start)) {
            Ok(job) => job,
            Err(error) => {
                // The caller may have gone; it alone is concerned.
                let _ = begun.send(Err(error));
                return;
            }
        };
        let Start {
            model,
            index,
            previews,
            seen,
            ..
        } = start;
        let done = job.progress().step;
        let numbered = (0..).zip(previews);
        let (progress, watched) = watch::channel(job.progress());
        let entry = Entry {
            model,
            job: Some(job),
            outcome: Some(outcome),
            progress,
            index,
            previews: numbered.filter(|&(_, step)| step > done).collect(),
            seen,
            snapshots: Vec::new(),
            // As if just stepped: a newcomer does not push in before those who wait.
            last_step: self.steps,
            busy: Duration::ZERO,
        };
        if begun.send(Ok(watched)).is_ok() {
            self.entries.insert(id, entry);
        }
    }

    /// Takes those whom the planner names one step further.
    fn step(&mut self) {
        let steppable = self.entries.iter().filter(|(_, entry)| entry.can_step());
        let candidates: Vec<Candidate> = steppable
            .map(|(&id, entry)| Candidate {
                id,
                model: Arc::as_ptr(&entry.model).addr(),
                last_step: entry.last_step,
            })
            .collect();
        let planned = plan(&candidates, self.limits);
        let mut batch: Vec<(u64, Job)> = Vec::with_capacity(planned.len());
        for id in planned {
            if let Some(job) = self.entries.get_mut(&id).and_then(|entry| entry.job.take()) {
                batch.push((id, job));
            }
        }
        let Some(model) = batch.first().and_then(|(id, _)| self.entries.get(id)) else {
            return;
        };
        let model = Arc::clone(&model.model);
        let started = Instant::now();
        let stepped = catch_unwind(AssertUnwindSafe(|| {
            let mut jobs: Vec<&mut Job> = batch.iter_mut().map(|(_, job)| job).collect();
            model.step(&mut jobs)
        }));
        let took = started.elapsed();
        self.steps += 1;
        match stepped {
            Ok(results) => {
                metrics::step(batch.len(), took);
                self.panics = 0;
                let share = took / batch.len() as u32;
                for ((id, job), result) in batch.into_iter().zip(results) {
                    self.stepped(id, job, result, share);
                }
            }
            Err(panic) => {
                self.panics += 1;
                let message = panic_text(&*panic);
                for (id, _) in batch {
                    let message = message.to_owned();
                    self.fail(
                        id,
                        EngineError::Panicked {
                            doing: "stepping",
                            message,
                        },
                    );
                }
            }
        }
    }

    fn stepped(&mut self, id: u64, job: Job, result: Result<Progress, StepError>, share: Duration) {
        let progress = match result {
            Ok(progress) => progress,
            Err(error) => return self.fail(id, EngineError::Step(error)),
        };
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        entry.busy += share;
        entry.last_step = self.steps;
        entry.progress.send_replace(progress);
        let finished = job.is_finished();
        entry.job = Some(job);
        let mut due = None;
        while let Some(&(preview, step)) = entry.previews.front()
            && step <= progress.step
        {
            entry.previews.pop_front();
            due = Some(preview);
        }
        if let Some(preview) = due.filter(|_| !finished) {
            self.show(id, preview);
        }
    }

    /// Lends a picture to the decoder for a preview; it misses the steps until it is back. Left out when the decoder is busy.
    fn show(&mut self, id: u64, preview: u32) {
        let Some(entry) = self.entries.get_mut(&id) else {
            return;
        };
        let Some(job) = entry.job.take() else { return };
        let (model, seen, index) = (Arc::clone(&entry.model), entry.seen.clone(), entry.index);
        let wanted = Wanted::Preview {
            index,
            preview,
            seen,
        };
        match self.decoder.try_send(Work {
            id,
            model,
            job,
            wanted,
        }) {
            Ok(()) => {}
            Err(TrySendError::Full(work) | TrySendError::Disconnected(work)) => {
                entry.job = Some(work.job);
            }
        }
    }

    /// Hands finished pictures to the decoder, as far as it has room; when one comes back there is room again.
    fn send_to_decoder(&mut self) {
        let mut lost = Vec::new();
        for (&id, entry) in &mut self.entries {
            if !entry.can_be_decoded() {
                continue;
            }
            let (Some(job), Some(outcome)) = (entry.job.take(), entry.outcome.take()) else {
                continue;
            };
            let (model, busy) = (Arc::clone(&entry.model), entry.busy);
            let wanted = Wanted::Picture { outcome, busy };
            let work = match self.decoder.try_send(Work {
                id,
                model,
                job,
                wanted,
            }) {
                Ok(()) => continue,
                Err(TrySendError::Disconnected(_)) => {
                    lost.push(id);
                    continue;
                }
                Err(TrySendError::Full(work)) => work,
            };
            entry.job = Some(work.job);
            if let Wanted::Picture { outcome, .. } = work.wanted {
                entry.outcome = Some(outcome);
            }
            break;
        }
        for id in lost {
            self.fail(id, EngineError::Gone);
        }
    }

    /// Ends a picture; the others go on.
    fn fail(&mut self, id: u64, error: EngineError) {
        metrics::engine_error(error.kind());
        tracing::error!(error = chain(&error), "a picture failed");
        let entry = self.entries.remove(&id);
        if let Some(outcome) = entry.and_then(|entry| entry.outcome) {
            // Nobody may be waiting any more.
            let _ = outcome.send(Err(error));
        }
    }

    fn guarded<T>(
        &mut self,
        doing: &'static str,
        work: impl FnOnce() -> Result<T, EngineError>,
    ) -> Result<T, EngineError> {
        let result = catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
            let message = panic_text(&*panic).to_owned();
            Err(EngineError::Panicked { doing, message })
        });
        if let Err(error) = &result {
            metrics::engine_error(error.kind());
        }
        result
    }
}

fn first_job(start: &Start) -> Result<Job, EngineError> {
    match &start.resume {
        Some(bytes) => start.model.resume(bytes).map_err(EngineError::Resume),
        None => start
            .model
            .begin(&start.request)
            .map_err(EngineError::Begin),
    }
}

/// Answers those who wait for the job as bytes, if it is here.
fn put_away(entry: &mut Entry) {
    let Some(job) = &entry.job else { return };
    for reply in entry.snapshots.drain(..) {
        let snapshot = catch_unwind(AssertUnwindSafe(|| entry.model.snapshot(job)));
        // A panic drops the reply: no snapshot can be had. A reply nobody waits for is no loss.
        if let Ok(bytes) = snapshot {
            let _ = reply.send(bytes);
        }
    }
}
