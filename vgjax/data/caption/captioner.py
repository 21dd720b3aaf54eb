"""Captions by a vision-language model, written once, ahead of preparation, into a file that `data.captions_file` names.

    python -m vgjax.data.caption.captioner --source=busi --root=FOLDER --model=FOLDER_OR_HUB_ID --output=captions.jsonl
    python -m vgjax.data.caption.captioner --source=busi --records=FOLDER --model=... --output=...

Any model of transformers' "image-text-to-text" pipeline serves, from a folder or the hub's cache (HF_HUB_OFFLINE=0
allows downloads); this alone needs PyTorch. Each line of the output is {"id", "caption", "model", "prompt"}. A run that
is started again goes on where the last one stopped. The class name reaches the model only where the prompt has
{label}.
"""

import argparse
import functools
import importlib.util
import io
import itertools
import json
import logging
import os
import pathlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

from PIL import Image
from tqdm import tqdm

from vgjax.boundary import guarded, leave
from vgjax.config import ConfigError
from vgjax.data.prepare.plan import FileSource
from vgjax.data.read.images import read_image
from vgjax.data.read.tables import caption_rows
from vgjax.data.sources import SOURCES
from vgjax.types import SPLITS

PROMPT = "Describe this medical image in one or two sentences: the finding, its position, size, shape and colour."
LABEL = "{label}"


class Picture(NamedTuple):
    """A picture to caption; `load` opens it and may raise, `label` is its class name or ""."""

    id: str
    load: Callable[[], Image.Image]
    label: str = ""


Images = dict[Picture, Image.Image]


class Outcome(NamedTuple):
    """How many captions were written, how many were done before, (id, reason) of each picture that got none."""

    written: int
    done: int
    failed: tuple[tuple[str, str], ...]


def run(
    pictures: Iterable[Picture],
    generate: Callable[..., Any],
    output: str | os.PathLike[str],
    model: str,
    prompt: str = PROMPT,
    batch: int = 8,
    attempts: int = 3,
    max_new_tokens: int = 96,
) -> Outcome:
    """Captions whatever has no caption in `output` yet, and appends to it, as JSON lines, batch by batch.

    Args:
      pictures: with unique ids; so many are given to the model at once as `batch` says.
      generate: transformers' pipeline, or a stand-in for it; `model` is its name, for the record.
      prompt: what the model is asked; `LABEL` in it is replaced by the class name.
      attempts: how often a picture is tried before it counts as failed.

    Raises:
      ConfigError: `output` holds captions by another model or prompt, or something else.
    """
    path = pathlib.Path(output)
    done = _resume(path, model, prompt)
    ask = functools.partial(_ask, generate, prompt, max_new_tokens)
    written = before = 0
    failed: dict[str, str] = {}

    def missing() -> Iterator[Picture]:
        nonlocal before
        for picture in tqdm(pictures, desc="captioning", unit="image", mininterval=1.0):
            if picture.id in done:
                before += 1
            else:
                yield picture

    left = missing()
    while chunk := list(itertools.islice(left, batch)):
        texts, reasons = _caption(chunk, ask, attempts)
        _append(path, [{"id": i, "caption": text, "model": model, "prompt": prompt} for i, text in texts.items()])
        written += len(texts)
        failed |= reasons
    if failed:
        logging.warning("%d pictures got no caption, the first: %s: %s", len(failed), *next(iter(failed.items())))
    return Outcome(written, before, tuple(failed.items()))


def _caption(
    pictures: Sequence[Picture], ask: Callable[[Images], list[str]], attempts: int
) -> tuple[dict[str, str], dict[str, str]]:
    """Captions by id, and for those without one the reason; both in the order given."""
    images: Images = {}
    texts: dict[str, str] = {}
    reasons = {picture.id: "the model said nothing" for picture in pictures}
    for picture in pictures:
        try:
            images[picture] = picture.load().convert("RGB")
        except Exception as error:  # whatever a damaged file makes a decoder raise; the next run may find it mended
            reasons[picture.id] = f"cannot be read: {error}"
    # All at once first. Whoever fails is tried alone, so that one picture does not cost the others their captions.
    for attempt in range(attempts):
        left = {picture: image for picture, image in images.items() if picture.id not in texts}
        for part in [left] if left and attempt == 0 else [{picture: image} for picture, image in left.items()]:
            try:
                answers = ask(part)
            except Exception as error:  # a model may raise anything; memory may be free next time
                reasons |= {picture.id: f"{type(error).__name__}: {error}" for picture in part}
                continue
            texts |= {picture.id: text for picture, text in zip(part, answers, strict=True) if text}
    return {i: texts[i] for i in reasons if i in texts}, {i: why for i, why in reasons.items() if i not in texts}


