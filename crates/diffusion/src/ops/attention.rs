//! Softmax attention that never makes the matrix of all queries by all keys: keys are met a block at a time, under a
//! running maximum and sum of each query. Source: Milakov and Gimelshein, "Online normalizer calculation for softmax"
//! (2018).
#![allow(unsafe_code)]

use candle_core::{D, DType, Result, Tensor};

use super::matmul::{Packed, multiply};
use super::simd::{Gather, Isa, PANEL, Sums, vectorised};
use super::vector::{Eight, LANES, by_eight, exp};
use super::{Fast, map_values, pool, threads, with_values};
#[cfg(feature = "cuda")]
use crate::cuda;

/// The most queries that a thread takes at once, of one head.
const QUERIES: usize = 96;
/// Panels of keys that are met at once. Where the blocks begin is part of the result's definition.
const PANELS: usize = 4;

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
    threads::map(heads, |head| {
        let at = head * depth;
        let keys = Packed::new(depth, tokens, |k, token| keys[token * stride + at + k]);
        let values = Packed::new(tokens, depth, |token, n| values[token * stride + at + n]);
        (keys, values)
    })
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
            attend(Isa::best(), queries, channels, &packed, tokens, heads, out);
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
            let packed: Vec<_> = (0..batch)
                .map(|row| {
                    let qkv = &qkv[row * tokens * all..];
                    let (keys, values) = (&qkv[channels..], &qkv[2 * channels..]);
                    pack(keys, values, tokens, channels, heads.count, all)
                })
                .collect();
            let packed: Vec<&[(Packed, Packed)]> = packed.iter().map(Vec::as_slice).collect();
            attend(Isa::best(), qkv, all, &packed, tokens, heads, out);
        },
    )
}

/// `queries` has `stride` values a token, of which the first channels are the query.
fn attend(
    isa: Isa,
    queries: &[f32],
    stride: usize,
    context: &[&[(Packed, Packed)]],
    tokens: usize,
    heads: Heads,
    out: &mut [f32],
) {
    let channels = out.len() / (context.len() * tokens).max(1);
    let depth = channels / heads.count;
    let size = QUERIES.min(tokens).max(1);
    let blocks = tokens.div_ceil(size);
    let out = threads::Shared::new(out);
    threads::each(context.len() * heads.count * blocks, |index| {
        let (row, head) = (index / blocks / heads.count, index / blocks % heads.count);
        let first = index % blocks * size;
        let count = size.min(tokens - first);
        let (keys, values) = &context[row][head];
        let at =
            |token: usize, stride: usize| (row * tokens + first + token) * stride + head * depth;
        let starts: Vec<usize> = (0..count).map(|token| at(token, stride)).collect();
        let mut block = Block {
            queries: Gather {
                data: queries,
                rows: &starts,
                taps: &[0],
                run: depth,
            },
            scale: 1.0 / (depth as f32).sqrt(),
            first: heads.causal.then_some(first),
            scores: pool::take(PANELS * count * PANEL),
            sums: pool::take(values.panels() * count * PANEL),
            running: vec![Running::default(); count],
        };
        block.run(isa, keys, values);
        for token in 0..count {
            // SAFETY: each index has its own tokens and channels.
            let out = unsafe { out.part(at(token, channels), depth) };
            block.finish(token, out);
        }
    });
}

/// What is known of a query after some keys.
#[derive(Clone, Copy)]
struct Running {
    /// The highest score, before scaling.
    top: f32,
    /// The sum of the exponentials, relative to `top`.
    total: f32,
    /// What the sums before the last block are to be multiplied with.
    fade: f32,
}

impl Default for Running {
    fn default() -> Self {
        Self {
            top: f32::NEG_INFINITY,
            total: 0.0,
            fade: 1.0,
        }
    }
}

/// Some queries of one head on their way through the keys.
struct Block<'a> {
    queries: Gather<'a>,
    scale: f32,
    /// The number of the first query, where a query sees only keys up to its own number.
    first: Option<usize>,
    /// (panel of keys, query, key): scores, then their exponentials.
    scores: pool::Buffer,
    /// (panel of channels, query, channel): weighted sums of values.
    sums: pool::Buffer,
    running: Vec<Running>,
}

