"""Procedural lesion pictures with known factors: the embedded default.

python -m vgjax.main --config=configs/phantom.py --workdir=runs/phantom
"""

from configs import base


def rare(c):
    """Usefulness, where one class is rare in training: the class can be told from every caption's shape and size."""
    c.data.update(label_in_caption=True, rare_every=50)
    c.evaluate.metrics = ("control", "downstream")
    return c


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("phantom"), variants, rare=rare)
