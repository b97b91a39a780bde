//! Cutting a prompt into what the encoders see in one pass.
//!
//! As `tokenize_line` of stable-diffusion-webui's `modules/sd_hijack_clip.py`, with its default of moving a last phrase of
//! up to 20 tokens over to the next chunk rather than cutting it. But the unit is not a token of one encoder: it is the
//! shortest stretch of text that both encoders cut into whole tokens.

use std::ops::Range;

use super::syntax::Span;
use super::{Chunk, Limit, MAX_CHUNKS, Prompt, both};
use crate::tokenizer::{Piece, Tokenizer};

/// How far back a comma may be for the cut to be there, in tokens.
const COMMA_REACH: usize = 20;

/// Why there are no chunks.
#[derive(Debug)]
pub(super) enum Stop {
    Limit(Limit),
    Tokenizer(String),
}

/// The chunks of both encoders, at least one.
pub(super) fn cut(tokenizers: &[Tokenizer; 2], spans: &[Span]) -> Result<Prompt, Stop> {
    // Of the positions, one is the start's and one the end's.
    let room = tokenizers[0].length().min(tokenizers[1].length()) - 2;
    let mut cutter = Cutter {
        tokenizers,
        room,
        chunks: Vec::new(),
        open: Open::default(),
        comma: None,
    };
    for span in spans {
        match span {
            Span::Break => cutter.close()?,
            // An encoder of two positions sees no text, whatever it is.
            Span::Text { .. } if room == 0 => {}
            Span::Text { text, weight } => cutter.text(text, *weight)?,
        }
    }
    if cutter.chunks.is_empty() || !cutter.open.is_empty() {
        cutter.close()?;
    }
    Ok(Prompt {
        chunks: cutter.chunks,
    })
}

/// The tokens of a chunk that is not full yet, for each encoder.
#[derive(Default)]
struct Open {
    ids: [Vec<u32>; 2],
    weights: [Vec<f32>; 2],
}

impl Open {
    fn lengths(&self) -> [usize; 2] {
        [self.ids[0].len(), self.ids[1].len()]
    }

    fn is_empty(&self) -> bool {
        self.lengths() == [0, 0]
    }

    fn push(&mut self, which: usize, pieces: &[Piece], weight: f32) {
        self.ids[which].extend(pieces.iter().map(|piece| piece.id));
        self.weights[which].resize(self.ids[which].len(), weight);
    }

    fn split_off(&mut self, at: [usize; 2]) -> Self {
        let mut rest = Self::default();
        for (which, at) in at.into_iter().enumerate() {
            rest.ids[which] = self.ids[which].split_off(at);
            rest.weights[which] = self.weights[which].split_off(at);
        }
        rest
    }
}

struct Cutter<'a> {
    tokenizers: &'a [Tokenizer; 2],
    /// Tokens of text that a chunk holds.
    room: usize,
    chunks: Vec<[Chunk; 2]>,
    open: Open,
    /// How long the open chunk was after its last comma.
    comma: Option<[usize; 2]>,
}

