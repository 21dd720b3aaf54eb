"""Kvasir-SEG: endoscopy pictures of polyps with masks; captions are written from measured attributes.

python -m vgjax.main --config=configs/kvasir_seg.py:cpu --config.data.root=FOLDER/Kvasir-SEG
"""

from configs import base


def cpu(c):
    """Sized for two CPU cores: 64x64 pictures, at most 40 minutes."""
    c.data.image_size = 64
    c.prior.widths = (16, 32, 64)
    c.prior.flip = True
    c.prior.train.update(
        dict(steps=900, batch_size=8, optimizer="muon", learning_rate=4e-3, checkpoint_every_steps=150)
    )
    c.disentangler.word_dropout = 0.3  # some five hundred captions
    c.disentangler.train.update(steps=1500, batch_size=256, checkpoint_every_steps=500)
    c.denoiser.refine = 0  # at this size it would cost as much as the transformer
    c.denoiser.train.update(steps=1200, batch_size=16, checkpoint_every_steps=400)
    c.evaluate.draws = 3
    return c


def get_config(variants: str = ""):
    c = base.for_dataset("kvasir_seg")
    c.data.validation_fraction = 0.15  # enough pictures to tell which directions text predicts
    c.evaluate.update(metrics=("control", "gain", "swap", "prior"), prompts=160)
    return base.with_variants(c, variants, cpu=cpu)
