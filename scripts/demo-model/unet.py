"""The denoiser: both text encoders and the UNet, trained together from nothing.

v-prediction, plain squared error, uniform timesteps. SDXL's conditioning exactly: hidden states
before the last layer of both encoders side by side, the second one's projection, and time ids.
"""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

from latents import Batch, LatentPool
from optim import MuonAdamW, WeightAverage
from settings import LATENT_SIDE, Preset
from stage import Stage
from tokenizer import MAX_TOKENS

TRAIN_TIMESTEPS = 1000
BETA_START, BETA_END = 0.00085, 0.012
"""SDXL's scaled-linear noise schedule."""

FIRST_WIDTH, SECOND_WIDTH = 64, 128
"""Hidden sizes of the two text encoders."""

TIME_EMBED_WIDTH = 32

ZERO_CHANCE = 0.05
"""Samples trained with all-zero embeddings: what SDXL uses where there is no negative prompt."""

LONG_CONTEXT_EVERY = 4
"""Every so many steps the captions are padded to all 77 tokens, as at inference; others are short,
which is cheaper."""


class Denoiser(nn.Module):
    """The three networks that learn together."""

    def __init__(self, preset: Preset, vocabulary: int) -> None:
        """Fresh weights; `vocabulary`: number of tokens, the last two being start and end."""
        super().__init__()
        self.end = vocabulary - 1
        self.text_encoder = CLIPTextModel(_clip(FIRST_WIDTH, 1, "quick_gelu", vocabulary))
        self.text_encoder_2 = CLIPTextModelWithProjection(
            _clip(SECOND_WIDTH, 2, "gelu", vocabulary)
        )
        self.unet = UNet2DConditionModel(
            sample_size=LATENT_SIDE,
            in_channels=4,
            out_channels=4,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
            mid_block_type="UNetMidBlock2DCrossAttn",
            up_block_types=["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
            block_out_channels=[64, 128, 192],
            layers_per_block=preset.unet_layers_per_block,
            transformer_layers_per_block=[1, 1, 2],
            attention_head_dim=[1, 2, 3],  # numbers of heads, each 64 wide (diffusers' naming)
            cross_attention_dim=FIRST_WIDTH + SECOND_WIDTH,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=TIME_EMBED_WIDTH,
            projection_class_embeddings_input_dim=SECOND_WIDTH + 6 * TIME_EMBED_WIDTH,
            norm_num_groups=32,
        )
        for encoder in (self.text_encoder, self.text_encoder_2):
            for name, weight in encoder.named_parameters():
                # Far apart from the start, so that words separate within minutes.
                if "token_embedding" in name:
                    nn.init.normal_(weight, std=0.3)
                elif "position_embedding" in name:
                    nn.init.normal_(weight, std=0.05)

    def forward(self, noisy: Tensor, timesteps: Tensor, batch: Batch, zeroed: Tensor) -> Tensor:
        """Predict v; `zeroed` ([B], bool) marks samples whose embeddings are replaced by zeros."""
        tokens = batch.token_ids
        # Encoder 2 pads with id 0 behind the first end-of-text; encoder 1 with end-of-text itself.
        ends = (tokens == self.end).int()
        tokens_2 = tokens.masked_fill((ends.cumsum(dim=1) - ends) > 0, 0)
        first = self.text_encoder(tokens, output_hidden_states=True).hidden_states[-2]
        second = self.text_encoder_2(tokens_2, output_hidden_states=True)
        context = torch.cat([first, second.hidden_states[-2]], dim=-1)
        context = context.masked_fill(zeroed[:, None, None], 0)
        pooled = second.text_embeds.masked_fill(zeroed[:, None], 0)
        conditions = {"text_embeds": pooled, "time_ids": batch.time_ids}
        return self.unet(noisy, timesteps, context, added_cond_kwargs=conditions).sample


def _clip(width: int, heads: int, activation: str, vocabulary: int) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=2,
        num_attention_heads=heads,
        max_position_embeddings=MAX_TOKENS,
        hidden_act=activation,
        projection_dim=width,
        bos_token_id=vocabulary - 2,
        eos_token_id=vocabulary - 1,
        pad_token_id=vocabulary - 1,
    )


class NoiseSchedule:
    """The forward process on the training device."""

    def __init__(self, device: torch.device) -> None:
        """Tabulate the signal that is left at each timestep."""
        betas = torch.linspace(BETA_START**0.5, BETA_END**0.5, TRAIN_TIMESTEPS) ** 2
        left = torch.cumprod(1 - betas, dim=0).to(device)
        self._signal, self._noise = left.sqrt(), (1 - left).sqrt()

    def noisy_and_v(self, latents: Tensor, noise: Tensor, steps: Tensor) -> tuple[Tensor, Tensor]:
        """The noised latents at these timesteps, and the v that denoises them."""
        signal = self._signal[steps].view(-1, 1, 1, 1)
        sigma = self._noise[steps].view(-1, 1, 1, 1)
        return signal * latents + sigma * noise, signal * noise - sigma * latents


def train_denoiser(
    preset: Preset,
    pool: LatentPool,
    vocabulary: int,
    folder: Path,
    budget_s: float,
    device: torch.device,
    *,
    bf16: bool,
) -> Denoiser:
    """Train until the budget is spent; gives the averaged weights.

    Goes on from `folder`/unet.pt where an earlier run stopped; Ctrl-C saves before it stops.
    """
    denoiser = Denoiser(preset, vocabulary).to(device)
    optimizer = MuonAdamW(
        denoiser.named_parameters(), preset.unet_rate, ("embedding", "conv_in", "conv_out")
    )
    average = WeightAverage(denoiser, decay=0.998)
    schedule = NoiseSchedule(device)
    with Stage("unet", folder / "unet.pt", budget_s, denoiser, optimizer, average) as stage:
        while stage.done < 1:
            pool.refresh(preset.pool_refresh)
            batch = pool.batch(preset.unet_batch)
            if stage.step % LONG_CONTEXT_EVERY == 0:
                batch = _padded(batch, denoiser.end)
            count = len(batch.latents)
            steps = torch.randint(0, TRAIN_TIMESTEPS, (count,), device=device)
            zeroed = torch.rand(count, device=device) < ZERO_CHANCE
            noise = torch.randn_like(batch.latents)
            noisy, target = schedule.noisy_and_v(batch.latents, noise, steps)
            with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
                predicted = denoiser(noisy, steps, batch, zeroed)
            loss = ((predicted.float() - target) ** 2).mean()
            denoiser.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step(stage.rate(flat=0.35, warm_up=40))
            average.update(stage.step)
            stage.advance(loss)
    average.copy_to(denoiser)
    print(f"unet: {stage.step} steps of {preset.unet_batch} samples")
    return denoiser.eval()


def _padded(batch: Batch, end: int) -> Batch:
    missing = MAX_TOKENS - batch.token_ids.shape[1]
    tokens = nn.functional.pad(batch.token_ids, (0, missing), value=end)
    return Batch(batch.latents, tokens, batch.time_ids)
