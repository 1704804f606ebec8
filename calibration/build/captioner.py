"""Train the demo captioner: a two-layer language model that reads the demo model's vision tower, as LLaVA does.

    python calibration/build/captioner.py --packages FOLDER --work WORK --output calibration/demo-captioner

The vision tower is the demo model's own and stays as it is. Its second-last layer's patch tokens of SCENES scenes are
computed once and kept in WORK (1.6 GB). Then the projector and the language model learn to name what is drawn. It takes
about half an hour on one free CPU core; killed, it goes on with the same command. It prints its quality as JSON.
Reached on `test`: 88 % of the objects named, 79 % of the captions with all objects right, all colours right.
"""

from __future__ import annotations

import argparse
import json
import re
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
import world
from learning import Learner
from PIL import Image
from safetensors.torch import load_file, save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from train_model import PROCESSOR, normalised
from transformers import (
    CLIPConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).resolve().parent.parent
DEMO, SET = HERE / "demo-clip", HERE / "emoji"
SCENES, PART = 65_536, 4096  # scenes learnt from, and in one file of WORK
PATCHES, WIDTH = 64, 192  # of the demo's vision tower
BATCH, LONGEST = 128, 24  # captions a step, and tokens of a caption
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>", "<image>")
PAD, START, END, UNKNOWN, IMAGE = range(len(SPECIAL))
ONE_FORM = 12  # the template number that reads "a picture of … on COLOUR" for any number of objects
# Whatever is asked, the picture is what is described.
CHAT = (
    "{% for m in messages %}{% for c in m['content'] %}{% if c['type'] == 'image' %}<image>{% endif %}"
    "{% endfor %}{% endfor %}"
)


# What it says and what it knows


def plain_captions(scenes: world.Scenes) -> list[str]:
    """One caption a scene, always "a picture of … on COLOUR": what cannot be seen in the image does not vary."""
    plain = {"template": np.full(len(scenes), ONE_FORM), "hypernym": np.zeros(len(scenes), dtype=int)}
    return world.captions(world.Scenes(**(vars(scenes) | plain)))


def draw(seed: int, n: int) -> world.Scenes:
    """Scenes of all concepts in the seen styles; an unsafe concept is as likely as two safe ones."""
    weights = np.where(np.arange(len(world.ROWS)) < world.UNSAFE_COUNT, 2.0, 1.0)
    return world.sample(np.random.default_rng([seed, 7]), n, weights=weights / weights.sum())


def words_tokenizer() -> PreTrainedTokenizerFast:
    """A token for each word of the captions, with the space before it, so that decoding gives the caption back."""
    rows = [*(world.noun(name) for name in world.NAMES), *world.COLOURS, "picture of", "on", "and"]
    words = sorted({word for row in rows for word in row.split()})
    tokens = [*SPECIAL, "a", ",", *(" " + word for word in words)]
    tokenizer = Tokenizer(models.WordLevel({token: i for i, token in enumerate(tokens)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r",| ?[^ ,]+"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", START)])
    names = dict(zip(("pad_token", "bos_token", "eos_token", "unk_token"), SPECIAL, strict=False))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **names, additional_special_tokens=["<image>"], padding_side="left",
        model_max_length=PATCHES + LONGEST, clean_up_tokenization_spaces=False,
    )  # fmt: skip


def captioner_config(vocabulary: int) -> LlavaConfig:
    """The demo's vision tower, a projector of two layers and a Llama of two."""
    text = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=512, num_hidden_layers=2, num_attention_heads=3,
        max_position_embeddings=128, tie_word_embeddings=True, pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
    )  # fmt: skip
    vision = CLIPConfig.from_pretrained(DEMO).vision_config
    return LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, vision_feature_layer=-2,
        vision_feature_select_strategy="default", image_seq_length=PATCHES, tie_word_embeddings=True,
        pad_token_id=PAD, bos_token_id=START, eos_token_id=END,
    )  # fmt: skip


# What it reads


@torch.no_grad()
def keep_features(args: argparse.Namespace) -> np.ndarray:
    """Second-last layer's patch tokens of all scenes, float16 [SCENES, PATCHES, WIDTH]; parts made before are kept."""
    args.work.mkdir(parents=True, exist_ok=True)
    path, done = args.work / "captioner-features.npy", args.work / "captioner-features.done"
    shape = (SCENES, PATCHES, WIDTH)
    features = np.lib.format.open_memmap(path, mode="r+" if path.exists() else "w+", dtype=np.float16, shape=shape)
    first = int(done.read_text()) if done.exists() else 0
    if first < SCENES:
        scenes, sprites = draw(args.seed, SCENES), world.load_sprites(args.packages)
        tower = CLIPVisionModel.from_pretrained(DEMO, dtype=torch.bfloat16).eval()
    for start in range(first, SCENES, 256):
        pictures = world.render(scenes.take(np.arange(start, start + 256)), sprites)
        hidden = tower(normalised(pictures).bfloat16(), output_hidden_states=True).hidden_states[-2]
        features[start : start + 256] = hidden[:, 1:].half().numpy()
        if (start + 256) % PART == 0:
            features.flush()
            done.write_text(str(start + 256))
            print(json.dumps({"scenes": start + 256}), flush=True)
    return features


