"""Every key of a config once: name, type, default, bounds or choices, and a line of documentation.

`defaults` gives the ConfigDict that `configs/*.py` and flags change; `from_config_dict` turns it into the frozen
`Config` that all other code reads and refuses unknown keys, wrong types, values out of bounds and values that cannot
work together, before any long work. Units stand in the names: `_steps` optimiser steps, `_items` pictures, `_size`
pixels, `weight_` factor of a loss term.
"""

from typing import Annotated, Any, Literal

import ml_collections
from pydantic import Field, NonNegativeFloat, PositiveFloat

from vgjax import compatibility
from vgjax.keys import INT32, ConfigError, Group, build, key

Fraction = Annotated[float, Field(ge=0, lt=1)]
PositiveInt = Annotated[int, Field(gt=0, lt=INT32)]
NonNegativeInt = Annotated[int, Field(ge=0, lt=INT32)]
Depth = Annotated[int, Field(gt=0, lt=200)]  # layers, which are traced one after another
Rate = Annotated[float, Field(gt=0, lt=1)]
Widths = Annotated[tuple[PositiveInt, ...], Field(strict=False, min_length=1)]  # not strict: a list will do
Names = Annotated[tuple[str, ...], Field(strict=False)]
Pixels = Annotated[int, Field(gt=0, lt=1 << 13)]
Few = Annotated[int, Field(gt=0, lt=1 << 10)]
Items = Annotated[int, Field(gt=0, lt=1 << 20)]


# ---------------------------------------------------------------- the keys


class Data(Group):
    """Pictures and their captions."""

    source: Literal["phantom", "ham10000", "kvasir_seg", "busi", "mimic", "covid_cxr", "folder"] = key(
        "phantom", "dataset to read; phantom: rendered"
    )
    root: str = key("", "folder of the dataset in its original layout; unused by phantom")
    image_size: Pixels = key(32, "pixels a side of the squares that everything works on")
    aspect: Literal["crop", "pad", "stretch"] = key(
        "crop", "how pictures become square, masks alike: crop (centre), pad (black) or stretch"
    )
    captions: Literal["own", "measured", "both"] = key(
        "own", "own: the dataset's text, measured where it has none; measured: from mask and pixels; both"
    )
    captions_file: str = key("", "JSON lines of id and caption, as the dataset's text (vgjax.data.caption.captioner)")
    label_in_caption: bool = key(False, "say the class in the caption; phantom: always all that decides it")
    wordings: Few = key(8, "further captions of a training picture, said anew")
    views: Few = key(1, "most records of a training picture: itself, its symmetries, then crops of those")
    splits: str = key("", "folder of train.txt, validation.txt, test.txt, an id a line; empty: the dataset's or hashed")
    max_bad_fraction: Fraction = key(0.05, "share of the pictures; more that cannot be decoded stop the preparation")
    max_pixels: PositiveInt = key(64_000_000, "pixels of a picture; larger ones are refused")
    workers: Annotated[int, Field(ge=0, lt=1 << 10)] = key(0, "processes that decode; 0: one a core")
    train_items: Annotated[int, Field(gt=1, lt=1 << 20)] = key(8000, "phantom only: training pictures to render")
    validation_items: Items = key(500, "phantom only: validation pictures to render")
    test_items: Items = key(2000, "phantom only: test pictures to render")
    validation_fraction: Fraction = key(0.05, "share of the pictures, in datasets without an official split")
    test_fraction: Fraction = key(0.20, "share of the pictures, in datasets without an official split")
    intensity: Literal["dataset", "per_image"] = key(
        "dataset", "dataset: one scale for all (8-bit range to [-1, 1]); per_image: min-max, as published"
    )
    shuffle_captions: bool = key(False, "control experiment: captions permuted between the training pictures")
    rare_every: PositiveInt = key(1, "phantom only: keep each so-many-th malignant picture of train and validation")
    noise_factors: bool = key(False, "control experiment: ground-truth factors and labels replaced by noise")


class Mesh(Group):
    """Devices along each axis."""

    data: Annotated[int, Field(ge=-1, lt=INT32)] = key(-1, "devices along the batch; -1: all that are left")
    fsdp: PositiveInt = key(1, "devices along the batch that also share the parameters")
    tensor: PositiveInt = key(1, "devices that share each large matrix")


