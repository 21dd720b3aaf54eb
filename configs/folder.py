"""Your own pictures: images/ with metadata.csv or metadata.jsonl (file_name, text, and label, mask, group if there).

python -m vgjax.main --config=configs/folder.py --config.data.root=FOLDER
"""

from configs import base


def get_config(variants: str = ""):
    return base.with_variants(base.for_dataset("folder"), variants)
