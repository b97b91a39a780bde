//! CLIP's byte-pair tokenizer, built from `vocab.json` and `merges.txt` as transformers builds it.

use std::path::Path;

use serde_json::{Value, json};

use crate::config;
use crate::error::LoadError;

/// What a word is: contractions, runs of letters, single digits, runs of anything else.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// One encoder's tokenizer.
pub(crate) struct Tokenizer {
    inner: tokenizers::Tokenizer,
    length: usize,
    start: u32,
    end: u32,
    pad: u32,
}

/// A token, and the bytes of the text that it stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) id: u32,
    pub(crate) start: usize,
    pub(crate) end: usize,
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer")
            .field("length", &self.length)
            .field("pad", &self.pad)
            .finish_non_exhaustive()
    }
}

impl Tokenizer {
    /// Reads a tokenizer's folder; `length` is the encoder's number of positions.
    pub(crate) fn read(folder: &Path, length: usize) -> Result<Self, LoadError> {
        let refuse = |reason: String| LoadError::Tokenizer {
            folder: folder.to_owned(),
            reason,
        };
        let settings = read_json(&folder.join("tokenizer_config.json"))?;
        let lowercase = settings
            .get("do_lower_case")
            .and_then(Value::as_bool)
            .unwrap_or(true);
        if !lowercase {
            return Err(refuse(
                "do_lower_case is false, which CLIP's tokenizer does not do".to_owned(),
            ));
        }
        let limit = settings
            .get("model_max_length")
            .and_then(Value::as_u64)
            .unwrap_or(u64::MAX);
        let length = length.min(usize::try_from(limit).unwrap_or(usize::MAX));
        if length < 2 {
            return Err(refuse(format!("model_max_length is {limit}")));
        }
        let [start, end, unknown, pad] = special_tokens(folder, &settings)?;
        let vocabulary = read_json(&folder.join("vocab.json"))?;
        let id = |name: &str| {
            let id = vocabulary
                .get(name)
                .and_then(Value::as_u64)
                .and_then(|id| u32::try_from(id).ok());
            id.ok_or_else(|| refuse(format!("vocab.json has no id for {name:?}")))
        };
        let (start_id, end_id, pad_id) = (id(&start)?, id(&end)?, id(&pad)?);
        let mut added: Vec<(&str, u32)> = vec![
            (&start, start_id),
            (&end, end_id),
            (&unknown, id(&unknown)?),
            (&pad, pad_id),
        ];
        added.sort_by_key(|(_, id)| *id);
        added.dedup();
        let added: Vec<Value> = added
            .into_iter()
            .map(|(content, id)| added_token(content, id))
            .collect();
        let description = json!({
            "version": "1.0",
            "added_tokens": added,
            "normalizer": { "type": "Sequence", "normalizers": [
                { "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " },
                { "type": "Lowercase" },
            ]},
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": WORDS }, "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true },
            ]},
            "post_processor": {
                "type": "RobertaProcessing", "sep": [end, end_id], "cls": [start, start_id],
                "trim_offsets": false, "add_prefix_space": false,
            },
            "decoder": null,
            "model": {
                "type": "BPE", "unk_token": unknown, "continuing_subword_prefix": "", "end_of_word_suffix": "</w>",
                "fuse_unk": false, "vocab": vocabulary, "merges": merges(&folder.join("merges.txt"))?,
            },
        });
        let inner =
            serde_json::from_value(description).map_err(|error| refuse(error.to_string()))?;
        Ok(Self {
            inner,
            length,
            start: start_id,
            end: end_id,
            pad: pad_id,
        })
    }

    /// Token ids, cut or padded to the encoder's length.
    pub(crate) fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let encoding = self
            .inner
            .encode(text, true)
            .map_err(|error| error.to_string())?;
        let mut ids = encoding.get_ids().to_vec();
        if ids.len() > self.length {
            ids.truncate(self.length - 1);
            ids.push(self.end);
        }
        ids.resize(self.length, self.pad);
        Ok(ids)
    }

    /// The tokens of a text of any length, without those of start and end.
    pub(crate) fn pieces(&self, text: &str) -> Result<Vec<Piece>, String> {
        let encoding = (self.inner.encode(text, false)).map_err(|error| error.to_string())?;
        let pieces = encoding.get_ids().iter().zip(encoding.get_offsets());
        Ok(pieces
            .map(|(&id, &(start, end))| Piece { id, start, end })
            .collect())
    }

    /// Token ids between start and end, cut or padded to the encoder's length.
    pub(crate) fn frame(&self, ids: &[u32]) -> Vec<u32> {
        let mut framed = Vec::with_capacity(self.length);
        framed.push(self.start);
        framed.extend_from_slice(&ids[..ids.len().min(self.length - 2)]);
        framed.push(self.end);
        framed.resize(self.length, self.pad);
        framed
    }

    /// Tokens that an encoder sees, those of start and end included.
    pub(crate) fn length(&self) -> usize {
        self.length
    }
}

