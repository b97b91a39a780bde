//! `scheduler_config.json`: each class's own keys and defaults, as its `__init__` in diffusers 0.42 has them.

use serde_json::Value;

use super::{PlanError, SchedulerKind};
use crate::config::Fields;
use crate::error::LoadError;

/// Which class of diffusers' schedulers is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Ddim,
    Euler,
    Ancestral,
    Heun,
    Dpm,
    UniPc,
    Lcm,
    Tcd,
}

/// Every class, by its name in diffusers.
const CLASSES: [(&str, Class); 8] = [
    ("DDIMScheduler", Class::Ddim),
    ("EulerDiscreteScheduler", Class::Euler),
    ("EulerAncestralDiscreteScheduler", Class::Ancestral),
    ("HeunDiscreteScheduler", Class::Heun),
    ("DPMSolverMultistepScheduler", Class::Dpm),
    ("UniPCMultistepScheduler", Class::UniPc),
    ("LCMScheduler", Class::Lcm),
    ("TCDScheduler", Class::Tcd),
];

/// Keys that some class knows and another carries along without looking at them: a model keeps those of every scheduler
/// that it ever had. A class takes its own before these are forgotten.
const CARRIED: [&str; 38] = [
    "algorithm_type",
    "clip_sample",
    "clip_sample_range",
    "disable_corrector",
    "dynamic_thresholding_ratio",
    "euler_at_final",
    "final_sigmas_type",
    "flow_shift",
    "interpolation_type",
    "lambda_min_clipped",
    "lower_order_final",
    "original_inference_steps",
    "predict_x0",
    "rescale_betas_zero_snr",
    "rho",
    "sample_max_value",
    "set_alpha_to_one",
    "shift_terminal",
    "sigma_max",
    "sigma_min",
    "skip_prk_steps",
    "solver_order",
    "solver_p",
    "solver_type",
    "steps_offset",
    "thresholding",
    "time_shift_type",
    "timestep_scaling",
    "timestep_spacing",
    "timestep_type",
    "trained_betas",
    "use_beta_sigmas",
    "use_dynamic_shifting",
    "use_exponential_sigmas",
    "use_flow_sigmas",
    "use_karras_sigmas",
    "use_lu_lambdas",
    "variance_type",
];

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
    Exponential,
}

/// Which of the training steps are visited.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Spacing {
    Leading,
    Linspace,
    Trailing,
}

/// Where the noise levels come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// The visited training steps.
    Trained,
    Karras,
    Exponential,
    Beta,
    /// Evenly over the logarithm of the signal-to-noise ratio (Lu et al., 2022).
    Lu,
}

/// What only some classes know.
#[derive(Clone, Debug)]
pub(super) enum Options {
    Ddim {
        clip: Option<f32>,
        alpha_one_at_end: bool,
    },
    Euler {
        log_linear: bool,
        continuous: bool,
    },
    Ancestral,
    Heun {
        clip: Option<f32>,
    },
    Dpm(DpmOptions),
    UniPc(UniPcOptions),
    Lcm {
        original_steps: usize,
        scaling: f64,
        clip: Option<f32>,
    },
    Tcd {
        original_steps: usize,
    },
}

#[derive(Clone, Debug)]
pub(super) struct DpmOptions {
    /// 1 to 3.
    pub(super) order: usize,
    pub(super) sde: bool,
    pub(super) heun: bool,
    pub(super) lower_order_final: bool,
    pub(super) euler_at_final: bool,
    /// No step begins where half the logarithm of the signal-to-noise ratio is below this.
    pub(super) least_lambda: Option<f64>,
}

#[derive(Clone, Debug)]
pub(super) struct UniPcOptions {
    /// 1 to 3.
    pub(super) order: usize,
    pub(super) bh1: bool,
    pub(super) predicts_picture: bool,
    pub(super) lower_order_final: bool,
    /// Steps, counted from 0, that are not corrected afterwards.
    pub(super) uncorrected: Vec<usize>,
}

