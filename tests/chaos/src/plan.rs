//! What goes wrong, and when: drawn from a seed, and the same for the same seed. Pure.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use storage::FaultPlan;

use crate::random::Random;

/// The processes of the platform, in the order in which they need each other.
pub const INSTANCES: [&str; 11] = [
    "auth-1",
    "auth-2",
    "model-registry-1",
    "orchestrator-1",
    "orchestrator-2",
    "gpu-worker-1",
    "gpu-worker-2",
    "gpu-worker-3",
    "gateway-1",
    "gateway-2",
    "gateway-3",
];
/// Servers of the broker, which keep each stream on all of them.
pub const NODES: usize = 3;
/// Streams whose leader is worth killing.
pub(crate) const STREAMS: [&str; 3] = ["TASKS", "WORK", "KV_USAGE"];

/// Undisturbed at the beginning.
const FIRST: u64 = 5_000;
/// From one strike to the next: between these.
const PAUSE: (u64, u64) = (1_500, 7_000);
/// After so many strikes a longer pause, in which the platform is to be itself again.
const BREATH_EVERY: u64 = 6;
const BREATH: (u64, u64) = (15_000, 25_000);
/// How long a fault lasts: between these.
const LASTS: (u64, u64) = (500, 9_000);
/// What the broker needs between two faults of its own: its copies must be whole again, or more than one of three is away at
/// once, against which nothing is promised.
const BROKER_RESTS: u64 = 12_000;
/// What a process needs between two faults of its own.
const INSTANCE_RESTS: u64 = 4_000;
/// How many of the processes have clocks that are wrong, one in so many, and by how many seconds at most.
const SKEWED: u64 = 3;
const SKEW: u64 = 90;
/// How many of those that are ended come again with another clock, one in so many, and the part of the seed that these are drawn from: none of a
/// caller's.
const JUMPING: u64 = 3;
const JUMPS: u64 = 1_000;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    /// SIGKILL; started again afterwards.
    Kill {
        /// Which process.
        instance: String,
    },
    /// SIGTERM; started again afterwards, once it has ended.
    Terminate {
        /// Which process.
        instance: String,
    },
    /// SIGSTOP; SIGCONT afterwards.
    Stop {
        /// Which process.
        instance: String,
    },
    /// All its connections to the broker and to other services are cut.
    Cut {
        /// Which process.
        instance: String,
        /// Nothing gets through and nobody is told; else connections end and new ones are refused.
        silent: bool,
    },
    /// SIGKILL of a server of the broker, whichever leads a stream just then.
    KillLeader {
        /// The stream.
        stream: String,
    },
    /// SIGKILL of a server of the broker; started again afterwards.
    KillNode {
        /// Which one, from 0.
        node: usize,
    },
    /// SIGSTOP of a server of the broker; SIGCONT afterwards.
    StopNode {
        /// Which one, from 0.
        node: usize,
    },
    /// A server of the broker is cut off from the two others; its clients stay connected to it.
    Partition {
        /// Which one, from 0.
        node: usize,
        /// Nothing gets through and no server is told; else connections end and new ones are refused.
        silent: bool,
    },
    /// Requests to the object store fail, in all processes.
    Store {
        /// How.
        plan: FaultPlan,
    },
}

impl Fault {
    /// What it is called in reports.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Kill { .. } => "kill",
            Self::Terminate { .. } => "terminate",
            Self::Stop { .. } => "stop",
            Self::Cut { silent: true, .. } => "cut, in silence",
            Self::Cut { silent: false, .. } => "cut",
            Self::KillLeader { .. } => "kill a stream's leader",
            Self::KillNode { .. } => "kill a broker",
            Self::StopNode { .. } => "stop a broker",
            Self::Partition { silent: true, .. } => "partition, in silence",
            Self::Partition { silent: false, .. } => "partition",
            Self::Store { .. } => "store fails",
        }
    }

    /// The process that it is about, if it is about one.
    pub fn instance(&self) -> Option<&str> {
        match self {
            Self::Kill { instance }
            | Self::Terminate { instance }
            | Self::Stop { instance }
            | Self::Cut { instance, .. } => Some(instance),
            _ => None,
        }
    }

    /// Whether it is about the broker.
    pub fn of_broker(&self) -> bool {
        matches!(
            self,
            Self::KillLeader { .. }
                | Self::KillNode { .. }
                | Self::StopNode { .. }
                | Self::Partition { .. }
        )
    }
}

