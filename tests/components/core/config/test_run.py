import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from components.core.config import (
    XCEPTION_LARGE,
    BackboneConfig,
    FrozenModel,
    RunConfig,
    ScreenConfig,
    differences,
    find_config,
    first_difference,
    parse,
)
from components.core.config.file import shipped_configs
from components.core.errors import InputError
from components.core.learning.step_settings import MeanTeacherSettings, PretrainSettings
from components.core.screen.simulation.plate_design import SimulationSettings


def write(tmp_path: Path, text: str) -> str:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    return str(path)


def error(tmp_path: Path, text: str, *changes: str) -> str:
    """The message of an invalid configuration, which is one line."""
    with pytest.raises(InputError) as caught:
        RunConfig.load(write(tmp_path, text), changes)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pretrian: {epochs: 3}", "pretrian: unknown key; did you mean pretrain?"),
        ("backbones: [{name: a, middle_block: 3}]", "backbones.0.middle_block: unknown key; did you mean middle_bloc"),
        ("augment: {crop: [0.9, 0.5]}", "augment: crop must be (low, high), got (0.9, 0.5)"),
        ("folds: {split: well, known: {A-01: 0}}", "folds: known assigns whole experiments to folds; leave it out"),
        ("folds: {train: [1, 1]}", "folds: train must name different folds from 0 to 4"),
        ("folds: {train: [2, 1]}", "folds: train must increase, got [2, 1]"),
        ("backbones: [{name: a}, {name: a}]", "backbones must have different names, got ['a', 'a']"),
        ("backbones: [{name: a, kind: timm}]", "backbones.0: backbone a: kind timm needs `model`"),
        (
            "backbones: [{name: a, kind: timm, model: 'hf-hub:x/y'}]",
            "backbones.0: backbone a: model 'hf-hub:x/y' has a scheme",
        ),
        ("backbones: [{name: a, model: b}]", "backbones.0: backbone a: kind timm needs `model`, other kinds take none"),
        ("{init_from: old, backbones: [{name: a, weights: w.pt}]}", "init_from sets the initial weights of every"),
        ("backbones: [{name: ../a}]", "backbones.0.name: string should match pattern"),
        ("pretrain: {milestones: [5]}", "pretrain: learning_rates must have one more entry than milestones, got 3"),
        ("pretrain: {milestones: [9, 5]}", "pretrain: milestones must increase, got [9, 5]"),
        ("pretrain: {schedule: one_cycle}", "pretrain: schedule one_cycle takes one learning rate, no milestones"),
        (
            "backbones: [{name: a, kind: plain, stages: [[]]}]",
            "backbones.0: backbone a: every stage needs at least one wid",
        ),
        ("mean_teacher: {finetune_cycles: 9}", "mean_teacher: finetune_cycles must be <= cycles, got 9 and 4"),
        ("mean_teacher: {ema_epochs: [1, 20, 10]}", "mean_teacher: ema_epochs must increase, got [1, 20, 10]"),
        ("mean_teacher: {ema_epochs: [1]}", "mean_teacher: ema_decays must have one more entry than ema_epochs"),
        ("mean_teacher: {fused_labels: a.csv, enabled: false}", "mean_teacher: fused_labels are pseudo-labels; set"),
        ("mean_teacher: {finetune_cycles: 4, final_epochs: 0}", "mean_teacher: finetune_cycles 4 of 4 cycles leaves"),
        ("backbones: [resnet]", "backbones.0: there is no backbone 'resnet'; known names are xception, xception_large"),
        (
            "embeddings: {shrinkage: 0.1}",
            "embeddings: shrinkage is that of sphering; set sphering to controls, or leave",
        ),
        ("screen: {cell_types: [A, A]}", "screen: cell_types must be different, got ['A', 'A']"),
        ("- 1\n- 2", "expected a mapping of sections, got list"),
        ("seed: -1\nscreen: {}\nseed: 2", "run.yaml line 3: not valid YAML (seed appears twice)"),
        ("a: [1", "run.yaml line 1: not valid YAML ("),
        ("seed: 4294967296", "seed: input should be less than 4294967296"),
        ("extend: demo", "extend: unknown key; did you mean extends?"),
        ("augment: {cutmix: true}", "augment.cutmix: input should be a number, got true"),
        ("pretrain: {class_balance: yes}", "pretrain.class_balance: input should be a number, got true"),
        ("pretrain: {learning_rates: [1, true, 1]}", "pretrain.learning_rates.1: input should be a number, got true"),
        (
            "simulate: {labelled: {RPE: off}}",
            "simulate.labelled.RPE: input should be greater than or equal to 1, got false",
        ),
        ("pretrain: {milestones: 3}", "pretrain.milestones: input should be a list, got 3"),
        ("pretrain: 3", "pretrain: input should be a section of KEY: VALUE, got 3"),
        ("mean_teacher: {ratio: 3}", "mean_teacher.ratio: input should be a section of KEY: VALUE, got 3"),
        ("standardise: {robust: perhaps}", "standardise.robust: input should be true or false, got 'perhaps'"),
        ("screen: {image_size: [1, 2, 3]}", "screen.image_size: list should have at most 2 items, not 3"),
        ("augment: {zoom: [0.01, 1]}", "augment.zoom.0: input should be greater than or equal to 0.1, got 0.01"),
    ],
)
def test_an_error_is_one_line_that_names_file_and_field(tmp_path, text, message):
    found = error(tmp_path, text)
    assert found.startswith(str(tmp_path / "run.yaml"))
    assert message in found
    assert "after validation" not in found  # a list with wrong items alone is not called empty, too


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "backbones: [{name: a, stages: [[8], [16]]}]",
            "backbone a: stages is of kind plain; set kind to plain, or give the backbone without stages",
        ),
        (
            "backbones: [{name: a, kind: plain, stem: 8, exit: [1, 2, 3]}]",
            "backbone a: stem and exit are of kind xception; set kind to xception, or give the",
        ),
        (
            "backbones: [{name: a, kind: timm, model: b, stages: [[8]], middle_blocks: 2}]",
            "backbone a: middle_blocks is of kind xception; set kind to xception",
        ),
        (
            "{screen: {image_size: 31, bin: 2}, backbones: [{name: a, kind: plain, stages: [[1], [1], [1], [1], [1]]}]}",
            "backbone a: 5 stages take images from 16 x 16 pixels on, but networks see 15 x 15 (screen.image_size, bin and",
        ),
        ("{screen: {crop: 7}, backbones: [{name: a, kind: plain}]}", "from 8 x 8 pixels on, but networks see 7 x 7"),
        (
            "standardise: {domain: none, robust: true}",
            "standardise: robust has no meaning with domain none; set robust",
        ),
        ("batch_norm: {statistics: controls}", "batch_norm: statistics controls has no meaning with domain none; set"),
        (
            "mean_teacher: {pseudo_labels: none, pseudo_label_choice: assignment}",
            "mean_teacher: pseudo_label_choice assignment is of hard pseudo-labels; set pseudo_labels to hard, or",
        ),
        (
            "embeddings: {enabled: false, sphering: controls}",
            "embeddings: sphering needs embeddings; set enabled to true",
        ),
        (
            "{screen: {cell_types: [HeLa]}, mean_teacher: {ratio: {HeLa: 1, HELA: 2, RPE: 0.5}}}",
            "run.yaml: mean_teacher.ratio names 'HELA', which is not in screen.cell_types; correct one of them",
        ),
    ],
)
def test_settings_that_nothing_uses_are_refused_where_people_write_them(tmp_path: Path, text: str, message: str):
    found = error(tmp_path, text)
    assert found.startswith(str(tmp_path / "run.yaml"))
    assert message in found
    RunConfig.model_validate(yaml.safe_load(text))  # stored runs that have them stay readable