class TextEncoder(Group):
    """Captions to embeddings; frozen."""

    kind: Literal["vocabulary", "hashing", "bert"] = key(
        "vocabulary",
        "vocabulary (words of the training captions), hashing (all words), bert (BERT or DistilBERT layout)",
    )
    width: PositiveInt = key(
        1024,
        "D, length of an embedding; vocabulary: most words and pairs; bert: must equal the model's hidden size",
    )
    path: str = key(
        "", "bert: folder or hub id; vocabulary: the same, to read unknown words as known ones; empty: they are ignored"
    )
    max_length: PositiveInt = key(128, "longest text in tokens; the rest is cut off")


class Training(Group):
    """How one stage is trained."""

    steps: PositiveInt = key(1000, "optimiser steps")
    batch_size: PositiveInt = key(64, "examples a step, over all devices")
    optimizer: Literal["adamw", "muon"] = key("adamw", "muon: matrices of blocks, heads, encoders, reader; else AdamW")
    learning_rate: PositiveFloat = key(1e-3, "peak, after warm-up")
    warmup_steps: NonNegativeInt = key(50, "steps of linear warm-up")
    schedule: Literal["cosine", "constant", "plateau"] = key(
        "cosine", "cosine (to 0), constant, or plateau (x 0.1 when the validation score stalls 5 times)"
    )
    weight_decay: NonNegativeFloat = key(0.0, "decoupled weight decay")
    adam_b1: Fraction = key(0.9, "decay of AdamW's first moment")
    adam_b2: Rate = key(0.999, "decay of AdamW's second moment")
    clip_norm: NonNegativeFloat = key(1.0, "largest global gradient norm; 0: off")
    clip_part: Literal["", "condition", "dit", "lora"] = key(
        "", 'clip this part of the parameters alone ("lora"); empty: all of them together'
    )
    ema_decay: Fraction = key(0.0, "moving average of the weights, used for everything after training; 0: off")
    checkpoint_every_steps: PositiveInt = key(200, "how often to validate and to write a checkpoint")
    log_every_steps: PositiveInt = key(20, "how often to write the losses to the log")
    keep: Literal["last", "best"] = key("last", "export the last, or the one of best validation score")


class Prior(Group):
    """Stage 1: the visual prior, pictures to factors."""

    variant: Literal["default", "reference"] = key("default", "reference: the published SDNet")
    image_size: NonNegativeInt = key(0, "pixels a side that stage 1 sees; 0: data.image_size")
    widths: Widths = key((16, 32), "channels of the U-Net's levels, finest first")
    modality_widths: Widths = key((16, 16), "channels of the modality encoder's convolutions")
    segmentor_width: PositiveInt = key(16, "hidden channels of the segmentor")
    decoder_widths: Widths = key((16, 16), "channels between the decoder's convolutions")
    anatomy_factors: PositiveInt = key(8, "K, channels of the anatomy map")
    modality_factors: PositiveInt = key(16, "Z, length of the modality vector")
    grid: PositiveInt = key(8, "g: anatomy reaches the transformer as g x g area fractions; 1: one mean, as published")
    standardise: bool = key(True, "factors to the dataset's zero mean and unit scale; published: as they are")
    weight_l1: NonNegativeFloat = key(1.0, "absolute error of the rebuilt picture (L1)")
    weight_kl: NonNegativeFloat = key(1e-3, "KL divergence of the modality vector")
    weight_dice: NonNegativeFloat = key(1.0, "Dice loss of the lesion mask")
    weight_regression: NonNegativeFloat = key(0.0, "mu read back from the rebuilt picture; published: 1")
    weight_perceptual: NonNegativeFloat = key(0.0, "VGG-19 relu3_1 distance of the rebuilt picture; needs vgg_path")
    weight_appearance: NonNegativeFloat = key(1.0, "colour and texture read from the modality vector; published: 0")
    weight_consistency: NonNegativeFloat = key(1.0, "anatomy map equal under changes of imaging style; 0: as published")
    flip: bool = key(False, "mirror pictures with their masks at random, either way; stage 1 never sees text")
    vgg_path: str = key("", "safetensors with torchvision's VGG-19 names")
    weights: str = key("", "variant reference: a trained SDNet's file, taken as it is instead of training")
    train: Training = Training(steps=600, batch_size=8, learning_rate=2e-3)


