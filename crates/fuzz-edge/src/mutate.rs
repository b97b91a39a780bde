//! How inputs are altered: byte by byte, number by number, and as someone would who knows what is being read.

/// The most changes to one input.
const CHANGES: u64 = 6;
/// No input becomes longer, bytes.
const MOST: usize = 64 * 1024;
/// Numbers that readers stumble over, as text.
const NUMBERS: &[&str] = &[
    "0",
    "-0",
    "-1",
    "1",
    "255",
    "256",
    "65536",
    "2147483647",
    "2147483648",
    "-2147483649",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "9223372036854775808",
    "18446744073709551615",
    "18446744073709551616",
    "1e1000",
    "-1e400",
    "1e-400",
    "1e39",
    "0.1",
    "1.7976931348623157e308",
    "NaN",
    "Infinity",
    "1E5",
    "00",
    "0x10",
    "+1",
    "1_000",
    "99999999999999999999999999999999999999",
];
/// The same in binary.
const WORDS: &[u64] = &[
    0,
    1,
    0x7f,
    0x80,
    0xff,
    0x7fff_ffff,
    0x8000_0000,
    0xffff_ffff,
    1 << 40,
    i64::MAX as u64,
    1 << 63,
    u64::MAX,
    0x7f80_0000,
    0x7fc0_0000,
];
/// What means something to one reader or another.
const PIECES: &[&str] = &[
    "{",
    "}",
    "[",
    "]",
    "\"",
    ":",
    ",",
    "null",
    "true",
    "false",
    "\\u0000",
    "\\ud800",
    "\\",
    "\\\"",
    "\0",
    "\n",
    "\r\n",
    "\r",
    "\r\n\r\n",
    "--",
    "=",
    "&",
    ";",
    "%",
    "%00",
    "%2B",
    "+",
    "%ff",
    "%C3%A9",
    "%c3",
    ".",
    "..",
    "/",
    "//",
    "?",
    "#",
    " ",
    "\t",
    "é",
    "猫",
    "\u{202e}",
    "\u{feff}",
    "\u{10ffff}",
    "e\u{301}",
    "-",
    "_",
    "~",
    "Bearer ",
    "ink_",
    "eyJ",
    "name=",
    "filename=",
    "\"prompt\":\"x\"",
    "\"a\":",
    "{}",
    "[]",
    "\"\"",
    "''",
    "<",
    ">",
    "$",
    "{{",
    "boundary=",
];
/// What opens and can be opened again inside.
const OPENINGS: &[&str] = &[
    "[",
    "{\"a\":",
    "[{\"a\":[",
    "{\"input\":",
    "(",
    "\\\"",
    "%25",
    "--a\r\n",
    "\u{301}",
];

/// Alters inputs at random, the same way for the same seed.
#[derive(Debug)]
pub(crate) struct Mutator(u64);