impl Cutter<'_> {
    fn text(&mut self, text: &str, weight: f32) -> Result<(), Stop> {
        let pieces = both(self.tokenizers, |tokenizer| tokenizer.pieces(text));
        let pieces = pieces.map_err(Stop::Tokenizer)?;
        for [first, second] in units(&pieces) {
            let comma = first.len() == 1 && second.len() == 1 && {
                let piece = &pieces[0][first.start];
                text.get(piece.start..piece.end) == Some(",")
            };
            self.unit([&pieces[0][first], &pieces[1][second]], weight, comma)?;
        }
        Ok(())
    }

    fn unit(&mut self, mut pieces: [&[Piece]; 2], weight: f32, is_comma: bool) -> Result<(), Stop> {
        if !self.fits(&pieces) {
            match self.comma.filter(|cut| !is_comma && self.reaches(*cut)) {
                Some(cut) => {
                    let rest = self.open.split_off(cut);
                    self.close()?;
                    self.open = rest;
                }
                None if self.open.is_empty() => {}
                None => self.close()?,
            }
        }
        // Still too long after a comma's cut, or longer than a whole chunk: then there is no place where both can be cut.
        while !self.fits(&pieces) {
            if self.open.is_empty() {
                for (which, pieces) in pieces.iter_mut().enumerate() {
                    let (head, rest) = pieces.split_at(pieces.len().min(self.room));
                    self.open.push(which, head, weight);
                    *pieces = rest;
                }
            }
            self.close()?;
        }
        for (which, pieces) in pieces.iter().enumerate() {
            self.open.push(which, pieces, weight);
        }
        if is_comma {
            self.comma = Some(self.open.lengths());
        }
        Ok(())
    }

    fn fits(&self, pieces: &[&[Piece]; 2]) -> bool {
        (self.open.lengths().iter().zip(pieces))
            .all(|(length, pieces)| length + pieces.len() <= self.room)
    }

    fn reaches(&self, cut: [usize; 2]) -> bool {
        (self.open.lengths().iter().zip(cut)).all(|(length, cut)| length - cut < COMMA_REACH)
    }

    /// Ends the open chunk.
    fn close(&mut self) -> Result<(), Stop> {
        if self.chunks.len() == MAX_CHUNKS {
            return Err(Stop::Limit(Limit::Chunks { room: self.room }));
        }
        self.comma = None;
        let Open { ids, weights } = std::mem::take(&mut self.open);
        let [first, second] = ids;
        let [first_weights, second_weights] = weights;
        self.chunks.push([
            framed(&self.tokenizers[0], &first, &first_weights),
            framed(&self.tokenizers[1], &second, &second_weights),
        ]);
        Ok(())
    }
}

fn framed(tokenizer: &Tokenizer, ids: &[u32], weights: &[f32]) -> Chunk {
    let mut chunk = Chunk::unweighted(tokenizer.frame(ids));
    // After the start.
    for (place, weight) in chunk.weights.iter_mut().skip(1).zip(weights) {
        *place = *weight;
    }
    chunk
}

/// The shortest stretches that both encoders cut into whole tokens, as ranges of their pieces.
fn units(pieces: &[Vec<Piece>; 2]) -> Vec<[Range<usize>; 2]> {
    let [first, second] = [&pieces[0], &pieces[1]].map(|pieces| starts(pieces));
    let mut units = Vec::new();
    let mut from = [0, 0];
    let mut cut = |to: [usize; 2]| {
        if from != to {
            units.push([from[0]..to[0], from[1]..to[1]]);
        }
        from = to;
    };
    let mut others = second.iter().peekable();
    for (place, index) in first {
        while others.next_if(|(other, _)| *other < place).is_some() {}
        if let Some((_, other)) = others.next_if(|(other, _)| *other == place) {
            cut([index, *other]);
        }
    }
    cut([pieces[0].len(), pieces[1].len()]);
    units
}

/// Where in the text, and at which piece, a new piece begins; not inside a character that several pieces share.
fn starts(pieces: &[Piece]) -> Vec<(usize, usize)> {
    (pieces.windows(2).enumerate())
        .filter(|(_, pair)| pair[0].end <= pair[1].start)
        .map(|(index, pair)| (pair[1].start, index + 1))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pieces(ends: &[usize]) -> Vec<Piece> {
        let mut start = 0;
        ends.iter()
            .map(|&end| {
                let piece = Piece { id: 0, start, end };
                start = end;
                piece
            })
            .collect()
    }

    #[test]
    fn a_unit_is_what_both_encoders_cut_into_whole_tokens() {
        let both = [pieces(&[1, 2, 5, 7]), pieces(&[2, 4, 5, 6, 7])];
        assert_eq!(units(&both), [[0..2, 0..1], [2..3, 1..3], [3..4, 3..5]]);
    }

    #[test]
    fn tokens_that_share_a_character_are_not_torn_apart() {
        let shared = |id| Piece {
            id,
            start: 1,
            end: 5,
        };
        let mut one = pieces(&[1]);
        one.extend([shared(1), shared(2), shared(3)]);
        assert_eq!(units(&[one.clone(), one]), [[0..1, 0..1], [1..4, 1..4]]);
    }

    #[test]
    fn what_only_one_encoder_has_a_token_for_is_still_a_unit() {
        assert_eq!(units(&[pieces(&[3]), vec![]]), [[0..1, 0..0]]);
        assert!(units(&[vec![], vec![]]).is_empty());
    }
}
