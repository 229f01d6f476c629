"""The fields that affect each training step's result, and so the key of its finished work."""

import pytest

from components.core.config import RunConfig
from components.core.learning.step_settings import InferSettings, MeanTeacherSettings, PretrainSettings

FINGERPRINTS = {
    "pretrain small": lambda run: run.section(PretrainSettings).fingerprint_of("plain"),
    "pretrain slim": lambda run: run.section(PretrainSettings).fingerprint_of("plain_slim"),
    "finetune": lambda run: run.section(MeanTeacherSettings).finetune_fingerprint(),
    "pseudo_label": lambda run: run.section(MeanTeacherSettings).unsphered().fingerprint(),
    "infer": lambda run: run.section(InferSettings).unsphered().fingerprint(),
}
PRETRAIN = {"pretrain small", "pretrain slim"}
ALL = set(FINGERPRINTS)


def changed(change: str, *also: str) -> set[str]:
    before, after = RunConfig.load("demo", also), RunConfig.load("demo", [*also, change])
    assert before != after
    return {name for name, of in FINGERPRINTS.items() if of(before) != of(after)}


CHANGES: list[tuple[set[str], str, str]] = [
    (ALL, "", "seed=5 screen.controls=training standardise.domain=experiment batch_norm.domain=plate head.margin=0.2"),
    (PRETRAIN, "pretrain.", "epochs=21"),
    ({"finetune", "pseudo_label"}, "mean_teacher.", "learning_rate=0.01 cycles=2 finetune_cycles=0.5 mix=natural"),
    ({"finetune", "pseudo_label"}, "mean_teacher.", "pseudo_labels=none"),
    ({"pseudo_label"}, "mean_teacher.", "pseudo_labels=soft pseudo_label_weight=0.1 pseudo_label_passes=3"),
    ({"pseudo_label"}, "mean_teacher.", "confident_by=epoch pseudo_label_choice=assignment"),
    ({"pseudo_label"}, "mean_teacher.", "pseudo_label_blend=0.5 confident_fractions=[0.5] refresh_epochs=3"),
    ({"pseudo_label", "infer"}, "predict.", "batch_size=7 views=2 weights=teacher"),
    ({"pseudo_label", "infer"}, "embeddings.", "views=2 enabled=false"),
    (set(), "embeddings.", "sphering=controls"),
    (ALL, "screen.", "bin=2 crop=16 tile=true"),
    ({"pseudo_label", "infer"}, "screen.", "perturbation_name=compound"),
    (
        set(),
        "screen.",
        "perturbation_name=SIRNA layout=kaggle sites=1 z=max missing_images=drop negative_controls=[DMSO]",
    ),
    (set(), "loader.", "cache_gib=3 node_cache=/cache requests=3"),
    (set(), "", "mean_teacher.fused_labels=/p.csv simulate.effect=0.5 local.threads=1 name=other init_from=old-1"),
]
"""Steps, and the changes that affect exactly these, which begin with a section."""


@pytest.mark.parametrize(
    ("keys", "change"), [(keys, section + each) for keys, section, changes in CHANGES for each in changes.split()]
)
def test_a_change_recomputes_exactly_the_steps_it_affects(keys: set[str], change: str):
    assert changed(change) == keys


def backbones(width: int) -> str:
    small = "{name: plain, stem: 16, entry: [32, 64], exit: [64, 64, 64]}"
    return f"backbones=[{small}, {{name: plain_slim, stem: 12, entry: [24, {width}], exit: [64, 64, 64]}}]"


def test_a_backbone_affects_its_own_pretraining_and_all_later_steps():
    assert changed(backbones(48), backbones(32)) == ALL - {"pretrain small"}


@pytest.mark.parametrize("kind", ["none", "hard"])
def test_the_validation_score_affects_finetune_even_if_it_selects_nothing(kind: str):
    found = changed("mean_teacher.selection=raw", f"mean_teacher.pseudo_labels={kind}")
    assert found == {"finetune", "pseudo_label"}


def test_inference_batch_size_affects_validation_with_adabn():
    assert changed("predict.batch_size=7", "batch_norm.domain=plate") == ALL
