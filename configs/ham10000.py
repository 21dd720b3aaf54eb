"""Dataset config 'ham10000': names its data root; the reader comes with a later release.

python -m vgjax.main --config=configs/ham10000.py --config.data.root=FOLDER
"""

from configs import base


def get_config(variants: str = ""):
    c = base.get_config()
    c.name = "ham10000"
    c.data.source = "ham10000"
    c.evaluate.readout = "segmentor"
    return base.with_variants(c, variants)