fn added_token(content: &str, id: u32) -> Value {
    json!({
        "id": id, "content": content, "special": true, "normalized": false,
        "single_word": false, "lstrip": false, "rstrip": false,
    })
}

fn read_json(file: &Path) -> Result<Value, LoadError> {
    let bytes = config::read(file)?;
    serde_json::from_slice(&bytes).map_err(|source| LoadError::Json {
        file: file.to_owned(),
        source,
    })
}

/// Start, end, unknown and padding: from `tokenizer_config.json`, or else `special_tokens_map.json`.
fn special_tokens(folder: &Path, settings: &Value) -> Result<[String; 4], LoadError> {
    let file = folder.join("special_tokens_map.json");
    let map = if file.exists() {
        read_json(&file)?
    } else {
        Value::Null
    };
    let text = |value: &Value| match value {
        Value::String(text) => Some(text.clone()),
        Value::Object(token) => token.get("content")?.as_str().map(str::to_owned),
        _ => None,
    };
    let token = |key: &str, default: &str| {
        let found = settings
            .get(key)
            .and_then(text)
            .or_else(|| map.get(key).and_then(text));
        found.unwrap_or_else(|| default.to_owned())
    };
    Ok([
        token("bos_token", "<|startoftext|>"),
        token("eos_token", "<|endoftext|>"),
        token("unk_token", "<|endoftext|>"),
        token("pad_token", "<|endoftext|>"),
    ])
}

fn merges(file: &Path) -> Result<Vec<(String, String)>, LoadError> {
    let bytes = config::read(file)?;
    (String::from_utf8_lossy(&bytes).lines().enumerate())
        .filter(|(number, line)| !(line.is_empty() || *number == 0 && line.starts_with("#version")))
        .map(|(number, line)| {
            let pair = line
                .split_once(' ')
                .map(|(a, b)| (a.to_owned(), b.to_owned()));
            pair.ok_or_else(|| LoadError::Tokenizer {
                folder: file.to_owned(),
                reason: format!("line {} is not two tokens", number + 1),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden;

    #[test]
    fn the_real_vocabulary_of_clip_gives_the_real_ids() {
        // Thinned by `scripts/golden/vocabulary.py` to what these texts can use; ids and ranks are the real ones.
        let folder = golden::folder().join("clip");
        let tokenizer = Tokenizer::read(&folder, 77).unwrap();
        let recorded = std::fs::read(folder.join("tokens.json")).unwrap();
        let recorded: Vec<(String, Vec<u32>)> = serde_json::from_slice(&recorded).unwrap();
        assert!(recorded.len() > 5);
        for (text, ids) in recorded {
            assert_eq!(tokenizer.encode(&text).unwrap(), ids, "{text:?}");
        }
        let known = [49406, 320, 1125, 539, 320, 2368, 49407, 0];
        let ids = tokenizer.encode("a photo of a cat").unwrap();
        assert_eq!((&ids[..8], ids.len()), (&known[..], 77));
    }

    #[test]
    fn pieces_and_a_frame_are_what_a_short_text_is_encoded_to() {
        for part in ["tokenizer", "tokenizer_2"] {
            let tokenizer = Tokenizer::read(&golden::demo().join(part), 77).unwrap();
            for text in ["", "a 3d cat, really!!", "e\u{301} 熊猫 🐼"] {
                let pieces = tokenizer.pieces(text).unwrap();
                let ids: Vec<u32> = pieces.iter().map(|piece| piece.id).collect();
                assert_eq!(tokenizer.frame(&ids), tokenizer.encode(text).unwrap());
                assert!(
                    pieces
                        .iter()
                        .all(|piece| text.get(piece.start..piece.end).is_some())
                );
            }
            assert_eq!(tokenizer.frame(&[7; 200]).len(), 77);
        }
    }
}