impl Block<'_> {
    fn run(&mut self, isa: Isa, keys: &Packed, values: &Packed) {
        let count = self.running.len();
        let rows: Vec<usize> = (0..count).map(|query| query * PANEL).collect();
        self.sums.fill(0.0);
        for panel in (0..keys.panels()).step_by(PANELS) {
            let first = panel * PANEL;
            let width = (PANELS * PANEL).min(keys.width() - first);
            if self.first.is_some_and(|query| query + count <= first) {
                break;
            }
            let scores = self.scores.as_chunks_mut::<PANEL>().0;
            for (index, scores) in scores
                .chunks_mut(count)
                .take(width.div_ceil(PANEL))
                .enumerate()
            {
                let columns = PANEL.min(width - index * PANEL);
                let keys = keys.run().panel(panel + index);
                multiply(isa, self.queries, keys, columns, false, scores);
            }
            let causal = self.first.map(|query| (query + 1).wrapping_sub(first));
            weigh(isa, scores, &mut self.running, width, causal, self.scale);
            let sums = self.sums.as_chunks_mut::<PANEL>().0;
            for (index, sums) in sums.chunks_mut(count).enumerate() {
                fade(sums, &self.running);
                let columns = PANEL.min(values.width() - index * PANEL);
                let values = &values.run().panel(index)[first * PANEL..];
                add_values(isa, &self.scores, &rows, width, values, columns, sums);
            }
        }
    }

    /// A query's result.
    fn finish(&self, query: usize, out: &mut [f32]) {
        let count = self.running.len();
        let factor = 1.0 / self.running[query].total;
        let sums = self.sums.as_chunks::<PANEL>().0;
        for (out, sums) in out.chunks_mut(PANEL).zip(sums.chunks_exact(count)) {
            for (out, sum) in out.iter_mut().zip(&sums[query]) {
                *out = sum * factor;
            }
        }
    }
}

/// Adds the values of `width` keys, weighted, to `sums`.
fn add_values(
    isa: Isa,
    weights: &[f32],
    rows: &[usize],
    width: usize,
    values: &[f32],
    columns: usize,
    sums: &mut [Sums],
) {
    let taps: [usize; PANELS] = std::array::from_fn(|panel| panel * rows.len() * PANEL);
    let (whole, rest) = (width / PANEL, width % PANEL);
    for (taps, run, from) in [
        (&taps[..whole], PANEL, 0),
        (&taps[whole..], rest, whole * PANEL),
    ] {
        if run == 0 || taps.is_empty() {
            continue;
        }
        let left = Gather {
            data: weights,
            rows,
            taps: &taps[..if run == PANEL { whole } else { 1 }],
            run,
        };
        multiply(isa, left, &values[from * PANEL..], columns, true, sums);
    }
}

by_eight! {
    /// Turns each query's scores for the next `width` keys into exponentials relative to the highest score so far.
    /// With `causal`, query `i` sees the first `causal + i` keys of these (as a wrapped number: perhaps none).
    fn weigh<V>(
        scores: &mut [Sums],
        running: &mut [Running],
        width: usize,
        causal: Option<usize>,
        scale: f32,
    ) {
        let count = running.len();
        let scores = &mut scores[..width.div_ceil(PANEL) * count];
        for (query, running) in running.iter_mut().enumerate() {
            let seen = match causal {
                None => width,
                Some(from) => (from.wrapping_add(query) as isize).clamp(0, width as isize) as usize,
            };
            let mut most = [V::splat(f32::NEG_INFINITY); PANEL / LANES];
            for (panel, scores) in scores.chunks_exact_mut(count).enumerate() {
                let scores = &mut scores[query];
                if seen < (panel + 1) * PANEL {
                    scores[seen.saturating_sub(panel * PANEL)..].fill(f32::NEG_INFINITY);
                }
                for (most, x) in most.iter_mut().zip(scores.as_chunks::<LANES>().0) {
                    *most = V::load(x).max(*most);
                }
            }
            let most = most[0].max(most[1]).max(most[2].max(most[3]));
            let mut top = running.top;
            for x in lanes(most) {
                top = if x > top { x } else { top };
            }
            let (highest, factor) = (V::splat(top), V::splat(scale));
            let mut sums = [V::splat(0.0); PANEL / LANES];
            for (panel, scores) in scores.chunks_exact_mut(count).enumerate() {
                let scores = &mut scores[query];
                for (sum, x) in sums.iter_mut().zip(scores.as_chunks_mut::<LANES>().0) {
                    let y = exp(V::load(x).sub(highest).mul(factor));
                    *sum = sum.add(y);
                    y.store(x);
                }
                if seen < (panel + 1) * PANEL {
                    // The exponential of minus infinity is only nearly zero here.
                    scores[seen.saturating_sub(panel * PANEL)..].fill(0.0);
                }
            }
            let mut total = 0.0;
            for sum in lanes(sums[0].add(sums[1]).add(sums[2].add(sums[3]))) {
                total += sum;
            }
            let faded = V::splat(running.top).sub(highest).mul(factor);
            running.fade = if top > running.top { lanes(exp(faded))[0] } else { 1.0 };
            running.total = running.total * running.fade + total;
            running.top = top;
        }
    }
}

