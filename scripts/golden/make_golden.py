#!/usr/bin/env python3
"""Records what diffusers computes, for the tests of crates/diffusion to compare with.

    python3 -m venv VENV && VENV/bin/pip install -r scripts/golden/requirements.txt
    VENV/bin/python scripts/golden/make_golden.py [SUBJECT…]

Writes crates/diffusion/tests/golden/: one small safetensors file a subject (its metadata say what was asked) and
`mini/`, a random-weight miniature SDXL whose configuration differs from the demo model's wherever it can. With subjects
that are modules of their own (`SUBJECTS` below) only those.
"""

import json
import os
import pathlib
import shutil
import sys

os.environ.setdefault("OMP_NUM_THREADS", "1")

import prompts
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from safetensors.torch import save_file
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

import images
import schedulers
import single_file

torch.set_num_threads(1)
torch.set_grad_enabled(False)

ROOT = pathlib.Path(__file__).resolve().parents[2]
DEMO = ROOT / "assets" / "models" / "inkstone-demo"
OUT = ROOT / "crates" / "diffusion" / "tests" / "golden"

PROMPTS = [
    "",
    "a 3d cat on a blue background",
    "  Rocket,   flat STYLE!!  ",
    "it's the dog's 3 bones & we'll eat 42 of 1234567890",
    "une pêche mûre — 熊猫 🐼 naïve Ångström \u00e9 e\u0301",
    "panda " * 120,
    "new\nline\ttab <|endoftext|> after the end (weighted:1.3) [x] {y} ~ ^_^",
    "İstanbul ẞ ﬁ ǅ Ω \u200b zero width",
    "! !! !!!",
]


def save(name, tensors, meta):
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    save_file(tensors, OUT / f"{name}.safetensors", metadata={"cases": json.dumps(meta)})
    (OUT / f"{name}.safetensors").chmod(0o644)
    print(f"{name}: {(OUT / f'{name}.safetensors').stat().st_size} bytes")


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator("cpu").manual_seed(seed))


def make_mini():
    """A model of random weights: epsilon, two layers a block, a convolution as projection, DDIM, other widths."""
    folder = OUT / "mini"
    shutil.rmtree(folder, ignore_errors=True)
    torch.manual_seed(20)
    shared = dict(vocab_size=1560, bos_token_id=1558, eos_token_id=1559, max_position_embeddings=77)
    one = CLIPTextModel(
        CLIPTextConfig(
            hidden_size=16, intermediate_size=40, num_hidden_layers=3, num_attention_heads=2, hidden_act="gelu",
            pad_token_id=1559, projection_dim=16, **shared,
        )
    )
    two = CLIPTextModelWithProjection(
        CLIPTextConfig(
            hidden_size=24, intermediate_size=56, num_hidden_layers=3, num_attention_heads=3, hidden_act="quick_gelu",
            pad_token_id=0, projection_dim=20, layer_norm_eps=1e-6, **shared,
        )
    )
    unet = UNet2DConditionModel(
        sample_size=32, in_channels=4, out_channels=4, layers_per_block=2, block_out_channels=(16, 32),
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        attention_head_dim=(2, 4), transformer_layers_per_block=(1, 2), cross_attention_dim=40, norm_num_groups=8,
        use_linear_projection=False, addition_embed_type="text_time", addition_time_embed_dim=10,
        projection_class_embeddings_input_dim=20 + 60, flip_sin_to_cos=False, freq_shift=1, norm_eps=1e-6,
    )
    vae = AutoencoderKL(
        in_channels=3, out_channels=3, latent_channels=4, block_out_channels=(8, 12, 16, 24), layers_per_block=2,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        norm_num_groups=4, sample_size=256, scaling_factor=0.5,
        latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0],
    )
    for module in (one, two, unet, vae):
        for name, value in module.named_parameters():
            if "norm" in name:
                value.add_(0.1 * torch.randn_like(value))
            elif name.endswith("bias"):
                value.copy_(0.1 * torch.randn_like(value))
    scheduler = DDIMScheduler(
        beta_start=0.001, beta_end=0.02, beta_schedule="linear", clip_sample=False, set_alpha_to_one=False,
        steps_offset=1, prediction_type="epsilon", timestep_spacing="leading",
    )
    pipe = StableDiffusionXLPipeline(
        vae=vae, text_encoder=one, text_encoder_2=two, tokenizer=CLIPTokenizer.from_pretrained(DEMO / "tokenizer"),
        tokenizer_2=CLIPTokenizer.from_pretrained(DEMO / "tokenizer_2"), unet=unet, scheduler=scheduler,
        force_zeros_for_empty_prompt=False, add_watermarker=False,
    ).to(torch.float16)
    pipe.save_pretrained(folder, variant="fp16")
    for part in ("tokenizer", "tokenizer_2"):
        # The plain files, as published models carry them.
        shutil.rmtree(folder / part)
        (folder / part).mkdir()
        for name in ("vocab.json", "merges.txt", "special_tokens_map.json", "tokenizer_config.json"):
            shutil.copy(DEMO / part / name, folder / part / name)


