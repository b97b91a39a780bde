//! The ways from noise to a picture that can be asked for by name.

use std::fmt;
use std::str::FromStr;

use serde_json::{Value, json};

use super::config::Class;

/// Declares the kinds: everything that lists them is made from this one list. Its order is part of the snapshots'
/// format (they hold a kind's index), so new kinds go at its end.
macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $name:literal, $class:ident, $sigmas:ident $(, $key:literal: $value:tt)*;)*) => {
        /// A way from noise to a picture.
        ///
        /// Asked of a model, a kind is what `Class.from_config(pipe.scheduler.config, **options)` of diffusers is: what the
        /// model's own file says stays wherever the class knows it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum SchedulerKind {
            $($(#[$doc])* #[doc = concat!("Called `", $name, "`.")] $variant,)*
        }

        impl SchedulerKind {
            /// Every kind.
            pub const ALL: [SchedulerKind; [$($name),*].len()] = [$(Self::$variant),*];

            fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            pub(super) fn class(self) -> Class {
                match self { $(Self::$variant => Class::$class,)* }
            }

            /// What is said to the class beside the model's own configuration.
            pub(super) fn options(self) -> Vec<(&'static str, Value)> {
                match self {
                    $(Self::$variant => {
                        let mut options = spread(Spread::$sigmas);
                        options.extend::<Vec<(&str, Value)>>(vec![$(($key, json!($value))),*]);
                        options
                    })*
                }
            }
        }
    };
}

kinds! {
    /// DDIM (Song et al., 2020), without added noise unless the request's eta asks for it.
    Ddim = "ddim", Ddim, Trained, "clip_sample": false, "set_alpha_to_one": false;
    /// Euler's method on the probability flow (Karras et al., 2022).
    Euler = "euler", Euler, Trained;
    /// Second-order multistep DPM-Solver++ (Lu et al., 2022).
    DpmPlusPlus2M = "dpm++2m", Dpm, Trained, "algorithm_type": "dpmsolver++", "solver_order": 2;
    /// The same over Karras' noise levels.
    DpmPlusPlus2MKarras = "dpm++2m-karras", Dpm, Karras, "algorithm_type": "dpmsolver++", "solver_order": 2;
    /// Euler's method over Karras' noise levels.
    EulerKarras = "euler-karras", Euler, Karras;
    /// Euler's method over noise levels in geometric progression.
    EulerExponential = "euler-exponential", Euler, Exponential;
    /// Euler's method over the quantiles of a beta distribution (Lee et al., 2024).
    EulerBeta = "euler-beta", Euler, Beta;
    /// Euler's method with fresh noise at each step.
    EulerAncestral = "euler-ancestral", Ancestral, Trained;
    /// Heun's method on the probability flow (Karras et al., 2022): the model is asked twice a step, but for the last.
    Heun = "heun", Heun, Trained;
    /// The same over Karras' noise levels.
    HeunKarras = "heun-karras", Heun, Karras;
    /// Second-order DPM-Solver++ over noise levels in geometric progression.
    DpmPlusPlus2MExponential = "dpm++2m-exponential", Dpm, Exponential,
        "algorithm_type": "dpmsolver++", "solver_order": 2;
    /// Second-order DPM-Solver++ over the quantiles of a beta distribution.
    DpmPlusPlus2MBeta = "dpm++2m-beta", Dpm, Beta, "algorithm_type": "dpmsolver++", "solver_order": 2;
    /// DPM-Solver++ for the stochastic equation, second order, with fresh noise at each step.
    DpmPlusPlus2MSde = "dpm++2m-sde", Dpm, Trained, "algorithm_type": "sde-dpmsolver++", "solver_order": 2;
    /// The same over Karras' noise levels.
    DpmPlusPlus2MSdeKarras = "dpm++2m-sde-karras", Dpm, Karras, "algorithm_type": "sde-dpmsolver++", "solver_order": 2;
    /// The same over noise levels in geometric progression.
    DpmPlusPlus2MSdeExponential = "dpm++2m-sde-exponential", Dpm, Exponential,
        "algorithm_type": "sde-dpmsolver++", "solver_order": 2;
    /// UniPC: a multistep predictor whose every step corrects the one before (Zhao et al., 2023).
    UniPc = "unipc", UniPc, Trained;
    /// The same over Karras' noise levels.
    UniPcKarras = "unipc-karras", UniPc, Karras;
    /// Latent consistency sampling (Luo et al., 2023), for models distilled for it.
    Lcm = "lcm", Lcm, Trained;
    /// Trajectory consistency sampling (Zheng et al., 2024), for models distilled for it.
    Tcd = "tcd", Tcd, Trained;
}

/// How the noise levels are spread over the steps.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Spread {
    Trained,
    Karras,
    Exponential,
    Beta,
}

/// A name says what it means, whatever the model's own scheduler does: each of the switches is set.
fn spread(wanted: Spread) -> Vec<(&'static str, Value)> {
    [
        ("use_karras_sigmas", Spread::Karras),
        ("use_exponential_sigmas", Spread::Exponential),
        ("use_beta_sigmas", Spread::Beta),
    ]
    .map(|(key, spread)| (key, json!(spread == wanted)))
    .into()
}

impl fmt::Display for SchedulerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no scheduler's.
#[derive(Debug, thiserror::Error)]
#[error("no scheduler is called {0:?}; there are {names}", names = names())]
pub struct UnknownScheduler(String);

fn names() -> String {
    SchedulerKind::ALL.map(SchedulerKind::name).join(", ")
}

impl FromStr for SchedulerKind {
    type Err = UnknownScheduler;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::ALL
            .into_iter()
            .find(|kind| kind.name() == name)
            .ok_or_else(|| UnknownScheduler(name.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_name_reads_back_and_the_error_lists_them_all() {
        let error = "plms".parse::<SchedulerKind>().unwrap_err().to_string();
        for kind in SchedulerKind::ALL {
            assert_eq!(kind.to_string().parse::<SchedulerKind>().unwrap(), kind);
            assert!(error.contains(kind.name()), "{error}");
        }
    }

    #[test]
    fn the_first_kinds_stay_where_old_snapshots_look_for_them() {
        use SchedulerKind::{Ddim, DpmPlusPlus2M, DpmPlusPlus2MKarras, Euler};
        let first = [Ddim, Euler, DpmPlusPlus2M, DpmPlusPlus2MKarras];
        assert_eq!(SchedulerKind::ALL[..4], first);
    }
}
