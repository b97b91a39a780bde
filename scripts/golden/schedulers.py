"""Records whole trajectories of diffusers' schedulers, and the parts of them that its pipelines take.

A stand-in for the model, `output = 0.5 * input - 0.25 * base`, makes the numbers depend on every factor that a scheduler
applies without any network. Metadata hold what was said to the class and no more: its defaults are tested too.
"""

import contextlib
import itertools
import sys

import diffusers
import numpy as np
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    StableDiffusionXLImg2ImgPipeline,
    TCDScheduler,
    UniPCMultistepScheduler,
)
from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import rescale_noise_cfg

SHAPE = (1, 1, 4, 4)
SPACINGS = ("leading", "linspace", "trailing")
PREDICTIONS = ("epsilon", "v_prediction", "sample")
SPREADS = ("trained", "karras", "exponential", "beta")
# As latent diffusion models have them.
LATENT = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1)
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


BASE = randn(7, *SHAPE)


def spread(name):
    """The switches of one kind of sigmas, each of them said."""
    return {f"use_{kind}_sigmas": kind == name for kind in SPREADS[1:]}


DPM = dict(solver_order=2, algorithm_type="dpmsolver++")
SDE = dict(solver_order=2, algorithm_type="sde-dpmsolver++")
# What each kind of the engine's says beside a model's own configuration.
KINDS = {
    "ddim": (DDIMScheduler, "trained", dict(clip_sample=False, set_alpha_to_one=False)),
    "euler": (EulerDiscreteScheduler, "trained", {}),
    "dpm++2m": (DPMSolverMultistepScheduler, "trained", DPM),
    "dpm++2m-karras": (DPMSolverMultistepScheduler, "karras", DPM),
    "euler-karras": (EulerDiscreteScheduler, "karras", {}),
    "euler-exponential": (EulerDiscreteScheduler, "exponential", {}),
    "euler-beta": (EulerDiscreteScheduler, "beta", {}),
    "euler-ancestral": (EulerAncestralDiscreteScheduler, "trained", {}),
    "heun": (HeunDiscreteScheduler, "trained", {}),
    "heun-karras": (HeunDiscreteScheduler, "karras", {}),
    "dpm++2m-exponential": (DPMSolverMultistepScheduler, "exponential", DPM),
    "dpm++2m-beta": (DPMSolverMultistepScheduler, "beta", DPM),
    "dpm++2m-sde": (DPMSolverMultistepScheduler, "trained", SDE),
    "dpm++2m-sde-karras": (DPMSolverMultistepScheduler, "karras", SDE),
    "dpm++2m-sde-exponential": (DPMSolverMultistepScheduler, "exponential", SDE),
    "unipc": (UniPCMultistepScheduler, "trained", {}),
    "unipc-karras": (UniPCMultistepScheduler, "karras", {}),
    "lcm": (LCMScheduler, "trained", {}),
    "tcd": (TCDScheduler, "trained", {}),
}


# Whole pictures for the kinds that `make_golden.py` has none of otherwise.
PICTURES = [
    dict(scheduler=name, seed=20 + index, steps=8, width=64, height=64)
    for index, name in enumerate(list(KINDS)[4:])
] + [
    dict(scheduler="ddim", eta=0.5, rescale=0.7, guidance=5.0, seed=40, steps=8, width=64, height=64),
    dict(scheduler="tcd", eta=0.3, seed=41, steps=4, width=64, height=64),
    dict(scheduler="heun", guidance=1.0, seed=42, steps=3, width=96, height=64),
]


def of_kind(name, config):
    """A model's own scheduler configuration with another way through its noise."""
    scheduler, sigmas, options = KINDS[name]
    return scheduler.from_config(config, **spread(sigmas), **options)


