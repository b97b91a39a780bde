//! What the prefix codes of a lossless WebP stream take once they are unpacked (RFC 9649, 3).
//!
//! A stream says how many groups of five codes it has, up to 65536 whatever the size of its picture, and the decoder makes tables of
//! kilobytes from a dozen bytes each: a file of 4 MB can take more than a gigabyte for four pixels. So a stream is read here up to
//! where its codes end, and what they would take is added up before the decoder takes it. Of the small pictures on the way, which
//! parametrize the transforms and say which group is for which block, nothing is kept but the largest number of a group: only literals can have
//! it, as copies and the colour cache repeat them.

/// The most that the codes of one stream may take, bytes. Encoders write a few groups, some hundred for a large picture, of some KiB each.
pub(crate) const MAX_CODES_BYTES: u64 = 64 << 20;
/// What the decoder takes for a code beside its tables, bytes, rounded up.
const CODE_BYTES: u64 = 160;
/// Codes of up to so many bits are looked up in one table, with four bytes for each combination.
const TABLE_BITS: usize = 10;
/// Longer ones have two nodes in a tree each, bytes.
const LONG_CODE_BYTES: u64 = 32;

const MOST_BITS: usize = 15;
const LITERALS: u16 = 256;
const LENGTHS: u16 = 24;
const DISTANCES: u16 = 40;
/// In which order the lengths of the code for lengths are written (RFC 9649, 3.7.2.1.2).
const LENGTH_ORDER: [usize; 19] = [
    17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
];

/// What a file's lossless streams, its picture's or its transparency's, would take for their codes; no more is counted than what is more
/// than [`MAX_CODES_BYTES`]. `body` is a whole WebP file, walked before. None where one contradicts itself or ends early.
pub(crate) fn codes_bytes(body: &[u8], width: u32, height: u32) -> Option<u64> {
    let mut most = 0;
    // Behind the name of the file's kind come chunks: type, length, data, a byte of padding after an odd length.
    let mut rest = body.get(12..)?;
    while let Some((head, behind)) = rest.split_at_checked(8) {
        let length = u32::from_le_bytes([head[4], head[5], head[6], head[7]]) as usize;
        let data = behind.get(..length)?;
        let bytes = match (&head[..4], data) {
            // Signature, sides, whether alpha is used, version.
            (b"VP8L", _) => Bits::new(data, 40).codes(width, height)?,
            // Else it is not compressed.
            (b"ALPH", [how, stream @ ..]) if how & 3 == 1 => {
                Bits::new(stream, 0).codes(width, height)?
            }
            _ => 0,
        };
        most = bytes.max(most);
        rest = behind.get(length + length % 2..).unwrap_or_default();
    }
    Some(most)
}