impl Mutator {
    pub(crate) fn new(seed: u64) -> Self {
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

    fn one_of<'a, T: ?Sized>(&mut self, all: &[&'a T]) -> &'a T {
        all[self.below(all.len())]
    }

    /// One of the seeds, altered.
    pub(crate) fn altered(&mut self, seeds: &[Vec<u8>]) -> Vec<u8> {
        let mut bytes = seeds[self.below(seeds.len())].clone();
        for _ in 0..=self.next() % CHANGES {
            match self.next() % 12 {
                0 => self.cut(&mut bytes),
                1 => self.flip(&mut bytes),
                2 => self.overwrite(&mut bytes),
                3 => self.drop_some(&mut bytes),
                4 => self.repeat(&mut bytes),
                5 => self.splice(&mut bytes, seeds),
                6 | 7 => self.renumber(&mut bytes),
                8 => self.revalue(&mut bytes),
                9 => self.nest(&mut bytes),
                _ => self.put_in(&mut bytes),
            }
            bytes.truncate(MOST);
        }
        bytes
    }

    fn cut(&mut self, bytes: &mut Vec<u8>) {
        // Rarely, or little would be left of most.
        if self.next().is_multiple_of(4) {
            bytes.truncate(self.below(bytes.len() + 1));
        }
    }

    fn flip(&mut self, bytes: &mut [u8]) {
        if !bytes.is_empty() {
            let at = self.below(bytes.len());
            bytes[at] ^= 1 << (self.next() % 8);
        }
    }

    fn overwrite(&mut self, bytes: &mut [u8]) {
        if bytes.is_empty() {
            return;
        }
        let at = self.below(bytes.len());
        let word = WORDS[self.below(WORDS.len())];
        let word = if self.next().is_multiple_of(2) {
            word.to_le_bytes()
        } else {
            word.to_be_bytes()
        };
        let from = [0, 4, 7][self.below(3)];
        let width = (word.len() - from).min(bytes.len() - at);
        bytes[at..at + width].copy_from_slice(&word[from..from + width]);
    }

    fn drop_some(&mut self, bytes: &mut Vec<u8>) {
        let (start, end) = self.range(bytes.len(), 64);
        bytes.drain(start..end);
    }

    fn repeat(&mut self, bytes: &mut Vec<u8>) {
        let (start, end) = self.range(bytes.len(), 64);
        let times = [1, 2, 16, 200][self.below(4)];
        let copies = bytes[start..end].repeat(times);
        bytes.splice(end..end, copies);
    }

    /// The beginning of one and the end of another.
    fn splice(&mut self, bytes: &mut Vec<u8>, seeds: &[Vec<u8>]) {
        let other = &seeds[self.below(seeds.len())];
        let (to, from) = (self.below(bytes.len() + 1), self.below(other.len() + 1));
        bytes.truncate(to);
        bytes.extend_from_slice(&other[from..]);
    }

    /// Another number in the place of one.
    fn renumber(&mut self, bytes: &mut Vec<u8>) {
        let from = self.below(bytes.len());
        let digit = |byte: &u8| byte.is_ascii_digit() || *byte == b'.';
        let Some(start) = bytes[from..].iter().position(u8::is_ascii_digit) else {
            return;
        };
        let start = from + start;
        let end = bytes[start..]
            .iter()
            .position(|byte| !digit(byte))
            .map_or(bytes.len(), |end| start + end);
        let number = self.one_of(NUMBERS);
        bytes.splice(start..end, number.bytes());
    }

    /// Another value behind a colon or an equals sign.
    fn revalue(&mut self, bytes: &mut Vec<u8>) {
        let from = self.below(bytes.len());
        let Some(start) = bytes[from..].iter().position(|byte| b":=".contains(byte)) else {
            return;
        };
        let start = from + start + 1;
        let ends = |byte: &u8| b",}]&;\n".contains(byte);
        let end = bytes[start..]
            .iter()
            .position(ends)
            .map_or(bytes.len(), |end| start + end);
        let value = match self.next() % 3 {
            0 => self.one_of(NUMBERS).to_owned(),
            1 => self.one_of(PIECES).to_owned(),
            _ => {
                let piece = self.one_of(PIECES);
                format!("\"{}\"", piece.repeat([1, 70, 300, 5000][self.below(4)]))
            }
        };
        bytes.splice(start..end, value.bytes());
    }

    fn nest(&mut self, bytes: &mut Vec<u8>) {
        let opening = self.one_of(OPENINGS);
        let at = self.below(bytes.len() + 1);
        let depth = [3, 130, 5000][self.below(3)];
        bytes.splice(at..at, opening.repeat(depth).bytes());
    }

    fn put_in(&mut self, bytes: &mut Vec<u8>) {
        let at = self.below(bytes.len() + 1);
        let piece = self.one_of(PIECES);
        bytes.splice(at..at, piece.bytes());
    }

    fn range(&mut self, length: usize, most: usize) -> (usize, usize) {
        let start = self.below(length + 1);
        (start, (start + self.below(most)).min(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_alters_the_same_way_and_another_otherwise() {
        let seeds = [br#"{"prompt":"a cat","n":1}"#.to_vec(), Vec::new()];
        let some = |seed| {
            let mut mutator = Mutator::new(seed);
            (0..100)
                .map(|_| mutator.altered(&seeds))
                .collect::<Vec<_>>()
        };
        assert_eq!(some(1), some(1));
        assert_ne!(some(1), some(2));
        assert!(some(1).iter().all(|input| input.len() <= MOST));
    }
}