def picture_of(scheduler, output, timestep, before, answer):
    """The estimate of the finished picture."""
    if isinstance(scheduler, LCMScheduler):
        return answer.denoised
    if hasattr(answer, "pred_original_sample"):
        return answer.pred_original_sample
    if getattr(scheduler, "predict_x0", not isinstance(scheduler, TCDScheduler)):
        return scheduler.model_outputs[-1]
    # Where diffusers keeps none, from its own levels.
    if isinstance(scheduler, TCDScheduler):
        alpha = scheduler.alphas_cumprod[timestep]
        signal, noise = alpha.sqrt(), (1 - alpha).sqrt()
    else:
        signal, noise = scheduler._sigma_to_alpha_sigma_t(scheduler.sigmas[scheduler.step_index - 1])
    return {
        "epsilon": lambda: (before - noise * output) / signal,
        "v_prediction": lambda: signal * before - noise * output,
        "sample": lambda: output,
    }[scheduler.config.prediction_type]()


class Doubles:
    """torch to a scheduler's module, but that what it asks for in f32 is f64."""

    float32 = torch.float64

    def __getattr__(self, name):
        return getattr(torch, name)


@contextlib.contextmanager
def in_double(scheduler):
    """Lets a scheduler step in f64, over its own f32 sigmas and with the noise that it draws in f32.

    Where the first sigma is in the thousands (zero terminal SNR, or a cosine's betas from the last step on), Euler's
    ancestral method subtracts nearly equal numbers of that size: torch's own f32 is off by several times the bar, not
    least because its square root is not always the nearest number.
    """
    module = sys.modules[type(scheduler).__module__]
    kept = module.torch, module.randn_tensor

    def drawn(shape, dtype=None, **more):
        return kept[1](shape, dtype=torch.float32, **more).to(dtype)

    module.torch, module.randn_tensor = Doubles(), drawn
    scheduler.sigmas = scheduler.sigmas.double()
    try:
        yield
    finally:
        module.torch, module.randn_tensor = kept


class Part:
    """Stands for a pipeline whose timesteps are asked for."""

    def __init__(self, scheduler):
        self.scheduler = scheduler


def timesteps_of(scheduler, plan):
    """As the pipelines for text (no strength, no start) and for images choose them."""
    steps, train = plan["steps"], scheduler.config.num_train_timesteps
    scheduler.set_timesteps(steps)
    timesteps = scheduler.timesteps
    if "strength" in plan or "start" in plan:
        timesteps, _ = StableDiffusionXLImg2ImgPipeline.get_timesteps(
            Part(scheduler), steps, plan.get("strength", 0.3), "cpu", denoising_start=plan.get("start")
        )
    elif hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)
    if "end" in plan:
        cutoff = int(round(train - plan["end"] * train))
        timesteps = timesteps[: len([t for t in timesteps if t >= cutoff])]
    return timesteps


def trajectory(scheduler, plan, finite=True):
    """Timesteps, sigmas, every sample and every estimate; the noised picture after every evaluation, for inpainting."""
    timesteps = timesteps_of(scheduler, plan)
    generator = torch.Generator("cpu").manual_seed(8)
    noise = torch.randn(SHAPE, generator=generator)
    picture = randn(9, *SHAPE)
    from_picture = "strength" in plan or "start" in plan
    if from_picture:
        sample = scheduler.add_noise(picture, noise, timesteps[:1])
    else:
        sample = noise * scheduler.init_noise_sigma
    extra = {}
    if isinstance(scheduler, (DDIMScheduler, TCDScheduler)):
        extra["eta"] = plan.get("eta", 0.0)
    if not isinstance(scheduler, (EulerDiscreteScheduler, HeunDiscreteScheduler, UniPCMultistepScheduler)):
        extra["generator"] = generator
    ill = isinstance(scheduler, EulerAncestralDiscreteScheduler) and scheduler.sigmas.max() > 1000
    sample = sample.double() if ill else sample
    with in_double(scheduler) if ill else contextlib.nullcontext():
        tensors = steps_of(scheduler, timesteps, sample, picture, noise, extra)
    if not from_picture:
        del tensors["noised"]
    tensors["timesteps"] = timesteps
    if hasattr(scheduler, "sigmas"):
        tensors["sigmas"] = scheduler.sigmas
    for name, tensor in tensors.items():
        assert not finite or tensor.isfinite().all(), (scheduler.config, plan, name)
    return {name: tensor.to(torch.float32) for name, tensor in tensors.items()}