/// A scheduler's configuration, with its class's defaults filled in.
#[derive(Clone, Debug)]
pub(crate) struct SchedulerConfig {
    /// The model's own file, from which other classes' configurations are made.
    source: Fields,
    pub(crate) train_steps: usize,
    pub(super) growth: Growth,
    pub(super) trained_betas: Option<Vec<f32>>,
    pub(super) beta_start: f64,
    pub(super) beta_end: f64,
    pub(super) zero_snr: bool,
    pub(super) prediction: Prediction,
    pub(super) spacing: Spacing,
    pub(super) offset: usize,
    pub(super) spread: Spread,
    pub(super) sigma_min: Option<f64>,
    pub(super) sigma_max: Option<f64>,
    /// Whether the last sigma is that of the first training step rather than zero.
    pub(super) end_at_smallest: bool,
    pub(super) options: Options,
}

impl SchedulerConfig {
    /// Reads and checks a model's own configuration.
    pub(crate) fn read(fields: Fields) -> Result<Self, LoadError> {
        let mut rest = fields.clone();
        let name = rest.text("_class_name")?;
        let Some((_, class)) = CLASSES.iter().find(|(known, _)| *known == name) else {
            let names = CLASSES.map(|(name, _)| name).join(", ");
            return Err(rest.refuse(
                "_class_name",
                &name.into(),
                &format!("expected one of {names}"),
            ));
        };
        Self::of(*class, fields)
    }

    /// The model's own noise with another way through it: `Class.from_config(pipe.scheduler.config, **options)`.
    pub(crate) fn with_kind(&self, kind: SchedulerKind) -> Result<Self, PlanError> {
        let mut source = self.source.clone();
        for (key, value) in kind.options() {
            source.set(key, value);
        }
        Self::of(kind.class(), source).map_err(|error| {
            PlanError::new("scheduler", kind, format!("not for this model: {error}"))
        })
    }

    /// The most steps that a plan may have.
    pub(super) fn most_steps(&self) -> usize {
        match self.options {
            Options::Lcm { original_steps, .. } | Options::Tcd { original_steps } => original_steps,
            _ => self.train_steps,
        }
    }

    fn of(class: Class, source: Fields) -> Result<Self, LoadError> {
        let mut fields = source.clone();
        fields.take("_class_name");
        let fields = &mut fields;
        let train_steps = fields.size_or("num_train_timesteps", 1000)?;
        if train_steps < 2 {
            return Err(fields.refuse(
                "num_train_timesteps",
                &train_steps.into(),
                "at least 2 are needed",
            ));
        }
        let (beta_start, beta_end) = match class {
            Class::Heun | Class::Lcm | Class::Tcd => (0.00085, 0.012),
            _ => (0.0001, 0.02),
        };
        let zero_snr = class != Class::Heun && fields.flag_or("rescale_betas_zero_snr", false)?;
        let config = Self {
            train_steps,
            growth: read_growth(class, fields)?,
            trained_betas: read_betas(fields, train_steps)?,
            beta_start: fields.number_or("beta_start", beta_start)?,
            beta_end: fields.number_or("beta_end", beta_end)?,
            zero_snr,
            prediction: read_prediction(class, fields)?,
            spacing: read_spacing(class, fields)?,
            offset: fields.count_or("steps_offset", 0)?,
            spread: read_spread(class, fields)?,
            sigma_min: fields.number("sigma_min")?,
            sigma_max: fields.number("sigma_max")?,
            end_at_smallest: matches!(class, Class::Euler | Class::Dpm | Class::UniPc)
                && fields.choice("final_sigmas_type", &[("zero", false), ("sigma_min", true)])?,
            options: read_options(class, fields, train_steps)?,
            source,
        };
        if let Options::UniPc(UniPcOptions {
            predicts_picture: false,
            ..
        }) = config.options
            && !config.end_at_smallest
        {
            let reason = "with predict_x0 false only sigma_min has an end: at sigma zero its formula divides by zero";
            return Err(fields.refuse("final_sigmas_type", &"zero".into(), reason));
        }
        fields.ignore(&CARRIED);
        fields.clone().finish()?;
        Ok(config)
    }
}

