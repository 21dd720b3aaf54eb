"""Dataset config 'covid_cxr': names its data root; the reader comes with a later release.

python -m vgjax.main --config=configs/covid_cxr.py --config.data.root=FOLDER
"""

from configs import base


def get_config(variants: str = ""):
    c = base.get_config()
    c.name = "covid_cxr"
    c.data.source = "covid_cxr"
    c.evaluate.readout = "segmentor"
    return base.with_variants(c, variants)