def steps_of(scheduler, timesteps, sample, picture, noise, extra):
    samples, denoised, noised = [sample], [], []
    for index, timestep in enumerate(timesteps):
        output = 0.5 * scheduler.scale_model_input(sample, timestep) - 0.25 * BASE
        answer = scheduler.step(output, timestep, sample, **extra)
        denoised.append(picture_of(scheduler, output, timestep, sample, answer))
        sample = answer.prev_sample
        samples.append(sample)
        known = picture
        if index < len(timesteps) - 1:
            known = scheduler.add_noise(picture, noise, torch.tensor([timesteps[index + 1]]))
        noised.append(known)
    return {
        name: torch.stack(rows).reshape(len(rows), -1)
        for name, rows in (("samples", samples), ("denoised", denoised), ("noised", noised))
    }


def record(save, name, cases, extra=None):
    """`cases`: class, what is said to it, plan (or a number of steps)."""
    tensors, meta = {"base": BASE, "picture": randn(9, *SHAPE)} | (extra or {}), []
    for index, (kind, config, plan) in enumerate(cases):
        plan = plan if isinstance(plan, dict) else {"steps": plan}
        for key, tensor in trajectory(kind.from_config(config), plan).items():
            tensors[f"{index}.{key}"] = tensor
        meta.append({"class": kind.__name__, "config": config, "plan": plan})
    save(name, tensors, meta)


def grid(kind, steps, options=({},), spreads=("trained",), predictions=PREDICTIONS, spacings=SPACINGS):
    """Every combination."""
    cases = []
    for spacing, prediction, name, more, count in itertools.product(spacings, predictions, spreads, options, steps):
        config = LATENT | dict(timestep_spacing=spacing, prediction_type=prediction) | more
        if name != "trained":
            config[f"use_{name}_sigmas"] = True
        cases.append((kind, config, count))
    return cases


def tables(kind, steps=6):
    """Training noise of every shape, and the class's own defaults."""
    few = [round(0.01 + 0.005 * index, 4) for index in range(40)]
    shapes = [
        {},
        dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        dict(beta_schedule="squaredcos_cap_v2"),
        dict(beta_schedule="scaled_linear", beta_start=0.001, beta_end=0.01, num_train_timesteps=500),
        dict(trained_betas=few, num_train_timesteps=40),
    ]
    if kind in (LCMScheduler, TCDScheduler):
        for shape in shapes[3:]:
            shape["original_inference_steps"] = 20
    return [(kind, shape | dict(prediction_type="v_prediction"), steps) for shape in shapes]


def ddim(save):
    kind, own = DDIMScheduler, dict(clip_sample=False, set_alpha_to_one=False)
    cases = grid(kind, (1, 2, 7, 20), options=[own]) + tables(kind)
    cases += [
        (kind, own | LATENT | ZERO_SNR, 8),
        (kind, LATENT | dict(set_alpha_to_one=True, clip_sample=True, clip_sample_range=0.4), 6),
        (kind, LATENT | dict(prediction_type="sample"), 6),
    ]
    for eta in (0.3, 1.0):
        for prediction in PREDICTIONS:
            cases.append((kind, own | LATENT | dict(prediction_type=prediction), {"steps": 6, "eta": eta}))
        cases.append((kind, LATENT | dict(clip_sample=False), {"steps": 6, "eta": eta}))
        cases.append((kind, own | LATENT | ZERO_SNR, {"steps": 5, "eta": eta}))
    record(save, "schedulers_ddim", cases)


