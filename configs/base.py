"""Every key once, with the default recipe sized for two CPU cores and 32x32 pictures; other configs only differ.

Units stand in the names: `_steps` optimiser steps, `_items` pictures, `_size` pixels, `weight_` factor of a loss term.
"""

from ml_collections import ConfigDict

# torch's names of the adapted modules, as published: all linear layers and the patch embedding.
LORA_TARGETS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj", "ff.net.0.proj", "ff.net.2", "proj_out"),
    *("linear", "linear_1", "linear_2"),
)


def training(**changes) -> ConfigDict:
    """How one stage is trained: AdamW with warm-up; a stage overrides what differs."""
    values = dict(
        steps=1000,
        batch_size=64,  # global, over all devices
        optimizer="adamw",  # adamw | muon (matrices of blocks, text heads and encoders; AdamW for the rest)
        learning_rate=1e-3,
        warmup_steps=50,
        schedule="cosine",  # cosine (to 0) | constant | plateau (x 0.1 when the validation score stalls 5 times)
        weight_decay=0.0,
        adam_b1=0.9,
        adam_b2=0.999,
        clip_norm=1.0,  # global gradient norm; 0: off
        clip_part="",  # clip this part of the parameters alone ("lora"); empty: all of them together
        ema_decay=0.0,  # exponential moving average of the weights, used for everything after training; 0: off
        checkpoint_every_steps=200,  # validation and checkpoint
        log_every_steps=20,
        keep="last",  # which checkpoint is exported: last | best (by validation score)
    )
    return ConfigDict({**values, **changes})


