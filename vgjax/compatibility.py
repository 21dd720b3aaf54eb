"""Rules between config keys: values that are good on their own and cannot work together."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Of a broken rule, the key to name, and what to say behind its value: the conflict and the remedy.
Broken = tuple[str, str]
Flat = Mapping[str, Any]  # {"denoiser.train.steps": 1500, ...}
NETWORK_FILES = {  # of networks that pictures are compared in, with their licences
    "inception": "the file pt_inception-2015-12-05-6726825d.pth of pytorch-fid (Apache-2.0)",
    "dinov2": "a folder of facebook/dinov2-base or another size (Apache-2.0)",
    "rad_dino": "a folder of microsoft/rad-dino (MSRLA, for research alone)",
}


def complaints(c: Flat) -> Iterator[str]:
    """One sentence for each broken rule; a rule may rely on those before it, so the first is the one to tell."""
    for rules in (_sizes, _latents, _files, _networks, _stages_from_files, _choices):
        for key, conflict in rules(c):
            yield f"config key '{key}' is {'empty' if c[key] == '' else repr(c[key])}{conflict}"


def _sizes(c: Flat) -> Iterator[Broken]:
    key = "prior.image_size" if c["prior.image_size"] else "data.image_size"
    size, multiple, width = c[key], 2 ** len(c["prior.widths"]), c["denoiser.width"]
    if c["mesh.data"] == 0:
        yield "mesh.data", ": give a positive number, or -1 for all devices that are left"
    if size % multiple:
        yield key, f": it must be divisible by {multiple}, 2 ** len(prior.widths)"
    if size % c["prior.grid"]:
        yield "prior.grid", f": it must divide {key} {size}"
    if c["reader.image_size"] % (multiple := 2 ** len(c["reader.widths"])):
        yield "reader.image_size", f": it must be divisible by {multiple}, 2 ** len(reader.widths)"
    if any(width % 8 for width in c["reader.widths"]):
        yield "reader.widths", ": group norm needs multiples of 8"
    for one in (one for one in ("domain.train.batch_size", "downstream.batch_size") if c[one] < 2):
        yield one, ": features are to vary over a batch, so give at least 2"
    own = c["prior.variant"] == "default"
    normed = {
        "widths": (*c["prior.widths"], 2 * c["prior.widths"][-1]),
        "segmentor_width": (c["prior.segmentor_width"],),
    }
    for name in (name for name, widths in normed.items() if own and any(one > 8 and one % 8 for one in widths)):
        yield f"prior.{name}", ": group norm needs multiples of 8"
    if c["prior.variant"] == "reference" and not c["prior.weights"] and c["prior.train.batch_size"] < 2:
        yield "prior.train.batch_size", ": the published SDNet normalises over the batch, so give at least 2"
    if width % c["denoiser.heads"]:
        yield "denoiser.heads", f": it must divide denoiser.width {width}"
    if width % 4:
        yield "denoiser.width", ": 2-D position embeddings need a multiple of 4"
    if width * c["denoiser.mlp_ratio"] < 1:
        yield "denoiser.mlp_ratio", f": times denoiser.width {width} it must be at least 1"


def _latents(c: Flat) -> Iterator[Broken]:
    channels, factor, patch = c["autoencoder.channels"], c["autoencoder.factor"], c["denoiser.patch"]
    if c["autoencoder.kind"] == "pixel" and (channels, factor) != (3, 1):
        conflict = f" and autoencoder.factor {factor}: with autoencoder.kind 'pixel' they must be 3 and 1"
        yield "autoencoder.channels", conflict
    if c["data.image_size"] % factor:
        conflict = f": the autoencoder makes pictures {factor} times smaller, so it must be divisible by {factor}"
        yield "data.image_size", conflict
    side = c["data.image_size"] // factor
    if side % patch:
        yield "denoiser.patch", f": it must divide the latent size {side}"
    if c["denoiser.condition"] in ("factors", "text_heads") and (side // patch) % c["prior.grid"]:
        yield "prior.grid", f": it must divide the {side // patch} patches a side (latent size / denoiser.patch)"


def _files(c: Flat) -> Iterator[Broken]:
    vgg, kind, path = c["prior.vgg_path"], c["autoencoder.kind"], c["autoencoder.path"]
    if c["prior.weight_perceptual"] and not vgg:
        conflict = " without VGG-19 weights: name a file in prior.vgg_path or set the weight to 0"
        yield "prior.weight_perceptual", conflict
    if vgg and not pathlib.Path(vgg).is_file():
        yield "prior.vgg_path", ", which is not a file: give VGG-19 safetensors"
    found = path and (pathlib.Path(path).exists() or re.fullmatch(r"[\w.-]+/[\w.-]+", path))
    if kind != "pixel" and not found:
        conflict = f" with autoencoder.kind '{kind}': name the file, folder or hub id of its weights"
        yield "autoencoder.path", conflict
    if c["text_encoder.kind"] == "bert" and not c["text_encoder.path"]:
        yield "text_encoder.path", ": name the folder or hub id of the BERT weights"


def _networks(c: Flat) -> Iterator[Broken]:
    for name in c["networks.use"]:
        if name not in ("domain", "pixel", *NETWORK_FILES):
            yield "networks.use", f": choose among domain, pixel, {', '.join(NETWORK_FILES)}"
        elif not c.get(f"networks.{name}", "none"):
            yield f"networks.{name}", f" and networks.use names it: name {NETWORK_FILES[name]}, or leave it out"


def _stages_from_files(c: Flat) -> Iterator[Broken]:
    transformer, adapter, hffm = c["denoiser.weights"], c["denoiser.lora.weights"], c["denoiser.hffm_weights"]
    if bool(transformer) != bool(c["denoiser.lora.rank"]):
        yield (
            "denoiser.lora.rank",
            f" with denoiser.weights '{transformer}': an adapter needs weights to adapt and weights are trained by an"
            " adapter, so set both or neither",
        )
    if bool(hffm) != bool(adapter):
        conflict = f" and denoiser.lora.weights '{adapter}': they were trained together, so name both or neither"
        yield "denoiser.hffm_weights", conflict
    if adapter and not transformer:
        yield "denoiser.lora.weights", " without denoiser.weights: name the transformer that it adapts"
    if c["disentangler.weights"] and c["disentangler.method"] != "regression":
        yield (
            "disentangler.weights",
            f" with disentangler.method '{c['disentangler.method']}': only a regression can be taken from a file, so"
            " set it to 'regression'",
        )
    if c["prior.weights"] and c["prior.variant"] != "reference":
        yield (
            "prior.weights",
            f" with prior.variant '{c['prior.variant']}': only the published SDNet can be taken from a file, so use the"
            " variant :reference",
        )
    if hffm and c["denoiser.condition"] != "published":
        yield (
            "denoiser.hffm_weights",
            f" with denoiser.condition '{c['denoiser.condition']}': only the published fusion module can be taken"
            " from a file, so use the variant :reference",
        )


def _choices(c: Flat) -> Iterator[Broken]:
    if c["data.source"] == "phantom" and c["data.views"] > 1:
        yield "data.views", " with data.source 'phantom', which draws any number of pictures: set it to 1"
    if c["data.source"] != "phantom" and c["data.rare_every"] > 1:
        yield (
            "data.rare_every",
            f" with data.source '{c['data.source']}': only phantom's can be thinned, so set it to 1",
        )
    if "downstream" in c["evaluate.metrics"] and not (
        c["data.label_in_caption"] or c["denoiser.condition"] == "class_label"
    ):
        conflict = " and evaluate.metrics names 'downstream': pictures of a class are drawn of captions that say it"
        yield "data.label_in_caption", f"{conflict}, so set it to True"
    for key in ("data.captions_file", "data.splits"):
        if c[key] and c["data.source"] == "phantom":
            yield key, " with data.source 'phantom', which has captions and splits of its own: leave it empty"
    if c["data.test_fraction"] + c["data.validation_fraction"] >= 1:
        conflict = f" and data.validation_fraction {c['data.validation_fraction']}: their sum must be below 1"
        yield "data.test_fraction", conflict
    condition, learns_from, objective = c["denoiser.condition"], c["denoiser.learn_from"], c["diffusion.objective"]
    from_text = condition in ("published", "text_heads") or (condition == "factors" and learns_from == "text")
    if from_text and c["disentangler.method"] != "regression":
        conflict = f" with denoiser.condition '{condition}' and denoiser.learn_from '{learns_from}': factors of texts"
        yield "disentangler.method", f"{conflict} come from a regression, so set it to 'regression'"
    if c["prior.variant"] == "reference" and (c["prior.weight_appearance"] or c["prior.weight_consistency"]):
        terms = "prior.weight_appearance and prior.weight_consistency"
        yield "prior.variant", f": the published network has no such terms, so set {terms} to 0"
    if c["denoiser.channels"] == "one" and condition != "factors":
        yield "denoiser.channels", f" with denoiser.condition '{condition}': only factors can be one channel"
    words = c["disentangler.method"] == "flow" and c["text_encoder.kind"] != "bert"
    if c["disentangler.weight_independence"] and not words:
        conflict = ": it weighs the words that flows hear one by one, so set disentangler.method to 'flow' and"
        yield "disentangler.weight_independence", f"{conflict} text_encoder.kind to 'vocabulary', or it to 0"
    if c["denoiser.colour_gradient_steps"] > c["denoiser.colour_steps"]:
        conflict = f": it must not exceed denoiser.colour_steps {c['denoiser.colour_steps']}"
        yield "denoiser.colour_gradient_steps", conflict
    if c["denoiser.flip"] and condition == "factors" and not from_text:
        conflict = " with denoiser.learn_from 'pictures': factors are those of the picture as it is, so set it to False"
        yield "denoiser.flip", conflict
    if (objective == "flow") != (c["sample.solver"] == "euler"):
        conflict = f" with diffusion.objective '{objective}': use euler for flow and dpmpp_2m for epsilon or v"
        yield "sample.solver", conflict
