"""BUSI: breast ultrasound with lesion masks; captions are written from measured attributes.

python -m vgjax.main --config=configs/busi.py:cpu --config.data.root=FOLDER/Dataset_BUSI_with_GT \\
    --config.autoencoder.path=FOLDER (or :cpu+pixels)
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("busi"), variants, **base.REAL)
