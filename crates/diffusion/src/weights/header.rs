//! The header of a safetensors file: JSON that says where each tensor's bytes are.
//!
//! The file may come from anywhere, so each claim is checked before anything is allocated by it.

use std::collections::HashMap;
use std::fmt;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::value::{Error as Unknown, StrDeserializer};
use serde::de::{Error as _, IgnoredAny, IntoDeserializer, MapAccess, Visitor};

/// More dimensions than any tensor of any model has.
const MOST_DIMENSIONS: usize = 16;

/// Where a tensor is.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    /// Where its bytes begin in the file, and how many they are.
    pub(super) start: u64,
    pub(super) length: usize,
}

#[derive(Deserialize)]
struct Info {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

/// Names and what is said about them; a name that comes twice is an error.
struct Infos(HashMap<String, Info>);

impl<'de> Deserialize<'de> for Infos {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Infos;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Infos, A::Error> {
                let mut infos = HashMap::new();
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let info = map.next_value::<Info>().map_err(|error| {
                        A::Error::custom(format_args!("tensor {name}: {error}"))
                    })?;
                    if infos.contains_key(&name) {
                        return Err(A::Error::custom(format_args!("tensor {name} comes twice")));
                    }
                    infos.insert(name, info);
                }
                Ok(Infos(infos))
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// The tensors that a header describes: one after another from `begin`, to the file's end at `length`.
pub(super) fn read(
    header: &[u8],
    begin: u64,
    length: u64,
) -> Result<HashMap<String, Entry>, String> {
    let Infos(infos) = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let mut infos: Vec<(String, Info)> = infos.into_iter().collect();
    infos.sort_by(|(a_name, a), (b_name, b)| {
        (a.data_offsets, a_name).cmp(&(b.data_offsets, b_name))
    });
    let mut end = 0;
    let mut entries = HashMap::with_capacity(infos.len());
    for (name, info) in infos {
        let (from, to) = info.data_offsets;
        if from != end {
            let what = if from < end {
                "overlaps"
            } else {
                "leaves a hole after"
            };
            return Err(format!("tensor {name} {what} the one before it"));
        }
        let name_of_type: StrDeserializer<'_, Unknown> = info.dtype.as_str().into_deserializer();
        let Ok(dtype) = Dtype::deserialize(name_of_type) else {
            return Err(format!(
                "tensor {name} is of the unknown type {:?}",
                info.dtype
            ));
        };
        if info.shape.len() > MOST_DIMENSIONS {
            return Err(format!("tensor {name} has {} dimensions", info.shape.len()));
        }
        let bits = (info.shape.iter()).try_fold(dtype.bitsize() as u64, |bits, side| {
            bits.checked_mul(*side as u64)
        });
        let bytes = to.checked_sub(from);
        if bytes.is_none() || bits != bytes.and_then(|bytes| bytes.checked_mul(8)) {
            return Err(format!(
                "tensor {name} of {:?} {:?} does not fit its offsets {from} to {to}",
                info.dtype, info.shape
            ));
        }
        end = to;
        let start = begin.checked_add(from);
        let (Some(start), Ok(length)) = (start, usize::try_from(to - from)) else {
            return Err(format!("tensor {name} ends beyond any file"));
        };
        entries.insert(
            name,
            Entry {
                dtype,
                shape: info.shape,
                start,
                length,
            },
        );
    }
    if begin.checked_add(end) != Some(length) {
        return Err(format!(
            "it describes {end} bytes of tensors in a file of {length}, {begin} of them before the first tensor"
        ));
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Three tensors: 24, 6 and 0 bytes.
    const GOOD: &str = r#"{"__metadata__":{"format":"pt"},"a.weight":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},"b":{"dtype":"BF16","shape":[3],"data_offsets":[24,30]},"none":{"dtype":"F16","shape":[0,7],"data_offsets":[30,30]}}"#;

    fn refusal(header: &str) -> String {
        read(
            header.as_bytes(),
            8 + header.len() as u64,
            8 + header.len() as u64 + 30,
        )
        .unwrap_err()
    }

    #[test]
    fn a_good_header_says_where_each_tensor_is() {
        let begin = 8 + GOOD.len() as u64;
        let entries = read(GOOD.as_bytes(), begin, begin + 30).unwrap();
        assert_eq!(entries.len(), 3);
        let expected = Entry {
            dtype: Dtype::BF16,
            shape: vec![3],
            start: begin + 24,
            length: 6,
        };
        assert_eq!(entries["b"], expected);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (good, bad, named) in [
            ("BF16", "F99", "tensor b is of the unknown type \"F99\""),
            ("[24,30]", "[20,26]", "tensor b overlaps"),
            ("[24,30]", "[26,32]", "tensor b leaves a hole"),
            (
                "[24,30]",
                "[24,31]",
                "tensor b of \"BF16\" [3] does not fit",
            ),
            ("[24,30]", "[24,20]", "tensor b of"),
            ("[3]", "[4]", "tensor b of"),
            ("[3]", "[-3]", "tensor b: "),
            ("[3]", "[18446744073709551615,2]", "tensor b of"),
            (
                "[0,7]",
                "[0,7,1,1,1,1,1,1,1,1,1,1,1,1,1,1,1]",
                "17 dimensions",
            ),
            (r#""none""#, r#""b""#, "tensor b comes twice"),
            ("[30,30]", "[30]", "tensor none: "),
        ] {
            let text = refusal(&GOOD.replacen(good, bad, 1));
            assert!(text.contains(named), "{bad}: {text}");
        }
        for text in ["", "[]", "{", "null", "{\"a\":1}"] {
            refusal(text);
        }
        let begin = 8 + GOOD.len() as u64;
        assert!(read(GOOD.as_bytes(), begin, begin + 29).is_err());
        assert!(read(GOOD.as_bytes(), u64::MAX - 10, 5).is_err());
    }

    #[test]
    fn nesting_without_end_is_refused() {
        let deep = format!("{{\"a\":{}", "[".repeat(1_000_000));
        refusal(&deep);
        refusal(&format!("{{\"__metadata__\":{}", "[".repeat(1_000_000)));
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 100_000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn a_mutated_header_never_panics_and_never_points_outside_of_the_file(
            places in proptest::collection::vec((0..GOOD.len(), any::<u8>(), 0..6_u8), 1..6),
            length in prop_oneof![Just(30_u64), any::<u64>()],
        ) {
            let mut bytes = GOOD.as_bytes().to_vec();
            for (at, value, what) in places {
                if bytes.is_empty() {
                    break;
                }
                let at = at % bytes.len();
                match what {
                    0 => bytes[at] = value,
                    1 => { bytes.remove(at); }
                    2 => bytes.insert(at, value),
                    // A digit is where the harm is.
                    3 => bytes.insert(at, b'0' + value % 10),
                    4 => bytes.truncate(at + 1),
                    _ => { let copy = bytes[at..].to_vec(); bytes.extend_from_slice(&copy); }
                }
            }
            let begin = 8 + bytes.len() as u64;
            let length = begin.saturating_add(length);
            if let Ok(entries) = read(&bytes, begin, length) {
                for entry in entries.values() {
                    let end = entry.start.checked_add(entry.length as u64);
                    prop_assert!(entry.start >= begin && end.is_some_and(|end| end <= length));
                }
            }
        }
    }
}
