//! Snapshots that lie, for tests and `examples/fuzz_snapshots.rs`.

use crate::sha256;

/// Bytes of the checksum at a snapshot's end.
const CHECKSUM: usize = 32;
/// The most changes in one snapshot.
const CHANGES: u64 = 6;
/// Numbers that code stumbles over, as a snapshot has them.
const NUMBERS: [u64; 8] = [
    0,
    1,
    0x7f80_0000,
    0x7fc0_0000,
    u32::MAX as u64,
    i64::MAX as u64,
    u64::MAX,
    1 << 40,
];

/// Changes snapshots at random, the same way for the same seed.
#[derive(Debug)]
pub struct Mutator(u64);

impl Mutator {
    /// From a seed.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// SplitMix64 (Steele et al., 2014).
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: usize) -> usize {
        (self.next() % bound.max(1) as u64) as usize
    }

    /// A snapshot with bytes flipped, cut out, doubled or overwritten with numbers; four of five are sealed again under a
    /// right checksum, so that what is inside is looked at.
    pub fn mutated(&mut self, snapshot: &[u8]) -> Vec<u8> {
        let mut bytes = snapshot.to_vec();
        for _ in 0..=self.next() % CHANGES {
            self.change(&mut bytes);
        }
        if !self.next().is_multiple_of(5) {
            seal(&mut bytes);
        }
        bytes
    }

    fn change(&mut self, bytes: &mut Vec<u8>) {
        // Half of the changes fall where lengths and the request are.
        let reach = if self.next().is_multiple_of(2) {
            bytes.len()
        } else {
            bytes.len().min(600)
        };
        let at = self.below(reach);
        match self.next() % 6 {
            0 => bytes.truncate(at),
            1 if !bytes.is_empty() => bytes[at] ^= 1 << (self.next() % 8),
            2 if !bytes.is_empty() => bytes[at] = self.next() as u8,
            3 => {
                let number = NUMBERS[self.below(NUMBERS.len())].to_le_bytes();
                let width = [1, 4, 8][self.below(3)].min(bytes.len() - at);
                bytes[at..at + width].copy_from_slice(&number[..width]);
            }
            4 => {
                let end = (at + self.below(64)).min(bytes.len());
                bytes.drain(at..end);
            }
            _ => {
                let end = (at + self.below(64)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                bytes.splice(at..at, copy);
            }
        }
    }
}

/// Puts the right checksum behind what is before it.
pub fn seal(bytes: &mut [u8]) {
    if let Some(body) = bytes.len().checked_sub(CHECKSUM) {
        let checksum = sha256::digest(&bytes[..body]);
        bytes[body..].copy_from_slice(&checksum);
    }
}
