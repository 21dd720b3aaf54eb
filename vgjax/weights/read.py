"""Finds and reads weight files: single files, and folders in the layout of diffusers, transformers and peft."""

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from vgjax.atomic import open_regular, read_regular
from vgjax.weights.convert import WeightsError
from vgjax.weights.pth import load_pth

# In order of preference; each also as "<stem>.safetensors.index.json" with shards.
STEMS = ("diffusion_pytorch_model", "model", "adapter_model")
CONFIGS = ("config.json", "adapter_config.json")
TORCH_SUFFIXES = (".pth", ".pt", ".bin", ".ckpt")
WRAPPERS = ("state_dict", "model_state_dict", "model")


def load(source: str | pathlib.Path, subfolder: str = "") -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Tensors by name, and the values of the config.json beside them (empty where there is none).

    Args:
      source: a .safetensors or .pth file, a folder, or the hub id of a model in the local cache; the network is
        never asked.
      subfolder: part of a pipeline's folder ("transformer", "vae", "text_encoder"); used where it exists.

    Raises:
      WeightsError: nothing there, unreadable, damaged, or not made of tensors alone.
    """
    path = pathlib.Path(source)
    try:
        if path.exists() and not path.is_dir():
            return _read_file(path), {}
        folder = path if path.is_dir() else cached(str(source))
        folder = folder / subfolder if (folder / subfolder).is_dir() else folder
        config = next((read_json(folder / name) for name in CONFIGS if (folder / name).exists()), {})
        return _read_folder(folder), config
    except OSError as error:
        where, reason = error.filename or source, error.strerror or error
        raise WeightsError(f"'{where}' cannot be read ({reason}): name a file that is there for you to read") from None


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """A JSON object.

    Raises:
      WeightsError: missing, or something else.
    """
    try:
        values = json.loads(read_regular(path))
    except FileNotFoundError:
        raise WeightsError(f"no file '{path}': name the folder that holds it") from None
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"'{path}' is not JSON ({error}): fetch it again") from None
    if not isinstance(values, dict):
        raise WeightsError(f"'{path}' is not a JSON object: fetch it again")
    return values


def cached(hub_id: str) -> pathlib.Path:
    """The folder of a model in the local Hugging Face cache; the network is never asked.

    Raises:
      WeightsError: it is not there.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return pathlib.Path(snapshot_download(hub_id, local_files_only=True))
    except (HFValidationError, LocalEntryNotFoundError):
        raise WeightsError(
            f"'{hub_id}' is neither a file, a folder nor a model in the local Hugging Face cache: download it first"
        ) from None


def _read_folder(folder: pathlib.Path) -> dict[str, np.ndarray]:
    for stem in STEMS:
        index = folder / f"{stem}.safetensors.index.json"
        if (folder / f"{stem}.safetensors").is_file():
            return _read_file(folder / f"{stem}.safetensors")
        if index.is_file():
            return _read_shards(folder, index)
    singles = [p for p in sorted(folder.iterdir()) if p.suffix in (".safetensors", *TORCH_SUFFIXES)]
    if len(singles) == 1:
        return _read_file(singles[0])
    raise WeightsError(
        f"'{folder}' holds {len(singles)} weight files and none of the names {', '.join(STEMS)}: name the file itself"
    )


def _read_shards(folder: pathlib.Path, index: pathlib.Path) -> dict[str, np.ndarray]:
    places = read_json(index).get("weight_map")
    if not isinstance(places, Mapping) or not all(isinstance(name, str) for name in places.values()):
        raise WeightsError(f"'{index}' has no usable weight_map: fetch it again")
    tensors: dict[str, np.ndarray] = {}
    for name in sorted(set(places.values())):
        shard = folder / name
        if pathlib.PurePath(name).name != name:
            raise WeightsError(f"'{index}' names '{name}', which is not a file beside it: fetch it again")
        if not shard.is_file():
            raise WeightsError(f"'{index}' names '{name}', which is not there: fetch the missing shard")
        tensors |= _read_file(shard)
    missing = sorted(set(places) - set(tensors))
    if missing:
        raise WeightsError(f"the shards of '{index}' lack {', '.join(missing)}: fetch them again")
    return tensors


def _read_file(path: pathlib.Path) -> dict[str, np.ndarray]:
    if path.suffix not in TORCH_SUFFIXES:
        with open_regular(path):
            try:
                return load_file(path)
            # Beside its own error whatever numpy says of shapes and types that it has not.
            except Exception as error:
                raise WeightsError(f"'{path}' cannot be read as safetensors ({error}): fetch it again") from None
    tree = load_pth(path)
    for wrapper in WRAPPERS:
        if isinstance(tree, Mapping) and isinstance(tree.get(wrapper), Mapping):
            tree = tree[wrapper]
    if not isinstance(tree, Mapping) or not all(
        isinstance(v, np.ndarray) and isinstance(k, str) for k, v in tree.items()
    ):
        raise WeightsError(f"'{path}' holds something else than tensors by name: save the network's state_dict")
    return dict(tree)
