//! `scheduler_config.json`.

use super::SchedulerKind;
use crate::config::Fields;
use crate::error::LoadError;

/// Which class of diffusers' schedules is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Ddim,
    Euler,
    Dpm,
}

/// What a model's output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Prediction {
    Epsilon,
    V,
    Sample,
}

/// How training noise grows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Growth {
    Linear,
    ScaledLinear,
    SquaredCosine,
}

/// Which of the training steps are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

/// A scheduler's configuration, with its class's defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct SchedulerConfig {
    pub(super) class: Class,
    pub(crate) train_steps: usize,
    pub(super) growth: Growth,
    pub(super) trained_betas: Option<Vec<f32>>,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) zero_snr: bool,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) offset: usize,
    pub(super) karras: bool,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    pub(super) log_linear: bool,
    /// Whether the last sigma is that of the first training step rather than zero.
    pub(super) end_at_smallest: bool,
    /// DDIM: the picture's values are clamped to ± this.
    pub(super) clip: Option<f32>,
    pub(super) alpha_one_at_end: bool,
    pub(super) first_order: bool,
    pub(super) heun: bool,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
}

impl SchedulerConfig {
    /// Reads and checks.
    pub(crate) fn read(mut fields: Fields) -> Result<Self, LoadError> {
        let class = fields.text("_class_name")?;
        let class = match class.as_str() {
            "DDIMScheduler" => Class::Ddim,
            "EulerDiscreteScheduler" => Class::Euler,
            "DPMSolverMultistepScheduler" => Class::Dpm,
            _ => {
                let reason = "DDIMScheduler, EulerDiscreteScheduler and DPMSolverMultistepScheduler are supported";
                return Err(fields.refuse("_class_name", &class.into(), reason));
            }
        };
        // The first choice is what absence means.
        let leading = ("leading", Spacing::Leading);
        let linspace = ("linspace", Spacing::Linspace);
        let (first, second) = if class == Class::Ddim {
            (leading, linspace)
        } else {
            (linspace, leading)
        };
        let growth = [
            ("linear", Growth::Linear),
            ("scaled_linear", Growth::ScaledLinear),
            ("squaredcos_cap_v2", Growth::SquaredCosine),
        ];
        let predictions = [
            ("epsilon", Prediction::Epsilon),
            ("v_prediction", Prediction::V),
            ("sample", Prediction::Sample),
        ];
        let clipped = fields.flag_or("clip_sample", true)? && class == Class::Ddim;
        let range = fields.number_or("clip_sample_range", 1.0)? as f32;
        let config = Self {
            class,
            train_steps: fields.size_or("num_train_timesteps", 1000)?,
            growth: fields.choice("beta_schedule", &growth)?,
            trained_betas: fields
                .numbers("trained_betas")?
                .map(|all| all.iter().map(|beta| *beta as f32).collect()),
            beta_start: fields.number_or("beta_start", 0.0001)?,
            beta_end: fields.number_or("beta_end", 0.02)?,
            zero_snr: fields.flag_or("rescale_betas_zero_snr", false)?,
            prediction: fields.choice("prediction_type", &predictions)?,
            spacing: fields.choice(
                "timestep_spacing",
                &[first, second, ("trailing", Spacing::Trailing)],
            )?,
            offset: fields.count_or("steps_offset", 0)?,
            karras: fields.flag_or("use_karras_sigmas", false)?,
            sigma_min: fields.number("sigma_min")?,
            sigma_max: fields.number("sigma_max")?,
            log_linear: fields.choice(
                "interpolation_type",
                &[("linear", false), ("log_linear", true)],
            )?,
            end_at_smallest: fields
                .choice("final_sigmas_type", &[("zero", false), ("sigma_min", true)])?,
            clip: clipped.then_some(range),
            alpha_one_at_end: fields.flag_or("set_alpha_to_one", true)?,
            first_order: fields.choice_of_sizes("solver_order", &[(2, false), (1, true)])?,
            heun: fields.choice("solver_type", &[("midpoint", false), ("heun", true)])?,
            lower_order_final: fields.flag_or("lower_order_final", true)?,
            euler_at_final: fields.flag_or("euler_at_final", false)?,
        };
        if config.train_steps < 2 {
            return Err(fields.refuse(
                "num_train_timesteps",
                &config.train_steps.into(),
                "at least 2 are needed",
            ));
        }
        if config
            .trained_betas
            .as_ref()
            .is_some_and(|betas| betas.len() != config.train_steps)
        {
            return Err(fields.refuse(
                "trained_betas",
                &"a list".into(),
                "its length is not num_train_timesteps",
            ));
        }
        fields.only("thresholding", [false])?;
        fields.only("use_exponential_sigmas", [false])?;
        fields.only("use_beta_sigmas", [false])?;
        fields.only("use_lu_lambdas", [false])?;
        fields.only("use_flow_sigmas", [false])?;
        fields.only("use_dynamic_shifting", [false])?;
        fields.only("timestep_type", ["discrete"])?;
        fields.only("algorithm_type", ["dpmsolver++"])?;
        // What only other classes read, and what serves only values refused above.
        fields.ignore(&[
            "skip_prk_steps",
            "dynamic_thresholding_ratio",
            "sample_max_value",
            "flow_shift",
            "time_shift_type",
            "lambda_min_clipped",
            "variance_type",
        ]);
        fields.finish()?;
        Ok(config)
    }

    /// This model's noise with another way through it: what belongs to a class alone gets that class's defaults
    /// (for DDIM, those of latent diffusion: no clipping, and an end at the first training step).
    pub(crate) fn with_kind(&self, kind: SchedulerKind) -> Self {
        let class = match kind {
            SchedulerKind::Ddim => Class::Ddim,
            SchedulerKind::Euler => Class::Euler,
            SchedulerKind::DpmPlusPlus2M | SchedulerKind::DpmPlusPlus2MKarras => Class::Dpm,
        };
        let karras = kind == SchedulerKind::DpmPlusPlus2MKarras;
        if class == self.class {
            return Self {
                karras,
                first_order: false,
                ..self.clone()
            };
        }
        Self {
            class,
            karras,
            sigma_min: None,
            sigma_max: None,
            log_linear: false,
            end_at_smallest: false,
            clip: None,
            alpha_one_at_end: false,
            first_order: false,
            heun: false,
            lower_order_final: true,
            euler_at_final: false,
            ..self.clone()
        }
    }
}
