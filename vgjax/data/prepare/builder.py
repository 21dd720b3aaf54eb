"""Prepared pictures as a tensorflow_datasets dataset: ArrayRecord shards that tfds reads without TensorFlow."""

import contextlib
import io
import json
import pathlib
import shutil
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import tensorflow_datasets as tfds
from tqdm import tqdm

from vgjax.config import ConfigError
from vgjax.data.records import REMEDY, writing

Row = Mapping[str, Any]

VERSION = "1.0.0"
PICTURES = ("image", "mask")
OBJECTS = ("factors", "named", "wordings")  # stored as JSON


class Prepared(tfds.core.GeneratorBasedBuilder, skip_registration=True):  # type: ignore[call-arg]
    """Rows that are ready, in the order given.

    Features: id, image (H, W, 3) and mask (H, W, 1) as PNG, caption, label, group, and as JSON factors, named and
    wordings (further captions by channel); training reads image, mask, caption and wordings only.
    """

    VERSION = tfds.core.Version(VERSION)

    def __init__(self, rows: Mapping[str, Iterable[Row]], data_dir: pathlib.Path, name: str):
        self.name, self._rows = name, rows
        super().__init__(data_dir=str(data_dir), file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        png = lambda channels: tfds.features.Image(shape=(None, None, channels), encoding_format="png")
        texts = dict.fromkeys(("id", "caption", "label", "group", *OBJECTS), tfds.features.Text())
        features = tfds.features.FeaturesDict({**texts, "image": png(3), "mask": png(1)})
        return tfds.core.DatasetInfo(builder=self, features=features, disable_shuffling=True)

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator[tuple[int, Row]]]:
        return {split: self._generate_examples(rows) for split, rows in self._rows.items()}

    def _generate_examples(self, rows: Iterable[Row]) -> Iterator[tuple[int, Row]]:
        for number, row in enumerate(tqdm(rows, desc="writing", unit="image", mininterval=1.0)):
            yield number, {**row, **{name: json.dumps(row[name]) for name in OBJECTS}}


def write(folder: pathlib.Path, name: str, rows: Mapping[str, Iterable[Row]]) -> None:
    """Writes the rows of all splits, image and mask as PNG bytes, to folder/<name>/<version>, whole or not at all."""
    for rest in (folder / name).glob("incomplete.*"):  # of a run that was killed
        shutil.rmtree(rest)
    tfds.disable_progress_bar()
    builder = Prepared(rows, folder, name)
    # tfds speaks of downloading, which never happens here.
    with writing(folder), contextlib.redirect_stdout(io.StringIO()):
        builder.download_and_prepare()


def shards(name: str, split: str) -> str:
    """Pattern of a split's files, relative to the folder; their order is that of their names."""
    return f"{name}/{VERSION}/{name}-{split}.array_record-*"


class Pictures:
    """Random access to one prepared split, pictures as PNG bytes; ConfigError where it is missing or damaged."""

    def __init__(self, folder: pathlib.Path, name: str, split: str):
        where = folder / name / VERSION
        try:
            builder = tfds.builder_from_directory(where)
            self._source = builder.as_data_source(split, decoders=dict.fromkeys(PICTURES, tfds.decode.SkipDecoding()))
        # A cut or missing shard, a damaged table of contents: tfds and array_record have no error of their own.
        except (RuntimeError, OSError, ValueError, KeyError, AssertionError) as error:
            raise ConfigError(
                f"the prepared pictures in '{where}' cannot be opened ({' '.join(str(error).split())[:200]}): {REMEDY}"
            ) from None

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, row: int) -> dict[str, Any]:
        fields = self._source[row]
        texts = {name: value.decode() for name, value in fields.items() if name not in PICTURES}
        return {**fields, **texts, **{name: json.loads(texts[name]) for name in OBJECTS}}
