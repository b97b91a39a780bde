//! What may be asked of a model, and whether a request stays within.

use super::Model;
use crate::error::BeginError;
use crate::given::{MicroConditioning, Size};
use crate::job::Request;

/// The longest side of a picture, in pixels.
pub(super) const MAX_SIDE: u32 = 8192;
/// The most guidance that a request may ask for.
const MAX_GUIDANCE: f32 = 1000.0;
/// The longest side, and the most that is cut off, that a picture may be said to have, in pixels.
const MAX_TOLD: u32 = 65_536;
/// The best aesthetic score.
const MAX_SCORE: f32 = 10.0;

/// What a model can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Width and height are multiples of this, in pixels, and at least this.
    pub size_multiple: u32,
    /// The longest side, in pixels. What fits into memory is the caller's to know.
    pub max_side: u32,
    /// The width that the model was trained on, in pixels.
    pub default_width: u32,
    /// The height that the model was trained on, in pixels.
    pub default_height: u32,
    /// The longest prompt, in tokens, those of start and end included; what is beyond is not seen.
    pub max_prompt_tokens: u32,
    /// The most steps.
    pub max_steps: u32,
    /// Whether it draws only from a picture or from latents: a refiner, or a model for inpainting.
    pub needs_image: bool,
    /// Whether it draws only under a mask.
    pub needs_mask: bool,
}

fn refuse<T>(
    field: &'static str,
    value: impl ToString,
    reason: impl Into<String>,
) -> Result<T, BeginError> {
    Err(BeginError::Parameter {
        field,
        value: value.to_string(),
        reason: reason.into(),
    })
}

impl Model {
    /// Refuses what no job of this model can have, whether it begins or goes on.
    pub(super) fn check(&self, request: &Request) -> Result<(), BeginError> {
        let Limits {
            size_multiple,
            max_side,
            ..
        } = self.limits;
        for (field, side) in [("width", request.width), ("height", request.height)] {
            if side == 0 || side % size_multiple != 0 || side > max_side {
                let reason = format!("expected a multiple of {size_multiple} up to {max_side}");
                return refuse(field, side, reason);
            }
        }
        for (field, value, most) in [
            ("guidance_scale", request.guidance_scale, MAX_GUIDANCE),
            ("guidance_rescale", request.guidance_rescale, 1.0),
        ] {
            if !(0.0..=most).contains(&value) {
                return refuse(field, value, format!("expected 0 to {most}"));
            }
        }
        check_told(&request.conditioning, OF_PROMPT)?;
        match &request.negative_conditioning {
            Some(conditioning) => check_told(conditioning, OF_NEGATIVE),
            None => Ok(()),
        }
    }

    /// Refuses what cannot begin: pictures of another size, or that do not go together.
    pub(super) fn check_begin(&self, request: &Request) -> Result<(), BeginError> {
        self.check(request)?;
        let expected = format!(
            "expected the request's {} × {}",
            request.width, request.height
        );
        let fits = |width, height, length: usize, channels: usize| {
            let pixels = request.width as usize * request.height as usize;
            (width, height) == (request.width, request.height) && length == pixels * channels
        };
        if let Some(image) = &request.image
            && !fits(image.width, image.height, image.pixels.len(), 3)
        {
            let value = format!(
                "{} × {}, {} bytes",
                image.width,
                image.height,
                image.pixels.len()
            );
            return refuse("image", value, format!("{expected}, three bytes a pixel"));
        }
        if let Some(mask) = &request.mask
            && !fits(mask.width, mask.height, mask.values.len(), 1)
        {
            let value = format!(
                "{} × {}, {} bytes",
                mask.width,
                mask.height,
                mask.values.len()
            );
            return refuse("mask", value, format!("{expected}, one byte a pixel"));
        }
        if let Some(latents) = &request.latents {
            let (size, count) = ((latents.width, latents.height), latents.values.len());
            if size != (request.width, request.height) || count != self.elements(request) {
                let value = format!("{} × {}, {count} values", size.0, size.1);
                let reason = format!("{expected}, {} values", self.elements(request));
                return refuse("latents", value, reason);
            }
            if !latents.values.iter().all(|x| x.is_finite()) {
                return refuse("latents", "not finite", "expected numbers");
            }
        }
        self.check_combination(request)
    }

    fn check_combination(&self, request: &Request) -> Result<(), BeginError> {
        if request.image.is_some() && request.latents.is_some() {
            return refuse(
                "latents",
                "given",
                "there is an image to begin from already",
            );
        }
        let sees_mask = self.unet.config().sees_mask();
        if sees_mask && request.latents.is_some() {
            let reason = "this model sees a masked image, which latents are not";
            return refuse("latents", "given", reason);
        }
        if !request.begins_from_picture() {
            if self.limits.needs_image {
                let reason = "this model only goes on from an image or from latents";
                return refuse("image", "none", reason);
            }
            let without = "there is neither an image nor latents to begin from";
            if request.mask.is_some() {
                return refuse("mask", "given", without);
            }
            for (field, share) in [
                ("strength", request.strength),
                ("denoising_start", request.denoising_start),
            ] {
                if let Some(share) = share {
                    return refuse(field, share, without);
                }
            }
        }
        if sees_mask && request.mask.is_none() {
            return refuse("mask", "none", "this model only paints under a mask");
        }
        Ok(())
    }
}

/// The names of a micro-conditioning's fields, as diffusers has them.
struct Names {
    original_size: &'static str,
    target_size: &'static str,
    crop_top: &'static str,
    crop_left: &'static str,
    aesthetic_score: &'static str,
}

const OF_PROMPT: Names = Names {
    original_size: "original_size",
    target_size: "target_size",
    crop_top: "crop_top",
    crop_left: "crop_left",
    aesthetic_score: "aesthetic_score",
};
const OF_NEGATIVE: Names = Names {
    original_size: "negative_original_size",
    target_size: "negative_target_size",
    crop_top: "negative_crop_top",
    crop_left: "negative_crop_left",
    aesthetic_score: "negative_aesthetic_score",
};

fn check_told(told: &MicroConditioning, names: Names) -> Result<(), BeginError> {
    for (field, size) in [
        (names.original_size, told.original_size),
        (names.target_size, told.target_size),
    ] {
        if let Some(Size { width, height }) = size
            && ![width, height]
                .iter()
                .all(|side| (1..=MAX_TOLD).contains(side))
        {
            let reason = format!("expected sides of 1 to {MAX_TOLD}");
            return refuse(field, format!("{width} × {height}"), reason);
        }
    }
    for (field, cut) in [
        (names.crop_top, told.crop_top),
        (names.crop_left, told.crop_left),
    ] {
        if cut > MAX_TOLD {
            return refuse(field, cut, format!("expected 0 to {MAX_TOLD}"));
        }
    }
    match told.aesthetic_score {
        Some(score) if !(0.0..=MAX_SCORE).contains(&score) => {
            let reason = format!("expected 0 to {MAX_SCORE}");
            refuse(names.aesthetic_score, score, reason)
        }
        _ => Ok(()),
    }
}
