"""HAM10000, as published: PixArt-alpha XL/2 at 512 pixels with a rank-8 adapter, SD's autoencoder, ClinicalBERT.

python -m vgjax.main --config=configs/ham10000.py --config.data.root=FOLDER

The three pretrained networks are looked for in the local Hugging Face cache; a folder may be named instead:
--config.denoiser.weights=, --config.autoencoder.path=, --config.text_encoder.path=. `:small` is the default recipe
at 64 pixels, without pretrained networks, and `:cpu` that of base.py at 128.
"""

from configs import base

PIXART = "PixArt-alpha/PixArt-XL-2-512x512"
CLINICAL_BERT = "medicalai/ClinicalBERT"


def small():
    c = base.for_dataset("ham10000")
    c.data.image_size = 64
    return c


def published():
    c = base.reference(small())
    c.data.image_size = 512
    c.text_encoder.update(kind="bert", width=768, path=CLINICAL_BERT, max_length=512)
    c.prior.update(image_size=224, widths=(64, 128, 256, 512), weight_perceptual=0.0)
    c.prior.train.update(steps=135_000, batch_size=4, learning_rate=1e-4, checkpoint_every_steps=2250)
    c.disentangler.train.update(steps=17_000, batch_size=32, learning_rate=1e-4, checkpoint_every_steps=280)
    c.denoiser.update(width=1152, depth=28, heads=16, patch=2, token_width=4096, hffm_hidden=256, remat=True)
    c.denoiser.update(weights=PIXART, learn_sigma=True, position_cells=32)
    c.denoiser.lora.rank = 8
    c.denoiser.train.update(steps=135_000, batch_size=1, learning_rate=1e-4, warmup_steps=500, clip_part="lora")
    c.autoencoder.update(kind="kl", path=PIXART, channels=4, factor=8)
    c.sample.batch_size = 4
    return c


def get_config(variants: str = ""):
    without_weights = {"small", "smoke", "cpu", "pixels"}.intersection(variants.split("+"))
    return base.with_variants(small() if without_weights else published(), variants, small=lambda c: c, **base.REAL)
