"""The text encoder that a config names, with its weights and tokenizer from a local folder; never from the network."""

import json
import os
import pathlib
from collections.abc import Iterable

from tokenizers import Tokenizer

from vgjax import weights
from vgjax.atomic import write_json
from vgjax.config import ConfigError
from vgjax.config import TextEncoder as TextEncoderConfig
from vgjax.models.bert import Bert, config_from_json
from vgjax.models.text_encoder import Hashing, PooledBert, SynonymEncoder, TextEncoder, VocabularyEncoder
from vgjax.weights.read import cached


def load_text_encoder(config: TextEncoderConfig, vocabulary: pathlib.Path | None = None) -> TextEncoder:
    """Builds the encoder of config group `text_encoder`.

    Args:
      vocabulary: what `write_vocabulary` wrote, for the kind of that name.

    Raises:
      ValueError: no vocabulary where the kind needs one.
      ConfigError: a model that is absent, broken or does not fit.
    """
    if config.kind == "bert":
        encoder = _pooled_bert(config)
        if encoder.width != config.width:
            raise ConfigError(
                f"config key 'text_encoder.width' is {config.width} but the model in '{config.path}' is {encoder.width}"
                f" wide: set it to {encoder.width}"
            )
        return encoder
    if config.kind == "hashing":
        return Hashing(config.width)
    if vocabulary is None:
        raise ValueError("text_encoder.kind 'vocabulary' needs the vocabulary of the training captions")
    known = VocabularyEncoder(config.width, **json.loads(vocabulary.read_text()))
    return SynonymEncoder(known, _pooled_bert(config)) if config.path else known


def check_pretrained(config: TextEncoderConfig) -> None:
    """Reads the model that the config names, if any; ConfigError where it cannot be used."""
    if config.kind == "bert":
        load_text_encoder(config)
    elif config.path:
        _pooled_bert(config)


def write_vocabulary(path: pathlib.Path, texts: Iterable[str], width: int) -> int:
    """Fits a vocabulary to training captions, writes it as JSON and returns how many entries it has."""
    fitted = VocabularyEncoder.fit(texts, width)
    write_json(path, {"entries": fitted.entries, "scale": fitted.scale})
    return len(fitted.entries)


def _pooled_bert(config: TextEncoderConfig) -> PooledBert:
    try:
        folder = pathlib.Path(config.path)
        folder = folder if folder.exists() else cached(config.path)
        tensors, values = weights.load(folder)
        where = folder / "config.json"
        if not where.is_file():
            raise ConfigError(f"no file '{where}': fetch it from where the weights come from")
        sizes = config_from_json(values, f"'{where}'")
        tokenizer = _tokenizer(folder, sizes.vocabulary)
        _, variables = weights.from_torch(sizes.kind, tensors, values, f"the weights in '{folder}'")
    except ConfigError as error:
        raise ConfigError(f"config key 'text_encoder.path': {error}") from None
    return PooledBert(Bert(sizes), variables, tokenizer, config.max_length)


def _tokenizer(folder: pathlib.Path, vocabulary: int) -> Tokenizer:
    """The tokenizer of tokenizer.json, or one built on vocab.txt.

    Raises:
      ConfigError: neither is there, it cannot be read, or it knows more pieces than the model.
    """
    whole = (folder / "tokenizer.json").is_file()
    # Where both are absent, transformers makes a tokenizer of five pieces.
    if not whole and not (folder / "vocab.txt").is_file():
        raise ConfigError(f"'{folder}' has neither tokenizer.json nor vocab.txt: fetch one of them")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # or its import complains that torch is absent
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # slow to import

    # AutoTokenizer takes no more than the vocabulary from tokenizer.json, and lower-cases unless told otherwise.
    loader = PreTrainedTokenizerFast if whole else AutoTokenizer
    try:
        tokenizer = loader.from_pretrained(folder, local_files_only=True).backend_tokenizer
    # The tokenizers library raises plain Exception for whatever it cannot read.
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"broken tokenizer in '{folder}' ({reason}): fetch it again") from None
    known = 1 + max(tokenizer.get_vocab().values(), default=0)
    if known > vocabulary:
        raise ConfigError(
            f"the tokenizer in '{folder}' knows {known} pieces but the model {vocabulary}: fetch both of one model"
        )
    return tokenizer