def load(folder, variant=None):
    return StableDiffusionXLPipeline.from_pretrained(
        folder, torch_dtype=torch.float32, add_watermarker=False, variant=variant
    )


def tokens(pipe):
    rows = {}
    for name, tokenizer in (("tokenizer", pipe.tokenizer), ("tokenizer_2", pipe.tokenizer_2)):
        rows[name] = tokenizer(
            PROMPTS, padding="max_length", max_length=tokenizer.model_max_length, truncation=True, return_tensors="pt"
        ).input_ids.to(torch.int64)
    save("tokens", rows, PROMPTS)


def text(name, pipe):
    prompts = PROMPTS[1:3]
    tensors = {}
    for index, prompt in enumerate(prompts):
        for key, tokenizer, encoder in (
            ("one", pipe.tokenizer, pipe.text_encoder),
            ("two", pipe.tokenizer_2, pipe.text_encoder_2),
        ):
            ids = tokenizer(prompt, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
            out = encoder(ids, output_hidden_states=True)
            tensors[f"{index}.{key}"] = out.hidden_states[-2][0]
            if key == "two":
                tensors[f"{index}.pooled"] = out.text_embeds[0]
    save(f"text_{name}", tensors, prompts)


def unet(name, pipe, size):
    model = pipe.unet
    rows = 2
    width = model.config.cross_attention_dim
    pooled_width = pipe.text_encoder_2.config.projection_dim
    sample = randn(1, rows, 4, *size)
    timestep = torch.tensor([951.0, 313.0])
    context = randn(2, rows, 77, width)
    pooled = randn(3, rows, pooled_width)
    time_ids = torch.tensor([[128.0, 128, 0, 0, 128, 128], [1024.0, 768, 16, 32, 1024, 512]])
    embedded = model.time_embedding(model.time_proj(timestep))
    ids = model.add_time_proj(time_ids.flatten()).reshape(rows, -1)
    added = model.add_embedding(torch.cat([pooled, ids], dim=-1))
    stages = {}

    def record(key):
        def hook(_module, _inputs, output):
            stages[key] = output[0] if isinstance(output, tuple) else output

        return hook

    hooks = [block.register_forward_hook(record(f"down.{i}")) for i, block in enumerate(model.down_blocks)]
    hooks.append(model.mid_block.register_forward_hook(record("mid")))
    hooks += [block.register_forward_hook(record(f"up.{i}")) for i, block in enumerate(model.up_blocks)]
    out = model(
        sample, timestep, encoder_hidden_states=context, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids}
    ).sample
    for hook in hooks:
        hook.remove()
    tensors = dict(
        sample=sample, timestep=timestep, context=context, pooled=pooled, time_ids=time_ids, embedded=embedded,
        added=added, out=out,
    )
    # Large stages are thinned: the first row, every fourth channel.
    tensors |= {f"stage.{key}": value[:1, ::4] for key, value in stages.items()}
    save(f"unet_{name}", tensors, {})


def vae(name, pipe, size):
    latents = randn(4, 1, 4, *size)
    tensors = dict(latents=latents, image=pipe.vae.decode(latents).sample)
    save(f"vae_{name}", tensors, {})


