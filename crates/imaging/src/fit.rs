//! A picture of any size, made to begin another from.

use image::imageops::{self, FilterType};
use image::{ImageBuffer, Luma, Pixel, Rgb};

/// Cuts `rgb` around its middle to the shape of `to`, and scales it (Lanczos). `None` when the buffer is not
/// `width × height × 3` bytes long or a side is zero.
pub fn fit(width: u32, height: u32, rgb: Vec<u8>, to: (u32, u32)) -> Option<Vec<u8>> {
    fit_as::<Rgb<u8>>(width, height, rgb, to, FilterType::Lanczos3)
}

/// The same for a mask of a byte a pixel, which is not smoothed: there is no half of painted anew.
pub fn fit_mask(width: u32, height: u32, mask: Vec<u8>, to: (u32, u32)) -> Option<Vec<u8>> {
    fit_as::<Luma<u8>>(width, height, mask, to, FilterType::Nearest)
}

fn fit_as<P: Pixel<Subpixel = u8> + 'static>(
    width: u32,
    height: u32,
    bytes: Vec<u8>,
    to: (u32, u32),
    filter: FilterType,
) -> Option<Vec<u8>> {
    let exact = u64::from(width) * u64::from(height) * u64::from(P::CHANNEL_COUNT);
    if width == 0 || height == 0 || to.0 == 0 || to.1 == 0 || bytes.len() as u64 != exact {
        return None;
    }
    if (width, height) == to {
        return Some(bytes);
    }
    let image: ImageBuffer<P, Vec<u8>> = ImageBuffer::from_raw(width, height, bytes)?;
    let (x, y, wide, tall) = middle(width, height, to);
    let cut = imageops::crop_imm(&image, x, y, wide, tall);
    Some(imageops::resize(&*cut, to.0, to.1, filter).into_raw())
}

/// The largest part of the shape of `to` around the middle: left, top, width, height.
fn middle(width: u32, height: u32, to: (u32, u32)) -> (u32, u32, u32, u32) {
    let (w, h) = (u64::from(width), u64::from(height));
    let (tw, th) = (u64::from(to.0), u64::from(to.1));
    let (wide, tall) = if w * th > h * tw {
        ((h * tw / th).max(1), h)
    } else {
        (w, (w * th / tw).max(1))
    };
    // No longer than the sides that they are parts of.
    let (wide, tall) = (wide as u32, tall as u32);
    ((width - wide) / 2, (height - tall) / 2, wide, tall)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_middle_is_what_is_left() {
        // Three columns: red, green, blue.
        let row = [255, 0, 0, 0, 255, 0, 0, 0, 255];
        assert_eq!(fit(3, 1, row.to_vec(), (1, 1)).unwrap(), [0, 255, 0]);
        assert_eq!(fit(3, 1, row.to_vec(), (3, 1)).unwrap(), row);
        assert_eq!(
            fit_mask(2, 1, vec![255, 0], (4, 2)).unwrap(),
            [255, 255, 0, 0, 255, 255, 0, 0]
        );
        assert_eq!(fit(2, 2, vec![0; 3], (1, 1)), None);
    }

    proptest! {
        #[test]
        fn every_size_fits_every_other(w in 1u32..40, h in 1u32..40, tw in 1u32..40, th in 1u32..40) {
            let mask = vec![255; (w * h) as usize];
            let fitted = fit_mask(w, h, mask, (tw, th)).unwrap();
            prop_assert_eq!(fitted.len(), (tw * th) as usize);
            prop_assert!(fitted.iter().all(|value| *value == 255));
        }
    }
}
