"""Rules between config keys: values that are good on their own and cannot work together."""

import pathlib
import re
from collections.abc import Iterator, Mapping
from typing import Any

# Whether a rule is broken, the key to name, and what to say behind its value: the conflict and the remedy.
Rule = tuple[bool, str, str]
Flat = Mapping[str, Any]  # {"denoiser.train.steps": 1500, ...}


def complaints(c: Flat) -> Iterator[str]:
    """One sentence for each broken rule; a rule may rely on those before it, so the first is the one to tell."""
    for rules in (_sizes, _latents, _files, _stages_from_files, _choices):
        for broken, key, conflict in rules(c):
            if broken:
                yield f"config key '{key}' is {'empty' if c[key] == '' else repr(c[key])}{conflict}"


def _sizes(c: Flat) -> Iterator[Rule]:
    key = "prior.image_size" if c["prior.image_size"] else "data.image_size"
    size, multiple = c[key], 2 ** len(c["prior.widths"])
    yield c["mesh.data"] == 0, "mesh.data", ": give a positive number, or -1 for all devices that are left"
    yield size % multiple > 0, key, f": it must be divisible by {multiple}, 2 ** len(prior.widths)"
    yield size % c["prior.grid"] > 0, "prior.grid", f": it must divide {key} {size}"
    yield (
        c["prior.variant"] == "reference" and not c["prior.weights"] and c["prior.train.batch_size"] < 2,
        "prior.train.batch_size",
        ": the published SDNet normalises over the batch, so give at least 2",
    )
    width = c["denoiser.width"]
    yield width % c["denoiser.heads"] > 0, "denoiser.heads", f": it must divide denoiser.width {width}"
    yield width % 4 > 0, "denoiser.width", ": 2-D position embeddings need a multiple of 4"


def _latents(c: Flat) -> Iterator[Rule]:
    channels, factor, patch = c["autoencoder.channels"], c["autoencoder.factor"], c["denoiser.patch"]
    yield (
        c["autoencoder.kind"] == "pixel" and (channels, factor) != (3, 1),
        "autoencoder.channels",
        f" and autoencoder.factor {factor}: with autoencoder.kind 'pixel' they must be 3 and 1",
    )
    yield (
        c["data.image_size"] % factor > 0,
        "data.image_size",
        f": the autoencoder makes pictures {factor} times smaller, so it must be divisible by {factor}",
    )
    side = c["data.image_size"] // factor
    yield side % patch > 0, "denoiser.patch", f": it must divide the latent size {side}"
    yield (
        c["denoiser.condition"] == "factors" and (side // patch) % c["prior.grid"] > 0,
        "prior.grid",
        f": it must divide the {side // patch} patches a side (latent size / denoiser.patch)",
    )


def _files(c: Flat) -> Iterator[Rule]:
    vgg, kind, path = c["prior.vgg_path"], c["autoencoder.kind"], c["autoencoder.path"]
    yield (
        c["prior.weight_perceptual"] > 0 and not vgg,
        "prior.weight_perceptual",
        " without VGG-19 weights: name a file in prior.vgg_path or set the weight to 0",
    )
    yield (
        bool(vgg) and not pathlib.Path(vgg).is_file(),
        "prior.vgg_path",
        ", which is not a file: give VGG-19 safetensors",
    )
    found = path and (pathlib.Path(path).exists() or re.fullmatch(r"[\w.-]+/[\w.-]+", path))
    yield (
        kind != "pixel" and not found,
        "autoencoder.path",
        f" with autoencoder.kind '{kind}': name the file, folder or hub id of its weights",
    )
    yield (
        c["text_encoder.kind"] == "bert" and not c["text_encoder.path"],
        "text_encoder.path",
        ": name the folder or hub id of the BERT weights",
    )


def _stages_from_files(c: Flat) -> Iterator[Rule]:
    transformer, adapter, hffm = c["denoiser.weights"], c["denoiser.lora.weights"], c["denoiser.hffm_weights"]
    yield (
        bool(transformer) != bool(c["denoiser.lora.rank"]),
        "denoiser.lora.rank",
        f" with denoiser.weights '{transformer}': an adapter needs weights to adapt and weights are trained by an"
        " adapter, so set both or neither",
    )
    yield (
        bool(hffm) != bool(adapter),
        "denoiser.hffm_weights",
        f" and denoiser.lora.weights '{adapter}': they were trained together, so name both or neither",
    )
    yield (
        bool(adapter) and not transformer,
        "denoiser.lora.weights",
        " without denoiser.weights: name the transformer that it adapts",
    )
    yield (
        bool(c["prior.weights"]) and c["prior.variant"] != "reference",
        "prior.weights",
        f" with prior.variant '{c['prior.variant']}': only the published SDNet can be taken from a file, so use the"
        " variant :reference",
    )
    yield (
        bool(hffm) and c["denoiser.condition"] != "published",
        "denoiser.hffm_weights",
        f" with denoiser.condition '{c['denoiser.condition']}': only the published fusion module can be taken"
        " from a file, so use the variant :reference",
    )


def _choices(c: Flat) -> Iterator[Rule]:
    yield (
        (c["diffusion.objective"] == "flow") != (c["sample.solver"] == "euler"),
        "sample.solver",
        f" with diffusion.objective '{c['diffusion.objective']}': use euler for flow and dpmpp_2m for epsilon or v",
    )
