"""Procedural lesion pictures with known factors: the embedded default.

python -m vgjax.main --config=configs/phantom.py --workdir=runs/phantom
"""

from configs import base


def get_config(variants: str = ""):
    c = base.get_config()
    c.name = "phantom"
    return base.with_variants(c, variants)
