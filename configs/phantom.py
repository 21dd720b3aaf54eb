"""Procedural lesion pictures with known factors: the embedded default.

python -m vgjax.main --config=configs/phantom.py --workdir=runs/phantom
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("phantom"), variants)