class Disentangler(Group):
    """Stage 2: the text disentangler, text embeddings to factors."""

    method: Literal["flow", "regression"] = key(
        "flow", "flow: a distribution over each channel's whitened factors; regression: their mean, as published"
    )
    flow_width: dict[str, PositiveInt] = key({"anatomy": 384, "modality": 160}, "flow: by channel, width of the blocks")
    flow_depth: Depth = key(3, "flow: residual blocks")
    text_dropout: Fraction = key(0.1, "flow: rate at which a trained null takes the place of the text in training")
    mask_dropout: Fraction = key(0.7, "flow: the same for the lesion mask that the anatomy may be given")
    hidden: PositiveInt = key(384, "regression, condition text_heads: width of the hidden layers")
    dropout: Fraction = key(0.1, "regression: rate of dropout in the hidden layers")
    word_dropout: Fraction = key(0.0, "dropout of the text embedding's entries: words and word pairs, but with bert")
    alignment: Literal["scaled", "cosine"] = key(
        "scaled", "scaled: squared error on standardised factors; cosine: direction only, as published"
    )
    weight_reconstruction: NonNegativeFloat = key(0.0, "text embedding rebuilt from both factors; published: 0.5")
    weight_independence: NonNegativeFloat = key(
        0.0, "flow: words heard that speak of the other channel, for own texts, whose clauses are not known; about 3"
    )
    shuffle_anatomy_targets: bool = key(False, "control experiment: anatomy permuted between the training pictures")
    shuffle_modality_targets: bool = key(False, "control experiment: modality permuted between the training pictures")
    weights: str = key("", "a trained text disentangler's file, taken as it is instead of training")
    train: Training = Training(
        steps=6000,
        batch_size=128,
        learning_rate=2e-3,
        warmup_steps=100,
        ema_decay=0.998,
        checkpoint_every_steps=2000,
        log_every_steps=100,
    )


class Lora(Group):
    """Low-rank adapter of a pretrained transformer, with PEFT's semantics."""

    rank: NonNegativeInt = key(0, "rank of the adapter's matrices; 0: no adapter")
    alpha: PositiveFloat = key(8.0, "the adapter's output is scaled by alpha / rank")
    rank_stabilised: bool = key(False, "scale by alpha / sqrt(rank) instead")
    targets: Names = key(
        (
            *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj", "ff.net.0.proj", "ff.net.2", "proj_out"),
            *("linear", "linear_1", "linear_2"),
        ),
        "torch's names of the adapted modules, as published: all linear layers and the patch embedding",
    )
    weights: str = key("", "a trained adapter's file or folder (with hffm_weights)")


