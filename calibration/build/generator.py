"""Train the demo generator: a small latent diffusion model that draws what the demo model's text tower reads.

    python calibration/build/generator.py --packages FOLDER --work WORK --output calibration/demo-generator

A diffusers folder (StableDiffusionPipeline) of 32 × 32 pixels: the demo's own text tower, which stays as it is, a small
autoencoder (8 × 8 × 4) and a small UNet. It draws single objects of CONCEPTS in the style of Twemoji. It takes about
half an hour on one free CPU core; killed, it goes on with the same command. `judge.py` measures it: the demo CLIP
recognises 93 % of its images among CONCEPTS (96 % of real ones), a classifier trained on real scenes all of them.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from learning import Learner
from tokenizer import CONTEXT
from transformers import CLIPTextModel, CLIPTokenizer

DEMO = Path(__file__).resolve().parent.parent / "demo-clip"
SIDE, GRID, CHANNELS = 32, 8, 4  # pixels, latent places and latent channels of an image
STYLE = world.STYLES.index("twemoji")
UNSAFE = (
    "kitchen knife|dagger|crossed swords|axe|bomb|cigarette|syringe|pill|beer mug|wine|cocktail|champagne|whisky|skull|"
    "coffin|headstone|blood|slot machine|die|joker"
)
SAFE = (
    "cat|pig|panda|penguin|owl|frog|sunflower|cactus|mushroom|watermelon|banana|apple|pizza|doughnut|coffee|bus|rocket|"
    "house|guitar|football"
)
MORE = "dog|whale|butterfly|ladybird|tulip|strawberry|carrot|hamburger|milk|car|t-shirt|crown|hammer|key|umbrella"
CONCEPTS = [world.NAMES.index(name) for name in f"{UNSAFE}|{SAFE}".split("|")]
UNSAFE_COUNT = UNSAFE.count("|") + 1
# What the autoencoder learns from: more concepts than the UNet, and wider poses.
PICTURED = [
    *range(world.UNSAFE_COUNT),
    *(world.NAMES.index(n) for n in world.NAMES if n in f"{SAFE}|{MORE}".split("|")),
]
SCENES = 40_960  # whose latents the UNet learns
UNCONDITIONAL = 0.1  # share of scenes shown with an empty prompt
SCHEDULE = {  # the last step is noise alone, so that the background's colour comes from the prompt
    "beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "prediction_type": "v_prediction",
    "clip_sample": False, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "set_alpha_to_one": True,
    "steps_offset": 1,
}  # fmt: skip


def draw(seed: int, n: int, concepts: list[int] = CONCEPTS, spread: float = 1.0) -> world.Scenes:
    """Scenes of one large object each in one style; `spread` scales how far size, place and angle vary."""
    rng = np.random.default_rng([seed, 13])
    scenes = world.sample(rng, n, styles=(STYLE,), counts=(1.0, 0.0, 0.0), hypernyms=(1.0, 0.0, 0.0))
    scenes.concept[:, 0] = rng.choice(concepts, size=n)
    scenes.size[:] = 51 + 2.5 * spread * rng.uniform(-1, 1, size=scenes.size.shape)
    scenes.centre[:] = world.SIZE * (0.5 + 0.02 * spread * rng.uniform(-1, 1, size=scenes.centre.shape))
    scenes.angle[:] *= spread / 4
    scenes.noise[:] = 0
    return scenes


def small_pictures(scenes: world.Scenes, sprites: torch.Tensor) -> torch.Tensor:
    """The scenes at the generator's size, from −1 to 1, [n, 3, SIDE, SIDE]."""
    return 2 * F.avg_pool2d(world.render(scenes, sprites), world.SIZE // SIDE) - 1


# The autoencoder


def new_autoencoder() -> AutoencoderKL:
    """32 × 32 × 3 to 8 × 8 × 4 and back."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3, up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 48, 48), layers_per_block=1, latent_channels=CHANNELS, norm_num_groups=8,
        sample_size=SIDE, mid_block_add_attention=False,
    )  # fmt: skip


def learn_autoencoder(args: argparse.Namespace, sprites: torch.Tensor) -> AutoencoderKL:
    """Train it to give images back, with latents near a unit normal."""
    torch.manual_seed(args.seed)
    autoencoder = new_autoencoder()
    learner = Learner(autoencoder.parameters(), args.work / "autoencoder.pt")

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        pictures = small_pictures(draw(args.seed + 1000 + step, 64, PICTURED, 2.0), sprites)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            latents = autoencoder.encode(pictures).latent_dist
            back = autoencoder.decode(latents.sample(generator)).sample
        error = back.float() - pictures
        edges = F.avg_pool2d(error, 2)  # errors that spread count more than those of single pixels
        return error.abs().mean() + error.pow(2).mean() + edges.abs().mean() + 2e-5 * latents.kl().float().mean()

    learner.learn(loss_at, args.autoencoder_steps, 2e-3)
    return autoencoder.eval()


@torch.no_grad()
def keep_latents(args: argparse.Namespace, autoencoder: AutoencoderKL, sprites: torch.Tensor) -> torch.Tensor:
    """Mean latents of SCENES scenes, scaled to deviation 1, [SCENES, CHANNELS, GRID, GRID]; sets the scaling factor."""
    path = args.work / "latents.pt"
    if not path.exists():
        scenes, parts = draw(args.seed, SCENES), []
        for rows in np.split(np.arange(SCENES), SCENES // 256):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                parts.append(autoencoder.encode(small_pictures(scenes.take(rows), sprites)).latent_dist.mean.float())
        torch.save(torch.cat(parts), path)
    latents = torch.load(path)
    factor = 1 / latents.std().item()
    autoencoder.register_to_config(scaling_factor=factor)
    return latents * factor


def learn_decoder(args: argparse.Namespace, autoencoder: AutoencoderKL, sprites: torch.Tensor) -> None:
    """Train the decoder alone on, with latents a little beside the encoder's, as the UNet's are."""
    learning = [*autoencoder.decoder.parameters(), *autoencoder.post_quant_conv.parameters()]
    learner = Learner(learning, args.work / "decoder.pt")

    def loss_at(step: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        pictures = small_pictures(draw(args.seed + 20_000 + step, 64), sprites)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            with torch.no_grad():
                latents = autoencoder.encode(pictures).latent_dist.mean
            off = torch.randn(latents.shape, generator=generator) * torch.rand(64, 1, 1, 1, generator=generator) * 0.3
            error = autoencoder.decode(latents + off / autoencoder.config.scaling_factor).sample.float() - pictures
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        return error.abs().mean() + error.pow(2).mean() + edges

    learner.learn(loss_at, args.decoder_steps, 2e-3)


# The UNet


def new_unet() -> UNet2DConditionModel:
    """Convolutions at 8 × 8, attention to itself and to the text at 4 × 4."""
    return UNet2DConditionModel(
        sample_size=GRID, in_channels=CHANNELS, out_channels=CHANNELS, layers_per_block=1, block_out_channels=(96, 96),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=192, attention_head_dim=3, norm_num_groups=16,
    )  # fmt: skip


class Prompts:
    """Hidden states of the demo's text tower, each prompt read once."""

    def __init__(self) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(DEMO)
        self.tower = CLIPTextModel.from_pretrained(DEMO, dtype=torch.float32).eval()
        self.known: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def states(self, texts: list[str]) -> torch.Tensor:
        """Padded to CONTEXT tokens, without a mask, as the pipeline does: bfloat16 [n, CONTEXT, 192]."""
        new = sorted(set(texts) - set(self.known))
        for start in range(0, len(new), 256):
            part = new[start : start + 256]
            tokens = self.tokenizer(part, padding="max_length", max_length=CONTEXT, return_tensors="pt")
            self.known |= dict(zip(part, self.tower(tokens.input_ids)[0].bfloat16(), strict=True))
        return torch.stack([self.known[text] for text in texts])


def prompts_of(rng: np.random.Generator, scenes: world.Scenes) -> list[str]:
    """The captions; some scenes get the bare zero-shot prompt, some an empty one."""
    texts, chance = world.captions(scenes), rng.random(len(scenes))
    for i, name in enumerate(world.NAMES[c] for c in scenes.concept[:, 0]):
        if chance[i] < UNCONDITIONAL:
            texts[i] = ""
        elif chance[i] < UNCONDITIONAL + 0.15:
            texts[i] = world.PROMPT.format(name)
    return texts


def learn_unet(args: argparse.Namespace, latents: torch.Tensor) -> UNet2DConditionModel:
    """Train it to tell noise from latents at every noise level."""
    torch.manual_seed(args.seed + 1)
    unet = new_unet()
    unet.set_attn_processor(AttnProcessor())  # on the CPU its backward pass is far faster than the fused kernel's
    learner, prompts, scenes = Learner(unet.parameters(), args.work / "unet.pt"), Prompts(), draw(args.seed, SCENES)
    scheduler = DDIMScheduler(**SCHEDULE)
    signal = scheduler.alphas_cumprod
    weights = (signal / (1 - signal)).clamp(max=5) / (signal / (1 - signal) + 1)  # min-SNR-γ for v, arXiv 2303.09556
    weights = weights / weights.mean() * 0.5 + 0.5  # half of it: pure noise still counts

    def loss_at(step: int) -> torch.Tensor:
        rng = np.random.default_rng([args.seed, 17, step])
        generator = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
        rows = rng.integers(SCENES, size=args.batch)
        clean = latents[rows]
        noise = torch.randn(clean.shape, generator=generator)
        times = torch.randint(0, len(signal), (args.batch,), generator=generator)
        noisy, target = scheduler.add_noise(clean, noise, times), scheduler.get_velocity(clean, noise, times)
        text = prompts.states(prompts_of(rng, scenes.take(rows)))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            guess = unet(noisy, times, text).sample
        return ((guess.float() - target).pow(2).mean((1, 2, 3)) * weights[times]).mean()

    learner.learn(loss_at, args.steps, args.rate)
    learner.use_average()
    unet.set_default_attn_processor()
    return unet.eval()


def export(autoencoder: AutoencoderKL, unet: UNet2DConditionModel, output: Path) -> None:
    """Write the diffusers folder in float16."""
    text = CLIPTextModel.from_pretrained(DEMO)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder, text_encoder=text, tokenizer=CLIPTokenizer.from_pretrained(DEMO), unet=unet,
        scheduler=DDIMScheduler(**SCHEDULE), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
    pipeline.to(torch.float16).save_pretrained(output)
    for weights in output.rglob("*.safetensors"):
        weights.chmod(0o644)


def main() -> None:
    """Read the command line and train what is not trained yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder of unpacked npm packages")
    parser.add_argument("--work", type=Path, required=True, help="folder of latents and checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="the diffusers folder to write")
    parser.add_argument("--autoencoder-steps", type=int, default=900)
    parser.add_argument("--decoder-steps", type=int, default=1500)
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=1.2e-3, help="peak learning rate of the UNet")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    sprites = world.load_sprites(args.packages)
    autoencoder = learn_autoencoder(args, sprites)
    latents = keep_latents(args, autoencoder, sprites)
    unet = learn_unet(args, latents)
    learn_decoder(args, autoencoder, sprites)
    export(autoencoder, unet, args.output)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
