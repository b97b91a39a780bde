//! Whether a group of submissions is stored together or one by one: whichever takes less of the broker's time for a group of its size.
//!
//! An atomic batch costs the broker some milliseconds whatever its size, and one flush to the disk; one by one, each costs little, and a
//! flush where the broker flushes always. So it depends on the broker's setting, its disk and the size of the group, of which
//! nobody tells: it is measured, in rounds.
//!
//! * *Under the same load.* In a round all groups are stored in the one manner for a while, then in the other, twice as long, then in the
//!   first again: what changes steadily meanwhile falls on both alike. A group counts only if hardly any of the other manner were on
//!   their way with it, and only against groups of its size in the same round.
//! * *What it takes of the broker*, not how long it waits: of the time in which several are on their way each is charged its part.
//! * *A stall proves nothing*: medians are compared, one round moves a verdict by a part only, and a lead must be felt to turn it over.
//! * *What is not certain is asked again soon*: the pause to the next round is short and doubles with each round that agrees. One that
//!   does not makes it short again, so a broker that has changed is found out, too.
//!
//! Pure: time is handed in.

use std::time::Duration;

use messaging::{MAX_GROUP, Manner};

/// Sizes are told apart by their binary logarithm.
const SIZES: usize = MAX_GROUP.ilog2() as usize + 1;
/// The blocks of a round.
const ROUND: [Manner; 4] = [
    Manner::OneByOne,
    Manner::Together,
    Manner::Together,
    Manner::OneByOne,
];
/// Groups that count, after which a block ends, and groups in all, after which it ends in any case.
const BLOCK: (u32, u32) = (12, 48);
/// Groups of one size and manner without which a round says nothing of that size.
const LEAST_SEEN: usize = 6;
/// Groups from one round to the next: at first; at most; and at most where the other manner is so much slower that a round is felt.
const PAUSES: (u32, u32, u32) = (128, 4096, 16384);
/// A round counts for one in so many.
const SMOOTHING: f64 = 3.0;
/// Leads are logarithms of what storing together takes of what storing one by one does. A round's is cut to this, …
const MOST_LEAD: f64 = std::f64::consts::LN_2;
/// … a verdict stands until the other manner leads by this (8 %), …
const FELT: f64 = 0.077;
/// … and this is far (80 %).
const FAR: f64 = 0.588;

/// What is known of one size.
#[derive(Debug, Clone, Copy)]
struct Verdict {
    manner: Manner,
    lead: f64,
}

impl Verdict {
    /// What a first round has shown.
    fn first(lead: f64) -> Self {
        let lead = lead.clamp(-MOST_LEAD, MOST_LEAD);
        let manner = by(lead);
        Self { manner, lead }
    }

    /// Hears another; whether it agrees with what was known.
    fn hear(&mut self, lead: f64) -> bool {
        let lead = lead.clamp(-MOST_LEAD, MOST_LEAD);
        self.lead += (lead - self.lead) / SMOOTHING;
        let agrees = lead.abs() < FELT || by(lead) == self.manner;
        if self.lead.abs() >= FELT {
            self.manner = by(self.lead);
        }
        agrees
    }
}

fn by(lead: f64) -> Manner {
    if lead < 0.0 {
        Manner::Together
    } else {
        Manner::OneByOne
    }
}

/// A round under way.
#[derive(Debug, Default)]
struct Round {
    block: usize,
    /// Groups of this block that counted, and all.
    counted: u32,
    groups: u32,
    /// Seconds an event, by size; one by one, and together.
    seen: [[Vec<f64>; 2]; SIZES],
}

impl Round {
    fn manner(&self) -> Option<Manner> {
        ROUND.get(self.block).copied()
    }

    /// Goes on to the next block once this one has had enough.
    fn turn(&mut self) {
        if self.counted >= BLOCK.0 || self.groups >= BLOCK.1 {
            self.block += 1;
            (self.counted, self.groups) = (0, 0);
        }
    }

    /// What it says of a size.
    fn lead(&mut self, size: usize) -> Option<f64> {
        let [one_by_one, together] = &mut self.seen[size];
        let (one_by_one, together) = (median(one_by_one)?, median(together)?);
        (one_by_one > 0.0 && together > 0.0).then(|| (together / one_by_one).ln())
    }
}

fn median(seen: &mut [f64]) -> Option<f64> {
    if seen.len() < LEAST_SEEN {
        return None;
    }
    seen.sort_unstable_by(f64::total_cmp);
    Some(seen[seen.len() / 2])
}

/// How a group is to be stored. To be handed back when it is.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) manner: Manner,
    events: usize,
    /// [`Manners::spent`] when it began.
    spent: f64,
    /// The turn in which it began, if it counts should that last.
    turn: Option<u64>,
}

