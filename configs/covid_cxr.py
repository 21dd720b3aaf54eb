"""The COVID chest X-ray collection of Cohen et al. (2020): radiographs with clinical notes and lung masks.

python -m vgjax.main --config=configs/covid_cxr.py --config.data.root=FOLDER/covid-chestxray-dataset
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("covid_cxr"), variants)
