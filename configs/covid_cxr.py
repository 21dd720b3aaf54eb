"""The COVID chest X-ray collection of Cohen et al. (2020): radiographs with clinical notes and lung masks.

python -m vgjax.main --config=configs/covid_cxr.py:cpu --config.data.root=FOLDER/covid-chestxray-dataset \\
    --config.autoencoder.path=FOLDER (or :cpu+pixels)
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("covid_cxr"), variants, **base.REAL)
