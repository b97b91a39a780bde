"""Pictures that begin from pictures: the autoencoder's encoder, its tiles, image to image, inpainting, the refiner."""

import json
import shutil

import numpy
import schedulers
import torch
from diffusers import (
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from PIL import Image


def picture(seed, height, width):
    """A picture with edges, gradients and noise, as bytes."""
    rng = numpy.random.default_rng(seed)
    y, x = numpy.mgrid[0:height, 0:width]
    planes = [
        128 + 100 * numpy.sin(x / (5 + seed) + channel) * numpy.cos(y / (9 + channel)) for channel in range(3)
    ]
    image = numpy.stack(planes, axis=-1)
    image[height // 4 : height // 2, width // 3 : 2 * width // 3] = rng.integers(0, 256, 3)
    return (image + rng.normal(0, 6, image.shape)).clip(0, 255).astype("uint8")


def planes(images):
    """As a tensor of bytes: batch × channels × height × width."""
    return torch.from_numpy(numpy.stack(images)).permute(0, 3, 1, 2).contiguous()


def encode(golden, name, pipe, tiled):
    """The posterior of two pictures; sizes beyond a tile, tiled, of which large results are thinned."""
    vae = pipe.vae

    def pixels(images):
        return pipe.image_processor.preprocess(images.permute(0, 2, 3, 1).numpy().astype("float32") / 255)

    images = planes([picture(1, 48, 64), picture(2, 48, 64)])
    posterior = vae.encode(pixels(images)).latent_dist
    first = vae.encode(pixels(images[:1])).latent_dist
    sample = first.sample(torch.Generator("cpu").manual_seed(7))
    if vae.config.latents_mean is None:
        scaled = sample * vae.config.scaling_factor
    else:
        mean, std = (torch.tensor(v).view(1, 4, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
        scaled = (sample - mean) * vae.config.scaling_factor / std
    tensors = dict(
        images=images, mean=posterior.mean, log_variance=posterior.logvar, sample=sample, scaled=scaled
    )
    meta = []
    vae.enable_tiling()
    for index, (height, width, every) in enumerate(tiled):
        image = planes([picture(3 + index, height, width)])
        latents = golden.randn(30 + index, 1, 4, height // 8, width // 8)
        tensors[f"{index}.image"] = image
        tensors[f"{index}.mean"] = vae.encode(pixels(image)).latent_dist.mean
        tensors[f"{index}.latents"] = latents
        tensors[f"{index}.decoded"] = vae.decode(latents).sample[:, :, ::every, ::every]
        meta.append({"key": str(index), "every": every})
    vae.disable_tiling()
    golden.save(f"encode_{name}", tensors, meta)


def mask(seed, height, width):
    """What is to be painted anew: a disc with a soft rim, so that values about the threshold occur."""
    y, x = numpy.mgrid[0:height, 0:width]
    distance = numpy.hypot(y - height * 0.45, x - width * (0.4 + 0.05 * seed))
    return (255 * (1.2 - distance / (min(height, width) / 3))).clip(0, 255).astype("uint8")


def overlay(golden, mini, name, kind, channels=4, refines=False):
    """A miniature of which only what differs from `mini` is kept: the UNet, the index, sometimes the VAE's config."""
    folder = golden.OUT / name
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(40 + channels + refines)
    text = mini.text_encoder_2.config
    hidden = text.hidden_size if refines else text.hidden_size + mini.text_encoder.config.hidden_size
    ids = 5 if refines else 6
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=channels, out_channels=4, layers_per_block=1, block_out_channels=(16, 24),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 3), transformer_layers_per_block=1, cross_attention_dim=hidden, norm_num_groups=8,
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=10,
        projection_class_embeddings_input_dim=text.projection_dim + 10 * ids,
    )
    unet.to(torch.float16).save_pretrained(folder / "unet", variant="fp16")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet", variant="fp16", torch_dtype=torch.float32)
    parts = dict(mini.components, unet=unet)
    options = dict(add_watermarker=False)
    if refines:
        parts |= dict(text_encoder=None, tokenizer=None)
        options |= dict(requires_aesthetics_score=True)
    pipe = kind(**parts, **options, force_zeros_for_empty_prompt=False)
    pipe.save_config(folder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def without_moments(golden, mini, name):
    """diffusers 0.42's inpainting forgets latents_mean and latents_std; a model for it has none."""
    config = json.loads((golden.OUT / "mini" / "vae" / "config.json").read_text())
    config |= dict(latents_mean=None, latents_std=None)
    (golden.OUT / name / "vae").mkdir()
    (golden.OUT / name / "vae" / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    vae = type(mini.vae).from_config(config)
    vae.load_state_dict(mini.vae.state_dict())
    return vae.eval()


KINDS = {
    "text": StableDiffusionXLPipeline,
    "image": StableDiffusionXLImg2ImgPipeline,
    "inpaint": StableDiffusionXLInpaintPipeline,
}
SHARED = dict(
    kind="image", prompt="a 3d cat on a blue background", negative=None, seed=1, guidance=2.0, rescale=0.0, steps=8,
    width=64, height=64, scheduler=None, strength=None, start=None, end=None, of=None,
    # Micro-conditioning: original size, crop, target size (height before width, top before left), as the pipelines
    # name them; and the refiner's scores.
    sizes={}, scores={},
)


def draw(golden, pipe, case, given):
    kind = KINDS[case["kind"]]
    config = pipe.config
    own = {key: config[key] for key in ("requires_aesthetics_score",) if key in config and case["kind"] != "text"}
    zeros = config["force_zeros_for_empty_prompt"]
    parts = {k: v for k, v in pipe.components.items() if k not in ("image_encoder", "feature_extractor")}
    if case["scheduler"]:
        parts["scheduler"] = schedulers.of_kind(case["scheduler"], pipe.scheduler.config)
    pipe = kind(**parts, **own, force_zeros_for_empty_prompt=zeros, add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)
    options = dict(given, guidance_rescale=case["rescale"], denoising_end=case["end"], **case["sizes"], **case["scores"])
    if case["kind"] != "image":
        options |= dict(height=case["height"], width=case["width"])
    if case["kind"] != "text":
        options["denoising_start"] = case["start"]
        if case["strength"] is not None:
            options["strength"] = case["strength"]
    kept = {}

    def keep(_pipe, step, _timestep, values):
        kept[step] = values["latents"].clone()
        return {}

    out = pipe(
        case["prompt"], negative_prompt=case["negative"], num_inference_steps=case["steps"],
        guidance_scale=case["guidance"], output_type="np", callback_on_step_end=keep,
        generator=torch.Generator("cpu").manual_seed(case["seed"]), **options,
    ).images[0]
    return kept, torch.from_numpy((out * 255).round().astype("uint8"))


def pictures(golden, name, pipe, cases):
    """`of` is the index of the case whose latents a case goes on from; that case may be of another model."""
    tensors, meta, ends = {}, [], {}
    for index, case in enumerate(cases):
        case = SHARED | case
        given = {}
        if case["of"] is not None:
            given["image"] = ends[case["of"]]
        elif case["kind"] != "text":
            image = picture(case["seed"], case["height"], case["width"])
            tensors[f"{index}.image"] = torch.from_numpy(image)
            given["image"] = Image.fromarray(image)
        if case["kind"] == "inpaint":
            given["mask_image"] = Image.fromarray(mask(case["seed"], case["height"], case["width"]))
            tensors[f"{index}.mask"] = torch.from_numpy(numpy.array(given["mask_image"]))
        kept, tensors[f"{index}.pixels"] = draw(golden, case.pop("pipe", pipe), case, given)
        ends[index] = kept[max(kept)]
        tensors[f"{index}.latents"] = ends[index]
        meta.append(case | {"done": len(kept)})
    golden.save(f"images_{name}", tensors, meta)


SIZES = dict(original_size=(96, 120), crops_coords_top_left=(4, 9), target_size=(64, 80))
AWAY = dict(negative_original_size=(32, 48), negative_target_size=(200, 100))


def pipelines(golden, demo, mini):
    pictures(golden, "demo", demo, [
        dict(width=96), dict(strength=0.3, steps=10, seed=2), dict(strength=0.6, guidance=5.0, negative="dog"),
        dict(strength=1.0, scheduler="dpm++2m-karras", seed=3), dict(strength=0.75, scheduler="ddim", guidance=1.0),
        dict(start=0.3, end=0.8, steps=10, seed=4), dict(strength=0.7, end=0.75, steps=10, scheduler="dpm++2m"),
        dict(strength=0.5, rescale=0.7, guidance=7.5, sizes=SIZES), dict(strength=0.9, sizes=SIZES | AWAY),
        dict(kind="text", rescale=0.6, guidance=6.0, sizes=SIZES), dict(kind="text", sizes=AWAY, negative="dog"),
        dict(kind="text", end=0.6, steps=10, seed=5), dict(start=0.6, steps=10, seed=6, of=11),
        dict(strength=0.4, seed=7, of=10), dict(kind="text", end=0.45, steps=20, scheduler="ddim"),
        dict(start=0.45, steps=20, scheduler="ddim", of=14),
        dict(kind="inpaint", width=96), dict(kind="inpaint", strength=1.0, guidance=5.0, seed=2),
        dict(kind="inpaint", strength=0.5, scheduler="ddim", seed=3, guidance=1.0),
        dict(kind="inpaint", strength=0.8, scheduler="dpm++2m-karras", seed=4, negative="dog", height=96),
        dict(kind="inpaint", start=0.4, end=0.8, steps=10, seed=5),
        dict(kind="inpaint", strength=0.6, seed=6, of=2),
        # Fresh noise in the steps comes after all that was drawn before them, the masked picture's included.
        dict(strength=0.6, scheduler="euler-ancestral", seed=7),
        dict(kind="inpaint", strength=0.7, scheduler="euler-ancestral", seed=8),
    ])
    pictures(golden, "mini", mini, [
        dict(strength=0.5, width=48), dict(strength=1.0, guidance=7.5, scheduler="euler"),
        dict(strength=0.8, scheduler="dpm++2m", negative="dog", height=48), dict(strength=1.0, steps=1, seed=3),
    ])
    inpaint = overlay(golden, mini, "mini_inpaint", StableDiffusionXLInpaintPipeline, channels=9)
    inpaint.vae = without_moments(golden, mini, "mini_inpaint")
    pictures(golden, "inpaint", inpaint, [
        dict(kind="inpaint", width=48), dict(kind="inpaint", strength=1.0, guidance=1.0, seed=2),
        dict(kind="inpaint", strength=0.6, scheduler="euler", seed=3), dict(kind="inpaint", start=0.5, steps=10, seed=4),
        dict(kind="inpaint", strength=0.7, scheduler="dpm++2m", end=0.7, steps=10),
        dict(kind="inpaint", strength=0.7, scheduler="euler-ancestral", seed=5),
    ])
    refiner = overlay(golden, mini, "mini_refiner", StableDiffusionXLImg2ImgPipeline, refines=True)
    pictures(golden, "refiner", refiner, [
        dict(strength=0.5), dict(strength=0.3, steps=10, scheduler="euler", negative="dog", seed=2),
        dict(strength=0.8, scores=dict(aesthetic_score=7.5, negative_aesthetic_score=1.0), sizes=SIZES),
        dict(pipe=mini, kind="text", end=0.7, steps=10, seed=3), dict(start=0.7, steps=10, seed=3, of=3),
        dict(pipe=mini, kind="text", end=0.5, steps=10, seed=4, scheduler="euler"),
        dict(start=0.5, steps=10, seed=4, scheduler="euler", of=5, guidance=1.0), dict(strength=0.8, sizes=SIZES),
    ])


def record(golden, demo, mini):
    # The demo model's tiles are of 128 pixels, the miniature's of 256.
    encode(golden, "demo", demo, [(192, 160, 1), (96, 336, 2), (288, 136, 2)])
    encode(golden, "mini", mini, [(264, 480, 4), (456, 104, 4)])
    pipelines(golden, demo, mini)
