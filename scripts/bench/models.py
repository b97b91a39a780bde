"""Random weights of SDXL's shapes, written by diffusers into a scratch folder that git ignores."""

import pathlib

import torch

UNET = {
    "sample_size": 64,
    "block_out_channels": (64, 128, 256),
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    # The first level has no attention, so none of its layers.
    "transformer_layers_per_block": (1, 1, 2),
    "attention_head_dim": (1, 2, 4),
    "layers_per_block": 2,
    "cross_attention_dim": 512,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}

VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 512,
    "scaling_factor": 0.13025,
}


def write(scratch: pathlib.Path, name: str) -> pathlib.Path:
    """The folder of the random `unet` or `vae`, made if it is not there."""
    from diffusers import AutoencoderKL, UNet2DConditionModel

    folder = scratch / name
    # The configuration is written first, the weights last.
    if not (folder / "diffusion_pytorch_model.safetensors").exists():
        torch.manual_seed(0)
        model = UNet2DConditionModel(**UNET) if name == "unet" else AutoencoderKL(**VAE)
        model.save_pretrained(folder)
    return folder