class Denoiser(Group):
    """Stage 3: HFFM and diffusion transformer, factors to pictures."""

    condition: Literal["factors", "published", "class_label", "text_tokens", "text_heads"] = key(
        "factors",
        "what the transformer is told: factors, the published pair of tokens, the class alone, text tokens, or what"
        " heads on the text say that it trains itself",
    )
    channels: Literal["two", "one"] = key("two", "one: anatomy and modality as one channel 'factors', with one null")
    hffm_hidden: PositiveInt = key(128, "hidden width of the fusion module")
    hffm_weights: str = key("", "a trained HFFM's file (with lora.weights), taken as it is instead of training")
    token_width: PositiveInt = key(128, "width of the condition tokens")
    learn_from: Literal["pictures", "text"] = key(
        "pictures", "whose factors the transformer learns from: the pictures' own, or a regression's from their texts"
    )
    components: PositiveInt = key(
        160, "most leading principal directions of each channel's factors, each brought to unit variance"
    )
    spatial_path: bool = key(True, "anatomy is also added to the patches where it belongs")
    style_path: bool = key(True, "modality is also added to the timestep embedding")
    width: PositiveInt = key(128, "channels of the transformer")
    depth: Depth = key(4, "blocks of the transformer")
    heads: PositiveInt = key(4, "attention heads")
    patch: PositiveInt = key(4, "latent pixels a side of a patch")
    mlp_ratio: PositiveFloat = key(4.0, "hidden width of a block's MLP, in multiples of width")
    learn_sigma: bool = key(False, "twice the output channels, as PixArt has; the second half is not trained")
    position_cells: NonNegativeInt = key(0, "patches a side that position embeddings were made for; 0: those there are")
    position_interpolation: PositiveFloat = key(1.0, "divisor of the positions (PixArt: 1 at 512 pixels, 2 at 1024)")
    tell_size: bool = key(False, "height, width and aspect ratio as further conditions (PixArt at 1024)")
    refine: NonNegativeInt = key(24, "channels of two convolutions after the transformer; 0: none, as published")
    weights: str = key("", "transformer to adapt: file, folder or hub id in diffusers' layout; empty: train a new one")
    lora: Lora = Lora()
    dropout: dict[str, Fraction] = key(
        {"anatomy": 0.05, "modality": 0.05},
        "by channel, the rate at which its trained null alone takes its place in training",
    )
    dropout_all: Fraction = key(0.1, "the rate at which the nulls of all channels do together, as guidance wants them")
    anatomy_noise: NonNegativeFloat = key(0.4, "standard deviation added to anatomy's whitened components in training")
    modality_noise: NonNegativeFloat = key(0.1, "the same for the modality's")
    weight_colour: NonNegativeFloat = key(
        0.0, "mean and spread of each colour in pictures drawn from the batch's conditions; published: 1 / colour_steps"
    )
    colour_every_steps: PositiveInt = key(500, "the colour term joins the loss in steps divisible by this, from 0 on")
    colour_steps: PositiveInt = key(20, "solver steps of its pictures")
    colour_gradient_steps: NonNegativeInt = key(20, "how many of the last ones its gradient runs through; published: 0")
    colour_guidance: NonNegativeFloat = key(1.0, "guidance scale of its pictures, for all channels; published: 1")
    flip: bool = key(False, "mirror pictures left-right at random; refused where captions say left or right")
    remat: bool = key(False, "recompute activations in the backward pass: less memory, about a third more time")
    train: Training = Training(
        steps=1500,
        batch_size=32,
        optimizer="muon",
        learning_rate=6e-3,
        warmup_steps=100,
        ema_decay=0.995,
        checkpoint_every_steps=375,
    )


class Autoencoder(Group):
    """Pictures to the latents that the transformer works on; frozen."""

    kind: Literal["pixel", "kl", "tiny"] = key("pixel", "pixel: none; kl: Stable Diffusion, PixArt; tiny: TAESD family")
    path: str = key("", "kl, tiny: file, folder or hub id of the weights; kl: a whole pipeline's will do")
    channels: PositiveInt = key(3, "channels of the latents")
    factor: PositiveInt = key(1, "picture pixels a latent pixel, along one side")


class Diffusion(Group):
    """The process that turns noise into latents."""

    objective: Literal["epsilon", "v", "flow"] = key("flow", "what the network predicts; published: epsilon")
    timesteps: PositiveInt = key(1000, "epsilon and v: length of the discrete schedule")
    beta_start: Rate = key(1e-4, "epsilon and v: noise variance of the first timestep")
    beta_end: Rate = key(0.02, "epsilon and v: noise variance of the last timestep")
    times: Literal["uniform", "logit_normal"] = key("uniform", "flow: how training draws its times")


class Sample(Group):
    """How pictures are drawn."""

    solver: Literal["dpmpp_2m", "euler"] = key("euler", "euler for flow, dpmpp_2m for epsilon and v")
    steps: PositiveInt = key(20, "solver steps")
    guidance: dict[str, NonNegativeFloat] = key(
        {"anatomy": 2.0, "modality": 2.0}, "by channel of the condition, its guidance scale; 1: no guidance, 0: ignored"
    )
    text_guidance: dict[str, NonNegativeFloat] = key(
        {"anatomy": 2.5, "modality": 2.5}, "by channel, guidance scale of the disentangler's flow; 1: no guidance"
    )
    text_steps: PositiveInt = key(25, "solver steps of the disentangler's flow")
    batch_size: PositiveInt = key(32, "pictures drawn together; decides speed and memory alone")
    count: PositiveInt = key(4, "pictures a prompt in --mode=sample")


class Reader(Group):
    """The segmentor that metrics read masks of real pictures with: no part of the model, trained on train alone."""

    image_size: PositiveInt = key(64, "pixels a side that it sees")
    widths: Widths = key((16, 32, 64, 96), "channels of the U-Net's levels, finest first; multiples of 8")
    train: Training = Training(
        steps=1500, batch_size=16, optimizer="muon", learning_rate=5e-3, checkpoint_every_steps=300, keep="best"
    )