/// A fault, when it begins and how long it lasts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Strike {
    /// Milliseconds since the clients began.
    pub at_ms: u64,
    /// Milliseconds.
    pub for_ms: u64,
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
}

/// Everything that goes wrong in one run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Plan {
    /// What it was drawn from; the clients draw from it, too.
    pub seed: u64,
    /// How long clients submit, in milliseconds.
    pub length_ms: u64,
    /// By how many seconds a process's clock is wrong, for those whose is.
    pub skews: BTreeMap<String, i64>,
    /// In order of time. All have ended when the clients end.
    pub strikes: Vec<Strike>,
    /// By how many seconds the clock of a process is wrong from then on that a strike has ended, by the strike's place.
    #[serde(default)]
    pub jumps: BTreeMap<usize, i64>,
    /// Whether everything is restarted then, one after the other, while the clients go on.
    #[serde(default)]
    pub rolling: bool,
}

impl Plan {
    /// The plan that follows from `seed` for a run of this length.
    pub fn draw(seed: u64, length: Duration) -> Self {
        let mut random = Random::new(seed);
        let length_ms = u64::try_from(length.as_millis()).unwrap_or(u64::MAX);
        let mut free = Free::default();
        let (mut strikes, mut at, mut count) = (Vec::new(), FIRST, 0);
        while at < length_ms {
            let for_ms = random.between(LASTS.0, LASTS.1);
            let until = at + for_ms;
            if until < length_ms
                && let Some(fault) = free.fault(&mut random, at, until)
            {
                let at_ms = at;
                strikes.push(Strike {
                    at_ms,
                    for_ms,
                    fault,
                });
            }
            count += 1;
            at += random.between(PAUSE.0, PAUSE.1);
            if count % BREATH_EVERY == 0 {
                at = at.max(until) + random.between(BREATH.0, BREATH.1);
            }
        }
        Self {
            seed,
            length_ms,
            skews: skews(&mut random),
            jumps: jumps(seed, &strikes),
            strikes,
            rolling: true,
        }
    }
}

fn skews(random: &mut Random) -> BTreeMap<String, i64> {
    let mut skews = BTreeMap::new();
    for instance in INSTANCES {
        if random.once_in(SKEWED) {
            skews.insert(instance.to_owned(), skew(random));
        }
    }
    skews
}

fn skew(random: &mut Random) -> i64 {
    let by = random.between(1, SKEW + 1) as i64;
    if random.once_in(2) { by } else { -by }
}

/// A process that comes again may find that its machine's clock was set meanwhile: for its peers it jumps. Drawn beside all else, so that
/// the strikes of a seed are what they were.
fn jumps(seed: u64, strikes: &[Strike]) -> BTreeMap<usize, i64> {
    let mut random = Random::part(seed, JUMPS);
    let ends =
        |strike: &Strike| matches!(strike.fault, Fault::Kill { .. } | Fault::Terminate { .. });
    let mut jumps = BTreeMap::new();
    for (number, _) in strikes.iter().enumerate().filter(|(_, one)| ends(one)) {
        if random.once_in(JUMPING) {
            jumps.insert(number, skew(&mut random));
        }
    }
    jumps
}

/// From when on each part may have its next fault.
#[derive(Default)]
struct Free {
    broker: u64,
    store: u64,
    instances: BTreeMap<&'static str, u64>,
}

