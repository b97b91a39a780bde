//! Noise, the same for the same seed as `torch.randn(…, generator=torch.Generator("cpu").manual_seed(seed))`.
//!
//! Source: the Mersenne Twister of Matsumoto and Nishimura (1998), and ATen's `normal_fill` over it: Box and Muller's
//! transform on sixteen values at a time. torch's vectorised logarithm and cosine differ from the exact ones in the
//! last places; so may we, by about 1e-6.

const LENGTH: usize = 624;
const SHIFT: usize = 397;
/// Values that the transform takes together.
const GROUP: usize = 16;

/// torch's CPU generator.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Generator {
    state: Vec<u32>,
    next: usize,
}

impl Generator {
    /// Seeded; as in torch, only the low 32 bits matter.
    pub(crate) fn new(seed: u64) -> Self {
        let mut state = Vec::with_capacity(LENGTH);
        let mut last = seed as u32;
        state.push(last);
        for index in 1..LENGTH as u32 {
            last = 1_812_433_253_u32
                .wrapping_mul(last ^ (last >> 30))
                .wrapping_add(index);
            state.push(last);
        }
        Self {
            state,
            next: LENGTH,
        }
    }

    /// The state: where it stands, then its words, little endian.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let position = (self.next as u32).to_le_bytes();
        let words = self.state.iter().flat_map(|word| word.to_le_bytes());
        position.into_iter().chain(words).collect()
    }

    /// From [`Generator::to_bytes`]; nothing if they are not a generator's.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.as_chunks::<4>();
        let [next, state @ ..] = words else {
            return None;
        };
        let next = u32::from_le_bytes(*next) as usize;
        let fits = rest.is_empty() && state.len() == LENGTH && next <= LENGTH;
        fits.then(|| Self {
            state: state.iter().map(|word| u32::from_le_bytes(*word)).collect(),
            next,
        })
    }

    fn refill(&mut self) {
        for index in 0..LENGTH {
            let (a, b) = (self.state[index], self.state[(index + 1) % LENGTH]);
            let mixed = (a & 0x8000_0000) | (b & 0x7fff_ffff);
            let twist = if b & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[index] = self.state[(index + SHIFT) % LENGTH] ^ (mixed >> 1) ^ twist;
        }
        self.next = 0;
    }

    fn bits(&mut self) -> u32 {
        if self.next == LENGTH {
            self.refill();
        }
        let mut y = self.state[self.next];
        self.next += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// Uniform on [0, 1) in steps of 2^-24.
    fn uniform(&mut self) -> f32 {
        (self.bits() & 0x00ff_ffff) as f32 / 16_777_216.0
    }

    /// Uniform on [0, 1) in steps of 2^-53.
    fn uniform_double(&mut self) -> f64 {
        let bits = (u64::from(self.bits()) << 32) | u64::from(self.bits());
        (bits & ((1 << 53) - 1)) as f64 / (1_u64 << 53) as f64
    }

    /// `count` values of mean 0 and deviation 1.
    pub(crate) fn normal(&mut self, count: usize) -> Vec<f32> {
        if count < GROUP {
            return self.normal_one_by_one(count);
        }
        let mut values: Vec<f32> = (0..count).map(|_| self.uniform()).collect();
        let whole = count / GROUP * GROUP;
        values[..whole].chunks_exact_mut(GROUP).for_each(transform);
        if whole < count {
            // torch draws the last sixteen anew, over what it had for them.
            let tail = &mut values[count - GROUP..];
            tail.fill_with(|| self.uniform());
            transform(tail);
        }
        values
    }

    fn normal_one_by_one(&mut self, count: usize) -> Vec<f32> {
        let mut spare = None;
        (0..count)
            .map(|_| {
                if let Some(value) = spare.take() {
                    return value;
                }
                let angle = 2.0 * std::f64::consts::PI * self.uniform_double();
                let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
                spare = Some((radius * angle.sin()) as f32);
                (radius * angle.cos()) as f32
            })
            .collect()
    }
}

fn transform(group: &mut [f32]) {
    let (first, second) = group.split_at_mut(GROUP / 2);
    for (a, b) in first.iter_mut().zip(second) {
        let radius = (-2.0 * (1.0 - *a).ln()).sqrt();
        let angle = 2.0 * std::f32::consts::PI * *b;
        *a = radius * angle.cos();
        *b = radius * angle.sin();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, assert_near};

    #[test]
    fn noise_is_that_of_torch() {
        let recorded = golden::read("noise");
        for case in &recorded.cases {
            let (seed, count) = (
                case["seed"].as_str().unwrap(),
                case["count"].as_u64().unwrap(),
            );
            let ours = Generator::new(seed.parse().unwrap()).normal(count as usize);
            assert_near(
                seed,
                &ours,
                &recorded.values(&format!("{seed}.{count}")),
                2e-6,
            );
        }
    }
}
