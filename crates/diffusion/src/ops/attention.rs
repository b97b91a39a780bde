//! Softmax attention that never makes the matrix of all queries by all keys.

use candle_core::{D, Result, Tensor};

use super::matmul::{Epilogue, Packed, Target, block};
use super::simd::{Gather, Isa};
use super::{Fast, map_values, threads, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;

/// Scores that a thread holds at once: small enough to stay in its cache.
const SCORES: usize = 48 * 1024;
/// The most queries that a thread takes at once.
const QUERIES: usize = 64;

/// Keys and values of one row of a batch, in the form that attention reads.
#[derive(Clone, Debug)]
pub(crate) struct KeyValue(Form);

#[derive(Clone, Debug)]
enum Form {
    /// For each head: keys (depth × tokens) and values (tokens × depth).
    Packed(Vec<(Packed, Packed)>),
    /// `(tokens, channels)` each.
    Plain(Tensor, Tensor),
}

impl KeyValue {
    /// From keys and values of `(tokens, channels)`.
    pub(crate) fn new(fast: Fast, keys: &Tensor, values: &Tensor, heads: usize) -> Result<Self> {
        if !fast.is_on() {
            return Ok(Self(Form::Plain(keys.contiguous()?, values.contiguous()?)));
        }
        let (tokens, channels) = keys.dims2()?;
        let packed = with_values(keys, |keys| {
            with_values(values, |values| {
                pack(keys, values, tokens, channels, heads, channels)
            })
        })??;
        Ok(Self(Form::Packed(packed)))
    }
}

/// `keys` and `values` begin at their first channel and have `stride` values a token.
fn pack(
    keys: &[f32],
    values: &[f32],
    tokens: usize,
    channels: usize,
    heads: usize,
    stride: usize,
) -> Vec<(Packed, Packed)> {
    let depth = channels / heads;
    (0..heads)
        .map(|head| {
            let at = head * depth;
            let keys = Packed::new(depth, tokens, |k, token| keys[token * stride + at + k]);
            let values = Packed::new(tokens, depth, |token, n| values[token * stride + at + n]);
            (keys, values)
        })
        .collect()
}

/// How queries meet keys.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Heads {
    /// Their number; it divides the channels.
    pub(crate) count: usize,
    /// Whether a token sees only itself and those before it.
    pub(crate) causal: bool,
}

/// Queries `(batch, tokens, channels)` over the keys and values of each row.
pub(crate) fn cross(
    fast: Fast,
    queries: &Tensor,
    context: &[&KeyValue],
    heads: Heads,
) -> Result<Tensor> {
    let (batch, tokens, channels) = queries.dims3()?;
    if context.len() != batch {
        candle_core::bail!("{batch} rows of queries for {} of keys", context.len());
    }
    if !fast.is_on() {
        #[cfg(feature = "cuda")]
        if let Some(y) = cuda::attention::cross(queries, &plain_forms(context)?, heads)? {
            return Ok(y);
        }
        let rows = (context.iter().enumerate())
            .map(|(row, context)| match &context.0 {
                Form::Plain(keys, values) => plain(&queries.get(row)?, keys, values, heads),
                Form::Packed(_) => candle_core::bail!("keys packed for the CPU met another device"),
            })
            .collect::<Result<Vec<_>>>()?;
        return Tensor::stack(&rows, 0);
    }
    let mut packed = Vec::with_capacity(batch);
    for context in context {
        match &context.0 {
            Form::Packed(heads) => packed.push(heads.as_slice()),
            Form::Plain(..) => candle_core::bail!("keys of another device met the CPU"),
        }
    }
    map_values(
        queries,
        &[batch, tokens, channels],
        batch * tokens * channels,
        |queries, out| {
            attend(queries, channels, &packed, tokens, heads, out);
        },
    )
}

#[cfg(feature = "cuda")]
fn plain_forms<'a>(context: &[&'a KeyValue]) -> Result<Vec<(&'a Tensor, &'a Tensor)>> {
    let form = |context: &&'a KeyValue| match &context.0 {
        Form::Plain(keys, values) => Ok((keys, values)),
        Form::Packed(_) => candle_core::bail!("keys packed for the CPU met another device"),
    };
    context.iter().map(form).collect()
}

/// Attention of each row of `(batch, tokens, 3 · channels)`, queries, keys and values beside each other, to itself.
pub(crate) fn own(fast: Fast, qkv: &Tensor, heads: Heads) -> Result<Tensor> {
    let (batch, tokens, all) = qkv.dims3()?;
    let channels = all / 3;
    if !fast.is_on() {
        #[cfg(feature = "cuda")]
        if let Some(y) = cuda::attention::own(qkv, heads)? {
            return Ok(y);
        }
        let part =
            |row: &Tensor, index: usize| row.narrow(1, index * channels, channels)?.contiguous();
        let rows = (0..batch)
            .map(|row| {
                let row = qkv.get(row)?;
                plain(&part(&row, 0)?, &part(&row, 1)?, &part(&row, 2)?, heads)
            })
            .collect::<Result<Vec<_>>>()?;
        return Tensor::stack(&rows, 0);
    }
    map_values(
        qkv,
        &[batch, tokens, channels],
        batch * tokens * channels,
        |qkv, out| {
            let packed = threads::map(batch, |row| {
                let qkv = &qkv[row * tokens * all..];
                pack(
                    &qkv[channels..],
                    &qkv[2 * channels..],
                    tokens,
                    channels,
                    heads.count,
                    all,
                )
            });
            let packed: Vec<&[(Packed, Packed)]> = packed.iter().map(Vec::as_slice).collect();
            attend(qkv, all, &packed, tokens, heads, out);
        },
    )
}

