"""MIMIC-CXR: chest radiographs with reports (MIMIC-CXR-JPG, MIMIC-CXR reports, CheXmask lung masks).

python -m vgjax.main --config=configs/mimic.py --config.data.root=FOLDER
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("mimic"), variants)