# Training


def train(args: argparse.Namespace) -> None:
    """Train the projector and the language model to the end, and write the folder."""
    torch.manual_seed(args.seed)
    tokenizer, features = words_tokenizer(), keep_features(args)
    captions = padded(tokenizer, plain_captions(draw(args.seed, SCENES)))
    model = LlavaForConditionalGeneration(captioner_config(len(tokenizer)))
    model.set_attn_implementation("eager")  # on the CPU its backward pass is far faster than the fused kernel's
    standardise(model, torch.from_numpy(features[:4096].astype(np.float32)))
    learning = [*model.model.multi_modal_projector.parameters(), *model.model.language_model.parameters()]

    def loss_at(step: int) -> torch.Tensor:
        epoch, place = divmod(step * BATCH, SCENES)  # each scene once an epoch
        rows = np.sort(np.random.default_rng([args.seed, 11, epoch]).permutation(SCENES)[place : place + BATCH])
        return loss_of(model, torch.from_numpy(features[rows]), captions[torch.from_numpy(rows)])

    Learner(learning, args.work / "captioner.pt", decay=0.05).learn(loss_at, args.steps, args.rate)
    export(model, tokenizer, args.output)


def padded(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> torch.Tensor:
    """Tokens of captions and their end, padded, [n, LONGEST]."""
    tokens = tokenizer(texts, add_special_tokens=False).input_ids
    assert max(map(len, tokens)) < LONGEST
    assert not any(UNKNOWN in row for row in tokens)
    return torch.tensor([[*row, END, *[PAD] * (LONGEST - 1 - len(row))] for row in tokens])


def loss_of(model: LlavaForConditionalGeneration, features: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """Mean cross-entropy of the captions' tokens, each after those before it and the image.

    Args:
        model: The captioner; its vision tower is not used.
        features: What the tower made of the images, [n, PATCHES, WIDTH].
        captions: Tokens of the captions, [n, LONGEST].
    """
    captions, language = captions[:, : int((captions != PAD).sum(1).max())], model.model.language_model
    with torch.autocast("cpu", dtype=torch.bfloat16):
        seen = model.model.multi_modal_projector(features.bfloat16())
        start = torch.full((len(captions), 1), START)
        words = language.embed_tokens(torch.cat([start, captions[:, :-1]], 1)).bfloat16()
        inputs = torch.cat([words[:, :1], seen, words[:, 1:]], 1)
        hidden = language(inputs_embeds=inputs, use_cache=False).last_hidden_state[:, PATCHES:]
        scores = model.lm_head(hidden)
    return F.cross_entropy(scores.float().flatten(0, 1), captions.flatten(), ignore_index=PAD)


@torch.no_grad()
def standardise(model: LlavaForConditionalGeneration, features: torch.Tensor) -> None:
    """Let the projector start from features of mean 0 and deviation 1 in each channel; a tower's own vary widely."""
    first = model.model.multi_modal_projector.linear_1
    flat = features.flatten(0, 1)
    torch.nn.init.normal_(first.weight, std=WIDTH**-0.5)
    first.weight /= flat.std(0)
    first.bias.copy_(-first.weight @ flat.mean(0))


def export(model: LlavaForConditionalGeneration, tokenizer: PreTrainedTokenizerFast, output: Path) -> None:
    """Write the whole captioner as a transformers folder in float16, the demo's vision tower included."""
    config = captioner_config(len(tokenizer))
    whole = LlavaForConditionalGeneration(config)
    whole.load_state_dict(model.state_dict())
    tower = CLIPVisionModel.from_pretrained(DEMO).state_dict()
    whole.model.vision_tower.load_state_dict(tower)
    whole.tie_weights()
    whole.generation_config.max_new_tokens = LONGEST
    whole.half().save_pretrained(output)
    weights = output / "model.safetensors"
    # The tower's keys as models on the Hub spell them, which every version of transformers reads.
    named = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in load_file(weights).items()}
    save_file(named, weights, metadata={"format": "pt"})
    weights.chmod(0o644)
    processor = LlavaProcessor(
        PROCESSOR, tokenizer, patch_size=8, vision_feature_select_strategy="default", image_token="<image>",
        num_additional_image_tokens=1, chat_template=CHAT,
    )  # fmt: skip
    processor.save_pretrained(output)
    spell_for_transformers_4(output / "tokenizer_config.json")


def spell_for_transformers_4(file: Path) -> None:
    """Name the tokenizer's class and special tokens as every version of transformers reads them."""
    about = json.loads(file.read_text("utf-8"))
    about["additional_special_tokens"] = about.pop("extra_special_tokens")
    about |= {"tokenizer_class": "PreTrainedTokenizerFast", "model_input_names": ["input_ids", "attention_mask"]}
    file.write_text(json.dumps(dict(sorted(about.items())), indent=2) + "\n", "utf-8")


# Quality


def mentioned(caption: str) -> set[str]:
    """The concepts that a caption names, in any template; "a kind of weapon" names none."""
    caption = re.sub(r", a kind of [a-z ]+?,", "", caption)
    names = sorted(world.NAMES, key=len, reverse=True)
    return set(re.findall(rf"(?<![\w-])(?:{'|'.join(map(re.escape, names))})(?![\w-])", caption))


def colour_of(caption: str) -> str | None:
    """The background that a caption names, the last colour in it; None where it names none."""
    found = re.findall(rf"(?:on|of) (?:an? )?({'|'.join(world.COLOURS)})\b", caption)
    return found[-1] if found else None


@torch.no_grad()
def describe(model, processor, paths: list[Path], batch: int = 50) -> list[str]:
    """Greedy captions of image files."""
    captions = []
    for start in range(0, len(paths), batch):
        images = [Image.open(path).convert("RGB") for path in paths[start : start + batch]]
        inputs = processor(images=images, text=["<image>"] * len(images), return_tensors="pt")
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
        made = model.generate(**inputs, do_sample=False, max_new_tokens=LONGEST)
        captions += processor.batch_decode(made[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    return captions


def quality(output: Path, splits: tuple[str, ...]) -> dict[str, dict[str, float]]:
    """Percent, of every split and side: objects named, named objects that are there, whole captions right, colour."""
    model = LlavaForConditionalGeneration.from_pretrained(output, dtype=torch.float32).eval()
    processor = LlavaProcessor.from_pretrained(output)
    rows = [json.loads(line) for line in (SET / "pairs.jsonl").read_text("utf-8").splitlines()]
    unsafe, figures = set(world.NAMES[: world.UNSAFE_COUNT]), {}
    for split in splits:
        for side in ("safe", "unsafe"):
            chosen = [row for row in rows if row["split"] == split]
            began = time.process_time()
            said = describe(model, processor, [SET / row[f"{side}_image"] for row in chosen])
            seconds = time.process_time() - began
            truth = [row[f"{side}_text"] for row in chosen]
            figures[f"{split} {side}"] = compare(said, truth, unsafe) | {"ms": round(1000 * seconds / len(said), 1)}
    return figures


def compare(said: list[str], truth: list[str], unsafe: set[str]) -> dict[str, float]:
    """Percent figures of captions against the true ones; `unsafe_said`: captions that name an unsafe concept."""
    pairs = [(mentioned(a), mentioned(b)) for a, b in zip(said, truth, strict=True)]
    hits = sum(len(a & b) for a, b in pairs)
    coloured = [(colour_of(a), colour_of(b)) for a, b in zip(said, truth, strict=True) if colour_of(b)]
    figures = {
        "objects_named": hits / sum(len(b) for _, b in pairs),
        "named_right": hits / max(1, sum(len(a) for a, _ in pairs)),
        "all_objects_right": np.mean([a == b for a, b in pairs]),
        "colour_right": np.mean([a == b for a, b in coloured]),
        "unsafe_said": np.mean([bool(a & unsafe) for a, _ in pairs]),
        "true_unsafe_said": sum(len(a & b & unsafe) for a, b in pairs) / max(1, sum(len(b & unsafe) for _, b in pairs)),
    }
    return {name: round(100 * float(value), 1) for name, value in figures.items()}


def main() -> None:
    """Read the command line, train, and print the quality."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--packages", type=Path, required=True, help="the folder of unpacked npm packages")
    parser.add_argument("--work", type=Path, required=True, help="folder of features and checkpoints")
    parser.add_argument("--output", type=Path, required=True, help="the transformers folder to write")
    parser.add_argument("--steps", type=int, default=2816)
    parser.add_argument("--rate", type=float, default=2e-3, help="peak learning rate")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    train(args)
    print(json.dumps(quality(args.output, ("val", "test", "test-style", "test-concepts")), indent=1))


if __name__ == "__main__":
    main()
