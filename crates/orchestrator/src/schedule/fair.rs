//! Between the tenants of one lane: deficit round robin (Shreedhar and Varghese, 1996), with costs in place of packet lengths.
//!
//! Tenants stand in a ring, in order of their ids. Each visit of the turn gives a tenant one quantum of cost; it is served while that
//! lasts, and what it could not use stays its own. So of two tenants that both have work neither gets more than a quantum and one
//! task's cost more than the other, however their tasks differ.
//!
//! Walking the ring would cost a step for each tenant that cannot be served yet, and several laps where tasks cost more than a
//! quantum. Instead the lap in which a tenant's head can be served is computed, and a heap holds those that are due: the order is that
//! of the walk, at the cost of a logarithm.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

use contract::TenantId;

use super::Head;
use super::room::Gate;

/// What is remembered of a ring between decisions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct RingTurn {
    /// Whom the turn visits; it may go on where it is.
    pub(super) at: Option<TenantId>,
    /// What each tenant has left of its quanta; one not named has nothing.
    pub(super) deficits: BTreeMap<TenantId, u64>,
}

impl RingTurn {
    /// What a tenant has left of its quanta.
    pub(crate) fn deficit(&self, tenant: &TenantId) -> u64 {
        self.deficits.get(tenant).copied().unwrap_or(0)
    }

    /// Whom the turn visits.
    pub(crate) fn at(&self) -> Option<&TenantId> {
        self.at.as_ref()
    }
}

/// The queues of one lane.
pub(super) struct Ring<'a> {
    quantum: u64,
    queues: Vec<Queue<'a>>,
    /// Those that can be served: lap, steps of the turn from where it stands, index.
    due: BinaryHeap<Reverse<(u64, usize, usize)>>,
    /// Lap and step of the last one served.
    served: Option<(u64, usize)>,
}

struct Queue<'a> {
    heads: &'a [&'a Head],
    next: usize,
    deficit: u64,
    /// Steps of the turn from where it stands to here.
    step: usize,
    /// Quanta that the first lap brings: none where the turn already stands, for it has been given.
    first: u64,
    /// Quanta that `deficit` has had.
    visits: u64,
    /// Some of its heads can be served.
    open: bool,
    /// Some could be when the decision began.
    opened: bool,
}

impl<'a> Ring<'a> {
    /// `heads` are sorted by (tenant, id) and of one lane.
    pub(super) fn new(
        heads: &'a [&'a Head],
        quantum: u64,
        turn: Option<&RingTurn>,
        gate: &Gate<'_>,
    ) -> Self {
        let quantum = quantum.max(1);
        let mut queues: Vec<Queue<'a>> = heads
            .chunk_by(|a, b| a.tenant == b.tenant)
            .map(Queue::new)
            .collect();
        place(&mut queues, turn);
        let mut due = Vec::new();
        for (index, queue) in queues.iter_mut().enumerate() {
            queue.open = queue.skip_shut_out(gate);
            queue.opened = queue.open;
            if queue.open {
                due.push(Reverse((queue.lap(quantum), queue.step, index)));
            }
        }
        Self {
            quantum,
            queues,
            due: due.into(),
            served: None,
        }
    }

    /// The heads that could be served, one a queue, each with its queue's index.
    pub(super) fn heads(&self) -> impl Iterator<Item = (usize, &'a Head)> {
        let open = |(index, queue): (usize, &Queue<'a>)| Some((index, queue.head()?));
        self.queues.iter().enumerate().filter_map(open)
    }

    /// The head that a queue could be served next, if it still can.
    pub(super) fn head_of(&self, index: usize) -> Option<&'a Head> {
        self.queues.get(index)?.head()
    }

    /// The head whose turn it is. Those that have been shut out meanwhile are passed over.
    pub(super) fn peek(&mut self, gate: &Gate<'_>) -> Option<&'a Head> {
        loop {
            let &Reverse((lap, step, index)) = self.due.peek()?;
            let queue = self.queues.get_mut(index)?;
            let head = queue.head()?;
            if gate.lets_in(head) {
                return Some(head);
            }
            self.due.pop();
            queue.open = queue.skip_shut_out(gate);
            if queue.open {
                // Never before those that were served already, though it may be cheaper than the one that was shut out.
                let lap = queue.lap(self.quantum).max(lap);
                self.due.push(Reverse((lap, step, index)));
            }
        }
    }

    /// Serves the head that [`peek`](Self::peek) has just named; the gate has taken it.
    pub(super) fn serve(&mut self, gate: &Gate<'_>) {
        let Some(Reverse((lap, step, index))) = self.due.pop() else {
            return;
        };
        self.served = Some((lap, step));
        let Some(queue) = self.queues.get_mut(index) else {
            return;
        };
        queue.serve(lap, self.quantum);
        queue.open = queue.skip_shut_out(gate);
        if queue.open {
            let lap = queue.lap(self.quantum).max(lap);
            self.due.push(Reverse((lap, step, index)));
        }
    }

    /// What the next decision has to know.
    pub(super) fn save(mut self, turn: Option<&RingTurn>) -> RingTurn {
        let mut at = turn.and_then(|turn| turn.at.clone());
        if let Some((lap, step)) = self.served {
            for queue in &mut self.queues {
                if queue.step == step {
                    at = queue.tenant().cloned();
                }
                // Where room ran out before its turn came, the laps until then count all the same: else a task that takes several would
                // wait for ever where there is room for one at a time.
                if queue.opened && queue.wanted().is_some() {
                    let passed = u64::from(queue.step <= step);
                    queue.grant((lap + queue.first + passed).saturating_sub(1), self.quantum);
                }
            }
        }
        let quantum = self.quantum;
        let left = |queue: &Queue<'_>| {
            // A queue that is shut out again and again saves up no more than it needs.
            let most = quantum.saturating_add(queue.wanted().map_or(0, Head::cost));
            let deficit = queue.deficit.min(most);
            (deficit > 0).then_some(())?;
            Some((queue.tenant()?.clone(), deficit))
        };
        let deficits = self.queues.iter().filter_map(left).collect();
        RingTurn { at, deficits }
    }
}

