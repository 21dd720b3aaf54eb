"""Kvasir-SEG: endoscopy pictures of polyps with masks; captions are written from measured attributes.

python -m vgjax.main --config=configs/kvasir_seg.py:cpu --config.data.root=FOLDER/Kvasir-SEG
"""

from configs import base


def cpu(c):
    """Sized for two CPU cores: 64x64 pictures, at most 40 minutes."""
    c.data.image_size = 64
    return c


def get_config(variants: str = ""):
    c = base.get_config()
    c.name = "kvasir_seg"
    c.data.source = "kvasir_seg"
    c.evaluate.update(dict(readout="segmentor", baseline="shuffled_captions", prompts=160))
    return base.with_variants(c, variants, {"cpu": cpu})