fn read_growth(class: Class, fields: &mut Fields) -> Result<Growth, LoadError> {
    let linear = ("linear", Growth::Linear);
    let scaled = ("scaled_linear", Growth::ScaledLinear);
    let cosine = ("squaredcos_cap_v2", Growth::SquaredCosine);
    match class {
        Class::Lcm | Class::Tcd => fields.choice("beta_schedule", &[scaled, linear, cosine]),
        Class::Heun => {
            let exponential = ("exp", Growth::Exponential);
            fields.choice("beta_schedule", &[linear, scaled, cosine, exponential])
        }
        _ => fields.choice("beta_schedule", &[linear, scaled, cosine]),
    }
}

fn read_betas(fields: &mut Fields, train_steps: usize) -> Result<Option<Vec<f32>>, LoadError> {
    let Some(betas) = fields.numbers("trained_betas")? else {
        return Ok(None);
    };
    if betas.len() != train_steps {
        let reason = "its length is not num_train_timesteps";
        return Err(fields.refuse("trained_betas", &"a list".into(), reason));
    }
    Ok(Some(betas.iter().map(|beta| *beta as f32).collect()))
}

fn read_prediction(class: Class, fields: &mut Fields) -> Result<Prediction, LoadError> {
    let epsilon = ("epsilon", Prediction::Epsilon);
    let v = ("v_prediction", Prediction::V);
    let sample = ("sample", Prediction::Sample);
    match class {
        Class::Ancestral => fields.choice("prediction_type", &[epsilon, v]),
        Class::Euler => {
            let old_name = ("original_sample", Prediction::Sample);
            fields.choice("prediction_type", &[epsilon, v, sample, old_name])
        }
        _ => fields.choice("prediction_type", &[epsilon, v, sample]),
    }
}

fn read_spacing(class: Class, fields: &mut Fields) -> Result<Spacing, LoadError> {
    let leading = ("leading", Spacing::Leading);
    let linspace = ("linspace", Spacing::Linspace);
    let (first, second) = match class {
        Class::Ddim | Class::Lcm | Class::Tcd => (leading, linspace),
        _ => (linspace, leading),
    };
    fields.choice(
        "timestep_spacing",
        &[first, second, ("trailing", Spacing::Trailing)],
    )
}

fn read_spread(class: Class, fields: &mut Fields) -> Result<Spread, LoadError> {
    if !matches!(
        class,
        Class::Euler | Class::Heun | Class::Dpm | Class::UniPc
    ) {
        return Ok(Spread::Trained);
    }
    let mut chosen = Spread::Trained;
    for (key, spread) in [
        ("use_karras_sigmas", Spread::Karras),
        ("use_exponential_sigmas", Spread::Exponential),
        ("use_beta_sigmas", Spread::Beta),
    ] {
        if fields.flag_or(key, false)? {
            if chosen != Spread::Trained {
                return Err(fields.refuse(
                    key,
                    &true.into(),
                    "another kind of sigmas is asked for as well",
                ));
            }
            chosen = spread;
        }
    }
    // diffusers asks for Karras' first, then for these, then for the others.
    if class == Class::Dpm && fields.flag_or("use_lu_lambdas", false)? && chosen != Spread::Karras {
        chosen = Spread::Lu;
    }
    Ok(chosen)
}

fn read_clip(fields: &mut Fields, default: bool) -> Result<Option<f32>, LoadError> {
    let clipped = fields.flag_or("clip_sample", default)?;
    let range = fields.number_or("clip_sample_range", 1.0)?;
    if range < 0.0 {
        return Err(fields.refuse("clip_sample_range", &range.into(), "expected at least 0"));
    }
    Ok(clipped.then_some(range as f32))
}

fn read_original_steps(fields: &mut Fields, train_steps: usize) -> Result<usize, LoadError> {
    let steps = fields.size_or("original_inference_steps", 50)?;
    if steps > train_steps {
        let reason = "expected at most num_train_timesteps";
        return Err(fields.refuse("original_inference_steps", &steps.into(), reason));
    }
    Ok(steps)
}

