//! Tensors as the protocol has them: a name, a datatype, a shape, and values, here always flat.

use bytes::Bytes;
use contract::Failure;

use crate::json::shorten;

/// Bytes in front of each element of a `BYTES` tensor: its length, little endian.
const LENGTH_BYTES: usize = 4;
/// The parameter of a tensor whose data is not in the message.
pub(super) const SHARED_MEMORY: &str = "shared_memory_region";
/// The parameter of an output of which only the likeliest classes are wanted.
pub(super) const CLASSIFICATION: &str = "classification";
/// The parameter of a tensor that says what its elements are.
pub(super) const CONTENT_TYPE: &str = "content_type";
/// The one that files have in answers, and no input takes.
pub(super) const BASE64: &str = "base64";

/// The datatypes that an input may have. The protocol has more; no input takes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Datatype {
    Bytes,
    /// Its width in bytes, and whether it has a sign.
    Whole(usize, bool),
    Fp32,
    Fp64,
}

/// The protocol's words.
pub(super) const DATATYPES: &[(&str, Datatype)] = &[
    ("BYTES", Datatype::Bytes),
    ("UINT8", Datatype::Whole(1, false)),
    ("UINT16", Datatype::Whole(2, false)),
    ("UINT32", Datatype::Whole(4, false)),
    ("UINT64", Datatype::Whole(8, false)),
    ("INT8", Datatype::Whole(1, true)),
    ("INT16", Datatype::Whole(2, true)),
    ("INT32", Datatype::Whole(4, true)),
    ("INT64", Datatype::Whole(8, true)),
    ("FP32", Datatype::Fp32),
    ("FP64", Datatype::Fp64),
];

impl Datatype {
    /// The datatype that `text` names, of the input `name`.
    pub(super) fn read(name: &str, text: &str) -> Result<Self, Failure> {
        let known = DATATYPES.iter().find(|(word, _)| *word == text);
        known.map(|(_, datatype)| *datatype).ok_or_else(|| {
            let words: Vec<_> = DATATYPES.iter().map(|(word, _)| *word).collect();
            let (words, shown) = (words.join(", "), shorten(text));
            invalid(
                name,
                format!("the datatype of {name} must be one of {words}, not {shown:?}"),
            )
        })
    }
}

/// Values, in the widest type of their kind.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Values {
    Bytes(Vec<Bytes>),
    Whole(Vec<i128>),
    Real(Vec<f64>),
}

/// An input.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Tensor {
    pub(super) name: String,
    pub(super) shape: Vec<i64>,
    pub(super) values: Values,
}

/// A complaint about an input.
pub(super) fn invalid(name: &str, message: String) -> Failure {
    Failure::invalid(shorten(name), message)
}

/// Refuses an input that is not in its message, or stands there for something else, which would be drawn as it is written. `has` says
/// which parameters it has; `content_type` is the value of [`CONTENT_TYPE`].
pub(super) fn check_input(
    name: &str,
    has: impl Fn(&str) -> bool,
    content_type: Option<&str>,
) -> Result<(), Failure> {
    let shown = shorten(name);
    let message = if has(SHARED_MEMORY) {
        format!("{shown} must come with the request: there is no shared memory")
    } else if content_type == Some(BASE64) {
        format!("{shown} must be the text itself, not {CONTENT_TYPE} {BASE64}")
    } else {
        return Ok(());
    };
    Err(invalid(&shown, message))
}

/// Refuses an output that is asked for in a way in which none is answered: who asked so would read something else. `has` says which
/// parameters it has.
pub(super) fn check_output(name: &str, has: impl Fn(&str) -> bool) -> Result<(), Failure> {
    let shown = shorten(name);
    let message = if has(SHARED_MEMORY) {
        format!("{shown} must come with the answer: there is no shared memory")
    } else if has(CLASSIFICATION) {
        format!("{shown} has no classes: leave the parameter {CLASSIFICATION} out")
    } else {
        return Ok(());
    };
    Err(invalid(&shown, message))
}

/// Reads the raw form of an input: numbers in little endian one behind the other, texts each behind its length.
pub(super) fn read_raw(name: &str, datatype: Datatype, raw: &Bytes) -> Result<Values, Failure> {
    match datatype {
        Datatype::Bytes => Ok(Values::Bytes(read_texts(name, raw)?)),
        Datatype::Whole(width, signed) => {
            let whole = |chunk: &[u8]| whole(chunk, signed);
            Ok(Values::Whole(
                numbers(name, raw, width)?.map(whole).collect(),
            ))
        }
        Datatype::Fp32 => {
            let real = |chunk: &[u8]| f64::from(f32::from_le_bytes(first(chunk)));
            Ok(Values::Real(numbers(name, raw, 4)?.map(real).collect()))
        }
        Datatype::Fp64 => {
            let real = |chunk: &[u8]| f64::from_le_bytes(first(chunk));
            Ok(Values::Real(numbers(name, raw, 8)?.map(real).collect()))
        }
    }
}

fn numbers<'a>(
    name: &str,
    raw: &'a Bytes,
    width: usize,
) -> Result<std::slice::ChunksExact<'a, u8>, Failure> {
    if raw.len().is_multiple_of(width) {
        return Ok(raw.chunks_exact(width));
    }
    let bytes = raw.len();
    let message = format!("{name} has {bytes} bytes, which are no multiple of {width}");
    Err(invalid(name, message))
}

/// The first bytes of a chunk that has as many.
fn first<const N: usize>(chunk: &[u8]) -> [u8; N] {
    let mut bytes = [0; N];
    bytes.copy_from_slice(&chunk[..N]);
    bytes
}