def test_settings_that_just_suffice_are_used(tmp_path: Path):
    text = "{screen: {image_size: 33, bin: 2}, backbones: [{name: a, kind: plain, stages: [[1], [1], [1], [1], [1]]}]}"
    assert RunConfig.load(write(tmp_path, text)).backbones[0].smallest_input == 16
    dumped = RunConfig.load("cpu-small").dump()
    assert RunConfig.load(write(tmp_path, dumped), ["backbones.0={name: a, kind: timm, model: b}"])
    with pytest.raises(
        InputError, match=r"run\.yaml with --set backbones\.0\.kind=xception: .*stages is of kind plain"
    ):
        RunConfig.load(write(tmp_path, dumped), ["backbones.0.kind=xception"])


def test_reports_all_mistakes_at_once(tmp_path):
    found = error(tmp_path, "pretrain: {epochs: 0, batch: 1}\nseed: -1")
    assert found.count("; ") >= 2
    assert all(field in found for field in ("pretrain.epochs: ", "pretrain.batch: ", "seed: "))


def test_rejects_a_file_that_is_not_text_or_missing(tmp_path):
    (tmp_path / "run.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"run\.yaml: not UTF-8 text"):
        RunConfig.load(str(tmp_path / "run.yaml"))
    with pytest.raises(InputError, match=r"config 'nowhere': no such file, nor one of .*\bdemo, "):
        find_config("nowhere")


def test_an_empty_file_is_the_default(tmp_path):
    assert RunConfig.load(write(tmp_path, "")) == RunConfig()


def test_changes_apply_in_order_and_reach_lists_and_new_sections(tmp_path):
    text = "backbones: [{name: a}, {name: b}]\npretrain: {learning_rates: [0.1, 0.01], milestones: [5]}"
    changes = ["seed=3", "seed=4", "backbones.1.stem=7", "pretrain.learning_rates.0=0.5", "head.kind=softmax"]
    changes += ["name=ab", "simulate.labelled.RPE=9", "screen.holdout_experiments=[HUVEC-01, RPE-02]"]
    config = RunConfig.load(write(tmp_path, text), changes)
    assert (config.seed, config.name, config.head.kind) == (4, "ab", "softmax")
    assert [b.stem for b in config.backbones] == [32, 7]
    assert config.pretrain.learning_rates == (0.5, 0.01)
    assert config.simulate.labelled == {**RunConfig().simulate.labelled, "RPE": 9}
    assert config.screen.holdout_experiments == ("HUVEC-01", "RPE-02")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("seed", "--set 'seed': expected KEY=VALUE, for example pretrain.epochs=4"),
        ("=3", "--set '=3': expected KEY=VALUE"),
        ("pretrain.milestones=[1]", "run.yaml with --set pretrain.milestones=[1]: pretrain: learning_rates must have"),
        ("seed=[1", "--set 'seed=[1': the value is not valid YAML"),
        ("seed.x=1", "--set 'seed.x=1': seed has no fields"),
        ("backbones.2.stem=1", "--set 'backbones.2.stem=1': backbones has 1 item, counted from 0; got 2"),
        ("backbones.first.stem=1", "--set 'backbones.first.stem=1': backbones has 1 item, counted from 0; got first"),
        ("backbones.-1.stem=1", "--set 'backbones.-1.stem=1': backbones has 1 item, counted from 0; got -1"),
        ("backbones.1=1", "--set 'backbones.1=1': backbones has 1 item, counted from 0; got 1"),
        ("seeds=1", "seeds: unknown key"),
        ("backbones.0.stems=1", "backbones.0.stems: unknown key"),
        ("pretrain.epochs=", "pretrain.epochs: input should be a valid integer, got null"),
    ],
)
def test_an_invalid_change_is_one_line(tmp_path, change, message):
    assert message in error(tmp_path, "seed: 1\nbackbones: [{name: a}]", change)


