//! Noise, the same for the same seed as `torch.randn(…, generator=torch.Generator("cpu").manual_seed(seed))`.
//!
//! Source: the Mersenne Twister of Matsumoto and Nishimura (1998), and ATen's `normal_fill` over it: Box and Muller's
//! transform on sixteen values at a time. torch's vectorised logarithm and cosine differ from the exact ones in the
//! last places; so may we, by about 1e-6.

const LENGTH: usize = 624;
const SHIFT: usize = 397;
/// Values that the transform takes together.
const GROUP: usize = 16;

/// The most that is left over from a pair: its radius is √(−2·ln 2⁻⁵³) at most.
const MOST_SPARE: f64 = 8.6;

/// torch's CPU generator.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Generator {
    state: Vec<u32>,
    /// The state's word that comes next; 624 when it is to be made anew.
    next: usize,
    /// torch draws less than sixteen values in pairs, and keeps what is left of one for the next such draw.
    spare: Option<f64>,
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
            spare: None,
        }
    }

    /// The state as bytes, [`Generator::BYTES`] of them: the words, the position among them, and what is spare.
    pub(crate) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(Self::BYTES);
        for word in &self.state {
            bytes.extend_from_slice(&word.to_le_bytes());
        }
        bytes.extend_from_slice(&(self.next as u16).to_le_bytes());
        bytes.push(u8::from(self.spare.is_some()));
        bytes.extend_from_slice(&self.spare.unwrap_or_default().to_le_bytes());
        bytes
    }

    /// Length of a state in bytes.
    pub(crate) const BYTES: usize = 4 * LENGTH + 2 + 1 + 8;

    /// The generator that these bytes are of; nothing if none can be in such a state.
    pub(crate) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (words, rest) = bytes.split_at_checked(4 * LENGTH)?;
        let (next, rest) = rest.split_first_chunk::<2>()?;
        let (has_spare, spare) = rest.split_first()?;
        let (words, _) = words.as_chunks::<4>();
        let state: Vec<u32> = words.iter().map(|word| u32::from_le_bytes(*word)).collect();
        let next = usize::from(u16::from_le_bytes(*next));
        let value = f64::from_le_bytes(spare.try_into().ok()?);
        let spare = match has_spare {
            // Of what does not count, one form only: equal generators are equal bytes.
            0 if value.to_bits() == 0 => None,
            1 if value.abs() <= MOST_SPARE => Some(value),
            _ => return None,
        };
        // All zeros would stay so for ever.
        let alive = state.iter().any(|word| *word != 0);
        (alive && (1..=LENGTH).contains(&next)).then_some(Self { state, next, spare })
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

    /// `count` values of mean 0 and deviation 1: what `torch.randn` of as many gives next.
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
        (0..count)
            .map(|_| {
                if let Some(value) = self.spare.take() {
                    return value as f32;
                }
                let angle = 2.0 * std::f64::consts::PI * self.uniform_double();
                let radius = (-2.0 * (-self.uniform_double()).ln_1p()).sqrt();
                self.spare = Some(radius * angle.sin());
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
    use proptest::prelude::*;

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
    #[test]
    fn draws_go_on_as_torchs_do() {
        let recorded = golden::read("schedulers_noise");
        for (index, case) in recorded.cases.iter().enumerate() {
            let mut generator = Generator::new(case["seed"].as_u64().unwrap());
            for (draw, count) in case["counts"].as_array().unwrap().iter().enumerate() {
                let ours = generator.normal(count.as_u64().unwrap() as usize);
                let name = format!("{index}.{draw}");
                assert_near(&name, &ours, &recorded.values(&name), 2e-6);
            }
        }
    }

    proptest! {
        #[test]
        fn a_generator_goes_on_from_its_bytes(
            seed in any::<u64>(),
            before in prop::collection::vec(0..700_usize, 0..4),
            after in prop::collection::vec(0..40_usize, 1..4),
        ) {
            let mut generator = Generator::new(seed);
            for count in before {
                generator.normal(count);
            }
            let bytes = generator.to_bytes();
            prop_assert_eq!(bytes.len(), Generator::BYTES);
            let mut read = Generator::from_bytes(&bytes).unwrap();
            prop_assert_eq!(&read, &generator);
            for count in after {
                prop_assert_eq!(read.normal(count), generator.normal(count));
            }
        }

        #[test]
        fn no_bytes_make_a_generator_that_panics(
            mut bytes in prop::collection::vec(any::<u8>(), Generator::BYTES),
            next in 0..=700_u16,
            has_spare in 0..=2_u8,
        ) {
            bytes[4 * LENGTH..][..2].copy_from_slice(&next.to_le_bytes());
            bytes[4 * LENGTH + 2] = has_spare;
            if let Some(mut generator) = Generator::from_bytes(&bytes) {
                prop_assert!((1..=LENGTH).contains(&usize::from(next)));
                prop_assert!(generator.normal(1000).iter().all(|value| value.is_finite() || *value == 0.0));
            }
        }
    }

    #[test]
    fn a_state_that_no_generator_has_is_refused() {
        let bytes = Generator::new(7).to_bytes();
        assert!(Generator::from_bytes(&bytes).is_some());
        let with = |at: usize, values: &[u8]| {
            let mut bytes = bytes.clone();
            bytes[at..at + values.len()].copy_from_slice(values);
            Generator::from_bytes(&bytes)
        };
        let place = 4 * LENGTH;
        assert!(with(place, &0_u16.to_le_bytes()).is_none());
        assert!(with(place, &625_u16.to_le_bytes()).is_none());
        assert!(with(place + 2, &[2]).is_none());
        assert!(with(place + 3, &[1]).is_none());
        let mut spare = vec![1];
        spare.extend_from_slice(&f64::NAN.to_le_bytes());
        assert!(with(place + 2, &spare).is_none());
        assert!(with(0, &[0; 4 * LENGTH]).is_none());
        assert!(Generator::from_bytes(&bytes[1..]).is_none());
        assert!(Generator::from_bytes(&[bytes.as_slice(), &[0]].concat()).is_none());
    }
}
