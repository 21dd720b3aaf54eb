"""The default recipe, sized for two CPU cores and 32x32 pictures, and its variants; other configs only differ.

The keys, their defaults and what they mean stand in `vgjax/config.py`; `python -m vgjax.main --help` prints them.
"""

from collections.abc import Callable

from ml_collections import ConfigDict

from vgjax.config import ConfigError, defaults


def get_config() -> ConfigDict:
    return defaults()


def for_dataset(source: str) -> ConfigDict:
    """The default recipe, on a dataset that gives it its name."""
    c = get_config()
    c.name = c.data.source = source
    return c


def smoke(c: ConfigDict) -> ConfigDict:
    """The whole pipeline, tiny: minutes become seconds, figures mean nothing."""
    c.data.update(train_items=64, validation_items=32, test_items=32, wordings=2)
    c.prior.update(widths=(8, 8), modality_widths=(8, 8), segmentor_width=8, decoder_widths=(8, 8, 8))
    c.prior.grid = min(c.prior.grid, 4)
    c.prior.train.update(steps=6, batch_size=8)
    c.disentangler.update(hidden=32, flow_depth=1)
    c.disentangler.flow_width.update(anatomy=32, modality=32)
    c.disentangler.train.update(steps=8, batch_size=16)
    c.denoiser.update(width=32, depth=2, heads=2, token_width=32, hffm_hidden=32, components=12)
    c.denoiser.update(colour_every_steps=3, colour_steps=2, colour_gradient_steps=1)
    c.denoiser.train.update(steps=6, batch_size=8)
    c.reader.widths = (8, 8)
    c.reader.train.update(steps=6, batch_size=8)
    c.domain.update(image_size=16, width=8)
    c.domain.train.update(steps=6, batch_size=8)
    c.downstream.update(image_size=16, width=8, steps=4, batch_size=8, seeds=2, per_class=8)
    for stage in (c.prior, c.disentangler, c.denoiser, c.reader, c.domain):
        stage.train.update(warmup_steps=2, checkpoint_every_steps=3, log_every_steps=2)
    c.sample.update(steps=4, text_steps=4, batch_size=16, count=2)
    c.evaluate.update(prompts=16, resamples=100)
    return c


def reference(c: ConfigDict) -> ConfigDict:
    """The published computation at this config's sizes."""
    c.data.intensity = "per_image"
    c.prior.update(variant="reference", modality_widths=(16, 32, 64, 128), segmentor_width=64)
    c.prior.update(decoder_widths=(128, 64, 32), modality_factors=8, grid=1, standardise=False, flip=False)
    c.prior.update(weight_kl=0.01, weight_dice=10.0, weight_regression=1.0)
    c.prior.update(weight_appearance=0.0, weight_consistency=0.0)
    c.prior.train.update(optimizer="adamw", learning_rate=2e-3, adam_b1=0.5, schedule="plateau", warmup_steps=0)
    c.prior.train.keep = "best"
    c.disentangler.update(method="regression", hidden=512, alignment="cosine", weight_reconstruction=0.5)
    c.disentangler.train.update(steps=1000, checkpoint_every_steps=100, learning_rate=1e-3, ema_decay=0.0, keep="best")
    c.denoiser.update(condition="published", learn_from="text", hffm_hidden=256, refine=0)
    c.denoiser.update(dropout_all=0.0, anatomy_noise=0.0, modality_noise=0.0)
    c.denoiser.dropout.update(anatomy=0.0, modality=0.0)
    c.denoiser.train.update(optimizer="adamw", learning_rate=1e-3, weight_decay=0.01, ema_decay=0.0)
    c.diffusion.objective = "epsilon"
    c.sample.update(solver="dpmpp_2m", steps=50)
    c.sample.guidance.update(anatomy=4.5, modality=4.5)
    return c


def class_label(c: ConfigDict) -> ConfigDict:
    """A baseline: a transformer that is told the class of a picture and nothing else."""
    c.denoiser.condition = "class_label"
    c.denoiser.dropout = ConfigDict({"class": 0.0})
    c.sample.guidance = ConfigDict({"class": 2.0})
    c.evaluate.metrics = ("control",)
    return c