def get_config() -> ConfigDict:
    c = ConfigDict()
    c.name = "base"
    c.seed = 0

    c.data = ConfigDict()
    c.data.source = "phantom"  # phantom | ham10000 | kvasir_seg | busi | mimic | covid_cxr | folder
    c.data.root = ""  # folder of the dataset in its original layout; unused by phantom
    c.data.image_size = 32  # pixels a side of the squares that everything works on
    c.data.aspect = "crop"  # how pictures become square, masks alike: crop (centre) | pad (black) | stretch
    c.data.captions = "own"  # own (the dataset's text; measured where it has none) | measured | both
    c.data.captions_file = ""  # JSON lines of id and caption, used as the dataset's text (vgjax.data.caption.captioner)
    c.data.label_in_caption = False  # say the class in the caption
    c.data.splits = ""  # folder of train.txt, validation.txt, test.txt, an id a line; empty: the dataset's, or by hash
    c.data.max_bad_fraction = 0.05  # of the pictures; more that cannot be decoded stop the preparation
    c.data.max_pixels = 64_000_000  # larger pictures are refused
    c.data.workers = 0  # processes that decode; 0: one a core
    c.data.train_items = 8000  # phantom only: how many to render
    c.data.validation_items = 500
    c.data.test_items = 600
    c.data.validation_fraction = 0.05  # datasets without an official split
    c.data.test_fraction = 0.20
    c.data.intensity = (
        "dataset"  # dataset: one scale for all (8-bit range to [-1, 1]) | per_image: min-max, as published
    )
    c.data.shuffle_captions = False  # control experiment: captions permuted between the training pictures
    c.data.noise_factors = False  # control experiment: ground-truth factors and labels replaced by noise

    c.mesh = ConfigDict(dict(data=-1, fsdp=1, tensor=1))  # devices along each axis; data=-1: all that are left

    c.text_encoder = ConfigDict()
    c.text_encoder.kind = "hashing"  # hashing (no weights) | bert (BERT or DistilBERT layout)
    c.text_encoder.width = 1024  # D; bert: must equal the model's hidden size
    c.text_encoder.path = ""  # bert: folder or hub id
    c.text_encoder.max_length = 128  # tokens

    c.prior = ConfigDict()  # stage 1: visual prior
    c.prior.variant = "default"  # default | reference (the published SDNet)
    c.prior.image_size = 0  # pixels a side that stage 1 sees; 0: data.image_size
    c.prior.widths = (16, 32)  # U-Net levels
    c.prior.modality_widths = (16, 16)
    c.prior.segmentor_width = 16
    c.prior.decoder_widths = (16, 16)
    c.prior.anatomy_factors = 8  # K
    c.prior.modality_factors = 16  # Z
    c.prior.grid = 8  # g: the anatomy map reaches the transformer as g x g area fractions; 1: one mean, as published
    c.prior.standardise = True  # factors to the dataset's zero mean and unit scale; published: as they are
    c.prior.weight_l1 = 1.0
    c.prior.weight_kl = 1e-3
    c.prior.weight_dice = 1.0
    c.prior.weight_regression = 0.0  # mu read back from the rebuilt picture; published: 1
    c.prior.weight_perceptual = 0.0  # VGG-19 relu3_1; needs vgg_path
    c.prior.weight_appearance = 1.0  # colour and texture statistics read back from the modality vector; 0: as published
    c.prior.weight_consistency = 1.0  # anatomy map equal under changes of imaging style; 0: as published
    c.prior.flip = False  # mirror pictures with their masks at random, either way; stage 1 never sees text
    c.prior.vgg_path = ""  # safetensors with torchvision's VGG-19 names
    c.prior.weights = ""  # variant reference: a trained SDNet's file, taken as it is instead of training
    c.prior.train = training(steps=600, batch_size=8, learning_rate=2e-3, checkpoint_every_steps=200)

    c.disentangler = ConfigDict()  # stage 2: text disentangler
    c.disentangler.hidden = 384
    c.disentangler.dropout = 0.1
    c.disentangler.word_dropout = 0.1  # of the text embedding's entries; with hashing an entry is a word or word pair
    c.disentangler.alignment = (
        "scaled"  # scaled: squared error on standardised factors | cosine: direction only, as published
    )
    c.disentangler.weight_reconstruction = 0.0  # of the text embedding from both factors (published: 0.5)
    c.disentangler.shuffle_anatomy_targets = (
        False  # control experiments: targets permuted between the training pictures
    )
    c.disentangler.shuffle_modality_targets = False
    c.disentangler.weights = ""  # a trained text disentangler's file, taken as it is instead of training
    c.disentangler.train = training(
        steps=240, batch_size=256, optimizer="muon", learning_rate=4e-3, checkpoint_every_steps=80, keep="best"
    )

    c.denoiser = ConfigDict()  # stage 3: HFFM and diffusion transformer
    c.denoiser.condition = "factors"  # what the transformer is told: factors | published | class_label
    c.denoiser.hffm_hidden = 128
    c.denoiser.hffm_weights = ""  # a trained HFFM's file (with lora.weights), taken as it is instead of training
    c.denoiser.token_width = 128
    c.denoiser.components = (
        64  # a channel: leading text-predictable directions of its factors, each brought to unit variance
    )
    c.denoiser.width = 128
    c.denoiser.depth = 4
    c.denoiser.heads = 4
    c.denoiser.patch = 4
    c.denoiser.mlp_ratio = 4.0
    c.denoiser.learn_sigma = False  # twice the output channels, as PixArt has; the second half is not trained
    c.denoiser.position_cells = 0  # patches a side that the position embeddings were made for; 0: as many as there are
    c.denoiser.position_interpolation = 1.0  # divisor of the positions (PixArt: 1 at 512 pixels, 2 at 1024)
    c.denoiser.tell_size = False  # height, width and aspect ratio as conditions (PixArt at 1024)
    c.denoiser.refine = 24  # channels of two convolutions after the transformer; 0: none, as published
    c.denoiser.weights = ""  # transformer to adapt: file, folder or hub id in diffusers' layout; empty: train a new one
    c.denoiser.lora = ConfigDict(dict(rank=0, alpha=8.0, rank_stabilised=False, targets=LORA_TARGETS))  # rank 0: none
    c.denoiser.lora.weights = ""  # a trained adapter's file or folder (with hffm_weights)
    c.denoiser.condition_dropout = 0.1  # each channel on its own is replaced by its trained null
    c.denoiser.condition_noise = 0.1  # standard deviation added to the standardised components in training
    c.denoiser.flip = False  # mirror pictures left-right at random; refused where captions say left or right
    c.denoiser.remat = False  # recompute activations in the backward pass: less memory, about a third more time
    c.denoiser.train = training(
        steps=1500,
        batch_size=32,
        optimizer="muon",
        learning_rate=6e-3,
        warmup_steps=100,
        ema_decay=0.995,
        checkpoint_every_steps=375,
    )

    c.autoencoder = ConfigDict()  # pictures to the latents that the transformer works on; frozen
    c.autoencoder.kind = "pixel"  # pixel: none | kl (Stable Diffusion, PixArt) | tiny (TAESD and its relatives)
    c.autoencoder.path = ""  # kl, tiny: file, folder or hub id of the weights; kl: a whole pipeline's will do
    c.autoencoder.channels = 3  # of the latents
    c.autoencoder.factor = 1  # picture pixels a latent pixel, along one side

    c.diffusion = ConfigDict()
    c.diffusion.objective = "flow"  # epsilon (published) | v | flow
    c.diffusion.timesteps = 1000  # epsilon and v: length of the discrete schedule
    c.diffusion.beta_start = 1e-4
    c.diffusion.beta_end = 0.02

    c.sample = ConfigDict()
    c.sample.solver = "euler"  # euler (flow) | dpmpp_2m (epsilon, v)
    c.sample.steps = 20
    c.sample.guidance_anatomy = 2.0  # 1: no guidance
    c.sample.guidance_modality = 2.0
    c.sample.batch_size = 64
    c.sample.count = 4  # pictures a prompt in --mode=sample

    c.evaluate = ConfigDict()
    c.evaluate.prompts = 320  # test captions, one draw each
    c.evaluate.baseline = "none"  # none | shuffled_captions: the same reading with captions of other pictures
    c.evaluate.draws = 1  # pictures a caption on either side of that baseline
    c.evaluate.bootstrap_draws = 2000
    return c