def test_a_mistake_is_reported_with_its_change_or_the_file(tmp_path):
    changes = ("pretrain.epochs=few", "pretrain.epochs=0", "seed=2")
    line = error(tmp_path, "seed: 1", *changes)
    assert "--set pretrain.epochs=0: pretrain.epochs: " in line
    assert "--set seed" not in line
    assert "few" not in line
    assert ".yaml: pretrain.epoch: unknown key" in error(tmp_path, "pretrain: {epoch: 3}", *changes)


SECTIONS = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**32 - 1),
        "name": st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,8}", fullmatch=True),
        "screen": st.fixed_dictionaries(
            {"image_size": st.integers(1, 4096), "holdout_experiments": st.lists(st.text())}
        ),
        "augment": st.fixed_dictionaries({"shift": st.floats(0, 1), "erase_area": st.just((0.1, 0.2))}),
        "mean_teacher": st.fixed_dictionaries(
            {"ratio": st.dictionaries(st.sampled_from(["RPE", "U2OS"]), st.floats(1e-300, 1e300))}
        ),
        "backbones": st.lists(
            st.builds(BackboneConfig, name=st.from_regex(r"[a-z0-9_]{1,9}", fullmatch=True), stem=st.integers(1, 99)),
            min_size=1,
            max_size=2,
            unique_by=lambda b: b.name,
        ),
        "store": st.fixed_dictionaries({"prefix": st.text()}),
    },
)


