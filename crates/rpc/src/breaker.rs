//! When a dependency is called, and when it is left alone: a circuit breaker.
//!
//! [`Machine`] is pure: it is told the time and the outcomes, and answers whether a call may go out. [`Breaker`] is the
//! machine with a clock, a lock and metrics, one for each peer of a process.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use settings::Millis;
use tokio::sync::watch;

/// The window is kept in this many slices: as coarse as that may what is too old be forgotten late.
const SLICES: u32 = 12;
/// What a caller is told to wait while the probes are under way: they take no longer than a call.
const PROBING_WAIT: Duration = Duration::from_secs(1);

/// When a breaker opens and closes, under `[<peer>.breaker]`.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BreakerSettings {
    /// More failures than this in the window …
    pub failures: u32,
    /// … and more than this percentage of the window's calls open it.
    pub percent: u32,
    /// How far back calls count.
    pub window: Millis,
    /// How long it lets nothing through before it probes.
    pub open_for: Millis,
    /// How many calls must succeed, one failing none, to close it again.
    pub probes: u32,
}

impl Default for BreakerSettings {
    fn default() -> Self {
        Self {
            failures: 10,
            percent: 60,
            window: Duration::from_secs(60).into(),
            open_for: Duration::from_secs(5).into(),
            probes: 3,
        }
    }
}

/// What a call says about the peer's health.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// The peer answered, be it with a refusal.
    Well,
    /// The peer failed.
    Failed,
    /// Nothing: the caller went away, or gave less time than the peer may take.
    Unknown,
}

/// What a breaker does at present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Every call goes out.
    Closed,
    /// None does.
    Open,
    /// A few do, to see whether the peer is well again.
    HalfOpen,
}

#[derive(Debug, Clone, Copy)]
enum Phase {
    Closed,
    Open { until: Duration },
    HalfOpen { under_way: u32, well: u32 },
}

#[derive(Debug, Clone, Copy)]
struct Slice {
    number: u64,
    calls: u32,
    failures: u32,
}

/// The right to one call; its outcome counts only for the phase that gave it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ticket {
    epoch: u64,
}

/// The breaker as a state machine. Time is what has passed since a fixed moment.
pub(crate) struct Machine {
    rules: BreakerSettings,
    phase: Phase,
    epoch: u64,
    slices: VecDeque<Slice>,
}

impl Machine {
    pub(crate) fn new(rules: BreakerSettings) -> Self {
        Self {
            rules,
            phase: Phase::Closed,
            epoch: 0,
            slices: VecDeque::with_capacity(SLICES as usize + 1),
        }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.phase {
            Phase::Closed => BreakerState::Closed,
            Phase::Open { .. } => BreakerState::Open,
            Phase::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }

    /// Whether a call may go out now; if not, after which time to ask again.
    pub(crate) fn admit(&mut self, now: Duration) -> Result<Ticket, Duration> {
        if let Phase::Open { until } = self.phase {
            if now < until {
                return Err(until - now);
            }
            self.enter(Phase::HalfOpen {
                under_way: 0,
                well: 0,
            });
        }
        if let Phase::HalfOpen { under_way, well } = &mut self.phase {
            if *under_way + *well >= self.rules.probes {
                return Err(PROBING_WAIT);
            }
            *under_way += 1;
        }
        Ok(Ticket { epoch: self.epoch })
    }

    /// Notes how a call went. Each ticket is used once.
    pub(crate) fn record(&mut self, ticket: Ticket, now: Duration, outcome: Outcome) {
        if ticket.epoch != self.epoch {
            // From before the breaker last changed its mind.
            return;
        }
        match self.phase {
            Phase::Closed => self.count(now, outcome),
            // Nobody has a ticket of this epoch.
            Phase::Open { .. } => {}
            Phase::HalfOpen { under_way, well } => match outcome {
                Outcome::Failed => self.open(now),
                Outcome::Well if well + 1 >= self.rules.probes => self.enter(Phase::Closed),
                Outcome::Well | Outcome::Unknown => {
                    let well = well + u32::from(outcome == Outcome::Well);
                    let under_way = under_way.saturating_sub(1);
                    self.phase = Phase::HalfOpen { under_way, well };
                }
            },
        }
    }

    fn count(&mut self, now: Duration, outcome: Outcome) {
        if outcome == Outcome::Unknown {
            return;
        }
        let slice = (self.rules.window.duration() / SLICES).max(Duration::from_millis(1));
        let number = u64::try_from(now.as_nanos() / slice.as_nanos()).unwrap_or(u64::MAX);
        let oldest = number.saturating_sub(u64::from(SLICES) - 1);
        while self.slices.front().is_some_and(|s| s.number < oldest) {
            self.slices.pop_front();
        }
        if self.slices.back().is_none_or(|s| s.number < number) {
            self.slices.push_back(Slice {
                number,
                calls: 0,
                failures: 0,
            });
        }
        // Pushed just above at the latest.
        let Some(last) = self.slices.back_mut() else {
            return;
        };
        last.calls = last.calls.saturating_add(1);
        let failed = outcome == Outcome::Failed;
        last.failures = last.failures.saturating_add(u32::from(failed));
        if failed && self.too_many() {
            self.open(now);
        }
    }

    fn too_many(&self) -> bool {
        let sum = |of: fn(&Slice) -> u32| self.slices.iter().map(|s| u64::from(of(s))).sum::<u64>();
        let (calls, failures) = (sum(|s| s.calls), sum(|s| s.failures));
        failures > u64::from(self.rules.failures)
            && failures * 100 > calls * u64::from(self.rules.percent)
    }

    fn open(&mut self, now: Duration) {
        let until = now + self.rules.open_for.duration();
        self.enter(Phase::Open { until });
    }

    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.epoch += 1;
        self.slices.clear();
    }
}

