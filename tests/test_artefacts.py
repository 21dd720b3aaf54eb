"""What is made again after which change: the promise of artefacts kept by what they depend on."""

import pathlib
from collections import Counter

import pytest

from configs import folder, phantom
from tests import test_prepare
from vgjax import artefacts, context, parallel
from vgjax import run as runs
from vgjax.config import ConfigError
from vgjax.recipes import UndeclaredKey
from vgjax.store import Store


def digests(**changes) -> dict[str, str]:
    """The digest of every artefact of the smoke config under changed keys."""
    c = phantom.get_config("smoke")
    c.update_from_flattened_dict(changes)
    run = runs.open_run(c, "runs/none")
    return {name: run.recipe(name).digest for name in run.producers}


BEFORE = digests()
DRAWN = {"drawn_captions", "drawn_swap", "evaluation"}
STAGE_3 = {"denoiser", *DRAWN}
# The transformer learns from the factors of pictures, and so texts decide nothing of it.
STAGE_2 = {"disentangler", *DRAWN}
TEXTS = {"wordings", *STAGE_2}
STAGE_1 = {"prior", "factors", "condition", "disentangler", *STAGE_3}


@pytest.mark.parametrize(
    ("key", "value", "made_again"),
    [
        ("denoiser.train.steps", 7, STAGE_3),
        ("denoiser.train.log_every_steps", 1, set()),
        ("denoiser.depth", 1, STAGE_3),
        ("diffusion.timesteps", 500, STAGE_3),
        ("diffusion.times", "logit_normal", STAGE_3),
        ("denoiser.dropout_all", 0.2, STAGE_3),
        ("denoiser.spatial_path", False, STAGE_3),
        ("denoiser.components", 4, {"condition", *STAGE_2, *STAGE_3}),
        ("disentangler.train.steps", 9, STAGE_2),
        ("disentangler.train.log_every_steps", 9, set()),
        ("disentangler.text_dropout", 0.2, STAGE_2),
        ("disentangler.flow_width.anatomy", 24, STAGE_2),
        ("disentangler.shuffle_anatomy_targets", True, STAGE_2),
        ("text_encoder.width", 512, {"vocabulary", *TEXTS}),
        ("text_encoder.max_length", 12, TEXTS),
        ("text_encoder.kind", "hashing", {"vocabulary", *TEXTS}),
        ("sample.text_guidance.anatomy", 3.0, DRAWN),
        ("sample.text_steps", 3, DRAWN),
        ("data.wordings", 3, set(BEFORE)),
        ("prior.train.steps", 7, STAGE_1),
        ("prior.weight_kl", 0.5, STAGE_1),
        ("data.workers", 1, set()),
        ("data.test_items", 33, set(BEFORE)),
        ("seed", 1, set(BEFORE)),
        ("sample.steps", 5, DRAWN),
        ("sample.count", 5, set()),
        ("sample.batch_size", 8, set()),
        ("evaluate.resamples", 50, {"evaluation"}),
        ("evaluate.metrics", ("control",), {"evaluation"}),
        ("mesh.fsdp", 2, set()),
        ("name", "other", set()),
    ],
)
def test_a_change_makes_again_what_depends_on_it_and_nothing_else(key, value, made_again):
    after = digests(**{key: value})
    assert {name for name in after if after[name] != BEFORE[name]} == made_again


REGRESSION = {"disentangler.method": "regression", "denoiser.learn_from": "text"}


@pytest.mark.parametrize("key", ["disentangler.hidden", "disentangler.train.steps", "text_encoder.max_length"])
def test_a_transformer_that_learns_from_texts_is_made_again_with_them(key):
    before, after = digests(**REGRESSION), digests(**REGRESSION, **{key: 5})
    texts = {"text"} if key.startswith("text") else set()
    assert {name for name in after if after[name] != before[name]} == {"disentangler", *texts, *STAGE_3}


@pytest.mark.parametrize("kind", ["bert", "vocabulary"])
@pytest.mark.parametrize("variants", ["smoke", "smoke+regression", "smoke+pixart_text", "smoke+no_alignment"])
def test_a_text_encoder_that_is_not_there_is_told_before_any_work(variants, kind, tmp_path):
    c = phantom.get_config(variants)
    c.text_encoder.update(kind=kind, path="no/such")
    with pytest.raises(ConfigError, match=r"text_encoder\.path': 'no/such' is neither a file, a folder nor a model"):
        runs.check_weights(runs.open_run(c, str(tmp_path / "run")))


def test_ten_ablations_of_stage_three_share_everything_else():
    found = Counter()
    for steps in range(10, 20):
        found.update(set(digests(**{"denoiser.train.steps": steps}).items()))
    shared = {name for (name, _), count in found.items() if count == 10}
    assert shared == set(BEFORE) - STAGE_3
    assert sum(name == "denoiser" for name, _ in found) == 10


