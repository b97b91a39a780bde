//! Altered input for everything that reads what callers send.
//!
//! Good inputs are altered at random, the same way for the same seed, and read. Whatever they are, reading them must not
//! panic, and not take long; and what is taken must be within the limits that it was checked for, which the targets look at
//! once more by themselves. `make fuzz-edge` gives each target a million inputs, the test of this crate some thousands.

mod mutate;

use std::time::{Duration, Instant};

use mutate::Mutator;

/// The longest that one input may take, in the quickest of a few tries: a busy machine is not the reader's fault.
const LONGEST: Duration = Duration::from_secs(1);
const TRIES: usize = 4;

/// See [`Target::read`].
pub type Read = Box<dyn Fn(&[u8]) -> bool>;

/// Something that reads.
pub struct Target {
    /// Its name.
    pub name: &'static str,
    /// Good inputs.
    pub seeds: Vec<Vec<u8>>,
    /// Reads one, and says whether it was taken. Panics when what was taken is not what it may be.
    pub read: Read,
}

/// What came of some inputs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Count {
    /// Inputs.
    pub inputs: u64,
    /// Those of them that were taken.
    pub taken: u64,
    /// The longest that one took.
    pub longest: Duration,
}

/// Everything that reads what callers send.
pub fn targets() -> Vec<Target> {
    let all = gateway::fuzz::targets()
        .into_iter()
        .chain(auth::fuzz::targets(gateway::fuzz::read_query))
        .chain(orchestrator::fuzz::targets());
    all.map(|(name, seeds, read)| Target { name, seeds, read })
        .collect()
}

impl Target {
    /// Reads `inputs` altered inputs, and tells `progress` now and then.
    ///
    /// # Panics
    /// When the reader does, when it takes what it may not, and when it takes long. The input is printed then.
    pub fn run(&self, inputs: u64, seed: u64, mut progress: impl FnMut(Count)) -> Count {
        for good in &self.seeds {
            assert!(
                (self.read)(good),
                "{} does not take {:?}",
                self.name,
                String::from_utf8_lossy(good)
            );
        }
        let mut mutator = Mutator::new(seed);
        let mut count = Count::default();
        for _ in 0..inputs {
            let input = mutator.altered(&self.seeds);
            let (taken, took) = self.read_once(&input);
            count.inputs += 1;
            count.taken += u64::from(taken);
            count.longest = count.longest.max(took);
            if took > LONGEST {
                self.check_time(&input);
            }
            if count.inputs.is_multiple_of(50_000) {
                progress(count);
            }
        }
        count
    }

    fn read_once(&self, input: &[u8]) -> (bool, Duration) {
        let shown = Shown {
            target: self.name,
            input,
        };
        let began = Instant::now();
        let taken = (self.read)(input);
        let took = began.elapsed();
        std::mem::forget(shown);
        (taken, took)
    }

    fn check_time(&self, input: &[u8]) {
        let quickest = (0..TRIES).map(|_| self.read_once(input).1).min();
        let quick = quickest.is_some_and(|quickest| quickest <= LONGEST);
        assert!(
            quick,
            "{} takes {quickest:?} for {:?}",
            self.name,
            String::from_utf8_lossy(input)
        );
    }
}

/// An input that is printed when it is dropped, which only a panic does.
struct Shown<'a> {
    target: &'a str,
    input: &'a [u8],
}

impl Drop for Shown<'_> {
    fn drop(&mut self) {
        use std::io::Write as _;
        let text = self.input.escape_ascii();
        let _ = writeln!(std::io::stderr(), "{} panicked at {text}", self.target);
    }
}