@settings(max_examples=25, deadline=None)
@given(data=SECTIONS)
def test_a_dump_loads_as_an_equal_configuration(tmp_path_factory, data):
    config = RunConfig.model_validate(data)
    path = tmp_path_factory.mktemp("dump") / "config.yaml"
    path.write_text(config.dump(), encoding="utf-8")
    assert RunConfig.load(str(path)) == config
    assert set(yaml.safe_load(config.dump())) == set(RunConfig.model_fields)


@pytest.mark.parametrize("path", sorted(shipped_configs().glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_load_by_name_and_survive_a_dump(path, tmp_path):
    config = RunConfig.load(path.stem)
    assert RunConfig.load(write(tmp_path, config.dump())) == config


@pytest.mark.parametrize(
    ("file", "listed"),
    [
        ("README.md", r"\[`([\w-]+)`\]\(pipelines/configs/\1\.yaml\)"),
        ("docs/generate_configuration.py", r"(?m)^\| `([\w-]+)` \|"),
        ("pipelines/options.py", r"(?<=shipped configuration \().*?(?=\))"),
    ],
)
def test_lists_of_the_shipped_configurations_are_complete(file, listed):
    text = shipped_configs().parents[1].joinpath(file).read_text(encoding="utf-8")
    names = [name for found in re.findall(listed, text) for name in found.split(", ")]
    assert sorted(names) == sorted(path.stem for path in shipped_configs().glob("*.yaml"))


@pytest.mark.parametrize("kind", [PretrainSettings, MeanTeacherSettings, SimulationSettings])
def test_a_section_has_the_fields_of_the_step_only(kind):
    config = RunConfig.load("demo")
    part = config.section(kind)
    whole = config.model_dump(mode="json")
    assert part.model_dump(mode="json") == {name: whole[name] for name in kind.model_fields}
    assert parse(kind, part.model_dump(mode="json"), "x") == part
    changed = config.model_copy(update={"local": config.local.model_copy(update={"threads": 7})})
    assert changed.section(kind) == part, "a change elsewhere changes no step"


def test_every_field_has_a_description():
    sections = [f.annotation for f in RunConfig.model_fields.values() if isinstance(f.annotation, type)]
    bare = [
        f"{kind.__name__}.{name}"
        for kind in [*(k for k in sections if issubclass(k, FrozenModel)), BackboneConfig]
        for name, field in kind.model_fields.items()
        if not field.description
    ]
    assert bare == []


def test_backbones_may_be_given_by_name():
    _, slim = RunConfig.load("demo").backbones
    found = RunConfig.load("demo", ["backbones=[xception_large, plain_slim]"]).backbones
    assert found == (XCEPTION_LARGE, slim)
    (changed,) = RunConfig.load("demo", ["backbones.1.stages=[[9]]", "backbones=[plain_slim]"]).backbones
    assert changed.stages == ((9,),)
    after = RunConfig.load("rxrx1", ["backbones=[xception]", "backbones.0.stem=24"])
    assert after.backbones == (RunConfig.load("published").backbones[0].model_copy(update={"stem": 24}),)


def test_a_change_inside_an_omitted_section_keeps_its_other_defaults(tmp_path: Path):
    usual = RunConfig()
    short = write(tmp_path, "name: short")
    ratio = RunConfig.load(short, ["mean_teacher.ratio.HUVEC=0.5"]).mean_teacher.ratio
    assert ratio == {**usual.mean_teacher.ratio, "HUVEC": 0.5}
    assert RunConfig.load(short, ["mean_teacher.ema_decays.0=0.4"]).mean_teacher.ema_decays == (0.4, 0.9, 0.99, 0.999)
    first, second = RunConfig.load(short, ["backbones.0.stem=24"]).backbones
    assert (first.stem, second) == (24, XCEPTION_LARGE)
    assert RunConfig.load(short, ["simulate.labelled.RPE=9"]).simulate.labelled == {**usual.simulate.labelled, "RPE": 9}
    # What the file names stands alone, as without changes.
    named = write(tmp_path, "mean_teacher: {ratio: {RPE: 2}}")
    assert RunConfig.load(named, ["mean_teacher.ratio.HUVEC=0.5"]).mean_teacher.ratio == {"RPE": 2, "HUVEC": 0.5}
    assert RunConfig() == usual


def test_differences_have_dotted_names_and_both_values():
    assert differences({"a": {"b": 1}, "c": [1]}, {"a": {"b": 1}, "c": [1]}) == {}
    assert differences({"a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}) == {"a.c": (2, None), "a.d": (None, 2)}
    assert first_difference({"a": {"b": 1}}, {"a": {"b": 1}}) == ""
    assert first_difference({"z": 1, "a": {"b": 1, "c": 2}}, {"a": {"b": 1, "d": 2}}) == "a.c"


def test_changes_may_complete_a_file(tmp_path):
    path = write(tmp_path, "folds: {split: plate, known: {HUVEC-01: 0}}\n")
    with pytest.raises(InputError, match="leave it out with split plate"):
        RunConfig.load(path)
    assert RunConfig.load(path, ["folds.known={}"]).folds.split == "plate"


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ("{count: 3, validation: [[A], [B]]}", "a list for each of the 3 folds, got 2"),
        ("{count: 2, validation: [[A], [B, B]]}", r"fold 1 must name different experiments, got \['B', 'B'\]"),
        ("{count: 2, validation: [[A], []]}", "fold 1 must name different experiments"),
        ("{count: 2, validation: [[A], [B]], split: plate}", "leave known and split out"),
    ],
)
def test_rejects_impossible_lists_of_validation_experiments(folds: str, message: str):
    with pytest.raises(InputError, match=message):
        RunConfig.load("demo", [f"folds={folds}"])


ORIGINAL = {
    "screen": {"holdout_experiments": (), "controls": "all"},
    "standardise": {"domain": "plate", "jitter": 0.1, "jitter_per": "image", "channel_noise": 0},
    "augment": {
        "geometric_probability": 0.5, "shift": 0.1, "scale": 0.1, "aspect": 0, "zoom": (1, 1), "cutmix": 0, "crop": (0.8, 0.99),
        "erase_probability": 0.5, "erase_area": (0.02, 0.4), "erase_aspect": (0.3, 3.3), "erase_uniform_aspect": True,
        "erase_before_crop": True,
    },
    "head": {"kind": "arcface", "scale": 30, "margin": 0.1, "batch_norm": False, "cell_types": False, "linear_weight": 0},
    "pretrain": {
        "epochs": 160, "batch_size": 64, "optimiser": "adam", "schedule": "steps", "learning_rates": (3e-4, 1e-4, 1e-5),
        "milestones": (100, 140), "weight_decay": 2e-4, "label_smoothing": 0, "class_balance": 0, "selection": "balanced",
    },
    "mean_teacher": {
        "mix": "natural", "learning_rate": 0.1, "learning_rate_low": 1e-3, "weight_decay": 2e-4, "cycle_epochs": 40,
        "ratio": {"U2OS": 1, "RPE": 0.5, "HEPG2": 0.5, "HUVEC": 0.25}, "finetune_cycles": 0.5, "cycles": 4, "final_epochs": 5,
        "final_learning_rate": 1e-4, "ema_decays": (0.5, 0.9, 0.99, 0.999), "ema_epochs": (1, 10, 20), "ema_first_step": 0,
        "consistency_weight": 100, "ramp_epochs": 5, "pseudo_labels": "hard", "pseudo_label_choice": "argmax",
        "confident_fractions": (1,), "pseudo_label_weight": 0.05, "pseudo_label_passes": 4, "pseudo_label_blend": 0.9,
        "keep_classifier": False, "selection": "balanced", "validate_every": 1,
    },
    "predict": {"views": 8, "weights": "student"},
    "prior": {"enabled": True, "balancing": "greedy", "permutations": "cyclic"},
}  # fmt: skip
"""Of the original run, as far as known."""


def test_the_published_profile_is_the_original_run():
    config = RunConfig.load("published")
    shown = {section: getattr(config, section).model_dump(include=set(own)) for section, own in ORIGINAL.items()}
    assert differences(ORIGINAL, shown) == {}
    assert [(b.stem, b.entry, b.middle_blocks, b.exit, b.depthwise_init) for b in config.backbones] == [
        (32, (64, 128, 256, 728), 8, (1024, 1536, 2048), "torch"),
        (64, (128, 256, 384, 1024), 8, (1024, 1536, 2048), "torch"),
    ]
    labelled = {f"{name}-{n + 1:02d}" for name, count in config.simulate.labelled.items() for n in range(count)}
    assert len(labelled) == 33
    assert config.folds.validation is not None
    for names in config.folds.validation:
        assert len(labelled - set(names)) == 28
        assert {name.partition("-")[0] for name in names} == set(config.screen.cell_types)


def test_the_rxrx1_profile_differs_from_the_published_one_as_it_says():
    found = differences(RunConfig.load("published").model_dump(), RunConfig.load("rxrx1").model_dump())
    assert set(found) == {"name", "screen.holdout_experiments", "folds.validation", "prior.balancing"}


@pytest.mark.parametrize("name", ["cpu-small", "gpu-1h"])
def test_presets_that_screens_extend_say_nothing_of_a_screen(name: str):
    found = differences(RunConfig().model_dump(), RunConfig.load(name).model_dump())
    sections = {"name", "screen.bin", "folds.count", "standardise.jitter", "predict.batch_size", "embeddings.views"}
    methods = ("augment.", "backbones", "head.", "pretrain.", "mean_teacher.")
    assert {field for field in found if not field.startswith(methods)} <= sections


@pytest.mark.parametrize("bucket", ["data/store", "/data/store", "~/store", "s3:/data", "file://host"])
def test_rejects_a_store_that_is_neither_a_bucket_nor_an_address(bucket: str):
    with pytest.raises(
        InputError, match=r"store\.bucket: .*write a bucket's name, s3://BUCKET/PREFIX or file:///FOLDER"
    ):
        RunConfig.load("demo", [f"store.bucket={bucket}"])


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("siRNA", "sirna"),
        ("compound", "compound"),
        ("guide RNA", "guide_rna"),
        (" Gene (KO)", "gene_ko"),
        ("药", "perturbation"),
    ],
)
def test_the_column_of_labels_follows_the_screens_word(name: str, column: str):
    assert ScreenConfig(perturbation_name=name).label_column == column


