"""Kvasir-SEG: endoscopy pictures of polyps with masks; captions are written from measured attributes.

python -m vgjax.main --config=configs/kvasir_seg.py:cpu --config.data.root=FOLDER/Kvasir-SEG \\
    --config.autoencoder.path=FOLDER (or :cpu+pixels)
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("kvasir_seg"), variants, **base.REAL)