/// One peer's breaker.
pub(crate) struct Breaker {
    peer: &'static str,
    machine: Mutex<Machine>,
    started: Instant,
    state: watch::Sender<BreakerState>,
}

impl Breaker {
    pub(crate) fn new(peer: &'static str, rules: BreakerSettings) -> Self {
        let breaker = Self {
            peer,
            machine: Mutex::new(Machine::new(rules)),
            started: Instant::now(),
            state: watch::Sender::new(BreakerState::Closed),
        };
        crate::metrics::breaker(peer, BreakerState::Closed);
        breaker
    }

    pub(crate) fn watch(&self) -> watch::Receiver<BreakerState> {
        self.state.subscribe()
    }

    /// The right to one call, or how long to wait.
    pub(crate) fn admit(&self) -> Result<Permit<'_>, Duration> {
        let mut machine = self.lock();
        let admitted = machine.admit(self.started.elapsed());
        self.tell(machine.state());
        Ok(Permit {
            breaker: self,
            ticket: Some(admitted?),
        })
    }

    fn record(&self, ticket: Ticket, outcome: Outcome) {
        let mut machine = self.lock();
        machine.record(ticket, self.started.elapsed(), outcome);
        self.tell(machine.state());
    }

    fn lock(&self) -> MutexGuard<'_, Machine> {
        // Every change of the machine leaves it whole.
        self.machine.lock().unwrap_or_else(|e| e.into_inner())
    }

    /// Under the machine's lock, so that states are told in their order.
    fn tell(&self, state: BreakerState) {
        let changed = self.state.send_if_modified(|told| {
            let changed = *told != state;
            *told = state;
            changed
        });
        if !changed {
            return;
        }
        crate::metrics::breaker(self.peer, state);
        match state {
            BreakerState::Open => tracing::warn!(
                peer = self.peer,
                "too many calls fail: none go out for a while"
            ),
            BreakerState::HalfOpen => {
                tracing::info!(peer = self.peer, "a few calls go out again, to see")
            }
            BreakerState::Closed => tracing::info!(peer = self.peer, "calls go out again"),
        }
    }
}

/// The right to one call. Dropped without an outcome it says nothing about the peer.
pub(crate) struct Permit<'a> {
    breaker: &'a Breaker,
    ticket: Option<Ticket>,
}