def euler(save):
    kind = EulerDiscreteScheduler
    cases = grid(kind, (1, 2, 7), spreads=SPREADS) + grid(kind, (20,), predictions=PREDICTIONS[:2]) + tables(kind)
    cases += [(kind, LATENT | ZERO_SNR | more, 8) for more in ({}, dict(use_karras_sigmas=True))]
    for name in SPREADS:
        ends = spread(name) | dict(sigma_min=0.05, sigma_max=12.0)
        cases += [
            (kind, LATENT | ends, 6),
            (kind, LATENT | spread(name) | dict(final_sigmas_type="sigma_min", timestep_spacing="trailing"), 6),
            (kind, LATENT | spread(name) | dict(interpolation_type="log_linear"), 6),
        ]
    continuous = dict(timestep_type="continuous", prediction_type="v_prediction")
    cases += [
        (kind, LATENT | continuous | dict(use_karras_sigmas=True, sigma_min=0.002, sigma_max=80.0), 6),
        (kind, LATENT | continuous, 6),
        (kind, LATENT | continuous | dict(interpolation_type="log_linear"), 6),
        (kind, LATENT | dict(timestep_type="continuous"), 6),
        (kind, LATENT | dict(prediction_type="original_sample"), 6),
    ]
    record(save, "schedulers_euler", cases)


def ancestral(save):
    kind = EulerAncestralDiscreteScheduler
    cases = grid(kind, (1, 2, 7, 20), predictions=PREDICTIONS[:2]) + tables(kind)
    cases.append((kind, LATENT | ZERO_SNR, 8))
    record(save, "schedulers_ancestral", cases)


def heun(save):
    kind = HeunDiscreteScheduler
    cases = grid(kind, (1, 2, 6), spreads=SPREADS) + grid(kind, (15,), predictions=PREDICTIONS[:2]) + tables(kind)
    cases += [
        (kind, dict(beta_schedule="exp", prediction_type="v_prediction"), 6),
        (kind, LATENT | dict(clip_sample=True, clip_sample_range=0.4), 6),
    ]
    record(save, "schedulers_heun", cases)


def ends(kind, more, counts=(5, 17)):
    """The options about the last steps, for few and for many."""
    cases = []
    for final, lower, euler_last, count in itertools.product(("zero", "sigma_min"), (True, False), (True, False), counts):
        config = dict(final_sigmas_type=final, lower_order_final=lower, euler_at_final=euler_last)
        cases.append((kind, LATENT | more | config, count))
    return cases


def dpm_like(save, name, own):
    kind = DPMSolverMultistepScheduler
    orders = [own | dict(solver_order=order) for order in (1, 2, 3)]
    heuns = [own | dict(solver_order=order, solver_type="heun") for order in (2, 3)]
    cases = grid(kind, (1, 2, 6), options=[own], spreads=SPREADS)
    cases += grid(kind, (3, 8, 20), options=orders, predictions=PREDICTIONS[:2])
    cases += grid(kind, (6, 16), options=heuns, predictions=("v_prediction",))
    cases += [(kind, own | config, plan) for kind, config, plan in tables(kind)]
    for order in (2, 3):
        cases += ends(kind, own | dict(solver_order=order, prediction_type="v_prediction"))
    cases += [
        (kind, LATENT | own | ZERO_SNR, 8),
        (kind, LATENT | own | dict(use_lu_lambdas=True), 6),
        (kind, LATENT | own | dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=12.0), 6),
        (kind, LATENT | own | dict(use_karras_sigmas=True, final_sigmas_type="sigma_min"), 6),
    ]
    for spacing in SPACINGS:
        cosine = dict(beta_schedule="squaredcos_cap_v2", timestep_spacing=spacing, prediction_type="v_prediction")
        cases.append((kind, own | cosine | dict(lambda_min_clipped=-5.1), 8))
        cases.append((kind, own | cosine | dict(use_karras_sigmas=True), 6))
    record(save, name, cases)


def dpm(save):
    dpm_like(save, "schedulers_dpm", {})


def sde(save):
    dpm_like(save, "schedulers_sde", dict(algorithm_type="sde-dpmsolver++"))