fn whole(chunk: &[u8], signed: bool) -> i128 {
    let negative = signed && chunk.last().is_some_and(|top| top & 0x80 != 0);
    let mut wide = if negative { [0xff; 16] } else { [0; 16] };
    wide[..chunk.len()].copy_from_slice(chunk);
    i128::from_le_bytes(wide)
}

fn read_texts(name: &str, raw: &Bytes) -> Result<Vec<Bytes>, Failure> {
    let mut texts = Vec::new();
    let mut at = 0;
    while at < raw.len() {
        let start = at + LENGTH_BYTES;
        let length = raw
            .get(at..start)
            .map(|l| u32::from_le_bytes(first(l)) as usize);
        let end = length.and_then(|length| start.checked_add(length));
        let Some(end) = end.filter(|end| *end <= raw.len()) else {
            let message = format!("{name} ends in the middle of its element {}", texts.len());
            return Err(invalid(name, message));
        };
        texts.push(raw.slice(start..end));
        at = end;
    }
    Ok(texts)
}

/// Writes texts in their raw form.
pub(super) fn write_texts(texts: &[Bytes]) -> Vec<u8> {
    let all = texts.iter().map(|text| LENGTH_BYTES + text.len()).sum();
    let mut raw = Vec::with_capacity(all);
    for text in texts {
        // Pictures and ids: far below 4 GiB.
        raw.extend((text.len() as u32).to_le_bytes());
        raw.extend_from_slice(text);
    }
    raw
}

impl Tensor {
    /// How many elements there are, once shape and values agree and the shape is that of a batch: `[n]`, or `[n, 1]` as
    /// clients of Triton send it, or none at all for one.
    pub(super) fn batch(&self) -> Result<usize, Failure> {
        let name = shorten(&self.name);
        let given = match &self.values {
            Values::Bytes(values) => values.len(),
            Values::Whole(values) => values.len(),
            Values::Real(values) => values.len(),
        };
        let batch = match self.shape[..] {
            [] => 1,
            [batch] | [batch, 1] => batch,
            _ => {
                let shape = &self.shape[..self.shape.len().min(8)];
                let message = format!("the shape of {name} must be [n] or [n, 1], not {shape:?}");
                return Err(invalid(&name, message));
            }
        };
        if i64::try_from(given) != Ok(batch) || given == 0 {
            let message =
                format!("the shape of {name} says {batch} elements and its data has {given}");
            return Err(invalid(&name, message));
        }
        Ok(given)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn raw(datatype: &str, bytes: &[u8]) -> Result<Values, Failure> {
        let datatype = Datatype::read("X", datatype).unwrap();
        read_raw("X", datatype, &Bytes::copy_from_slice(bytes))
    }

    #[test]
    fn raw_numbers_are_read_in_little_endian_with_their_sign() {
        assert_eq!(raw("INT8", &[0xff, 1]).unwrap(), Values::Whole(vec![-1, 1]));
        assert_eq!(raw("UINT8", &[0xff]).unwrap(), Values::Whole(vec![255]));
        assert_eq!(
            raw("INT32", &(-5i32).to_le_bytes()).unwrap(),
            Values::Whole(vec![-5])
        );
        let most = u64::MAX.to_le_bytes();
        assert_eq!(
            raw("UINT64", &most).unwrap(),
            Values::Whole(vec![i128::from(u64::MAX)])
        );
        assert_eq!(
            raw("FP32", &2.5f32.to_le_bytes()).unwrap(),
            Values::Real(vec![2.5])
        );
        assert_eq!(
            raw("FP64", &0.1f64.to_le_bytes()).unwrap(),
            Values::Real(vec![0.1])
        );
        let failure = raw("INT32", &[0; 5]).unwrap_err();
        assert_eq!(failure.field.as_deref(), Some("X"));
    }

    #[test]
    fn a_datatype_that_no_input_takes_is_answered_with_those_that_are() {
        let failure = Datatype::read("SEED", "FP8").unwrap_err();
        assert!(failure.message.contains("UINT64") && failure.message.contains("FP8"));
    }

    #[test]
    fn a_batch_has_as_many_elements_as_its_shape_says() {
        let with = |shape: &[i64], count: usize| {
            let (name, shape) = ("X".to_owned(), shape.to_vec());
            let values = Values::Whole(vec![0; count]);
            Tensor {
                name,
                shape,
                values,
            }
            .batch()
            .ok()
        };
        assert_eq!(with(&[], 1), Some(1));
        assert_eq!(with(&[3], 3), Some(3));
        assert_eq!(with(&[3, 1], 3), Some(3));
        for (shape, count) in [
            (&[2][..], 3),
            (&[1, 3], 3),
            (&[0], 0),
            (&[-1], 1),
            (&[1, 1, 1], 1),
        ] {
            assert_eq!(with(shape, count), None, "{shape:?}");
        }
    }

    proptest! {
        #[test]
        fn texts_read_back_as_written(texts in proptest::collection::vec("\\PC{0,9}", 0..5)) {
            let texts: Vec<Bytes> = texts.into_iter().map(Bytes::from).collect();
            let raw = Bytes::from(write_texts(&texts));
            prop_assert_eq!(read_texts("X", &raw).unwrap(), texts);
        }

        #[test]
        fn no_bytes_make_the_reader_panic(
            bytes in proptest::collection::vec(any::<u8>(), 0..60),
            which in 0..DATATYPES.len(),
        ) {
            let _ = read_raw("X", DATATYPES[which].1, &Bytes::from(bytes));
        }
    }
}
