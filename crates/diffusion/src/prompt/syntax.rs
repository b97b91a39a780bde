//! Brackets, weights, escapes and breaks. Source: `parse_prompt_attention` of stable-diffusion-webui's
//! `modules/prompt_parser.py`; where this differs, the module above says so.

use super::{Limit, MAX_DEPTH, MAX_WEIGHT};

/// What a pair of brackets without a number makes of its words: divided by in square ones.
const BRACKET: f64 = 1.1;
const BREAK: &str = "BREAK";

/// A stretch of a prompt.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Span {
    /// Not empty; neighbours have different weights.
    Text { text: String, weight: f32 },
    /// What follows is in a new chunk.
    Break,
}

/// Reads a weighted prompt. Every text has a meaning: what is not syntax stands for itself.
pub(super) fn parse(text: &str) -> Result<Vec<Span>, Limit> {
    let mut parser = Parser::default();
    let mut rest = text;
    let mut before = None;
    while let Some(next) = rest.chars().next() {
        let length = parser.take(rest, next, before)?;
        let (taken, left) = rest.split_at(length);
        before = taken.chars().next_back();
        rest = left;
    }
    parser.finish()
}

/// A span whose weight still grows.
struct Raw {
    /// `None` is a break.
    text: Option<String>,
    weight: f64,
}

#[derive(Default)]
struct Parser {
    done: Vec<Raw>,
    text: String,
    /// For each open bracket, how many spans were done before it.
    round: Vec<usize>,
    square: Vec<usize>,
}

impl Parser {
    /// Takes in what `rest`, which begins with `next`, begins with; answers how many bytes that is.
    fn take(&mut self, rest: &str, next: char, before: Option<char>) -> Result<usize, Limit> {
        match next {
            '\\' => {
                let escaped = rest[1..].chars().next().filter(|c| "()[]\\".contains(*c));
                self.text.push(escaped.unwrap_or('\\'));
                return Ok(1 + escaped.map_or(0, char::len_utf8));
            }
            '(' | '[' => {
                self.flush();
                if self.round.len() + self.square.len() == MAX_DEPTH {
                    return Err(Limit::Depth);
                }
                let open = if next == '(' {
                    &mut self.round
                } else {
                    &mut self.square
                };
                open.push(self.done.len());
            }
            ':' => match weight(rest) {
                Some((weight, length)) if !self.round.is_empty() => {
                    self.flush();
                    let from = self.round.pop();
                    self.multiply(from, weight);
                    return Ok(length);
                }
                _ => self.text.push(next),
            },
            ')' if !self.round.is_empty() => {
                self.flush();
                let from = self.round.pop();
                self.multiply(from, BRACKET);
            }
            ']' if !self.square.is_empty() => {
                self.flush();
                let from = self.square.pop();
                self.multiply(from, 1.0 / BRACKET);
            }
            'B' if is_break(rest, before) => {
                self.flush();
                self.done.push(Raw {
                    text: None,
                    weight: 1.0,
                });
                return Ok(BREAK.len());
            }
            _ => self.text.push(next),
        }
        Ok(next.len_utf8())
    }

    fn flush(&mut self) {
        if !self.text.is_empty() {
            let text = Some(std::mem::take(&mut self.text));
            self.done.push(Raw { text, weight: 1.0 });
        }
    }

    // Each span is in at most MAX_DEPTH brackets: reading takes time that grows with the length alone.
    fn multiply(&mut self, from: Option<usize>, by: f64) {
        for raw in self.done.iter_mut().skip(from.unwrap_or(usize::MAX)) {
            raw.weight *= by;
        }
    }

    fn finish(mut self) -> Result<Vec<Span>, Limit> {
        self.flush();
        // What is never closed goes on to the end.
        for from in std::mem::take(&mut self.round) {
            self.multiply(Some(from), BRACKET);
        }
        for from in std::mem::take(&mut self.square) {
            self.multiply(Some(from), 1.0 / BRACKET);
        }
        let mut spans: Vec<Span> = Vec::new();
        for Raw { text, weight } in self.done {
            let Some(more) = text else {
                spans.push(Span::Break);
                continue;
            };
            if !(0.0..=f64::from(MAX_WEIGHT)).contains(&weight) {
                return Err(Limit::Weight(weight));
            }
            let own = weight as f32;
            match spans.last_mut() {
                // Words of one weight are cut into tokens together, as if no bracket had been between them.
                Some(Span::Text { text, weight }) if *weight == own => text.push_str(&more),
                _ => spans.push(Span::Text {
                    text: more,
                    weight: own,
                }),
            }
        }
        Ok(spans)
    }
}

/// The number of `:1.3)`, and how many bytes that is.
fn weight(rest: &str) -> Option<(f64, usize)> {
    let number = rest.strip_prefix(':')?.trim_start();
    let unsigned = number.strip_prefix(['+', '-']).unwrap_or(number);
    // Not whatever Rust reads as a number: `inf` and `1e3` are words.
    let after = unsigned.trim_start_matches(|c: char| c.is_ascii_digit() || c == '.');
    let left = after.trim_start().strip_prefix(')')?;
    let number = &number[..number.len() - after.len()];
    Some((number.parse().ok()?, rest.len() - left.len()))
}

/// Whether a word `BREAK` begins here.
fn is_break(rest: &str, before: Option<char>) -> bool {
    let in_word = |c: char| c.is_alphanumeric() || c == '_';
    rest.strip_prefix(BREAK)
        .is_some_and(|after| !before.is_some_and(in_word) && !after.starts_with(in_word))
}