class Domain(Group):
    """The network domain: a ResNet-18 that VICReg trains on the real training pictures alone."""

    image_size: Annotated[int, Field(ge=16, lt=1 << 13)] = key(64, "pixels a side that it sees")
    width: PositiveInt = key(32, "channels of its first level; features are eight times as many")
    train: Training = Training(batch_size=64, weight_decay=1e-4, checkpoint_every_steps=250)


class Networks(Group):
    """Networks that pictures are compared in."""

    use: Annotated[Names, Field(min_length=1)] = key(
        ("domain",), "domain, trained here on the real training pictures; pixel (none); inception, dinov2, rad_dino"
    )
    inception: str = key("", "FID's Inception-v3 of 2015-12-05, ported to torch: pt_inception-2015-12-05-6726825d.pth")
    dinov2: str = key("", "folder of a DINOv2 as transformers' Dinov2Model, with preprocessor_config.json")
    rad_dino: str = key("", "the same of microsoft/rad-dino")


class Downstream(Group):
    """The classifier that usefulness is measured by: a ResNet-18 trained on real, on drawn and on both pictures."""

    image_size: Annotated[int, Field(ge=16, lt=1 << 13)] = key(32, "pixels a side that it sees")
    width: PositiveInt = key(16, "channels of its first level")
    steps: PositiveInt = key(600, "optimiser steps, in every arm")
    batch_size: PositiveInt = key(64, "pictures a step, of each class as many in the mean")
    learning_rate: PositiveFloat = key(2e-3, "AdamW's peak, after a twentieth of the steps and before a cosine to 0")
    seeds: Few = key(5, "times that each arm is trained")
    per_class: Items = key(1000, "pictures drawn of each class, from its training captions in turn")


class Evaluate(Group):
    """How control is measured."""

    metrics: Names = key(
        ("control", "swap", "prior"), "names in vgjax.evaluation.metrics.METRICS, fidelity, downstream, privacy"
    )
    split: Literal["test", "validation"] = key("test", "whose captions; validation: to choose settings by")
    prompts: PositiveInt = key(320, "captions")
    draws: PositiveInt = key(1, "pictures a caption, and in the metric gain of other captions")
    resamples: PositiveInt = key(2000, "resamplings behind a confidence interval")


class Privacy(Group):
    """What is drawn to find copies of training pictures."""

    captions: PositiveInt = key(32, "captions of training pictures that are drawn from")
    seeds: PositiveInt = key(10, "pictures of each")


class Config(Group):
    """Everything that decides what a run computes. Two runs with equal `Config` and software end bit-equal."""

    name: str = key("base", "name of the config; a run's folder is runs/<name> unless --workdir says otherwise")
    seed: Annotated[int, Field(ge=0, lt=1 << 64)] = key(0, "seed of all randomness, of 64 bits")
    data: Data = Data()
    mesh: Mesh = Mesh()
    text_encoder: TextEncoder = TextEncoder()
    prior: Prior = Prior()
    disentangler: Disentangler = Disentangler()
    denoiser: Denoiser = Denoiser()
    autoencoder: Autoencoder = Autoencoder()
    diffusion: Diffusion = Diffusion()
    sample: Sample = Sample()
    reader: Reader = Reader()
    domain: Domain = Domain()
    networks: Networks = Networks()
    privacy: Privacy = Privacy()
    downstream: Downstream = Downstream()
    evaluate: Evaluate = Evaluate()

    def flat(self) -> dict[str, Any]:
        """`{"denoiser.train.steps": 1500, ...}`, for reports and for telling which key differs."""
        return dict(_flatten(self.model_dump()))


def _flatten(tree: dict[str, Any], where: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for name, value in tree.items():
        rows += _flatten(value, f"{where}{name}.") if isinstance(value, dict) else [(where + name, value)]
    return rows


# ---------------------------------------------------------------- from the user's ConfigDict and back


def defaults(model: type[Config] = Config) -> ml_collections.ConfigDict:
    """Every key at its default, for config files and flags to change."""
    return ml_collections.ConfigDict(model().model_dump())


def from_config_dict(config: ml_collections.ConfigDict) -> Config:
    """Turns the user's ConfigDict into the frozen config.

    Raises:
      ConfigError: a key is unknown or missing, or a value cannot be used, by itself or with the others.
    """
    built = build(Config, config.to_dict())
    for complaint in compatibility.complaints(built.flat()):
        raise ConfigError(complaint)
    return built