def test_raw_data_counts_by_path_size_and_time(tmp_path):
    root = test_prepare.make_root(tmp_path / "data", count=4)
    c = folder.get_config("smoke")
    c.data.root = str(root)
    recipe = lambda: runs.open_run(c, str(tmp_path / "run")).recipe("denoiser").digest
    before = recipe()
    assert recipe() == before
    picture = next(root.rglob("*.png"))
    picture.write_bytes(picture.read_bytes() + b"x")
    assert recipe() != before


def fake_run(tmp_path: pathlib.Path, made: Counter, **changes) -> context.Run:
    """The smoke run with makers that only count, and read every key that they declare."""
    c = phantom.get_config("smoke")
    c.update_from_flattened_dict(changes)
    run = runs.open_run(c, str(tmp_path / "run"))

    def counting(name):
        def make(seen, part):
            made[name] += 1
            for need in run.producers[name].needs:
                assert seen.artefact(need).name == need
            (part / "file").write_text(name)

        return make

    producers = {n: context.Producer(**{**p.__dict__, "make": counting(n)}) for n, p in run.producers.items()}
    return context.Run(run.config, run.workdir, run.mesh, run.store, producers)


def test_runs_share_what_they_share(tmp_path):
    made: Counter[str] = Counter()
    for steps in range(10, 20):
        fake_run(tmp_path, made, **{"denoiser.train.steps": steps}).artefact("evaluation")
    assert made == Counter({name: 10 if name in STAGE_3 else 1 for name in BEFORE})


def test_a_maker_sees_what_it_declared_and_nothing_else(tmp_path):
    run = runs.open_run(phantom.get_config("smoke"), str(tmp_path / "run"))

    def nosy(seen, part):
        assert seen.config.text_encoder.width == 1024
        with pytest.raises(UndeclaredKey, match=r"prior\.grid"):
            _ = seen.config.prior.grid
        with pytest.raises(KeyError):
            seen.artefact("prior")
        (part / "file").write_text("")

    plain = lambda seen, part: (part / "file").write_text("") and None
    pictures = context.Producer("pictures", plain, keys=("seed",))
    text = context.Producer("text", nosy, keys=("text_encoder.*",), needs=("pictures",))
    mesh = parallel.make_mesh(run.config.mesh)
    context.Run(run.config, tmp_path, mesh, Store(tmp_path / "store"), {"pictures": pictures, "text": text}).artefact(
        "text"
    )


@pytest.mark.parametrize(
    ("variant", "holds"), [("reference+smoke", 0), ("class_label+smoke", 1), ("pixart_text+smoke", 0)]
)
def test_a_condition_is_fitted_with_what_it_declares(tmp_path, variant, holds):
    """That of the default is made in every run of its recipe."""
    c = phantom.get_config(variant)
    c.data.update(dict(train_items=4, validation_items=1, test_items=1))
    run = runs.open_run(c, str(tmp_path / "run"))
    assert run.producers["condition"].needs == ("pictures",) * holds
    assert len(run.context.variables("condition")) == holds


@pytest.mark.parametrize("variant", ["smoke", "reference+smoke", "class_label+smoke", "pixart_text+smoke"])
def test_every_need_stands_before_what_needs_it(variant):
    run = runs.open_run(phantom.get_config(variant), "runs/none")
    seen: set[str] = set()
    for name, producer in artefacts.producers(run.config).items():
        assert set(producer.needs) <= seen, name
        seen.add(name)
    trained = {"prior", "disentangler"} & seen
    assert trained == (set() if variant.startswith(("class_label", "pixart")) else {"prior", "disentangler"})
    assert ("wordings" in seen) == (variant == "smoke")


@pytest.mark.parametrize("collective", [True, False])
def test_only_the_first_process_writes(tmp_path, monkeypatch, collective):
    """Another one computes along where the work is spread over all devices, and else waits for what was made."""
    made: list[bool] = []

    def make(seen, part):
        made.append(parallel.is_main())
        if parallel.is_main():
            (part / "file").write_text("")

    producer = context.Producer("pictures", make, keys=("seed",), collective=collective)
    config = runs.open_run(phantom.get_config("smoke"), str(tmp_path / "run")).config
    opened = lambda: context.Run(
        config, tmp_path, parallel.make_mesh(config.mesh), Store(tmp_path / "store"), {"pictures": producer}
    )
    other = opened()
    monkeypatch.setattr(other, "find", lambda name: None)  # it asked before the first process was done
    opened().artefact("pictures")
    monkeypatch.setattr(parallel, "is_main", lambda: False)
    assert other.artefact("pictures").files == ("file",)
    assert made == ([True, False] if collective else [True])
