//! Classifier-free guidance (Ho and Salimans, 2022).

/// The output that is led from `away` towards `towards`, `scale` times as far.
pub(crate) fn lead(away: &[f32], towards: &[f32], scale: f32) -> Vec<f32> {
    away.iter()
        .zip(towards)
        .map(|(away, towards)| away + scale * (towards - away))
        .collect()
}

/// Takes back a `share` of the deviation that guidance has added beyond that of `towards`, against pictures that are too
/// bright or too dark. Source: Lin et al. (2023), section 3.4; `rescale_noise_cfg` of diffusers.
pub(crate) fn rescale(guided: &mut [f32], towards: &[f32], share: f32) {
    if share <= 0.0 {
        return;
    }
    let factor = deviation(towards) / deviation(guided);
    for value in guided {
        let rescaled = *value * factor;
        *value = share * rescaled + (1.0 - share) * *value;
    }
}

/// Of a sample, in f64: one order of summation, no cancellation.
fn deviation(values: &[f32]) -> f32 {
    let count = values.len() as f64;
    let mean = values.iter().map(|x| f64::from(*x)).sum::<f64>() / count;
    let squares: f64 = values.iter().map(|x| (f64::from(*x) - mean).powi(2)).sum();
    (squares / (count - 1.0)).sqrt() as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rescaling_gives_back_the_deviation_of_the_text() {
        let towards = [1.0, -1.0, 2.0, 0.5];
        let mut guided = lead(&[0.0, 0.5, -1.0, 0.0], &towards, 7.5);
        let free = guided.clone();
        rescale(&mut guided, &towards, 0.0);
        assert_eq!(guided, free);
        rescale(&mut guided, &towards, 1.0);
        assert!((deviation(&guided) - deviation(&towards)).abs() < 1e-5);
    }
}