@pytest.mark.parametrize("name", ["plate", "Confidence", "top5", "a\nb", ""])
def test_a_word_that_is_another_columns_or_no_text_is_refused(name: str):
    with pytest.raises(ValidationError, match="perturbation_name"):
        ScreenConfig(perturbation_name=name)


def test_own_columns_keep_their_names_unless_results_have_them():
    names = ("dose", "confidence", "compound", "raw_compound", "focus_1", "SMILES")
    own = ("dose", "screen_confidence", "screen_compound", "screen_raw_compound", "screen_focus_1", "SMILES")
    assert ScreenConfig(perturbation_name="Compound").own_columns(names) == own


def test_a_file_that_extends_another_replaces_fields_of_sections(tmp_path: Path) -> None:
    base = RunConfig.load("demo")
    (tmp_path / "own.yaml").write_text("extends: demo\npretrain: {epochs: 3}\nsimulate: {labelled: {HUVEC: 2}}\n")
    extended = RunConfig.load(write(tmp_path, "extends: own.yaml\nname: mine\npretrain: {batch_size: 5}\n"))
    found = differences(base.model_dump(), extended.model_dump())
    assert set(found) == {"name", "pretrain.epochs", "pretrain.batch_size"} | {
        f"simulate.labelled.{name}" for name in base.simulate.labelled
    }
    assert dict(extended.simulate.labelled) == {"HUVEC": 2}