#[inline(always)]
fn lanes<V: Eight>(x: V) -> [f32; LANES] {
    let mut values = [0.0; LANES];
    x.store(&mut values);
    values
}

vectorised! {
    fn fade(sums: &mut [Sums], running: &[Running]) {
        for (sums, running) in sums.iter_mut().zip(running) {
            if running.fade != 1.0 {
                for sum in sums {
                    *sum *= running.fade;
                }
            }
        }
    }
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
    // Scaled before the product, which in f16 could be too large, and in f32 before the sum of exponentials.
    let mut scores = (q * (depth as f64).powf(-0.5))?
        .matmul(&k.t()?)?
        .to_dtype(DType::F32)?;
    if heads.causal {
        let mask: Vec<f32> = (0..tokens)
            .flat_map(|i| (0..tokens).map(move |j| if j > i { f32::NEG_INFINITY } else { 0.0 }))
            .collect();
        let mask = Tensor::from_vec(mask, (1, tokens, tokens), queries.device())?;
        scores = scores.broadcast_add(&mask)?;
    }
    let scores = candle_nn::ops::softmax(&scores, D::Minus1)?.to_dtype(queries.dtype())?;
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

    #[test]
    fn each_instruction_set_computes_it() {
        let (tokens, channels, count) = (300, 48, 2);
        let qkv = tensor(5, &[1, tokens, 3 * channels]);
        for causal in [false, true] {
            let heads = Heads { count, causal };
            let reference = own(Fast::OFF, &qkv, heads).unwrap();
            let values: Vec<f32> = qkv.flatten_all().unwrap().to_vec1().unwrap();
            let (keys, others) = (&values[channels..], &values[2 * channels..]);
            let packed = pack(keys, others, tokens, channels, count, 3 * channels);
            for isa in Isa::supported() {
                let mut out = vec![0.0; tokens * channels];
                attend(
                    isa,
                    &values,
                    3 * channels,
                    &[&packed],
                    tokens,
                    heads,
                    &mut out,
                );
                let out = Tensor::from_vec(out, reference.shape(), qkv.device()).unwrap();
                assert_close(&out, &reference, 1e-5);
            }
        }
    }

    #[test]
    fn a_row_has_the_same_bits_alone_and_in_company() {
        let qkv = tensor(6, &[3, 205, 3 * 72]);
        for causal in [false, true] {
            let heads = Heads { count: 3, causal };
            let together = own(Fast::ON, &qkv, heads).unwrap();
            for row in 0..3 {
                let alone = own(Fast::ON, &qkv.narrow(0, row, 1).unwrap(), heads).unwrap();
                assert_close(&alone, &together.narrow(0, row, 1).unwrap(), 0.0);
            }
        }
    }

    #[test]
    fn high_scores_late_in_the_row_replace_what_was_summed_before() {
        let (tokens, channels) = (600, 16);
        let ramp: Vec<f32> = (0..tokens * channels)
            .map(|index| (index / channels) as f32 * 0.02)
            .collect();
        let keys = Tensor::from_vec(ramp, (tokens, channels), &candle_core::Device::Cpu).unwrap();
        let values = tensor(7, &[tokens, channels]);
        let queries = (tensor(8, &[1, 9, channels]).abs().unwrap() * 2.0).unwrap();
        let heads = Heads {
            count: 1,
            causal: false,
        };
        let [ours, reference] = [Fast::ON, Fast::OFF].map(|fast| {
            let context = KeyValue::new(fast, &keys, &values, 1).unwrap();
            cross(fast, &queries, &[&context], heads).unwrap()
        });
        assert_close(&ours, &reference, 2e-5);
    }
}