impl Permit<'_> {
    pub(crate) fn record(mut self, outcome: Outcome) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.record(ticket, outcome);
        }
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(ticket) = self.ticket.take() {
            self.breaker.record(ticket, Outcome::Unknown);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn machine() -> Machine {
        Machine::new(BreakerSettings::default())
    }

    fn call(machine: &mut Machine, now: Duration, outcome: Outcome) {
        let ticket = machine.admit(now).unwrap();
        machine.record(ticket, now, outcome);
    }

    #[test]
    fn the_eleventh_failure_opens_it_and_three_probes_close_it() {
        let mut machine = machine();
        for _ in 0..10 {
            call(&mut machine, SECOND, Outcome::Failed);
        }
        assert_eq!(machine.state(), BreakerState::Closed);
        call(&mut machine, SECOND, Outcome::Failed);
        assert_eq!(machine.admit(SECOND * 2), Err(SECOND * 4));
        let now = SECOND * 6;
        let probes: Vec<_> = (0..3).map(|_| machine.admit(now).unwrap()).collect();
        assert_eq!(machine.admit(now), Err(PROBING_WAIT));
        for probe in probes {
            assert_eq!(machine.state(), BreakerState::HalfOpen);
            machine.record(probe, now, Outcome::Well);
        }
        assert_eq!(machine.state(), BreakerState::Closed);
    }

    #[test]
    fn failures_that_are_few_among_many_calls_or_old_do_not_open_it() {
        let mut machine = machine();
        for _ in 0..40 {
            call(&mut machine, SECOND, Outcome::Well);
            call(&mut machine, SECOND, Outcome::Failed);
        }
        assert_eq!(machine.state(), BreakerState::Closed);
        for minute in 2..12 {
            call(&mut machine, SECOND * 60 * minute, Outcome::Failed);
            call(&mut machine, SECOND * 60 * minute, Outcome::Failed);
        }
        assert_eq!(machine.state(), BreakerState::Closed);
    }

    #[test]
    fn a_failed_probe_opens_it_again_and_an_abandoned_one_gives_its_place_back() {
        let mut machine = machine();
        for _ in 0..11 {
            call(&mut machine, Duration::ZERO, Outcome::Failed);
        }
        let now = SECOND * 5;
        for _ in 0..10 {
            call(&mut machine, now, Outcome::Unknown);
        }
        call(&mut machine, now, Outcome::Failed);
        assert_eq!(machine.admit(now), Err(SECOND * 5));
    }

    #[test]
    fn what_was_sent_before_it_opened_says_nothing_about_the_probes() {
        let mut machine = machine();
        let late = machine.admit(Duration::ZERO).unwrap();
        for _ in 0..11 {
            call(&mut machine, Duration::ZERO, Outcome::Failed);
        }
        let now = SECOND * 5;
        let probe = machine.admit(now).unwrap();
        machine.record(late, now, Outcome::Failed);
        assert_eq!(machine.state(), BreakerState::HalfOpen);
        machine.record(probe, now, Outcome::Well);
        assert_eq!(machine.state(), BreakerState::HalfOpen);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Wait(u64),
        Begin,
        End(usize, Outcome),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let outcome = prop_oneof![
            2 => Just(Outcome::Well), 5 => Just(Outcome::Failed), 1 => Just(Outcome::Unknown)
        ];
        let step = prop_oneof![
            1 => (0..4000u64).prop_map(Step::Wait),
            4 => Just(Step::Begin),
            4 => (0..8usize, outcome).prop_map(|(which, outcome)| Step::End(which, outcome)),
        ];
        prop::collection::vec(step, 1..400)
    }

    proptest! {
        #[test]
        fn whatever_happens_it_opens_only_for_a_reason_stays_open_its_time_and_probes_with_few(steps in steps()) {
            let mut machine = machine();
            let (mut now, mut under_way) = (Duration::ZERO, Vec::<(Ticket, BreakerState)>::new());
            let (mut failures, mut opened_at) = (Vec::<Duration>::new(), None::<Duration>);
            for step in steps {
                let before = machine.state();
                match step {
                    Step::Wait(ms) => now += Duration::from_millis(ms),
                    Step::Begin => match machine.admit(now) {
                        Ok(ticket) => {
                            let open_for = opened_at.map(|at| now - at);
                            prop_assert!(open_for.is_none_or(|t| t >= SECOND * 5), "{:?}", open_for);
                            under_way.push((ticket, machine.state()));
                        }
                        Err(wait) => {
                            prop_assert!(wait > Duration::ZERO && wait <= SECOND * 5);
                            prop_assert_ne!(machine.state(), BreakerState::Closed);
                        }
                    },
                    Step::End(which, outcome) if !under_way.is_empty() => {
                        let (ticket, _) = under_way.remove(which % under_way.len());
                        machine.record(ticket, now, outcome);
                        if outcome == Outcome::Failed {
                            failures.push(now);
                        }
                    }
                    Step::End(..) => {}
                }
                let probing = under_way.iter().filter(|(t, _)| t.epoch == machine.epoch).count();
                if machine.state() == BreakerState::HalfOpen {
                    prop_assert!(probing <= 3);
                }
                match (before, machine.state()) {
                    (BreakerState::Closed, BreakerState::Open) => {
                        let recent = failures.iter().filter(|at| now - **at <= SECOND * 60).count();
                        prop_assert!(recent > 10, "{} failures", recent);
                        opened_at = Some(now);
                    }
                    (BreakerState::HalfOpen, BreakerState::Open) => opened_at = Some(now),
                    (_, BreakerState::Closed) => opened_at = None,
                    _ => {}
                }
                prop_assert!(machine.slices.len() <= SLICES as usize);
            }
        }
    }
}