/// Where the queues stand, seen from where the turn is, and what they have left.
fn place(queues: &mut [Queue<'_>], turn: Option<&RingTurn>) {
    let at = turn.and_then(|turn| turn.at.as_ref());
    let start = at.map_or(0, |at| {
        queues.partition_point(|queue| queue.tenant().is_some_and(|tenant| tenant < at))
    });
    let count = queues.len();
    // Both are in order of tenants: one walk instead of a search for each.
    let mut left = turn.map(|turn| turn.deficits.iter().peekable());
    for (index, queue) in queues.iter_mut().enumerate() {
        queue.step = (index + count - start) % count;
        queue.first = u64::from(queue.tenant() != at);
        let (Some(left), Some(tenant)) = (&mut left, queue.tenant()) else {
            continue;
        };
        while left.next_if(|(other, _)| *other < tenant).is_some() {}
        if let Some((_, &deficit)) = left.next_if(|(other, _)| *other == tenant) {
            queue.deficit = deficit;
        }
    }
}

impl<'a> Queue<'a> {
    fn new(heads: &'a [&'a Head]) -> Self {
        Self {
            heads,
            next: 0,
            deficit: 0,
            step: 0,
            first: 1,
            visits: 0,
            open: false,
            opened: false,
        }
    }

    fn tenant(&self) -> Option<&'a TenantId> {
        self.heads.first().map(|head| &head.tenant)
    }

    fn head(&self) -> Option<&'a Head> {
        let head = self.heads.get(self.next)?;
        self.open.then_some(head)
    }

    /// The head at which it stands, whether it can be served or not.
    fn wanted(&self) -> Option<&'a Head> {
        self.heads.get(self.next).copied()
    }

    /// Goes on to the first head that is let in; false when there is none, and then it stays where it is.
    fn skip_shut_out(&mut self, gate: &Gate<'_>) -> bool {
        let left = self.heads.get(self.next..).unwrap_or_default();
        let skipped = left.iter().position(|head| gate.lets_in(head));
        self.next += skipped.unwrap_or(0);
        skipped.is_some()
    }

    /// The lap in which its next head can be served.
    fn lap(&self, quantum: u64) -> u64 {
        let cost = self.heads.get(self.next).map_or(0, |head| head.cost());
        let missing = cost.saturating_sub(self.deficit).div_ceil(quantum);
        self.visits
            .saturating_add(missing)
            .saturating_sub(self.first)
    }

    /// Brings the quanta up to `visits` of them.
    fn grant(&mut self, visits: u64, quantum: u64) {
        let more = visits.saturating_sub(self.visits);
        self.deficit = self.deficit.saturating_add(more.saturating_mul(quantum));
        self.visits += more;
    }

    fn serve(&mut self, lap: u64, quantum: u64) {
        self.grant(lap.saturating_add(self.first), quantum);
        let cost = self.heads.get(self.next).map_or(0, |head| head.cost());
        self.deficit = self.deficit.saturating_sub(cost);
        self.next += 1;
    }
}