def _ask(generate: Callable[..., Any], prompt: str, max_new_tokens: int, images: Images) -> list[str]:
    """The model's answers, each in one line; "" where it gave none."""
    prompts = [prompt.replace(LABEL, picture.label or "unknown") for picture in images]
    options = {"max_new_tokens": max_new_tokens, "return_full_text": False, "batch_size": len(images)}
    if getattr(getattr(generate, "processor", None), "chat_template", None):
        chats = [
            [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": text}]}]
            for image, text in zip(images.values(), prompts, strict=True)
        ]
        answers = generate(text=chats, **options)
    else:  # plain captioning models continue the prompt
        answers = generate(images=list(images.values()), text=prompts, **options)
    if len(answers) != len(images):
        raise ValueError(f"the model gave {len(answers)} answers to {len(images)} pictures")
    # Of one input the pipeline returns either a result or a list of results.
    firsts = (answer[0] if isinstance(answer, list) else answer for answer in answers)
    return [" ".join(str(first["generated_text"]).split()) for first in firsts]


def _resume(path: pathlib.Path, model: str, prompt: str) -> set[str]:
    """Ids that are done; a last line that was cut short is removed from the file."""
    if not path.exists():
        return set()
    rows, complete = caption_rows(path)
    for row in rows:
        if (row.get("model"), row.get("prompt")) != (model, prompt):
            raise ConfigError(
                f"'{path}' holds captions by model {row.get('model')!r} with prompt {row.get('prompt')!r}: name another"
                " --output, or go on with those"
            )
    with path.open("r+b") as file:
        file.truncate(complete)
        file.seek(max(complete - 1, 0))
        if file.read(1) not in (b"", b"\n"):
            file.write(b"\n")
    return {row["id"] for row in rows}


def _append(path: pathlib.Path, rows: Sequence[dict[str, str]]) -> None:
    """Adds rows in one write that has reached the disk on return."""
    if not rows:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write("".join(json.dumps(row) + "\n" for row in rows).encode())
        file.flush()
        os.fsync(file.fileno())


def of_source(name: str, root: str) -> list[Picture]:
    """The pictures of a dataset's folder; ConfigError where it is another's, or `vgjax.data.sources` has no reader."""
    sources = {key: source for key, source in SOURCES.items() if isinstance(source, FileSource)}
    if name not in sources:
        raise ConfigError(f"--source is '{name}': choose one of {', '.join(sorted(sources))}")
    load = lambda path: Image.fromarray(read_image(path, root).pixels)
    entries = sources[name].index(root).entries
    return [Picture(entry.id, functools.partial(load, entry.image), entry.label) for entry in entries]


def of_records(name: str, folder: str) -> Iterator[Picture]:
    """The pictures of a dataset in a folder of prepared records; ConfigError where it holds none."""
    from vgjax.data.prepare.builder import Pictures  # slow to import

    parts = [Pictures(pathlib.Path(folder), name, split) for split in SPLITS]
    rows = (part[number] for part in parts for number in range(len(part)))
    return (
        Picture(row["id"], functools.partial(Image.open, io.BytesIO(row["image"])), row["label"])
        for row in rows
        if "//" not in row["id"]  # further views take the words of their picture
    )


def load_model(model: str) -> Callable[..., Any]:
    """transformers' pipeline for a local folder or a model in the hub's cache; ConfigError without that or PyTorch."""
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(
            "the captioner runs its model with PyTorch, which is not installed: pip install torch torchvision, here or"
            " in an environment of its own"
        )
    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
    from transformers import pipeline

    try:
        return pipeline("image-text-to-text", model=model)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(
            f"--model: '{model}' cannot be loaded ({reason}): name the folder of an image-text-to-text model, or set"
            " HF_HUB_OFFLINE=0 to fetch it"
        ) from error


@guarded
def main(arguments: Sequence[str] | None = None, load: Callable[..., Any] = load_model) -> int:
    """The command line; 1 where pictures failed, 2 where it could not start."""
    parser = argparse.ArgumentParser(prog="python -m vgjax.data.caption.captioner")
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--root", help="the dataset's own folder")
    place.add_argument("--records", help="a folder of prepared records")
    parser.add_argument("--source", default="folder", help="dataset, as in data.source")
    parser.add_argument("--model", required=True, help="folder or hub id")
    parser.add_argument("--output", required=True, help="file of JSON lines, continued where it exists")
    parser.add_argument("--prompt", default=PROMPT, help=f"{LABEL} in it tells the model the class name")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--attempts", type=int, default=3, help="tries of each picture")
    parser.add_argument("--max_new_tokens", type=int, default=96)
    given = parser.parse_args(arguments)
    limits = given.batch, given.attempts, given.max_new_tokens
    if min(limits) < 1:
        raise ConfigError("--batch, --attempts and --max_new_tokens must be at least 1")
    pictures = of_records(given.source, given.records) if given.records else of_source(given.source, given.root)
    outcome = run(pictures, load(given.model), given.output, given.model, given.prompt, *limits)
    print(f"{outcome.written} captions written, {outcome.done} were there, {len(outcome.failed)} pictures failed")
    for item_id, reason in outcome.failed:
        print(f"{item_id}: {reason}")
    return 1 if outcome.failed else 0


if __name__ == "__main__":
    leave(main())