def unipc(save):
    kind = UniPCMultistepScheduler
    min_end = dict(final_sigmas_type="sigma_min")
    orders = [
        dict(solver_order=order, solver_type=solver) | min_end for order in (1, 2, 3) for solver in ("bh1", "bh2")
    ]
    epsilons = [more | dict(predict_x0=False) for more in orders]
    cases = grid(kind, (1, 2, 6), spreads=SPREADS)
    cases += grid(kind, (3, 8, 20), options=[dict(solver_order=order) for order in (1, 3)], predictions=PREDICTIONS[:2])
    cases += grid(kind, (6,), options=orders + epsilons, predictions=PREDICTIONS)
    cases += grid(kind, (6,), options=[min_end], spreads=SPREADS[1:], predictions=("v_prediction",))
    cases += tables(kind)
    cases += [
        (kind, LATENT | ZERO_SNR, 8),
        (kind, LATENT | dict(lower_order_final=False, solver_order=3, final_sigmas_type="sigma_min"), 6),
        (kind, LATENT | dict(disable_corrector=[0, 2], solver_order=3), 6),
        (kind, LATENT | dict(use_karras_sigmas=True, sigma_min=0.05, sigma_max=12.0), 6),
    ]
    record(save, "schedulers_unipc", cases)


def lcm(save):
    kind = LCMScheduler
    cases = grid(kind, (1, 2, 4, 7, 50), spacings=("leading",)) + tables(kind)
    cases += [
        (kind, ZERO_SNR, 4),
        (kind, dict(original_inference_steps=37, timestep_scaling=0.02), 5),
        (kind, dict(clip_sample=True, clip_sample_range=0.4), 4),
    ]
    record(save, "schedulers_lcm", cases)


def tcd(save):
    kind = TCDScheduler
    cases = []
    for eta in (0.0, 0.3, 1.0):
        for _, config, steps in grid(kind, (1, 2, 4, 7), spacings=("leading",)):
            cases.append((kind, config, {"steps": steps, "eta": eta}))
        cases.append((kind, ZERO_SNR, {"steps": 4, "eta": eta}))
    cases += tables(kind) + [(kind, dict(original_inference_steps=37), {"steps": 5, "eta": 0.3})]
    record(save, "schedulers_tcd", cases)


def plans(save):
    """Parts of schedules: strengths, starts and ends, for every class."""
    parts = [
        {"strength": 0.3}, {"strength": 0.7}, {"strength": 0.5}, {"strength": 1.0}, {"start": 0.8}, {"start": 0.35},
        {"end": 0.8}, {"end": 0.35}, {"start": 0.2, "end": 0.7}, {"strength": 0.6, "end": 0.9},
    ]
    classes = [
        (DDIMScheduler, LATENT | dict(clip_sample=False, set_alpha_to_one=False), {}),
        (DDIMScheduler, LATENT | dict(clip_sample=False, set_alpha_to_one=False), {"eta": 0.5}),
        (EulerDiscreteScheduler, LATENT | dict(timestep_spacing="leading"), {}),
        (EulerDiscreteScheduler, LATENT | dict(use_karras_sigmas=True), {}),
        (EulerAncestralDiscreteScheduler, LATENT | dict(timestep_spacing="trailing"), {}),
        (HeunDiscreteScheduler, LATENT | dict(timestep_spacing="leading"), {}),
        (HeunDiscreteScheduler, LATENT | dict(use_karras_sigmas=True), {}),
        (DPMSolverMultistepScheduler, LATENT | dict(solver_order=3), {}),
        (DPMSolverMultistepScheduler, LATENT | dict(use_karras_sigmas=True), {}),
        (DPMSolverMultistepScheduler, LATENT | dict(algorithm_type="sde-dpmsolver++"), {}),
        (UniPCMultistepScheduler, LATENT | dict(solver_order=3), {}),
        (LCMScheduler, {}, {}),
        (TCDScheduler, {}, {"eta": 0.3}),
    ]
    cases = []
    for (kind, config, more), part in itertools.product(classes, parts):
        cases.append((kind, config, {"steps": 10} | more | part))
    for steps in range(1, 41):
        for strength in (0.29, 0.57, 0.99):
            if int(steps * strength):
                cases.append((EulerDiscreteScheduler, LATENT, {"steps": steps, "strength": strength}))
    for steps in (7, 12, 25):
        for share in (0.1, 0.5, 0.66, 0.9):
            for kind in (EulerDiscreteScheduler, HeunDiscreteScheduler):
                cases += [(kind, LATENT, {"steps": steps, "start": share}), (kind, LATENT, {"steps": steps, "end": share})]
    text = randn(10, *SHAPE)
    guided = text + 4 * (text - randn(11, *SHAPE))
    extra = {"guidance.prompt": text, "guidance.guided": guided}
    for rescale in (0.0, 0.3, 0.7, 1.0):
        extra[f"guidance.{rescale:.1f}"] = rescale_noise_cfg(guided, text, rescale)
    record(save, "schedulers_plans", cases, extra)


