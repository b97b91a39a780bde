//! Large pictures in overlapping tiles, blended where they overlap. Source: `tiled_decode`, `_tiled_encode`, `blend_v`
//! and `blend_h` of `autoencoder_kl.py` of diffusers.
//!
//! Each tile is normalised by itself, so the picture is not the one that a single pass gives; the memory is that of
//! one row of tiles, whatever the picture's size.

use candle_core::{DType, Device, Result, Tensor};

use super::config::VaeConfig;

/// How tiles lie on the input, and what of their output stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Tiles {
    /// Side of a tile of the input.
    pub(super) side: usize,
    /// From one tile's beginning to the next one's, on the input.
    pub(super) stride: usize,
    /// Over how much of the output a tile passes into the next.
    blend: usize,
    /// What one tile gives to the output along a side.
    keep: usize,
}

impl Tiles {
    /// For decoding; nothing if this model's tiles do not fit together.
    pub(super) fn of_latents(config: &VaeConfig) -> Option<Self> {
        let side = config.sample_size / config.factor();
        Self::new(side, config.sample_size)
            .filter(|tiles| tiles.keep == tiles.stride * config.factor())
    }

    /// For encoding; nothing if this model's tiles do not fit together.
    pub(super) fn of_pixels(config: &VaeConfig) -> Option<Self> {
        let side = config.sample_size / config.factor();
        Self::new(config.sample_size, side)
            .filter(|tiles| tiles.stride == tiles.keep * config.factor())
    }

    /// A quarter of each tile overlaps (`tile_overlap_factor`).
    fn new(side: usize, output: usize) -> Option<Self> {
        let (stride, blend) = (side * 3 / 4, output / 4);
        (stride > 0).then_some(Self {
            side,
            stride,
            blend,
            keep: output - blend,
        })
    }

    /// Whether a picture of that size is taken in tiles at all.
    pub(super) fn divide(&self, height: usize, width: usize) -> bool {
        height > self.side || width > self.side
    }

    /// `forward` of each tile of `x` (one picture, height × width × channels), put together on the CPU.
    pub(super) fn apply(
        &self,
        x: &Tensor,
        forward: impl Fn(&Tensor) -> Result<Tensor>,
    ) -> Result<Tensor> {
        let (_, height, width, _) = x.dims4()?;
        let mut above: Vec<Tile> = Vec::new();
        let mut whole: Vec<Tile> = Vec::new();
        for top in (0..height).step_by(self.stride) {
            let strip = x.narrow(1, top, self.side.min(height - top))?;
            let mut row: Vec<Tile> = Vec::new();
            for left in (0..width).step_by(self.stride) {
                let part = strip.narrow(2, left, self.side.min(width - left))?;
                let mut tile = Tile::new(&forward(&part.contiguous()?)?)?;
                if let Some(above) = above.get(row.len()) {
                    tile.blend_below(above, self.blend);
                }
                if let Some(before) = row.last() {
                    tile.blend_right_of(before, self.blend);
                }
                row.push(tile);
            }
            whole.push(Tile::join(&row, self.keep));
            above = row;
        }
        Tile::stack(whole)
    }
}

/// One tile's output: height × width × channels.
#[derive(Debug)]
struct Tile {
    height: usize,
    width: usize,
    channels: usize,
    values: Vec<f32>,
}

impl Tile {
    fn new(x: &Tensor) -> Result<Self> {
        let (_, height, width, channels) = x.dims4()?;
        let x = x.to_device(&Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(Self {
            height,
            width,
            channels,
            values: x.flatten_all()?.to_vec1()?,
        })
    }

    fn pixel(&self, y: usize, x: usize) -> std::ops::Range<usize> {
        let start = (y * self.width + x) * self.channels;
        start..start + self.channels
    }

    /// The first rows pass from the last ones of the tile above into this one's.
    fn blend_below(&mut self, above: &Tile, extent: usize) {
        let extent = extent.min(above.height).min(self.height);
        for y in 0..extent {
            for x in 0..self.width.min(above.width) {
                let from = above.pixel(above.height - extent + y, x);
                self.mix(y, x, &above.values[from], y as f64 / extent as f64);
            }
        }
    }

    /// The first columns pass from the last ones of the tile on the left into this one's.
    fn blend_right_of(&mut self, left: &Tile, extent: usize) {
        let extent = extent.min(left.width).min(self.width);
        for y in 0..self.height.min(left.height) {
            for x in 0..extent {
                let from = left.pixel(y, left.width - extent + x);
                self.mix(y, x, &left.values[from], x as f64 / extent as f64);
            }
        }
    }

    fn mix(&mut self, y: usize, x: usize, other: &[f32], own: f64) {
        let (theirs, ours) = ((1.0 - own) as f32, own as f32);
        let to = self.pixel(y, x);
        for (value, other) in self.values[to].iter_mut().zip(other) {
            *value = other * theirs + *value * ours;
        }
    }

    /// The first `keep` rows of all, the first `keep` columns of each beside the others.
    fn join(row: &[Tile], keep: usize) -> Tile {
        let height = row.iter().map(|tile| tile.height.min(keep)).min();
        let (height, channels) = (
            height.unwrap_or(0),
            row.first().map_or(0, |tile| tile.channels),
        );
        let width = row.iter().map(|tile| tile.width.min(keep)).sum();
        let mut values = Vec::with_capacity(height * width * channels);
        for y in 0..height {
            for tile in row {
                let start = y * tile.width * channels;
                values.extend_from_slice(&tile.values[start..][..tile.width.min(keep) * channels]);
            }
        }
        Tile {
            height,
            width,
            channels,
            values,
        }
    }

    fn stack(rows: Vec<Tile>) -> Result<Tensor> {
        let (width, channels) = rows.first().map_or((0, 0), |row| (row.width, row.channels));
        let height: usize = rows.iter().map(|row| row.height).sum();
        let values: Vec<f32> = rows.into_iter().flat_map(|row| row.values).collect();
        Tensor::from_vec(values, (1, height, width, channels), &Device::Cpu)
    }
}
