//! Files that unpack to far more than they are, made without unpacking anything.

/// Bits of a deflate stream (RFC 1951), which fills bytes from their low ends.
#[derive(Default)]
struct Bits {
    bytes: Vec<u8>,
    pending: u32,
    count: u32,
}

impl Bits {
    fn put(&mut self, value: u32, bits: u32) {
        self.pending |= value << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    /// A Huffman code, which is written from its high end.
    fn code(&mut self, code: u32, bits: u32) {
        self.put(code.reverse_bits() >> (32 - bits), bits);
    }

    fn end(mut self) -> Vec<u8> {
        self.put(0, 7);
        self.bytes
    }
}

/// `count` zeros, deflated with the fixed codes: 13 bits for 258 of them.
fn deflated_zeros(count: usize) -> Vec<u8> {
    const RUN: usize = 258;
    let mut bits = Bits::default();
    // The last block, with fixed codes; the first zero by itself, and then runs that repeat the one before.
    bits.put(0b011, 3);
    bits.code(0x30, 8);
    for _ in 0..(count - 1) / RUN {
        bits.code(0b1100_0101, 8);
        bits.code(0, 5);
    }
    for _ in 0..(count - 1) % RUN {
        bits.code(0x30, 8);
    }
    bits.code(0, 7);
    bits.end()
}

/// The same as a gzip file (RFC 1952), with a checksum that is not right: nobody should come that far.
pub(super) fn gzip_zeros(count: usize) -> Vec<u8> {
    let mut file = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255];
    file.extend(deflated_zeros(count));
    file.extend([0; 4]);
    file.extend((count as u32).to_le_bytes());
    file
}

/// The same as a zlib stream (RFC 1950), whose checksum is right.
pub(super) fn zlib_zeros(count: usize) -> Vec<u8> {
    let mut stream = vec![0x78, 0x01];
    stream.extend(deflated_zeros(count));
    let adler32 = ((count % 65521) << 16) | 1;
    stream.extend((adler32 as u32).to_be_bytes());
    stream
}

/// A PNG file of these chunks behind its header; the checksums of chunks are right.
pub(super) fn png(width: u32, height: u32, chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut header = [width.to_be_bytes(), height.to_be_bytes()].concat();
    // Eight bits, red green blue.
    header.extend([8, 2, 0, 0, 0]);
    chunk(&mut file, b"IHDR", &header);
    for (kind, data) in chunks {
        chunk(&mut file, kind, data);
    }
    file
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    let start = file.len();
    file.extend(kind);
    file.extend(data);
    let crc = crc32(&file[start..]);
    file.extend(crc.to_be_bytes());
}

fn crc32(bytes: &[u8]) -> u32 {
    let mut table = [0_u32; 256];
    for (at, entry) in (0..).zip(&mut table) {
        *entry = (0..8).fold(at, |c: u32, _| {
            (c >> 1) ^ (0xedb8_8320 & (0_u32.wrapping_sub(c & 1)))
        });
    }
    !bytes.iter().fold(!0, |crc, byte| {
        table[usize::from(crc as u8 ^ byte)] ^ (crc >> 8)
    })
}