def noise():
    tensors, meta = {}, []
    for seed in (0, 1, 42, 0xFFFF_FFFF, 0x1_0000_0001, 2**63 + 5):
        for count in (1, 2, 3, 15, 16, 17, 24, 31, 40, 1024, 1536):
            generator = torch.Generator("cpu").manual_seed(seed)
            tensors[f"{seed}.{count}"] = torch.randn(count, generator=generator)
            meta.append({"seed": str(seed), "count": count})
    save("noise", tensors, meta)


def pictures(name, pipe, cases):
    tensors, meta = {}, []
    own = pipe.scheduler
    for index, case in enumerate(cases):
        case = dict(prompt="a 3d cat on a blue background", negative=None, seed=1, guidance=2.0, steps=20, width=128,
                    height=128, scheduler=None, eta=0.0, rescale=0.0) | case
        pipe.scheduler = own
        if case["scheduler"]:
            pipe.scheduler = schedulers.of_kind(case["scheduler"], own.config)
        kept = {}

        def keep(_pipe, step, _timestep, values):
            kept[step] = values["latents"]
            return {}

        out = pipe(
            case["prompt"], negative_prompt=case["negative"], height=case["height"], width=case["width"],
            num_inference_steps=case["steps"], guidance_scale=case["guidance"], guidance_rescale=case["rescale"],
            eta=case["eta"], output_type="np",
            generator=torch.Generator("cpu").manual_seed(case["seed"]), callback_on_step_end=keep,
        ).images[0]
        tensors[f"{index}.latents"] = kept[max(kept)]
        tensors[f"{index}.pixels"] = torch.from_numpy((out * 255).round().astype("uint8"))
        meta.append(case)
    pipe.scheduler = own
    save(f"pictures_{name}", tensors, meta)


SUBJECTS = {
    "single_file": lambda _demo, _mini: single_file.make(),
    "schedulers": lambda _demo, _mini: schedulers.make(save),
    "images": lambda demo, mini: images.record(sys.modules[__name__], demo, mini),
}


def main():
    OUT.mkdir(parents=True, exist_ok=True)
    if not sys.argv[1:]:
        make_mini()
    demo, mini = load(DEMO), load(OUT / "mini", "fp16")
    demo.set_progress_bar_config(disable=True)
    mini.set_progress_bar_config(disable=True)
    for subject in sys.argv[1:] or SUBJECTS:
        SUBJECTS[subject](demo, mini)
    if not sys.argv[1:]:
        everything_else(demo, mini)


def everything_else(demo, mini):
    tokens(demo)
    for name, pipe in (("demo", demo), ("mini", mini)):
        prompts.record(name, (pipe.tokenizer, pipe.tokenizer_2), (pipe.text_encoder, pipe.text_encoder_2))
    noise()
    for name, pipe, size in (("demo", demo, (16, 16)), ("mini", mini, (12, 16))):
        text(name, pipe)
        unet(name, pipe, size)
        vae(name, pipe, size)
    pictures("demo", demo, [
        {}, {"guidance": 1.0, "steps": 8}, {"guidance": 5.0}, {"prompt": "rocket, flat style", "steps": 8, "seed": 7},
        {"width": 192, "seed": 3, "steps": 8}, {"height": 192, "width": 64, "seed": 4, "steps": 8},
        {"negative": "dog", "seed": 5}, {"negative": "", "seed": 6, "steps": 8}, {"prompt": "", "steps": 8},
        {"scheduler": "ddim"}, {"scheduler": "dpm++2m"}, {"scheduler": "dpm++2m-karras"},
        {"scheduler": "dpm++2m-karras", "steps": 8, "seed": 2**63 + 5},
    ])
    pictures("schedulers", demo, schedulers.PICTURES)
    pictures("mini", mini, [
        {"width": 64, "height": 64, "steps": 4}, {"width": 64, "height": 48, "guidance": 7.5, "steps": 20},
        {"width": 64, "height": 64, "guidance": 1.0, "steps": 8, "scheduler": "euler", "negative": "ignored"},
        {"width": 64, "height": 64, "steps": 8, "scheduler": "dpm++2m", "negative": "dog"},
    ])


main()