/// `queries` has `stride` values a token, of which the first channels are the query.
fn attend(
    queries: &[f32],
    stride: usize,
    context: &[&[(Packed, Packed)]],
    tokens: usize,
    heads: Heads,
    out: &mut [f32],
) {
    let isa = Isa::best();
    let channels = out.len() / (context.len() * tokens).max(1);
    let depth = channels / heads.count;
    let scale = 1.0 / (depth as f32).sqrt();
    let keys = context
        .iter()
        .filter_map(|heads| heads.first())
        .map(|(keys, _)| keys.width())
        .max()
        .unwrap_or(0);
    // A block never spans two rows of the batch.
    let size = (SCORES / keys.max(1))
        .clamp(isa.rows(), QUERIES)
        .min(tokens);
    let blocks = tokens.div_ceil(size);
    let mut parts: Vec<&mut [f32]> = out
        .chunks_mut(tokens * channels)
        .flat_map(|row| row.chunks_mut(size * channels))
        .collect();
    threads::for_chunks(&mut parts, 1, |index, part| {
        let out = &mut *part[0];
        let (row, first) = (index / blocks, index % blocks * size);
        let count = out.len() / channels;
        for (head, (keys, values)) in context[row].iter().enumerate() {
            let width = keys.width();
            let starts: Vec<usize> = (0..count)
                .map(|token| (row * tokens + first + token) * stride + head * depth)
                .collect();
            let mut scores = vec![0.0; count * width];
            let left = Gather {
                data: queries,
                rows: &starts,
                taps: &[0],
                run: depth,
            };
            let target = Target {
                values: &mut scores,
                stride: width,
                column: 0,
            };
            block(
                isa,
                left,
                keys,
                0..keys.panels(),
                Epilogue::default(),
                0,
                target,
            );
            for (token, scores) in scores.chunks_exact_mut(width).enumerate() {
                if heads.causal {
                    scores[first + token + 1..].fill(f32::NEG_INFINITY);
                }
                super::activation::softmax_row(scores, scale);
            }
            let starts: Vec<usize> = (0..count).map(|token| token * width).collect();
            let left = Gather {
                data: &scores,
                rows: &starts,
                taps: &[0],
                run: width,
            };
            let target = Target {
                values: &mut *out,
                stride: channels,
                column: head * depth,
            };
            block(
                isa,
                left,
                values,
                0..values.panels(),
                Epilogue::default(),
                0,
                target,
            );
        }
    });
}

fn plain(queries: &Tensor, keys: &Tensor, values: &Tensor, heads: Heads) -> Result<Tensor> {
    let (tokens, channels) = queries.dims2()?;
    let depth = channels / heads.count;
    let split = |x: &Tensor| {
        x.reshape(((), heads.count, depth))?
            .transpose(0, 1)?
            .contiguous()
    };
    let (q, k, v) = (split(queries)?, split(keys)?, split(values)?);
    let mut scores = (q.matmul(&k.t()?)? * (depth as f64).powf(-0.5))?;
    if heads.causal {
        let mask: Vec<f32> = (0..tokens)
            .flat_map(|i| (0..tokens).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, tokens, tokens), queries.device())?
            .to_dtype(queries.dtype())?;
        scores = scores.broadcast_add(&mask)?;
    }
    let scores = candle_nn::ops::softmax(&scores, D::Minus1)?;
    scores
        .matmul(&v)?
        .transpose(0, 1)?
        .reshape((tokens, channels))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::tests::{assert_close, tensor};

    #[test]
    fn attention_agrees_with_candle() {
        for (tokens, others, channels, count) in [
            (77, 77, 24, 3),
            (130, 77, 64, 1),
            (700, 33, 40, 4),
            (1, 1, 8, 2),
        ] {
            let qkv = tensor(1, &[2, tokens, 3 * channels]);
            for causal in [false, true] {
                let heads = Heads { count, causal };
                let (ours, reference) = (
                    own(Fast::ON, &qkv, heads).unwrap(),
                    own(Fast::OFF, &qkv, heads).unwrap(),
                );
                assert_close(&ours, &reference, 1e-5);
            }
            let heads = Heads {
                count,
                causal: false,
            };
            let queries = tensor(2, &[2, tokens, channels]);
            let (keys, values) = (
                tensor(3, &[others, channels]),
                tensor(4, &[others, channels]),
            );
            let [ours, reference] = [Fast::ON, Fast::OFF].map(|fast| {
                let context = KeyValue::new(fast, &keys, &values, count).unwrap();
                cross(fast, &queries, &[&context, &context], heads).unwrap()
            });
            assert_close(&ours, &reference, 1e-5);
        }
    }
}