def long(c: ConfigDict) -> ConfigDict:
    """Stages 2 and 3 twice as long."""
    for train in (c.disentangler.train, c.denoiser.train):
        train.update(steps=2 * train.steps, checkpoint_every_steps=2 * train.checkpoint_every_steps)
    return c


def regression(c: ConfigDict) -> ConfigDict:
    """An ablation: stage 2 answers with the mean of the factors in the place of a sample."""
    c.disentangler.update(method="regression", word_dropout=0.1)
    c.disentangler.train.update(steps=240, optimizer="muon", learning_rate=4e-3, ema_decay=0.0, keep="best")
    c.disentangler.train.update(warmup_steps=50, checkpoint_every_steps=80, log_every_steps=20)
    return c


def no_alignment(c: ConfigDict) -> ConfigDict:
    """The published ablation: text heads trained by the diffusion loss alone, without stages 1 and 2."""
    c.denoiser.update(condition="text_heads", width=184, heads=4)
    c.disentangler.update(method="regression", hidden=512)
    return c


def one_channel(c: ConfigDict) -> ConfigDict:
    """The published ablation: anatomy and modality fused into one channel."""
    c.denoiser.update(condition="factors", channels="one")
    c.denoiser.dropout = ConfigDict({"factors": 0.0})
    c.sample.guidance = ConfigDict({"factors": 2.0})
    return c


def pixart_text(c: ConfigDict) -> ConfigDict:
    """A baseline: the words of the caption as tokens in cross-attention, and no factors."""
    c.denoiser.update(condition="text_tokens", width=192, depth=6, heads=4)
    c.denoiser.dropout = ConfigDict({"text": 0.0})
    c.sample.guidance = ConfigDict({"text": 2.0})
    c.text_encoder.max_length = 48
    return c


def medart(c: ConfigDict) -> ConfigDict:
    """A baseline: `pixart_text` with a colour loss whose gradient runs through the sampler (Med-Art, 2506.20449)."""
    c = pixart_text(c)
    c.denoiser.update(weight_colour=1 / 20, colour_guidance=2.0)
    return c


def cpu(c: ConfigDict) -> ConfigDict:
    """For some thousand real pictures and two cores: at most 40 minutes, 128 pixels, 64 of them in stage 1.

    The transformer works on latents of a small autoencoder of 32 channels, which `autoencoder.path` has to name.
    """
    c.data.update(image_size=128, views=8, captions="measured", validation_fraction=0.1)
    c.autoencoder.update(kind="tiny", channels=32, factor=8)
    c.prior.update(image_size=64, widths=(16, 32, 64), flip=True)
    c.prior.train.update(steps=900, batch_size=8, optimizer="muon", learning_rate=4e-3, checkpoint_every_steps=300)
    c.disentangler.word_dropout = 0.1
    c.denoiser.update(patch=1, refine=64)
    c.denoiser.train.update(steps=1500, batch_size=16, checkpoint_every_steps=750)
    c.evaluate.update(metrics=("control", "gain", "prior"), prompts=160)
    return c


def pixels(c: ConfigDict) -> ConfigDict:
    """Without an autoencoder, at 64 pixels; patches show their seams."""
    c.data.image_size = 64
    c.autoencoder.update(kind="pixel", path="", channels=3, factor=1)
    c.denoiser.update(patch=4, refine=0)  # refining would cost as much as the transformer
    return c


VARIANTS = {
    "smoke": smoke,
    "reference": reference,
    "class_label": class_label,
    "long": long,
    "regression": regression,
    "no_alignment": no_alignment,
    "one_channel": one_channel,
    "pixart_text": pixart_text,
    "medart": medart,
}
REAL = {"cpu": cpu, "pixels": pixels}  # further ones, of datasets of real pictures


def with_variants(c: ConfigDict, names: str, **own: Callable[[ConfigDict], ConfigDict]) -> ConfigDict:
    """Applies `a+b` after the colon of `--config=configs/x.py:a+b`, left to right; `own` are x's further variants."""
    variants = VARIANTS | own
    for name in filter(None, names.split("+")):
        if name not in variants:
            raise ConfigError(
                f"config variant '{name}' of '{c.name}' is unknown: choose from {', '.join(sorted(variants))}"
            )
        c = variants[name](c)
    return c