fn read_options(
    class: Class,
    fields: &mut Fields,
    train_steps: usize,
) -> Result<Options, LoadError> {
    if matches!(class, Class::Ddim | Class::Dpm | Class::UniPc | Class::Lcm) {
        fields.only("thresholding", [false])?;
    }
    Ok(match class {
        Class::Ddim => Options::Ddim {
            clip: read_clip(fields, true)?,
            alpha_one_at_end: fields.flag_or("set_alpha_to_one", true)?,
        },
        Class::Euler => Options::Euler {
            log_linear: fields.choice(
                "interpolation_type",
                &[("linear", false), ("log_linear", true)],
            )?,
            continuous: fields.choice(
                "timestep_type",
                &[("discrete", false), ("continuous", true)],
            )?,
        },
        Class::Ancestral => Options::Ancestral,
        Class::Heun => Options::Heun {
            clip: read_clip(fields, false)?,
        },
        Class::Dpm => Options::Dpm(read_dpm(fields)?),
        Class::UniPc => Options::UniPc(read_unipc(fields)?),
        Class::Lcm => Options::Lcm {
            original_steps: read_original_steps(fields, train_steps)?,
            scaling: fields.number_or("timestep_scaling", 10.0)?,
            clip: read_clip(fields, false)?,
        },
        Class::Tcd => Options::Tcd {
            original_steps: read_original_steps(fields, train_steps)?,
        },
    })
}

const ORDERS: [(usize, usize); 3] = [(2, 2), (1, 1), (3, 3)];

fn read_dpm(fields: &mut Fields) -> Result<DpmOptions, LoadError> {
    refuse_flow(fields)?;
    if let Some(value) = fields.take("variance_type") {
        return Err(fields.refuse(
            "variance_type",
            &value,
            "models that predict a variance are not supported",
        ));
    }
    // UniPC's and DEIS' names are taken for what diffusers takes them for.
    let algorithms = [
        ("dpmsolver++", false),
        ("sde-dpmsolver++", true),
        ("deis", false),
    ];
    let solvers = [
        ("midpoint", false),
        ("heun", true),
        ("logrho", false),
        ("bh1", false),
        ("bh2", false),
    ];
    Ok(DpmOptions {
        order: fields.choice_of_sizes("solver_order", &ORDERS)?,
        sde: fields.choice("algorithm_type", &algorithms)?,
        heun: fields.choice("solver_type", &solvers)?,
        lower_order_final: fields.flag_or("lower_order_final", true)?,
        euler_at_final: fields.flag_or("euler_at_final", false)?,
        least_lambda: fields.number("lambda_min_clipped")?,
    })
}

fn read_unipc(fields: &mut Fields) -> Result<UniPcOptions, LoadError> {
    refuse_flow(fields)?;
    for key in ["solver_p", "shift_terminal"] {
        if let Some(value) = fields.take(key) {
            return Err(fields.refuse(key, &value, "only null is supported"));
        }
    }
    let solvers = [
        ("bh2", false),
        ("bh1", true),
        ("midpoint", false),
        ("heun", false),
        ("logrho", false),
    ];
    Ok(UniPcOptions {
        order: fields.choice_of_sizes("solver_order", &ORDERS)?,
        bh1: fields.choice("solver_type", &solvers)?,
        predicts_picture: fields.flag_or("predict_x0", true)?,
        lower_order_final: fields.flag_or("lower_order_final", true)?,
        uncorrected: read_uncorrected(fields)?,
    })
}

fn read_uncorrected(fields: &mut Fields) -> Result<Vec<usize>, LoadError> {
    let Some(value) = fields.take("disable_corrector") else {
        return Ok(Vec::new());
    };
    let step = |value: &Value| value.as_u64().and_then(|step| usize::try_from(step).ok());
    let steps = value
        .as_array()
        .and_then(|all| all.iter().map(step).collect());
    steps.ok_or_else(|| fields.refuse("disable_corrector", &value, "expected a list of steps"))
}

/// What belongs to flow matching, which Stable Diffusion XL does not do.
fn refuse_flow(fields: &mut Fields) -> Result<(), LoadError> {
    fields.only("use_flow_sigmas", [false])?;
    fields.only("use_dynamic_shifting", [false])
}