/// A stream, from its lowest bits.
struct Bits<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Bits<'a> {
    fn new(bytes: &'a [u8], at: usize) -> Self {
        Self { bytes, at }
    }

    fn bit(&mut self) -> Option<u32> {
        let byte = self.bytes.get(self.at / 8)?;
        let bit = (byte >> (self.at % 8)) & 1;
        self.at += 1;
        Some(bit.into())
    }

    fn take(&mut self, count: u32) -> Option<u32> {
        let mut value = 0;
        for place in 0..count {
            value |= self.bit()? << place;
        }
        Some(value)
    }

    /// What the codes of a picture take.
    fn codes(mut self, width: u32, height: u32) -> Option<u64> {
        let across = self.transforms(width, height)?;
        let cached = self.cached()?;
        let groups = if self.bit()? == 1 {
            let block = 2 + self.take(3)?;
            1 + self.picture(blocks(across, block), blocks(height, block))?
        } else {
            1
        };
        let mut bytes = 0;
        for _ in 0..groups {
            bytes += self.group(cached)?.iter().map(Code::bytes).sum::<u64>();
            if bytes > MAX_CODES_BYTES {
                break;
            }
        }
        Some(bytes)
    }

    /// Reads the transforms; how many columns are left to decode.
    fn transforms(&mut self, width: u32, height: u32) -> Option<u32> {
        let (mut across, mut seen) = (width, [false; 4]);
        while self.bit()? == 1 {
            let kind = self.take(2)?;
            if std::mem::replace(&mut seen[kind as usize], true) {
                return None;
            }
            match kind {
                // Prediction and colours, each with numbers for blocks.
                0 | 1 => {
                    let block = 2 + self.take(3)?;
                    self.picture(blocks(across, block), blocks(height, block))?;
                }
                // Green is taken from the others: without numbers.
                2 => {}
                // A palette; of a small one several pixels are in one.
                _ => {
                    let colors = 1 + self.take(8)?;
                    self.picture(colors, 1)?;
                    let packed = match colors {
                        1..=2 => 3,
                        3..=4 => 2,
                        5..=16 => 1,
                        _ => 0,
                    };
                    across = blocks(across, packed);
                }
            }
        }
        Some(across)
    }

    /// How many colours the cache has; 0 where there is none.
    fn cached(&mut self) -> Option<u16> {
        if self.bit()? == 0 {
            return Some(0);
        }
        let bits = self.take(4)?;
        (1..=11).contains(&bits).then(|| 1 << bits)
    }

    fn group(&mut self, cached: u16) -> Option<[Code; 5]> {
        Some([
            self.code(LITERALS + LENGTHS + cached)?,
            self.code(LITERALS)?,
            self.code(LITERALS)?,
            self.code(LITERALS)?,
            self.code(DISTANCES)?,
        ])
    }

    /// Reads a picture that has one group of codes; the largest number that red and green make in it.
    fn picture(&mut self, width: u32, height: u32) -> Option<u32> {
        let cached = self.cached()?;
        let [green, red, blue, alpha, distance] = self.group(cached)?;
        let pixels = u64::from(width) * u64::from(height);
        let (mut done, mut largest) = (0, 0);
        while done < pixels {
            let symbol = green.read(self)?;
            if symbol < LITERALS {
                let high = u32::from(red.read(self)?);
                blue.read(self)?;
                alpha.read(self)?;
                largest = largest.max((high << 8) | u32::from(symbol));
                done += 1;
            } else if symbol < LITERALS + LENGTHS {
                done += self.number(symbol - LITERALS)?;
                let distance = distance.read(self)?;
                self.number(distance)?;
            } else {
                done += 1;
            }
        }
        (done == pixels).then_some(largest)
    }

    /// A length or a distance, of which the symbol says how large it is about.
    fn number(&mut self, symbol: u16) -> Option<u64> {
        let symbol = u32::from(symbol);
        if symbol < 4 {
            return Some(u64::from(symbol) + 1);
        }
        let more = (symbol - 2) >> 1;
        let least = (2 + (symbol & 1)) << more;
        Some(u64::from(least) + u64::from(self.take(more)?) + 1)
    }

    /// Reads how a code for so many symbols is made.
    fn code(&mut self, symbols: u16) -> Option<Code> {
        if self.bit()? == 1 {
            return self.simple_code(symbols);
        }
        let mut lengths = [0; LENGTH_ORDER.len()];
        let given = 4 + self.take(4)?;
        for symbol in LENGTH_ORDER.iter().take(given as usize) {
            lengths[*symbol] = self.take(3)? as u8;
        }
        let code = Code::of_lengths(&lengths)?;
        let all = u32::from(symbols);
        let mut given = all;
        if self.bit()? == 1 {
            let width = 2 + 2 * self.take(3)?;
            given = 2 + self.take(width)?;
        }
        if given > all {
            return None;
        }
        let all = usize::from(symbols);
        let (mut lengths, mut before) = (Vec::with_capacity(all), 8);
        while lengths.len() < all && given > 0 {
            given -= 1;
            let (length, times) = match code.read(self)? {
                16 => (before, 3 + self.take(2)?),
                17 => (0, 3 + self.take(3)?),
                18 => (0, 11 + self.take(7)?),
                length => (length as u8, 1),
            };
            if length != 0 {
                before = length;
            }
            lengths.resize(lengths.len() + times as usize, length);
            if lengths.len() > all {
                return None;
            }
        }
        Code::of_lengths(&lengths)
    }

    /// One symbol, or two with a bit each.
    fn simple_code(&mut self, symbols: u16) -> Option<Code> {
        let (two, wide) = (self.bit()? == 1, self.bit()? == 1);
        let mut counts = [0; MOST_BITS + 1];
        let mut named = vec![self.take(if wide { 8 } else { 1 })? as u16];
        if two {
            counts[1] = 2;
            named.push(self.take(8)? as u16);
        }
        let known = named.iter().all(|symbol| *symbol < symbols);
        known.then_some(Code {
            counts,
            symbols: named,
        })
    }
}

/// How many blocks of a side of `1 << bits` cover a side.
fn blocks(side: u32, bits: u32) -> u32 {
    (side + (1 << bits) - 1) >> bits
}

/// A prefix code: how many symbols have each length, and the symbols in the order of their codes. One alone takes no bits.
struct Code {
    counts: [u16; MOST_BITS + 1],
    symbols: Vec<u16>,
}

impl Code {
    /// The code of these lengths, 0 for symbols that do not occur. None unless every row of bits is the beginning of one code's.
    fn of_lengths(lengths: &[u8]) -> Option<Self> {
        let mut counts = [0u16; MOST_BITS + 1];
        for length in lengths {
            *counts.get_mut(usize::from(*length))? += 1;
        }
        counts[0] = 0;
        let (mut starts, mut some, mut left) = ([0usize; MOST_BITS + 1], 0usize, 1i32);
        for (start, count) in starts.iter_mut().zip(counts) {
            *start = some;
            some += usize::from(count);
        }
        for count in &counts[1..] {
            left = 2 * left - i32::from(*count);
            if left < 0 {
                break;
            }
        }
        if some == 0 || (some > 1 && left != 0) {
            return None;
        }
        let mut symbols = vec![0; some];
        for (symbol, length) in (0u16..).zip(lengths).filter(|(_, length)| **length != 0) {
            let place = &mut starts[usize::from(*length)];
            symbols[*place] = symbol;
            *place += 1;
        }
        Some(Self { counts, symbols })
    }

    fn read(&self, bits: &mut Bits<'_>) -> Option<u16> {
        if let [only] = self.symbols[..] {
            return Some(only);
        }
        // Codes of one length are numbers that follow each other; the first of them follows the last of the length before.
        let (mut code, mut first, mut before) = (0, 0, 0);
        for count in &self.counts[1..] {
            let count = u32::from(*count);
            code = (code << 1) | bits.bit()?;
            let place = code - first;
            if place < count {
                return self.symbols.get((before + place) as usize).copied();
            }
            before += count;
            first = (first + count) << 1;
        }
        None
    }

    /// What the decoder takes for it.
    fn bytes(&self) -> u64 {
        if self.symbols.len() < 2 {
            return CODE_BYTES;
        }
        let longest = self.counts.iter().rposition(|count| *count != 0);
        let table = 4u64 << longest.unwrap_or_default().min(TABLE_BITS);
        let long: u64 = self.counts[TABLE_BITS + 1..]
            .iter()
            .map(|count| u64::from(*count))
            .sum();
        CODE_BYTES + table + long * LONG_CODE_BYTES
    }
}