/// Learns from what was observed.
#[derive(Debug)]
pub(crate) struct Manners {
    verdicts: [Option<Verdict>; SIZES],
    round: Option<Round>,
    /// Groups since the last round, those of them of a size that nothing is known of, and how many there are to be until the next.
    groups: u32,
    strangers: u32,
    pause: u32,
    /// The manner of the last group, and how often that has changed.
    last: Manner,
    turns: u64,
    /// Groups of several that are on their way: one by one, and together.
    under_way: [u32; 2],
    /// All that are.
    all: u32,
    /// Seconds that one who was always on its way would have been charged: the time, divided by how many there were at each moment.
    spent: f64,
    at: Duration,
}

impl Manners {
    pub(crate) fn new() -> Self {
        Self {
            verdicts: [None; SIZES],
            round: Some(Round::default()),
            groups: 0,
            strangers: 0,
            pause: PAUSES.0,
            last: Manner::OneByOne,
            turns: 0,
            under_way: [0; 2],
            all: 0,
            spent: 0.0,
            at: Duration::ZERO,
        }
    }

    /// How to store a group of so many events that sets out `now`, counted from any moment.
    pub(crate) fn choose(&mut self, events: usize, now: Duration) -> Choice {
        self.pass(now);
        self.all += 1;
        if events < 2 {
            // One message among others tells nothing, and changes little for them.
            return Choice {
                manner: Manner::OneByOne,
                events,
                spent: self.spent,
                turn: None,
            };
        }
        let manner = self.next(events);
        if manner != self.last {
            self.last = manner;
            self.turns += 1;
        }
        self.under_way[index(manner)] += 1;
        // One of the other that hangs must not keep all from counting.
        let others = self.under_way[1 - index(manner)];
        let in_company = 2 * others < self.under_way[index(manner)];
        Choice {
            manner,
            events,
            spent: self.spent,
            turn: (in_company && self.round.is_some()).then_some(self.turns),
        }
    }

    fn next(&mut self, events: usize) -> Manner {
        if let Some(round) = &mut self.round {
            round.turn();
            round.groups += 1;
            if let Some(manner) = round.manner() {
                return manner;
            }
            self.conclude();
        }
        self.groups += 1;
        self.strangers += u32::from(self.verdicts[size(events)].is_none());
        if self.groups >= self.pause || self.strangers >= PAUSES.0 {
            self.round = Some(Round::default());
        }
        let nearest = |(at, _): &(usize, Verdict)| at.abs_diff(size(events));
        let known = (0..SIZES).filter_map(|at| Some((at, self.verdicts[at]?)));
        let known = known.min_by_key(nearest);
        known.map_or(Manner::OneByOne, |(_, verdict)| verdict.manner)
    }

    /// A group that was chosen is `now` stored, or it is not.
    pub(crate) fn finish(&mut self, choice: &Choice, now: Duration, stored: bool) {
        self.pass(now);
        self.all = self.all.saturating_sub(1);
        if choice.events < 2 {
            return;
        }
        let index = index(choice.manner);
        self.under_way[index] = self.under_way[index].saturating_sub(1);
        let Some(round) = &mut self.round else { return };
        if !stored || choice.turn != Some(self.turns) {
            return;
        }
        let each = (self.spent - choice.spent) / choice.events as f64;
        round.seen[size(choice.events)][index].push(each);
        round.counted += u32::from(round.manner() == Some(choice.manner));
    }

    /// Ends a round.
    fn conclude(&mut self) {
        let Some(mut round) = self.round.take() else {
            return;
        };
        let (mut heard, mut agree, mut far) = (false, true, true);
        for (size, verdict) in self.verdicts.iter_mut().enumerate() {
            let Some(lead) = round.lead(size) else {
                continue;
            };
            heard = true;
            match verdict {
                Some(known) => agree &= known.hear(lead),
                None => {
                    *verdict = Some(Verdict::first(lead));
                    agree = false;
                }
            }
            far &= verdict.is_some_and(|known| known.lead.abs() >= FAR);
        }
        let most = if far { PAUSES.2 } else { PAUSES.1 };
        self.pause = match (heard, agree) {
            (true, true) => (self.pause * 2).min(most),
            (true, false) => PAUSES.0,
            // It has said nothing.
            (false, _) => self.pause,
        };
        (self.groups, self.strangers) = (0, 0);
    }

    fn pass(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.at);
        if self.all > 0 {
            self.spent += passed.as_secs_f64() / f64::from(self.all);
        }
        self.at = self.at.max(now);
    }
}

fn index(manner: Manner) -> usize {
    usize::from(manner == Manner::Together)
}

fn size(events: usize) -> usize {
    (events.max(1).ilog2() as usize).min(SIZES - 1)
}

#[cfg(test)]
#[path = "manner_tests.rs"]
mod tests;