def smoke(c: ConfigDict) -> ConfigDict:
    """The whole pipeline, tiny: minutes become seconds, figures mean nothing."""
    c.data.update(dict(train_items=64, validation_items=32, test_items=32))
    c.prior.update(dict(widths=(8, 8), modality_widths=(8, 8), segmentor_width=8, decoder_widths=(8, 8, 8)))
    c.prior.grid = min(c.prior.grid, 4)
    c.prior.train.update(dict(steps=6, batch_size=8))
    c.disentangler.update(dict(hidden=32))
    c.disentangler.train.update(dict(steps=8, batch_size=16))
    c.denoiser.update(dict(width=32, depth=2, heads=2, token_width=32, hffm_hidden=32, components=8))
    c.denoiser.train.update(dict(steps=6, batch_size=8))
    for stage in (c.prior, c.disentangler, c.denoiser):
        stage.train.update(dict(warmup_steps=2, checkpoint_every_steps=3, log_every_steps=2))
    c.sample.update(dict(steps=4, batch_size=16, count=2))
    c.evaluate.update(dict(prompts=16, bootstrap_draws=100))
    return c


def reference(c: ConfigDict) -> ConfigDict:
    """The published computation at this config's sizes."""
    c.data.intensity = "per_image"
    c.prior.update(
        dict(
            variant="reference",
            modality_widths=(16, 32, 64, 128),
            segmentor_width=64,
            decoder_widths=(128, 64, 32),
            modality_factors=8,
            grid=1,
            standardise=False,
            weight_kl=0.01,
            weight_dice=10.0,
            weight_regression=1.0,
            weight_appearance=0.0,
            weight_consistency=0.0,
            flip=False,
        )
    )
    c.prior.train.update(dict(optimizer="adamw", learning_rate=2e-3, adam_b1=0.5, schedule="plateau", warmup_steps=0))
    c.prior.train.keep = "best"
    c.disentangler.update(dict(hidden=512, alignment="cosine", weight_reconstruction=0.5, word_dropout=0.0))
    c.disentangler.train.update(dict(optimizer="adamw", learning_rate=1e-3))
    c.denoiser.update(dict(condition="published", hffm_hidden=256, components=0, refine=0))
    c.denoiser.update(dict(condition_dropout=0.0, condition_noise=0.0))
    c.denoiser.train.update(dict(optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, ema_decay=0.0))
    c.diffusion.objective = "epsilon"
    c.sample.update(dict(solver="dpmpp_2m", steps=50, guidance_anatomy=4.5, guidance_modality=4.5))
    return c


VARIANTS = {"smoke": smoke, "reference": reference}


def with_variants(c: ConfigDict, names: str, own: dict | None = None) -> ConfigDict:
    """Applies `a+b` after the colon of `--config=configs/x.py:a+b`, left to right."""
    variants = {**VARIANTS, **(own or {})}
    for name in filter(None, names.split("+")):
        if name not in variants:
            raise ValueError(
                f"config variant '{name}' of '{c.name}' is unknown: choose from {', '.join(sorted(variants))}"
            )
        c = variants[name](c)
    return c
