//! Classifier-free guidance (Ho and Salimans, 2022).

/// The output that is led from `away` towards `towards`, `scale` times as far.
pub(crate) fn lead(away: &[f32], towards: &[f32], scale: f32) -> Vec<f32> {
    away.iter()
        .zip(towards)
        .map(|(away, towards)| away + scale * (towards - away))
        .collect()
}

/// Brings the deviation of a `guided` output back towards that of the output for the `prompt` alone, by the share
/// `rescale` (0 to 1), against over-exposure: Lin et al. (2023), section 3.4; `rescale_noise_cfg` of
/// `pipeline_stable_diffusion_xl.py`. Both are one picture's output, of the same length.
pub(crate) fn rescale(guided: &mut [f32], prompt: &[f32], rescale: f32) {
    if rescale <= 0.0 {
        return;
    }
    let ratio = deviation(prompt) / deviation(guided);
    // An output without any deviation has nothing to rescale.
    if !ratio.is_finite() {
        return;
    }
    for value in guided {
        *value = rescale * (*value * ratio) + (1.0 - rescale) * *value;
    }
}

/// The deviation of a sample, as `torch.std` has it: over one less than the count.
fn deviation(values: &[f32]) -> f32 {
    let sum = |of: &dyn Fn(f64) -> f64| values.iter().map(|x| of(f64::from(*x))).sum::<f64>();
    let mean = sum(&|x| x) / values.len() as f64;
    let variance = sum(&|x| (x - mean) * (x - mean)) / (values.len() as f64 - 1.0);
    variance.sqrt() as f32
}

#[cfg(test)]
mod tests {
    use crate::golden::{self, assert_near};

    #[test]
    fn guidance_is_rescaled_as_in_diffusers() {
        let recorded = golden::read("schedulers_plans");
        let prompt = recorded.values("guidance.prompt");
        for rescale in [0.0_f32, 0.3, 0.7, 1.0] {
            let mut guided = recorded.values("guidance.guided");
            super::rescale(&mut guided, &prompt, rescale);
            let expected = recorded.values(&format!("guidance.{rescale:.1}"));
            assert_near("rescaled", &guided, &expected, 1e-5);
        }
    }

    #[test]
    fn what_has_no_deviation_stays() {
        for length in [0, 1, 7] {
            let mut guided = vec![0.5; length];
            super::rescale(&mut guided, &vec![1.0; length], 0.7);
            assert_eq!(guided, vec![0.5; length]);
        }
    }
}
