//! Quantiles of the symmetric beta distribution, as `scipy.stats.beta.ppf(q, shape, shape)`.

/// Enough for the continued fraction, which needs about the square root of the larger parameter, and for Newton's
/// method, which halves its interval where it does not converge.
const MOST_ROUNDS: usize = 200;

/// Where the share `q` (0 to 1) of the distribution with both parameters `shape` lies below.
pub(super) fn quantile(q: f64, shape: f64) -> f64 {
    if q <= 0.0 {
        return 0.0;
    }
    // The upper half mirrors the lower, where x is exact to its own size rather than to 1.
    if q > 0.5 {
        return 1.0 - quantile(1.0 - q, shape);
    }
    let log_constant = log_gamma(2.0 * shape) - 2.0 * log_gamma(shape);
    // Of the lower tail, x^shape · constant / shape.
    let mut x = ((q.ln() + shape.ln() - log_constant) / shape)
        .exp()
        .min(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..MOST_ROUNDS {
        let off = share_below(x, shape, log_constant) - q;
        if off > 0.0 {
            high = x;
        } else {
            low = x;
        }
        let density = (log_constant + (shape - 1.0) * (x.ln() + (-x).ln_1p())).exp();
        let newton = x - off / density;
        let next = if newton > low && newton < high {
            newton
        } else {
            0.5 * (low + high)
        };
        if (next - x).abs() <= f64::EPSILON * x {
            return next;
        }
        x = next;
    }
    x
}

/// The regularised incomplete beta function for x up to ½, by its continued fraction (DLMF 8.17.22) after Lentz.
fn share_below(x: f64, shape: f64, log_constant: f64) -> f64 {
    const TINY: f64 = 1e-300;
    let away = |value: f64| if value.abs() < TINY { TINY } else { value };
    let factor = |index: usize| {
        let m = (index / 2) as f64;
        if index.is_multiple_of(2) {
            m * (shape - m) * x / ((shape + 2.0 * m - 1.0) * (shape + 2.0 * m))
        } else {
            -(shape + m) * (2.0 * shape + m) * x / ((shape + 2.0 * m) * (shape + 2.0 * m + 1.0))
        }
    };
    let (mut c, mut d, mut fraction) = (1.0, 0.0, 1.0);
    for index in 1..MOST_ROUNDS {
        let factor = factor(index);
        d = 1.0 / away(1.0 + factor * d);
        c = away(1.0 + factor / c);
        fraction *= c * d;
        if (c * d - 1.0).abs() < f64::EPSILON {
            break;
        }
    }
    let front = (log_constant + shape * (x.ln() + (-x).ln_1p())).exp() / shape;
    front / fraction
}

/// Lanczos' approximation with g = 7 and nine terms (Godfrey's coefficients), good to f64 for positive numbers.
fn log_gamma(x: f64) -> f64 {
    const G: f64 = 7.0;
    const FIRST: f64 = 0.999_999_999_999_809_9;
    const TERMS: [f64; 8] = [
        676.520_368_121_885_1,
        -1_259.139_216_722_402_8,
        771.323_428_777_653_1,
        -176.615_029_162_140_6,
        12.507_343_278_686_905,
        -0.138_571_095_265_720_12,
        9.984_369_578_019_572e-6,
        1.505_632_735_149_311_6e-7,
    ];
    let sum = (TERMS.iter().enumerate())
        .fold(FIRST, |sum, (index, term)| sum + term / (x + index as f64));
    let t = x + G - 0.5;
    0.5 * (2.0 * std::f64::consts::PI).ln() + (x - 0.5) * t.ln() - t + sum.ln()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// (q, shape, `scipy.stats.beta.ppf(q, shape, shape)`), scipy 1.17.1.
    const SCIPY: &[(f64, f64, f64)] = &[
        (1e-12, 0.6, 1.8558824624914097e-20),
        (1e-06, 0.6, 1.8558824624053043e-10),
        (0.001, 0.6, 1.855873851745199e-05),
        (0.05263157894736842, 0.6, 0.013671081564469266),
        (0.1, 0.6, 0.03958440558878085),
        (0.25, 0.6, 0.17568037865269498),
        (0.3333333333333333, 0.6, 0.2754132907776234),
        (0.45, 0.6, 0.430815501976733),
        (0.5, 0.6, 0.5000000000000001),
        (0.55, 0.6, 0.569184498023267),
        (0.75, 0.6, 0.824319621347305),
        (0.9, 0.6, 0.9604155944112192),
        (0.9473684210526315, 0.6, 0.9863289184355307),
        (0.999, 0.6, 0.9999814412614826),
        (0.999999999, 0.6, 0.9999999999999981),
        (0.2, 0.3, 0.03277640169822209),
        (0.2, 1.0, 0.2),
        (0.7, 2.5, 0.6213520577345824),
    ];

    #[test]
    fn quantiles_are_those_of_scipy() {
        for &(q, shape, expected) in SCIPY {
            let ours = quantile(q, shape);
            let off = (ours - expected).abs();
            assert!(
                off <= 1e-13 * expected,
                "{q} {shape}: {ours} is not {expected}"
            );
        }
    }

    #[test]
    fn quantiles_rise_from_zero_to_one() {
        let all: Vec<f64> = (0..=2000)
            .map(|index| quantile(f64::from(index) / 2000.0, 0.6))
            .collect();
        assert!(all.windows(2).all(|pair| pair[0] < pair[1]));
        assert_eq!((all[0], all[2000]), (0.0, 1.0));
    }
}