# Configurations as published models carry them: each class's own keys, and some of the schedulers it had before.
OWN = {
    "sdxl": {
        "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "clip_sample": False, "interpolation_type": "linear", "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "sample_max_value": 1.0, "set_alpha_to_one": False, "skip_prk_steps": True,
        "steps_offset": 1, "timestep_spacing": "leading", "trained_betas": None, "use_karras_sigmas": False,
    },
    "zero-snr": {
        "_class_name": "EulerDiscreteScheduler", "beta_end": 0.012, "beta_schedule": "scaled_linear",
        "beta_start": 0.00085, "prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
    },
    "karras": {
        "_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "beta_end": 0.012,
        "beta_schedule": "scaled_linear", "beta_start": 0.00085, "euler_at_final": True,
        "final_sigmas_type": "sigma_min", "lower_order_final": False, "solver_order": 3, "solver_type": "heun",
        "sigma_max": 13.0, "sigma_min": 0.04, "steps_offset": 1, "use_karras_sigmas": True,
    },
    "sparse": {"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1", "beta_schedule": "squaredcos_cap_v2"},
    "lcm": {
        "_class_name": "LCMScheduler", "original_inference_steps": 40, "timestep_scaling": 5.0,
        "timestep_spacing": "leading",
    },
    "ddim": {"_class_name": "DDIMScheduler", "beta_start": 0.001, "clip_sample": True, "steps_offset": 1},
}


def kinds(save):
    """Every kind over configurations that other classes wrote."""
    tensors, meta = {"base": BASE}, []
    for (source, own), name in itertools.product(OWN.items(), KINDS):
        scheduler = of_kind(name, getattr(diffusers, own["_class_name"]).from_config(own).config)
        found = trajectory(scheduler, {"steps": 6}, finite=False)
        # diffusers computes NaN where UniPC's last step has no width (Karras' sigmas down to the least, at order 3), and
        # where its first variant ends at sigma zero (zero times infinity); the engine does neither.
        finite = bool(found["samples"].isfinite().all())
        assert finite or (source in ("karras", "sparse") and name.startswith("unipc")), (source, name)
        for key, tensor in found.items():
            tensors[f"{len(meta)}.{key}"] = tensor
        meta.append({"own": own, "kind": name, "plan": {"steps": 6}, "finite": finite})
    save("schedulers_kinds", tensors, meta)


def noise(save):
    """Draw after draw from one generator; less than sixteen values come in pairs, whose rest is kept. And numpy's f32
    logarithms, whose last place decides some timesteps."""
    draws = [[16, 16, 16], [3, 3, 3], [5, 40, 5, 1, 1], [64, 7, 64, 17], [1] * 7, [1024, 1536, 31, 15]]
    tensors, meta = {}, []
    for seed, counts in enumerate(draws):
        generator = torch.Generator("cpu").manual_seed(seed)
        for draw, count in enumerate(counts):
            tensors[f"{seed}.{draw}"] = torch.randn(count, generator=generator)
        meta.append({"seed": seed, "counts": counts})
    inputs = torch.cat([EulerDiscreteScheduler().sigmas[:-1], EulerDiscreteScheduler(**LATENT).sigmas[:-1]])
    tensors |= {"log.inputs": inputs, "log.outputs": torch.from_numpy(np.log(inputs.numpy()))}
    save("schedulers_noise", tensors, meta)


def make(save):
    for subject in (ddim, euler, ancestral, heun, dpm, sde, unipc, lcm, tcd, plans, kinds, noise):
        subject(save)
