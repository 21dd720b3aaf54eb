"""Dataset config 'busi': names its data root; the reader comes with a later release.

python -m vgjax.main --config=configs/busi.py --config.data.root=FOLDER
"""

from configs import base


def get_config(variants: str = ""):
    c = base.get_config()
    c.name = "busi"
    c.data.source = "busi"
    c.evaluate.readout = "segmentor"
    return base.with_variants(c, variants)