def test_what_extends_a_file_can_be_wrong_in(tmp_path: Path) -> None:
    assert "extends itself" in error(tmp_path, "extends: run.yaml")
    found = error(tmp_path, "extends: cpu-smal")
    assert f"{tmp_path / 'run.yaml'}: config 'cpu-smal': no such file in {tmp_path} or {Path.cwd()}, nor" in found
    assert found.endswith("did you mean cpu-small?")
    assert "extends: expected the name or file" in error(tmp_path, "extends: [demo]")
    (tmp_path / "list.yaml").write_text("- demo")
    assert "list.yaml: expected a mapping of sections, got list" in error(tmp_path, "extends: list.yaml\nseed: 1")
    assert "extends itself" in error(tmp_path, f"extends: ../{tmp_path.name}/run.yaml"), "by another path"


def test_a_mistake_is_reported_with_the_file_that_has_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: -1\npretrain: {epochs: 0, batch_size: 0}")
    found = error(tmp_path, "extends: base.yaml\nname: a b\npretrain: {batch_size: -1}", "seed=-2")
    base, run = tmp_path / "base.yaml", tmp_path / "run.yaml"
    assert f"{base}: pretrain.epochs: input should be greater than or equal to 1, got 0" in found
    assert f"{run}: pretrain.batch_size: input should be greater than or equal to 1, got -1" in found
    assert f"{run}: name: " in found
    assert "--set seed=-2: seed: " in found


def test_backbones_of_an_extended_file_may_be_given_by_name(tmp_path: Path) -> None:
    both = RunConfig.load("demo").backbones
    path = write(tmp_path, "extends: demo\nbackbones: [plain_slim]")
    assert RunConfig.load(path).backbones == both[1:]
    assert RunConfig.load(path, ["backbones=[plain, plain_slim]"]).backbones == both
    (tmp_path / "run.yaml").write_text("extends: demo\nbackbones: [{name: plain, stem: 3}, plain_slim]")
    assert RunConfig.load(path, ["backbones=[plain]"]).backbones == (BackboneConfig(name="plain", stem=3),)
    assert "known names are xception, xception_large, plain, plain_slim" in error(
        tmp_path, "extends: demo\nbackbones: [slim]"
    )