impl Free {
    /// A fault from `at` to `until`; none where what was drawn still rests from its last.
    fn fault(&mut self, random: &mut Random, at: u64, until: u64) -> Option<Fault> {
        match random.between(0, 10) {
            0..7 => {
                let instance = *random.pick(&INSTANCES);
                let free = self.instances.entry(instance).or_default();
                if *free > at {
                    return None;
                }
                *free = until + INSTANCE_RESTS;
                let instance = instance.to_owned();
                Some(match random.between(0, 6) {
                    0..2 => Fault::Kill { instance },
                    2 => Fault::Terminate { instance },
                    3 => Fault::Stop { instance },
                    kind => {
                        let silent = kind == 4;
                        Fault::Cut { instance, silent }
                    }
                })
            }
            7..9 => {
                if self.broker > at {
                    return None;
                }
                self.broker = until + BROKER_RESTS;
                let node = random.between(0, NODES as u64) as usize;
                Some(match random.between(0, 6) {
                    0 => Fault::KillNode { node },
                    1 => Fault::StopNode { node },
                    kind @ 2..4 => {
                        let silent = kind == 2;
                        Fault::Partition { node, silent }
                    }
                    _ => Fault::KillLeader {
                        stream: (*random.pick(&STREAMS)).to_owned(),
                    },
                })
            }
            _ => {
                if self.store > at {
                    return None;
                }
                self.store = until;
                let plan = FaultPlan {
                    seed: random.next(),
                    errors: random.between(0, 60) as u8,
                    lost_answers: random.between(0, 20) as u8,
                    broken_reads: random.between(0, 20) as u8,
                    delays: random.between(0, 50) as u8,
                    delay_ms: random.between(50, 3_000),
                    // A lie cannot be told from a broken disk, and nobody could draw what is lost: these are for tests of their own.
                    ..FaultPlan::default()
                };
                Some(Fault::Store { plan })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn draw(seed: u64, minutes: u64) -> Plan {
        Plan::draw(seed, Duration::from_secs(60 * minutes))
    }

    #[test]
    fn the_same_seed_is_the_same_plan_and_another_seed_another() {
        assert_eq!(draw(7, 10), draw(7, 10));
        assert_ne!(draw(7, 10), draw(8, 10));
    }

    #[test]
    fn an_hour_has_every_kind_of_fault() {
        let plan = draw(1, 60);
        let kinds: std::collections::BTreeSet<_> =
            plan.strikes.iter().map(|s| s.fault.name()).collect();
        assert_eq!(kinds.len(), 11, "{kinds:?}");
        assert!(!plan.skews.is_empty());
    }

    #[test]
    fn a_plan_can_be_written_out_and_read() {
        let plan = draw(3, 5);
        let text = serde_json::to_string(&plan).unwrap();
        assert_eq!(serde_json::from_str::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn a_plan_from_before_there_were_partitions_can_be_read() {
        let text = r#"{"seed": 1, "length_ms": 60000, "skews": {"auth-1": -7}, "strikes": [
            {"at_ms": 5000, "for_ms": 900, "fault": "cut", "instance": "auth-1", "silent": true},
            {"at_ms": 9000, "for_ms": 900, "fault": "kill_leader", "stream": "TASKS"},
            {"at_ms": 30000, "for_ms": 900, "fault": "stop_node", "node": 2}]}"#;
        let plan: Plan = serde_json::from_str(text).unwrap();
        assert_eq!(plan.strikes[2].fault, Fault::StopNode { node: 2 });
        assert!(!plan.rolling);
        assert!(plan.jumps.is_empty());
    }

    #[test]
    fn clocks_jump_where_a_process_comes_again_and_nowhere_else() {
        let plan = draw(1, 60);
        assert!(plan.jumps.len() > 10, "{}", plan.jumps.len());
        for (&number, by) in &plan.jumps {
            let fault = &plan.strikes[number].fault;
            let ends = matches!(fault, Fault::Kill { .. } | Fault::Terminate { .. });
            assert!(ends, "{fault:?}");
            assert!((1..=SKEW).contains(&by.unsigned_abs()));
        }
    }

    #[test]
    fn a_partition_is_of_one_of_the_three_brokers() {
        let plan = draw(1, 60);
        let mut cut_off = std::collections::BTreeSet::new();
        for strike in plan.strikes {
            if let Fault::Partition { node, silent } = strike.fault {
                assert!((LASTS.0..LASTS.1).contains(&strike.for_ms));
                cut_off.insert((node, silent));
            }
        }
        let all = (0..NODES).flat_map(|node| [(node, false), (node, true)]);
        assert!(all.eq(cut_off));
    }

    proptest! {
        #[test]
        fn never_is_more_than_one_broker_away_nor_one_process_struck_twice_at_once(seed: u64) {
            let plan = draw(seed, 10);
            for (index, one) in plan.strikes.iter().enumerate() {
                prop_assert!(one.at_ms + one.for_ms < plan.length_ms);
                for other in &plan.strikes[index + 1..] {
                    prop_assert!(one.at_ms <= other.at_ms);
                    let same = one.fault.instance().is_some() && one.fault.instance() == other.fault.instance();
                    let both = one.fault.of_broker() && other.fault.of_broker();
                    if same || both {
                        let rests = if both { BROKER_RESTS } else { INSTANCE_RESTS };
                        prop_assert!(one.at_ms + one.for_ms + rests <= other.at_ms);
                    }
                }
            }
        }
    }
}
